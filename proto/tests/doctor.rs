//! Each check of `doctor`, on machines that are only written down.

#![expect(clippy::unwrap_used, reason = "a test ends where its setup fails")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use brigade_proto::control::Enrolment;
use brigade_proto::doctor::{
    Bytes, Finding, Here, Level, Port, Protocol, Ran, Reach, Report, Role, Subject, Surroundings, System,
    TcpReach, UdpReach, examine,
};
use brigade_proto::identity::{CoordinatorIdentity, TransportIdentity, WorkerKey};
use brigade_proto::ids::WorkerId;

/// A machine that is written down.
struct Machine {
    system: System,
    files: BTreeMap<String, String>,
    links: BTreeMap<String, String>,
    modes: BTreeMap<String, u32>,
    commands: BTreeMap<String, Ran>,
    taken: Vec<(Protocol, SocketAddr)>,
    reach: Reach,
    headers: Option<String>,
    addresses: Vec<(String, IpAddr)>,
    now: f64,
    /// Where real files lie, for the checks that read some.
    real: Option<PathBuf>,
    asked: RefCell<Vec<String>>,
}

impl Machine {
    /// A Linux box on which nothing is wrong.
    fn linux() -> Machine {
        let files = [
            (
                "/proc/meminfo",
                "MemTotal:  67108864 kB\nMemAvailable:  62914560 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
            ),
            (
                "/proc/self/limits",
                "Max locked memory 8388608 8388608 bytes\nMax open files 1048576 1048576 files\n",
            ),
            ("/proc/sys/net/core/rmem_max", "4194304\n"),
            ("/proc/sys/net/core/wmem_max", "4194304\n"),
            ("/proc/sys/vm/overcommit_memory", "0\n"),
            ("/proc/sys/vm/swappiness", "60\n"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ];
        let df =
            "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 900 1 104857600 1% /\n";
        let machine = Machine {
            system: System::Linux,
            files: files.map(|(path, text)| (path.to_owned(), text.to_owned())).into(),
            links: BTreeMap::new(),
            modes: [("/home", 0o755), ("/", 0o755)].map(|(path, mode)| (path.to_owned(), mode)).into(),
            commands: BTreeMap::new(),
            taken: Vec::new(),
            reach: Reach::Unknown("not asked for".to_owned()),
            headers: None,
            addresses: Vec::new(),
            now: 1_800_000_000.0,
            real: None,
            asked: RefCell::default(),
        };
        machine.command("df", df).command("timedatectl", "yes\n").cable("enp3s0", "up", 2500, 1500)
    }

    /// A Mac on which nothing is wrong.
    fn mac() -> Machine {
        let mut machine = Machine { system: System::MacOs, ..Machine::linux() };
        machine.files.clear();
        machine
            .command("/usr/libexec/ApplicationFirewall/socketfilterfw --getglobalstate", "Firewall is disabled. (State = 0)\n")
            .command("sysctl -n hw.memsize", "137438953472\n")
            .command("sysctl -n kern.memorystatus_level", "90\n")
            .command("sysctl -n vm.swapusage", "total = 0.00M  used = 0.00M  free = 0.00M  (encrypted)\n")
            .command("sysctl -n iogpu.wired_limit_mb", "0\n")
            .command("sysctl -n kern.ipc.maxsockbuf", "8388608\n")
            .command("networksetup", "Hardware Port: Wi-Fi\nDevice: en0\n\nHardware Port: Ethernet\nDevice: en1\n\nHardware Port: Thunderbolt Bridge\nDevice: bridge0\n")
            .command("ifconfig en1", "en1: flags\n\tstatus: active\n")
            .command("route", "   route to: default\n  interface: en1\n")
    }

    fn file(mut self, path: &str, text: &str) -> Machine {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }

    fn link(mut self, path: &str, to: &str) -> Machine {
        self.links.insert(path.to_owned(), to.to_owned());
        self
    }

    /// What a command says: by its whole line, or by its program alone.
    fn command(mut self, line: &str, output: &str) -> Machine {
        self.commands.insert(line.to_owned(), Ran { success: true, output: output.to_owned() });
        self
    }

    fn failing(mut self, line: &str, output: &str) -> Machine {
        self.commands.insert(line.to_owned(), Ran { success: false, output: output.to_owned() });
        self
    }

    fn cable(self, name: &str, state: &str, mbit: i64, mtu: u64) -> Machine {
        let folder = format!("/sys/class/net/{name}");
        self.file(&format!("{folder}/operstate"), &format!("{state}\n"))
            .file(&format!("{folder}/speed"), &format!("{mbit}\n"))
            .file(&format!("{folder}/mtu"), &format!("{mtu}\n"))
            .link(&format!("{folder}/device"), "../../../0000:03:00.0")
    }

    fn findings(&self, subject: &Subject, check: &str) -> Vec<Finding> {
        let findings = examine(subject, self).findings;
        findings.into_iter().filter(|finding| finding.check == check).collect()
    }

    /// The one finding of a check that is no `ok`, or the first.
    #[track_caller]
    fn finds(&self, check: &str, level: Level, found: &str, remedy: &str) {
        self.finds_for(&subject(), check, level, found, remedy);
    }

    #[track_caller]
    fn finds_for(&self, subject: &Subject, check: &str, level: Level, found: &str, remedy: &str) {
        let findings = self.findings(subject, check);
        let is = |finding: &Finding| {
            finding.level == level
                && finding.found.contains(found)
                && finding.remedy.as_deref().unwrap_or_default().contains(remedy)
        };
        assert!(findings.iter().any(is), "no {level:?} with `{found}` and `{remedy}` in {findings:#?}");
        assert!(findings.iter().all(|finding| finding.level <= level), "something worse in {findings:#?}");
    }
}

impl Surroundings for Machine {
    fn system(&self) -> System {
        self.system
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        if self.real.as_ref().is_some_and(|real| path.starts_with(real)) {
            return Here.read(path);
        }
        let text = self.files.get(path.to_str().unwrap());
        text.cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn list(&self, path: &Path) -> Vec<String> {
        let all = self.files.keys().chain(self.links.keys());
        let mut names: Vec<String> = all
            .filter_map(|file| Path::new(file).strip_prefix(path).ok())
            .filter_map(|rest| Some(rest.iter().next()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn link(&self, path: &Path) -> Option<PathBuf> {
        self.links.get(path.to_str()?).map(PathBuf::from)
    }

    fn mode(&self, path: &Path) -> Option<u32> {
        if self.real.as_ref().is_some_and(|real| path.starts_with(real)) {
            return Here.mode(path);
        }
        self.modes.get(path.to_str()?).copied()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Option<Ran> {
        let line = [&[program], arguments].concat().join(" ");
        self.asked.borrow_mut().push(line.clone());
        self.commands.get(&line).or_else(|| self.commands.get(program)).cloned()
    }

    fn listen(&self, protocol: Protocol, addr: SocketAddr) -> io::Result<()> {
        if self.taken.contains(&(protocol, addr)) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(())
    }

    fn reach(&self, _to: &str) -> Reach {
        self.reach.clone()
    }

    fn http_headers(&self, _url: &str) -> io::Result<String> {
        self.headers.clone().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        self.addresses.clone()
    }

    fn now(&self) -> f64 {
        self.now
    }
}

fn port(protocol: Protocol, addr: &str) -> Port {
    Port { purpose: "control", protocol, addr: addr.parse().unwrap(), flag: "serve --control" }
}

fn subject() -> Subject {
    Subject {
        role: Role::Coordinator,
        ports: vec![port(Protocol::Tcp, "0.0.0.0:7481"), port(Protocol::Udp, "0.0.0.0:7481")],
        state: Some("/home/state".into()),
        models: Vec::new(),
        memory: None,
        to: Vec::new(),
        url: None,
    }
}

#[test]
fn on_a_machine_in_order_nothing_is_found_wrong_and_every_remedy_has_its_reason() {
    for machine in [Machine::linux(), Machine::mac()] {
        let report = examine(&subject(), &machine);
        let wrong: Vec<_> = report.findings.iter().filter(|finding| finding.level != Level::Ok).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let text = report.to_string();
        for check in ["ports", "firewall", "certificates", "network", "disk", "memory", "device", "kernel"] {
            assert!(text.contains(&format!("ok    {check} ")), "{check} in {text}");
        }
        assert!(text.ends_with(" 0 to look at, 0 failed\n") && !report.has_failed(), "{text}");
    }
}

#[test]
fn a_report_is_read_by_people_and_by_programs() {
    let finding = |level, remedy: Option<&str>| Finding {
        check: "ports",
        level,
        found: "it is \u{1b}[2J so".to_owned(),
        remedy: remedy.map(str::to_owned),
    };
    let report = Report { findings: vec![finding(Level::Ok, None), finding(Level::Fail, Some("mend it"))] };
    assert!(report.has_failed());
    assert_eq!(
        report.to_string(),
        "ok    ports         it is ?[2J so\nFAIL  ports         it is ?[2J so\n                    > mend it\n\n\
         1 ok, 0 to look at, 1 failed\n"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][1]["level"], "fail");
    assert_eq!(json["findings"][0]["remedy"], serde_json::Value::Null);
}

#[test]
fn a_port_is_free_ours_or_somebody_elses() {
    let addr = "0.0.0.0:7481".parse().unwrap();
    let taken = |name: &str| {
        let mut machine = Machine::linux()
            .file("/proc/net/tcp", "sl local\n 0: 00000000:1D39 00000000:0000 0A 0:0 0:0 0 0 0 4711 1\n")
            .link("/proc/321/fd/5", "socket:[4711]")
            .file("/proc/321/comm", &format!("{name}\n"));
        machine.taken = vec![(Protocol::Tcp, addr)];
        machine
    };
    Machine::linux().finds("ports", Level::Ok, "TCP 0.0.0.0:7481 for control is free", "");
    taken("brigade").finds("ports", Level::Ok, "taken by brigade, which runs", "");
    taken("nginx").finds("ports", Level::Fail, "taken by nginx (process 321)", "kill 321");
    let mut unseen = Machine::linux();
    unseen.taken = vec![(Protocol::Udp, addr)];
    unseen.finds(
        "ports",
        Level::Fail,
        "a program that is not to be seen from here",
        "sudo ss -lnp 'sport = :7481'",
    );
    unseen.taken = vec![(Protocol::Tcp, addr)];
    unseen.headers = Some("HTTP/1.1 200 OK".to_owned());
    unseen.finds("ports", Level::Ok, "a coordinator, which answers", "");
    let mut mac = Machine::mac().command("lsof", "p77\ncControlCe\n");
    mac.taken = vec![(Protocol::Tcp, addr)];
    mac.finds("ports", Level::Fail, "taken by ControlCe (process 77)", "kill 77");
}

#[test]
fn the_path_to_another_machine_is_named_by_what_stops_it() {
    let to = |udp, tcp| {
        let mut machine = Machine::linux();
        machine.reach = Reach::Tried { addr: "10.0.0.2:7481".parse().unwrap(), udp, tcp };
        machine
    };
    let subject = Subject { to: vec!["studio".to_owned()], ..subject() };
    let finds =
        |machine: Machine, level, found, remedy| machine.finds_for(&subject, "path", level, found, remedy);
    let answered = || UdpReach::Answered(Duration::from_micros(1500));
    finds(to(answered(), TcpReach::Connected), Level::Ok, "10.0.0.2:7481 and comes back in 1.5 ms", "");
    finds(to(answered(), TcpReach::Refused), Level::Ok, "as by a worker", "");
    finds(to(UdpReach::Silent, TcpReach::Connected), Level::Fail, "does not come back", "ufw allow 7481");
    finds(to(UdpReach::Refused, TcpReach::Refused), Level::Fail, "nobody listens", "brigade status");
    let failed = TcpReach::Failed("timed out".to_owned());
    finds(to(answered(), failed), Level::Fail, "TCP does not connect", "ufw allow 7481");
    finds(Machine::linux(), Level::Fail, "`studio` has no address", "IP address");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_end_of_the_data_plane_answers_the_probe_of_a_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let identity = CoordinatorIdentity::load_or_create(dir.path()).unwrap();
    let limits = brigade_proto::frame::FrameLimits { max_header_bytes: 1024, max_payload_bytes: 1024 };
    let transport = brigade_proto::link::Transport::bind(
        "127.0.0.1:0".parse().unwrap(),
        TransportIdentity::from(&identity),
        limits,
    )
    .unwrap();
    let addr = transport.local_addr();
    let reach = tokio::task::spawn_blocking(move || Here.reach(&addr.to_string())).await.unwrap();
    let Reach::Tried { udp: UdpReach::Answered(rtt), tcp: TcpReach::Refused, .. } = reach else {
        panic!("{reach:?}");
    };
    assert!(rtt < Duration::from_secs(1), "{rtt:?}");
    transport.close().await;
    drop(transport);
    // The last task that has the socket ends a moment later.
    let gone = tokio::task::spawn_blocking(move || {
        (0..10).map(|_| Here.reach(&addr.to_string())).any(|reach| {
            std::thread::sleep(Duration::from_millis(50));
            matches!(reach, Reach::Tried { udp: UdpReach::Refused, .. })
        })
    });
    assert!(gone.await.unwrap(), "somebody still has the port");
    // One that listens and does not speak QUIC is as good as a firewall.
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = deaf.local_addr().unwrap().to_string();
    let reach = tokio::task::spawn_blocking(move || Here.reach(&to)).await.unwrap();
    assert!(matches!(reach, Reach::Tried { udp: UdpReach::Silent, .. }), "{reach:?}");
    assert!(matches!(Here.reach("no.such.name.invalid"), Reach::Unknown(_)));
}

#[test]
fn firewalls_are_named_with_the_command_that_opens_them() {
    let ufw = || Machine::linux().file("/etc/ufw/ufw.conf", "# on\nENABLED=yes\n");
    ufw().finds(
        "firewall",
        Level::Warn,
        "only root may read",
        "sudo ufw allow 7481/tcp && sudo ufw allow 7481/udp",
    );
    let tcp = "### tuple ### allow tcp 7481 0.0.0.0/0 any 0.0.0.0/0 in\n";
    let both = "### tuple ### allow any 7481 0.0.0.0/0 any 0.0.0.0/0 in\n";
    let rules = |rules| ufw().file("/etc/ufw/user.rules", rules);
    rules(tcp).finds("firewall", Level::Warn, "ufw is on and drops 7481/udp", "sudo ufw allow 7481/udp");
    rules(both).finds("firewall", Level::Ok, "lets our ports through", "");
    Machine::linux().file("/etc/ufw/ufw.conf", "ENABLED=no").finds("firewall", Level::Ok, "none", "");

    let firewalld = |ports| {
        Machine::linux()
            .command("firewall-cmd --state", "running\n")
            .command("firewall-cmd --list-ports", ports)
    };
    firewalld("22/tcp 7481/tcp\n").finds(
        "firewall",
        Level::Warn,
        "no port open for 7481/udp",
        "--add-port=7481/udp",
    );
    firewalld("7481/tcp 7481/udp\n").finds("firewall", Level::Ok, "lets our ports", "");
    Machine::linux().failing("firewall-cmd --state", "not running").finds("firewall", Level::Ok, "none", "");

    let nft = |rules: &str| {
        let chain = format!(
            "table inet filter {{\n chain input {{\n  type filter hook input priority 0; policy drop;\n{rules} }}\n}}"
        );
        Machine::linux().command("nft", &chain)
    };
    nft("tcp dport { 22, 7481 } accept\n").finds(
        "firewall",
        Level::Warn,
        "7481/udp",
        "udp dport 7481 accept",
    );
    nft("tcp dport 7481 accept\nudp dport 7481 accept\n").finds("firewall", Level::Ok, "lets our ports", "");
    nft("tcp dport 17481 accept\nudp dport 7481 drop\n").finds(
        "firewall",
        Level::Warn,
        "7481/tcp, 7481/udp",
        "",
    );
    Machine::linux().failing("nft", "").finds("firewall", Level::Ok, "root only", "");
    Machine::linux().command("nft", "").finds("firewall", Level::Ok, "none", "");

    let tool = "/usr/libexec/ApplicationFirewall/socketfilterfw";
    let mac =
        || Machine::mac().command(&format!("{tool} --getglobalstate"), "Firewall is enabled. (State = 1)\n");
    mac().finds("firewall", Level::Warn, "does not know brigade", "--unblockapp");
    let apps = "1 :  /usr/local/bin/brigade \n\t ( Allow incoming connections )\n";
    mac().command(&format!("{tool} --listapps"), apps).finds(
        "firewall",
        Level::Ok,
        "lets brigade through",
        "",
    );
    mac().command(&format!("{tool} --getblockall"), "Firewall has block all state set to disabled.\n").finds(
        "firewall",
        Level::Warn,
        "does not know brigade",
        "",
    );
    mac().command(&format!("{tool} --getblockall"), "Firewall is set to block all non-essential\n").finds(
        "firewall",
        Level::Fail,
        "blocks everything",
        "--setblockall off",
    );
}

#[cfg(unix)]
#[test]
fn certificates_are_checked_for_dates_owners_and_fit() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let identity = CoordinatorIdentity::load_or_create(&state).unwrap();
    let today = Here.now();
    let at = |days: f64| {
        let mut machine = Machine::linux();
        (machine.real, machine.now) = (Some(dir.path().to_owned()), today + days * 86_400.0);
        machine
    };
    let subject = Subject { state: Some(state.clone()), ..subject() };
    at(0.0).finds_for(&subject, "certificates", Level::Ok, "server.pem is valid until", "");
    at(4000.0).finds_for(&subject, "certificates", Level::Fail, "server.pem has expired", "server.key");
    at(3640.0).finds_for(
        &subject,
        "certificates",
        Level::Warn,
        "ca.pem expires soon",
        "join every worker again",
    );
    at(-9.0).finds_for(&subject, "certificates", Level::Fail, "valid only from", "timedatectl");

    let mode = |name: &str, mode| {
        std::fs::set_permissions(state.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("ca.key", 0o644);
    at(0.0).finds_for(
        &subject,
        "certificates",
        Level::Fail,
        "ca.key can be read by others (0644",
        "chmod 600",
    );
    mode("ca.key", 0o600);
    mode("", 0o755);
    at(0.0).finds_for(&subject, "certificates", Level::Warn, "open to others (0755", "chmod 700");
    mode("", 0o700);

    let other = dir.path().join("other");
    CoordinatorIdentity::load_or_create(&other).unwrap();
    std::fs::copy(other.join("server.pem"), state.join("server.pem")).unwrap();
    at(0.0).finds_for(&subject, "certificates", Level::Fail, "do not belong together", "rm ");
    std::fs::copy(other.join("server.key"), state.join("server.key")).unwrap();
    at(0.0).finds_for(&subject, "certificates", Level::Fail, "not signed by ca.pem", "rm ");
    std::fs::write(state.join("ca.pem"), "nonsense").unwrap();
    at(0.0).finds_for(&subject, "certificates", Level::Fail, "ca.pem holds no certificate", "rm ");

    let joined = dir.path().join("joined");
    let of_worker = Subject { role: Role::Worker, state: Some(joined.clone()), ..subject.clone() };
    at(0.0).finds_for(&of_worker, "certificates", Level::Ok, "made at the first start", "");
    let key = WorkerKey::generate().unwrap();
    let worker = WorkerId::try_from("w1".to_owned()).unwrap();
    let certificate_der = identity.sign_worker(&key.request().unwrap(), &worker).unwrap();
    let enrolment = Enrolment { worker, certificate_der, ca_der: identity.ca_der().to_vec() };
    key.enrolled(enrolment, &identity.ca_spki_sha256()).unwrap().save(&joined).unwrap();
    at(0.0).finds_for(&of_worker, "certificates", Level::Ok, "worker.pem is valid until", "");
    at(4000.0).finds_for(&of_worker, "certificates", Level::Fail, "expired", "--token TOKEN");
    std::fs::write(joined.join("worker.pem"), "nonsense").unwrap();
    at(0.0).finds_for(&of_worker, "certificates", Level::Fail, "does not hold", "--token TOKEN");
}

#[test]
fn clocks_are_compared_by_what_http_tells() {
    let subject = Subject { url: Some("http://front:7480".to_owned()), ..subject() };
    // 1,800,000,000 s after the epoch.
    let says = |date: &str| {
        let mut machine = Machine::linux();
        machine.headers = Some(format!("HTTP/1.1 200 OK\r\ndate: {date}"));
        machine
    };
    let finds =
        |machine: Machine, level, found, remedy| machine.finds_for(&subject, "clock", level, found, remedy);
    finds(says("Fri, 15 Jan 2027 08:00:00 GMT"), Level::Ok, "agrees", "");
    finds(says("Fri, 15 Jan 2027 07:59:58 GMT"), Level::Ok, "agrees", "");
    finds(says("Fri, 15 Jan 2027 07:59:50 GMT"), Level::Warn, "10 s ahead of", "set-ntp true");
    finds(says("Fri, 15 Jan 2027 08:01:00 GMT"), Level::Warn, "60 s behind", "set-ntp true");
    finds(says("nonsense"), Level::Ok, "does not tell the time", "");
    finds(Machine::linux(), Level::Warn, "no coordinator answers", "--url");
}

#[test]
fn who_keeps_the_clock_is_found() {
    Machine::linux().command("timedatectl", "no\n").finds("clock", Level::Warn, "not kept", "set-ntp true");
    let mut machine = Machine::linux().file("/proc/9/comm", "chronyd\n");
    machine.commands.remove("timedatectl");
    machine.finds("clock", Level::Ok, "kept by chronyd", "");
    let mut machine = Machine::linux();
    machine.commands.remove("timedatectl");
    machine.finds("clock", Level::Ok, "not to be seen", "");
}

#[test]
fn slow_cables_thunderbolt_and_wifi_are_named() {
    let finds = |machine: Machine, level, found, remedy| machine.finds("network", level, found, remedy);
    finds(Machine::linux(), Level::Ok, "enp3s0 (cable, 2500 Mbit/s, MTU 1500)", "");
    finds(
        Machine::linux().cable("enp4s0", "up", 100, 1500),
        Level::Warn,
        "slow for a cable",
        "another cable",
    );
    finds(Machine::linux().cable("enp4s0", "down", -1, 1500), Level::Ok, "enp3s0", "");
    let thunderbolt = |state, mtu| Machine::linux().cable("thunderbolt0", state, -1, mtu);
    finds(
        thunderbolt("down", 1500),
        Level::Warn,
        "thunderbolt0 (Thunderbolt, MTU 1500) is down",
        "ip link set",
    );
    finds(thunderbolt("up", 1500), Level::Warn, "has no address", "nmcli device connect thunderbolt0");
    let with_address = |mtu| {
        let mut machine = thunderbolt("up", mtu);
        machine.addresses = vec![("thunderbolt0".to_owned(), "169.254.3.4".parse().unwrap())];
        machine
    };
    finds(with_address(1500), Level::Warn, "small packets", "mtu 9000");
    finds(with_address(9000), Level::Ok, "thunderbolt0", "");

    let wifi = |metric: u32| {
        let mut machine = Machine::linux().cable("wlan0", "up", -1, 1500).file(
            "/proc/net/route",
            &format!("Iface\tDestination\nwlan0\t00000000\t0102\t3\t0\t0\t{metric}\nenp3s0\t00000000\t0102\t3\t0\t0\t100\n"),
        );
        machine.modes.insert("/sys/class/net/wlan0/wireless".to_owned(), 0o755);
        machine
    };
    finds(wifi(50), Level::Warn, "by Wi-Fi (wlan0), although enp3s0", "nmcli device connect enp3s0");
    finds(wifi(600), Level::Ok, "wlan0 (Wi-Fi", "");

    let mac = || Machine::mac().command("ifconfig bridge0", "bridge0: flags\n\tstatus: active\n");
    finds(
        mac(),
        Level::Warn,
        "Thunderbolt Bridge (bridge0) is connected and has no address",
        "networksetup -setdhcp",
    );
    let mut machine = mac();
    machine.addresses = vec![("bridge0".to_owned(), "169.254.9.9".parse().unwrap())];
    finds(machine, Level::Ok, "Thunderbolt Bridge (bridge0) is connected", "");
    let wifi = Machine::mac().command("ifconfig en0", "status: active").command("route", "interface: en0\n");
    finds(wifi, Level::Warn, "by Wi-Fi (en0), although Ethernet", "networksetup");
}

#[test]
fn room_on_disks_is_counted() {
    let df = |free: u64| {
        Machine::linux().command("df", &format!("Filesystem ...\nmap auto home 9 9 {free} 98% /\n"))
    };
    let finds = |machine: Machine, level, found, remedy| machine.finds("disk", level, found, remedy);
    finds(df(10 << 20), Level::Ok, "10.0 GiB free at /home/state", "");
    finds(df(500 << 10), Level::Warn, "500.0 MiB free", "du -xh --max-depth=1 /home");
    finds(df(1 << 10), Level::Fail, "1.0 MiB free", "make room");
    finds(Machine::linux().failing("df", ""), Level::Ok, "not to be found out", "");
    let worker = Subject { role: Role::Worker, models: vec!["/models".into()], ..subject() };
    Machine::linux().finds_for(&worker, "disk", Level::Warn, "no models at /models", "--models DIR");
}

#[test]
fn memory_is_compared_with_what_workers_take() {
    let memory = |free: u64, swapped: u64| {
        let swap = 8 << 20;
        let table = format!(
            "MemTotal: 67108864 kB\nMemAvailable: {free} kB\nSwapTotal: {swap} kB\nSwapFree: {} kB\n",
            swap - swapped
        );
        Machine::linux().file("/proc/meminfo", &table)
    };
    let finds = |machine: Machine, level, found, remedy| machine.finds("memory", level, found, remedy);
    finds(memory(60 << 20, 0), Level::Ok, "60.0 GiB of 64.0 GiB are free", "");
    finds(
        memory(10 << 20, 0),
        Level::Warn,
        "take 51.2 GiB of 64.0 GiB, and 10.0 GiB are free",
        "--memory 9216MiB",
    );
    finds(memory(60 << 20, 2 << 20), Level::Warn, "2.0 GiB are swapped out", "vm.swappiness=10");
    let little = Subject { memory: Some(Bytes::mib(512)), ..subject() };
    memory(10 << 20, 0).finds_for(&little, "memory", Level::Ok, "take 512.0 MiB", "");
    let mac =
        Machine::mac().command("sysctl -n vm.swapusage", "total = 4096.00M  used = 3072.00M  free = 1M\n");
    finds(mac, Level::Warn, "3.0 GiB are swapped out", "--memory SIZE");
}

#[test]
fn cards_without_a_working_driver_are_named() {
    let card = || {
        Machine::linux()
            .file("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
            .file("/sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    };
    let driver = || {
        card().file(
            "/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\n",
        )
    };
    let finds = |machine: Machine, level, found, remedy| machine.finds("device", level, found, remedy);
    finds(Machine::linux(), Level::Ok, "no NVIDIA card", "");
    finds(card(), Level::Warn, "1 NVIDIA cards without a driver", "nvidia-driver");
    finds(driver(), Level::Warn, "driver 570.86.15 is loaded, and nvidia-smi is missing", "nvidia-utils");
    let says = "Failed to initialize NVML: Driver/library version mismatch\n";
    finds(driver().failing("nvidia-smi", says), Level::Warn, "version mismatch", "restart the machine");
    let cards = "NVIDIA H200, 570.86.15, 143771 MiB\nNVIDIA H200, 570.86.15, 143771 MiB\n";
    finds(driver().command("nvidia-smi", cards), Level::Ok, "cuda:1 is NVIDIA H200", "");

    finds(Machine::mac(), Level::Ok, "about 96.0 GiB of 128.0 GiB", "");
    let wired = |mib: &str| Machine::mac().command("sysctl -n iogpu.wired_limit_mb", mib);
    finds(wired("112640\n"), Level::Ok, "may hold 110.0 GiB", "");
    finds(wired("130000\n"), Level::Warn, "too little", "iogpu.wired_limit_mb=111411");
}

#[test]
fn settings_of_the_kernel_are_named_with_their_command() {
    let finds = |machine: Machine, level, found, remedy| machine.finds("kernel", level, found, remedy);
    finds(Machine::linux(), Level::Ok, "socket buffers may have 4.0 MiB", "");
    let small = Machine::linux().file("/proc/sys/net/core/rmem_max", "212992\n");
    finds(small, Level::Warn, "end at 208.0 KiB", "net.core.rmem_max=4194304 net.core.wmem_max=4194304");
    let strict = Machine::linux().file("/proc/sys/vm/overcommit_memory", "2\n");
    finds(strict, Level::Warn, "vm.overcommit_memory is 2", "sudo sysctl vm.overcommit_memory=0");
    let never =
        Machine::linux().file("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    finds(never, Level::Warn, "huge pages are off", "echo madvise | sudo tee");
    let few = Machine::linux().file("/proc/self/limits", "Max open files 256 4096 files\n");
    finds(few, Level::Warn, "256 files only", "ulimit -n");
    let mac = Machine::mac().command("sysctl -n kern.ipc.maxsockbuf", "6291456\n");
    finds(mac, Level::Warn, "end at 6.0 MiB", "kern.ipc.maxsockbuf=8388608");
}

//! Firewalls of this machine, as far as they can be read without being root.

use std::path::Path;

use super::{Finding, Port, Protocol, Subject, Surroundings, System};

const CHECK: &str = "firewall";

const MAC_FIREWALL: &str = "/usr/libexec/ApplicationFirewall/socketfilterfw";

pub(super) fn check(subject: &Subject, machine: &dyn Surroundings) -> Vec<Finding> {
    // What only this machine can reach needs no way through a firewall.
    let ports: Vec<&Port> = subject.ports.iter().filter(|port| !port.addr.ip().is_loopback()).collect();
    match machine.system() {
        System::Linux => linux(&ports, machine),
        System::MacOs => mac(subject, machine),
    }
}

fn named(port: &Port) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", port.addr.port())
}

fn linux(ports: &[&Port], machine: &dyn Surroundings) -> Vec<Finding> {
    let findings: Vec<Finding> = [ufw(ports, machine), firewalld(ports, machine), nftables(ports, machine)]
        .into_iter()
        .flatten()
        .collect();
    if findings.is_empty() { vec![Finding::ok(CHECK, "none was found")] } else { findings }
}

fn missing<'a>(ports: &[&'a Port], allowed: impl Fn(&str) -> bool) -> Vec<&'a Port> {
    ports.iter().copied().filter(|port| !allowed(&named(port))).collect()
}

fn list(ports: &[&Port]) -> String {
    ports.iter().map(|port| named(port)).collect::<Vec<_>>().join(", ")
}

fn ufw(ports: &[&Port], machine: &dyn Surroundings) -> Option<Finding> {
    let settings = machine.read(Path::new("/etc/ufw/ufw.conf")).ok()?;
    if !settings.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")) {
        return None;
    }
    let allow = |ports: &[&Port]| {
        let commands: Vec<String> =
            ports.iter().map(|port| format!("sudo ufw allow {}", named(port))).collect();
        commands.join(" && ")
    };
    let Ok(rules) = machine.read(Path::new("/etc/ufw/user.rules")) else {
        if ports.is_empty() {
            return Some(Finding::ok(CHECK, "ufw is on; no port has to pass it"));
        }
        return Some(Finding::warn(
            CHECK,
            format!("ufw is on, and only root may read whether it lets {} through", list(ports)),
            allow(ports),
        ));
    };
    // As ufw writes its rules: `### tuple ### allow tcp 7481 0.0.0.0/0 any 0.0.0.0/0 in`.
    let passes = |name: &str| {
        let (port, protocol) = name.split_once('/').unwrap_or((name, ""));
        rules.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words.as_slice(), ["###", "tuple", "###", "allow", of, number, ..]
                if (*of == "any" || *of == protocol) && *number == port)
        })
    };
    let missing = missing(ports, passes);
    Some(if missing.is_empty() {
        Finding::ok(CHECK, "ufw is on and lets our ports through")
    } else {
        Finding::warn(CHECK, format!("ufw is on and drops {}", list(&missing)), allow(&missing))
    })
}

fn firewalld(ports: &[&Port], machine: &dyn Surroundings) -> Option<Finding> {
    let state = machine.run("firewall-cmd", &["--state"])?;
    if !state.success || state.output.trim() != "running" {
        return None;
    }
    let open = machine.run("firewall-cmd", &["--list-ports"]).filter(|ran| ran.success);
    let open = open.map(|ran| ran.output).unwrap_or_default();
    let missing = missing(ports, |name| open.split_whitespace().any(|word| word == name));
    Some(if missing.is_empty() {
        Finding::ok(CHECK, "firewalld is on and lets our ports through")
    } else {
        let flags: String = missing.iter().map(|port| format!(" --add-port={}", named(port))).collect();
        Finding::warn(
            CHECK,
            format!("firewalld is on and has no port open for {}", list(&missing)),
            format!("sudo firewall-cmd --permanent{flags} && sudo firewall-cmd --reload"),
        )
    })
}

fn nftables(ports: &[&Port], machine: &dyn Surroundings) -> Option<Finding> {
    let rules = machine.run("nft", &["list", "ruleset"])?;
    if !rules.success {
        return Some(Finding::ok(
            CHECK,
            "nftables can be read by root only; --to ADDRESS on another machine shows whether packets pass",
        ));
    }
    if rules.output.trim().is_empty() {
        return None;
    }
    let drops = input_chains(&rules.output).into_iter().filter(|chain| chain.contains("policy drop"));
    let chains: Vec<&str> = drops.collect();
    if chains.is_empty() {
        return Some(Finding::ok(CHECK, "nftables has rules, and drops nothing by default"));
    }
    // Rules may jump and name sets; what is not written out is not claimed to be open.
    let passes = |name: &str| {
        let (port, protocol) = name.split_once('/').unwrap_or((name, ""));
        chains.iter().all(|chain| {
            chain.lines().any(|line| {
                line.contains("accept")
                    && line.contains(&format!("{protocol} dport"))
                    && line.split(|c: char| !c.is_ascii_digit()).any(|number| number == port)
            })
        })
    };
    let missing = missing(ports, passes);
    Some(if missing.is_empty() {
        Finding::ok(CHECK, "nftables drops by default and lets our ports through")
    } else {
        let rules: Vec<String> = missing
            .iter()
            .filter_map(|port| {
                let name = named(port);
                let (number, protocol) = name.split_once('/')?;
                Some(format!("sudo nft insert rule inet filter input {protocol} dport {number} accept"))
            })
            .collect();
        Finding::warn(
            CHECK,
            format!("nftables drops what comes in, and no rule lets {} through", list(&missing)),
            rules.join(" && "),
        )
    })
}

/// The chains that see what comes in, each with its rules.
fn input_chains(ruleset: &str) -> Vec<&str> {
    ruleset.split("chain ").filter(|chain| chain.contains("hook input")).collect()
}

fn mac(subject: &Subject, machine: &dyn Surroundings) -> Vec<Finding> {
    let says = |flag: &str| machine.run(MAC_FIREWALL, &[flag]).map(|ran| ran.output.to_lowercase());
    let Some(state) = says("--getglobalstate") else {
        return vec![Finding::ok(CHECK, "the application firewall cannot be asked")];
    };
    if state.contains("disabled") {
        return vec![Finding::ok(CHECK, "the application firewall is off")];
    }
    // Off, it says `Block all DISABLED!` or `block all state set to disabled`.
    if says("--getblockall").is_some_and(|text| text.contains("block all") && !text.contains("disabled")) {
        return vec![Finding::fail(
            CHECK,
            "the application firewall blocks everything that comes in",
            format!("sudo {MAC_FIREWALL} --setblockall off"),
        )];
    }
    let program = subject.role.program();
    // Each program is a line with its path, and the next says what becomes of it.
    let apps = says("--listapps").unwrap_or_default();
    let mut lines = apps.lines().skip_while(|line| !line.trim_end().ends_with(&format!("/{program}")));
    let allowed = lines.nth(1).is_some_and(|line| line.contains("allow"));
    vec![if allowed {
        Finding::ok(CHECK, format!("the application firewall lets {program} through"))
    } else {
        Finding::warn(
            CHECK,
            format!("the application firewall is on and does not know {program}"),
            format!(
                "sudo {MAC_FIREWALL} --add \"$(which {program})\" && sudo {MAC_FIREWALL} --unblockapp \"$(which {program})\""
            ),
        )
    }]
}

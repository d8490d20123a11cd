//! Hosts of their own on one machine: network namespaces that are joined by a switch, or by bad links.
//!
//! They need root and iproute2, bad links TUN devices.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use crate::cluster::{START, served_url};
use crate::process::Process;
use crate::setup;
use crate::wires::{Conditions, Wires, within};

/// A coordinator on the first host, and a worker on each of the others; with its address, once it serves.
pub fn serve(
    network: &Network,
    home: &Path,
    workers: usize,
    further: &[&str],
) -> (Process, Vec<Process>, String) {
    serve_with(network, home, workers, "96MiB", further)
}

/// The same, with so much memory for each worker.
pub fn serve_with(
    network: &Network,
    home: &Path,
    workers: usize,
    memory: &str,
    further: &[&str],
) -> (Process, Vec<Process>, String) {
    let programs = setup::programs();
    let model = setup::smollm2();
    let count = workers.to_string();
    let arguments = [&["--min-workers", &count, "--ctx", "512"], further].concat();
    let mut coordinator =
        Process::start(network.host(0, &programs.brigade, home).arg("serve").arg(model).args(arguments));
    let token = coordinator.wait_for("join command", START, |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "--token")?;
        Some(words.get(at + 1)?.trim_matches('\'').to_owned())
    });
    let join = |host: usize| {
        let mut command = network.host(host, &programs.worker, home);
        command.args(["join", &format!("{}:7481", Network::address(0)), "--name", &format!("host{host}")]);
        command
            .args(["--memory", memory, "--threads", "1", "--models"])
            .arg(model.parent().expect("a file has a folder"));
        // What workers of other clusters found out about this machine is not taken.
        Process::start(command.env("BRIGADE_TOKEN", &token).env("TMPDIR", home))
    };
    let workers = (1..=workers).map(join).collect();
    let url = coordinator.wait_for("address", START, served_url);
    (coordinator, workers, url)
}

/// Hosts on one network of their own; removed when dropped.
#[derive(Debug)]
pub struct Network {
    /// The namespaces: the switch, then the hosts.
    names: Vec<String>,
    /// What joins the hosts instead of the switch.
    wires: Option<Wires>,
}

impl Network {
    /// A switch and `hosts` hosts with the addresses [`Network::address`].
    ///
    /// # Errors
    /// Where the system makes no such network, for people; here and below.
    pub fn make(hosts: usize) -> Result<Network, String> {
        let mut network = Network { names: Vec::new(), wires: None };
        let switch = network.namespace("switch")?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for host in 0..hosts {
            let name = network.namespace(&format!("host{host}"))?;
            let port = format!("port{host}");
            ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name,
            ])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &name, "address", "add", &format!("{}/24", Network::address(host)), "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(network)
    }

    /// `hosts` hosts with the same addresses, joined by links that are like this.
    pub fn make_bad(hosts: usize, conditions: Conditions) -> Result<Network, String> {
        let mut network = Network { names: Vec::new(), wires: None };
        network.namespace("switch")?;
        let mut ends = Vec::new();
        for host in 0..hosts {
            let address: Ipv4Addr = Network::address(host).parse().map_err(|error| format!("{error}"))?;
            ends.push((network.namespace(&format!("host{host}"))?, address));
        }
        if hosts == 0 {
            // Only to find out whether it can be done.
            let switch = network.names[0].clone();
            Wires::between(&[(switch, Ipv4Addr::LOCALHOST)], conditions)?;
            return Ok(network);
        }
        network.wires = Some(Wires::between(&ends, conditions)?);
        for (name, address) in &ends {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(network)
    }

    /// From now on links are like this.
    pub fn set(&self, conditions: Conditions) {
        self.wires.as_ref().expect("the network was made with wires").set(conditions);
    }

    /// Packets sent and lost so far.
    pub fn packets(&self) -> (u64, u64) {
        self.wires.as_ref().map_or((0, 0), Wires::packets)
    }

    /// Does some work as one of the hosts.
    pub fn at<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        within(&self.names[host + 1], work)
    }

    fn namespace(&mut self, role: &str) -> Result<String, String> {
        let name = format!("brigade-{}-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        self.names.push(name.clone());
        Ok(name)
    }

    /// A host's address.
    pub fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// Has two hosts drop whatever they would send to each other.
    pub fn cut(&self, one: usize, other: usize) -> Result<(), String> {
        for (from, to) in [(one, other), (other, one)] {
            let to = format!("{}/32", Network::address(to));
            ip(&["-n", &self.names[from + 1], "route", "add", "blackhole", &to])?;
        }
        Ok(())
    }

    /// Pulls the cable of a host: whatever it sends, or is sent, is lost without a word.
    pub fn unplug(&self, host: usize) -> Result<(), String> {
        ip(&["-n", &self.names[0], "link", "set", &format!("port{host}"), "nomaster", "down"])
    }

    /// Puts it back.
    pub fn plug(&self, host: usize) -> Result<(), String> {
        ip(&["-n", &self.names[0], "link", "set", &format!("port{host}"), "master", "bridge", "up"])
    }

    /// A program on one of the hosts.
    pub fn host(&self, host: usize, program: &Path, home: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host + 1]]).arg(program);
        let state = home.join(format!("host{host}"));
        command
            .env("HOME", &state)
            .env("XDG_STATE_HOME", &state)
            .env("XDG_RUNTIME_DIR", &state)
            .env("NO_COLOR", "1");
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = ip(&["netns", "delete", name]) {
                eprintln!("failed to remove namespace {name}: {error}");
            }
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error| format!("failed to run ip (iproute2): {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

//! Coordinator and workers on hosts of their own: network namespaces with addresses of their own, joined by a bridge.
//!
//! Namespaces need root and iproute2. Where they can't be made, the tests are reported as ignored, never as passed.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use brigade_tests::cluster::{START, Up, brigade, served_url};
use brigade_tests::process::Process;
use brigade_tests::setup;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

fn main() {
    let possible = Network::make(0);
    if let Err(reason) = &possible {
        println!("network namespaces cannot be made here, so these tests are skipped: {reason}");
    }
    let skip = possible.is_err();
    drop(possible);
    let trials = vec![
        Trial::test("three_hosts_with_addresses_of_their_own_serve_one_model", three_hosts)
            .with_ignored_flag(skip),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn three_hosts() -> Result<(), Failed> {
    let network = Network::make(3)?;
    let home = tempfile::tempdir()?;
    let programs = setup::programs();
    let model = setup::smollm2();
    let mut coordinator =
        Process::start(network.host(0, &programs.brigade, home.path()).arg("serve").arg(model).args([
            "--min-workers",
            "2",
            "--ctx",
            "512",
        ]));
    let token = coordinator.wait_for("join command", START, |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "--token")?;
        Some(words.get(at + 1)?.trim_matches('\'').to_owned())
    });
    let join = |host: usize| {
        let mut command = network.host(host, &programs.worker, home.path());
        command.args(["join", &format!("{}:7481", Network::address(0)), "--name", &format!("host{host}")]);
        command
            .args(["--memory", "96MiB", "--threads", "1", "--models"])
            .arg(model.parent().expect("a file has a folder"));
        Process::start(command.env("BRIGADE_TOKEN", &token))
    };
    let workers = [join(1), join(2)];
    let url = coordinator.wait_for("address", START, served_url);

    let question = [
        "run",
        "--max-tokens",
        "24",
        "--temperature",
        "0",
        "SmolLM2-135M-Instruct.Q4_1",
        "What is a bucket?",
    ];
    let answer = run(network.host(0, &programs.brigade, home.path()).args(question).args(["--url", &url]))?;
    let one_box = Up::new(model).memory("256MiB").args(["--ctx", "512"]).start();
    let alone = run(brigade(&home).args(question).args(["--url", one_box.client.url()]))?;
    one_box.stop();
    println!("{answer}");
    if answer.split_whitespace().count() < 5 || answer != alone {
        return Err(format!("three hosts say `{answer}`, one box says `{alone}`").into());
    }
    let status =
        run(network.host(0, &programs.brigade, home.path()).args(["status", "--json", "--url", &url]))?;
    let status: Value = serde_json::from_str(&status)?;
    let hop = status["stages"][0]["next_address"].as_str().unwrap_or_default().to_owned();
    let second_host = status["stages"][1]["name"].as_str().unwrap_or_default();
    let wanted = Network::address(if second_host == "host1" { 1 } else { 2 });
    println!("stage 0 passes its hidden states to {hop} ({second_host})");
    if !hop.starts_with(&format!("{wanted}:")) {
        return Err(format!("stage 0 passes its hidden states to {hop}, not to {wanted}: {status:#}").into());
    }

    let start = Instant::now();
    coordinator.signal(libc::SIGINT);
    let (ended, output) = coordinator.wait(Duration::from_secs(5));
    println!("the coordinator ended after {:?}", start.elapsed());
    if ended.code() != Some(0) {
        return Err(format!("the coordinator ended with {ended}:\n{output}").into());
    }
    drop(workers);
    Ok(())
}

fn run(command: &mut Command) -> Result<String, Failed> {
    let Output { status, stdout, stderr } = command.output()?;
    if !status.success() {
        return Err(format!("{command:?} ended with {status}: {}", String::from_utf8_lossy(&stderr)).into());
    }
    Ok(String::from_utf8(stdout)?)
}

/// Hosts on one network of their own; removed when dropped.
struct Network {
    names: Vec<String>,
}

impl Network {
    /// A switch and `hosts` hosts with the addresses [`Network::address`].
    fn make(hosts: usize) -> Result<Network, String> {
        let mut network = Network { names: Vec::new() };
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

    fn namespace(&mut self, role: &str) -> Result<String, String> {
        let name = format!("brigade-{}-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        self.names.push(name.clone());
        Ok(name)
    }

    fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// A program on one of the hosts.
    fn host(&self, host: usize, program: &Path, home: &Path) -> Command {
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

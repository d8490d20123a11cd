//! Ports: free, ours, or somebody else's.

use std::io;
use std::path::Path;

use super::{Finding, Port, Protocol, Subject, Surroundings, System};

const CHECK: &str = "ports";

/// The first characters of our programs' names, which the system cuts to 15.
const OURS: &str = "brigade";

pub(super) fn check(subject: &Subject, machine: &dyn Surroundings) -> Vec<Finding> {
    subject.ports.iter().map(|port| one(subject, port, machine)).collect()
}

fn one(subject: &Subject, port: &Port, machine: &dyn Surroundings) -> Finding {
    let protocol = match port.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    let what = format!("{protocol} {} for {}", port.addr, port.purpose);
    let error = match machine.listen(port.protocol, port.addr) {
        Ok(()) => return Finding::ok(CHECK, format!("{what} is free")),
        Err(error) => error,
    };
    let elsewhere = format!("take another port: {} {} ADDRESS:PORT", subject.role.program(), port.flag);
    if error.kind() != io::ErrorKind::AddrInUse {
        return Finding::fail(CHECK, format!("{what} cannot be listened on: {error}"), elsewhere);
    }
    match holder(port, machine) {
        Some((_, name)) if name.starts_with(OURS) => {
            Finding::ok(CHECK, format!("{what} is taken by {name}, which runs"))
        }
        Some((id, name)) => {
            let remedy = format!("end it: kill {id}; or {elsewhere}");
            Finding::fail(CHECK, format!("{what} is taken by {name} (process {id})"), remedy)
        }
        None if answers_as_coordinator(port, machine) => {
            Finding::ok(CHECK, format!("{what} is taken by a coordinator, which answers"))
        }
        None => {
            let number = port.addr.port();
            let find = match machine.system() {
                System::Linux => format!("see who has it: sudo ss -lnp 'sport = :{number}'"),
                System::MacOs => format!("see who has it: sudo lsof -nP -i :{number}"),
            };
            Finding::fail(
                CHECK,
                format!("{what} is taken by a program that is not to be seen from here"),
                format!("{find}; or {elsewhere}"),
            )
        }
    }
}

fn answers_as_coordinator(port: &Port, machine: &dyn Surroundings) -> bool {
    if port.protocol != Protocol::Tcp {
        return false;
    }
    let host = if port.addr.ip().is_unspecified() {
        format!("127.0.0.1:{}", port.addr.port())
    } else {
        port.addr.to_string()
    };
    let headers = machine.http_headers(&format!("http://{host}"));
    // Others answer with whatever they have; a path that only we have, well.
    headers.is_ok_and(|headers| headers.lines().next().is_some_and(|line| line.contains(" 200")))
}

/// The process that listens on a port, and its name.
fn holder(port: &Port, machine: &dyn Surroundings) -> Option<(String, String)> {
    match machine.system() {
        System::Linux => {
            let inodes = inodes(port, machine);
            let processes = machine.list(Path::new("/proc")).into_iter();
            let id = processes.filter(|name| name.bytes().all(|b| b.is_ascii_digit())).find(|id| {
                let folder = format!("/proc/{id}/fd");
                machine.list(Path::new(&folder)).iter().any(|file| {
                    let link = machine.link(Path::new(&format!("{folder}/{file}")));
                    link.and_then(|link| Some(link.to_str()?.to_owned()))
                        .is_some_and(|link| inodes.iter().any(|inode| link == format!("socket:[{inode}]")))
                })
            })?;
            let name = machine.line(&format!("/proc/{id}/comm"))?;
            Some((id, name))
        }
        System::MacOs => {
            let protocol = match port.protocol {
                Protocol::Tcp => format!("-iTCP:{}", port.addr.port()),
                Protocol::Udp => format!("-iUDP:{}", port.addr.port()),
            };
            let ran = machine.run("lsof", &["-nP", &protocol, "-Fpc"])?;
            let field = |key: char| ran.output.lines().find_map(|line| line.strip_prefix(key));
            Some((field('p')?.to_owned(), field('c')?.to_owned()))
        }
    }
}

/// The sockets that listen on a port, by their numbers.
fn inodes(port: &Port, machine: &dyn Surroundings) -> Vec<String> {
    let files = match port.protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let tables = files.iter().filter_map(|file| machine.read(Path::new(file)).ok());
    let suffix = format!(":{:04X}", port.addr.port());
    let of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = port.protocol == Protocol::Udp || fields.get(3) == Some(&"0A");
        (listens && fields.get(1)?.ends_with(&suffix)).then(|| Some((*fields.get(9)?).to_owned()))?
    };
    tables.flat_map(|table| table.lines().skip(1).filter_map(of).collect::<Vec<_>>()).collect()
}

//! Network interfaces: speed, packet size, Thunderbolt, and Wi-Fi where a cable is.

use std::net::IpAddr;
use std::path::Path;

use super::{Finding, Surroundings, System};

const CHECK: &str = "network";

/// Less than this, in Mbit/s, makes a cable a bad one: every switch has had 1,000 for long.
const SLOW_MBIT: u64 = 1000;
/// Packets that large go through Thunderbolt and fast Ethernet; our largest have 6,500 bytes.
const LARGE_MTU: u64 = 6550;

pub(super) fn check(machine: &dyn Surroundings) -> Vec<Finding> {
    match machine.system() {
        System::Linux => linux(machine),
        System::MacOs => mac(machine),
    }
}

/// Whether an interface has an address that others can use.
fn has_address(name: &str, addresses: &[(String, IpAddr)]) -> bool {
    addresses.iter().any(|(of, ip)| of == name && !ip.is_loopback())
}

struct Interface {
    name: String,
    wireless: bool,
    thunderbolt: bool,
    up: bool,
    mbit: Option<u64>,
    mtu: Option<u64>,
}

fn linux(machine: &dyn Surroundings) -> Vec<Finding> {
    let addresses = machine.addresses();
    let interfaces: Vec<Interface> = interfaces(machine);
    let mut findings: Vec<Finding> = Vec::new();
    for interface in &interfaces {
        let Interface { name, thunderbolt, up, mbit, mtu, wireless } = interface;
        let kind = match (thunderbolt, wireless) {
            (true, _) => "Thunderbolt",
            (_, true) => "Wi-Fi",
            _ => "cable",
        };
        let speed = mbit.map(|mbit| format!(", {mbit} Mbit/s")).unwrap_or_default();
        let packets = mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
        let what = format!("{name} ({kind}{speed}{packets})");
        findings.push(match (up, mbit) {
            (false, _) if *thunderbolt => Finding::warn(
                CHECK,
                format!("{what} is down"),
                format!("sudo ip link set {name} up, on both machines"),
            ),
            (false, _) => continue,
            (true, _) if *thunderbolt && !has_address(name, &addresses) => Finding::warn(
                CHECK,
                format!("{what} has no address, so that it is not used"),
                format!("sudo nmcli device connect {name}, or sudo ip addr add 10.55.0.1/24 dev {name} (10.55.0.2 on the other)"),
            ),
            (true, _) if *thunderbolt && mtu.is_some_and(|mtu| mtu < LARGE_MTU) => Finding::warn(
                CHECK,
                format!("{what} carries small packets only"),
                format!("sudo ip link set {name} mtu 9000, on both machines"),
            ),
            (true, Some(mbit)) if !wireless && *mbit < SLOW_MBIT => Finding::warn(
                CHECK,
                format!("{what} is slow for a cable"),
                "try another cable or port: one of 8 wires is enough to break",
            ),
            (true, _) => Finding::ok(CHECK, what),
        });
    }
    if let Some(wifi) = default_route(machine)
        && interfaces.iter().any(|interface| interface.name == wifi && interface.wireless)
        && let Some(cable) = interfaces.iter().find(|other| other.up && !other.wireless && !other.thunderbolt)
    {
        let found = format!("packets go out by Wi-Fi ({wifi}), although {} is plugged in", cable.name);
        let remedy = format!("sudo nmcli device connect {}, or sudo ip link set {wifi} down", cable.name);
        findings.push(Finding::warn(CHECK, found, remedy));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "there is no hardware interface to be seen, as in a container"));
    }
    findings
}

/// The interfaces that are hardware.
fn interfaces(machine: &dyn Surroundings) -> Vec<Interface> {
    let mut names = machine.list(Path::new("/sys/class/net"));
    names.sort();
    let of = |name: String| {
        let folder = format!("/sys/class/net/{name}");
        let device = machine.link(Path::new(&format!("{folder}/device")))?;
        let driver = machine.link(Path::new(&format!("{folder}/device/driver")));
        let is = |path: Option<&Path>, word: &str| {
            path.is_some_and(|path| path.to_string_lossy().to_lowercase().contains(word))
        };
        Some(Interface {
            wireless: machine.mode(Path::new(&format!("{folder}/wireless"))).is_some(),
            thunderbolt: name.starts_with("thunderbolt")
                || is(Some(&device), "thunderbolt")
                || is(driver.as_deref(), "thunderbolt"),
            up: machine.line(&format!("{folder}/operstate")).is_some_and(|state| state == "up"),
            // -1 where it is not known.
            mbit: machine.number(&format!("{folder}/speed")),
            mtu: machine.number(&format!("{folder}/mtu")),
            name,
        })
    };
    names.into_iter().filter_map(of).collect()
}

/// The interface that packets to anywhere leave by.
fn default_route(machine: &dyn Surroundings) -> Option<String> {
    let table = machine.read(Path::new("/proc/net/route")).ok()?;
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let metric: u64 = fields.get(6)?.parse().ok()?;
        (*fields.get(1)? == "00000000").then(|| ((*fields[0]).to_owned(), metric))
    });
    Some(routes.min_by_key(|(_, metric)| *metric)?.0)
}

fn mac(machine: &dyn Surroundings) -> Vec<Finding> {
    let addresses = machine.addresses();
    let hardware = machine.run("networksetup", &["-listallhardwareports"]).unwrap_or_default().output;
    // `Hardware Port: Wi-Fi`, `Device: en0`, one block each.
    let ports: Vec<(&str, &str)> = hardware
        .split("\n\n")
        .filter_map(|block| {
            let field = |name: &str| block.lines().find_map(|line| line.trim().strip_prefix(name));
            Some((field("Hardware Port: ")?, field("Device: ")?))
        })
        .collect();
    let is_active = |device: &str| {
        let told = machine.run("ifconfig", &[device]).unwrap_or_default().output;
        told.contains("status: active")
    };
    let route = machine.run("route", &["-n", "get", "default"]).unwrap_or_default().output;
    let route = route.lines().find_map(|line| line.trim().strip_prefix("interface: ")).map(str::to_owned);
    let mut findings = Vec::new();
    for (port, device) in ports.iter().filter(|(_, device)| is_active(device)) {
        let what = format!("{port} ({device})");
        findings.push(if port.contains("Thunderbolt Bridge") && !has_address(device, &addresses) {
            let remedy =
                format!("sudo networksetup -setdhcp \"{port}\": both ends then take an address of their own");
            Finding::warn(CHECK, format!("{what} is connected and has no address"), remedy)
        } else {
            Finding::ok(CHECK, format!("{what} is connected"))
        });
    }
    let is_wifi = |device: &str| ports.iter().any(|(port, of)| *of == device && port.contains("Wi-Fi"));
    let cable = ports
        .iter()
        .find(|(port, device)| (port.contains("Ethernet") || port.contains("LAN")) && is_active(device));
    if let (Some(route), Some((port, _))) = (route.filter(|device| is_wifi(device)), cable) {
        let found = format!("packets go out by Wi-Fi ({route}), although {port} is plugged in");
        let remedy = format!(
            "networksetup -ordernetworkservices, with \"{port}\" first; or networksetup -setairportpower {route} off"
        );
        findings.push(Finding::warn(CHECK, found, remedy));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no interface says that it is connected"));
    }
    findings
}

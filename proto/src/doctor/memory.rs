//! Memory that is free, against what a worker would take.

use std::path::Path;

use super::{Bytes, Finding, Subject, Surroundings, System};

const CHECK: &str = "memory";

/// What workers take where they are not told, in hundredths of the machine's memory.
const SHARE: u64 = 80;
/// More than this swapped out slows down.
const SWAPPED: Bytes = Bytes::mib(256);

pub(super) fn check(subject: &Subject, machine: &dyn Surroundings) -> Vec<Finding> {
    let (all, free, swapped) = match machine.system() {
        System::Linux => linux(machine),
        System::MacOs => mac(machine),
    };
    let mut findings = Vec::new();
    if let Some(all) = all {
        let wanted = subject.memory.unwrap_or(Bytes(all.0 / 100 * SHARE));
        findings.push(match free {
            Some(free) if free < wanted => {
                let least = Bytes(free.0 / 10 * 9).0 >> 20;
                Finding::warn(
                    CHECK,
                    format!("workers would take {wanted} of {all}, and {free} are free"),
                    format!("end what takes memory, or take less: --memory {least}MiB"),
                )
            }
            Some(free) => {
                Finding::ok(CHECK, format!("workers would take {wanted}; {free} of {all} are free"))
            }
            None => Finding::ok(CHECK, format!("workers would take {wanted} of {all}")),
        });
    }
    if let Some(swapped) = swapped.filter(|swapped| *swapped > SWAPPED) {
        let found = format!("{swapped} are swapped out, which makes everything slow");
        findings.push(match machine.system() {
            System::Linux => {
                let swappiness = machine.number("/proc/sys/vm/swappiness").unwrap_or(60);
                Finding::warn(
                    CHECK,
                    format!("{found} (vm.swappiness is {swappiness})"),
                    "sudo sysctl vm.swappiness=10 && sudo swapoff -a && sudo swapon -a",
                )
            }
            System::MacOs => {
                Finding::warn(CHECK, found, "quit what takes memory, or give workers less: --memory SIZE")
            }
        });
    }
    findings
}

type Memory = (Option<Bytes>, Option<Bytes>, Option<Bytes>);

fn linux(machine: &dyn Surroundings) -> Memory {
    let table = machine.read(Path::new("/proc/meminfo")).unwrap_or_default();
    let field = |name: &str| {
        let rest = table.lines().find_map(|line| line.strip_prefix(name))?;
        Some(Bytes(rest.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10))
    };
    let swapped = field("SwapTotal").and_then(|all| Some(all.saturating_sub(field("SwapFree")?)));
    (field("MemTotal"), field("MemAvailable"), swapped)
}

fn mac(machine: &dyn Surroundings) -> Memory {
    let sysctl =
        |name: &str| machine.run("sysctl", &["-n", name]).filter(|ran| ran.success).map(|ran| ran.output);
    let all = sysctl("hw.memsize").and_then(|text| Some(Bytes(text.trim().parse().ok()?)));
    // The level is the share of memory that is free, in hundredths.
    let level = sysctl("kern.memorystatus_level").and_then(|text| text.trim().parse::<u64>().ok());
    let free = all.zip(level).map(|(all, level)| Bytes(all.0 / 100 * level.min(100)));
    // `total = 2048.00M  used = 1024.50M  free = 1023.50M  (encrypted)`
    let swapped = sysctl("vm.swapusage").and_then(|text| {
        let used = text.split("used = ").nth(1)?.split('M').next()?.parse::<f64>().ok()?;
        Some(Bytes((used * f64::from(1 << 20)) as u64))
    });
    (all, free, swapped)
}

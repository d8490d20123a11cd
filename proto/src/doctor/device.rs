//! Cards that could compute: NVIDIA's driver, and how much of a Mac's memory its GPU may hold.

use std::path::Path;

use super::{Bytes, Finding, Surroundings, System};

const CHECK: &str = "device";

/// More than this share of a Mac's memory wired for its GPU leaves the system too little, in hundredths.
const MOST_WIRED: u64 = 92;
/// What the system lets a GPU hold where nothing is set, in hundredths.
const DEFAULT_WIRED: u64 = 75;

pub(super) fn check(machine: &dyn Surroundings) -> Vec<Finding> {
    match machine.system() {
        System::Linux => nvidia(machine),
        System::MacOs => metal(machine),
    }
}

/// The version of NVIDIA's driver, as in `570.86.15`; `None` where none is loaded.
pub fn nvidia_driver(machine: &dyn Surroundings) -> Option<String> {
    machine.line("/proc/driver/nvidia/version").and_then(|line| version(&line))
}

/// How many of NVIDIA's cards the machine has, with a driver or without.
pub fn nvidia_cards(machine: &dyn Surroundings) -> usize {
    let is_card = |slot: &String| {
        let field = |name: &str| machine.line(&format!("/sys/bus/pci/devices/{slot}/{name}"));
        // Class 3 is a display controller; other functions of the same card are its sound and its USB.
        field("vendor").as_deref() == Some("0x10de")
            && field("class").is_some_and(|class| class.starts_with("0x03"))
    };
    machine.list(Path::new("/sys/bus/pci/devices")).iter().filter(|slot| is_card(slot)).count()
}

fn nvidia(machine: &dyn Surroundings) -> Vec<Finding> {
    let (driver, cards) = (nvidia_driver(machine), nvidia_cards(machine));
    if driver.is_none() && cards == 0 {
        return vec![Finding::ok(CHECK, "no NVIDIA card: workers compute on the processors")];
    }
    let Some(driver) = driver else {
        return vec![Finding::warn(
            CHECK,
            format!("{cards} NVIDIA cards without a driver"),
            "install the driver and restart: sudo ubuntu-drivers install, or sudo apt-get install nvidia-driver",
        )];
    };
    let query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"];
    match machine.run("nvidia-smi", &query) {
        Some(ran) if ran.success => {
            let lines = ran.output.lines().enumerate();
            lines.map(|(number, line)| Finding::ok(CHECK, format!("cuda:{number} is {line}"))).collect()
        }
        Some(ran) => {
            let said = ran.output.lines().next().unwrap_or("it fails").to_owned();
            let found = format!("NVIDIA driver {driver} is loaded, and nvidia-smi says: {said}");
            vec![Finding::warn(
                CHECK,
                found,
                "restart the machine: the driver was probably updated beneath it",
            )]
        }
        None => vec![Finding::warn(
            CHECK,
            format!("NVIDIA driver {driver} is loaded, and nvidia-smi is missing: temperatures stay unknown"),
            "install the driver's tools: sudo apt-get install nvidia-utils",
        )],
    }
}

/// `570.86.15` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu ...`.
fn version(line: &str) -> Option<String> {
    let is_version = |word: &&str| {
        word.contains('.')
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    line.split_whitespace().find(is_version).map(str::to_owned)
}

fn metal(machine: &dyn Surroundings) -> Vec<Finding> {
    let sysctl = |name: &str| {
        let ran = machine.run("sysctl", &["-n", name]).filter(|ran| ran.success)?;
        ran.output.trim().parse::<u64>().ok()
    };
    let (Some(all), Some(limit_mib)) = (sysctl("hw.memsize").map(Bytes), sysctl("iogpu.wired_limit_mb"))
    else {
        return vec![Finding::ok(CHECK, "no Apple GPU with memory of its own account")];
    };
    if limit_mib == 0 {
        let wired = Bytes(all.0 / 100 * DEFAULT_WIRED);
        return vec![Finding::ok(
            CHECK,
            format!(
                "the GPU may hold about {wired} of {all}, as the system sets it (iogpu.wired_limit_mb is 0)"
            ),
        )];
    }
    let limit = Bytes::mib(limit_mib);
    if limit.0 > all.0 / 100 * MOST_WIRED {
        let least = Bytes(all.0 / 100 * 85).0 >> 20;
        return vec![Finding::warn(
            CHECK,
            format!("the GPU may hold {limit} of {all}, which leaves the system too little"),
            format!("sudo sysctl iogpu.wired_limit_mb={least}"),
        )];
    }
    vec![Finding::ok(CHECK, format!("the GPU may hold {limit} of {all}"))]
}

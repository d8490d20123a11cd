//! `brigade-worker devices`: what a worker could compute on, and how much of it it would take.

use std::io::{self, Write};

use brigade_proto::control::DeviceKind;
use brigade_shard::units::Bytes;
use clap::Args;
use serde::Serialize;

use super::{Devices, Presence};
use crate::settings::Machine;

/// Arguments of `devices`.
#[derive(Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A device as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// As `--device` takes it.
    pub device: String,
    /// What its driver calls it; `None` where that is not told.
    pub name: Option<String>,
    /// All memory that programs may use there, in bytes; `None` where the driver does not tell.
    pub memory_bytes: Option<u64>,
    /// What of it is free, in bytes; `None` where that is not known.
    pub free_bytes: Option<u64>,
    /// What a worker takes there unless told otherwise, in bytes.
    pub usable_bytes: u64,
}

/// All devices, the best first and the processor last.
pub fn list(devices: &dyn Devices, machine: &Machine) -> Vec<Listed> {
    let cards = devices.found().cards().into_iter().map(|card| {
        let memory = devices.memory(card).ok().flatten();
        Listed {
            device: card.to_string(),
            name: devices.name(card),
            memory_bytes: memory.map(|memory| memory.total.0),
            free_bytes: memory.map(|memory| memory.free.0),
            usable_bytes: memory.map_or(0, |memory| memory.usable().0),
        }
    });
    let processor = Listed {
        device: DeviceKind::Cpu.to_string(),
        name: Some(crate::worker::processor_name()),
        memory_bytes: Some(machine.memory.0),
        free_bytes: None,
        usable_bytes: machine.default_budget().0,
    };
    cards.chain([processor]).collect()
}

/// What keeps kinds of devices from being used, in words.
fn missing(devices: &dyn Devices) -> Vec<String> {
    let found = devices.found();
    let of = |kind: &str, feature: &str, presence: Presence| match presence {
        Presence::Present(_) => None,
        Presence::Absent(why) => Some(format!("no {kind}: {why}")),
        Presence::NotBuilt => Some(format!("this build has no {kind}: build with --features {feature}")),
    };
    let metal = of("Metal", "metal", found.metal).filter(|_| cfg!(target_os = "macos"));
    let cuda = of("CUDA", "cuda", found.cuda).filter(|_| !cfg!(target_os = "macos"));
    cuda.into_iter().chain(metal).collect()
}

/// Lists devices on `out`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn run(
    args: &DevicesArgs,
    devices: &dyn Devices,
    machine: &Machine,
    mut out: impl Write,
) -> io::Result<()> {
    let all = list(devices, machine);
    if args.json {
        return writeln!(out, "{}", serde_json::to_string(&all)?);
    }
    for device in all {
        let name = device.name.as_deref().unwrap_or("a device without a name");
        let usable = Bytes(device.usable_bytes);
        let memory = match (device.memory_bytes.map(Bytes), device.free_bytes.map(Bytes)) {
            (Some(all), Some(free)) => format!("{free} of {all} free"),
            (Some(all), None) => format!("{all}"),
            (None, _) => "its driver does not tell its memory".to_owned(),
        };
        writeln!(out, "{:<8} {name}: {memory}; a worker takes {usable}", device.device)?;
    }
    for line in missing(devices) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceMemory, Found};
    use super::*;

    struct OneCard;

    impl Devices for OneCard {
        fn found(&self) -> Found {
            Found { cuda: Presence::Present(1), metal: Presence::NotBuilt }
        }

        fn memory(&self, device: DeviceKind) -> Result<Option<DeviceMemory>, String> {
            let memory = DeviceMemory { free: Bytes::mib(20 << 10), total: Bytes::mib(24 << 10) };
            Ok((device != DeviceKind::Cpu).then_some(memory))
        }

        fn name(&self, device: DeviceKind) -> Option<String> {
            (device != DeviceKind::Cpu).then(|| "NVIDIA L4".to_owned())
        }
    }

    fn machine() -> Machine {
        Machine {
            host: "box".to_owned(),
            memory: Bytes::mib(1000),
            parallelism: 4,
            home: None,
            state_home: None,
        }
    }

    #[test]
    fn a_card_comes_before_the_processor_with_what_a_worker_takes() {
        let all = list(&OneCard, &machine());
        let devices: Vec<&str> = all.iter().map(|device| device.device.as_str()).collect();
        assert_eq!(devices, ["cuda:0", "cpu"]);
        // A twentieth of 24 GiB stays free.
        assert_eq!(all[0].usable_bytes, (20 << 30) - (24 << 30) / 100 * 5);
        assert_eq!(all[1].usable_bytes, machine().default_budget().0);
        let mut text = Vec::new();
        run(&DevicesArgs { json: false }, &OneCard, &machine(), &mut text).expect("memory can be written");
        let text = String::from_utf8(text).expect("it is text");
        assert!(
            text.contains("cuda:0   NVIDIA L4: 20.0 GiB of 24.0 GiB free; a worker takes 18.8 GiB"),
            "{text}"
        );
    }

    #[test]
    fn json_can_be_read_again() {
        let mut text = Vec::new();
        run(&DevicesArgs { json: true }, &OneCard, &machine(), &mut text).expect("memory can be written");
        let read: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
        assert_eq!(read[0]["device"], "cuda:0");
        assert_eq!(read[0]["memory_bytes"], 24u64 << 30);
        assert_eq!(read[1]["free_bytes"], serde_json::Value::Null);
    }
}

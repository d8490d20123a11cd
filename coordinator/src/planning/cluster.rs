//! Machines to plan with, and what is known of each beside its speed.

use brigade_shard::kernels::Kernels;
use brigade_shard::plan::{HopCost, Links, PlanDevice, SharedHost};
use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

use super::economics::EconomicsSettings;

/// A crossing between two processes of one machine.
pub const LOOPBACK: HopCost = HopCost { rtt_us: 60.0, bytes_per_s: 500e6 };

/// Share of a catalogue's bandwidth that decoding is planned with: a catalogue tells what the memory's wires could carry,
/// and products with quantised weights are published at about this much of it.
pub const NOMINAL_BANDWIDTH_SHARE: f64 = 0.8;

/// Share of a catalogue's arithmetic that prompts are planned with: the dense peak is reached by large half-precision
/// products alone, and unpacking quantised weights takes its part.
pub const NOMINAL_FLOPS_SHARE: f64 = 0.5;

/// Arithmetic that a device is planned with of which nobody says it, in floating-point operations per second: so much
/// that reading the weights is what takes time. What depends on it is not told.
pub(super) const UNKNOWN_FLOPS: f64 = 1e18;

/// Devices with all that a report takes of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The devices as the planner sees them.
    pub devices: Vec<PlanDevice>,
    /// What else is known of each, in the same order.
    pub facts: Vec<DeviceFacts>,
    /// Machines whose memory and processors several devices share.
    pub hosts: Vec<SharedHost>,
    /// Machines around devices, with their own price and power.
    pub boxes: Vec<HostFacts>,
    /// What links cost.
    pub links: Links,
    /// What money is reckoned with.
    pub economics: EconomicsSettings,
    /// What was assumed, one sentence each.
    pub notes: Vec<String>,
}

/// What is known of a device beside what the planner takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// The catalogue's name, where it is from there.
    pub catalogue: Option<String>,
    /// Where its speeds are from.
    pub source: String,
    /// Whether somebody says how fast it computes; where not, nothing is told that follows from it.
    pub arithmetic_known: bool,
    /// In US dollars.
    pub price_usd: Option<f64>,
    /// At rest, in watts.
    pub idle_watts: Option<f64>,
    /// Under load, in watts.
    pub loaded_watts: Option<f64>,
    /// Whether these watts, one of them at least, are the catalogue's, of a whole system.
    pub whole_system: bool,
    /// The machine it is in, by its name.
    pub host: Option<String>,
}

/// A machine around devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// Without the devices, in US dollars.
    pub price_usd: Option<f64>,
    /// Without the devices, at rest, in watts.
    pub idle_watts: Option<f64>,
    /// Without the devices, under load, in watts.
    pub loaded_watts: Option<f64>,
}

impl Cluster {
    /// Devices of which nothing is known but what the planner takes; `source` says where their speeds are from.
    pub fn of_devices(
        devices: Vec<PlanDevice>,
        hosts: Vec<SharedHost>,
        links: Links,
        source: &str,
    ) -> Cluster {
        let facts = devices.iter().map(|_| DeviceFacts {
            source: source.to_owned(),
            arithmetic_known: true,
            ..DeviceFacts::default()
        });
        Cluster {
            facts: facts.collect(),
            devices,
            hosts,
            boxes: Vec::new(),
            links,
            economics: EconomicsSettings::default(),
            notes: Vec::new(),
        }
    }

    /// Lets every device that says nothing of it read what it cannot hold at this rate, in bytes per second.
    pub fn offload(&mut self, bytes_per_s: f64) {
        for device in &mut self.devices {
            device.offload_bytes_per_s.get_or_insert(bytes_per_s);
        }
    }

    /// The devices among `indices` of which nobody says how fast they compute, by name.
    pub fn of_unknown_arithmetic(&self, indices: impl IntoIterator<Item = usize>) -> Vec<String> {
        let unknown = indices.into_iter().filter(|index| !self.facts[*index].arithmetic_known);
        unknown.map(|index| self.devices[index].name.clone()).collect()
    }
}

/// A device with nothing resident, of which two speeds are known: weight bytes and floating-point operations per second.
pub fn plan_device(
    name: String,
    budget: Bytes,
    bandwidth_bytes_per_s: f64,
    flops_per_s: f64,
    kernels: Kernels,
) -> PlanDevice {
    PlanDevice {
        name,
        budget,
        bandwidth_bytes_per_s,
        flops_per_s,
        threads: None,
        kernels,
        held: None,
        kernel_speeds: Vec::new(),
        host: None,
        offload_bytes_per_s: None,
    }
}

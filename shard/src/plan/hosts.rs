//! Several devices in one machine, which share its memory and its processors.
//!
//! For one stream its stages take turns, and each has the machine to itself. For many streams they compute at the same
//! time, and then a machine's stages cannot all go round in less than
//!
//! `cycle = max(sum of weight bytes / bandwidth, sum of speedup(threads) * busy / speedup(processors))`
//!
//! with the sums over the machine's stages: the bytes that each reads per step, which the memory gives at `bandwidth`
//! bytes per second to all of them together, and the time that each computes with so many threads. `speedup(n)` is how
//! many times as fast as one thread `n` of them are, which is measured for all processors, and taken to grow evenly up to
//! there: processors that share a core are less than twice as fast as one.

use super::pace::Seat;
use super::{PlanDevice, PlanInput, SharedHost};

/// What one stage takes of its machine for one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostLoad {
    /// Weight bytes that it reads.
    pub bytes: f64,
    /// Seconds that a thread alone would take for it.
    pub processor_s: f64,
}

impl HostLoad {
    /// The load of a stage on `device` of `host` that reads `bytes` of weights and computes for `busy_s` seconds.
    pub fn of(device: &PlanDevice, host: &SharedHost, bytes: f64, busy_s: f64) -> HostLoad {
        HostLoad { bytes, processor_s: speedup(threads(device, host), host) * busy_s }
    }

    /// Seconds that memory and processors take for it at the least.
    pub(super) fn seconds(&self, host: &SharedHost) -> [f64; 2] {
        let processors = f64::from(host.processors.max(1));
        [self.bytes / host.bandwidth_bytes_per_s, self.processor_s / speedup(processors, host)]
    }
}

/// The least time in which a machine computes one step of each of its stages, in seconds; see the module for the formula.
pub fn least_cycle_s(host: &SharedHost, stages: impl IntoIterator<Item = HostLoad>) -> f64 {
    let add = |sum: HostLoad, one: HostLoad| HostLoad {
        bytes: sum.bytes + one.bytes,
        processor_s: sum.processor_s + one.processor_s,
    };
    let [memory_s, processors_s] = stages.into_iter().fold(HostLoad::default(), add).seconds(host);
    memory_s.max(processors_s)
}

/// How many times as fast as one thread so many threads of a machine are.
fn speedup(threads: f64, host: &SharedHost) -> f64 {
    let others = f64::from(host.processors.max(2)) - 1.0;
    let each = (host.speedup.clamp(1.0, others + 1.0) - 1.0) / others;
    1.0 + each * (threads.clamp(1.0, others + 1.0) - 1.0)
}

impl<M> Seat<M> {
    /// That of so many threads on `machine`, whose processors are `host`.
    pub fn of(machine: M, host: &SharedHost, threads: f64) -> Seat<M> {
        let processors = f64::from(host.processors.max(1));
        Seat { machine, share: speedup(threads, host) / speedup(processors, host) }
    }
}

/// Where a device computes, where it shares a machine with others.
pub(super) fn seat(device: &PlanDevice, input: &PlanInput) -> Option<Seat<usize>> {
    let machine = device.host?;
    let host = input.hosts.get(machine)?;
    Some(Seat::of(machine, host, threads(device, host)))
}

/// Compute threads of a device. Where it is not known how many it has, they are taken to be the share of the processors
/// that its bandwidth is of the machine's: a device that reads all that the machine can keeps all of it busy. More threads
/// than processors keep no more of these busy.
fn threads(device: &PlanDevice, host: &SharedHost) -> f64 {
    let processors = f64::from(host.processors.max(1));
    if let Some(threads) = device.threads {
        return f64::from(threads).min(processors);
    }
    let share = device.bandwidth_bytes_per_s / host.bandwidth_bytes_per_s;
    (share * processors).round().clamp(1.0, processors)
}

/// The machines that hold several devices: for each the machine, by its index in [`PlanInput::hosts`], and for every
/// device which of these it is in.
pub(super) struct Sharing {
    /// Indices into [`PlanInput::hosts`].
    pub(super) hosts: Vec<usize>,
    /// For every device an index into `hosts`.
    pub(super) of: Vec<Option<usize>>,
}

impl Sharing {
    pub(super) fn of(input: &PlanInput) -> Sharing {
        let members = |host: usize| input.devices.iter().filter(|device| device.host == Some(host)).count();
        let hosts: Vec<usize> = (0..input.hosts.len()).filter(|host| members(*host) > 1).collect();
        let of = |device: &PlanDevice| hosts.iter().position(|host| device.host == Some(*host));
        let of = input.devices.iter().map(of).collect();
        Sharing { hosts, of }
    }
}

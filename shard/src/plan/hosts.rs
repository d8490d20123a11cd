//! Several devices in one machine, which share its memory and its processors.
//!
//! For one stream its stages take turns, and each has the machine to itself. For many streams they compute at the same
//! time, and then a machine's stages cannot all go round in less than
//!
//! `cycle = max(sum of weight bytes / bandwidth, sum of threads * busy / processors)`
//!
//! with the sums over the machine's stages: the bytes that each reads per step, which the memory gives at `bandwidth`
//! bytes per second to all of them together, and the time that each computes with so many threads, of which `processors`
//! run at a time.

use super::{PlanDevice, PlanInput, SharedHost};

impl SharedHost {
    /// The least time in which the machine does what all stages on it do, in seconds: `thread_s` are the seconds that their
    /// threads compute, and `bytes` what they read.
    pub fn least_s(&self, thread_s: f64, bytes: f64) -> f64 {
        let [processors_s, memory_s] = self.busy_s(thread_s, bytes);
        processors_s.max(memory_s)
    }

    /// For how long processors and memory are busy with that, in seconds.
    pub(super) fn busy_s(&self, thread_s: f64, bytes: f64) -> [f64; 2] {
        [thread_s / f64::from(self.processors.max(1)), bytes / self.bandwidth_bytes_per_s]
    }
}

/// Compute threads of a device. It says how fast it reads and not with how many threads, so they are taken to be the
/// share of the processors that it is of the machine's bandwidth: a device that reads all that the machine can keeps all
/// of it busy.
pub(super) fn threads(device: &PlanDevice, host: &SharedHost) -> f64 {
    let processors = f64::from(host.processors.max(1));
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

//! What a worker tells of itself with every heartbeat.
//!
//! A thread of its own ([`Meters`]) reads what the system tells of the machine, of this process and of its card once a
//! second, so that neither steps nor heartbeats wait for it. On Linux that is texts of `/proc` and `/sys`, elsewhere what
//! `sysinfo` knows; what a system does not tell stays untold.

#[cfg(target_os = "linux")]
mod card;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod linux_texts;
mod meters;
mod rates;
mod resident;
#[cfg(target_os = "linux")]
mod sensors;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use brigade_proto::control::Telemetry;
use brigade_shard::units::Bytes;

pub use meters::{Meters, Vitals};
pub use resident::{MemoryMeter, ResidentMemory};

/// What a worker process may take beyond its budget: the program, its threads' stacks, headers being read, connections
/// and their buffers. An attached worker without a stage was measured at 11 MiB, and at 30 MiB while it calibrates, which
/// is over before anything is loaded; the rest is room for links under load.
pub const FIXED_OVERHEAD: Bytes = Bytes::mib(48);

/// Counters that the engine keeps and heartbeats carry.
#[derive(Debug)]
pub struct EngineCounters {
    /// What `computing` counts from.
    origin: Instant,
    /// Since when a step has been computed, in milliseconds and at least 1; 0 where none is.
    computing: AtomicU64,
    /// Steps computed.
    pub steps: AtomicU64,
    /// Frames dropped because their fence, deployment or sender was not the active one.
    pub frames_fenced: AtomicU64,
    /// Cache tokens in use, over all stages.
    pub cache_tokens_used: AtomicU32,
    /// Sequences that hold cache, over all stages.
    pub sequences: AtomicU32,
}

impl Default for EngineCounters {
    fn default() -> EngineCounters {
        EngineCounters {
            origin: Instant::now(),
            computing: AtomicU64::default(),
            steps: AtomicU64::default(),
            frames_fenced: AtomicU64::default(),
            cache_tokens_used: AtomicU32::default(),
            sequences: AtomicU32::default(),
        }
    }
}

impl EngineCounters {
    /// A step begins to be computed.
    pub fn step_begins(&self) {
        self.computing.store(self.now_ms(), Ordering::Relaxed);
    }

    /// It is computed, or has failed.
    pub fn step_ends(&self) {
        self.computing.store(0, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// For how long a step has been computed, in milliseconds; 0 where none is.
    fn computing_ms(&self) -> u32 {
        match self.computing.load(Ordering::Relaxed) {
            0 => 0,
            since => u32::try_from(self.now_ms().saturating_sub(since)).unwrap_or(u32::MAX),
        }
    }

    /// The counters as a report, with the process's memory.
    pub fn telemetry(&self, memory: ResidentMemory) -> Telemetry {
        Telemetry {
            resident: memory.now,
            peak_resident: memory.peak,
            cache_tokens_used: self.cache_tokens_used.load(Ordering::Relaxed),
            sequences: self.sequences.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            frames_fenced: self.frames_fenced.load(Ordering::Relaxed),
            computing_ms: self.computing_ms(),
            ..Telemetry::default()
        }
    }
}

/// A folder of these files, which stands in for a system's own.
#[cfg(all(test, target_os = "linux"))]
#[expect(clippy::unwrap_used, reason = "for tests alone")]
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_computed_from_its_beginning_to_its_end() {
        let counters = EngineCounters::default();
        let computing_ms = || counters.telemetry(ResidentMemory::default()).computing_ms;
        assert_eq!(computing_ms(), 0);
        counters.step_begins();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!((20..10_000).contains(&computing_ms()), "{} ms", computing_ms());
        counters.step_ends();
        assert_eq!(computing_ms(), 0);
    }
}

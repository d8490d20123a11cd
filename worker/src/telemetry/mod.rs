//! What a worker tells of itself with every heartbeat.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use brigade_proto::control::Telemetry;
use brigade_shard::units::Bytes;

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

/// Resident memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidentMemory {
    /// Now.
    pub now: Bytes,
    /// At its highest so far.
    pub peak: Bytes,
}

/// Reads this process's resident memory.
#[derive(Debug, Default)]
pub struct MemoryMeter {
    peak: Bytes,
}

impl MemoryMeter {
    /// A meter whose peak is counted from now on, where the kernel can begin anew; elsewhere it counts from the process's
    /// start.
    pub fn since_now() -> MemoryMeter {
        // See proc_pid_clear_refs(5): 5 sets the peak to what is resident now. Only Linux has the file.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        MemoryMeter::default()
    }

    /// Resident memory now and at its highest: as the kernel counts it on Linux, as sampled by this meter elsewhere.
    pub fn read(&mut self) -> ResidentMemory {
        let now = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| parse_status(&status))
            .unwrap_or_else(sampled);
        self.peak = self.peak.max(now.peak);
        ResidentMemory { now: now.now, peak: self.peak }
    }
}

/// `VmRSS` and `VmHWM` of a Linux `/proc/PID/status`, which counts in KiB.
fn parse_status(status: &str) -> Option<ResidentMemory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Bytes(kib.saturating_mul(1024)))
    };
    Some(ResidentMemory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

fn sampled() -> ResidentMemory {
    let Ok(pid) = sysinfo::get_current_pid() else {
        return ResidentMemory::default();
    };
    let Ok(mut system) = sysinfo::System::new() else {
        return ResidentMemory::default();
    };
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[pid]), false);
    let now = Bytes(system.process(pid).map_or(0, |process| process.memory()));
    ResidentMemory { now, peak: now }
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

    #[test]
    fn linux_status_is_read_in_kib() {
        let status = "Name:\tworker\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t4\n";
        let memory = ResidentMemory { now: Bytes::mib(1), peak: Bytes::mib(2) };
        assert_eq!(parse_status(status), Some(memory));
        assert_eq!(parse_status("VmRSS:\tmuch\n"), None);
    }

    #[test]
    fn this_process_takes_memory_and_its_peak_never_falls() {
        let mut meter = MemoryMeter::default();
        let first = meter.read();
        assert!(first.now > Bytes::ZERO && first.peak >= first.now, "{first:?}");
        assert!(meter.read().peak >= first.peak);
    }
}

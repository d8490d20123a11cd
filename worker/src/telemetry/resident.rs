//! Resident memory of this process.

use brigade_shard::units::Bytes;

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

//! The texts by which Linux tells of itself. The formats are proc(5)'s.

use brigade_shard::units::Bytes;

use super::rates::ProcessorTime;

/// What `/proc/meminfo` says of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryInfo {
    /// All of it.
    pub(super) total: Bytes,
    /// What a program could get without anything being swapped out.
    pub(super) available: Bytes,
    /// What is swapped out.
    pub(super) swapped: Bytes,
}

/// `/proc/meminfo`, which counts in KiB.
pub(super) fn memory_info(text: &str) -> Option<MemoryInfo> {
    let field = |name: &str| {
        let kib: u64 = value(text, name)?.strip_suffix("kB")?.trim().parse().ok()?;
        Some(Bytes(kib.saturating_mul(1024)))
    };
    let swapped = field("SwapTotal:").zip(field("SwapFree:")).map(|(all, free)| all.saturating_sub(free));
    Some(MemoryInfo {
        total: field("MemTotal:")?,
        available: field("MemAvailable:")?,
        swapped: swapped.unwrap_or_default(),
    })
}

/// Pages read back, as `/proc/vmstat` counts them: from swap, or by faults that had to wait for a disk. A fault that
/// reads from swap is counted as both, so that it is the larger number that nothing is counted twice in.
pub(super) fn pages_read_back(text: &str) -> Option<u64> {
    let field = |name: &str| value(text, name)?.parse::<u64>().ok();
    Some(field("pswpin ")?.max(field("pgmajfault ")?))
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. Time of guests is part of the
/// user's.
pub(super) fn processor_time(text: &str) -> Option<ProcessorTime> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
    let fields: Vec<u64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let idle = *fields.get(3)? + fields.get(4).copied().unwrap_or_default();
    let all: u64 = fields.iter().sum();
    Some(ProcessorTime { busy: all - idle, all })
}

/// Bytes read from disks and written to them, of a `/proc/PID/io`.
pub(super) fn disk_bytes(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| value(text, name)?.parse::<u64>().ok();
    Some((field("read_bytes:")?, field("write_bytes:")?))
}

/// What stands behind a name at the beginning of a line.
pub(super) fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "\
MemTotal:       24683652 kB
MemFree:         2393364 kB
MemAvailable:   21895476 kB
Buffers:          149496 kB
Cached:         18779868 kB
SwapCached:            0 kB
SwapTotal:       8388604 kB
SwapFree:        7340028 kB
";

    #[test]
    fn memory_is_counted_in_kib() {
        let memory = memory_info(MEMINFO).unwrap();
        let wanted = MemoryInfo {
            total: Bytes(24_683_652 << 10),
            available: Bytes(21_895_476 << 10),
            swapped: Bytes::mib(1024),
        };
        assert_eq!(memory, wanted);
        assert_eq!(memory_info("MemTotal: 1 kB\n"), None);
        assert_eq!(memory_info(&MEMINFO.replace("kB", "pages")), None);
    }

    #[test]
    fn a_fault_that_reads_from_swap_counts_once() {
        let text =
            |swapped, faults| format!("pgpgin 28046265\npswpin {swapped}\npswpout 9\npgmajfault {faults}\n");
        assert_eq!(pages_read_back(&text(0, 47_003)), Some(47_003));
        assert_eq!(pages_read_back(&text(80, 70)), Some(80));
        assert_eq!(pages_read_back("pgpgin 28046265\n"), None);
    }

    #[test]
    fn waiting_for_disks_is_not_being_busy() {
        let text = "cpu  1901585 131618 181309 641617 7941 0 3414 1948 0 0\ncpu0 930166 65207 87466 347507 2197 0 1154\n";
        let busy = 1_901_585 + 131_618 + 181_309 + 3414 + 1948;
        let wanted = ProcessorTime { busy, all: busy + 641_617 + 7941 };
        assert_eq!(processor_time(text), Some(wanted));
        assert_eq!(processor_time("cpu  1 2\n"), None);
        assert_eq!(processor_time("intr 5\n"), None);
    }

    #[test]
    fn disk_bytes_are_those_that_reached_a_disk() {
        let text = "rchar: 6976\nwchar: 12\nsyscr: 10\nsyscw: 0\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n";
        assert_eq!(disk_bytes(text), Some((4096, 8192)));
        assert_eq!(disk_bytes("rchar: 6976\n"), None);
    }
}

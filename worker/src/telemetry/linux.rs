//! What Linux tells of a machine and a process, in `/proc` and `/sys`.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use brigade_proto::control::{DeviceKind, MachineTelemetry};

use super::card::Card;
use super::cgroup::MemoryGroups;
use super::linux_texts::{disk_bytes, memory_info, pages_read_back, processor_time};
use super::rates::{Counted, Look};
use super::sensors::Sensors;

/// A Linux system, as this process sees it.
#[derive(Debug)]
pub(super) struct System {
    proc: PathBuf,
    page_bytes: u64,
    groups: MemoryGroups,
    sensors: Sensors,
    card: Option<Card>,
}

impl System {
    /// The system that this process runs on, with the card that the device is.
    pub(super) fn here(device: DeviceKind) -> System {
        let page_bytes = rustix::param::page_size() as u64;
        let system = System::below(Path::new("/proc"), Path::new("/sys"), page_bytes);
        System { card: Card::open(device), ..system }
    }

    /// The system whose `/proc` and `/sys` these are.
    fn below(proc: &Path, sys: &Path, page_bytes: u64) -> System {
        let membership = read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        System {
            proc: proc.to_owned(),
            page_bytes,
            groups: MemoryGroups::find(&membership, &sys.join("fs/cgroup")),
            sensors: Sensors::find(sys),
            card: None,
        }
    }

    /// How everything is now; times are the caller's to fill in.
    pub(super) fn look(&mut self) -> Look {
        let text = |name| read_to_string(self.proc.join(name)).unwrap_or_default();
        let mut machine = MachineTelemetry {
            temperature_celsius: self.sensors.temperature_celsius(),
            ..MachineTelemetry::default()
        };
        if let Some(memory) = memory_info(&text("meminfo")) {
            let room = self.groups.room(memory.total);
            machine.memory = room.map_or(memory.total, |room| room.limit);
            machine.memory_available =
                room.map_or(memory.available, |room| room.available.min(memory.available));
            machine.swap_used = memory.swapped;
        }
        let read_back = pages_read_back(&text("vmstat"));
        let disks = disk_bytes(&text("self/io"));
        Look {
            machine,
            counted: Counted {
                paged_in_bytes: read_back.map(|pages| pages.saturating_mul(self.page_bytes)),
                processors: processor_time(&text("stat")),
                energy: self.sensors.energy(),
                throttled: self.sensors.throttled(),
            },
            read_bytes: disks.map(|(read, _)| read),
            written_bytes: disks.map(|(_, written)| written),
            card: self.card.as_mut().and_then(Card::read),
            ..Look::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use brigade_shard::units::Bytes;

    use super::*;
    use crate::telemetry::rates::ProcessorTime;
    use crate::telemetry::tree;

    #[test]
    fn a_small_system_is_read_whole() {
        let root = tree(&[
            ("proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 900 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n"),
            ("proc/vmstat", "pswpin 3\npgmajfault 2\n"),
            ("proc/stat", "cpu  1 0 1 6 2 0 0 0 0 0\n"),
            ("proc/self/io", "read_bytes: 11\nwrite_bytes: 12\n"),
            ("proc/self/cgroup", "0::/box\n"),
            ("sys/fs/cgroup/box/memory.max", "1048576\n"),
            ("sys/fs/cgroup/box/memory.current", "524288\n"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", "40000\n"),
        ]);
        let look = System::below(&root.path().join("proc"), &root.path().join("sys"), 4096).look();
        let machine = MachineTelemetry {
            memory: Bytes::mib(1),
            memory_available: Bytes(512 << 10),
            swap_used: Bytes(6 << 10),
            temperature_celsius: Some(40.0),
            ..MachineTelemetry::default()
        };
        assert_eq!(look.machine, machine);
        assert_eq!(look.counted.paged_in_bytes, Some(3 * 4096));
        assert_eq!(look.counted.processors, Some(ProcessorTime { busy: 2, all: 10 }));
        assert_eq!((look.read_bytes, look.written_bytes), (Some(11), Some(12)));
        assert_eq!((look.counted.energy.len(), look.counted.throttled), (0, None));
    }

    #[test]
    fn a_system_that_tells_nothing_is_no_error() {
        let root = tree(&[]);
        assert_eq!(System::below(root.path(), root.path(), 4096).look(), Look::default());
    }

    #[test]
    fn this_machine_has_memory_and_processors() {
        let look = System::here(DeviceKind::Cpu).look();
        assert!(look.machine.memory_available > Bytes::ZERO, "{look:?}");
        assert!(look.machine.memory_available <= look.machine.memory, "{look:?}");
        let processors = look.counted.processors.unwrap();
        assert!(processors.busy > 0 && processors.busy <= processors.all, "{processors:?}");
    }
}

//! What systems other than Linux tell of a machine and a process. An Apple GPU has the machine's memory and temperature, so
//! that there is no card to tell of.

use brigade_proto::control::{DeviceKind, MachineTelemetry};
use brigade_shard::units::Bytes;
use sysinfo::{Components, Pid, ProcessRefreshKind, ProcessesToUpdate};

use super::rates::Look;

/// What the labels of a processor's sensors begin with: Intel's, and those of Apple's own chips.
const PROCESSOR_SENSORS: [&str; 4] = ["CPU", "PMU tdie", "pACC", "eACC"];

/// A system, as this process sees it.
#[derive(Debug, Default)]
pub(super) struct System {
    system: Option<sysinfo::System>,
    components: Option<Components>,
    process: Option<Pid>,
    /// How busy the processors are is told from the second look on.
    looked: bool,
}

impl System {
    /// The system that this process runs on.
    pub(super) fn here(_: DeviceKind) -> System {
        System {
            system: sysinfo::System::new().ok(),
            components: Components::new_with_refreshed_list().ok(),
            process: sysinfo::get_current_pid().ok(),
            looked: false,
        }
    }

    /// How everything is now; times are the caller's to fill in.
    pub(super) fn look(&mut self) -> Look {
        let temperature_celsius = self.temperature_celsius();
        let looked = std::mem::replace(&mut self.looked, true);
        let Some(system) = &mut self.system else {
            return Look::default();
        };
        system.refresh_memory();
        system.refresh_cpu_usage();
        let machine = MachineTelemetry {
            memory: Bytes(system.total_memory()),
            memory_available: Bytes(system.available_memory()),
            swap_used: Bytes(system.used_swap()),
            processors_busy: looked.then(|| (system.global_cpu_usage() / 100.0).clamp(0.0, 1.0)),
            temperature_celsius,
            ..MachineTelemetry::default()
        };
        let disks = self.process.and_then(|process| {
            let what = ProcessRefreshKind::nothing().with_disk_usage();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[process]), false, what);
            Some(system.process(process)?.disk_usage())
        });
        Look {
            machine,
            read_bytes: disks.map(|disks| disks.total_read_bytes),
            written_bytes: disks.map(|disks| disks.total_written_bytes),
            ..Look::default()
        }
    }

    /// The hottest of the processors' sensors.
    fn temperature_celsius(&mut self) -> Option<f32> {
        let components = self.components.as_mut()?;
        components.refresh(false);
        let processors = components.iter().filter(|component| {
            PROCESSOR_SENSORS.iter().any(|beginning| component.label().starts_with(beginning))
        });
        processors.filter_map(|component| component.temperature()).reduce(f32::max)
    }
}

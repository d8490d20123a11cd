//! What counters say between two looks at them.

use std::time::Duration;

use brigade_proto::control::{CardTelemetry, MachineTelemetry, ProcessTelemetry, Throttle};

/// One look at the system. What is `None` it does not tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Look {
    /// When, on a clock that never goes back.
    pub(super) at: Duration,
    /// What needs no look before: memory and temperature.
    pub(super) machine: MachineTelemetry,
    /// What the machine counts.
    pub(super) counted: Counted,
    /// Processor time that this process has had.
    pub(super) process_time: Option<Duration>,
    /// Bytes that this process has read from disks.
    pub(super) read_bytes: Option<u64>,
    /// Bytes that it has written to disks.
    pub(super) written_bytes: Option<u64>,
    /// The device, where it is a card whose driver tells.
    pub(super) card: Option<CardTelemetry>,
}

/// What a machine counts from its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counted {
    /// Bytes read back from swap, and from files that had been dropped.
    pub(super) paged_in_bytes: Option<u64>,
    /// Time of all processors.
    pub(super) processors: Option<ProcessorTime>,
    /// Energy of each of the processors' zones; empty where none is counted.
    pub(super) energy: Vec<Energy>,
    /// How often processors were held back by heat.
    pub(super) throttled: Option<u64>,
}

/// Time of all processors together, in any unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessorTime {
    /// With work.
    pub(super) busy: u64,
    /// With work and without.
    pub(super) all: u64,
}

/// What a zone has drawn, on a counter that begins anew behind its largest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Energy {
    /// In microjoules.
    pub(super) microjoules: u64,
    /// The counter's largest value.
    pub(super) largest: u64,
}

impl Energy {
    fn since(self, before: Energy) -> u64 {
        match self.microjoules.checked_sub(before.microjoules) {
            Some(drawn) => drawn,
            None => self.largest.saturating_sub(before.microjoules).saturating_add(self.microjoules),
        }
    }
}

/// The machine and this process, as two looks after each other show them; without the first, rates are not known.
pub(super) fn between(before: Option<&Look>, now: &Look) -> (MachineTelemetry, ProcessTelemetry) {
    let passed = before.map(|before| now.at.saturating_sub(before.at)).filter(|passed| !passed.is_zero());
    let Some((before, passed)) = before.zip(passed) else {
        return (now.machine, ProcessTelemetry::default());
    };
    let seconds = passed.as_secs_f64();
    let rate = |before: Option<u64>, now: Option<u64>| {
        let (before, now) = before.zip(now)?;
        Some(now.saturating_sub(before) as f64 / seconds)
    };
    let (then, counted) = (&before.counted, &now.counted);
    let machine = MachineTelemetry {
        // Some systems tell these without being looked at twice.
        paged_in_bytes_per_s: rate(then.paged_in_bytes, counted.paged_in_bytes)
            .or(now.machine.paged_in_bytes_per_s),
        processors_busy: busy(then.processors, counted.processors).or(now.machine.processors_busy),
        power_watts: power(&then.energy, &counted.energy, seconds).or(now.machine.power_watts),
        throttle: match then.throttled.zip(counted.throttled) {
            Some((before, now)) if now > before => Throttle::Heat,
            Some(_) => Throttle::None,
            None => now.machine.throttle,
        },
        ..now.machine
    };
    let processors = before.process_time.zip(now.process_time);
    let processors =
        processors.map(|(before, now)| (now.saturating_sub(before).as_secs_f64() / seconds) as f32);
    let process = ProcessTelemetry {
        processors,
        read_bytes_per_s: rate(before.read_bytes, now.read_bytes),
        written_bytes_per_s: rate(before.written_bytes, now.written_bytes),
    };
    (machine, process)
}

fn busy(before: Option<ProcessorTime>, now: Option<ProcessorTime>) -> Option<f32> {
    let (before, now) = before.zip(now)?;
    let (busy, all) = (now.busy.saturating_sub(before.busy), now.all.saturating_sub(before.all));
    (all > 0).then(|| (busy as f64 / all as f64).min(1.0) as f32)
}

fn power(before: &[Energy], now: &[Energy], seconds: f64) -> Option<f32> {
    if now.is_empty() || before.len() != now.len() {
        return None;
    }
    let microjoules: u64 = now.iter().zip(before).map(|(now, before)| now.since(*before)).sum();
    Some((microjoules as f64 / 1e6 / seconds) as f32)
}

#[cfg(test)]
mod tests {
    use brigade_shard::units::Bytes;

    use super::*;

    fn look(seconds: u64) -> Look {
        let machine = MachineTelemetry {
            memory: Bytes::mib(64),
            temperature_celsius: Some(50.0),
            ..MachineTelemetry::default()
        };
        Look { at: Duration::from_secs(seconds), machine, ..Look::default() }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let mut first = look(10);
        first.counted.paged_in_bytes = Some(1_000_000);
        first.counted.processors = Some(ProcessorTime { busy: 100, all: 1000 });
        first.counted.energy = vec![Energy { microjoules: 5_000_000, largest: 10_000_000 }];
        first.counted.throttled = Some(3);
        first.process_time = Some(Duration::from_secs(7));
        first.read_bytes = Some(0);
        let mut second = look(12);
        second.counted.paged_in_bytes = Some(5_000_000);
        second.counted.processors = Some(ProcessorTime { busy: 150, all: 1200 });
        second.counted.energy = vec![Energy { microjoules: 9_000_000, largest: 10_000_000 }];
        second.counted.throttled = Some(3);
        second.process_time = Some(Duration::from_secs(10));
        second.read_bytes = Some(4096);
        let (machine, process) = between(Some(&first), &second);
        assert_eq!(machine.paged_in_bytes_per_s, Some(2e6));
        assert_eq!(machine.processors_busy, Some(0.25));
        assert_eq!(machine.power_watts, Some(2.0));
        assert_eq!(machine.throttle, Throttle::None);
        assert_eq!((machine.memory, machine.temperature_celsius), (Bytes::mib(64), Some(50.0)));
        assert_eq!(process.processors, Some(1.5));
        assert_eq!(process.read_bytes_per_s, Some(2048.0));
        assert_eq!(process.written_bytes_per_s, None, "which was not told");

        second.counted.throttled = Some(4);
        assert_eq!(between(Some(&first), &second).0.throttle, Throttle::Heat);
    }

    #[test]
    fn the_first_look_knows_no_rates_and_neither_does_one_without_time_between() {
        let mut first = look(10);
        first.counted.throttled = Some(3);
        first.process_time = Some(Duration::from_secs(7));
        for before in [None, Some(&first)] {
            let (machine, process) = between(before, &first);
            assert_eq!(machine, first.machine);
            assert_eq!(process, ProcessTelemetry::default());
        }
    }

    #[test]
    fn an_energy_counter_begins_anew_behind_its_largest_value() {
        let (mut first, mut second) = (look(0), look(1));
        first.counted.energy = vec![Energy { microjoules: 9_000_000, largest: 10_000_000 }; 2];
        second.counted.energy = vec![
            Energy { microjoules: 2_000_000, largest: 10_000_000 },
            Energy { microjoules: 9_500_000, largest: 10_000_000 },
        ];
        assert_eq!(between(Some(&first), &second).0.power_watts, Some(3.5));
        // A zone that could not be read leaves nothing to compare.
        second.counted.energy.pop();
        assert_eq!(between(Some(&first), &second).0.power_watts, None);
    }

    #[test]
    fn counters_that_go_back_are_no_rate_below_zero() {
        let (mut first, mut second) = (look(0), look(1));
        first.counted.processors = Some(ProcessorTime { busy: 100, all: 1000 });
        second.counted.processors = Some(ProcessorTime { busy: 90, all: 1100 });
        first.counted.paged_in_bytes = Some(100);
        second.counted.paged_in_bytes = Some(0);
        let (machine, _) = between(Some(&first), &second);
        assert_eq!((machine.processors_busy, machine.paged_in_bytes_per_s), (Some(0.0), Some(0.0)));
    }
}

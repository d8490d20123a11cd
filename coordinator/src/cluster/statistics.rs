//! The last steps, as medians.

use std::collections::VecDeque;

use brigade_proto::step::{StageTiming, StepKind};

use crate::metrics::Metrics;
use crate::scheduler::Measured;
use crate::status::{StageTotals, StepStatus};

/// How many steps "lately" is: some seconds of decoding, and few enough to sort four times a second.
const WINDOW: usize = 256;

/// The newest values of something, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<u32>);

impl Window {
    fn push(&mut self, value_us: u32) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(value_us);
    }

    /// The value that `share` (0 to 1) of the values do not exceed; 0 where there is none.
    fn quantile(&self, share: f64) -> u32 {
        let mut values: Vec<u32> = self.0.iter().copied().collect();
        if values.is_empty() {
            return 0;
        }
        let place = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1;
        *values.select_nth_unstable(place).1
    }

    pub(super) fn median(&self) -> u32 {
        self.quantile(0.5)
    }
}

/// One stage's share of the last steps.
#[derive(Debug, Default)]
pub(super) struct StageTimes {
    pub(super) queued: Window,
    pub(super) decode: Window,
    pub(super) prefill: Window,
    pub(super) totals: StageTotals,
}

/// The last steps of one plan.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    steps: u64,
    decode: Window,
    prefill: Window,
    wire: Window,
    took_us: u64,
    wire_us: u64,
    stages: Vec<StageTimes>,
}

impl Statistics {
    /// Begins anew with a pipeline of `stages` stages; steps go on being counted.
    pub(super) fn restart(&mut self, stages: usize) {
        *self = Statistics { steps: self.steps, ..Statistics::default() };
        self.stages.resize_with(stages, StageTimes::default);
    }

    /// Takes in a step that has come home.
    pub(super) fn add(&mut self, step: &Measured, metrics: &Metrics) {
        self.steps += 1;
        metrics.observe_step(step.kind, step.took);
        for timing in &step.timings {
            metrics.observe_stage(timing.stage, step.kind, timing.queued_us, timing.computed_us);
            if let Some(stage) = self.stages.get_mut(timing.stage as usize) {
                stage.add(step, timing);
            }
        }
        if step.rows == 0 {
            return;
        }
        let took_us = u32::try_from(step.took.as_micros()).unwrap_or(u32::MAX);
        let on_stages = step.timings.iter().map(|t| t.queued_us.saturating_add(t.computed_us));
        let wire_us = took_us.saturating_sub(on_stages.fold(0, u32::saturating_add));
        self.took_us += u64::from(took_us);
        self.wire_us += u64::from(wire_us);
        match step.kind {
            StepKind::Prefill => self.prefill.push(took_us),
            StepKind::Decode => {
                self.decode.push(took_us);
                self.wire.push(wire_us);
            }
        }
    }

    /// One stage's times, by its place.
    pub(super) fn stage(&self, stage: usize) -> Option<&StageTimes> {
        self.stages.get(stage)
    }

    /// All of it in short.
    pub(super) fn summary(&self) -> StepStatus {
        StepStatus {
            count: self.steps,
            decode_us_p50: self.decode.median(),
            decode_us_p99: self.decode.quantile(0.99),
            prefill_us_p50: self.prefill.median(),
            wire_us_p50: self.wire.median(),
            took_us: self.took_us,
            wire_us: self.wire_us,
        }
    }
}

impl StageTimes {
    fn add(&mut self, step: &Measured, timing: &StageTiming) {
        // Steps that only release say nothing of a stage's speed.
        if step.rows == 0 {
            return;
        }
        self.queued.push(timing.queued_us);
        self.totals.queued_us += u64::from(timing.queued_us);
        self.totals.sent_us += u64::from(timing.sent_us);
        self.totals.sent_bytes += u64::from(timing.sent_bytes);
        let (window, steps, computed_us) = match step.kind {
            StepKind::Prefill => {
                (&mut self.prefill, &mut self.totals.prefill_steps, &mut self.totals.prefill_us)
            }
            StepKind::Decode => (&mut self.decode, &mut self.totals.decode_steps, &mut self.totals.decode_us),
        };
        window.push(timing.computed_us);
        *steps += 1;
        *computed_us += u64::from(timing.computed_us);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn totals_grow_by_each_step_until_the_plan_is_replaced() {
        let metrics = Metrics::new(Registry::default());
        let mut statistics = Statistics::default();
        statistics.restart(2);
        let timing = |stage, computed_us| StageTiming {
            stage,
            queued_us: 10,
            computed_us,
            sent_bytes: 8192,
            sent_us: 3,
        };
        let step = |kind, rows| Measured {
            kind,
            rows,
            took: Duration::from_micros(1_000),
            timings: vec![timing(0, 400), timing(1, 500)],
        };
        statistics.add(&step(StepKind::Decode, 1), &metrics);
        statistics.add(&step(StepKind::Decode, 4), &metrics);
        statistics.add(&step(StepKind::Prefill, 128), &metrics);
        // One that only releases is no work.
        statistics.add(&step(StepKind::Decode, 0), &metrics);
        let last = StageTotals {
            decode_steps: 2,
            decode_us: 1_000,
            prefill_steps: 1,
            prefill_us: 500,
            queued_us: 30,
            sent_us: 9,
            sent_bytes: 3 * 8192,
        };
        assert_eq!(statistics.stage(1).unwrap().totals, last);
        assert_eq!(statistics.stage(0).unwrap().totals.decode_us, 800);
        let summary = statistics.summary();
        assert_eq!((summary.count, summary.took_us, summary.wire_us), (4, 3_000, 240));
        statistics.restart(2);
        let summary = statistics.summary();
        assert_eq!((summary.count, summary.took_us, summary.wire_us), (4, 0, 0));
        assert_eq!(statistics.stage(1).unwrap().totals, StageTotals::default());
    }

    #[test]
    fn quantiles_are_of_the_newest_values() {
        let mut window = Window::default();
        assert_eq!(window.median(), 0);
        (0..1000).for_each(|value| window.push(value));
        assert_eq!(window.median(), 1000 - 1 - 128);
        assert_eq!(window.quantile(1.0), 999);
        assert_eq!(window.quantile(0.0), 1000 - 256);
    }
}

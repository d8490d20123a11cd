//! The last steps, as medians.

use std::collections::VecDeque;

use brigade_proto::step::{StageTiming, StepKind};

use crate::metrics::Metrics;
use crate::scheduler::Measured;
use crate::status::StepStatus;

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
}

/// The last steps of one plan.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    steps: u64,
    decode: Window,
    prefill: Window,
    wire: Window,
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
        match step.kind {
            StepKind::Prefill => self.prefill.push(took_us),
            StepKind::Decode => {
                let on_stages: u64 =
                    step.timings.iter().map(|t| u64::from(t.queued_us) + u64::from(t.computed_us)).sum();
                self.decode.push(took_us);
                self.wire.push(took_us.saturating_sub(u32::try_from(on_stages).unwrap_or(u32::MAX)));
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
        match step.kind {
            StepKind::Prefill => self.prefill.push(timing.computed_us),
            StepKind::Decode => self.decode.push(timing.computed_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

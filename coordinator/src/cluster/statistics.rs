//! The last steps: medians, shares, and how each stage's went compared with before.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use brigade_proto::step::{StageTiming, StepKind};

use crate::health::{Pace, Recent};
use crate::metrics::Metrics;
use crate::recent::Readings;
use crate::scheduler::{Measured, StagePrediction};
use crate::status::{StageTotals, StepStatus};

/// How many steps "lately" is: some seconds of decoding, and few enough to sort four times a second.
const WINDOW: usize = 256;
/// Shares are of so much time: what lasts shows, and what is past does not.
const SHARES: Duration = Duration::from_secs(5);

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
    pub(super) fn quantile(&self, share: f64) -> u32 {
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
#[derive(Debug)]
pub(super) struct StageTimes {
    pub(super) queued: Window,
    pub(super) sent: Window,
    pub(super) decode: Window,
    pub(super) prefill: Window,
    pub(super) totals: StageTotals,
    pace: Pace,
}

/// What a stage did in the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Share {
    /// Its share of what decode steps were computed for on all stages together.
    pub(super) of_step: f64,
    /// The share of the time that it computed.
    pub(super) busy: f64,
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
    totals: Readings<Vec<StageTotals>>,
}

impl Statistics {
    /// Begins anew with a pipeline of which so much is predicted; steps go on being counted.
    pub(super) fn restart(&mut self, predicted: &[StagePrediction]) {
        let stages = predicted.iter().map(|stage| StageTimes::new(*stage)).collect();
        *self = Statistics { steps: self.steps, stages, ..Statistics::default() };
    }

    /// Notes what there is so far, so that later it is known what came since. To be called now and then.
    pub(super) fn read(&mut self, now: Instant) {
        self.totals.read(self.stages.iter().map(|stage| stage.totals).collect(), now);
        for stage in &mut self.stages {
            stage.pace.read(now);
        }
    }

    /// What each stage did in the last seconds.
    pub(super) fn shares(&self, now: Instant) -> Vec<Share> {
        let before = self.totals.before(SHARES, now);
        let span_us = before.map_or(0.0, |(age, _)| age.as_secs_f64() * 1e6);
        let since = |place: usize, time: fn(&StageTotals) -> u64| {
            let earlier = before.and_then(|(_, totals)| totals.get(place)).map_or(0, time);
            time(&self.stages[place].totals).saturating_sub(earlier) as f64
        };
        let places = 0..self.stages.len();
        let decode: Vec<f64> = match before {
            Some(_) => places.clone().map(|place| since(place, |totals| totals.decode_us)).collect(),
            None => vec![0.0; self.stages.len()],
        };
        // While nothing is decoded, what was decoded last still says how the stages compare.
        let decode = if decode.iter().any(|us| *us > 0.0) {
            decode
        } else {
            self.stages.iter().map(|stage| f64::from(stage.decode.median())).collect()
        };
        let all: f64 = decode.iter().sum();
        let share = |place: usize| Share {
            of_step: if all > 0.0 { decode[place] / all } else { 0.0 },
            busy: match before {
                Some(_) => (since(place, |totals| totals.decode_us + totals.prefill_us) / span_us).min(1.0),
                None => 0.0,
            },
        };
        places.map(share).collect()
    }

    /// How each stage's steps went lately.
    pub(super) fn paces(&self, now: Instant) -> Vec<Option<Recent>> {
        self.stages.iter().map(|stage| stage.pace.recent(now)).collect()
    }

    /// Takes in a step that has come home.
    pub(super) fn add(&mut self, step: &Measured, metrics: &Metrics) {
        self.steps += 1;
        metrics.observe_step(step.kind, step.took);
        for timing in &step.timings {
            metrics.observe_stage(
                timing.stage,
                step.kind,
                [timing.queued_us, timing.computed_us, timing.sent_us],
            );
            if let Some(stage) = self.stages.get_mut(timing.stage as usize) {
                stage.add(step, timing);
            }
        }
        if step.rows == 0 {
            return;
        }
        let took_us = u32::try_from(step.took.as_micros()).unwrap_or(u32::MAX);
        let wire_us = took_us.saturating_sub(step.on_stages_us());
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
    fn new(predicted: StagePrediction) -> StageTimes {
        StageTimes {
            queued: Window::default(),
            sent: Window::default(),
            decode: Window::default(),
            prefill: Window::default(),
            totals: StageTotals::default(),
            pace: Pace::new(predicted),
        }
    }

    fn add(&mut self, step: &Measured, timing: &StageTiming) {
        // Steps that only release say nothing of a stage's speed.
        if step.rows == 0 {
            return;
        }
        self.queued.push(timing.queued_us);
        self.sent.push(timing.sent_us);
        self.pace.add(step.kind, step.rows, step.context, f64::from(timing.computed_us) * 1e-6);
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
    use std::sync::Arc;

    use prometheus_client::registry::Registry;
    use tokio::sync::watch;

    use super::*;
    use crate::metrics::StatusMetrics;

    const PREDICTED: [StagePrediction; 2] =
        [StagePrediction { decode_s: 0.001, prefill_s_per_row: 0.000_1 }; 2];

    #[test]
    fn totals_grow_by_each_step_until_the_plan_is_replaced() {
        let status = watch::channel(Arc::default()).1;
        let metrics = Metrics::new(Registry::default(), StatusMetrics::new(status));
        let mut statistics = Statistics::default();
        statistics.restart(&PREDICTED);
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
            sequences: Vec::new(),
            context: 0,
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
        statistics.restart(&PREDICTED);
        let summary = statistics.summary();
        assert_eq!((summary.count, summary.took_us, summary.wire_us), (4, 0, 0));
        assert_eq!(statistics.stage(1).unwrap().totals, StageTotals::default());
    }

    #[test]
    fn shares_are_of_the_last_seconds() {
        let status = StatusMetrics::new(watch::channel(Arc::default()).1);
        let metrics = Metrics::new(Registry::default(), status);
        let mut statistics = Statistics::default();
        statistics.restart(&PREDICTED);
        let start = Instant::now();
        assert_eq!(statistics.shares(start), [Share::default(); 2]);
        let step = |first_us, second_us| Measured {
            kind: StepKind::Decode,
            rows: 1,
            took: Duration::from_micros(u64::from(first_us + second_us)),
            timings: vec![
                StageTiming { stage: 0, computed_us: first_us, ..StageTiming::default() },
                StageTiming { stage: 1, computed_us: second_us, ..StageTiming::default() },
            ],
            sequences: Vec::new(),
            context: 0,
        };
        for tenth in 0..300 {
            let now = start + Duration::from_millis(tenth * 100);
            statistics.read(now);
            // At first both stages are as fast.
            let second_us = if tenth < 100 { 20_000 } else { 60_000 };
            statistics.add(&step(20_000, second_us), &metrics);
        }
        let shares = statistics.shares(start + Duration::from_secs(30));
        let near = |found: f64, wanted: f64| (found - wanted).abs() < 0.02;
        assert!(near(shares[0].of_step, 0.25) && near(shares[1].of_step, 0.75), "{shares:?}");
        assert!(near(shares[0].busy, 0.2) && near(shares[1].busy, 0.6), "{shares:?}");
        // Nothing has been decoded for a minute.
        for second in 0..60 {
            statistics.read(start + Duration::from_secs(30 + second));
        }
        let shares = statistics.shares(start + Duration::from_secs(90));
        assert!(shares[1].busy == 0.0 && shares[1].of_step > 0.5, "{shares:?}");
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

//! What the repetitions of a test come to, with the stages' part in them.

use std::time::Duration;

use serde::Serialize;

use super::figures::{Figures, Quantiles, median};
use super::repetition::{BenchError, Repetition};
use super::test::{Test, TestKind};
use crate::status::ClusterStatus;

/// A test's results over all repetitions. Names are llama-bench's where it has them.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// The test in llama-bench's words, such as `pp512`.
    pub test: String,
    /// Streams at the same time.
    pub streams: u32,
    /// Tokens of a prompt that is timed; 0 where decoding is.
    pub n_prompt: u32,
    /// Tokens decoded by each stream; 0 where a prompt is timed.
    pub n_gen: u32,
    /// Tokens of the prompt before those that are decoded.
    pub n_depth: u32,
    /// Median speed of all streams together, in tokens per second.
    pub median_ts: f64,
    /// Least speed.
    pub least_ts: f64,
    /// Largest speed.
    pub largest_ts: f64,
    /// Speed of each repetition.
    pub samples_ts: Vec<f64>,
    /// From asking to the first token, in milliseconds, over all streams.
    pub ttft_ms: Option<Quantiles>,
    /// Between two arrivals of a stream, in milliseconds, over all streams.
    pub itl_ms: Option<Quantiles>,
    /// The longest time between two arrivals of a stream, in milliseconds.
    pub longest_gap_ms: Option<f64>,
    /// Share of the steps' time, from sending to the result, that no stage accounts for: links and coordinator.
    pub wire_share: f64,
    /// Each stage's part.
    pub stages: Vec<StageShare>,
    /// Tokens of prompts that the cluster had in its cache: what was asked for was not computed.
    pub cached_tokens: u64,
    /// Tokens that were guessed and computed ahead.
    pub draft_tokens: u64,
    /// Those of them that became part of an answer.
    pub draft_tokens_accepted: u64,
    /// Whether other requests ran meanwhile.
    pub disturbed: bool,
    #[serde(skip)]
    pub(super) seen: Seen,
}

/// Where a stage's time went while a test ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageShare {
    /// Place in the pipeline, from 0.
    pub stage: u32,
    /// The worker's name.
    pub worker: String,
    /// Share of the time that it computed.
    pub busy: f64,
    /// Share of the time that it computed decode steps.
    pub decode_busy: f64,
    /// Share of the time that it computed prefill steps.
    pub prefill_busy: f64,
    /// Share of the time that it did not compute.
    pub idle: f64,
    /// Share of the time that it was sending, which goes on beside computing.
    pub wire: f64,
    /// Mean time of a decode step's computation, in microseconds; 0 where there was none.
    pub decode_step_us: f64,
    /// Mean time of a prefill step's computation, in microseconds; 0 where there was none.
    pub prefill_step_us: f64,
    /// Mean time that a step waited before it was computed, in microseconds.
    pub queued_us: f64,
}

/// Sums over the repetitions.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    wall: Duration,
    took_us: u64,
    wire_us: u64,
    ttft_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    stages: Vec<StageSeen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct StageSeen {
    decode_steps: u64,
    decode_us: u64,
    prefill_steps: u64,
    prefill_us: u64,
    queued_us: u64,
    sent_us: u64,
}

impl Record {
    /// An empty record of `test`.
    pub fn new(test: &Test) -> Record {
        let (n_prompt, n_gen, n_depth) = match test.kind {
            TestKind::Prompt { tokens } => (tokens, 0, 0),
            TestKind::Decode { tokens, depth } => (0, tokens, depth),
        };
        Record {
            test: test.to_string(),
            streams: test.streams,
            n_prompt,
            n_gen,
            n_depth,
            median_ts: 0.0,
            least_ts: 0.0,
            largest_ts: 0.0,
            samples_ts: Vec::new(),
            ttft_ms: None,
            itl_ms: None,
            longest_gap_ms: None,
            wire_share: 0.0,
            stages: Vec::new(),
            cached_tokens: 0,
            draft_tokens: 0,
            draft_tokens_accepted: 0,
            disturbed: false,
            seen: Seen::default(),
        }
    }

    /// Takes in a repetition, with the cluster's state before and after it.
    ///
    /// # Errors
    /// Where it is no measurement of `test`, or the plan is not the same before and after.
    pub fn add(
        &mut self,
        test: &Test,
        repetition: &Repetition,
        before: &ClusterStatus,
        after: &ClusterStatus,
    ) -> Result<(), BenchError> {
        if (before.incarnation, before.epoch) != (after.incarnation, after.epoch) {
            return Err(BenchError::PlanChanged { before: before.epoch, after: after.epoch });
        }
        let figures = Figures::of(test, repetition)?;
        self.samples_ts.push(figures.tokens_per_s);
        self.median_ts = median(&self.samples_ts);
        self.least_ts = self.samples_ts.iter().copied().fold(f64::INFINITY, f64::min);
        self.largest_ts = self.samples_ts.iter().copied().fold(0.0, f64::max);
        self.seen.ttft_ms.extend(figures.ttft_ms);
        self.seen.gaps_ms.extend(figures.gaps_ms);
        self.ttft_ms = Quantiles::of(&self.seen.ttft_ms);
        self.itl_ms = Quantiles::of(&self.seen.gaps_ms);
        self.longest_gap_ms = self.seen.gaps_ms.iter().copied().reduce(f64::max);
        self.cached_tokens += repetition.streams.iter().map(|stream| stream.cached_tokens).sum::<u64>();
        let (was, is) = (&before.requests, &after.requests);
        self.draft_tokens += is.draft_tokens.saturating_sub(was.draft_tokens);
        self.draft_tokens_accepted += is.draft_tokens_accepted.saturating_sub(was.draft_tokens_accepted);
        let requests = |status: &ClusterStatus| {
            let counts = &status.requests;
            counts.finished + counts.cancelled + counts.failed
        };
        self.disturbed |= requests(after).wrapping_sub(requests(before)) != u64::from(test.streams)
            || after.requests.running > 0;
        self.seen.add(repetition.took, before, after);
        self.wire_share = share(self.seen.wire_us, self.seen.took_us as f64);
        self.stages = self.seen.shares(after);
        Ok(())
    }
}

impl Seen {
    fn add(&mut self, wall: Duration, before: &ClusterStatus, after: &ClusterStatus) {
        self.wall += wall;
        self.took_us += after.steps.took_us.saturating_sub(before.steps.took_us);
        self.wire_us += after.steps.wire_us.saturating_sub(before.steps.wire_us);
        self.stages.resize_with(after.stages.len(), StageSeen::default);
        for (seen, (before, after)) in self.stages.iter_mut().zip(before.stages.iter().zip(&after.stages)) {
            let (before, after) = (&before.totals, &after.totals);
            seen.decode_steps += after.decode_steps.saturating_sub(before.decode_steps);
            seen.decode_us += after.decode_us.saturating_sub(before.decode_us);
            seen.prefill_steps += after.prefill_steps.saturating_sub(before.prefill_steps);
            seen.prefill_us += after.prefill_us.saturating_sub(before.prefill_us);
            seen.queued_us += after.queued_us.saturating_sub(before.queued_us);
            seen.sent_us += after.sent_us.saturating_sub(before.sent_us);
        }
    }

    fn shares(&self, status: &ClusterStatus) -> Vec<StageShare> {
        let wall_us = self.wall.as_secs_f64() * 1e6;
        let stages = status.stages.iter().zip(&self.stages);
        let shares = stages.map(|(stage, seen)| {
            let busy = share(seen.decode_us + seen.prefill_us, wall_us);
            StageShare {
                stage: stage.stage,
                worker: stage.name.clone(),
                busy,
                decode_busy: share(seen.decode_us, wall_us),
                prefill_busy: share(seen.prefill_us, wall_us),
                idle: 1.0 - busy,
                wire: share(seen.sent_us, wall_us),
                decode_step_us: share(seen.decode_us, seen.decode_steps as f64),
                prefill_step_us: share(seen.prefill_us, seen.prefill_steps as f64),
                queued_us: share(seen.queued_us, (seen.decode_steps + seen.prefill_steps) as f64),
            }
        });
        shares.collect()
    }
}

/// `part` of `whole`; 0 where there is no whole.
fn share(part: u64, whole: f64) -> f64 {
    if whole > 0.0 { part as f64 / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Stream;
    use crate::status::{StageStatus, StageTotals, StepStatus};

    fn status(epoch: u64, finished: u64, decode_us: u64) -> ClusterStatus {
        let mut status = ClusterStatus { epoch, ..ClusterStatus::default() };
        status.requests.finished = finished;
        status.requests.draft_tokens = decode_us / 10_000;
        status.requests.draft_tokens_accepted = decode_us / 20_000;
        status.steps =
            StepStatus { took_us: decode_us * 2, wire_us: decode_us / 10, ..StepStatus::default() };
        status.stages = (0..2)
            .map(|stage| StageStatus {
                stage,
                name: format!("w{stage}"),
                totals: StageTotals {
                    decode_steps: decode_us / 1000,
                    decode_us,
                    sent_us: u64::from(stage) * decode_us / 100,
                    ..StageTotals::default()
                },
                ..StageStatus::default()
            })
            .collect();
        status
    }

    #[test]
    fn shares_are_of_the_time_between_two_readings() {
        let test = Test { kind: TestKind::Decode { tokens: 2, depth: 1 }, streams: 1 };
        let at = |ms| Duration::from_millis(ms);
        let stream = Stream { arrivals: vec![(at(10), 1), (at(20), 1)], cached_tokens: 0 };
        let repetition = Repetition { took: at(1000), streams: vec![stream] };
        let mut record = Record::new(&test);
        record.add(&test, &repetition, &status(1, 5, 100_000), &status(1, 6, 500_000)).unwrap();
        record.add(&test, &repetition, &status(1, 6, 500_000), &status(1, 7, 1_300_000)).unwrap();
        assert_eq!((record.samples_ts.len(), record.disturbed), (2, false));
        assert_eq!((record.draft_tokens, record.draft_tokens_accepted), (120, 60));
        let last = &record.stages[1];
        assert_eq!((last.stage, last.worker.as_str()), (1, "w1"));
        for (found, expected) in [
            (last.busy, 0.6),
            (last.decode_busy, 0.6),
            (last.prefill_busy, 0.0),
            (last.idle, 0.4),
            (last.wire, 0.006),
            (last.decode_step_us, 1000.0),
            (record.wire_share, 0.05),
        ] {
            assert!((found - expected).abs() < 1e-9, "{found} instead of {expected} in {record:?}");
        }

        record.add(&test, &repetition, &status(1, 7, 0), &status(1, 9, 0)).unwrap();
        assert!(record.disturbed, "two requests ended where one was made");
        let changed = record.add(&test, &repetition, &status(1, 9, 0), &status(2, 10, 0));
        assert!(matches!(changed, Err(BenchError::PlanChanged { before: 1, after: 2 })));
    }
}

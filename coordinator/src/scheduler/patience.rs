//! How long a client that was turned away should wait before it asks again: until the first of those that wait is likely
//! to be admitted, which frees a place in the queue.

use std::time::{Duration, Instant};

use brigade_proto::step::StepKind;

use super::Scheduler;

/// The longest that a client is sent away for: estimates beyond it are worth nothing.
const LONGEST: Duration = Duration::from_secs(60);
/// What the newest interval counts in the mean.
const NEWEST: f64 = 1.0 / 8.0;

/// The time between the ends of two generations, while others wait for their cache.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Endings {
    last: Option<Instant>,
    pub(super) mean_s: Option<f64>,
}

impl Endings {
    /// A generation has ended, while others waited or while none did. Without any, the pipeline may have had little to
    /// do, so that the time since then says nothing.
    pub(super) fn observe(&mut self, others_wait: bool, now: Instant) {
        let before = std::mem::replace(&mut self.last, others_wait.then_some(now));
        if let Some(before) = before {
            let interval_s = now.saturating_duration_since(before).as_secs_f64();
            let mean_s = self.mean_s.map_or(interval_s, |mean_s| mean_s + (interval_s - mean_s) * NEWEST);
            self.mean_s = Some(mean_s);
        }
    }
}

impl Scheduler {
    /// How long until the first of the waiting generations is likely to be admitted: the mean time between two ends, as
    /// long as it was lately, or the time until some generation ends at the latest, at the speed of the moment.
    pub(super) fn likely_wait(&self) -> Duration {
        let live = || self.sequences.values().filter(|sequence| !sequence.ended);
        let decoding = live().filter(|sequence| sequence.decodes()).count();
        let cycle_s = self.groups.cycle_s(&self.times, decoding.max(1));
        let step_rows = self.pipeline.as_ref().map_or(1, |pipeline| pipeline.room.step_rows);
        let chunk_s = self.times.sum_and_slowest(StepKind::Prefill, f64::from(step_rows)).1;
        let prompts_s = live().map(|sequence| sequence.prefill_left()).sum::<usize>() as f64
            * (chunk_s / f64::from(step_rows));
        let latest_s = live().map(|sequence| {
            let prompt_s = if sequence.decodes() { 0.0 } else { prompts_s };
            prompt_s + sequence.tokens_left() as f64 * cycle_s
        });
        let soonest_s = latest_s.chain(self.endings.mean_s).fold(f64::INFINITY, f64::min);
        Duration::try_from_secs_f64(soonest_s).map_or(LONGEST, |wait| wait.min(LONGEST))
    }
}

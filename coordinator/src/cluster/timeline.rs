//! The newest steps that have come home, stage by stage.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use brigade_proto::step::StepKind;

use crate::scheduler::Measured;
use crate::status::{StageTrace, StepTrace};

/// Steps kept: some seconds of decoding.
const STEPS: usize = 512;

/// A ring of steps. Clones share it: the core writes it, and whoever asks reads it. Either holds it for as long as it
/// takes to move a step.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    start: Instant,
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Steps that ever came home. They are numbered by that, since they overtake each other: whoever has seen one has then
    /// seen all before it.
    count: u64,
    steps: VecDeque<Home>,
}

/// A step that has come home, as it came.
#[derive(Clone, Debug)]
struct Home {
    number: u64,
    sent_ms: f64,
    took_us: u32,
    step: Measured,
}

impl Timeline {
    /// An empty ring, whose times count from `start`.
    pub(super) fn new(start: Instant) -> Timeline {
        Timeline { start, ring: Arc::default() }
    }

    /// Takes in a step that came home just now.
    pub(super) fn add(&self, step: Measured, now: Instant) {
        // Steps that only release are no work.
        if step.rows == 0 {
            return;
        }
        let home_ms = now.saturating_duration_since(self.start).as_secs_f64() * 1e3;
        // A step that waited on the first stage for another one's tokens counts as sent when those had come, but its stage
        // has it for longer.
        let took_us = u32::try_from(step.took.as_micros()).unwrap_or(u32::MAX).max(step.on_stages_us());
        let sent_ms = (home_ms - f64::from(took_us) * 1e-3).max(0.0);
        let mut ring = self.lock();
        ring.count += 1;
        let number = ring.count;
        if ring.steps.len() == STEPS {
            ring.steps.pop_front();
        }
        ring.steps.push_back(Home { number, sent_ms, took_us, step });
    }

    /// The steps with a larger number than `after`, in the order in which they came home.
    pub(super) fn after(&self, after: u64) -> Vec<StepTrace> {
        let newer: Vec<Home> = self.lock().steps.iter().filter(|home| home.number > after).cloned().collect();
        newer.iter().map(trace).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Nothing that holds it can panic halfway through a change.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trace(Home { number, sent_ms, took_us, step }: &Home) -> StepTrace {
    // To the first stage, between any two, and home.
    let hops = step.timings.len() as u32 + 1;
    let hop_us = took_us.saturating_sub(step.on_stages_us()) / hops;
    let mut came_us = hop_us;
    let stages = step.timings.iter().map(|timing| {
        let stage = StageTrace { came_us, queued_us: timing.queued_us, computed_us: timing.computed_us };
        let spent = timing.queued_us.saturating_add(timing.computed_us).saturating_add(hop_us);
        came_us = came_us.saturating_add(spent);
        stage
    });
    StepTrace {
        step: *number,
        kind: match step.kind {
            StepKind::Prefill => "prefill".into(),
            StepKind::Decode => "decode".into(),
        },
        rows: step.rows,
        sent_ms: *sent_ms,
        took_us: *took_us,
        stages: stages.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use brigade_proto::step::StageTiming;

    use super::*;

    fn step(rows: u32) -> Measured {
        let timing = |stage| StageTiming { stage, queued_us: 10, computed_us: 90, ..StageTiming::default() };
        let timings = vec![timing(0), timing(1)];
        let took = Duration::from_micros(500);
        Measured { kind: StepKind::Decode, rows, took, timings, sequences: Vec::new(), context: 0 }
    }

    #[test]
    fn stages_come_one_after_the_other_with_the_links_between_them() {
        let start = Instant::now();
        let timeline = Timeline::new(start);
        timeline.add(step(2), start + Duration::from_millis(3));
        // One that only releases is no work.
        timeline.add(step(0), start + Duration::from_millis(4));
        let [trace] = &timeline.after(0)[..] else { panic!("one step") };
        let came: Vec<u32> = trace.stages.iter().map(|stage| stage.came_us).collect();
        assert_eq!(came, [100, 300]);
        assert_eq!((trace.step, trace.kind.as_str(), trace.rows, trace.took_us), (1, "decode", 2, 500));
        assert!((trace.sent_ms - 2.5).abs() < 1e-9, "{}", trace.sent_ms);
        // One that waited on the first stage for another one's tokens, which came home 50 us ago.
        let waited = Measured { took: Duration::from_micros(50), ..step(1) };
        timeline.add(waited, start + Duration::from_millis(5));
        let [trace] = &timeline.after(1)[..] else { panic!("one step") };
        let came: Vec<u32> = trace.stages.iter().map(|stage| stage.came_us).collect();
        assert_eq!((came, trace.took_us), (vec![0, 100], 200));
        assert!((trace.sent_ms - 4.8).abs() < 1e-9, "{}", trace.sent_ms);
    }

    #[test]
    fn the_newest_are_kept_and_those_known_are_not_told_again() {
        let start = Instant::now();
        let timeline = Timeline::new(start);
        (0..1000).for_each(|_| timeline.add(step(1), start));
        assert_eq!(timeline.after(0).len(), STEPS);
        let newest: Vec<u64> = timeline.after(997).iter().map(|trace| trace.step).collect();
        assert_eq!(newest, [998, 999, 1000]);
    }
}

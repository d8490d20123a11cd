//! The newest step on its way through the stages, slowed down so that it can be watched.

use std::time::Duration;

use crate::status::StepTrace;

/// How long a step's way is shown: long enough to see in which stage it spends its time.
const SHOWN: Duration = Duration::from_secs(1);
/// How long a step that took longer than that is shown.
const LONGEST: Duration = Duration::from_secs(3);

/// A step that is shown on its way.
#[derive(Clone, Debug)]
pub struct Replay {
    trace: StepTrace,
    from: Duration,
}

/// Where a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the link to this stage; for one past the last stage, on the way home.
    Link(usize),
    /// Waiting at this stage.
    Queued(usize),
    /// Being computed by this stage.
    Computing(usize),
}

impl Replay {
    /// Shows `trace` from `now` on.
    pub fn new(trace: StepTrace, now: Duration) -> Replay {
        Replay { trace, from: now }
    }

    /// The step.
    pub fn trace(&self) -> &StepTrace {
        &self.trace
    }

    /// Whether it has come home.
    pub fn has_ended(&self, now: Duration) -> bool {
        now >= self.from + self.length()
    }

    /// Where it is; `None` once it has come home.
    pub fn place(&self, now: Duration) -> Option<Place> {
        if self.has_ended(now) {
            return None;
        }
        let share = now.saturating_sub(self.from).as_secs_f64() / self.length().as_secs_f64();
        let at_us = share * f64::from(self.trace.took_us);
        for (number, stage) in self.trace.stages.iter().enumerate() {
            let came = f64::from(stage.came_us);
            let begun = came + f64::from(stage.queued_us);
            if at_us < came {
                return Some(Place::Link(number));
            }
            if at_us < begun {
                return Some(Place::Queued(number));
            }
            if at_us < begun + f64::from(stage.computed_us) {
                return Some(Place::Computing(number));
            }
        }
        Some(Place::Link(self.trace.stages.len()))
    }

    fn length(&self) -> Duration {
        Duration::from_micros(self.trace.took_us.into()).clamp(SHOWN, LONGEST)
    }
}

//! Whether answers are computed on this machine.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::telemetry::EngineCounters;

/// For how long after its last step an engine counts as busy: streams have several steps a second.
const AFTER: Duration = Duration::from_secs(1);

/// Looks at the engine's counters.
#[derive(Clone, Debug)]
pub struct Activity {
    counters: Arc<EngineCounters>,
    /// Steps that were seen, and when there was a new one.
    seen: Arc<Mutex<(u64, Option<Instant>)>>,
}

impl Activity {
    /// That of the engine with these counters.
    pub fn of(counters: Arc<EngineCounters>) -> Activity {
        Activity { counters, seen: Arc::default() }
    }

    /// Whether a step is computed, or was a moment ago.
    pub fn is_busy(&self) -> bool {
        let steps = self.counters.steps.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != steps {
            *seen = (steps, Some(Instant::now()));
        }
        seen.1.is_some_and(|at| at.elapsed() < AFTER)
    }
}

//! How long it takes from the loss of a plan until what ran goes on, and where that time goes.

use std::time::{Duration, Instant};

use crate::metrics::{Metrics, RecoveryPart};
use crate::status::RecoveryStatus;

/// A recovery under way, and the last one.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    current: Option<Current>,
    status: RecoveryStatus,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    /// When the lost pipeline last gave a sign of life.
    silent: Instant,
    lost: Instant,
    loading: Option<Instant>,
    serving: Option<Instant>,
}

impl Recoveries {
    /// A pipeline is lost, of which nothing has been heard since `silent`.
    pub(super) fn lost(&mut self, silent: Instant, now: Instant) {
        self.current = Some(Current { silent, lost: now, loading: None, serving: None });
    }

    /// Stages of the next plan are being loaded. Where that comes to nothing, it counts as planning.
    pub(super) fn loading(&mut self, now: Instant) {
        if let Some(current) = &mut self.current {
            current.loading = Some(now);
        }
    }

    /// The next plan serves.
    pub(super) fn serving(&mut self, now: Instant) {
        if let Some(current) = &mut self.current {
            current.serving = Some(now);
        }
    }

    /// What ran is where it was.
    pub(super) fn caught_up(&mut self, now: Instant, metrics: &Metrics) {
        let Some(Current { silent, lost, loading: Some(loading), serving: Some(serving) }) = self.current
        else {
            return;
        };
        self.current = None;
        let between = |from: Instant, to: Instant| to.saturating_duration_since(from);
        let parts = [
            (RecoveryPart::Detect, between(silent, lost)),
            (RecoveryPart::Plan, between(lost, loading)),
            (RecoveryPart::Load, between(loading, serving)),
            (RecoveryPart::Replay, between(serving, now)),
        ];
        for (part, took) in parts {
            metrics.observe_recovery(part, took);
        }
        let [detect_ms, plan_ms, load_ms, replay_ms] = parts.map(|(_, took)| milliseconds(took));
        let count = self.status.count + 1;
        self.status = RecoveryStatus { count, detect_ms, plan_ms, load_ms, replay_ms };
        tracing::info!(
            "recovered {} ms after the last sign of life: detected within {detect_ms} ms, planned in {plan_ms} ms, \
             loaded and connected in {load_ms} ms, replayed in {replay_ms} ms",
            milliseconds(between(silent, now)),
        );
    }

    /// The last recovery, and how many there were.
    pub(super) fn status(&self) -> RecoveryStatus {
        self.status
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

//! How long it takes from the loss of a plan until what ran goes on, and where that time goes.

use std::time::{Duration, Instant};

use crate::metrics::{Metrics, RecoveryPart};
use crate::status::{FailureStatus, MoveStatus, RecoveryStatus};

/// A recovery under way, and the last one.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    current: Option<Current>,
    status: RecoveryStatus,
    moves: MoveStatus,
    failure: FailureStatus,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    /// Whether the plan was given up by choice.
    by_choice: bool,
    /// When the lost pipeline last gave a sign of life.
    silent: Instant,
    lost: Instant,
    loading: Option<Instant>,
    serving: Option<Instant>,
}

impl Recoveries {
    /// A plan has failed.
    pub(super) fn failed(&mut self, reason: &str) {
        self.failure = FailureStatus { count: self.failure.count + 1, reason: reason.to_owned() };
    }

    /// A pipeline is lost, of which nothing has been heard since `silent`.
    pub(super) fn lost(&mut self, silent: Instant, now: Instant) {
        self.current = Some(Current { by_choice: false, silent, lost: now, loading: None, serving: None });
    }

    /// Another plan takes over by choice.
    pub(super) fn moving(&mut self, now: Instant) {
        self.current =
            Some(Current { by_choice: true, silent: now, lost: now, loading: None, serving: None });
    }

    /// The next plan has failed before it served: if it was to take over by choice, that has become a recovery.
    pub(super) fn failed_again(&mut self) {
        if let Some(current) = &mut self.current {
            current.by_choice = false;
        }
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
        let Some(Current { by_choice, silent, lost, loading: Some(loading), serving: Some(serving) }) =
            self.current
        else {
            return;
        };
        self.current = None;
        if by_choice {
            let since = |from: Instant, to: Instant| milliseconds(to.saturating_duration_since(from));
            let (load_ms, replay_ms) = (since(lost, serving), since(serving, now));
            self.moves = MoveStatus { count: self.moves.count + 1, load_ms, replay_ms };
            metrics.plan_moves.inc();
            return tracing::info!(
                "the plan has changed: loaded and connected in {load_ms} ms, replayed in {replay_ms} ms"
            );
        }
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
        metrics.recoveries.inc();
        let [detect_ms, plan_ms, load_ms, replay_ms] = parts.map(|(_, took)| milliseconds(took));
        let count = self.status.count + 1;
        self.status = RecoveryStatus { count, detect_ms, plan_ms, load_ms, replay_ms };
        tracing::info!(
            "recovered {} ms after the last sign of life: detected within {detect_ms} ms, planned in {plan_ms} ms, \
             loaded and connected in {load_ms} ms, replayed in {replay_ms} ms",
            milliseconds(between(silent, now)),
        );
    }

    /// The last change of plan by choice, and how many there were.
    pub(super) fn moves(&self) -> MoveStatus {
        self.moves
    }

    /// The last plan that failed, and how many did.
    pub(super) fn failure(&self) -> FailureStatus {
        self.failure.clone()
    }

    /// The last recovery, and how many there were.
    pub(super) fn status(&self) -> RecoveryStatus {
        self.status
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

//! A condition that is told only once it has held a little, and until it has been gone a little: no flicker.

use std::time::{Duration, Instant};

use crate::status::Health;

/// What is seen of a condition at a moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sign {
    /// It is there; what would be told of it.
    Bad(Health),
    /// Between: what is told stays.
    Unclear,
    /// It is not there.
    Good,
}

/// For how long a condition must be there before it is told, and be gone before it is told no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) rise: Duration,
    pub(super) fall: Duration,
}

/// One condition.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    told: Option<Health>,
    /// Since when what is seen is the opposite of what is told.
    turning: Option<Instant>,
}

impl Held {
    /// Takes in what is seen, and says what is to be told.
    pub(super) fn see(&mut self, sign: Sign, patience: Patience, now: Instant) -> Option<Health> {
        let turned = |turning: &mut Option<Instant>, limit: Duration| {
            let since = *turning.get_or_insert(now);
            let turned = now.saturating_duration_since(since) >= limit;
            if turned {
                *turning = None;
            }
            turned
        };
        match (sign, &self.told) {
            (Sign::Bad(health), Some(_)) => {
                self.told = Some(health);
                self.turning = None;
            }
            (Sign::Bad(health), None) => {
                if turned(&mut self.turning, patience.rise) {
                    self.told = Some(health);
                }
            }
            (Sign::Good, Some(_)) => {
                if turned(&mut self.turning, patience.fall) {
                    self.told = None;
                }
            }
            (Sign::Good, None) | (Sign::Unclear, _) => self.turning = None,
        }
        self.told.clone()
    }
}

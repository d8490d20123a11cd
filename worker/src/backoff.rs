//! How long to wait before trying again.

use std::time::Duration;

/// The first wait.
pub const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The longest wait: a coordinator that is back serves again within seconds, however long it was gone.
pub const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Waits that double from [`FIRST_WAIT`] to [`LONGEST_WAIT`], spread by chance so that workers which lost the same
/// coordinator do not come back at the same instant.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: between three quarters and the whole of its step, as `random` decides.
    pub fn next(&mut self, random: u32) -> Duration {
        let step = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(0.75 + 0.25 * f64::from(random) / f64::from(u32::MAX))
    }

    /// Starts anew, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..7).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 2000, 2000, 2000]);
        backoff.reset();
        assert_eq!(backoff.next(0).as_millis(), 150);
        for _ in 0..100 {
            assert!(backoff.next(u32::MAX) <= LONGEST_WAIT);
        }
    }
}

//! What happened in the last seconds: sums that are read now and then, and values with their times.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Readings are kept at least so far apart: a rate over seconds needs no more of them.
const APART: Duration = Duration::from_millis(200);
/// Most readings kept: 12 s of them, which is longer than anything asks for.
const READINGS: usize = 60;
/// Most values kept: enough for a steady median, and few enough to sort four times a second.
const VALUES: usize = 256;

/// Readings of sums that only grow, so that two of them tell what lies between.
#[derive(Clone, Debug)]
pub(crate) struct Readings<T> {
    readings: VecDeque<(Instant, T)>,
}

impl<T> Default for Readings<T> {
    fn default() -> Readings<T> {
        Readings { readings: VecDeque::new() }
    }
}

impl<T: Clone> Readings<T> {
    /// Takes a reading in; one that follows too soon on another is left out.
    pub(crate) fn read(&mut self, value: T, now: Instant) {
        if self.readings.back().is_some_and(|(at, _)| now < *at + APART) {
            return;
        }
        if self.readings.len() == READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back((now, value));
    }

    /// The reading that is `span` old, with its exact age; a younger one where there is none so old.
    pub(crate) fn before(&self, span: Duration, now: Instant) -> Option<(Duration, &T)> {
        let age = |at: Instant| now.saturating_duration_since(at);
        let old = self.readings.iter().rev().find(|(at, _)| age(*at) >= span);
        let (at, value) = old.or_else(|| self.readings.front())?;
        Some((age(*at), value)).filter(|(age, _)| !age.is_zero())
    }

    /// All readings, from the newest to the oldest, with their ages.
    pub(crate) fn back_from(&self, now: Instant) -> impl Iterator<Item = (Duration, &T)> {
        self.readings.iter().rev().map(move |(at, value)| (now.saturating_duration_since(*at), value))
    }
}

/// The newest values of something, each with its time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lately {
    values: VecDeque<(Instant, f64)>,
}

impl Lately {
    pub(crate) fn push(&mut self, value: f64, now: Instant) {
        if self.values.len() == VALUES {
            self.values.pop_front();
        }
        self.values.push_back((now, value));
    }

    /// The median of those that are not older than `span`.
    pub(crate) fn median(&self, span: Duration, now: Instant) -> Option<f64> {
        let young = |(at, _): &&(Instant, f64)| now.saturating_duration_since(*at) <= span;
        let mut values: Vec<f64> =
            self.values.iter().rev().take_while(young).map(|(_, value)| *value).collect();
        if values.is_empty() {
            return None;
        }
        let middle = values.len() / 2;
        Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_tell_what_lies_between() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut readings = Readings::default();
        assert!(readings.before(Duration::from_secs(1), at(0)).is_none());
        for tenth in 0..200_u64 {
            readings.read(tenth, at(tenth * 100));
        }
        let now = at(20_000);
        // Every second one is kept.
        assert_eq!(readings.before(Duration::from_secs(5), now), Some((Duration::from_millis(5_000), &150)));
        let (age, _) = readings.before(Duration::from_secs(600), now).unwrap();
        assert!(age >= Duration::from_secs(10) && age < Duration::from_secs(13), "{age:?}");
    }

    #[test]
    fn old_values_do_not_count() {
        let start = Instant::now();
        let mut values = Lately::default();
        assert_eq!(values.median(Duration::from_secs(60), start), None);
        for second in 0..10 {
            values.push(f64::from(second), start + Duration::from_secs(second as u64));
        }
        let now = start + Duration::from_secs(9);
        assert_eq!(values.median(Duration::from_secs(60), now), Some(5.0));
        assert_eq!(values.median(Duration::from_secs(2), now), Some(8.0));
        assert_eq!(values.median(Duration::from_secs(60), now + Duration::from_secs(100)), None);
    }
}

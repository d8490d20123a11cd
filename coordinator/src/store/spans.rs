//! Which bytes of a file are there.

use serde::{Deserialize, Serialize};

/// Half-open ranges of bytes, in order, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spans(Vec<(u64, u64)>);

impl Spans {
    /// Everything from 0 to `end`.
    pub fn whole(end: u64) -> Spans {
        let mut spans = Spans::default();
        spans.add(0, end);
        spans
    }

    /// Adds the bytes from `start` to `end`.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        self.0.retain(|span| {
            let apart = span.1 < start || end < span.0;
            if !apart {
                start = start.min(span.0);
                end = end.max(span.1);
            }
            apart
        });
        let at = self.0.partition_point(|span| span.0 < start);
        self.0.insert(at, (start, end));
    }

    /// How many bytes are there.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// What is missing of a file of `size` bytes, in order, in ranges of at most `most` bytes.
    pub fn missing(&self, size: u64, most: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut at = 0;
        for (start, end) in self.0.iter().copied().chain([(size, size)]) {
            while at < start.min(size) {
                let next = start.min(size).min(at.saturating_add(most.max(1)));
                missing.push((at, next));
                at = next;
            }
            at = at.max(end);
        }
        missing
    }

    /// The first missing range of a file of `size` bytes, of at most `most` bytes.
    pub fn missing_first(&self, size: u64, most: u64) -> Option<(u64, u64)> {
        let start = self.0.first().filter(|span| span.0 == 0).map_or(0, |span| span.1);
        let next = self.0.iter().map(|span| span.0).find(|next| *next > start).unwrap_or(size);
        (start < size).then(|| (start, next.min(size).min(start.saturating_add(most))))
    }

    /// Whether they are what they should be: in order, apart, and within `size` bytes. What was read from a file may not be.
    pub fn are_sound(&self, size: Option<u64>) -> bool {
        let in_order = self.0.windows(2).all(|pair| pair[0].1 < pair[1].0);
        let not_empty = self.0.iter().all(|(start, end)| start < end);
        let within = self.0.last().is_none_or(|(_, end)| size.is_none_or(|size| *end <= size));
        in_order && not_empty && within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut spans = Spans::default();
        for (start, end) in [(10, 20), (30, 40), (0, 5), (20, 25), (39, 50), (7, 7)] {
            spans.add(start, end);
            assert!(spans.are_sound(Some(50)), "{spans:?}");
        }
        assert_eq!(spans, Spans(vec![(0, 5), (10, 25), (30, 50)]));
        assert_eq!(spans.bytes(), 40);
        spans.add(4, 31);
        assert_eq!(spans, Spans::whole(50));
    }

    #[test]
    fn what_is_missing_is_the_rest() {
        let mut spans = Spans::default();
        assert_eq!(spans.missing(10, 4), [(0, 4), (4, 8), (8, 10)]);
        spans.add(3, 6);
        assert_eq!(spans.missing(10, 100), [(0, 3), (6, 10)]);
        assert_eq!(spans.missing_first(10, 100), Some((0, 3)));
        spans.add(0, 3);
        assert_eq!(spans.missing_first(u64::MAX, 100), Some((6, 106)));
        assert_eq!(spans.missing_first(10, 2), Some((6, 8)));
        assert_eq!(Spans::whole(10).missing_first(10, 2), None);
        assert_eq!(Spans::whole(10).missing(10, 4), []);
        assert_eq!(Spans::default().missing(0, 4), []);
        for cut in 0..=20 {
            let mut spans = Spans::whole(cut);
            for (start, end) in spans.missing(20, 3) {
                spans.add(start, end);
            }
            assert_eq!(spans, Spans::whole(20));
        }
    }

    #[test]
    fn damaged_ranges_are_noticed() {
        for text in ["[[5,3]]", "[[0,5],[5,9]]", "[[6,9],[0,2]]", "[[0,99]]", "[[4,4]]"] {
            let spans: Spans = serde_json::from_str(text).unwrap();
            assert!(!spans.are_sound(Some(50)), "{text}");
        }
    }
}

//! Another server as a side of a comparison: it takes its turn in every round, with the same load.

use std::collections::BTreeSet;

use super::against::{Measured, Other, OtherError, samples};
use super::{Figure, Side};
use crate::bench::Test;

/// Another server with what was measured of it so far.
#[derive(Debug)]
pub struct Opponent {
    other: Other,
    rounds: Vec<Measured>,
}

impl Opponent {
    /// One of which nothing was measured yet.
    pub fn new(other: Other) -> Opponent {
        Opponent { other, rounds: Vec::new() }
    }

    /// Where it is.
    pub(super) fn url(&self) -> &str {
        self.other.url()
    }

    /// Measures each of `tests` once.
    pub(super) async fn turn(&mut self, tests: &[Test]) -> Result<(), OtherError> {
        if self.rounds.is_empty() {
            self.other.warm_up(tests).await?;
        }
        self.rounds.push(self.other.measure(tests).await?);
        Ok(())
    }

    /// What it comes to, with what is to be known of it in `left_out`.
    pub(super) fn end(&self, left_out: &mut Vec<String>) -> Side {
        left_out.extend(self.other.notes());
        let notes: BTreeSet<&String> = self.rounds.iter().flat_map(|round| &round.notes).collect();
        left_out.extend(notes.into_iter().cloned());
        let figures = samples(&self.rounds).into_iter();
        self.other
            .side(figures.filter_map(|(quantity, samples)| Figure::of(quantity, samples, None)).collect())
    }
}

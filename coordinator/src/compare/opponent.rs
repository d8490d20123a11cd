//! Another server as a side of a comparison: it takes its turn in every round, with the same load.

use std::collections::{BTreeMap, BTreeSet};

use super::against::{Other, OtherError};
use super::{Figure, Quantity, Side, SideKind};
use crate::bench::Test;

/// Another server with what was measured of it so far.
#[derive(Debug)]
pub struct Opponent {
    other: Other,
    is_warm: bool,
    samples: BTreeMap<Quantity, Vec<f64>>,
    notes: BTreeSet<String>,
}

impl Opponent {
    /// One of which nothing was measured yet.
    pub fn new(other: Other) -> Opponent {
        let notes = other.notes().into_iter().collect();
        Opponent { other, is_warm: false, samples: BTreeMap::new(), notes }
    }

    /// Where it is.
    pub(super) fn url(&self) -> &str {
        self.other.url()
    }

    /// Measures each of `tests` once.
    pub(super) async fn turn(&mut self, tests: &[Test]) -> Result<(), OtherError> {
        if !self.is_warm {
            self.other.warm_up(tests).await?;
            self.is_warm = true;
        }
        let measured = self.other.measure(tests).await?;
        for (quantity, value) in measured.figures {
            self.samples.entry(quantity).or_default().push(value);
        }
        self.notes.extend(measured.notes);
        Ok(())
    }

    /// What it comes to, with what is to be known of it in `left_out`.
    pub(super) fn end(&self, left_out: &mut Vec<String>) -> Side {
        left_out.extend(self.notes.iter().cloned());
        let figures = self
            .samples
            .iter()
            .filter_map(|(quantity, samples)| Figure::of(*quantity, samples.clone(), None));
        Side {
            kind: SideKind::Other,
            name: format!("{} ({})", self.other.url(), self.other.model()),
            plan: None,
            figures: figures.collect(),
            shares: Vec::new(),
            resident: Vec::new(),
        }
    }
}

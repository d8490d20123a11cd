//! How often guesses are right, by how much they have to go by.
//!
//! The chance that the next token is the guessed one grows with the text in common before the guess (see `lookup`), and
//! with every token that was right there is one more of it. So a draft's chances follow from a table over that length.
//! Every token drawn teaches it something, also where no draft was sent, since the guess was there all the same: nothing
//! has to be tried out to learn that drafts would pay again.

use super::lookup::LONGEST_MATCH;

/// The longest match of each class but the last.
const CLASSES: [usize; 7] = [1, 2, 3, 5, 8, 12, 20];
/// Classes of lengths.
const COUNT: usize = CLASSES.len() + 1;
/// The chance of each class before anything was measured: cautious, since drafts that fail cost others time.
const PRIOR: [f64; COUNT] = [0.10, 0.25, 0.40, 0.50, 0.60, 0.70, 0.75, 0.80];
/// How many measurements of a sequence's own weigh as much as what is known from others.
const PRIOR_WEIGHT: f64 = 4.0;
/// By how much a measurement counts less with every one after it in its class.
const FADE: f64 = 1.0 - 1.0 / 64.0;

/// Measured chances.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acceptance {
    right: [f64; COUNT],
    all: [f64; COUNT],
}

fn class(matched: usize) -> usize {
    CLASSES.iter().position(|longest| matched <= *longest).unwrap_or(COUNT - 1)
}

impl Acceptance {
    /// Takes in whether a guess with a match of `matched` tokens was right.
    pub(super) fn observe(&mut self, matched: usize, right: bool) {
        let class = class(matched);
        self.all[class] = self.all[class] * FADE + 1.0;
        self.right[class] = self.right[class] * FADE + f64::from(u8::from(right));
    }

    /// Chances of a single class, starting from `prior`.
    fn rate(&self, class: usize, prior: f64) -> f64 {
        (self.right[class] + PRIOR_WEIGHT * prior) / (self.all[class] + PRIOR_WEIGHT)
    }

    /// The chance of every token of a guess with a match of `matched` tokens that it and all before it are right, for a
    /// sequence that has measured this itself, among those that have measured `others`.
    pub(super) fn chances(self, others: Acceptance, matched: usize) -> impl Iterator<Item = f64> {
        let mut chance = 1.0;
        (matched..).map(move |matched| {
            let class = class(matched.min(LONGEST_MATCH));
            chance *= self.rate(class, others.rate(class, PRIOR[class]));
            chance
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_follow_what_was_measured_and_fall_from_token_to_token() {
        let others = Acceptance::default();
        let mut own = Acceptance::default();
        let first = |own: &Acceptance, matched| own.chances(others, matched).next().unwrap();
        assert_eq!(first(&own, 1), PRIOR[0]);
        for _ in 0..200 {
            own.observe(2, true);
            own.observe(30, false);
        }
        assert!(first(&own, 2) > 0.9 && first(&own, 25) < 0.1 && first(&own, 1) == PRIOR[0]);
        let chances: Vec<f64> = own.chances(others, 2).take(10).collect();
        assert!(chances.windows(2).all(|pair| pair[1] < pair[0]), "{chances:?}");
        for _ in 0..200 {
            own.observe(2, false);
        }
        assert!(first(&own, 2) < 0.1, "what was long ago does not count");
    }

    #[test]
    fn what_others_have_measured_is_where_a_sequence_begins() {
        let (mut others, mut own) = (Acceptance::default(), Acceptance::default());
        for _ in 0..200 {
            others.observe(4, true);
        }
        let chance = |own: &Acceptance| own.chances(others, 4).next().unwrap();
        assert!(chance(&own) > 0.95);
        for _ in 0..20 {
            own.observe(4, false);
        }
        assert!(chance(&own) < 0.25, "{}", chance(&own));
    }
}

//! Which drafts a sequence is offered: what followed before (see `lookup`), or what the draft model says (see `drafter`).
//!
//! Of what is there, the likelier is sent. Where the draft model is about to say more, and waiting for it makes answers
//! faster, the sequence's next step is held back until it has, but never for long.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use brigade_proto::ids::SequenceId;

use super::Scheduler;
use super::acceptance::Acceptance;
use super::ahead::MOST_AHEAD;
use super::sequence::{Sequence, Source};
use super::speculation::{LEAST_CHANCE, MOST_DRAFTS, PROBE_CHANCE, PROBE_DRAFTS, Speculation};

/// How many times as long as expected drafts are waited for.
const PATIENCE: f64 = 3.0;
/// How much longer they are waited for in any case: times of a few steps vary.
const SLACK: Duration = Duration::from_millis(20);

/// How many tokens the first drafts of these chances bring.
fn worth(chances: &[f64]) -> f64 {
    chances.iter().take(MOST_DRAFTS).sum()
}

impl Scheduler {
    /// Offers a sequence drafts of what follows; their chances.
    pub(super) fn guess(&mut self, id: SequenceId) -> Vec<f64> {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return Vec::new();
        };
        let found = match self.speculation {
            Speculation::Off => Vec::new(),
            Speculation::Lookup => looked_up(sequence, self.acceptance),
        };
        let most = sequence.tokens_left().saturating_sub(1);
        let Some((chance, drafts)) = self.drafter.drafts(id) else {
            sequence.offer(Source::Lookup, Vec::new(), true);
            return found;
        };
        let likely = |count: usize| -> Vec<f64> {
            let chances = std::iter::successors(Some(chance), |before| Some(before * chance));
            chances.take(count.min(most)).take_while(|chance| *chance >= LEAST_CHANCE).collect()
        };
        let drafts = sequence.without_ends(drafts);
        let here = likely(drafts.len());
        // What is under way is gone on from by whoever guessed it.
        let goes_on = |tokens: &[u32]| sequence.goes_on(tokens);
        let by_model = match (goes_on(&drafts), goes_on(&sequence.guessed().tokens)) {
            (true, false) => true,
            (false, true) => false,
            _ => worth(&here) > worth(&found),
        };
        let lookup_is_better = worth(&found) >= worth(&likely(MOST_DRAFTS));
        let source = if by_model { Source::Model } else { Source::Lookup };
        sequence.offer(source, drafts, lookup_is_better);
        if by_model { here } else { found }
    }

    /// The chances of what a sequence is offered, and of what the draft model will say after that.
    pub(super) fn prospects(&self, id: SequenceId, chances: &[f64]) -> Vec<f64> {
        let drafting = self.sequences.get(&id).is_some_and(|sequence| sequence.source() == Source::Model);
        match self.drafter.drafts(id) {
            Some((chance, _)) if drafting => {
                let all = std::iter::successors(Some(chance), |before| Some(before * chance));
                all.take(MOST_AHEAD).take_while(|chance| *chance >= LEAST_CHANCE).collect()
            }
            _ => chances.to_vec(),
        }
    }

    /// Sequences with a token to send that wait for drafts of what follows it.
    pub(super) fn held_back(&mut self, now: Instant) -> BTreeSet<SequenceId> {
        if !self.drafter.can_be_waited_for() {
            return BTreeSet::new();
        }
        let ready: Vec<SequenceId> = self.ready.iter().copied().collect();
        let waits = |id: &SequenceId| match self.waits_for(*id) {
            Some((wanted, expected)) => {
                self.drafter.hold(*id, wanted, now + expected.mul_f64(PATIENCE) + SLACK, now)
            }
            None => {
                self.drafter.let_go(*id);
                false
            }
        };
        ready.into_iter().filter(waits).collect()
    }

    /// How many drafts of a sequence are worth waiting for, and how long that should take; `None` where it has them.
    fn waits_for(&mut self, id: SequenceId) -> Option<(usize, Duration)> {
        self.guess(id);
        let sequence = self.sequences.get(&id).filter(|sequence| sequence.wants_decode())?;
        let coming = self.drafter.coming(id).filter(|_| !sequence.guesses_better())?;
        let terms = self.draft_terms();
        let most = sequence.tokens_left().saturating_sub(1);
        let wanted = match self.drafter.is_tried() {
            true if self.probe_is_due() && coming.chance >= PROBE_CHANCE => PROBE_DRAFTS.min(most),
            true => 0,
            false => self.draft_depth(&terms, coming.chance, most, coming.here).drafts,
        };
        let missing = wanted.saturating_sub(coming.here);
        let expected_s = missing as f64 * terms.draft_s + terms.wire_s;
        (missing > 0).then(|| (wanted, Duration::from_secs_f64(expected_s)))
    }
}

/// The chances of what followed before.
fn looked_up(sequence: &mut Sequence, others: Acceptance) -> Vec<f64> {
    sequence.guess(MOST_AHEAD);
    let guess = sequence.guessed();
    let chances = sequence.acceptance.chances(others, guess.matched);
    let most = guess.tokens.len().min(sequence.tokens_left().saturating_sub(1));
    chances.take(most).take_while(|chance| *chance >= LEAST_CHANCE).collect()
}

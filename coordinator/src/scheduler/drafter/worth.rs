//! Whether a draft model pays.
//!
//! With a chance `p` that a draft is right where those before it were, a segment of `k` drafts brings
//! `1 + p + ... + p^k` tokens. It takes a cycle of steps with so many more rows (see `groups`) and, as far as drafts are
//! not there yet, the time that the draft model needs for them: it goes on drafting while the pipeline verifies, unless
//! both need the same worker. A model is tried first; where no `k` makes enough of a difference it rests, and is tried
//! again ever more seldom.

use std::time::{Duration, Instant};

use brigade_proto::step::StepKind;

use super::Drafter;
use crate::scheduler::Scheduler;
use crate::scheduler::speculation::{MOST_DRAFTS, WORTHWHILE};

/// The chance of a draft before anything was measured.
const PRIOR: f64 = 0.6;
/// How many measurements that weighs as much as.
const PRIOR_WEIGHT: f64 = 4.0;
/// By how much a measurement counts less with every one after it.
const FADE: f64 = 1.0 - 1.0 / 64.0;
/// By how much faster answers must become for a model that rests to be used again; more than for one that is in use, so
/// that it does not go to and fro.
const WORTH_BEGINNING: f64 = 1.08;
/// The first rest of a model that does not pay; each further one is twice as long.
const FIRST_REST: Duration = Duration::from_secs(5);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(320);
/// Drafts that a model is tried with.
const TRIAL: f64 = 12.0;
/// The chance of a draft of a good model: where not even this would pay, that says nothing of a model.
const GOOD: f64 = 0.95;
/// Least drafts that fit into the time that a stage is idle in a cycle, for the draft model to compute on the same worker
/// meanwhile: a step that comes while one is made waits for it.
const LEAST_FREE: f64 = 2.0;

/// How often drafts were right.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    right: f64,
    all: f64,
}

impl Rate {
    pub(super) fn observe(&mut self, right: bool) {
        self.all = self.all * FADE + 1.0;
        self.right = self.right * FADE + f64::from(u8::from(right));
    }

    /// The chance of a draft, starting from `prior`.
    fn chance(&self, prior: f64) -> f64 {
        (self.right + PRIOR_WEIGHT * prior) / (self.all + PRIOR_WEIGHT)
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// It drafts where that pays.
    On,
    /// It does not pay, and is not asked before this moment.
    Resting { until: Instant },
    /// It is asked to find out whether it pays by now.
    Tried { rate: Rate },
    /// There is none.
    Absent,
}

/// What is known of a draft model's use.
#[derive(Clone, Copy, Debug)]
pub(in crate::scheduler) struct Worth {
    /// Over all sequences.
    rate: Rate,
    state: State,
    rest: Duration,
}

impl Default for Worth {
    fn default() -> Worth {
        Worth { rate: Rate::default(), state: State::Absent, rest: FIRST_REST }
    }
}

/// What the model is to do at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To draft.
    Draft,
    /// To draft for comparison, and now and then for the pipeline, to find out what rows cost.
    Try,
    /// Nothing, as long as so many sequences decode.
    Wait,
    /// Nothing; what it holds can go.
    Rest,
}

impl Worth {
    /// Of a model that is to be tried first.
    pub(super) fn new() -> Worth {
        Worth { state: State::Tried { rate: Rate::default() }, ..Worth::default() }
    }

    pub(super) fn stop(&mut self) {
        self.state = State::Absent;
    }

    pub(super) fn observe(&mut self, right: bool) {
        self.rate.observe(right);
        if let State::Tried { rate } = &mut self.state {
            rate.observe(right);
        }
    }

    /// The chance of a draft in a sequence whose own were right so often.
    pub(super) fn chance(&self, own: Rate) -> f64 {
        own.chance(self.rate.chance(PRIOR))
    }

    /// Decides what the model is to do, where `gain` says by how much faster answers are with drafts of a certain chance.
    pub(super) fn judge(&mut self, gain: impl Fn(f64) -> f64, now: Instant) -> Use {
        match self.state {
            State::Absent => Use::Rest,
            State::On if gain(self.rate.chance(PRIOR)) >= WORTHWHILE => Use::Draft,
            State::On if gain(GOOD) < WORTHWHILE => Use::Wait,
            State::On => self.lay_off(now),
            State::Resting { until } if now < until => Use::Rest,
            State::Resting { .. } => {
                self.state = State::Tried { rate: Rate::default() };
                Use::Try
            }
            State::Tried { rate } if rate.all < TRIAL * 0.9 => Use::Try,
            State::Tried { rate } => {
                let gain_now = gain(rate.chance(PRIOR));
                if gain_now < WORTH_BEGINNING && gain(GOOD) >= WORTHWHILE {
                    return self.lay_off(now);
                }
                *self = Worth { rate, state: State::On, rest: FIRST_REST };
                if gain_now >= WORTH_BEGINNING { Use::Draft } else { Use::Wait }
            }
        }
    }

    fn lay_off(&mut self, now: Instant) -> Use {
        self.state = State::Resting { until: now + self.rest };
        self.rest = (self.rest * 2).min(LONGEST_REST);
        Use::Rest
    }
}

/// What drafts cost at the moment.
#[derive(Clone, Copy, Debug)]
pub(in crate::scheduler) struct Terms {
    /// Sequences in a step.
    size: usize,
    /// Seconds of a draft after another one.
    pub(in crate::scheduler) draft_s: f64,
    /// Seconds that the first one takes on top of that.
    pub(in crate::scheduler) wire_s: f64,
    /// Drafts that can be made while the pipeline verifies others.
    pub(super) free: usize,
    /// Whether they hold nothing up, however many they are.
    pub(super) apart: bool,
}

/// A number of drafts, and the tokens per second that it makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::scheduler) struct Depth {
    pub(in crate::scheduler) drafts: usize,
    pub(in crate::scheduler) rate: f64,
}

/// The number of drafts, of at most `most`, that makes the most tokens per second, where each is right with a chance of
/// `chance`, `here` are there, and others come after `draft_s` each; `cycle_s` is how long a cycle takes by the drafts of
/// its sequences.
fn best_depth(
    chance: f64,
    most: usize,
    here: usize,
    draft_s: impl Fn(usize) -> f64,
    cycle_s: impl Fn(usize) -> f64,
) -> Depth {
    let mut best = Depth { drafts: 0, rate: 1.0 / cycle_s(0) };
    let (mut tokens, mut last) = (1.0, 1.0);
    for drafts in 1..=most {
        last *= chance;
        tokens += last;
        let rate = tokens / (cycle_s(drafts) + draft_s(drafts.saturating_sub(here)));
        if rate > best.rate {
            best = Depth { drafts, rate };
        }
    }
    best
}

impl Scheduler {
    /// What drafts cost with the sequences that decode now.
    pub(in crate::scheduler) fn draft_terms(&self) -> Terms {
        let decoding = self.sequences.values().filter(|sequence| sequence.decodes()).count().max(1);
        let Drafter { draft, times, .. } = &self.drafter;
        let (draft_s, _) = times.sum_and_slowest(StepKind::Decode, decoding as f64);
        let apart = draft.as_ref().is_none_or(|draft| !draft.shares_worker);
        let cycle_s = self.groups.cycle_s(&self.times, decoding);
        let busy_s = self.groups.busy_and_far_round_s(&self.times, decoding).0;
        let free = match (cycle_s - busy_s) / draft_s {
            _ if apart => (cycle_s / draft_s).max(1.0),
            free if free < LEAST_FREE => 0.0,
            free => free,
        };
        let size = self.groups.largest(decoding);
        Terms { size, draft_s, wire_s: times.wire_s(), free: free as usize, apart }
    }

    /// The best number of drafts for a sequence, of at most `most`, where `here` are there already.
    pub(in crate::scheduler) fn draft_depth(
        &self,
        terms: &Terms,
        chance: f64,
        most: usize,
        here: usize,
    ) -> Depth {
        let rows = self.step_rows().unwrap_or(1) / terms.size.max(1);
        let most = most.min(MOST_DRAFTS).min(rows.saturating_sub(1));
        let draft_s = |missing: usize| match missing {
            0 => 0.0,
            missing => missing as f64 * terms.draft_s + if here == 0 { terms.wire_s } else { 0.0 },
        };
        best_depth(chance, most, here, draft_s, |drafts| self.draft_cycle_s(terms, drafts))
    }

    /// Seconds of a cycle in which every sequence has so many drafts.
    pub(in crate::scheduler) fn draft_cycle_s(&self, terms: &Terms, drafts: usize) -> f64 {
        self.groups.cycle_of_rows_s(&self.times, (terms.size * (1 + drafts)) as f64)
    }

    /// By how much faster answers are with drafts of this chance.
    pub(super) fn draft_gain(&self, terms: &Terms, chance: f64) -> f64 {
        let plain_s = self.draft_cycle_s(terms, 0);
        self.draft_depth(terms, chance, MOST_DRAFTS, terms.free).rate * plain_s
    }
}

#[cfg(test)]
#[path = "tests/worth.rs"]
mod tests;

//! Drafts ahead of drafts: with one stream, a pipeline is kept busy by guesses of what follows those under way.
//!
//! A lone sequence's step is on one stage at a time. While it is under way, its drafts' own successors can be computed
//! behind it: each further step begins where the one before it will end if all its drafts come true, and counts only then.
//! With steps of `rows` rows a chain of such steps takes, until a guess fails,
//!
//! `round(rows) + steps * slowest(rows)`
//!
//! for the first one's way through all stages, each further one's time on the slowest stage, and another one's at the end,
//! by which the step that goes on from there is held up; `steps` is the expected number of further ones whose drafts
//! before them all came true. The tokens that it brings are as many as guesses come true, and one more. So the same chances
//! that say how long a draft is say whether a chain pays, and of which rows its steps are.

use brigade_proto::ids::SequenceId;
use brigade_proto::step::{Segment, StepKind};

use super::Scheduler;
use super::groups::MOST_GROUPS;
use super::sequence::{Expected, Sequence, Source};
use super::speculation::{MOST_DRAFTS, WORTHWHILE};
use super::times::Times;

/// Most guesses looked ahead, and most drafts under way.
pub(super) const MOST_AHEAD: usize = 96;
/// Most steps of a chain under way: half of what a worker queues.
const MOST_STEPS: usize = MOST_GROUPS / 2;

/// How a sequence runs ahead of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chain {
    /// Rows of each step; at least 1.
    pub(super) rows: usize,
    /// Steps that are under way at a time, so that the slowest stage always has one; at least 2.
    pub(super) steps: usize,
    /// Tokens that it brings per second.
    pub(super) rate: f64,
}

impl Chain {
    /// The chain with the most tokens per second for guesses with these chances, which come after `guess_s` each, in steps
    /// of at most `most_rows` rows.
    pub(super) fn best(times: &Times, chances: &[f64], guess_s: f64, most_rows: usize) -> Option<Chain> {
        let rows = 1..=most_rows.min(MOST_DRAFTS).min(chances.len());
        rows.map(|rows| Chain::of(times, chances, guess_s, rows)).max_by(|a, b| a.rate.total_cmp(&b.rate))
    }

    fn of(times: &Times, chances: &[f64], guess_s: f64, rows: usize) -> Chain {
        let (sum_s, slowest_s) = times.sum_and_slowest(StepKind::Decode, rows as f64);
        let slowest_s = slowest_s.max(guess_s * rows as f64);
        let round_s = sum_s + times.wire_s();
        let tokens = 1.0 + chances.iter().sum::<f64>();
        let further: f64 = chances.chunks_exact(rows).map(|step| step[rows - 1]).sum();
        let steps = (round_s / slowest_s).ceil() as usize + 1;
        let rate = tokens / (round_s + (further + 1.0) * slowest_s);
        Chain { rows, steps: steps.clamp(2, MOST_STEPS), rate }
    }
}

impl Scheduler {
    /// The only sequence that decodes, where nothing else is to be done.
    fn lone(&self) -> Option<SequenceId> {
        let mut decoding = self.sequences.iter().filter(|(_, sequence)| sequence.decodes());
        let lone = decoding.next().map(|(id, _)| *id).filter(|_| decoding.next().is_none());
        let prompts = self.sequences.values().any(Sequence::wants_prefill);
        lone.filter(|_| !prompts && self.under_way(StepKind::Prefill) == 0)
    }

    /// The chain that a sequence, whose guesses have these chances, is served best with, where that is better than steps
    /// that bring `rate` tokens per second.
    pub(super) fn chain(&self, id: SequenceId, chances: &[f64], rate: f64) -> Option<Chain> {
        let pipeline = self.pipeline.as_ref().filter(|_| self.lone() == Some(id))?;
        let by_model = self.sequences.get(&id).is_some_and(|sequence| sequence.source() == Source::Model);
        let guess_s = if by_model { self.draft_terms().draft_s } else { 0.0 };
        let chances = self.prospects(id, chances);
        let chain = Chain::best(&self.times, &chances, guess_s, pipeline.room.step_rows as usize)?;
        (chain.rate > rate * WORTHWHILE).then_some(chain)
    }

    /// The next segment of a sequence that runs ahead of itself, where it pays and there is room for it in the pipeline.
    pub(super) fn ahead_segment(&mut self) -> Option<(Segment, Expected)> {
        let id = self.lone().filter(|_| self.guesses())?;
        self.sequences.get(&id).filter(|sequence| sequence.runs_ahead())?;
        let chances = self.guess(id);
        let (_, rate) = self.best_drafts(std::slice::from_ref(&chances), MOST_DRAFTS);
        let chain = self.chain(id, &chances, rate)?;
        let under_way = self.flights.values().filter(|flight| flight.kind == StepKind::Decode).count();
        if under_way >= chain.steps {
            return None;
        }
        let sequence = self.sequences.get(&id)?;
        let before = sequence.drafted();
        // Drafts of the draft model's come one by one: a step of few would keep the next one waiting.
        if sequence.source() == Source::Model && chances.len() < before + chain.rows {
            return None;
        }
        let room = self.reserve(id, chances.len().min(before + chain.rows));
        self.sequences.get_mut(&id)?.next_ahead(id, room)
    }

    /// Reserves cache for `count` drafts of a sequence in all, as far as nobody waits for it; for how many there is some.
    pub(super) fn reserve(&mut self, id: SequenceId, count: usize) -> usize {
        let spare = self.sequences.len();
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return 0;
        };
        while sequence.room() < count && self.pages.free_count() > spare {
            sequence.pages.extend(self.pages.take());
        }
        count.min(sequence.room())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::times::StagePrediction;

    /// `stages` stages of 4 ms for a step and 1 ms for each of its rows.
    fn times(stages: usize) -> Times {
        Times::new(&vec![StagePrediction { decode_s: 0.005, prefill_s_per_row: 0.001 }; stages], 128)
    }

    fn chances(each: f64) -> Vec<f64> {
        (1..=MOST_AHEAD as i32).map(|place| each.powi(place)).take_while(|chance| *chance > 0.05).collect()
    }

    #[test]
    fn what_is_nearly_sure_fills_all_stages() {
        let sure = chances(0.99);
        let rate = |stages: usize| Chain::best(&times(stages), &sure, 0.0, 128).unwrap().rate;
        assert!(rate(4) > 0.65 * rate(1), "{} {}", rate(4), rate(1));
        let chain = Chain::best(&times(4), &sure, 0.0, 128).unwrap();
        assert_eq!(chain.steps, 5);
        assert!((5..=MOST_DRAFTS).contains(&chain.rows), "{chain:?}");
        assert_eq!(Chain::best(&times(2), &sure, 0.0, 6).unwrap().rows, 6);
    }

    #[test]
    fn less_sure_guesses_make_shorter_steps_and_unlikely_ones_do_not_pay() {
        let rows = |each: f64| Chain::best(&times(4), &chances(each), 0.0, 128).map(|chain| chain.rows);
        let (sure, likely) = (rows(0.99).unwrap(), rows(0.8).unwrap());
        assert!(likely < sure, "{likely} {sure}");
        let unlikely = Chain::best(&times(4), &chances(0.1), 0.0, 128).unwrap();
        assert!(unlikely.rate < 50.0, "{unlikely:?} is no better than a step at a time");
        assert_eq!(Chain::best(&times(4), &[], 0.0, 128), None);
    }
}

//! What the draft model knows of a sequence.
//!
//! The tokens that are certain are the sequence's; behind them stand drafts, which the stage has drawn and goes on from.
//! Once the pipeline draws something else, what the stage was sent from there on is written anew.

use std::collections::VecDeque;
use std::time::Instant;

use brigade_proto::ids::SequenceId;
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Segment, SequenceStart, StepKind};

use super::compose::CATCH_UP;
use super::worth::{Rate, Worth};
use crate::scheduler::pages::Pages;
use crate::scheduler::sequence::Sequence;

/// A segment on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) sequence: SequenceId,
    /// Whether a token is drawn.
    pub(super) samples: bool,
    /// The position of that token.
    position: usize,
    /// The mirror's changes when it was sent.
    changes: u64,
}

/// A sequence as the draft model's stage has it.
#[derive(Debug)]
pub(super) struct Mirror {
    sampling: Sampling,
    prompt: usize,
    /// Its pages of the draft model's cache, in order.
    pub(super) pages: Vec<u32>,
    /// How many of them the stage has been told.
    told: usize,
    /// How many of the sequence's tokens have been compared.
    noted: usize,
    /// Positions sent; those at the end may hold tokens that only the stage knows yet.
    sent: usize,
    /// What is taken to follow the sequence's tokens.
    pub(super) drafts: VecDeque<u32>,
    /// How often drafts were wrong: what was sent before says nothing.
    changes: u64,
    /// Segments on their way, all of one kind.
    pub(super) in_flight: u32,
    kind: StepKind,
    /// Whether it only waits for its segments to come home.
    pub(super) ended: bool,
    /// Whether it drafts no further before the pipeline has drawn more.
    silent: bool,
    /// How many drafts it should have.
    pub(super) wanted: usize,
    /// How often its drafts were right.
    pub(super) rate: Rate,
    /// Until when the pipeline waits for more drafts.
    pub(super) held_until: Option<Instant>,
}

impl Mirror {
    /// Of a sequence whose tokens the stage has not been told.
    pub(super) fn new(sequence: &Sequence, vocabulary: u32) -> Mirror {
        let mut sampling = sequence.sampling().clone();
        // Nobody looks at these, and a bias may name a token that only the other model has.
        sampling.logprobs = None;
        sampling.logit_bias.retain(|(token, _)| *token < vocabulary);
        sampling.end_ids.retain(|token| *token < vocabulary);
        Mirror {
            sampling,
            prompt: sequence.prompt_len(),
            pages: Vec::new(),
            told: 0,
            noted: sequence.tokens().len(),
            sent: 0,
            drafts: VecDeque::new(),
            changes: 0,
            in_flight: 0,
            kind: StepKind::Prefill,
            ended: false,
            silent: false,
            wanted: 0,
            rate: Rate::default(),
            held_until: None,
        }
    }

    /// Whether the stage may hold something of it.
    pub(super) fn begun(&self) -> bool {
        self.told > 0
    }

    /// Positions whose tokens are known here.
    fn known(&self) -> usize {
        self.noted + self.drafts.len()
    }

    /// Tokens that are still to be sent before anything can be drawn.
    pub(super) fn behind(&self) -> usize {
        self.known().saturating_sub(self.sent)
    }

    /// Drafts that it has or is about to have.
    fn coming(&self) -> usize {
        let drawing = if self.in_flight > 0 { (self.sent + 1).saturating_sub(self.known()) } else { 0 };
        self.drafts.len() + drawing
    }

    /// Whether another token is to be drawn.
    pub(super) fn wants_draft(&self) -> bool {
        !self.ended && !self.silent && self.coming() < self.wanted
    }

    /// Whether drafts come soon where they are asked for: what stands before them is on its way or about to be.
    pub(super) fn drafts_soon(&self) -> bool {
        let prompt = self.in_flight > 0 && self.kind == StepKind::Prefill;
        !self.ended && !self.silent && self.begun() && !prompt && self.behind() <= CATCH_UP
    }

    /// Positions that it needs for its known tokens and one more.
    pub(super) fn end(&self) -> usize {
        self.known().max(self.sent) + 1
    }

    /// Whether a segment of a kind can be sent: those of another kind must be home, since they travel apart.
    pub(super) fn may_send(&self, kind: StepKind) -> bool {
        self.in_flight == 0 || self.kind == kind
    }

    /// Pages that it must have for its known tokens and one more.
    pub(super) fn pages_needed(&self) -> usize {
        Pages::needed(self.end())
    }

    /// Takes in all tokens of the sequence, of which some may be new, and learns whether drafts were right. Says whether
    /// the draft model knows them all.
    pub(super) fn note(&mut self, tokens: &[u32], vocabulary: u32, worth: &mut Worth) -> bool {
        let new = &tokens[self.noted.min(tokens.len())..];
        let known = new.iter().all(|token| *token < vocabulary);
        for (position, token) in tokens.iter().enumerate().skip(self.noted) {
            match self.drafts.pop_front() {
                Some(draft) if draft == *token => self.learn(true, worth),
                Some(_) => {
                    self.learn(false, worth);
                    self.change(position);
                }
                // The stage is about to draw it, or has gone on from what it drew there; that may have been another.
                None if self.sent > position => self.change(position),
                None => {}
            }
            self.noted = position + 1;
            self.silent = false;
            self.held_until = None;
        }
        known
    }

    fn learn(&mut self, right: bool, worth: &mut Worth) {
        self.rate.observe(right);
        worth.observe(right);
    }

    /// What was sent from `position` on is wrong.
    fn change(&mut self, position: usize) {
        self.drafts.clear();
        self.sent = self.sent.min(position);
        self.changes += 1;
    }

    /// Takes in what a segment drew, where that is a token that both models know.
    pub(super) fn take(&mut self, place: &Place, drawn: Option<u32>, tokens: &[u32], worth: &mut Worth) {
        if !place.samples || place.changes != self.changes {
            return;
        }
        if let Some(token) = tokens.get(place.position) {
            // The pipeline was faster.
            return self.learn(drawn == Some(*token), worth);
        }
        debug_assert_eq!(place.position, self.known(), "results come in order");
        match drawn {
            Some(token) => self.drafts.push_back(token),
            None => {
                self.sent = self.sent.min(self.known());
                self.changes += 1;
                self.silent = true;
            }
        }
    }

    /// The next known tokens as a segment, of at most `rows` of them; it draws where they are the last ones.
    pub(super) fn next_known(
        &mut self,
        id: SequenceId,
        tokens: &[u32],
        rows: usize,
        kind: StepKind,
    ) -> (Segment, Place) {
        let end = self.known().min(self.sent + rows.max(1));
        let known = tokens.iter().chain(&self.drafts).skip(self.sent).take(end - self.sent);
        let known = known.copied().collect();
        let samples = end == self.known();
        self.segment(id, known, samples, kind)
    }

    /// Whether it can go on from a token that only the stage knows.
    pub(super) fn can_follow(&self) -> bool {
        self.in_flight > 0 && self.kind == StepKind::Decode && self.behind() == 0
    }

    /// A segment that goes on from a token that only the stage knows.
    pub(super) fn next_following(&mut self, id: SequenceId) -> (Segment, Place) {
        self.segment(id, vec![0], true, StepKind::Decode)
    }

    fn segment(
        &mut self,
        id: SequenceId,
        tokens: Vec<u32>,
        samples: bool,
        kind: StepKind,
    ) -> (Segment, Place) {
        let begin = (!self.begun())
            .then(|| SequenceStart { sampling: self.sampling.clone(), prompt_tokens: self.prompt as u32 });
        let start = self.sent;
        self.sent += tokens.len();
        self.in_flight += 1;
        self.kind = kind;
        let pages = self.pages[self.told..].to_vec();
        self.told = self.pages.len();
        let place = Place { sequence: id, samples, position: self.sent, changes: self.changes };
        let segment = Segment {
            sequence: id,
            start: start as u32,
            tokens,
            begin,
            pages,
            sample: samples,
            drafts: 0,
            score: false,
            next_token: None,
        };
        (segment, place)
    }
}

//! What a stage remembers of its sequences beside their cache pages.

use std::collections::HashMap;

use brigade_proto::ids::SequenceId;
use brigade_proto::step::{Segment, SequenceStart};
use brigade_shard::cost::PAGE_TOKENS;

use crate::sampler::History;

const PAGE: usize = PAGE_TOKENS as usize;

/// What the last stage needs to sample: a sequence's parameters and tokens.
#[derive(Debug)]
struct Sequence {
    start: SequenceStart,
    tokens: Vec<u32>,
    /// The token drawn last, with its position.
    drawn: Option<(u32, u32)>,
}

/// The sequences of a last stage.
#[derive(Debug)]
pub(super) struct Sequences {
    known: HashMap<SequenceId, Sequence>,
    /// Whose keys and values stand in the cache's pages, `[pages, PAGE_TOKENS]`: the history of a sequence that begins
    /// with pages that others computed.
    cached: Vec<u32>,
}

impl Sequences {
    /// No sequence. The cache holds `cache_tokens` tokens in whole pages.
    pub(super) fn new(cache_tokens: u32) -> Sequences {
        Sequences { known: HashMap::new(), cached: vec![0; cache_tokens as usize] }
    }

    /// Takes up a segment, whose sequence has `pages`: its parameters where it has any, and its tokens from its start on.
    pub(super) fn append(&mut self, segment: &Segment, pages: &[u32]) {
        let start = segment.start as usize;
        let place = |at: usize| pages[at / PAGE] as usize * PAGE + at % PAGE;
        if let Some(begin) = &segment.begin {
            let tokens = (0..start).map(|at| self.cached[place(at)]).collect();
            self.known.insert(segment.sequence, Sequence { start: begin.clone(), tokens, drawn: None });
        }
        if let Some(sequence) = self.known.get_mut(&segment.sequence) {
            sequence.tokens.truncate(start);
            sequence.tokens.extend_from_slice(&segment.tokens);
        }
        for (at, token) in (start..).zip(&segment.tokens) {
            self.cached[place(at)] = *token;
        }
    }

    /// A sequence's parameters and what has been said; `None` where it never had any.
    pub(super) fn get(&self, sequence: SequenceId) -> Option<(&SequenceStart, History<'_>)> {
        let sequence = self.known.get(&sequence)?;
        let prompt_tokens = sequence.start.prompt_tokens as usize;
        Some((&sequence.start, History { tokens: &sequence.tokens, prompt_tokens }))
    }

    /// Whether a segment begins with the token that was drawn last.
    pub(super) fn begins_with_drawn(&self, segment: &Segment) -> bool {
        let drawn = self.known.get(&segment.sequence).and_then(|sequence| sequence.drawn);
        drawn.is_some() && drawn == segment.tokens.first().map(|token| (segment.start, *token))
    }

    /// Notes which token was drawn last, and that it stands at `position`.
    pub(super) fn note_drawn(&mut self, sequence: SequenceId, position: u32, token: u32) {
        if let Some(sequence) = self.known.get_mut(&sequence) {
            sequence.drawn = Some((position, token));
        }
    }

    /// Forgets the tokens from `start` on.
    pub(super) fn truncate(&mut self, sequence: SequenceId, start: u32) {
        if let Some(sequence) = self.known.get_mut(&sequence) {
            sequence.tokens.truncate(start as usize);
            sequence.drawn = None;
        }
    }

    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.known.remove(&sequence);
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
    }
}

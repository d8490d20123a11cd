//! What a stage remembers of its sequences beside their cache pages.

use std::collections::HashMap;

use brigade_proto::ids::SequenceId;
use brigade_proto::step::{Segment, SequenceStart};

use crate::sampler::History;

/// What the last stage needs to sample: a sequence's parameters and tokens.
#[derive(Debug)]
struct Sequence {
    start: SequenceStart,
    tokens: Vec<u32>,
}

/// The sequences of a last stage.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    known: HashMap<SequenceId, Sequence>,
}

impl Sequences {
    /// Takes up a segment: its parameters where it has any, and its tokens from its start on.
    pub(super) fn append(&mut self, segment: &Segment) {
        if let Some(start) = &segment.begin {
            let sequence = self
                .known
                .entry(segment.sequence)
                .or_insert_with(|| Sequence { start: start.clone(), tokens: Vec::new() });
            sequence.start = start.clone();
        }
        if let Some(sequence) = self.known.get_mut(&segment.sequence) {
            sequence.tokens.truncate(segment.start as usize);
            sequence.tokens.extend_from_slice(&segment.tokens);
        }
    }

    /// A sequence's parameters and what has been said; `None` where it never had any.
    pub(super) fn get(&self, sequence: SequenceId) -> Option<(&SequenceStart, History<'_>)> {
        let sequence = self.known.get(&sequence)?;
        let prompt_tokens = sequence.start.prompt_tokens as usize;
        Some((&sequence.start, History { tokens: &sequence.tokens, prompt_tokens }))
    }

    /// Forgets the tokens from `start` on.
    pub(super) fn truncate(&mut self, sequence: SequenceId, start: u32) {
        if let Some(sequence) = self.known.get_mut(&sequence) {
            sequence.tokens.truncate(start as usize);
        }
    }

    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.known.remove(&sequence);
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
    }
}

//! One admitted sequence: how far its prompt is sent, and which token comes next.

use brigade_proto::ids::SequenceId;
use brigade_proto::step::{Segment, SegmentOutput, SequenceStart};

use crate::generation::{FinishReason, GenerationEvent, GenerationRequest};

/// A sequence that has cache reserved.
#[derive(Debug)]
pub(super) struct Sequence {
    request: GenerationRequest,
    /// Pages reserved.
    pub(super) pages: u32,
    /// Prompt tokens sent; the next chunk starts here.
    sent: usize,
    /// Tokens drawn so far.
    drawn: u32,
    /// The last token drawn, where it is not sent yet.
    pending: Option<u32>,
    /// Segments on their way.
    pub(super) in_flight: u32,
    /// Whether its client has been told the end, or has left: it only waits for its segments to come home.
    pub(super) ended: bool,
}

/// What a segment's result must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) sequence: SequenceId,
    pub(super) rows: u32,
    pub(super) scores: usize,
    pub(super) sample: bool,
    /// Whether the prompt is computed with this segment.
    pub(super) prompt_ends: bool,
}

/// What a result means for a sequence.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// It goes on; it may be ready to decode.
    Continues,
    /// It has ended by itself.
    Finished,
}

impl Sequence {
    pub(super) fn new(request: GenerationRequest, pages: u32) -> Sequence {
        Sequence { request, pages, sent: 0, drawn: 0, pending: None, in_flight: 0, ended: false }
    }

    /// Whether stages may hold something of it.
    pub(super) fn begun(&self) -> bool {
        self.sent > 0
    }

    /// Whether part of its prompt is still to be sent.
    pub(super) fn wants_prefill(&self) -> bool {
        !self.ended && self.sent < self.request.prompt.len()
    }

    /// Whether a drawn token is to be sent.
    pub(super) fn wants_decode(&self) -> bool {
        !self.ended && self.pending.is_some()
    }

    /// The next chunk of the prompt, of at most `rows` tokens (at least one).
    pub(super) fn next_chunk(&mut self, id: SequenceId, rows: usize) -> (Segment, Expected) {
        let prompt = &self.request.prompt;
        let start = self.sent;
        let end = prompt.len().min(start + rows.max(1));
        let last = end == prompt.len();
        let sample = last && self.request.max_tokens > 0;
        let score = self.request.score_prompt;
        let next_token = if score { prompt.get(end).copied() } else { None };
        let begin = (start == 0).then(|| SequenceStart {
            sampling: self.request.sampling.clone(),
            prompt_tokens: prompt.len() as u32,
        });
        let tokens = prompt[start..end].to_vec();
        let rows = tokens.len() as u32;
        // Every token but the prompt's first is scored, once: by the row of the token before it.
        let scores = if score { end - start - usize::from(last) } else { 0 };
        self.sent = end;
        self.in_flight += 1;
        let segment = Segment { sequence: id, start: start as u32, tokens, begin, sample, score, next_token };
        (segment, Expected { sequence: id, rows, scores, sample, prompt_ends: last })
    }

    /// The drawn token as a segment; `None` where there is none to send.
    pub(super) fn next_decode(&mut self, id: SequenceId) -> Option<(Segment, Expected)> {
        let token = self.pending.take()?;
        let start = self.request.prompt.len() as u32 + self.drawn - 1;
        self.in_flight += 1;
        let segment = Segment {
            sequence: id,
            start,
            tokens: vec![token],
            begin: None,
            sample: true,
            score: false,
            next_token: None,
        };
        Some((segment, Expected { sequence: id, rows: 1, scores: 0, sample: true, prompt_ends: false }))
    }

    /// Takes in a segment's result, which holds what was expected, and says what the client is to be told.
    pub(super) fn take(
        &mut self,
        output: SegmentOutput,
        expected: &Expected,
        emit: &mut impl FnMut(GenerationEvent),
    ) -> Progress {
        if expected.scores > 0 {
            emit(GenerationEvent::PromptScores(output.scores));
        }
        let Some(sampled) = output.sampled.filter(|_| expected.sample) else {
            // A request for scores alone ends with its prompt.
            if !(expected.prompt_ends && self.request.max_tokens == 0) {
                return Progress::Continues;
            }
            emit(GenerationEvent::Done(FinishReason::Length));
            return Progress::Finished;
        };
        let token = sampled.token;
        self.drawn += 1;
        emit(GenerationEvent::Token(sampled));
        let reason = if self.request.sampling.end_ids.contains(&token) {
            FinishReason::EndToken
        } else if self.drawn >= self.request.max_tokens {
            FinishReason::Length
        } else {
            self.pending = Some(token);
            return Progress::Continues;
        };
        emit(GenerationEvent::Done(reason));
        Progress::Finished
    }
}

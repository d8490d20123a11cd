//! One sequence: its tokens, how many of them are sent, and which comes next.

use brigade_proto::ids::SequenceId;
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Segment, SegmentOutput, SequenceStart};

use crate::generation::{FinishReason, GenerationEvent, GenerationRequest};

use super::ASSURED_TOKENS;
use super::pages::Pages;

/// One generation: its tokens, and how many of them the stages have been sent.
#[derive(Debug)]
pub(super) struct Sequence {
    sampling: Sampling,
    max_tokens: usize,
    score_prompt: bool,
    /// The prompt, and every token drawn so far.
    tokens: Vec<u32>,
    /// How many of the tokens are the prompt.
    prompt: usize,
    /// How many go in chunks before one at a time: the prompt, and in a replay all that was drawn before it too.
    prefill: usize,
    /// Tokens sent; the next segment starts here.
    sent: usize,
    /// Pages reserved.
    pub(super) pages: u32,
    /// Segments on their way.
    pub(super) in_flight: u32,
    /// Whether its client has been told the end, or has left: it only waits for its segments to come home.
    pub(super) ended: bool,
    /// Whether it is to give its cache back as soon as its segments are home, and to be replayed later.
    pub(super) parking: bool,
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
    /// Whether its tokens were computed before.
    pub(super) replay: bool,
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
    pub(super) fn new(request: GenerationRequest) -> Sequence {
        let GenerationRequest { prompt: tokens, sampling, max_tokens, score_prompt } = request;
        let prompt = tokens.len();
        Sequence {
            sampling,
            max_tokens: max_tokens as usize,
            score_prompt,
            tokens,
            prompt,
            prefill: prompt,
            sent: 0,
            pages: 0,
            in_flight: 0,
            ended: false,
            parking: false,
        }
    }

    /// Whether stages may hold something of it.
    pub(super) fn begun(&self) -> bool {
        self.sent > 0
    }

    /// Tokens drawn so far.
    pub(super) fn drawn(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Most tokens that are still to be drawn.
    pub(super) fn tokens_left(&self) -> usize {
        self.max_tokens.saturating_sub(self.drawn())
    }

    /// Whether tokens are still to be sent in chunks.
    pub(super) fn wants_prefill(&self) -> bool {
        !self.ended && self.sent < self.prefill
    }

    /// Tokens that go in chunks.
    pub(super) fn prefill_rows(&self) -> usize {
        self.prefill
    }

    /// Those of them that are still to be sent.
    pub(super) fn prefill_left(&self) -> usize {
        self.prefill.saturating_sub(self.sent)
    }

    /// Whether a drawn token is to be sent.
    pub(super) fn wants_decode(&self) -> bool {
        self.decodes() && self.sent < self.tokens.len() && !self.parking
    }

    /// Whether it goes on token by token: everything before that has come home.
    pub(super) fn decodes(&self) -> bool {
        !self.ended && self.tokens.len() > self.prefill
    }

    /// Pages that it begins with: for its chunks and the first tokens of what is left of the answer.
    pub(super) fn first_pages(&self) -> u32 {
        let left = self.max_tokens - self.drawn();
        Pages::needed(self.tokens.len() + left.min(ASSURED_TOKENS))
    }

    /// Pages for the token to be sent next and all before it.
    pub(super) fn next_pages(&self) -> u32 {
        Pages::needed(self.tokens.len())
    }

    /// Begins anew with all that was said so far, after its cache was given back.
    pub(super) fn restart(&mut self) {
        self.prefill = self.tokens.len();
        self.sent = 0;
        self.pages = 0;
        self.parking = false;
    }

    /// The next chunk, of at most `rows` tokens (at least one).
    pub(super) fn next_chunk(&mut self, id: SequenceId, rows: usize) -> (Segment, Expected) {
        let start = self.sent;
        let end = self.prefill.min(start + rows.max(1));
        let last = end == self.prefill;
        let sample = last && self.max_tokens > 0;
        let replay = self.prefill > self.prompt;
        let score = self.score_prompt && !replay;
        let next_token = if score { self.tokens.get(end).copied() } else { None };
        let begin = (start == 0)
            .then(|| SequenceStart { sampling: self.sampling.clone(), prompt_tokens: self.prompt as u32 });
        let tokens = self.tokens[start..end].to_vec();
        let rows = tokens.len() as u32;
        // Every token but the prompt's first is scored, once: by the row of the token before it.
        let scores = if score { end - start - usize::from(last) } else { 0 };
        self.sent = end;
        self.in_flight += 1;
        let segment = Segment { sequence: id, start: start as u32, tokens, begin, sample, score, next_token };
        (segment, Expected { sequence: id, rows, scores, sample, prompt_ends: last, replay })
    }

    /// The drawn token as a segment; `None` where there is none to send.
    pub(super) fn next_decode(&mut self, id: SequenceId) -> Option<(Segment, Expected)> {
        let token = *self.tokens.get(self.sent).filter(|_| self.wants_decode())?;
        let start = self.sent as u32;
        self.sent += 1;
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
        let expected =
            Expected { sequence: id, rows: 1, scores: 0, sample: true, prompt_ends: false, replay: false };
        Some((segment, expected))
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
            if !(expected.prompt_ends && self.max_tokens == 0) {
                return Progress::Continues;
            }
            emit(GenerationEvent::Done(FinishReason::Length));
            return Progress::Finished;
        };
        let token = sampled.token;
        self.tokens.push(token);
        emit(GenerationEvent::Token(sampled));
        let reason = if self.sampling.end_ids.contains(&token) {
            FinishReason::EndToken
        } else if self.drawn() >= self.max_tokens {
            FinishReason::Length
        } else {
            return Progress::Continues;
        };
        emit(GenerationEvent::Done(reason));
        Progress::Finished
    }
}

//! One choice of an answer: a generation's events become text, with stop strings cut off and every token at its place.
//! The same events give the same text, whenever they are read.

use std::collections::VecDeque;
use std::sync::Arc;

use brigade_proto::step::TokenScore;
use brigade_shard::tokenizer::{SpecialText, TextStart, TextStream, Tokenizer};

use super::echo::Echo;
use super::stop::{Matched, StopMatcher};
use crate::generation::{Drawn, FinishReason, GenerationError, GenerationEvent, Origin};

/// How a generation is read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Texts that end the answer and are not part of it.
    pub(crate) stops: Vec<String>,
    /// Token ids that end the answer and give no text.
    pub(crate) end_ids: Vec<u32>,
    /// Stop strings are not looked for in this many first tokens.
    pub(crate) min_tokens: u32,
    /// Token ids whose own text is part of the answer, although other control tokens give none.
    pub(crate) shown_ids: Vec<u32>,
    /// Whether each token is wanted beside the text.
    pub(crate) details: bool,
    /// Whether token ids are told as they are drawn, also those whose text is not certain yet.
    pub(crate) ids: bool,
    /// The prompt, where the answer begins with it.
    pub(crate) echo: Option<Echo>,
}

/// A token and the text that it adds to the answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    /// The token id.
    pub(crate) token: u32,
    /// Its part of the answer's text: empty for special tokens, and for those that only begin a character.
    pub(crate) text: String,
    /// Its log-probability; none for the first token of all.
    pub(crate) logprob: Option<f32>,
    /// The most likely tokens in its place, best first.
    pub(crate) top: Vec<(u32, f32)>,
    /// Bytes of the generated text up to the end of this token.
    end: usize,
}

/// What has become certain of an answer since the last time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Delta {
    /// More text.
    pub(crate) text: String,
    /// The tokens of that text, where they were wanted.
    pub(crate) pieces: Vec<Piece>,
    /// Tokens drawn since the last delta; also those whose text is held back or cut off.
    pub(crate) drawn: Vec<u32>,
    /// Tokens of the prompt that were in the cache, said once.
    pub(crate) reused: usize,
    /// Drafts among the tokens drawn since the last delta.
    pub(crate) accepted: usize,
    /// Drafts that were computed in vain since the last delta.
    pub(crate) rejected: usize,
    /// Set in the last delta.
    pub(crate) finish: Option<Finish>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// With an end token or a stop string.
    Stop,
    /// By its length.
    Length,
}

impl Finish {
    /// OpenAI's word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// A generation's events on their way to text.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Whether the answer has ended; a stop string may end it before the generation.
    ended: bool,
    reading: Reading,
    tokenizer: Arc<Tokenizer>,
    text: TextStream,
    stop: StopMatcher,
    prompt_scores: Vec<TokenScore>,
    count: u32,
    drawn: Vec<u32>,
    reused: usize,
    accepted: usize,
    rejected: usize,
    /// Tokens whose text is not certain yet, where they are wanted.
    waiting: VecDeque<Piece>,
    /// How many of `waiting` end with a whole character.
    whole: usize,
    /// Bytes of generated text that tokens have given.
    arrived: usize,
    /// Bytes of generated text that have been handed on.
    released: usize,
}

impl Choice {
    /// Reads events as told.
    pub(crate) fn new(reading: Reading, tokenizer: Arc<Tokenizer>) -> Choice {
        Choice {
            ended: false,
            stop: StopMatcher::new(reading.stops.clone()),
            reading,
            tokenizer,
            text: TextStream::new(TextStart::Continued, SpecialText::Skip),
            prompt_scores: Vec::new(),
            count: 0,
            drawn: Vec::new(),
            reused: 0,
            accepted: 0,
            rejected: 0,
            waiting: VecDeque::new(),
            whole: 0,
            arrived: 0,
            released: 0,
        }
    }

    /// What is certain before anything has happened.
    pub(crate) fn begin(&mut self) -> Option<Delta> {
        self.echo_when_ready()
    }

    /// Whether the answer has ended: what is read after that changes nothing.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes in what has happened, and says what has become certain by it.
    ///
    /// # Errors
    /// What ended the generation before its time.
    pub(crate) fn read(&mut self, event: GenerationEvent) -> Result<Option<Delta>, GenerationError> {
        if self.ended {
            return Ok(None);
        }
        let delta = match event {
            GenerationEvent::Reused(tokens) => {
                self.reused = tokens as usize;
                return Ok(None);
            }
            GenerationEvent::PromptScores(scores) => {
                self.prompt_scores.extend(scores);
                return Ok(self.echo_when_ready());
            }
            GenerationEvent::Token(Drawn { score, origin }) => {
                self.count_draft(origin);
                self.take(score)
            }
            GenerationEvent::Done(reason) if self.reading.echo.is_none() => self.end(reason),
            GenerationEvent::Done(_) => {
                self.ended = true;
                let reason = "log-probabilities of the prompt are missing".to_owned();
                return Err(GenerationError::Interrupted { reason });
            }
            GenerationEvent::Failed(error) => {
                self.ended = true;
                return Err(error);
            }
        };
        self.ended = delta.finish.is_some();
        let told = self.reading.ids && !self.drawn.is_empty();
        let certain = told || self.ended || !delta.pieces.is_empty() || !delta.text.is_empty();
        Ok(certain.then(|| Delta {
            drawn: std::mem::take(&mut self.drawn),
            reused: std::mem::take(&mut self.reused),
            accepted: std::mem::take(&mut self.accepted),
            rejected: std::mem::take(&mut self.rejected),
            ..delta
        }))
    }

    /// The prompt as the answer's beginning, once all its scores are here.
    fn echo_when_ready(&mut self) -> Option<Delta> {
        let ready = |echo: &mut Echo| !echo.scored || self.prompt_scores.len() + 1 >= echo.tokens.len();
        let echo = self.reading.echo.take_if(ready)?;
        let texts = echo.pieces(&self.tokenizer);
        let text = echo.text.unwrap_or_else(|| texts.concat());
        if !self.reading.details {
            return Some(Delta { text, ..Delta::default() });
        }
        let mut scores = std::mem::take(&mut self.prompt_scores).into_iter();
        let pieces = echo.tokens.iter().zip(texts).enumerate().map(|(at, (&token, text))| {
            let score = if at == 0 { None } else { scores.next() };
            let (logprob, top) = score.map_or((None, Vec::new()), |score| (Some(score.logprob), score.top));
            Piece { token, text, logprob, top, end: 0 }
        });
        Some(Delta { pieces: pieces.collect(), text, ..Delta::default() })
    }

    fn count_draft(&mut self, origin: Origin) {
        match origin {
            Origin::Draft => self.accepted += 1,
            Origin::Drawn { rejected } => self.rejected += rejected as usize,
        }
    }

    /// A token was drawn.
    fn take(&mut self, score: TokenScore) -> Delta {
        self.count += 1;
        self.drawn.push(score.token);
        let ends = self.reading.end_ids.contains(&score.token);
        let shown = !ends && self.reading.shown_ids.contains(&score.token);
        let closed = if ends || shown { self.close_character() } else { String::new() };
        self.arrived += closed.len();
        let own = match (ends, shown) {
            (true, _) => String::new(),
            (false, true) => self.tokenizer.token_text(score.token).unwrap_or_default().to_owned(),
            (false, false) => self.text.push(&self.tokenizer, score.token),
        };
        self.arrived += own.len();
        if self.reading.details {
            self.waiting.push_back(Piece {
                token: score.token,
                text: own.clone(),
                logprob: Some(score.logprob),
                top: score.top,
                end: self.arrived,
            });
        }
        if ends || self.text.is_whole() {
            self.whole = self.waiting.len();
        }
        self.release(&(closed + &own))
    }

    /// What a character that was never completed leaves in the text; it becomes part of the token that began it.
    fn close_character(&mut self) -> String {
        let tail = self.text.finish();
        if let Some(last) = self.waiting.back_mut().filter(|_| !tail.is_empty()) {
            last.text.push_str(&tail);
            last.end = self.arrived + tail.len();
        }
        tail
    }

    /// Hands on what is certain after `text` was added.
    fn release(&mut self, text: &str) -> Delta {
        if self.count <= self.reading.min_tokens {
            return self.hand_on(text.to_owned());
        }
        match self.stop.push(text) {
            Matched::No(text) => self.hand_on(text),
            Matched::Yes(text) => self.cut(text),
        }
    }

    fn hand_on(&mut self, text: String) -> Delta {
        self.released += text.len();
        let certain = self.waiting.iter().take(self.whole).take_while(|piece| piece.end <= self.released);
        let certain = certain.count();
        self.whole -= certain;
        Delta { text, pieces: self.waiting.drain(..certain).collect(), ..Delta::default() }
    }

    /// A stop string stands after `text`: drops the tokens behind it, and the rest of the one it begins in.
    fn cut(&mut self, text: String) -> Delta {
        let end = self.released + text.len();
        let kept = std::mem::take(&mut self.waiting).into_iter().filter_map(|mut piece| {
            let start = piece.end - piece.text.len();
            piece.text.truncate(end.saturating_sub(start));
            (start < end).then_some(piece)
        });
        Delta { text, pieces: kept.collect(), finish: Some(Finish::Stop), ..Delta::default() }
    }

    /// The generation has ended by itself.
    fn end(&mut self, reason: FinishReason) -> Delta {
        let tail = self.close_character();
        self.arrived += tail.len();
        let mut delta = self.release(&tail);
        if delta.finish.is_none() {
            delta.text.push_str(&self.stop.finish());
            delta.pieces.extend(self.waiting.drain(..));
            delta.finish = Some(match reason {
                FinishReason::EndToken => Finish::Stop,
                FinishReason::Length => Finish::Length,
            });
        }
        delta
    }
}

//! One generation as the HTTP API sees it: what is asked of the cluster, and the events that come back.

use std::time::Duration;

use brigade_proto::sampling::Sampling;
use brigade_proto::step::TokenScore;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

/// What to generate. Text has become token ids by now; stop strings stay with the caller, who ends a generation by
/// dropping it.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// The prompt's token ids; at least one.
    pub prompt: Vec<u32>,
    /// Tokens of the answer that were drawn before, by a generation that broke off: this one goes on behind them, and does
    /// not tell them again. They count among `max_tokens`, of which some are left.
    pub drawn: Vec<u32>,
    /// How to choose tokens; its `end_ids` end the generation, unless they are empty (`ignore_eos`).
    pub sampling: Sampling,
    /// Most tokens to generate; 0 only scores the prompt.
    pub max_tokens: u32,
    /// Whether the log-probabilities of the prompt's own tokens are wanted (`echo` with `logprobs`).
    pub score_prompt: bool,
    /// With whom computed tokens may be shared.
    pub scope: ReuseScope,
    /// Who asked, for traces.
    pub trace: TraceContext,
}

/// What a trace tells of where a request comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// Whether it is a chat, rather than a text that goes on.
    pub chat: bool,
    /// The caller's own span, where it named one.
    pub parent: Option<TraceParent>,
}

/// A caller's span, as the header `traceparent` names it (<https://www.w3.org/TR/trace-context/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace that it belongs to.
    pub trace_id: [u8; 16],
    /// Its id.
    pub span_id: [u8; 8],
    /// Whether the caller records it.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads a header's value; one of another form is no parent, as the standard has it.
    pub fn parse(value: &str) -> Option<TraceParent> {
        let mut parts = value.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let [version] = from_hex(version)?;
        // Later versions may have more parts; ff is none.
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let (trace_id, span_id, [flags]) = (from_hex(trace)?, from_hex(span)?, from_hex(flags)?);
        let is_valid = trace_id != [0; 16] && span_id != [0; 8];
        is_valid.then_some(TraceParent { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

/// Bytes written as lower-case hexadecimal digits.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    if text.len() != 2 * N || !text.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Requests of one scope share what is computed of prompts that begin alike; those of others do not, since the time
/// that an answer takes would tell what others have asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReuseScope(pub u64);

/// A generation under way. Dropping it cancels: its cache is freed within a step.
#[derive(Debug)]
pub struct Generation {
    /// What happens, in order; ends after [`GenerationEvent::Done`] or [`GenerationEvent::Failed`]. The channel has room
    /// for every event that the request can cause, so that no step ever waits for a client.
    pub events: mpsc::Receiver<GenerationEvent>,
    /// Tells the scheduler when the generation is dropped.
    pub cancel: DropGuard,
}

/// Something that happened to a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerationEvent {
    /// So many of the prompt's tokens, from the first on, were in the cache already. Comes before all others, where
    /// there are any.
    Reused(u32),
    /// Scores of prompt tokens, in order; the first token has none, so `prompt - 1` come in all, chunk by chunk.
    PromptScores(Vec<TokenScore>),
    /// A token was drawn. An end token is reported too, before `Done`.
    Token(Drawn),
    /// The generation has ended by itself.
    Done(FinishReason),
    /// The generation cannot go on.
    Failed(GenerationError),
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The token, with its log-probability where that was asked for.
    pub score: TokenScore,
    /// Whether it was guessed.
    pub origin: Origin,
}

/// Whether a token was computed ahead of its being drawn. It is the same in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A draft stood in its place, and what follows it came with it.
    Draft,
    /// It was not guessed.
    Drawn {
        /// Drafts that were computed in vain, in its place and behind it.
        rejected: u32,
    },
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was drawn; it is the last token reported.
    EndToken,
    /// `max_tokens` or the context is full.
    Length,
}

/// Why a generation was refused or broke off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// No plan is being served.
    #[error("the cluster is not serving: {reason}")]
    NotReady {
        /// What is missing.
        reason: String,
    },
    /// Prompt and answer do not fit.
    #[error(
        "this model's context here is {context} tokens, but {prompt} in the prompt and {max_tokens} of the answer were asked for; shorten either, or start with a larger --ctx"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens of the answer asked for.
        max_tokens: u32,
        /// What fits.
        context: u32,
    },
    /// Too many requests are waiting already.
    #[error("{waiting} requests are waiting already; try again later")]
    Overloaded {
        /// How many.
        waiting: usize,
        /// After how long one of them is likely to be admitted.
        likely_wait: Duration,
    },
    /// A stage was lost or failed while the generation ran.
    #[error("generation interrupted: {reason}")]
    Interrupted {
        /// What happened.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_span_is_read_as_the_standard_has_it() {
        let parse = TraceParent::parse;
        let read = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!((read.trace_id[0], read.trace_id[15], read.sampled), (0x4b, 0x36, true));
        assert_eq!(read.span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        let not_sampled = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02").unwrap();
        assert!(!not_sampled.sampled);
        assert!(parse("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some());
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902-01",
            "00-äbf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}

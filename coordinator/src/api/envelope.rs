//! What all answers carry: an id, a time, the model, the usage.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::choice::Delta;
use super::engine::Engine;
use super::error::ApiError;

/// Characters of the model's fingerprint that clients see.
const FINGERPRINT_CHARS: usize = 12;

/// The fields that every answer and every chunk of it begins with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
}

impl Envelope {
    /// A new answer's envelope; `prefix` begins its random id.
    pub(crate) fn new<E: Engine>(
        engine: &E,
        prefix: &str,
        object: &'static str,
    ) -> Result<Envelope, ApiError> {
        let random = getrandom::u64().map_err(|error| {
            ApiError::internal(format!("the operating system gave no random number: {error}"))
        })?;
        let model = engine.model();
        let fingerprint = model.fingerprint.to_string();
        Ok(Envelope {
            id: format!("{prefix}-{random:016x}"),
            object,
            created: unix_seconds(SystemTime::now()),
            model: model.id.clone(),
            system_fingerprint: format!("fp_{}", &fingerprint[..FINGERPRINT_CHARS.min(fingerprint.len())]),
        })
    }

    /// The answer's id, and when it was begun in seconds since 1970.
    pub(crate) fn identity(&self) -> (&str, u64) {
        (&self.id, self.created)
    }

    /// Makes it that of an answer that was begun before.
    pub(crate) fn set_identity(&mut self, id: String, created: u64) {
        (self.id, self.created) = (id, created);
    }
}

/// Tokens of a request and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

/// Where a prompt's tokens came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct PromptDetails {
    /// Tokens that were in the cache already.
    cached_tokens: usize,
}

/// How an answer's tokens came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    /// Tokens of the answer that were guessed, so that they came together with the one before them.
    accepted_prediction_tokens: usize,
    /// Guessed tokens that were computed in vain; none of them counts as a token of the answer.
    rejected_prediction_tokens: usize,
}

impl Usage {
    /// Of a request whose answer has no tokens yet.
    pub(crate) fn of_prompt(prompt_tokens: usize) -> Usage {
        Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() }
    }

    /// Counts a delta's tokens of the answer and, for the first choice of a prompt, those of the prompt that were in the
    /// cache: a prompt counts once, however many choices it has.
    pub(crate) fn add(&mut self, delta: &Delta, first: bool) {
        self.completion_tokens += delta.drawn.len();
        self.total_tokens += delta.drawn.len();
        self.completion_tokens_details.accepted_prediction_tokens += delta.accepted;
        self.completion_tokens_details.rejected_prediction_tokens += delta.rejected;
        if first {
            self.prompt_tokens_details.cached_tokens += delta.reused;
        }
    }
}

/// Seconds since 1970; 0 for earlier times.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

//! `POST /v1/completions`: text that goes on from a prompt.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use brigade_shard::tokenizer::Tokenizer;
use futures_util::StreamExt;
use serde::Serialize;

use super::answers::{self, Deltas, Job};
use super::auth;
use super::body;
use super::choice::{Delta, Reading};
use super::completion_request::CompletionRequest;
use super::engine::Engine;
use super::envelope::{Envelope, Usage};
use super::error::ApiError;
use super::kept::Wish;
use super::logprobs::CompletionLogprobs;
use super::params::Delivery;
use super::prompt_log::PromptLine;
use super::prompts::{self, Encoded};
use super::sse::{self, Chunks};
use super::state::{Api, trace_context};
use crate::generation::GenerationRequest;

/// Answers a completion request, whole or as a stream.
pub(crate) async fn complete<E: Engine>(
    State(api): State<Api<E>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (scope, headers) = (auth::scope(&request), request.headers().clone());
    let trace = trace_context(&headers, false);
    let body = body::read(request).await?;
    let wish = Wish::read(&headers, "completions", &body)?;
    let mut request = CompletionRequest::parse(&body, api.vocabulary())?;
    drop(body);
    api.check_model(request.model.as_deref())?;
    let encoded = prompts::encode(&api, std::mem::take(&mut request.prompts)).await?;
    for prompt in &encoded {
        api.answer_tokens(prompt.tokens.len(), Some(request.max_tokens))?;
    }

    let logprobs = request.shared.sampling.logprobs.is_some();
    let mut envelope = Envelope::new(api.engine(), "cmpl", "text_completion")?;
    let jobs = each_choice(&encoded, request.shared.choices).map(|(prompt, choice)| {
        let scored = request.echo && logprobs;
        let tokens = prompt.tokens.clone();
        Job {
            request: GenerationRequest {
                prompt: tokens,
                drawn: Vec::new(),
                sampling: request.shared.sampling_of(choice),
                max_tokens: request.max_tokens,
                score_prompt: scored,
                scope,
                trace,
            },
            reading: Reading {
                stops: request.shared.stops.clone(),
                end_ids: request.shared.sampling.end_ids.clone(),
                min_tokens: request.shared.sampling.min_tokens,
                shown_ids: Vec::new(),
                details: logprobs,
                ids: request.shared.token_ids,
                echo: request.echo.then(|| prompt.clone().echo(scored)),
            },
        }
    });
    let mut jobs: Vec<Job> = jobs.collect();
    let kept = api.keep(wish.as_ref(), &mut envelope, &mut jobs).await?;
    let mut writing = Writing {
        envelope,
        usage: Usage::of_prompt(encoded.iter().map(|prompt| prompt.tokens.len()).sum()),
        tokenizer: Arc::clone(&api.engine().model().tokenizer),
        logprobs,
        choices: each_choice(&encoded, request.shared.choices)
            .map(|(prompt, _)| Position {
                offset: 0,
                prompt_ids: request.shared.token_ids.then(|| prompt.tokens.clone()),
            })
            .collect(),
        choices_per_prompt: request.shared.choices,
        token_ids: request.shared.token_ids,
        stream_usage: None,
    };
    let line = PromptLine::begin(&api, &jobs);
    let deltas = answers::start(api.engine(), jobs, kept, api.shutdown()).await?;
    let deltas = PromptLine::watch(line, deltas);
    match request.shared.delivery {
        Delivery::Whole => Ok(Json(writing.whole(deltas).await?).into_response()),
        Delivery::Stream { usage } => {
            writing.stream_usage = usage.then_some(None);
            Ok(sse::respond(deltas, writing, wish.as_ref()))
        }
    }
}

/// Each prompt as often as it gets choices, with the choice's number among these.
fn each_choice(prompts: &[Encoded], choices: usize) -> impl Iterator<Item = (&Encoded, usize)> {
    prompts.iter().flat_map(move |prompt| (0..choices).map(move |choice| (prompt, choice)))
}

/// A completion, or a chunk of one.
#[derive(Serialize)]
struct Completion {
    #[serde(flatten)]
    envelope: Envelope,
    choices: Vec<CompletionChoice>,
    /// Absent in chunks of a stream without usage, `null` in those of a stream whose last chunk has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Default, Serialize)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// Turns deltas into completions.
struct Writing {
    envelope: Envelope,
    usage: Usage,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    token_ids: bool,
    /// Prompt by prompt.
    choices: Vec<Position>,
    choices_per_prompt: usize,
    /// What chunks of a stream say of the usage.
    stream_usage: Option<Option<Usage>>,
}

/// How far a choice has been written.
struct Position {
    /// Length of its text so far, in characters.
    offset: usize,
    /// Its prompt's token ids, until they have been told.
    prompt_ids: Option<Vec<u32>>,
}

impl Writing {
    /// Adds a delta to `choice`, whose index is set.
    fn add(&mut self, choice: &mut CompletionChoice, delta: Delta) {
        self.usage.add(&delta, choice.index.is_multiple_of(self.choices_per_prompt));
        let position = &mut self.choices[choice.index];
        choice.text.push_str(&delta.text);
        if self.logprobs {
            let logprobs = choice.logprobs.get_or_insert_default();
            logprobs.extend(&delta.pieces, &mut position.offset, &self.tokenizer);
        }
        if self.token_ids {
            choice.token_ids.get_or_insert_default().extend(delta.drawn);
            choice.prompt_token_ids = choice.prompt_token_ids.take().or_else(|| position.prompt_ids.take());
        }
        choice.finish_reason = delta.finish.map(|finish| finish.as_str());
    }

    async fn whole(mut self, mut deltas: Deltas) -> Result<Completion, ApiError> {
        let mut choices: Vec<CompletionChoice> = (0..self.choices.len())
            .map(|index| CompletionChoice { index, ..CompletionChoice::default() })
            .collect();
        while let Some(item) = deltas.next().await {
            let (index, delta) = item?;
            self.add(&mut choices[index], delta);
        }
        Ok(Completion { envelope: self.envelope, choices, usage: Some(Some(self.usage)) })
    }

    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> String {
        sse::event_text(&Completion { envelope: self.envelope.clone(), choices, usage })
    }
}

impl Chunks for Writing {
    fn opening(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn delta(&mut self, index: usize, delta: Delta) -> String {
        let mut choice = CompletionChoice { index, ..CompletionChoice::default() };
        self.add(&mut choice, delta);
        self.chunk(vec![choice], self.stream_usage)
    }

    fn closing(&mut self) -> Option<String> {
        self.stream_usage?;
        Some(self.chunk(Vec::new(), Some(Some(self.usage))))
    }
}

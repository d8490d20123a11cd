//! `POST /v1/chat/completions`: the assistant's answer to messages.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use brigade_shard::tokenizer::Tokenizer;
use futures_util::StreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::answers::{self, Deltas, Job};
use super::auth;
use super::body;
use super::chat_request::ChatRequest;
use super::choice::{Delta, Finish, Reading};
use super::engine::Engine;
use super::envelope::{Envelope, Usage};
use super::error::ApiError;
use super::kept::Wish;
use super::logprobs::ChatLogprobs;
use super::params::Delivery;
use super::prompt_log::PromptLine;
use super::prompts;
use super::sse::{self, Chunks};
use super::state::{Api, trace_context};
use super::tool_calls::{Call, CallFinder, Found, MARKERS};
use crate::generation::GenerationRequest;

/// Whom the answer is from.
const ROLE: &str = "assistant";

/// Characters of a call's id.
const CALL_ID_CHARS: usize = 9;

/// Answers a chat request, whole or as a stream.
pub(crate) async fn chat<E: Engine>(
    State(api): State<Api<E>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (scope, headers) = (auth::scope(&request), request.headers().clone());
    let trace = trace_context(&headers, true);
    let body = body::read(request).await?;
    let wish = Wish::read(&headers, "chat", &body)?;
    let mut request = ChatRequest::parse(&body, api.vocabulary())?;
    drop(body);
    api.check_model(request.model.as_deref())?;
    let rendering = std::mem::take(&mut request.rendering);
    let prompt = prompts::encode_chat(&api, rendering).await?;
    let max_tokens = api.answer_tokens(prompt.tokens.len(), request.max_tokens)?;

    let shared = request.shared;
    let tokenizer = Arc::clone(&api.engine().model().tokenizer);
    let tools = Some(request.tools).filter(|tools| !tools.is_empty());
    let shown_ids: Vec<u32> = match &tools {
        Some(_) => MARKERS.iter().filter_map(|marker| tokenizer.id_of(marker)).collect(),
        None => Vec::new(),
    };
    let choice = || ChoiceCalls { finder: tools.clone().map(CallFinder::new), count: 0 };
    let logprobs = shared.sampling.logprobs.is_some();
    let object = match shared.delivery {
        Delivery::Whole => "chat.completion",
        Delivery::Stream { .. } => "chat.completion.chunk",
    };
    let mut envelope = Envelope::new(api.engine(), "chatcmpl", object)?;
    let jobs = (0..shared.choices).map(|choice| Job {
        reading: Reading {
            stops: shared.stops.clone(),
            end_ids: shared.sampling.end_ids.clone(),
            min_tokens: shared.sampling.min_tokens,
            shown_ids: shown_ids.clone(),
            details: logprobs,
            ids: shared.token_ids,
            echo: None,
        },
        request: GenerationRequest {
            prompt: prompt.tokens.clone(),
            drawn: Vec::new(),
            sampling: shared.sampling_of(choice),
            max_tokens,
            score_prompt: false,
            scope,
            trace,
        },
    });
    let mut jobs: Vec<Job> = jobs.collect();
    let kept = api.keep(wish.as_ref(), &mut envelope, &mut jobs).await?;
    // A template may write the time, so that the prompt of an answer that was begun before may be another one.
    let prompt = jobs.first().map_or(&prompt.tokens, |job| &job.request.prompt);
    let writing = Writing {
        envelope,
        usage: Usage::of_prompt(prompt.len()),
        tokenizer,
        calls: (0..shared.choices).map(|_| choice()).collect(),
        logprobs,
        token_ids: shared.token_ids,
        prompt_ids: shared.token_ids.then(|| prompt.clone()),
    };
    let line = PromptLine::begin(&api, &jobs);
    let deltas = answers::start(api.engine(), jobs, kept, api.shutdown()).await?;
    let deltas = PromptLine::watch(line, deltas);
    match shared.delivery {
        Delivery::Whole => Ok(Json(writing.whole(deltas).await?).into_response()),
        Delivery::Stream { usage } => Ok(sse::respond(deltas, Streaming { writing, usage }, wish.as_ref())),
    }
}

/// A chat completion.
#[derive(Serialize)]
struct ChatCompletion {
    #[serde(flatten)]
    envelope: Envelope,
    choices: Vec<ChatChoice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct ChatMessage {
    role: &'static str,
    /// `null` where the answer only calls tools.
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// A call of a tool, whole; in a stream it comes in one chunk.
#[derive(Serialize)]
struct ToolCall {
    /// Its place among the answer's calls; in streams only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

#[derive(Serialize)]
struct CalledFunction {
    name: String,
    arguments: String,
}

/// A chunk of a chat completion.
#[derive(Serialize)]
struct ChatChunk<'a> {
    #[serde(flatten)]
    envelope: &'a Envelope,
    choices: Vec<ChunkChoice>,
    /// Absent in a stream without usage, `null` in all chunks but the last of a stream with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// Turns deltas into chat completions.
struct Writing {
    envelope: Envelope,
    usage: Usage,
    tokenizer: Arc<Tokenizer>,
    /// The calls of each choice.
    calls: Vec<ChoiceCalls>,
    logprobs: bool,
    token_ids: bool,
    /// The prompt's token ids, until they have been told.
    prompt_ids: Option<Vec<u32>>,
}

/// Calls of tools in a choice's text.
struct ChoiceCalls {
    /// Looks for them, where the request has tools.
    finder: Option<CallFinder>,
    /// How many were found so far.
    count: usize,
}

impl ChoiceCalls {
    /// What has become certain with more text; nothing is held back where the answer `ends`.
    fn find(&mut self, text: String, ends: bool) -> Found {
        let Some(finder) = &mut self.finder else {
            return Found { text, calls: Vec::new() };
        };
        let mut found = finder.push(&text);
        if ends {
            let rest = finder.finish();
            found.text.push_str(&rest.text);
            found.calls.extend(rest.calls);
        }
        self.count += found.calls.len();
        found
    }

    /// Why the answer ended. One that was cut off is so even after a call.
    fn finish_reason(&self, finish: Finish) -> &'static str {
        match finish {
            Finish::Stop if self.count > 0 => "tool_calls",
            finish => finish.as_str(),
        }
    }
}

impl Writing {
    /// The log-probabilities and token ids of a delta, where they are wanted.
    fn details(&self, delta: &mut Delta) -> (Option<ChatLogprobs>, Option<Vec<u32>>) {
        let logprobs = self.logprobs.then(|| {
            let mut logprobs = ChatLogprobs::default();
            logprobs.extend(&delta.pieces, &self.tokenizer);
            logprobs
        });
        (logprobs, self.token_ids.then(|| std::mem::take(&mut delta.drawn)))
    }

    /// The calls of a choice as the client is told of them, with their places, the first of which is `before`.
    fn told(
        &self,
        calls: Vec<Call>,
        choice: usize,
        before: usize,
    ) -> impl Iterator<Item = (usize, ToolCall)> {
        let answer = self.envelope.identity().0.to_owned();
        calls.into_iter().zip(before..).map(move |(call, at)| {
            let function = CalledFunction { name: call.name, arguments: call.arguments };
            (at, ToolCall { index: None, id: call_id(&answer, choice, at), kind: "function", function })
        })
    }

    async fn whole(mut self, mut deltas: Deltas) -> Result<ChatCompletion, ApiError> {
        let mut choices = vec![Delta::default(); self.calls.len()];
        while let Some(item) = deltas.next().await {
            let (index, delta) = item?;
            self.usage.add(&delta, index == 0);
            let all = &mut choices[index];
            all.text.push_str(&delta.text);
            all.pieces.extend(delta.pieces);
            all.drawn.extend(delta.drawn);
            all.finish = delta.finish;
        }
        let choices = choices.into_iter().enumerate().map(|(index, all)| self.choice(index, all));
        Ok(ChatCompletion {
            choices: choices.collect(),
            envelope: self.envelope,
            usage: self.usage,
            prompt_token_ids: self.prompt_ids,
        })
    }

    /// A choice that has ended.
    fn choice(&mut self, index: usize, mut all: Delta) -> ChatChoice {
        let (logprobs, token_ids) = self.details(&mut all);
        let found = self.calls[index].find(all.text, true);
        let only_calls = !found.calls.is_empty() && found.text.trim().is_empty();
        let message = ChatMessage {
            role: ROLE,
            content: (!only_calls).then_some(found.text),
            refusal: None,
            tool_calls: self.told(found.calls, index, 0).map(|(_, call)| call).collect(),
        };
        let finish_reason = all.finish.map(|finish| self.calls[index].finish_reason(finish));
        ChatChoice { index, message, logprobs, finish_reason, token_ids }
    }
}

/// The id of a choice's call: nine letters and digits, the only form that the templates of Mistral's models take back. It
/// follows from the answer's own random id, so that an answer that is told again has the same.
fn call_id(answer: &str, choice: usize, call: usize) -> String {
    let hash = Sha256::digest(format!("{answer} {choice} {call}"));
    hash.iter()
        .take(CALL_ID_CHARS)
        .map(|byte| char::from_digit(u32::from(byte % 36), 36).unwrap_or('0'))
        .collect()
}

/// Turns deltas into chunks.
struct Streaming {
    writing: Writing,
    /// Whether the last chunk tells the usage.
    usage: bool,
}

impl Streaming {
    fn chunk(&mut self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> String {
        let prompt_token_ids = self.writing.prompt_ids.take();
        let usage = self.usage.then_some(usage);
        sse::event_text(&ChatChunk { envelope: &self.writing.envelope, choices, usage, prompt_token_ids })
    }
}

impl Chunks for Streaming {
    fn opening(&mut self) -> Vec<String> {
        let choices = self.writing.calls.len();
        let opening = |index| {
            let delta = ChunkDelta { role: Some(ROLE), content: Some(String::new()), tool_calls: Vec::new() };
            self.chunk(vec![ChunkChoice { index, delta, ..ChunkChoice::default() }], None)
        };
        (0..choices).map(opening).collect()
    }

    fn delta(&mut self, index: usize, mut delta: Delta) -> String {
        self.writing.usage.add(&delta, index == 0);
        let (logprobs, token_ids) = self.writing.details(&mut delta);
        let before = self.writing.calls[index].count;
        let found = self.writing.calls[index].find(delta.text, delta.finish.is_some());
        let calls = self.writing.told(found.calls, index, before);
        let tool_calls = calls.map(|(at, call)| ToolCall { index: Some(at), ..call }).collect();
        let content = (!found.text.is_empty()).then_some(found.text);
        let choice = ChunkChoice {
            index,
            delta: ChunkDelta { role: None, content, tool_calls },
            logprobs,
            finish_reason: delta.finish.map(|finish| self.writing.calls[index].finish_reason(finish)),
            token_ids,
        };
        self.chunk(vec![choice], None)
    }

    fn closing(&mut self) -> Option<String> {
        let usage = self.writing.usage;
        self.usage.then(|| self.chunk(Vec::new(), Some(usage)))
    }
}

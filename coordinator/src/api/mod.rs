//! The HTTP API: OpenAI's completions and chat, the models, health, metrics, the cluster's status and its workers, and
//! the dashboard.
//!
//! A request is parsed once, at the edge, into typed parameters: whatever is wrong, not built yet or not known is
//! refused by name, and nothing is ignored. Its prompt becomes token ids, the cluster behind [`Engine`] generates, and
//! `choice` turns tokens back into text, looking for stop strings on the way; `tool_calls` finds a model's calls in it. What a client is told of an error is an
//! [`ApiError`]. Prompts and answers are logged by `prompt_log` alone, where that was asked for.
//!
//! Main entry: [`serve`].

mod answers;
mod auth;
mod body;
mod caches;
mod chat;
mod chat_request;
mod choice;
mod comparisons;
mod completion_request;
mod completions;
mod dashboard;
mod echo;
mod engine;
mod envelope;
mod error;
mod fields;
mod forecast;
mod kept;
mod live;
mod logprobs;
mod messages;
mod pages;
mod params;
mod pin;
mod prompt_log;
mod prompts;
mod server;
mod sse;
mod state;
mod stop;
mod tool_calls;
mod tools;
mod watch;
mod workers;

use std::path::PathBuf;

pub use engine::Engine;
pub use error::ApiError;
pub use kept::KeptAnswers;
pub use prompt_log::PROMPTS_LOG;
pub use server::{ServeError, serve};

/// Who may use the API.
#[derive(Clone, Debug, Default)]
pub struct ApiSettings {
    /// Keys, any of which opens `/v1/`, `/api/` and `/metrics`. Where there are none, everyone who reaches the server
    /// may ask, except web pages of other hosts.
    pub api_keys: Vec<String>,
    /// Host names besides `localhost` and IP addresses that requests may be made to while there are no keys.
    pub hosts: Vec<String>,
    /// Where answers of requests with an `Idempotency-Key` are kept; `None` where such requests are refused.
    pub kept: Option<KeptAnswers>,
    /// Whether what requests ask and are answered is logged.
    pub log_prompts: bool,
    /// The state directory whose comparisons are listed; `None` where none are.
    pub comparisons: Option<PathBuf>,
}

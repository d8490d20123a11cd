//! `GET /api/devices` and `GET /api/forecast`: what plans are made with, and what is to be expected of the one that is
//! served.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use brigade_shard::plan::{Load, PROMPT_TOKENS};
use serde::Deserialize;

use super::engine::Engine;
use super::error::ApiError;
use super::state::Api;
use crate::generation::GenerationError;

/// Most streams that are asked about: many times what a pipeline serves.
const MOST_STREAMS: u32 = 4096;

/// A load.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForecastQuery {
    /// Sequences that decode at the same time.
    #[serde(default = "one")]
    streams: u32,
    /// Tokens of a prompt that comes alone.
    #[serde(default = "usual_prompt")]
    prompt: u32,
    /// Tokens of every sequence in the cache while it decodes.
    #[serde(default)]
    context: u32,
}

fn one() -> u32 {
    1
}

fn usual_prompt() -> u32 {
    PROMPT_TOKENS
}

/// `GET /api/devices`.
pub(crate) async fn devices<E: Engine>(State(api): State<Api<E>>) -> Response {
    Json(&*api.engine().devices()).into_response()
}

/// `GET /api/forecast?streams=8&prompt=512&context=100`.
pub(crate) async fn forecast<E: Engine>(
    State(api): State<Api<E>>,
    Query(query): Query<ForecastQuery>,
) -> Result<Response, ApiError> {
    let longest = api.engine().model().context_length;
    let within = |name: &str, value: u32, least: u32, most: u32| {
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        let message = format!("`{name}` must be between {least} and {most}, and is {value}");
        Err(ApiError::bad_param(name, "invalid_value", message))
    };
    let load = Load {
        streams: within("streams", query.streams, 1, MOST_STREAMS)?,
        prompt_tokens: within("prompt", query.prompt, 1, longest)?,
        context: within("context", query.context, 0, longest)?,
    };
    let forecast = api.engine().forecast(&load).ok_or_else(|| GenerationError::NotReady {
        reason: "no plan is served of which something could be expected".to_owned(),
    })?;
    Ok(Json(forecast).into_response())
}

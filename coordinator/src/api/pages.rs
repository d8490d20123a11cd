//! Everything besides generating: models, health, metrics, status, and the page that says what this is.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::engine::Engine;
use super::envelope::unix_seconds;
use super::error::ApiError;
use super::state::{Api, phase_in_words};
use crate::cluster::ModelInfo;
use crate::status::Phase;

/// The content type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Serialize)]
struct ModelEntry {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The longest sequence served, in tokens; as vLLM calls it. 0 while nothing is served.
    max_model_len: u32,
}

impl ModelEntry {
    fn new(model: &ModelInfo, context: u32) -> ModelEntry {
        ModelEntry {
            id: model.id.clone(),
            object: "model",
            created: unix_seconds(model.created),
            owned_by: "brigade",
            max_model_len: context,
        }
    }
}

/// `GET /v1/models`.
pub(crate) async fn models<E: Engine>(State(api): State<Api<E>>) -> Response {
    let entry = ModelEntry::new(api.engine().model(), api.engine().status().context);
    Json(json!({"object": "list", "data": [entry]})).into_response()
}

/// `GET /v1/models/{id}`.
pub(crate) async fn model<E: Engine>(
    State(api): State<Api<E>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    api.check_model(Some(&id))?;
    Ok(Json(ModelEntry::new(api.engine().model(), api.engine().status().context)).into_response())
}

/// `GET /health`: 200 only when a request would be served at once.
pub(crate) async fn health<E: Engine>(State(api): State<Api<E>>) -> Response {
    let context = api.served_context();
    let model = &api.engine().model().id;
    let status = api.engine().status();
    match context {
        Ok(context) => {
            let health = &status.health;
            Json(json!({"status": "ok", "model": model, "context": context, "health": health}))
                .into_response()
        }
        Err(error) => {
            let phase = if api.shutdown().is_cancelled() { Phase::Stopping } else { status.phase };
            let reason = status.reason.clone().unwrap_or_else(|| phase_in_words(phase).to_owned());
            let body = json!({"status": phase, "model": model, "reason": reason, "health": status.health});
            // The error's headers tell when to try again.
            let mut response = error.into_response();
            let retry = response.headers_mut().remove(header::RETRY_AFTER);
            let headers: HeaderMap = retry.map(|value| (header::RETRY_AFTER, value)).into_iter().collect();
            (StatusCode::SERVICE_UNAVAILABLE, headers, Json(body)).into_response()
        }
    }
}

/// `GET /readyz`: 200 when `/health` is, for probes that read words; what is not well is said in either case.
pub(crate) async fn readyz<E: Engine>(State(api): State<Api<E>>) -> Response {
    let status = api.engine().status();
    let health = &status.health;
    match api.served_context() {
        Ok(_) => {
            let why = health.reason.as_ref().map(|reason| format!("{}: {reason}\n", health.state.as_str()));
            format!("ok\n{}", why.unwrap_or_default()).into_response()
        }
        Err(_) => {
            let phase = if api.shutdown().is_cancelled() { Phase::Stopping } else { status.phase };
            let reason = status.reason.clone().unwrap_or_else(|| phase_in_words(phase).to_owned());
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response()
        }
    }
}

/// `GET /livez`: the process answers.
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /metrics`.
pub(crate) async fn metrics<E: Engine>(State(api): State<Api<E>>) -> Response {
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS))];
    (content_type, api.engine().metrics()).into_response()
}

/// `GET /api/status`.
pub(crate) async fn status<E: Engine>(State(api): State<Api<E>>) -> Response {
    Json(&*api.engine().status()).into_response()
}

/// `GET /` for what is no browser.
pub(crate) async fn index<E: Engine>(State(api): State<Api<E>>) -> String {
    format!(
        "Brigade {version}: one model over several machines\n\
         model: {model}\n\
         state: {state}\n\n\
         POST /v1/completions        text from a prompt\n\
         POST /v1/chat/completions   the answer to messages\n\
         GET  /v1/models             the model served\n\
         GET  /health                200 when requests are served\n\
         GET  /readyz                the same in words\n\
         GET  /livez                 200 when the process answers\n\
         GET  /metrics               OpenMetrics\n\
         GET  /api/status            plan, stages, workers and timings\n\
         GET  /api/devices           the workers' devices and links, as the planner sees them\n\
         GET  /api/forecast          what to expect of the plan; ?streams=N&prompt=N&context=N\n\
         GET  /api/stream            the same, the newest steps and events, as they change\n\
         GET  /api/timeline          the newest steps, stage by stage; ?after=STEP\n\
         GET  /api/events            what happened; ?after=ID&limit=N\n\
         GET  /api/comparisons       earlier comparisons with one box; ?limit=N, and /ID for all of one\n\
         GET  /api/choices           what is predicted of one box and of a cluster; ?streams=N,..&prompts=N,..&context=N\n\
         PUT  /api/pin               have certain workers hold the model; DELETE lets the planner choose again\n\
         POST /api/workers/ID/drain  empty a worker; DELETE takes it back into use\n",
        version = env!("CARGO_PKG_VERSION"),
        model = api.engine().model().id,
        state = phase_in_words(api.engine().status().phase),
    )
}

/// Any other path.
pub(crate) async fn unknown_route(request: Request) -> ApiError {
    ApiError::unknown_route(request.method().as_str(), request.uri().path())
}

/// A path that exists, by another method.
pub(crate) async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}

//! Emptying a worker, so that it can be unplugged, and taking it back into use.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::engine::Engine;
use super::error::ApiError;
use super::state::Api;

/// `POST /api/workers/{worker}/drain`, by the worker's name or id.
pub(crate) async fn drain<E: Engine>(
    State(api): State<Api<E>>,
    Path(worker): Path<String>,
) -> Result<Response, ApiError> {
    set(&api, &worker, true).await
}

/// `DELETE /api/workers/{worker}/drain`.
pub(crate) async fn undo<E: Engine>(
    State(api): State<Api<E>>,
    Path(worker): Path<String>,
) -> Result<Response, ApiError> {
    set(&api, &worker, false).await
}

async fn set<E: Engine>(api: &Api<E>, worker: &str, drain: bool) -> Result<Response, ApiError> {
    let found = api.engine().drain(worker, drain).await?;
    Ok(Json(json!({"id": found.id, "name": found.name, "drain": drain})).into_response())
}

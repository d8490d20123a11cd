//! What workers keep of models that came from other machines.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use brigade_shard::model_file::{Fingerprint, ParseFingerprintError};
use serde::Deserialize;
use serde_json::json;

use super::engine::Engine;
use super::error::ApiError;
use super::state::Api;
use crate::caches::{Caches, Deed};

/// Whose cache, where not all are meant.
#[derive(Debug, Deserialize)]
pub(crate) struct Whose {
    worker: Option<String>,
}

/// `GET /api/caches`.
pub(crate) async fn list<E: Engine>(
    State(api): State<Api<E>>,
    Query(whose): Query<Whose>,
) -> Result<Response, ApiError> {
    let workers = caches(&api)?.list(&api.engine().status(), whose.worker.as_deref()).await;
    Ok(Json(json!({ "workers": workers })).into_response())
}

/// `DELETE /api/caches/{fingerprint}`.
pub(crate) async fn remove<E: Engine>(
    State(api): State<Api<E>>,
    Path(model): Path<String>,
    Query(whose): Query<Whose>,
) -> Result<Response, ApiError> {
    act(&api, Deed::Remove, &model, &whose).await
}

/// `POST /api/caches/{fingerprint}/verify`.
pub(crate) async fn verify<E: Engine>(
    State(api): State<Api<E>>,
    Path(model): Path<String>,
    Query(whose): Query<Whose>,
) -> Result<Response, ApiError> {
    act(&api, Deed::Verify, &model, &whose).await
}

async fn act<E: Engine>(api: &Api<E>, deed: Deed, model: &str, whose: &Whose) -> Result<Response, ApiError> {
    let model: Fingerprint = model.parse().map_err(|error: ParseFingerprintError| {
        ApiError::bad_request("invalid_fingerprint", error.to_string())
    })?;
    let caches = caches(api)?;
    let workers = caches.act(deed, model, &api.engine().status(), whose.worker.as_deref()).await;
    Ok(Json(json!({ "workers": workers })).into_response())
}

fn caches<E: Engine>(api: &Api<E>) -> Result<Caches, ApiError> {
    let none = || ApiError::bad_request("no_caches", "there are no workers here whose caches could be asked");
    api.engine().caches().ok_or_else(none)
}

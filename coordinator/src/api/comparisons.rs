//! Earlier comparisons of this coordinator's state directory.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::engine::Engine;
use super::error::ApiError;
use super::state::Api;
use crate::compare::history::{History, HistoryError};

/// Comparisons that are listed where nobody says how many.
const COMPARISONS: usize = 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ComparisonsQuery {
    /// How many, the newest; the history holds no more than a thousand.
    limit: Option<usize>,
}

/// `GET /api/comparisons`: the newest, the newest first, each in a line.
pub(crate) async fn list<E: Engine>(
    State(api): State<Api<E>>,
    Query(query): Query<ComparisonsQuery>,
) -> Result<Response, ApiError> {
    let most = query.limit.unwrap_or(COMPARISONS);
    let listed = read(&api, move |history| history.list(most)).await?;
    Ok(Json(listed.unwrap_or_default()).into_response())
}

/// `GET /api/comparisons/{id}`: one with all that was measured.
pub(crate) async fn one<E: Engine>(
    State(api): State<Api<E>>,
    Path(id): Path<u64>,
) -> Result<Response, ApiError> {
    let found = read(&api, move |history| history.get(id)).await?.flatten();
    let found = found.ok_or_else(|| ApiError::unknown_comparison(id))?;
    Ok(Json(found).into_response())
}

/// What `read` finds in the history; `None` where there is no history.
async fn read<E: Engine, T: Send + 'static>(
    api: &Api<E>,
    read: impl FnOnce(&History) -> Result<T, HistoryError> + Send + 'static,
) -> Result<Option<T>, ApiError> {
    let Some(state) = api.comparisons().map(ToOwned::to_owned) else {
        return Ok(None);
    };
    let found = tokio::task::spawn_blocking(move || {
        History::open_to_read(&state)?.map(|history| read(&history)).transpose()
    });
    match found.await {
        Ok(found) => found.map_err(|error| ApiError::internal(error.to_string())),
        // The program is ending.
        Err(_) => Err(ApiError::stopping()),
    }
}

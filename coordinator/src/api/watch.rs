//! What people and programs watch a cluster by: its newest steps and its events.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::engine::Engine;
use super::state::Api;

/// Events that are listed where nobody says how many.
const EVENTS: usize = 200;
/// The most that may be asked for.
const MOST_EVENTS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimelineQuery {
    /// The newest step that is known already.
    #[serde(default)]
    after: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// The newest event that is known already.
    #[serde(default)]
    after: u64,
    /// How many, the newest.
    limit: Option<usize>,
}

/// `GET /api/timeline`.
pub(crate) async fn timeline<E: Engine>(
    State(api): State<Api<E>>,
    Query(query): Query<TimelineQuery>,
) -> Response {
    Json(api.engine().timeline(query.after)).into_response()
}

/// `GET /api/events`.
pub(crate) async fn events<E: Engine>(
    State(api): State<Api<E>>,
    Query(query): Query<EventsQuery>,
) -> Response {
    let most = query.limit.unwrap_or(EVENTS).min(MOST_EVENTS);
    Json(api.engine().events(query.after, most).await).into_response()
}

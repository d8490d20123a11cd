//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use super::answers::Deltas;
use super::choice::Delta;
use super::error::ApiError;

/// How often a comment is sent while there is nothing to say, during a long prompt or while a lost worker is made up for:
/// well below the idle limits of usual proxies (30 s and more), and how soon a client that left is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// The events of one kind of answer, as JSON texts.
pub(crate) trait Chunks: Send + 'static {
    /// What comes before the first delta.
    fn opening(&mut self) -> Vec<String>;
    /// What a delta of the choice `index` becomes.
    fn delta(&mut self, index: usize, delta: Delta) -> String;
    /// What comes after the last delta.
    fn closing(&mut self) -> Option<String>;
}

/// An answer's chunk as the text of an event.
pub(crate) fn event_text(chunk: &impl Serialize) -> String {
    // Chunks are plain structures with string keys: writing them cannot fail.
    serde_json::to_string(chunk)
        .unwrap_or_else(|error| ApiError::internal(error.to_string()).to_json().to_string())
}

/// Sends deltas as they come: each an event, then `[DONE]`. After an error the stream ends with the error object as its
/// last event instead. When the client leaves, the stream is dropped and with it every generation.
pub(crate) fn respond<C: Chunks>(deltas: Deltas, mut chunks: C) -> Response {
    let queued: VecDeque<String> = chunks.opening().into();
    let state = Sending { deltas: Some(deltas), chunks, queued };
    let events = stream::unfold(state, |mut state| async move {
        let text = state.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(text)), state))
    });
    Sse::new(events.boxed()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Sending<C> {
    /// Gone after the last delta or an error.
    deltas: Option<Deltas>,
    chunks: C,
    /// Events that are ready; none is longer in the queue than the opening and the closing are.
    queued: VecDeque<String>,
}

impl<C: Chunks> Sending<C> {
    async fn next(&mut self) -> Option<String> {
        if let Some(text) = self.queued.pop_front() {
            return Some(text);
        }
        match self.deltas.as_mut()?.next().await {
            Some(Ok((index, delta))) => Some(self.chunks.delta(index, delta)),
            Some(Err(error)) => {
                self.deltas = None;
                Some(error.to_json().to_string())
            }
            None => {
                self.deltas = None;
                self.queued.extend(self.chunks.closing());
                self.queued.push_back("[DONE]".to_owned());
                self.queued.pop_front()
            }
        }
    }
}

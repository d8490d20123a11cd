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
use super::kept::Wish;

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
///
/// The events of an answer that is kept are numbered from 0, and those that its client has seen are left out.
pub(crate) fn respond<C: Chunks>(deltas: Deltas, mut chunks: C, wish: Option<&Wish>) -> Response {
    let queued: VecDeque<String> = chunks.opening().into();
    let first = wish.map(|wish| wish.last_event.map_or(0, |seen| seen.saturating_add(1)));
    let state = Sending { deltas: Some(deltas), chunks, queued, next: 0 };
    let events = stream::unfold(state, move |mut state| async move {
        loop {
            let event = match (state.next().await?, first) {
                (Said::Part(_, number), Some(first)) if number < first => continue,
                (Said::Part(text, number), Some(_)) => Event::default().id(number.to_string()).data(text),
                (Said::Part(text, _) | Said::Error(text), _) => Event::default().data(text),
            };
            return Some((Ok::<_, Infallible>(event), state));
        }
    });
    Sse::new(events.boxed()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

struct Sending<C> {
    /// Gone after the last delta or an error.
    deltas: Option<Deltas>,
    chunks: C,
    /// Events that are ready; none is longer in the queue than the opening and the closing are.
    queued: VecDeque<String>,
    /// The number of the next event.
    next: u64,
}

/// What is sent.
enum Said {
    /// A part of the answer, with its number.
    Part(String, u64),
    /// Why there is no more of it.
    Error(String),
}

impl<C: Chunks> Sending<C> {
    async fn next(&mut self) -> Option<Said> {
        let text = match self.queued.pop_front() {
            Some(text) => text,
            None => match self.deltas.as_mut()?.next().await {
                Some(Ok((index, delta))) => self.chunks.delta(index, delta),
                Some(Err(error)) => {
                    self.deltas = None;
                    return Some(Said::Error(error.to_json().to_string()));
                }
                None => {
                    self.deltas = None;
                    self.queued.extend(self.chunks.closing());
                    self.queued.push_back("[DONE]".to_owned());
                    self.queued.pop_front()?
                }
            },
        };
        let number = self.next;
        self.next += 1;
        Some(Said::Part(text, number))
    }
}

//! `GET /api/stream`: how the cluster is, its steps and its events as they come, for whoever watches.
//!
//! Nothing is queued for a client: what it is told next is composed when it has taken what came before. One that is slow
//! gets fewer, newer states, and misses steps and events that the coordinator has let go of meanwhile.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::engine::Engine;
use super::error::ApiError;
use super::sse::event_text;
use super::state::Api;
use crate::status::ClusterStatus;

/// How often there may be something new: as often as the state is renewed, and as much as an eye can follow.
const TICK: Duration = Duration::from_millis(250);

/// How often a state comes that is as the one before: a client to whom nothing is told for a few of these is cut off.
const STATUS_AT_LEAST: Duration = Duration::from_secs(2);

/// How often events are asked for, which takes a look into a database. They must be seen within seconds.
const EVENTS_EVERY: Duration = Duration::from_secs(1);

/// Most events that are told at once, and of those before the client came.
const MOST_EVENTS: usize = 100;

/// Most steps that are told at once, the newest: some seconds of a fast cluster.
const MOST_STEPS: usize = 512;

/// Answers with the stream.
pub(crate) async fn stream<E: Engine>(State(api): State<Api<E>>) -> Result<Response, ApiError> {
    let permit = api.watch_permit()?;
    let watcher = Watcher::new(api, permit);
    let events = stream::unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((Ok::<_, Infallible>(event), watcher))
    });
    Ok(Sse::new(events.boxed()).into_response())
}

/// One client.
struct Watcher<E> {
    api: Api<E>,
    tick: Interval,
    /// What was composed last and has not been taken yet: a state, steps, and at most [`MOST_EVENTS`] events.
    composed: VecDeque<Event>,
    told: Told,
    /// The newest step told.
    step: u64,
    /// The newest event told.
    event: u64,
    /// When events were asked for.
    events_at: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

impl<E: Engine> Watcher<E> {
    fn new(api: Api<E>, permit: OwnedSemaphorePermit) -> Watcher<E> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Watcher {
            api,
            tick,
            composed: VecDeque::new(),
            told: Told::default(),
            step: 0,
            event: 0,
            events_at: None,
            _permit: permit,
        }
    }

    /// The next event; `None` once the server ends.
    async fn next(&mut self) -> Option<Event> {
        while self.composed.is_empty() {
            tokio::select! {
                biased;
                () = self.api.shutdown().cancelled() => return None,
                now = self.tick.tick() => self.compose(now).await,
            }
        }
        self.composed.pop_front()
    }

    async fn compose(&mut self, now: Instant) {
        let engine = self.api.engine();
        let status = engine.status();
        if self.told.is_due(&status, now) {
            self.composed.push_back(Event::default().event("status").data(event_text(&*status)));
        }
        let steps = engine.timeline(self.step);
        let newest = &steps[steps.len().saturating_sub(MOST_STEPS)..];
        if let Some(last) = newest.last() {
            self.step = last.step;
            self.composed.push_back(Event::default().event("steps").data(event_text(&newest)));
        }
        if self.events_at.is_none_or(|at| now.duration_since(at) >= EVENTS_EVERY) {
            self.events_at = Some(now);
            for event in engine.events(self.event, MOST_EVENTS).await {
                self.event = self.event.max(event.id);
                self.composed.push_back(Event::default().event("event").data(event_text(&event)));
            }
        }
    }
}

/// The state that was told last.
#[derive(Debug, Default)]
struct Told {
    last: Option<(Arc<ClusterStatus>, Instant)>,
}

impl Told {
    /// Whether to tell of `status` now, which then counts as told.
    fn is_due(&mut self, status: &Arc<ClusterStatus>, now: Instant) -> bool {
        let due = self
            .last
            .as_ref()
            .is_none_or(|(last, at)| now.duration_since(*at) >= STATUS_AT_LEAST || !is_same(last, status));
        if due {
            self.last = Some((Arc::clone(status), now));
        }
        due
    }
}

/// Whether nothing has changed but the time since workers were last heard of.
fn is_same(left: &Arc<ClusterStatus>, right: &Arc<ClusterStatus>) -> bool {
    let timeless = |status: &ClusterStatus| {
        let mut status = status.clone();
        status.workers.iter_mut().for_each(|worker| worker.last_seen_s = 0.0);
        status
    };
    Arc::ptr_eq(left, right) || timeless(left) == timeless(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::WorkerStatus;

    fn status(epoch: u64, last_seen_s: f64) -> Arc<ClusterStatus> {
        let worker = WorkerStatus { last_seen_s, ..WorkerStatus::default() };
        Arc::new(ClusterStatus { epoch, workers: vec![worker], ..ClusterStatus::default() })
    }

    #[test]
    fn a_state_is_told_when_it_changes_and_again_after_two_seconds() {
        let (mut told, start) = (Told::default(), Instant::now());
        let ms = |ms| start + Duration::from_millis(ms);
        assert!(told.is_due(&status(1, 0.1), ms(0)), "the first is told at once");
        assert!(!told.is_due(&status(1, 0.3), ms(250)), "that time passes is no change");
        assert!(told.is_due(&status(2, 0.5), ms(500)), "a change is told");
        assert!(!told.is_due(&status(2, 0.7), ms(2250)));
        assert!(told.is_due(&status(2, 0.9), ms(2500)), "and so it is that there was none");
    }
}

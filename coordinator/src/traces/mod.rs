//! Traces of requests for an OpenTelemetry collector: one a request, with a span each for waiting, prefill, decoding and
//! every stage. Only a share of the requests is traced, and those whose caller traces them. Never a prompt or an answer.
//!
//! [`Recording`] gathers what happens to one request; [`Tracer`] decides which are recorded and hands them to a task that
//! posts them as OTLP over HTTP in JSON (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).

mod export;
mod recording;

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

pub use self::recording::{Ending, Recording};
use crate::generation::{GenerationRequest, TraceParent};

/// Traces that wait to be posted: some seconds of them. Further ones are dropped and counted.
const QUEUE: usize = 512;

/// Where traces go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// The collector's address, such as `http://127.0.0.1:4318`.
    pub endpoint: String,
    /// Share of the requests that are traced, from 0 to 1.
    pub sample: f64,
}

/// Decides which requests are traced; and sends the traces off.
#[derive(Debug)]
pub struct Tracer {
    sample: f64,
    model: String,
    /// The workers of the stages that compute, for people.
    stages: Vec<String>,
    queue: mpsc::Sender<Vec<Value>>,
    dropped: Counter,
}

impl Tracer {
    /// Posts what is traced in a task that ends with this.
    ///
    /// # Errors
    /// Where an HTTP client cannot be made.
    pub fn start(
        settings: &TraceSettings,
        model: String,
        dropped: Counter,
        tasks: &TaskTracker,
    ) -> Result<Tracer, reqwest::Error> {
        let (queue, traces) = mpsc::channel(QUEUE);
        tasks.spawn(export::Exporter::new(&settings.endpoint, dropped.clone())?.run(traces));
        Ok(Tracer { sample: settings.sample, model, stages: Vec::new(), queue, dropped })
    }

    /// The workers of the stages that compute from now on.
    pub fn serve_on(&mut self, stages: Vec<String>) {
        self.stages = stages;
    }

    /// The beginning of a request's trace, where it is to be traced: as its caller wishes, or by chance.
    pub fn begin(&self, request: &GenerationRequest, now: Instant) -> Option<Recording> {
        let wanted = match request.trace.parent {
            Some(TraceParent { sampled, .. }) => sampled,
            None => chance().is_some_and(|chance| chance < self.sample),
        };
        if !wanted {
            return None;
        }
        Recording::begin(request, now)
    }

    /// Sends a trace off; `how` says how its request ended.
    pub fn end(&self, recording: Recording, how: Ending, now: Instant) {
        let spans = recording.end(&self.model, &self.stages, how, now);
        if self.queue.try_send(spans).is_err() {
            self.dropped.inc();
        }
    }
}

/// A random number from 0 to 1; `None` where the system has none.
fn chance() -> Option<f64> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).ok()?;
    Some(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

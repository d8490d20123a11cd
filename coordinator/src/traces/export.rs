//! Posting traces: in batches, and never in anybody's way.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::outgoing;

/// Most traces of one request to the collector.
const BATCH: usize = 64;
/// How long a batch waits for more.
const PAUSE: Duration = Duration::from_secs(1);
/// How long posting may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for the last batch, which the program's end waits for.
const LAST_PATIENCE: Duration = Duration::from_millis(300);

/// Posts traces until nobody makes any more.
pub(super) struct Exporter {
    url: String,
    http: reqwest::Client,
    dropped: Counter,
    /// Whether the last batch was not taken, which has been said.
    failing: bool,
}

impl Exporter {
    pub(super) fn new(endpoint: &str, dropped: Counter) -> Result<Exporter, reqwest::Error> {
        let http = outgoing::plain().build()?;
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        Ok(Exporter { url, http, dropped, failing: false })
    }

    pub(super) async fn run(mut self, mut traces: mpsc::Receiver<Vec<Value>>) {
        while let Some(first) = traces.recv().await {
            let mut batch = vec![first];
            let deadline = Instant::now() + PAUSE;
            let mut patience = PATIENCE;
            while batch.len() < BATCH {
                match tokio::time::timeout_at(deadline, traces.recv()).await {
                    Ok(Some(trace)) => batch.push(trace),
                    Ok(None) => {
                        patience = LAST_PATIENCE;
                        break;
                    }
                    Err(_) => break,
                }
            }
            self.post(batch, patience).await;
        }
    }

    async fn post(&mut self, batch: Vec<Vec<Value>>, patience: Duration) {
        let count = batch.len() as u64;
        let spans: Vec<Value> = batch.into_iter().flatten().collect();
        let resource = [("service.name", "brigade"), ("service.version", env!("CARGO_PKG_VERSION"))];
        let resource = resource.map(|(key, value)| json!({"key": key, "value": {"stringValue": value}}));
        let body = json!({"resourceSpans": [{
            "resource": {"attributes": resource},
            "scopeSpans": [{"scope": {"name": "brigade"}, "spans": spans}],
        }]});
        let answer = self.http.post(&self.url).timeout(patience).json(&body).send().await;
        match answer.and_then(reqwest::Response::error_for_status) {
            Ok(_) => self.failing = false,
            Err(error) => {
                self.dropped.inc_by(count);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("traces are dropped: {} does not take them: {error}", self.url);
                }
            }
        }
    }
}

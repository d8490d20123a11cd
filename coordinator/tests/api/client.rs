//! A server before an engine, and a client that speaks to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use brigade_coordinator::api::{self, ApiSettings, ServeError};
use brigade_coordinator::outgoing;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::engine::ScriptedEngine;

/// Longest time that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A running server and its client.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Ends it.
    pub shutdown: CancellationToken,
    /// Its task.
    pub task: JoinHandle<Result<(), ServeError>>,
    client: reqwest::Client,
}

impl Server {
    /// Serves `engine` without keys.
    pub async fn start(engine: ScriptedEngine) -> Server {
        Server::with(engine, ApiSettings::default()).await
    }

    /// Serves `engine`.
    pub async fn with(engine: ScriptedEngine, settings: ApiSettings) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(api::serve(listener, engine, settings, shutdown.clone()));
        Server { addr, shutdown, task, client: outgoing::plain().build().unwrap() }
    }

    /// A request that is not sent yet.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.addr)).timeout(PATIENCE)
    }

    /// Status and JSON of a GET.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.request(Method::GET, path).send().await.unwrap()).await
    }

    /// The response to a POST of JSON text.
    pub async fn send(&self, path: &str, body: impl ToString) -> Response {
        self.request(Method::POST, path).body(body.to_string()).send().await.unwrap()
    }

    /// Status and JSON of a POST of JSON text.
    pub async fn post(&self, path: &str, body: impl ToString) -> (StatusCode, Value) {
        read(self.send(path, body).await).await
    }

    /// The answer to a completion request, which must be granted.
    pub async fn complete(&self, body: impl ToString) -> Value {
        granted(self.post("/v1/completions", body).await)
    }

    /// The answer to a chat request, which must be granted.
    pub async fn chat(&self, body: impl ToString) -> Value {
        granted(self.post("/v1/chat/completions", body).await)
    }

    /// The events of a stream, whose request must be granted; `[DONE]` is a string.
    pub async fn events(&self, path: &str, body: impl ToString) -> Vec<Value> {
        let response = self.send(path, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        events_of(&response.text().await.unwrap())
    }
}

/// The data of each event in a stream's text.
pub fn events_of(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(':'));
    lines
        .map(|line| line.strip_prefix("data: ").unwrap_or_else(|| panic!("no event: {line:?}")))
        .map(|data| serde_json::from_str(data).unwrap_or_else(|_| Value::from(data)))
        .collect()
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON with {status}: {text:?}")))
}

fn granted((status, answer): (StatusCode, Value)) -> Value {
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

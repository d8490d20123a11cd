//! An answer as it comes: its tokens with the time of each, and whatever else the stream holds.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::http::Client;

/// A completion that is being streamed.
#[derive(Debug)]
pub struct Streaming {
    so_far: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

/// What a stream has told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// When it was asked for.
    pub asked: Option<Instant>,
    /// The text.
    pub text: String,
    /// The token ids.
    pub tokens: Vec<u32>,
    /// When each of them came.
    pub times: Vec<Instant>,
    /// When comments came, which keep the stream alive.
    pub comments: Vec<Instant>,
    /// How the answer ended.
    pub finish: Option<String>,
    /// The error that ended it instead.
    pub error: Option<Value>,
    /// Whether the stream ended in order.
    pub done: bool,
    /// The number of its last event, where these have any.
    pub last_event: Option<u64>,
}

impl Told {
    /// From asking to the first token.
    pub fn first_token(&self) -> Duration {
        let first = self.asked.zip(self.times.first().copied());
        first.map_or(Duration::ZERO, |(asked, first)| first.saturating_duration_since(asked))
    }

    /// The longest time after `from` that passed until the next token.
    pub fn longest_gap(&self, from: Instant) -> Duration {
        let later = self.times.iter().copied().filter(|time| *time >= from);
        let (mut last, mut longest) = (from, Duration::ZERO);
        for time in later {
            longest = longest.max(time - last);
            last = time;
        }
        longest
    }

    /// Takes in a line of the stream.
    pub fn take(&mut self, line: &str) {
        let now = Instant::now();
        if line.starts_with(':') {
            self.comments.push(now);
        }
        if let Some(number) = line.strip_prefix("id: ") {
            self.last_event = Some(number.parse().expect("an event's id is a number"));
        }
        let Some(data) = line.strip_prefix("data: ") else {
            return;
        };
        if data == "[DONE]" {
            self.done = true;
            return;
        }
        let event: Value = serde_json::from_str(data).unwrap_or_else(|_| panic!("no JSON: {data}"));
        if let Some(error) = event.get("error") {
            self.error = Some(error.clone());
            return;
        }
        let choice = &event["choices"][0];
        self.text.push_str(choice["text"].as_str().unwrap_or_default());
        for token in choice["token_ids"].as_array().into_iter().flatten() {
            self.tokens.push(token.as_u64().expect("an id is a number") as u32);
            self.times.push(now);
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
    }
}

impl Streaming {
    /// Begins to stream a completion; `request` needs no model.
    pub async fn start(client: &Client, model: &str, request: Value) -> Streaming {
        Streaming::begin(client, model, request, Vec::new(), Told::default()).await
    }

    /// The same with a key, under which the answer is kept; it goes on behind what was told `before`.
    pub async fn start_kept(
        client: &Client,
        model: &str,
        request: Value,
        key: &str,
        before: Told,
    ) -> Streaming {
        let mut headers = vec![("Idempotency-Key", key.to_owned())];
        headers.extend(before.last_event.map(|number| ("Last-Event-ID", number.to_string())));
        Streaming::begin(client, model, request, headers, before).await
    }

    async fn begin(
        client: &Client,
        model: &str,
        mut request: Value,
        headers: Vec<(&'static str, String)>,
        before: Told,
    ) -> Streaming {
        request["model"] = model.into();
        request["stream"] = json!(true);
        request["return_token_ids"] = json!(true);
        let told = Told { asked: Some(Instant::now()), ..before };
        let so_far = Arc::new(Mutex::new(told));
        let (client, shared) = (client.clone(), so_far.clone());
        let task = tokio::spawn(async move {
            let mut response =
                client.begin_with("/v1/completions", request.to_string().into_bytes(), &headers).await;
            let mut text = Vec::new();
            if !response.status().is_success() {
                let status = response.status().as_u16();
                let body = response.text().await.unwrap_or_default();
                lock(&shared).error = Some(json!({ "status": status, "body": body }));
                return;
            }
            while let Ok(Some(bytes)) = response.chunk().await {
                text.extend(bytes);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    lock(&shared).take(String::from_utf8_lossy(&line).trim_end());
                }
            }
        });
        Streaming { so_far, task }
    }

    /// What it has told so far.
    pub fn so_far(&self) -> Told {
        lock(&self.so_far).clone()
    }

    /// How many tokens have come.
    pub fn count(&self) -> usize {
        lock(&self.so_far).tokens.len()
    }

    /// Whether the stream has ended.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end.
    pub async fn end(self, limit: Duration) -> Told {
        let ended = tokio::time::timeout(limit, self.task).await;
        let told = lock(&self.so_far).clone();
        match ended {
            Ok(Ok(())) => told,
            Ok(Err(error)) => panic!("the reader of a stream ended badly: {error}"),
            Err(_) => panic!("the stream has not ended within {limit:?}; so far it told {told:?}"),
        }
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().expect("a reader never panics while it holds this")
}

//! A client of the HTTP API that keeps what a test wants to look at.

use std::time::Duration;

use brigade_coordinator::outgoing;
use serde_json::{Value, json};

/// A server's address with a connection pool.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
    http: reqwest::Client,
    key: Option<String>,
}

/// An answer: its status and its JSON.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// The body; a string where it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The body of a successful answer.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{:#}", self.body);
        self.body
    }

    /// The `error` object of a refusal with this status.
    #[track_caller]
    pub fn error(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{:#}", self.body);
        assert!(self.body["error"]["message"].is_string(), "not in OpenAI's error shape: {:#}", self.body);
        self.body["error"].clone()
    }
}

impl Client {
    /// A client of the server at `url`.
    pub fn new(url: &str) -> Client {
        let http = outgoing::plain()
            .timeout(Duration::from_secs(300))
            .build()
            .expect("a client that trusts nobody can always be made");
        Client { url: url.trim_end_matches('/').to_owned(), http, key: None }
    }

    /// The same with an API key.
    pub fn with_key(&self, key: &str) -> Client {
        Client { key: Some(key.to_owned()), ..self.clone() }
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        let request = self.http.get(format!("{}{path}", self.url));
        let response = self.authorized(request).send().await;
        read(response.unwrap_or_else(|error| panic!("failed to get {path}: {error:?}"))).await
    }

    /// `GET path` with further headers, with the body of the answer still to come.
    pub async fn begin_get(&self, path: &str, headers: &[(&'static str, &str)]) -> reqwest::Response {
        let request = self.http.get(format!("{}{path}", self.url));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = self.authorized(request).send().await;
        response.unwrap_or_else(|error| panic!("failed to get {path}: {error:?}"))
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    /// `POST path` with any bytes, said to be JSON.
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        let response = self.begin(path, body).await;
        read(response).await
    }

    /// `POST path`, with the body of the answer still to come.
    pub async fn begin(&self, path: &str, body: Vec<u8>) -> reqwest::Response {
        self.begin_with(path, body, &[]).await
    }

    /// The same with more headers.
    pub async fn begin_with(
        &self,
        path: &str,
        body: Vec<u8>,
        headers: &[(&str, String)],
    ) -> reqwest::Response {
        let request =
            self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let request = self.authorized(request.body(body));
        request.send().await.unwrap_or_else(|error| panic!("failed to post to {path}: {error:?}"))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Log-probabilities of `tokens`, each given those before it; the first has none.
    pub async fn score(&self, tokens: &[u32]) -> Vec<Option<f64>> {
        let request = json!({ "prompt": tokens, "max_tokens": 0, "echo": true, "logprobs": 0, "model": self.model().await });
        let answer = self.post("/v1/completions", &request).await.ok();
        let scores = answer["choices"][0]["logprobs"]["token_logprobs"].as_array();
        let scores = scores.unwrap_or_else(|| panic!("no token_logprobs in {answer:#}"));
        assert_eq!(scores.len(), tokens.len(), "one log-probability per token");
        scores.iter().map(Value::as_f64).collect()
    }

    /// A completion; `request` gets the model's name.
    pub async fn complete(&self, mut request: Value) -> Value {
        request["model"] = self.model().await.into();
        self.post("/v1/completions", &request).await.ok()
    }

    /// The name of the model served.
    pub async fn model(&self) -> String {
        let models = self.get("/v1/models").await.ok();
        models["data"][0]["id"].as_str().unwrap_or_else(|| panic!("no model in {models:#}")).to_owned()
    }

    /// A counter or gauge of `/metrics`, by its whole name with its labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let metrics = self.get("/metrics").await.ok();
        let metrics = metrics.as_str().expect("metrics are text");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{name} is missing in\n{metrics}"))
    }

    /// The cluster's state.
    pub async fn status(&self) -> Value {
        self.get("/api/status").await.ok()
    }
}

async fn read(response: reqwest::Response) -> Answer {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap_or_else(|error| panic!("failed to read an answer: {error:?}"));
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, body }
}

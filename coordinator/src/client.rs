//! A coordinator's HTTP as the commands use it: its status, its models, and answers that are streamed.

pub(crate) mod events;

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::events::EventStream;
use crate::caches::{Deed, WorkerCache};
use crate::compare::choices::{ChoiceLoads, SideChoices};
use crate::outgoing;
use crate::planning::LiveDevices;
use crate::status::{ClusterStatus, EventRecord, StepTrace};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer that is not streamed may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a coordinator gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is not one we can use.
    #[error("`{url}` is not a URL of a coordinator: write it as http://HOST:PORT")]
    BadUrl {
        /// What was given.
        url: String,
    },
    /// Nobody answers there.
    #[error("no coordinator answers at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The request was refused.
    #[error("the coordinator at {url} answered {status}: {message}{remedy}")]
    Refused {
        /// Where.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's message.
        message: String,
        /// The server's name for the error, such as `context_length_exceeded`.
        code: Option<String>,
        /// What to do, as the end of the sentence.
        remedy: &'static str,
    },
    /// The answer is not what a coordinator answers.
    #[error("what answers at {url} is not a coordinator of this version: {reason}")]
    Malformed {
        /// Where.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The answer broke off.
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// A coordinator to ask.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
    api_key: Option<String>,
    name: Option<String>,
    http: reqwest::Client,
}

/// What to ask in a chat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// The model's id.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Seed of the sampling.
    pub seed: Option<u64>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What was said.
    pub content: String,
}

/// A piece of a chat's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatEvent {
    /// More text.
    Text(String),
    /// The answer has ended, with the reason in OpenAI's words.
    Finished(String),
    /// Tokens counted by the server.
    Usage {
        /// Tokens of the prompt.
        prompt: u64,
        /// Tokens of the answer.
        completion: u64,
    },
}

/// A chat's answer on its way. Dropping it ends the generation.
pub struct ChatStream {
    events: EventStream,
    waiting: Vec<ChatEvent>,
}

/// A completion of token ids, of exactly `max_tokens` tokens: an end token does not end it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRequest {
    /// The model's id.
    pub model: String,
    /// The prompt's token ids; not empty.
    pub prompt: Vec<u32>,
    /// Tokens of the answer; at least 1.
    pub max_tokens: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of the sampling.
    pub seed: u64,
}

/// A piece of an answer in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenEvent {
    /// So many tokens have come at once.
    Tokens(usize),
    /// Tokens counted by the server.
    Usage {
        /// Tokens of the prompt.
        prompt: u64,
        /// Those of them that were in the cache already.
        cached: u64,
    },
}

/// An answer in tokens on its way. Dropping it ends the generation.
pub struct TokenStream {
    events: EventStream,
}

impl Client {
    /// A client of the coordinator at `url` (`http://HOST:PORT`).
    ///
    /// # Errors
    /// Where `url` is not of that form.
    pub fn new(url: &str, api_key: Option<String>) -> Result<Client, ClientError> {
        let bad = || ClientError::BadUrl { url: url.to_owned() };
        let parsed = reqwest::Url::parse(url).map_err(|_| bad())?;
        if parsed.scheme() != "http" || parsed.host_str().is_none() {
            return Err(bad());
        }
        // A proxy stands between us and the internet, not between us and our own cluster.
        let http = outgoing::plain().connect_timeout(CONNECT_TIMEOUT).build();
        let http =
            http.map_err(|error| ClientError::Unreachable { url: url.to_owned(), reason: chain(&error) })?;
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Client { url, api_key, name: None, http })
    }

    /// The same, which says who asks where others are shown that.
    pub fn named(self, name: &str) -> Client {
        Client { name: Some(name.to_owned()), ..self }
    }

    /// Where the coordinator is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether a coordinator answers there at all.
    pub async fn is_alive(&self) -> bool {
        let answer = self.http.get(format!("{}/livez", self.url)).timeout(ANSWER_TIMEOUT).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// The cluster's state.
    ///
    /// # Errors
    /// Where there is no answer, or not the wanted one.
    pub async fn status(&self) -> Result<ClusterStatus, ClientError> {
        self.get("/api/status").await
    }

    /// The devices of its attached workers, as its planner sees them.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn devices(&self) -> Result<LiveDevices, ClientError> {
        self.get("/api/devices").await
    }

    /// The newest steps with a larger number than `after`, oldest first.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn timeline(&self, after: u64) -> Result<Vec<StepTrace>, ClientError> {
        self.get(&format!("/api/timeline?after={after}")).await
    }

    /// Events with a larger number than `after`, oldest first; of more than `most` the newest.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn events(&self, after: u64, most: usize) -> Result<Vec<EventRecord>, ClientError> {
        self.get(&format!("/api/events?after={after}&limit={most}")).await
    }

    /// Begins to empty a worker, by its name or id, or lets it be used again; its id.
    ///
    /// # Errors
    /// As [`Client::status`], and where there is no such worker or the others have no room.
    pub async fn drain(&self, worker: &str, drain: bool) -> Result<String, ClientError> {
        #[derive(Deserialize)]
        struct Answer {
            id: String,
        }
        let bad = || ClientError::BadUrl { url: self.url.clone() };
        let mut url = reqwest::Url::parse(&self.url).map_err(|_| bad())?;
        // A name may hold whatever it likes.
        url.path_segments_mut().map_err(|()| bad())?.extend(["api", "workers", worker, "drain"]);
        let method = if drain { reqwest::Method::POST } else { reqwest::Method::DELETE };
        let answer = self.send(self.http.request(method, url).timeout(ANSWER_TIMEOUT)).await?;
        let answer: Result<Answer, _> = answer.json().await;
        let answer = answer
            .map_err(|error| ClientError::Malformed { url: self.url.clone(), reason: chain(&error) })?;
        Ok(answer.id)
    }

    /// Has plans made over certain workers alone, by their names or ids, one stage each; with as many layers in each stage
    /// of the pipeline as `split` says, unless it is empty. With a time to live the pin ends by itself unless
    /// [`Client::renew_pin`] says that it is still wanted.
    ///
    /// # Errors
    /// As [`Client::status`], and where there is no such worker or these workers cannot hold the model.
    pub async fn pin(
        &self,
        workers: &[String],
        split: &[usize],
        ttl: Option<Duration>,
    ) -> Result<(), ClientError> {
        self.put_pin(workers, split, ttl, false).await
    }

    /// Lets a pin without a split hold for its time to live from now on.
    ///
    /// # Errors
    /// As [`Client::status`], and where the plan is not pinned to these workers any more.
    pub async fn renew_pin(&self, workers: &[String], ttl: Duration) -> Result<(), ClientError> {
        self.put_pin(workers, &[], Some(ttl), true).await
    }

    async fn put_pin(
        &self,
        workers: &[String],
        split: &[usize],
        ttl: Option<Duration>,
        renew: bool,
    ) -> Result<(), ClientError> {
        let ttl_s = ttl.map(|ttl| ttl.as_secs().max(1));
        let by = self.name.as_deref();
        let body = json!({"workers": workers, "split": split, "ttl_s": ttl_s, "renew": renew, "by": by});
        let request = self.http.put(format!("{}/api/pin", self.url)).json(&body);
        self.send(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Lets the planner choose again.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn unpin(&self) -> Result<(), ClientError> {
        let request = self.http.delete(format!("{}/api/pin", self.url));
        self.send(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// What a comparison could measure on the cluster's workers, with what is predicted under these loads.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn choices(&self, loads: &ChoiceLoads) -> Result<SideChoices, ClientError> {
        let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let (streams, prompts) = (list(&loads.streams), list(&loads.prompts));
        self.get(&format!("/api/choices?streams={streams}&prompts={prompts}&context={}", loads.context)).await
    }

    /// The ids of the models served.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn models(&self) -> Result<Vec<String>, ClientError> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let models: Models = self.get("/v1/models").await?;
        Ok(models.data.into_iter().map(|model| model.id).collect())
    }

    /// Asks for the answer in a chat.
    ///
    /// # Errors
    /// Where it is refused at once.
    pub async fn chat(&self, request: &ChatRequest) -> Result<ChatStream, ClientError> {
        let messages: Vec<Value> =
            request.messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
        let mut body = json!({
            "model": request.model,
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                body[key] = value;
            }
        };
        set("max_tokens", request.max_tokens.map(Value::from));
        set("temperature", request.temperature.map(Value::from));
        set("seed", request.seed.map(Value::from));
        let answer =
            self.send(self.http.post(format!("{}/v1/chat/completions", self.url)).json(&body)).await?;
        Ok(ChatStream { events: EventStream::new(answer), waiting: Vec::new() })
    }

    /// Asks for the tokens that follow a prompt.
    ///
    /// # Errors
    /// Where it is refused at once.
    pub async fn complete(&self, request: &TokenRequest) -> Result<TokenStream, ClientError> {
        let body = json!({
            "model": request.model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "ignore_eos": true,
            "return_token_ids": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let answer = self.send(self.http.post(format!("{}/v1/completions", self.url)).json(&body)).await?;
        Ok(TokenStream { events: EventStream::new(answer) })
    }

    /// What workers keep of models that came from other machines; of one, where it is named.
    ///
    /// # Errors
    /// Where there is no answer, or not the wanted one.
    pub async fn caches(&self, worker: Option<&str>) -> Result<Vec<WorkerCache>, ClientError> {
        self.of_caches(reqwest::Method::GET, &["api", "caches"], worker).await
    }

    /// Removes a model from workers' caches, or checks it there.
    ///
    /// # Errors
    /// Where there is no answer, or not the wanted one.
    pub async fn act_on_caches(
        &self,
        deed: Deed,
        fingerprint: &str,
        worker: Option<&str>,
    ) -> Result<Vec<WorkerCache>, ClientError> {
        match deed {
            Deed::Remove => {
                self.of_caches(reqwest::Method::DELETE, &["api", "caches", fingerprint], worker).await
            }
            Deed::Verify => {
                let path = ["api", "caches", fingerprint, "verify"];
                self.of_caches(reqwest::Method::POST, &path, worker).await
            }
        }
    }

    async fn of_caches(
        &self,
        method: reqwest::Method,
        path: &[&str],
        worker: Option<&str>,
    ) -> Result<Vec<WorkerCache>, ClientError> {
        #[derive(Deserialize)]
        struct Answer {
            workers: Vec<WorkerCache>,
        }
        let bad = || ClientError::BadUrl { url: self.url.clone() };
        let mut url = reqwest::Url::parse(&self.url).map_err(|_| bad())?;
        url.path_segments_mut().map_err(|()| bad())?.extend(path);
        if let Some(worker) = worker {
            url.query_pairs_mut().append_pair("worker", worker);
        }
        // Checking a cache takes as long as reading it.
        let answer: Result<Answer, _> = self.send(self.http.request(method, url)).await?.json().await;
        let malformed = |error| ClientError::Malformed { url: self.url.clone(), reason: chain(&error) };
        answer.map(|answer| answer.workers).map_err(malformed)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.http.get(format!("{}{path}", self.url)).timeout(ANSWER_TIMEOUT);
        let answer = self.send(request).await?;
        answer
            .json()
            .await
            .map_err(|error| ClientError::Malformed { url: self.url.clone(), reason: chain(&error) })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let request = match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let answer = request
            .send()
            .await
            .map_err(|error| ClientError::Unreachable { url: self.url.clone(), reason: chain(&error) })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body: Value = answer.json().await.unwrap_or_default();
        let message = body["error"]["message"].as_str().or_else(|| body["reason"].as_str());
        let remedy = if status.as_u16() == 401 { "; give --api-key or BRIGADE_API_KEY" } else { "" };
        Err(ClientError::Refused {
            url: self.url.clone(),
            status: status.as_u16(),
            message: message.unwrap_or("no message; is it a coordinator?").to_owned(),
            code: body["error"]["code"].as_str().map(str::to_owned),
            remedy,
        })
    }
}

impl ChatStream {
    /// The next piece of the answer; `None` after the last.
    ///
    /// # Errors
    /// Where the answer breaks off or the server reports a failure.
    pub async fn next(&mut self) -> Result<Option<ChatEvent>, ClientError> {
        while self.waiting.is_empty() {
            let Some(event) = self.events.next().await? else {
                return Ok(None);
            };
            self.take(&event);
        }
        Ok(Some(self.waiting.remove(0)))
    }

    /// Takes one event apart.
    fn take(&mut self, event: &Value) {
        let choice = &event["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            self.waiting.push(ChatEvent::Text(text.to_owned()));
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.waiting.push(ChatEvent::Finished(reason.to_owned()));
        }
        if let Some(usage) = event["usage"].as_object() {
            let count = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
            self.waiting.push(ChatEvent::Usage { prompt, completion });
        }
    }
}

impl TokenStream {
    /// The next tokens of the answer, as many as came at once; `None` after the last.
    ///
    /// # Errors
    /// Where the answer breaks off or the server reports a failure.
    pub async fn next(&mut self) -> Result<Option<TokenEvent>, ClientError> {
        while let Some(event) = self.events.next().await? {
            if let Some(prompt) = event["usage"]["prompt_tokens"].as_u64() {
                let cached = event["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
                return Ok(Some(TokenEvent::Usage { prompt, cached }));
            }
            let tokens = event["choices"][0]["token_ids"].as_array().map_or(0, Vec::len);
            if tokens > 0 {
                return Ok(Some(TokenEvent::Tokens(tokens)));
            }
        }
        Ok(None)
    }
}

/// An error and its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut parts = vec![error.to_string()];
    parts.extend(causes.map(ToString::to_string));
    parts.dedup();
    // The outermost says that sending failed and repeats the URL; the innermost says why.
    parts.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_are_taken() {
        for url in ["", "127.0.0.1:7480", "https://host", "ftp://host", "http://"] {
            assert!(matches!(Client::new(url, None), Err(ClientError::BadUrl { .. })), "{url}");
        }
        assert_eq!(Client::new("http://host:1/v1/", None).unwrap().url(), "http://host:1");
    }
}

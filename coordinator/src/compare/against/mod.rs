//! Another server measured with the load that a cluster is measured with: any that speaks OpenAI's HTTP API, such as
//! llama-server, vLLM, Ollama, exo or Brigade itself.
//!
//! [`Other::find`] asks for its model, and finds out what it takes: token ids, or else text; completions, or else chats;
//! answers of exactly so many tokens, or else what comes. What had to be given up is among [`Other::notes`].

mod answer;
mod form;
mod prompts;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde_json::Value;

use self::answer::{Answer, Counting};
use self::form::{Ask, Endpoint, Form, Prompt};
use self::prompts::{Scale, TextPrompts};
use super::{Figure, Quantity, Side, SideKind};
use crate::bench::{Figures, Prompts, Stream, Test, TestKind, median};
use crate::client::chain;
use crate::client::events::{EventStream, Streamed};
use crate::outgoing;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a list of models may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may say nothing while it should answer: a slow one reads many long prompts first.
const SILENCE: Duration = Duration::from_secs(300);
/// The largest refusal that is read, in bytes, and how much of it is told, in characters.
const REFUSAL_BYTES: usize = 64 << 10;
const REFUSAL_CHARACTERS: usize = 300;
/// Prompts by which is found out what a server takes, in tokens or words.
const SHORT_PROBE: u32 = 16;
const LONG_PROBE: u32 = 80;
/// Tokens that a server may put before and behind ids without its being in doubt that it took them as ids.
const AROUND_IDS: u64 = 4;
/// The fewest tokens of an answer whose speed is told.
const FEWEST_TOKENS: usize = 8;
/// Most models that an error lists.
const LISTED_MODELS: usize = 8;
/// Decoded tokens of the warm-up.
const WARM_UP_TOKENS: u32 = 8;

/// How another server is to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct OtherSettings {
    /// The model's name there; the only one that it lists where this is `None`.
    pub model: Option<String>,
    /// A key, where it wants one.
    pub api_key: Option<String>,
    /// Token ids of the model that it is compared with: prompts are drawn from as many. 0 for prompts of words.
    pub vocabulary: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// How long it may say nothing while it should answer.
    pub silence: Duration,
}

impl Default for OtherSettings {
    fn default() -> OtherSettings {
        OtherSettings {
            model: None,
            api_key: None,
            vocabulary: 0,
            temperature: 1.0,
            seed: 0,
            silence: SILENCE,
        }
    }
}

/// Why another server could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum OtherError {
    /// The URL is not one we can use.
    #[error("`{url}` is not the URL of a server: write it as http://HOST:PORT (https is not spoken)")]
    BadUrl {
        /// What was given.
        url: String,
    },
    /// Nobody answers there.
    #[error("nothing answers at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// A request was refused.
    #[error("{url} answered {status}: {message}{remedy}")]
    Refused {
        /// Where, with the path.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's message.
        message: String,
        /// What to do, as the end of the sentence.
        remedy: &'static str,
    },
    /// It does not say which model to measure.
    #[error("{url} lists {listed}: give the model's name there with --against-model")]
    WhichModel {
        /// Where, with the path.
        url: String,
        /// What it lists, in words.
        listed: String,
    },
    /// What came is not what such a server answers.
    #[error("what {url} answered is not what an OpenAI-compatible server answers: {reason}")]
    Malformed {
        /// Where, with the path.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// An answer broke off.
    #[error("the answer of {url} broke off after {tokens} tokens: {reason}")]
    Broken {
        /// Where, with the path.
        url: String,
        /// What had come.
        tokens: usize,
        /// What happened.
        reason: String,
    },
    /// Nothing more came.
    #[error(
        "{url} sent nothing for {seconds} s after {tokens} tokens; is it busy with other requests, or out of memory?"
    )]
    Silent {
        /// Where, with the path.
        url: String,
        /// What had come.
        tokens: usize,
        /// For how long.
        seconds: u64,
    },
}

/// Another server, and the way to ask it.
#[derive(Debug)]
pub struct Other {
    url: String,
    http: reqwest::Client,
    settings: OtherSettings,
    model: String,
    form: Form,
    ids: Prompts,
    words: TextPrompts,
    /// Whether it counts tokens.
    is_counting: bool,
    /// The number of the next stream, from which its seed follows.
    stream: u64,
}

/// What a round came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// What was seen, by the quantity.
    pub figures: Vec<(Quantity, f64)>,
    /// What could not be measured, or only somehow, one sentence each.
    pub notes: Vec<String>,
}

impl Other {
    /// Finds the model and the form of requests of the server at `url` (`http://HOST:PORT`, with or without `/v1`).
    ///
    /// # Errors
    /// [`OtherError`], with the URL and what to do.
    pub async fn find(url: &str, settings: OtherSettings) -> Result<Other, OtherError> {
        let bad = || OtherError::BadUrl { url: url.to_owned() };
        let parsed = reqwest::Url::parse(url).map_err(|_| bad())?;
        if parsed.scheme() != "http" || parsed.host_str().is_none() || parsed.query().is_some() {
            return Err(bad());
        }
        // A proxy would be measured along with it.
        let http = outgoing::plain().connect_timeout(CONNECT_TIMEOUT).build();
        let http =
            http.map_err(|error| OtherError::Unreachable { url: url.to_owned(), reason: chain(&error) })?;
        let mut other = Other {
            url: url.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/').to_owned(),
            http,
            model: String::new(),
            form: Form::fullest(settings.vocabulary > 0),
            ids: Prompts::new(settings.seed, settings.vocabulary),
            words: TextPrompts::new(settings.seed),
            is_counting: true,
            stream: 0,
            settings,
        };
        other.model = match other.settings.model.clone() {
            Some(model) => model,
            None => other.only_model().await?,
        };
        other.negotiate().await?;
        Ok(other)
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The model's name there.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What differs from how a cluster is measured, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let Form { endpoint, ids, ignore_eos, min_tokens, .. } = self.form;
        let url = &self.url;
        let all = [
            (endpoint == Endpoint::Chat, format!("{url} is asked in chats: it has no completions")),
            (
                !ids && self.is_counting,
                format!("{url} is asked with words, about as many tokens long: it takes no token ids"),
            ),
            (
                !self.is_counting,
                format!(
                    "{url} does not count tokens: pieces of text are counted, and a word of a prompt as a token"
                ),
            ),
            (
                !ignore_eos && !min_tokens,
                format!(
                    "{url} ends answers where its model does: it takes neither `ignore_eos` nor `min_tokens`"
                ),
            ),
        ];
        all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, note)| note).collect()
    }

    /// The side of a comparison that it is, with these figures.
    pub fn side(&self, figures: Vec<Figure>) -> Side {
        let (shares, resident) = (Vec::new(), Vec::new());
        Side { kind: SideKind::Other, name: self.url.clone(), plan: None, figures, shares, resident }
    }

    /// Runs what allocates for the first time: the longest prompt, and the most streams.
    ///
    /// # Errors
    /// [`OtherError`], with the URL and what to do.
    pub async fn warm_up(&mut self, tests: &[Test]) -> Result<(), OtherError> {
        let longest = tests.iter().map(Test::prompt_tokens).max().unwrap_or(1);
        let most = tests.iter().map(|test| test.streams).max().unwrap_or(1);
        let decode = TestKind::Decode { tokens: WARM_UP_TOKENS, depth: 1 };
        self.streams(&Test { kind: TestKind::Prompt { tokens: longest }, streams: 1 }).await?;
        self.streams(&Test { kind: decode, streams: most }).await?;
        Ok(())
    }

    /// Measures each test once. A prompt's test tells its speed and the time to the first token.
    ///
    /// # Errors
    /// [`OtherError`], with the URL and what to do.
    pub async fn measure(&mut self, tests: &[Test]) -> Result<Measured, OtherError> {
        let mut measured = Measured::default();
        for test in tests {
            let answers = self.streams(test).await?;
            measured.add(&self.url, test, &answers);
        }
        Ok(measured)
    }

    /// The answers of all streams of a test, asked for at the same time.
    async fn streams(&mut self, test: &Test) -> Result<Vec<Answer>, OtherError> {
        let asks: Vec<Ask> =
            (0..test.streams).map(|_| self.ask(test.prompt_tokens(), test.answer_tokens())).collect();
        let began = Instant::now();
        try_join_all(asks.iter().map(|ask| self.stream(ask, began))).await
    }

    fn ask(&mut self, prompt_tokens: u32, max_tokens: u32) -> Ask {
        let prompt = if self.form.ids {
            Prompt::Ids(self.ids.next(prompt_tokens))
        } else {
            Prompt::Text(self.words.next(prompt_tokens, self.form.endpoint))
        };
        self.ask_with(prompt, max_tokens)
    }

    fn ask_with(&mut self, prompt: Prompt, max_tokens: u32) -> Ask {
        let seed = self.settings.seed.wrapping_add(self.stream);
        self.stream += 1;
        Ask { model: self.model.clone(), prompt, max_tokens, temperature: self.settings.temperature, seed }
    }

    /// The model, where there is one alone.
    async fn only_model(&self) -> Result<String, OtherError> {
        let path = "/v1/models";
        let url = format!("{}{path}", self.url);
        let answer = self.send(path, self.http.get(&url).timeout(LIST_TIMEOUT)).await?;
        let list: Value = answer
            .json()
            .await
            .map_err(|error| OtherError::Malformed { url: url.clone(), reason: chain(&error) })?;
        let Some(models) = list["data"].as_array() else {
            return Err(OtherError::Malformed { url, reason: "there is no list in its `data`".to_owned() });
        };
        let names: Vec<&str> = models.iter().filter_map(|model| model["id"].as_str()).collect();
        match names.as_slice() {
            [name] => Ok((*name).to_owned()),
            [] => Err(OtherError::WhichModel { url, listed: "no model".to_owned() }),
            names => {
                let first = names[..names.len().min(LISTED_MODELS)].join(", ");
                let more = if names.len() > LISTED_MODELS { ", ..." } else { "" };
                let listed = format!("{} models ({first}{more})", names.len());
                Err(OtherError::WhichModel { url, listed })
            }
        }
    }

    /// Finds the fullest form of requests that it takes, and how many tokens our words are to it.
    async fn negotiate(&mut self) -> Result<(), OtherError> {
        let began = Instant::now();
        let first = loop {
            let prompt = if self.form.ids {
                Prompt::Ids(self.ids.next(SHORT_PROBE))
            } else {
                Prompt::Text(self.words.of_words(SHORT_PROBE, self.form.endpoint))
            };
            let ask = self.ask_with(prompt, 1);
            match self.stream(&ask, began).await {
                Ok(answer) if self.form.ids && !took_ids(&answer) => self.form.ids = false,
                Ok(answer) => break answer,
                Err(error) => {
                    let simpler = match &error {
                        OtherError::Refused { status, message, .. } => self.form.simpler(*status, message),
                        _ => None,
                    };
                    self.form = simpler.ok_or(error)?;
                }
            }
        };
        self.is_counting = first.is_counted && first.prompt_tokens.is_some();
        if !self.form.ids && self.is_counting {
            let prompt = Prompt::Text(self.words.of_words(LONG_PROBE, self.form.endpoint));
            let ask = self.ask_with(prompt, 1);
            let second = self.stream(&ask, began).await?;
            let counted = |answer: &Answer| answer.prompt_tokens.unwrap_or(0);
            match Scale::of((SHORT_PROBE, counted(&first)), (LONG_PROBE, counted(&second))) {
                Some(scale) => self.words.calibrate(scale),
                None => self.is_counting = false,
            }
        }
        Ok(())
    }

    /// One answer, to its end.
    async fn stream(&self, ask: &Ask, began: Instant) -> Result<Answer, OtherError> {
        let path = self.form.path();
        let url = format!("{}{path}", self.url);
        let silence = self.settings.silence;
        let mut counting = Counting::default();
        let silent = |counting: Counting| OtherError::Silent {
            url: url.clone(),
            tokens: counting.end().tokens(),
            seconds: silence.as_secs(),
        };
        let broken = |counting: Counting, reason: String| OtherError::Broken {
            url: url.clone(),
            tokens: counting.end().tokens(),
            reason,
        };
        let sent = self.send(path, self.http.post(&url).json(&self.form.body(ask)));
        let Ok(answer) = tokio::time::timeout(silence, sent).await else {
            return Err(silent(counting));
        };
        let mut events = EventStream::patient(answer?, silence);
        loop {
            // Comments that only keep the connection alive are no answer.
            let Ok(next) = tokio::time::timeout(silence, events.step()).await else {
                return Err(silent(counting));
            };
            match next {
                Ok(Streamed::Event(event)) => {
                    if let Err(reason) = counting.take(&event, began.elapsed()) {
                        return Err(broken(counting, reason));
                    }
                }
                Ok(Streamed::Done) => break,
                // Some end a stream without a word.
                Ok(Streamed::Closed) if counting.is_finished() => break,
                Ok(Streamed::Closed) => {
                    let reason =
                        "the server closed the stream before the end; does it stream, and is it well?";
                    return Err(broken(counting, reason.to_owned()));
                }
                Err(error) => return Err(broken(counting, error.to_string())),
            }
        }
        Ok(counting.end())
    }

    /// A successful answer, whose body is still to come.
    async fn send(
        &self,
        path: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, OtherError> {
        let url = format!("{}{path}", self.url);
        let request = match &self.settings.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let answer = request.send().await;
        let answer =
            answer.map_err(|error| OtherError::Unreachable { url: url.clone(), reason: chain(&error) })?;
        let status = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer);
        }
        let remedy = match status {
            401 | 403 => "; give its key with --against-key",
            404 => {
                "; give the URL without the path of an endpoint, and the model's name there with --against-model"
            }
            429 | 503 => "; try again when it has loaded its model and has nothing else to do",
            _ => "",
        };
        Err(OtherError::Refused { url, status, message: refusal(answer).await, remedy })
    }
}

/// The message of a refusal, in the forms that servers give it.
async fn refusal(mut answer: reqwest::Response) -> String {
    let mut body = Vec::new();
    while body.len() < REFUSAL_BYTES
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let error = &json["error"];
    let told = [&error["message"], error, &json["message"], &json["detail"]]
        .into_iter()
        .find(|told| !told.is_null());
    let message = match told {
        Some(Value::String(message)) => message.clone(),
        Some(other) => other.to_string(),
        None => String::from_utf8_lossy(&body).into_owned(),
    };
    let message = message.split_whitespace().collect::<Vec<&str>>().join(" ");
    let clean = message.chars().map(|c| if c.is_control() { '?' } else { c });
    let short: String = clean.take(REFUSAL_CHARACTERS).collect();
    if short.is_empty() { "no message".to_owned() } else { short }
}

/// Whether a server has taken ids as ids, by how many tokens it counted: one that makes text of them counts more, and one
/// that counts nothing is not trusted.
fn took_ids(answer: &Answer) -> bool {
    let asked = u64::from(SHORT_PROBE);
    answer.prompt_tokens.is_some_and(|told| (asked..=asked + AROUND_IDS).contains(&told))
}

/// The samples of several rounds, by the quantity and in the rounds' order.
pub fn samples(rounds: &[Measured]) -> BTreeMap<Quantity, Vec<f64>> {
    let mut samples: BTreeMap<Quantity, Vec<f64>> = BTreeMap::new();
    for (quantity, value) in rounds.iter().flat_map(|round| &round.figures) {
        samples.entry(*quantity).or_default().push(*value);
    }
    samples
}

impl Measured {
    /// Takes in what a test's streams brought.
    fn add(&mut self, url: &str, test: &Test, answers: &[Answer]) {
        let streams = super::report::plural(test.streams, "stream");
        let fewest = answers.iter().map(Answer::tokens).min().unwrap_or(0);
        let least = match test.kind {
            TestKind::Prompt { .. } => 1,
            TestKind::Decode { .. } => FEWEST_TOKENS.min(test.answer_tokens() as usize),
        };
        if fewest < least {
            let reason =
                answers.iter().find_map(|answer| answer.finished.as_deref()).unwrap_or("no reason told");
            self.notes.push(format!(
                "{test} with {streams} at {url}: an answer ended after {fewest} of {} tokens ({reason}), too few to measure",
                test.answer_tokens()
            ));
            return;
        }
        let cached: u64 = answers.iter().map(|answer| answer.cached_tokens).sum();
        if cached * 10 > u64::from(test.prompt_tokens()) * u64::from(test.streams) {
            self.notes.push(format!(
                "{test} with {streams} at {url}: {cached} prompt tokens were in its cache already; give another --seed"
            ));
        }
        let prompt_tokens = answers.iter().map(|answer| {
            let told = answer.prompt_tokens.unwrap_or(u64::from(test.prompt_tokens()));
            told.saturating_sub(answer.cached_tokens)
        });
        let arrived: Vec<Stream> = answers
            .iter()
            .map(|answer| Stream { arrivals: answer.arrivals.clone(), cached_tokens: answer.cached_tokens })
            .collect();
        let figures = Figures::of_what_came(test, prompt_tokens.sum(), &arrived);
        match (test.kind, figures) {
            (TestKind::Prompt { tokens }, Ok(figures)) => {
                self.figures.push((Quantity::Prompt { tokens }, figures.tokens_per_s));
                self.figures.push((Quantity::Ttft { tokens }, median(&figures.ttft_ms)));
            }
            (TestKind::Decode { .. }, Ok(figures)) => {
                self.figures.push((Quantity::Decode { streams: test.streams }, figures.tokens_per_s));
            }
            (_, Err(_)) => {
                self.notes.push(format!(
                    "{test} with {streams} at {url}: the streams ran one after another; told are all tokens over all the time"
                ));
                self.figures.push((Quantity::Decode { streams: test.streams }, over_all(&arrived)));
            }
        }
    }
}

/// Tokens per second from the first token of any stream to the last of any, without the first.
fn over_all(streams: &[Stream]) -> f64 {
    let times = || streams.iter().flat_map(|stream| stream.arrivals.iter().map(|(at, _)| *at));
    let tokens: usize = streams.iter().flat_map(|stream| &stream.arrivals).map(|(_, tokens)| tokens).sum();
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return 0.0 };
    let at_first: usize = streams
        .iter()
        .flat_map(|s| &s.arrivals)
        .find(|(at, _)| *at == first)
        .map_or(0, |(_, tokens)| *tokens);
    tokens.saturating_sub(at_first) as f64 / (last - first).as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests;

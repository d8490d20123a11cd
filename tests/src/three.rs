//! Three workers of the real model with four answers under way, which are compared with the same answers of a cluster that
//! nothing disturbs.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::http::Client;
use crate::serve::{Joined, Served};
use crate::stream::{Streaming, Told};

/// Tokens of each answer: enough that one is still under way when its 200th has come.
pub const TOKENS: usize = 320;
/// Within this everything is over.
pub const END: Duration = Duration::from_secs(120);
/// How often the coordinator is asked how it is.
pub const POLL: Duration = Duration::from_millis(10);
/// What a coordinator is started with unless said otherwise.
pub const CONTEXT: [&str; 4] = ["--ctx", "1280", "--parallel", "4"];

/// Four requests of different kinds; the prompts are as long as said.
pub fn requests(prompt_tokens: Option<usize>) -> Vec<Value> {
    let sampling = [
        json!({ "temperature": 0 }),
        json!({ "temperature": 0.8, "seed": 1 }),
        json!({ "temperature": 1.1, "seed": 2, "top_p": 0.9, "frequency_penalty": 0.4 }),
        json!({ "temperature": 0.7, "seed": 3, "repetition_penalty": 1.1 }),
    ];
    let request = |(place, mut settings): (usize, Value)| {
        settings["prompt"] = match prompt_tokens {
            None => json!(format!("Chapter {place}. The bucket brigade stood from the river to the")),
            // Any ids will do, as long as no two prompts begin alike.
            Some(tokens) => {
                let id = |position: usize| 1000 + (position * 37 + place * 101) % 20000;
                json!((0..tokens).map(id).collect::<Vec<usize>>())
            }
        };
        settings["max_tokens"] = json!(TOKENS);
        settings["ignore_eos"] = json!(true);
        settings
    };
    sampling.into_iter().enumerate().map(request).collect()
}

/// A coordinator with three workers.
#[derive(Debug)]
pub struct Cluster {
    /// The coordinator.
    pub served: Served,
    /// The workers.
    pub workers: Vec<Joined>,
    /// A client of its API.
    pub client: Client,
    /// The name of the model served.
    pub model: String,
}

impl Cluster {
    /// Workers with so much memory each; it serves.
    pub async fn start(memory: &str, context: &[&str]) -> Cluster {
        Cluster::start_in(memory, context, &[]).await
    }

    /// The same with more in the environment of every process.
    pub async fn start_in(memory: &str, context: &[&str], environment: &[(&str, &str)]) -> Cluster {
        let context = if context.is_empty() { &CONTEXT } else { context };
        let mut served = Served::start_in(&[&["--min-workers", "3"], context].concat(), environment);
        let workers: Vec<Joined> =
            ["anna", "ben", "carla"].iter().map(|name| served.join(name, memory)).collect();
        let client = served.client();
        let model = client.model().await;
        Cluster { served, workers, client, model }
    }

    /// Begins the four answers.
    pub async fn streams(&self, prompt_tokens: Option<usize>) -> Vec<Streaming> {
        let mut streams = Vec::new();
        for request in requests(prompt_tokens) {
            streams.push(Streaming::start(&self.client, &self.model, request).await);
        }
        streams
    }

    /// The worker that holds a stage.
    pub async fn holder(&mut self, stage: usize) -> &mut Joined {
        let status = self.client.status().await;
        let name = status["stages"][stage]["name"].as_str().expect("the stage is there").to_owned();
        self.workers.iter_mut().find(|worker| worker.name() == name).expect("a worker of ours")
    }

    /// Waits until the loss of the plan is noticed; how long that took.
    pub async fn noticed(&self, epoch: u64, since: Instant, limit: Duration) -> Duration {
        loop {
            let status = self.client.status().await;
            if status["phase"] != "serving" || status["epoch"].as_u64() != Some(epoch) {
                return since.elapsed();
            }
            assert!(since.elapsed() < limit + END, "it is never noticed:\n{}", self.served.process.output());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The plan's number.
    pub async fn epoch(&self) -> u64 {
        self.client.status().await["epoch"].as_u64().expect("a number")
    }
}

/// The same answers without any fault, from one cluster for all tests.
pub async fn undisturbed(prompt_tokens: Option<usize>) -> &'static [Told] {
    static SHORT: OnceLock<Vec<Told>> = OnceLock::new();
    static LONG: OnceLock<Vec<Told>> = OnceLock::new();
    let place = if prompt_tokens.is_some() { &LONG } else { &SHORT };
    if place.get().is_none() {
        let cluster = Cluster::start("256MiB", &[]).await;
        let told = ends(cluster.streams(prompt_tokens).await).await;
        assert!(told.iter().all(|told| told.tokens.len() == TOKENS && told.done), "{told:?}");
        let _ = place.set(told);
    }
    place.get().expect("it was just set")
}

/// Waits for the end of all.
pub async fn ends(streams: Vec<Streaming>) -> Vec<Told> {
    let mut told = Vec::new();
    for stream in streams {
        told.push(stream.end(END).await);
    }
    told
}

/// Says where answers are not what they are without a fault.
///
/// # Errors
/// The first difference, for people.
pub fn check(found: &[Told], wanted: &[Told]) -> Result<(), Failed> {
    for (place, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        if let Some(error) = &found.error {
            return Err(format!("stream {place} ended with {error}").into());
        }
        if found.tokens != wanted.tokens || found.text != wanted.text || found.finish != wanted.finish {
            let same = found.tokens.iter().zip(&wanted.tokens).take_while(|(a, b)| a == b).count();
            return Err(format!(
                "stream {place} has {} tokens, of which the first {same} are those of {} wanted; it says `{}` instead of `{}`",
                found.tokens.len(),
                wanted.tokens.len(),
                found.text,
                wanted.text
            )
            .into());
        }
        if !found.done {
            return Err(format!("stream {place} broke off after its last token").into());
        }
    }
    Ok(())
}

//! Drafts: they change nothing of an answer, and are told where they came true.

use std::time::{Duration, Instant};

use brigade_tests::cluster::{Cluster, Up};
use brigade_tests::http::Client;
use brigade_tests::setup;
use serde_json::{Value, json};

/// Code with much that repeats.
const MODULE: &str = "class NAME:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        \
    self.items.append(item)\n\n    def pop(self):\n        return self.items.pop()\n\n    def peek(self):\n        \
    return self.items[-1]\n\n    def size(self):\n        return len(self.items)\n\n";

/// The wish to have it again with one name changed, and the beginning of that.
fn edit() -> String {
    let named = |name: &str| MODULE.replace("NAME", name);
    format!("{}{}class Heap:\n    def __init__(self):\n", named("Stack"), named("Pile"))
}

fn cluster(workers: usize, arguments: &[&str]) -> Cluster {
    let up = Up::new(setup::smollm2()).workers(workers).memory("192MiB");
    up.args(["--ctx", "1024", "--parallel", "2"]).args(arguments.iter().copied()).start()
}

/// What a sampler can look at, in several ways.
fn requests() -> Vec<Value> {
    let sampling = [
        json!({ "temperature": 0, "ignore_eos": true }),
        json!({ "temperature": 0.8, "seed": 1, "top_p": 0.9 }),
        json!({ "temperature": 1.2, "seed": 2, "top_k": 40, "min_p": 0.05, "frequency_penalty": 0.2 }),
        json!({ "temperature": 0, "repetition_penalty": 1.05, "presence_penalty": 0.3, "logit_bias": { "260": 2.0 } }),
        json!({ "temperature": 0, "stop": ["def size"], "max_tokens": 300 }),
        json!({ "temperature": 0.3, "seed": 3, "ignore_eos": true, "min_tokens": 40, "n": 2 }),
    ];
    let request = |mut settings: Value| {
        let fields = json!({
            "prompt": edit(), "max_tokens": 90, "logprobs": 3, "return_token_ids": true,
        });
        for (name, value) in fields.as_object().expect("an object") {
            if settings.get(name).is_none() {
                settings[name] = value.clone();
            }
        }
        settings
    };
    sampling.into_iter().map(request).collect()
}

/// What an answer says of its tokens: text, ids, log-probabilities, and how it ended.
fn essence(answer: &Value) -> Value {
    answer["choices"].clone()
}

/// Drafts taken and computed in vain, as the answer tells.
fn told(answer: &Value) -> (u64, u64) {
    let details = &answer["usage"]["completion_tokens_details"];
    let count = |name: &str| details[name].as_u64().unwrap_or_else(|| panic!("no {name} in {answer:#}"));
    (count("accepted_prediction_tokens"), count("rejected_prediction_tokens"))
}

async fn metric(client: &Client, name: &str) -> u64 {
    let metrics = client.get("/metrics").await.ok();
    let metrics = metrics.as_str().expect("metrics are text");
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is missing in\n{metrics}"))
}

/// The counts of requests, once none runs.
async fn settled(client: &Client) -> Value {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let requests = client.status().await["requests"].clone();
        if requests["running"] == 0 && requests["waiting"] == 0 {
            return requests;
        }
        assert!(Instant::now() < deadline, "something still runs: {requests:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn answers_with_drafts_are_those_without() {
    let plain = cluster(2, &["--no-speculation"]);
    let drafting = cluster(2, &[]);
    let (mut accepted, mut rejected) = (0, 0);
    for request in requests() {
        let alone = plain.client.complete(request.clone()).await;
        assert_eq!(told(&alone), (0, 0));
        // Again, now that it is known how likely drafts are, and both at once.
        let first = drafting.client.complete(request.clone()).await;
        let (second, third) = tokio::join!(
            drafting.client.complete(request.clone()),
            drafting.client.complete(request.clone())
        );
        for answer in [first, second, third] {
            assert_eq!(essence(&answer), essence(&alone), "{request:#}");
            assert_eq!(answer["usage"]["completion_tokens"], alone["usage"]["completion_tokens"]);
            let (right, wrong) = told(&answer);
            println!("{right} drafts taken, {wrong} not, of {}", answer["usage"]["completion_tokens"]);
            accepted += right;
            rejected += wrong;
        }
    }
    assert!(accepted > 300, "{accepted} drafts taken, {rejected} not");
    let requests = settled(&drafting.client).await;
    let (sent, taken) = (requests["draft_tokens"].as_u64(), requests["draft_tokens_accepted"].as_u64());
    assert_eq!(taken, Some(metric(&drafting.client, "brigade_draft_tokens_accepted_total").await));
    assert_eq!(sent, Some(metric(&drafting.client, "brigade_draft_tokens_total").await));
    // A stop string is found after tokens have come that nobody is told of.
    assert!(taken >= Some(accepted) && sent >= Some(accepted + rejected), "{requests:#}");
    assert_eq!(plain.client.status().await["requests"]["draft_tokens"], 0);
    plain.stop();
    drafting.stop();
}

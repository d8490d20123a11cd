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

/// The counts of requests, once none runs and no cache is reserved.
async fn settled(client: &Client) -> Value {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let status = client.status().await;
        let requests = &status["requests"];
        if requests["running"] == 0 && requests["waiting"] == 0 && status["cache_tokens_reserved"] == 0 {
            return requests.clone();
        }
        assert!(Instant::now() < deadline, "something is still held: {status:#}");
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
    // How many are sent follows from how long steps took.
    assert!(accepted > 150, "{accepted} drafts taken, {rejected} not");
    let requests = settled(&drafting.client).await;
    let (sent, taken) = (requests["draft_tokens"].as_u64(), requests["draft_tokens_accepted"].as_u64());
    assert_eq!(taken, Some(drafting.client.metric("brigade_draft_tokens_accepted_total").await));
    assert_eq!(sent, Some(drafting.client.metric("brigade_draft_tokens_total").await));
    // A stop string is found after tokens have come that nobody is told of.
    assert!(taken >= Some(accepted) && sent >= Some(accepted + rejected), "{requests:#}");
    assert_eq!(plain.client.status().await["requests"]["draft_tokens"], 0);
    plain.stop();
    drafting.stop();
}

#[tokio::test]
async fn little_cache_and_clients_that_leave_change_no_answer() {
    // 20 pages, of which each request begins with 9 or 10, and wants 13 or more in the end.
    let up = Up::new(setup::smollm2()).workers(2).memory("192MiB");
    let cluster = up.args(["--ctx", "640", "--parallel", "1"]).start();
    let client = &cluster.client;
    let request = |number: usize| {
        json!({
            "prompt": format!("# {number}\n{}", edit()), "max_tokens": 240, "ignore_eos": true, "logprobs": 1,
            "return_token_ids": true, "temperature": 0.2 * (number % 3) as f64, "seed": number,
        })
    };
    let mut alone = Vec::new();
    for number in 0..6 {
        alone.push(essence(&client.complete(request(number)).await));
    }
    let model = client.model().await;
    let together = (0..6).map(|number| {
        let client = client.clone();
        tokio::spawn(async move { client.complete(request(number)).await })
    });
    let together: Vec<_> = together.collect();
    for (number, answer) in together.into_iter().enumerate() {
        let answer = answer.await.expect("the request is answered");
        assert_eq!(essence(&answer), alone[number], "request {number}");
    }
    let replays = client.metric("brigade_replays_total").await;
    // Clients that leave while the answer runs ahead of itself.
    for chunks in 1..8 {
        let mut leaving = request(0);
        leaving["stream"] = json!(true);
        leaving["model"] = model.clone().into();
        let mut response = client.begin("/v1/completions", leaving.to_string().into_bytes()).await;
        for _ in 0..chunks * 3 {
            response.chunk().await.expect("the stream goes on").expect("the answer is longer");
        }
        drop(response);
    }
    let again = essence(&client.complete(request(1)).await);
    assert_eq!(again, alone[1], "after clients have left");
    let requests = settled(client).await;
    println!("{replays} replays; {requests}");
    assert!(replays > 0, "nobody gave way");
    assert_eq!((&requests["failed"], &requests["cancelled"]), (&json!(0), &json!(7)));
    assert!(requests["draft_tokens_accepted"].as_u64() > Some(400), "{requests:#}");
    cluster.stop();
}

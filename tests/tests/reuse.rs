//! Prompts that begin alike: what is found in the cache changes no token of an answer.

use brigade_tests::cluster::{Cluster, Up};
use brigade_tests::http::Client;
use brigade_tests::setup;
use serde_json::{Value, json};

/// Answers that share nothing with others, since each is asked for with a key of its own.
struct Cold<'a> {
    client: &'a Client,
    used: usize,
}

const COLD_KEYS: usize = 60;

fn cluster(workers: usize, arguments: &[&str]) -> Cluster {
    let keys: Vec<String> = (0..COLD_KEYS).map(|key| format!("cold{key}")).collect();
    let keys = format!("warm,{}", keys.join(","));
    Up::new(setup::smollm2())
        .workers(workers)
        .args(["--api-key", &keys])
        .args(arguments.iter().copied())
        .start()
}

impl Cold<'_> {
    async fn complete(&mut self, request: &Value) -> Value {
        let key = format!("cold{}", self.used);
        self.used += 1;
        assert!(self.used <= COLD_KEYS, "each cold run needs a key of its own");
        let answer = self.client.with_key(&key).complete(request.clone()).await;
        assert_eq!(cached(&answer), 0, "a cold run finds nothing: {answer:#}");
        answer
    }
}

fn cached(answer: &Value) -> u64 {
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    cached.as_u64().unwrap_or_else(|| panic!("no cached_tokens in {answer:#}"))
}

fn token_ids(answer: &Value) -> Vec<&Value> {
    let choices = answer["choices"].as_array().expect("choices are a list");
    choices.iter().map(|choice| &choice["token_ids"]).collect()
}

/// Token ids that nobody would write, the same at every run.
fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = seed;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        100 + (random >> 33) as u32 % 40_000
    };
    (0..count).map(|_| next()).collect()
}

/// Sampled, with penalties that look at all that was said.
fn ask(prompt: &[u32], max_tokens: u32) -> Value {
    json!({
        "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true, "return_token_ids": true,
        "temperature": 1.0, "seed": 7, "frequency_penalty": 0.7, "presence_penalty": 0.3,
    })
}

#[tokio::test]
async fn answers_are_those_of_a_cold_run_wherever_prompts_part() {
    let cluster = cluster(3, &["--memory", "96MiB", "--ctx", "1024"]);
    let warm = cluster.client.with_key("warm");
    let mut cold = Cold { client: &cluster.client, used: 0 };
    let base = tokens(1, 130);
    let first = warm.complete(ask(&base, 4)).await;
    assert_eq!(cached(&first), 0);
    let (mut hits, mut reused) = (0, 0);
    for common in [31, 32, 33, 64, 95, 96, 97, 128, 129] {
        for others in [0, 1, 33] {
            let mut prompt = base[..common].to_vec();
            prompt.extend(tokens((1000 * common + others) as u64, others));
            let answer = warm.complete(ask(&prompt, 8)).await;
            let expected = (common / 32).min((prompt.len() - 1) / 32) * 32;
            assert_eq!(cached(&answer), expected as u64, "{common} in common and {others} others");
            let alone = cold.complete(&ask(&prompt, 8)).await;
            assert_eq!(token_ids(&answer), token_ids(&alone), "{common} in common and {others} others");
            hits += u64::from(expected > 0);
            reused += expected as u64;
        }
    }
    let status = warm.status().await;
    assert_eq!(status["requests"]["prefix_hits"], hits, "{:#}", status["requests"]);
    assert_eq!(status["requests"]["prompt_tokens_reused"], reused, "{:#}", status["requests"]);
    assert_eq!(warm.metric("brigade_prefix_hits_total").await, hits);
    assert_eq!(warm.metric("brigade_prompt_tokens_cached_total").await, reused);
    cluster.stop();
}

#[tokio::test]
async fn a_chat_goes_on_where_its_last_turn_ended() {
    let cluster = cluster(2, &["--memory", "160MiB", "--ctx", "1024"]);
    let warm = cluster.client.with_key("warm");
    let mut cold = Cold { client: &cluster.client, used: 0 };
    // Turns as token ids, so that what was said is what is asked again.
    let mut history = tokens(3, 70);
    for turn in 0..4 {
        let answer = warm.complete(ask(&history, 40)).await;
        let before = if turn == 0 { 0 } else { (history.len() - 9 - 1) / 32 * 32 };
        assert_eq!(cached(&answer), before as u64, "turn {turn}");
        let alone = cold.complete(&ask(&history, 40)).await;
        assert_eq!(token_ids(&answer), token_ids(&alone), "turn {turn}");
        let said = answer["choices"][0]["token_ids"].as_array().expect("token ids were asked for");
        history.extend(said.iter().map(|id| id.as_u64().expect("a number") as u32));
        history.extend(tokens(50 + turn, 9));
    }
    // A chat by its template, as a stream.
    let messages = json!([
        { "role": "system", "content": "You are a helpful assistant who answers in one short sentence, and never in two." },
        { "role": "user", "content": "Which of the colours of the rainbow stands between yellow and blue?" },
    ]);
    let request = json!({
        "messages": messages, "max_tokens": 8, "stream": true, "stream_options": { "include_usage": true },
    });
    let mut found = Vec::new();
    for _ in 0..2 {
        let response = warm.begin("/v1/chat/completions", request.to_string().into_bytes()).await;
        let text = response.text().await.expect("the stream ends");
        let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).rev().nth(1);
        let last: Value = serde_json::from_str(last.expect("events")).expect("JSON");
        found.push((last["usage"]["prompt_tokens"].as_u64(), cached(&last)));
    }
    let prompt = found[0].0.expect("usage was asked for");
    assert_eq!(found, [(Some(prompt), 0), (Some(prompt), (prompt - 1) / 32 * 32)]);
    cluster.stop();
}

#[tokio::test]
async fn of_prompts_that_come_at_once_one_is_computed_for_all() {
    let cluster = cluster(2, &["--memory", "160MiB", "--ctx", "1024"]);
    let warm = cluster.client.with_key("warm");
    let mut cold = Cold { client: &cluster.client, used: 0 };
    let prompt = tokens(5, 300);
    let mut request = ask(&prompt, 16);
    let alone = cold.complete(&request).await;
    request["prompt"] = json!([prompt, prompt, prompt, prompt]);
    let answer = warm.complete(request).await;
    assert_eq!(cached(&answer), 3 * 288);
    let ids = token_ids(&answer);
    assert_eq!(ids, [token_ids(&alone)[0]; 4]);
    let status = warm.status().await;
    assert_eq!(
        status["requests"]["prompt_tokens"],
        300 + 300 + 3 * 12,
        "the cold run, and 12 tokens of the others"
    );
    cluster.stop();
}

#[tokio::test]
async fn little_cache_changes_no_answer() {
    // 24 pages: four sequences begin with 5 and two in common, and want 6 in the end.
    let cluster = cluster(2, &["--memory", "160MiB", "--ctx", "256", "--parallel", "3"]);
    let warm = cluster.client.with_key("warm");
    let mut cold = Cold { client: &cluster.client, used: 0 };
    let base = tokens(8, 64);
    let mut requests = Vec::new();
    for number in 0..8 {
        let mut prompt = base.clone();
        prompt.extend(tokens(80 + number, 6 + number as usize));
        let request = ask(&prompt, 170);
        let alone = cold.complete(&request).await;
        requests.push((request, alone));
    }
    // One more begins as they all do, and leaves while it is being answered.
    let mut leaving = ask(&[&base[..], &tokens(99, 20)].concat(), 100);
    leaving["stream"] = json!(true);
    leaving["model"] = warm.model().await.into();
    let mut response = warm.begin("/v1/completions", leaving.to_string().into_bytes()).await;
    let answers = requests.iter().map(|(request, _)| {
        let (warm, request) = (warm.clone(), request.clone());
        tokio::spawn(async move { warm.complete(request).await })
    });
    let answers: Vec<_> = answers.collect();
    for _ in 0..3 {
        response.chunk().await.expect("the stream goes on").expect("the answer is longer");
    }
    drop(response);
    for (number, (answer, (_, alone))) in answers.into_iter().zip(&requests).enumerate() {
        let answer = answer.await.expect("the request is answered");
        assert_eq!(token_ids(&answer), token_ids(alone), "request {number}");
    }
    let status = warm.status().await;
    let hits = status["requests"]["prefix_hits"].as_u64().expect("hits are counted");
    let replays = warm.metric("brigade_replays_total").await;
    let evicted = warm.metric("brigade_pages_evicted_total").await;
    println!("{hits} hits, {replays} replays, {evicted} pages evicted");
    assert!(
        hits >= 4 && replays > 0 && evicted > 0,
        "{hits} hits, {replays} replays, {evicted} pages evicted"
    );
    cluster.stop();
}

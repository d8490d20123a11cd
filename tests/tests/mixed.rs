//! Many requests at once: each gets what it would get alone, and who leaves takes nothing from the others.

use std::time::{Duration, Instant};

use brigade_tests::cluster::Up;
use brigade_tests::http::Client;
use brigade_tests::setup;
use serde_json::{Value, json};

/// Requests in the mix.
const REQUESTS: usize = 64;
/// Ids of SmolLM2's ordinary tokens.
const IDS: std::ops::Range<u64> = 100..49_000;
/// How long pages may stay in use after the last request has left.
const EMPTY: Duration = Duration::from_secs(5);

/// SplitMix64 (Steele, Lea and Flood, 2014): the same requests every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn tokens(&mut self, count: u64) -> Vec<u64> {
        (0..count).map(|_| IDS.start + self.below(IDS.end - IDS.start)).collect()
    }
}

/// A request, when it is made, and when its client leaves.
struct Planned {
    after: Duration,
    leaves: Option<Duration>,
    request: Value,
}

fn planned(random: &mut Random, model: &str) -> Vec<Planned> {
    let common = random.tokens(70);
    let mut plan = |_| {
        let lengths = [1, 7, 33, 64, 120, 260];
        let mut prompt = if random.below(3) == 0 { common.clone() } else { Vec::new() };
        let length = random.one_of(&lengths);
        prompt.extend(random.tokens(length));
        let request = json!({
            "model": model, "prompt": prompt, "max_tokens": 1 + random.below(60), "return_token_ids": true,
            "temperature": random.one_of(&[0.0, 0.7, 1.0, 1.5]), "seed": random.below(1 << 40),
            "top_k": random.one_of(&[0, 5, 40]), "top_p": random.one_of(&[1.0, 0.9]),
            "min_p": random.one_of(&[0.0, 0.05]), "repetition_penalty": random.one_of(&[1.0, 1.2]),
            "presence_penalty": random.one_of(&[0.0, 0.8, -0.5]), "frequency_penalty": random.one_of(&[0.0, 0.4]),
            "ignore_eos": random.below(2) == 0,
        });
        let leaves = (random.below(4) == 0).then(|| Duration::from_millis(random.below(300)));
        Planned { after: Duration::from_millis(random.below(6000)), leaves, request }
    };
    (0..REQUESTS).map(&mut plan).collect()
}

/// The answer's token ids; `None` where the client has left first.
async fn ask(client: &Client, request: &Value, leaves: Option<Duration>) -> Option<Value> {
    let asking = client.post("/v1/completions", request);
    let answer = match leaves {
        None => asking.await,
        // Dropping the request closes its connection.
        Some(patience) => tokio::time::timeout(patience, asking).await.ok()?,
    };
    let choice = &answer.ok()["choices"][0];
    assert!(choice["token_ids"].as_array().is_some_and(|ids| !ids.is_empty()), "{choice:#}");
    Some(json!([choice["token_ids"], choice["finish_reason"]]))
}

/// Waits until no request runs and no cache is reserved.
async fn wait_until_empty(client: &Client) -> Value {
    let deadline = Instant::now() + EMPTY;
    loop {
        let status = client.status().await;
        let requests = &status["requests"];
        if requests["running"] == 0 && requests["waiting"] == 0 && status["cache_tokens_reserved"] == 0 {
            return status;
        }
        assert!(Instant::now() < deadline, "something is still held: {status:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn sixty_four_mixed_requests_get_what_each_gets_alone() {
    // Little cache, so that requests wait, and give it back to older ones.
    let up = Up::new(setup::smollm2()).workers(3).memory("160MiB");
    let cluster = up.args(["--ctx", "512", "--parallel", "3", "--prefill-chunk", "64"]).start();
    let client = cluster.client.clone();
    let plan = planned(&mut Random(5), &client.model().await);
    let mixed: Vec<_> = plan
        .iter()
        .map(|planned| {
            let (client, request) = (client.clone(), planned.request.clone());
            let (after, leaves) = (planned.after, planned.leaves);
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                ask(&client, &request, leaves).await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for answer in mixed {
        answers.push(answer.await.unwrap());
    }
    let status = wait_until_empty(&client).await;
    let left = answers.iter().filter(|answer| answer.is_none()).count();
    println!("{left} clients left; {}", status["requests"]);
    assert!(left >= 5, "only {left} clients left before their answer");
    assert_eq!(status["requests"]["failed"], 0);
    for (planned, answer) in plan.iter().zip(&answers).filter(|(_, answer)| answer.is_some()) {
        let alone = ask(&client, &planned.request, None).await;
        assert_eq!(*answer, alone, "{}", planned.request);
    }
    cluster.stop();
}

#[tokio::test]
async fn who_leaves_during_the_prompt_frees_its_place_and_takes_nothing_from_others() {
    let up = Up::new(setup::smollm2()).workers(2).memory("256MiB");
    let cluster = up.args(["--ctx", "2048", "--parallel", "3"]).start();
    let client = cluster.client.clone();
    let model = client.model().await;
    let mut random = Random(9);
    let stream = json!({
        "model": model, "prompt": random.tokens(20), "max_tokens": 100, "temperature": 0.8, "seed": 3,
        "ignore_eos": true, "return_token_ids": true,
    });
    let alone = ask(&client, &stream, None).await;
    let computed = wait_until_empty(&client).await["requests"]["prompt_tokens"].as_u64().unwrap();
    let running = tokio::spawn({
        let (client, stream) = (client.clone(), stream.clone());
        async move { ask(&client, &stream, None).await }
    });
    // Long prompts, whose clients leave while they are computed.
    let long = json!({ "model": model, "prompt": random.tokens(1900), "max_tokens": 100 });
    let leaving = (0..2).map(|_| ask(&client, &long, Some(Duration::from_millis(400))));
    for answer in leaving {
        assert_eq!(answer.await, None, "the prompt was computed before its client left");
    }
    let left = Instant::now();
    while client.status().await["requests"]["running"].as_u64() > Some(1) {
        assert!(left.elapsed() < EMPTY, "the prompts are still being computed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("their places are free after {:?}", left.elapsed());
    assert_eq!(running.await.unwrap(), alone, "what others do changes no answer");
    let status = wait_until_empty(&client).await;
    let more = status["requests"]["prompt_tokens"].as_u64().unwrap() - computed;
    assert!(more < 20 + 1900, "{more} prompt tokens were computed for clients that had left");
    assert_eq!(status["requests"]["cancelled"], 2);
    cluster.stop();
}

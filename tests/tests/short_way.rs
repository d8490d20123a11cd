//! The short way round: steps sent ahead of their tokens change nothing of an answer.

use std::time::{Duration, Instant};

use brigade_tests::cluster::{Cluster, Up};
use brigade_tests::setup;
use serde_json::{Value, json};

fn cluster(workers: usize, arguments: &[&str]) -> Cluster {
    let up = Up::new(setup::smollm2()).workers(workers).memory("192MiB");
    up.args(["--ctx", "512", "--parallel", "3"]).args(arguments.iter().copied()).start()
}

/// What a sampler can look at, and all ways in which an answer can end.
fn requests() -> Vec<Value> {
    let sampling = [
        json!({ "temperature": 0 }),
        json!({ "temperature": 0.8, "seed": 1, "top_p": 0.9, "ignore_eos": true }),
        json!({ "temperature": 1.2, "seed": 2, "top_k": 40, "frequency_penalty": 0.5, "max_tokens": 1 }),
        json!({ "temperature": 0, "repetition_penalty": 1.2, "presence_penalty": 0.3, "max_tokens": 2 }),
        json!({ "temperature": 0.9, "seed": 5, "stop": ["e"], "max_tokens": 60 }),
        json!({ "temperature": 0.7, "seed": 3, "n": 3, "max_tokens": 30 }),
    ];
    let request = |mut settings: Value| {
        settings["prompt"] = json!("The bucket brigade stood from the river to the");
        settings["logprobs"] = json!(2);
        settings["return_token_ids"] = json!(true);
        if settings.get("max_tokens").is_none() {
            settings["max_tokens"] = json!(80);
        }
        settings
    };
    sampling.into_iter().map(request).collect()
}

/// How many steps were sent ahead, once no request runs.
async fn steps_ahead(cluster: &Cluster) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let requests = cluster.client.status().await["requests"].clone();
        if requests["running"] == 0 && requests["waiting"] == 0 {
            return requests["steps_ahead"].as_u64().expect("a count");
        }
        assert!(Instant::now() < deadline, "something still runs: {requests:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn answers_of_steps_sent_ahead_are_those_without() {
    let plain = cluster(2, &["--no-speculation", "--no-short-way"]);
    let mut wanted = Vec::new();
    for request in requests() {
        wanted.push(plain.client.complete(request).await["choices"].clone());
    }
    assert_eq!(steps_ahead(&plain).await, 0);
    plain.stop();
    for workers in [2, 3] {
        let cluster = cluster(workers, &["--no-speculation"]);
        for (request, wanted) in requests().into_iter().zip(&wanted) {
            let alone = cluster.client.complete(request.clone()).await;
            assert_eq!(alone["choices"], *wanted, "{workers} workers: {request:#}");
            let (one, other) = tokio::join!(
                cluster.client.complete(request.clone()),
                cluster.client.complete(request.clone())
            );
            for answer in [one, other] {
                assert_eq!(answer["choices"], *wanted, "{workers} workers, two at once: {request:#}");
            }
        }
        let ahead = steps_ahead(&cluster).await;
        println!("{workers} workers: {ahead} steps sent ahead of their tokens");
        assert!(ahead > 150, "{workers} workers: {ahead} steps sent ahead");
        cluster.stop();
    }
}

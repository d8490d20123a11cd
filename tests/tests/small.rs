//! A worker takes what its budget says, and no more than a stated overhead beyond it.

use brigade_tests::cluster::Up;
use brigade_tests::process::peak_resident_bytes;
use brigade_tests::{reference, setup};
use serde_json::json;

/// What a worker may take beyond its budget: the program itself, its stacks, TLS and buffers.
const FIXED_OVERHEAD: u64 = 48 << 20;
const BUDGET: u64 = 64 << 20;

#[tokio::test]
async fn a_model_of_98_mb_is_served_by_three_workers_of_64_mib() {
    let cluster = Up::new(setup::smollm2()).workers(3).memory("64MiB").start();
    let status = cluster.client.status().await;
    let context = status["context"].as_u64().unwrap() as usize;
    let mut prompt = Vec::new();
    for case in reference::smollm2() {
        prompt.extend(case.prompt_tokens);
    }
    prompt.truncate(context - 65);
    let answer = cluster
        .client
        .complete(json!({ "prompt": prompt, "max_tokens": 64, "ignore_eos": true, "return_token_ids": true, "temperature": 0 }))
        .await;
    assert_eq!(answer["usage"]["completion_tokens"], 64, "{answer:#}");
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len(), "{answer:#}");

    let workers = cluster.workers();
    assert_eq!(workers.len(), 3, "three worker processes");
    let model_bytes = std::fs::metadata(setup::smollm2()).unwrap().len();
    assert!(model_bytes > BUDGET, "the model is larger than any worker's budget");
    for worker in workers {
        let peak = peak_resident_bytes(worker);
        println!(
            "worker {worker}: peak resident {:.1} MiB of a budget of {} MiB",
            peak as f64 / (1 << 20) as f64,
            BUDGET >> 20
        );
        assert!(peak <= BUDGET + FIXED_OVERHEAD, "worker {worker} took {peak} bytes");
    }
    cluster.stop();
}

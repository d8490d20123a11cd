//! Where a model is cut, what runs beside a request, and how its prompt is chunked change nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use brigade_tests::cluster::{Cluster, Up};
use brigade_tests::http::Client;
use brigade_tests::{reference, setup};
use serde_json::{Value, json};

/// Largest difference of a log-probability between a request alone and beside others, or in other chunks. Our own
/// products and attention give a row the same bits whatever stands beside it, so nothing needs to be allowed.
const NEIGHBOUR_TOLERANCE: f64 = 0.0;

fn cluster(workers: usize, arguments: &[&str]) -> Cluster {
    let up = Up::new(setup::smollm2()).workers(workers).memory("256MiB");
    up.args(["--ctx", "1024", "--parallel", "4"]).args(arguments.iter().copied()).start()
}

/// A seeded, sampled generation with everything that the sampler can look at.
fn sampled(prompt: &[u32], seed: u64) -> Value {
    json!({
        "prompt": prompt, "max_tokens": 40, "temperature": 0.9, "top_p": 0.95, "top_k": 50, "min_p": 0.01,
        "frequency_penalty": 0.2, "presence_penalty": 0.1, "repetition_penalty": 1.05, "seed": seed, "logprobs": 2,
        "ignore_eos": true, "return_token_ids": true,
    })
}

fn essence(answer: &Value) -> Value {
    let choice = &answer["choices"][0];
    assert_eq!(choice["token_ids"].as_array().map(Vec::len), Some(40), "{answer:#}");
    json!({ "tokens": choice["token_ids"], "logprobs": choice["logprobs"], "text": choice["text"] })
}

fn prompt_of(about: usize) -> Vec<u32> {
    let cases = reference::smollm2();
    let case = cases.into_iter().min_by_key(|case| case.prompt_tokens.len().abs_diff(about)).unwrap();
    case.prompt_tokens
}

#[tokio::test]
async fn one_two_three_and_thirty_stages_give_the_same_bits() {
    let (scored, sampled_prompt) = (prompt_of(150), prompt_of(40));
    let mut first: Option<(Vec<Option<f64>>, Value)> = None;
    for stages in [1, 2, 3, 30] {
        let cluster = cluster(stages, &[]);
        let status = cluster.client.status().await;
        assert_eq!(status["stages"].as_array().map(Vec::len), Some(stages), "{status:#}");
        let scores = cluster.client.score(&scored).await;
        let answer = essence(&cluster.client.complete(sampled(&sampled_prompt, 7)).await);
        match &first {
            None => first = Some((scores, answer)),
            Some((first_scores, first_answer)) => {
                assert_eq!(&scores, first_scores, "log-probabilities with {stages} stages");
                assert_eq!(&answer, first_answer, "a sampled generation with {stages} stages");
            }
        }
        cluster.stop();
    }
}

#[tokio::test]
async fn neighbours_and_chunks_change_nothing() {
    let prompt = prompt_of(80);
    let long = prompt_of(300);
    let whole = cluster(2, &["--prefill-chunk", "512"]);
    let alone = whole.client.complete(sampled(&prompt, 1)).await;
    let scores_alone = whole.client.score(&long).await;
    let busy =
        |client: Client, prompt: Vec<u32>, seed| async move { client.complete(sampled(&prompt, seed)).await };
    let others = [(prompt_of(150), 3), (prompt_of(20), 4), (prompt_of(40), 5)];
    let mut tasks = tokio::task::JoinSet::new();
    for (prompt, seed) in others {
        tasks.spawn(busy(whole.client.clone(), prompt, seed));
    }
    let beside = whole.client.complete(sampled(&prompt, 1)).await;
    while let Some(done) = tasks.join_next().await {
        essence(&done.unwrap());
    }
    let chunked = cluster(2, &["--prefill-chunk", "16"]);
    let in_chunks = chunked.client.complete(sampled(&prompt, 1)).await;
    let scores_in_chunks = chunked.client.score(&long).await;

    for (what, other) in [("beside others", &beside), ("in chunks of 16", &in_chunks)] {
        assert_eq!(alone["choices"][0]["token_ids"], other["choices"][0]["token_ids"], "tokens {what}");
        let largest = largest_difference(&logprobs(&alone), &logprobs(other));
        println!("largest difference of a log-probability {what}: {largest}");
        assert!(largest <= NEIGHBOUR_TOLERANCE, "log-probabilities {what} differ by {largest}");
    }
    let largest = largest_difference(&scores_alone, &scores_in_chunks);
    println!("largest difference of a prompt's log-probability in chunks of 16: {largest}");
    assert!(largest <= NEIGHBOUR_TOLERANCE, "a prompt's log-probabilities in chunks differ by {largest}");
    whole.stop();
    chunked.stop();
}

fn logprobs(answer: &Value) -> Vec<Option<f64>> {
    let values = answer["choices"][0]["logprobs"]["token_logprobs"].as_array();
    values.unwrap_or_else(|| panic!("no log-probabilities in {answer:#}")).iter().map(Value::as_f64).collect()
}

fn largest_difference(left: &[Option<f64>], right: &[Option<f64>]) -> f64 {
    assert_eq!(left.len(), right.len(), "as many log-probabilities");
    let pairs =
        left.iter().zip(right).filter_map(|(left, right)| Some((left.as_ref()? - right.as_ref()?).abs()));
    pairs.fold(0.0, f64::max)
}

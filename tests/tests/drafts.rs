//! A draft model: it changes nothing of an answer, rests where it does not pay, and may be lost at any time.
//!
//! What is served is SmolLM2 with layers behind its own that add nothing, so that it says what SmolLM2 says and takes five
//! times as long: SmolLM2 itself, rounded anew or with few of its layers, then drafts for it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brigade_tests::cluster::{Cluster, START, STOP, Up, brigade, served_url, worker};
use brigade_tests::http::Client;
use brigade_tests::process::{Process, send_signal};
use brigade_tests::setup;
use serde_json::{Value, json};

fn served() -> PathBuf {
    setup::smollm2_reshaped("150-layers", &["--layers", "150"])
}

/// A draft model that guesses well: the same weights, rounded anew.
fn rounded() -> PathBuf {
    setup::smollm2_reshaped("Q8_0", &["--type", "q8_0"])
}

/// One that knows the words, and little of how they follow each other.
fn stump() -> PathBuf {
    setup::smollm2_reshaped("2-layers", &["--layers", "2"])
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

fn cluster(workers: usize, arguments: &[&str]) -> Cluster {
    let up = Up::new(&served()).workers(workers).memory(if workers == 1 { "1GiB" } else { "700MiB" });
    up.args(["--ctx", "1024", "--parallel", "2"]).args(arguments.iter().copied()).start()
}

/// Waits until the draft model is in use.
async fn drafting(client: &Client) {
    let deadline = Instant::now() + START;
    loop {
        let status = client.status().await;
        if status["draft"]["phase"] == "serving" {
            return;
        }
        assert!(Instant::now() < deadline, "the draft model is not used: {:#}", status["draft"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a sampler can look at, in several ways.
fn requests() -> Vec<Value> {
    let sampling = [
        json!({ "temperature": 0, "ignore_eos": true }),
        json!({ "temperature": 1, "seed": 1 }),
        json!({ "temperature": 0.8, "seed": 2, "top_k": 40, "top_p": 0.9, "frequency_penalty": 0.2 }),
        json!({ "temperature": 0, "repetition_penalty": 1.1, "logit_bias": { "260": 2.0 }, "stop": [" the"] }),
        json!({ "temperature": 0.5, "seed": 3, "n": 2, "max_tokens": 30 }),
    ];
    let request = |mut settings: Value| {
        let fields = json!({
            "prompt": "The bucket brigade stood from the river to the burning mill, and", "max_tokens": 70,
            "logprobs": 3, "return_token_ids": true,
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

fn count(status: &Value, name: &str) -> u64 {
    status["requests"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status:#}"))
}

/// Waits until nothing runs, and neither model holds cache; the status then.
async fn settled(client: &Client) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = client.status().await;
        let reserved = [&status["cache_tokens_reserved"], &status["draft"]["cache_tokens_reserved"]];
        if status["requests"]["running"] == 0 && reserved.iter().all(|tokens| **tokens == 0) {
            return status;
        }
        assert!(Instant::now() < deadline, "something is still held: {status:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn answers_with_a_draft_model_are_those_without() {
    let plain = cluster(2, &["--no-speculation"]);
    let mut wanted = Vec::new();
    for request in requests() {
        wanted.push(plain.client.complete(request).await);
    }
    plain.stop();
    for arguments in [&["--no-speculation"][..], &["--no-short-way"]] {
        let draft = rounded();
        let cluster = cluster(2, &[&["--draft", text(&draft)], arguments].concat());
        drafting(&cluster.client).await;
        let (mut right, mut wrong) = (0, 0);
        for (request, wanted) in requests().into_iter().zip(&wanted) {
            let (one, other) = tokio::join!(
                cluster.client.complete(request.clone()),
                cluster.client.complete(request.clone())
            );
            let alone = cluster.client.complete(request.clone()).await;
            for answer in [one, other, alone] {
                assert_eq!(answer["choices"], wanted["choices"], "{request:#}");
                assert_eq!(answer["usage"]["completion_tokens"], wanted["usage"]["completion_tokens"]);
                let details = &answer["usage"]["completion_tokens_details"];
                right += details["accepted_prediction_tokens"].as_u64().expect("a count");
                wrong += details["rejected_prediction_tokens"].as_u64().expect("a count");
            }
        }
        let status = settled(&cluster.client).await;
        let (drafts, accepted) =
            (count(&status, "draft_model_tokens"), count(&status, "draft_model_tokens_accepted"));
        println!(
            "{arguments:?}: {right} drafts taken, {wrong} not; of the draft model's {accepted} of {drafts}"
        );
        println!("{:#}", status["draft"]);
        // How many there are follows from times, which vary; that most are right does not, but for what chance does to
        // a few of them: three standard deviations of their count.
        let chance = 3.0 * (drafts as f64 * 0.4 * 0.6).sqrt();
        assert!(accepted as f64 >= 0.4 * drafts as f64 - chance, "{accepted} of {drafts} were right");
        let counted = cluster.client.metric("brigade_draft_model_tokens_accepted_total").await;
        assert_eq!(counted, accepted);
        cluster.stop();
    }
}

#[tokio::test]
async fn clients_that_leave_free_both_caches() {
    let draft = rounded();
    let cluster = cluster(1, &["--no-speculation", "--draft", text(&draft)]);
    let client = &cluster.client;
    drafting(client).await;
    let model = client.model().await;
    for chunks in 1..8 {
        let mut leaving = requests().swap_remove(0);
        leaving["stream"] = json!(true);
        leaving["model"] = model.clone().into();
        let mut response = client.begin("/v1/completions", leaving.to_string().into_bytes()).await;
        for _ in 0..chunks * 2 {
            response.chunk().await.expect("the stream goes on").expect("the answer is longer");
        }
        drop(response);
    }
    let status = settled(client).await;
    assert_eq!((count(&status, "failed"), count(&status, "cancelled")), (0, 7));
    cluster.stop();
}

#[tokio::test]
async fn a_model_that_guesses_badly_rests() {
    let draft = stump();
    let cluster = cluster(2, &["--no-speculation", "--draft", text(&draft)]);
    drafting(&cluster.client).await;
    let request =
        json!({ "prompt": "Once upon a time", "max_tokens": 120, "temperature": 0, "ignore_eos": true });
    cluster.client.complete(request).await;
    let status = settled(&cluster.client).await;
    let drafts = count(&status, "draft_model_tokens");
    println!("{drafts} drafts, {}", status["draft"]);
    assert!(drafts <= 12, "{drafts} drafts in 120 tokens");
    // It rests once it was tried; where it is too slow for that by its times alone, there is nothing to rest from.
    assert!(drafts == 0 || status["draft"]["rests"] == true, "{status:#}");
    cluster.stop();
}

#[test]
fn a_draft_model_with_other_tokens_is_refused() {
    let draft = setup::smollm2_reshaped("swapped", &["--layers", "1", "--swap", "1000", "2000"]);
    let (mut process, _home) = Up::new(setup::smollm2()).args(["--draft", text(&draft)]).spawn();
    let (status, output) = process.wait(START);
    assert_eq!(status.code(), Some(2), "{output}");
    assert!(output.contains("token 1000 is `") && output.contains("same tokenizer"), "{output}");
}

#[test]
fn a_draft_model_without_room_is_refused() {
    let draft = rounded();
    let up = Up::new(setup::smollm2()).workers(2).memory("100MiB").args(["--ctx", "512"]);
    let (mut process, _home) = up.args(["--draft", text(&draft)]).spawn();
    let (status, output) = process.wait(START);
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("draft model needs") && output.contains("on one worker"), "{output}");
}

/// Waits for the command to join with, and takes its arguments.
fn join_arguments(process: &mut Process) -> Vec<String> {
    process.wait_for("join command", START, |line| {
        let arguments = line.strip_prefix("brigade-worker ")?.strip_suffix(" --models DIR")?;
        Some(arguments.split(' ').map(str::to_owned).collect())
    })
}

#[tokio::test]
async fn an_answer_goes_on_when_the_draft_models_worker_is_lost() {
    let home = tempfile::tempdir().expect("the temporary folder is writable");
    let (model, draft) = (served(), rounded());
    let mut serve = brigade(&home);
    serve.arg("serve").arg(&model).arg("--draft").arg(&draft);
    serve.args(["--http", "127.0.0.1:0", "--control", "127.0.0.1:0"]);
    serve.args(["--ctx", "1024", "--parallel", "1", "--no-speculation"]);
    let mut coordinator = Process::start(&mut serve);
    let join = join_arguments(&mut coordinator);
    let folder = model.parent().expect("the model lies in a folder");
    let start = |name: &str, memory: &str, stretch: &str| {
        let mut command = worker(&home);
        command.args(&join).arg("--models").arg(folder);
        command.args(["--name", name, "--memory", memory, "--threads", "1"]).env("BRIGADE_STRETCH", stretch);
        Process::start(&mut command)
    };
    // The model is held by the larger one alone, since the smaller one is slow; so that has the most left, and once it is
    // lost the larger one has enough.
    let drafts = start("drafts", "250MiB", "30");
    let serves = start("serves", "680MiB", "1");
    let url = coordinator.wait_for("address", START, served_url);
    let client = Client::new(&url);
    drafting(&client).await;
    let place = client.status().await["draft"]["worker"].clone();
    println!("the draft model is on {place}");
    assert_eq!(place, "drafts");
    let request = json!({
        "prompt": "Once upon a time", "max_tokens": 300, "temperature": 0, "ignore_eos": true, "return_token_ids": true,
    });
    let wanted = client.complete(request.clone()).await;
    let running = tokio::spawn({
        let (client, request) = (client.clone(), request.clone());
        async move { client.complete(request).await }
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    send_signal(drafts.id(), libc::SIGKILL);
    let answer = running.await.expect("the request is answered");
    assert_eq!(answer["choices"], wanted["choices"]);
    drafting(&client).await;
    let status = client.status().await;
    assert_eq!((&status["phase"], &status["requests"]["failed"]), (&json!("serving"), &json!(0)));
    assert_eq!(status["draft"]["worker"], "serves", "{:#}", status["draft"]);
    assert_eq!(client.complete(request).await["choices"], wanted["choices"]);
    for mut process in [coordinator, serves] {
        process.signal(libc::SIGINT);
        process.wait(STOP);
    }
}

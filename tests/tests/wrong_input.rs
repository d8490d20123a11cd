//! Wrong input gets an error that says what, where and what to do; nothing panics, hangs or breaks.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use brigade_tests::cluster::{Cluster, START, Up, brigade};
use brigade_tests::process::Process;
use brigade_tests::setup;
use serde_json::{Value, json};

/// Runs `brigade up` on something that cannot be served, and gives what it said.
fn refused(model: &Path, arguments: &[&str]) -> String {
    let (mut process, _home) = Up::new(model).args(arguments.iter().copied()).spawn();
    let (status, output) = process.wait(START);
    assert!(matches!(status.code(), Some(1 | 2)), "ended with {status}:\n{output}");
    assert!(!output.contains("panicked"), "{output}");
    output
}

fn says(output: &str, words: &[&str]) {
    for word in words {
        assert!(output.contains(word), "`{word}` is missing in:\n{output}");
    }
}

fn cluster() -> Cluster {
    Up::new(setup::smollm2()).workers(2).memory("160MiB").args(["--ctx", "1024", "--parallel", "2"]).start()
}

#[test]
fn a_missing_file_is_named() {
    says(&refused(Path::new("/nowhere/model.gguf"), &[]), &["/nowhere/model.gguf"]);
}

#[test]
fn a_file_that_is_cut_off_is_refused_wherever_it_is_cut() {
    let whole = std::fs::read(setup::smollm2()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cut.gguf");
    for length in [0, 3, 8, 23, 24, 100, 5_000, 400_000, 1_500_000, 2_000_000, 40_000_000, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let output = refused(&file, &[]);
        says(&output, &["cut.gguf"]);
    }
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let whole = std::fs::read(setup::smollm2()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    // `general.architecture` is a string; one of the same length keeps every offset.
    let key = b"general.architecture";
    let at = whole.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    assert_eq!(&whole[at + 8..at + 13], b"llama");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&whole[..at + 8]).unwrap();
    file.write_all(b"mamba").unwrap();
    file.write_all(&whole[at + 13..]).unwrap();
    says(&refused(&path, &[]), &["mamba", "llama"]);
}

#[test]
fn too_little_memory_says_how_much_is_missing_and_where() {
    let output = refused(setup::smollm2(), &["--workers", "2", "--memory", "48MiB"]);
    says(&output, &["MiB", "w1", "w2"]);
    assert!(output.contains("more") || output.contains("missing"), "{output}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = tempfile::tempdir().unwrap();
    let mut command = brigade(&home);
    command.arg("up").arg(setup::smollm2()).args(["--http", &address]);
    let (status, output) = Process::start(&mut command).wait(START);
    assert_eq!(status.code(), Some(1), "{output}");
    says(&output, &[&address, "--http"]);

    let mut command = brigade(&home);
    command.arg("serve").arg(setup::smollm2()).args(["--http", "127.0.0.1:0", "--control", &address]);
    let (status, output) = Process::start(&mut command).wait(START);
    assert_eq!(status.code(), Some(1), "{output}");
    says(&output, &[&taken.local_addr().unwrap().port().to_string(), "--control"]);
}

#[test]
fn wrong_use_ends_with_2() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [
        &["up"][..],
        &["frobnicate"],
        &["up", "x.gguf", "--memory", "lots"],
        &["up", "x.gguf", "--workers", "-1"],
    ] {
        let output = brigade(&home).args(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test]
async fn the_api_refuses_what_it_cannot_do_and_goes_on() {
    let cluster = cluster();
    let client = &cluster.client;
    let model = client.model().await;
    let chat = |extra: Value| {
        let mut body =
            json!({ "model": model, "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 2 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let completion = |extra: Value| {
        let mut body = json!({ "model": model, "prompt": "Hi", "max_tokens": 2 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };

    // What is not built yet, or too much, is named, never ignored.
    let tool = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    for (name, value) in [
        ("tools", tool),
        ("response_format", json!({ "type": "json_object" })),
        ("n", json!(17)),
        ("frobnicate", json!(1)),
    ] {
        let error = client.post("/v1/chat/completions", &chat(json!({ name: value }))).await.error(400);
        assert_eq!(error["param"], name, "{error:#}");
        assert!(error["message"].as_str().unwrap().contains(name), "{error:#}");
    }
    for (name, value) in [
        ("n", json!(17)),
        ("best_of", json!(3)),
        ("suffix", json!("x")),
        ("temperature", json!(-1)),
        ("top_p", json!(7)),
        ("max_tokens", json!("many")),
        ("logprobs", json!(1000)),
        ("prompt", json!([])),
        ("prompt", json!([999999999])),
        ("stop", json!(5)),
        ("logit_bias", json!({ "x": 1 })),
    ] {
        let error = client.post("/v1/completions", &completion(json!({ name: value }))).await.error(400);
        let param = error["param"].as_str().unwrap_or_default();
        assert!(param == name || param.starts_with(&format!("{name}[")), "{error:#}");
    }
    for body in ["", "{", "[]", "nonsense", "{\"model\": 1}", "\u{0}"] {
        client.post_bytes("/v1/completions", body.as_bytes().to_vec()).await.error(400);
    }
    client.post("/v1/completions", &json!({ "model": "gpt-17", "prompt": "Hi" })).await.error(404);
    client.get("/v1/nothing").await.error(404);

    let long: Vec<u32> = vec![100; 5000];
    let error = client.post("/v1/completions", &completion(json!({ "prompt": long }))).await.error(400);
    assert_eq!(error["code"], "context_length_exceeded", "{error:#}");

    let answer = client.complete(json!({ "prompt": "Hi", "max_tokens": 3, "ignore_eos": true })).await;
    assert_eq!(answer["usage"]["completion_tokens"], 3, "it still serves: {answer:#}");
    cluster.stop();
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_cache() {
    let cluster = cluster();
    let client = &cluster.client;
    let model = client.model().await;
    let reserved = async || client.status().await["cache_tokens_reserved"].as_u64().unwrap();
    for stream in [true, false] {
        assert_eq!(reserved().await, 0);
        let body = json!({ "model": model, "prompt": "Once", "max_tokens": 900, "ignore_eos": true, "stream": stream });
        let sender = client.clone();
        let request = tokio::spawn(async move {
            let mut response = sender.begin("/v1/completions", body.to_string().into_bytes()).await;
            while response.chunk().await.unwrap().is_some() {}
        });
        wait_for("the request runs", async || reserved().await > 0).await;
        request.abort();
        let _ = request.await;
        let start = Instant::now();
        wait_for("its cache is free", async || reserved().await == 0).await;
        println!("stream {stream}: cache free {:?} after the client left", start.elapsed());
        let workers = async || {
            let status = client.status().await;
            let workers = status["workers"].as_array().unwrap().clone();
            workers.iter().map(|worker| worker["sequences"].as_u64().unwrap()).sum::<u64>()
        };
        wait_for("the workers hold no sequence", async || workers().await == 0).await;
    }
    let status = client.status().await;
    assert_eq!(status["requests"]["cancelled"], 2, "{:#}", status["requests"]);
    cluster.stop();
}

async fn wait_for(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done().await {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

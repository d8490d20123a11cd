//! Starting, joining and ending: nothing is left behind, and nothing hangs.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use brigade_tests::cluster::{Cluster, STOP, Up, brigade};
use brigade_tests::process::{is_running, send_signal, wait_until};
use brigade_tests::serve::Served;
use brigade_tests::setup;
use serde_json::json;

fn small_cluster() -> Cluster {
    Up::new(setup::smollm2()).workers(2).memory("160MiB").args(["--ctx", "1024"]).start()
}

#[test]
fn ctrl_c_ends_everything_within_two_seconds() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut cluster = small_cluster();
        let workers = cluster.workers();
        assert_eq!(workers.len(), 2);
        let start = Instant::now();
        cluster.process.signal(signal);
        let (status, output) = cluster.process.wait(STOP);
        assert_eq!(status.code(), Some(0), "{output}");
        println!("signal {signal}: all ended after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
        assert!(workers.iter().all(|id| !is_running(*id)), "a worker is left behind");
    }
}

#[test]
fn a_second_ctrl_c_ends_it_at_once() {
    let mut cluster = small_cluster();
    let workers = cluster.workers();
    // A stopped worker cannot end by itself, so that the first Ctrl-C has something to wait for.
    send_signal(workers[0], libc::SIGSTOP);
    cluster.process.signal(libc::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    if is_running(cluster.process.id()) {
        cluster.process.signal(libc::SIGINT);
    }
    let (_, output) = cluster.process.wait(STOP);
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?}:\n{output}", start.elapsed());
    wait_until("all workers are gone", STOP, || workers.iter().all(|id| !is_running(*id)));
}

#[test]
fn workers_end_even_if_the_coordinator_is_killed() {
    let mut cluster = small_cluster();
    let workers = cluster.workers();
    cluster.process.signal(libc::SIGKILL);
    let (status, _) = cluster.process.wait(STOP);
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    wait_until("all workers are gone", STOP, || workers.iter().all(|id| !is_running(*id)));
}

#[test]
fn ctrl_c_while_loading_ends_everything_too() {
    let up = Up::new(setup::smollm2()).workers(2).memory("160MiB");
    let (mut process, _home) = up.spawn();
    std::thread::sleep(Duration::from_millis(400));
    process.signal(libc::SIGINT);
    let (status, output) = process.wait(STOP);
    assert!(matches!(status.code(), Some(0 | 130)), "{status}: {output}");
    assert!(!output.contains("panicked"), "{output}");
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_and_service_resumes() {
    let cluster = small_cluster();
    let before = cluster.workers();
    send_signal(before[0], libc::SIGKILL);
    let client = cluster.client.clone();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = cluster.workers();
        let replaced = now.len() == 2 && !now.contains(&before[0]);
        let another_plan = client.status().await["epoch"].as_u64() > Some(1);
        if replaced && another_plan && client.get("/health").await.status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "not serving again:\n{}", cluster.process.output());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer =
        client.complete(json!({ "prompt": "The bucket", "max_tokens": 4, "ignore_eos": true })).await;
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    cluster.stop();
}

#[tokio::test]
async fn a_request_whose_worker_dies_gets_its_whole_answer() {
    let cluster = small_cluster();
    let client = cluster.client.clone();
    let request = json!({ "prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": true, "temperature": 0.9, "seed": 7 });
    let undisturbed = client.complete(request.clone()).await;
    let workers = cluster.workers();
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.complete(request).await }
    });
    while client.status().await["requests"]["generated_tokens"].as_u64().unwrap() < 900 + 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    send_signal(workers[1], libc::SIGKILL);
    let answer =
        tokio::time::timeout(Duration::from_secs(30), running).await.expect("the request hangs").unwrap();
    assert_eq!(answer["choices"][0]["text"], undisturbed["choices"][0]["text"]);
    assert_eq!(client.metric("brigade_requests_recovered_total").await, 1);
    cluster.stop();
}

#[tokio::test]
async fn with_too_little_memory_left_a_request_is_told_what_is_missing_after_its_time() {
    let mut served = Served::start(&["--min-workers", "2", "--ctx", "1024", "--park", "3s"]);
    let [_anna, mut ben] = ["anna", "ben"].map(|name| served.join(name, "128MiB"));
    let client = served.client();
    let request = json!({ "model": client.model().await, "prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": true });
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.post("/v1/completions", &request).await }
    });
    while client.status().await["requests"]["generated_tokens"] == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Before the end of the program is waited for: it is noticed meanwhile.
    let killed = Instant::now();
    ben.kill();
    // Nothing can be planned, so that new requests are refused, and told when to come again.
    let refused = loop {
        let answer = client.post("/v1/completions", &json!({ "prompt": "x", "max_tokens": 1 })).await;
        if answer.status == 503 || killed.elapsed() > Duration::from_secs(3) {
            break answer;
        }
    };
    assert!(refused.error(503)["message"].as_str().unwrap().contains("more"), "what is missing");
    let answer = tokio::time::timeout(Duration::from_secs(15), running).await.expect("it hangs").unwrap();
    println!("it ended after {:?}", killed.elapsed());
    assert!(killed.elapsed() >= Duration::from_secs(3), "it was not parked: {:?}", killed.elapsed());
    let message = answer.error(503)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("MiB more") && message.contains("parked for 3 s"), "{message}");
    // A worker that joins brings service back.
    ben.restart();
    served.wait_until_serving(&client).await;
    client.complete(json!({ "prompt": "The bucket", "max_tokens": 4 })).await;
}

#[tokio::test]
async fn a_worker_rejoins_without_a_token() {
    let mut served = Served::start(&["--min-workers", "1"]);
    let mut anna = served.join("anna", "160MiB");
    let client = served.client();
    let id = client.status().await["workers"][0]["id"].clone();
    anna.process.signal(libc::SIGTERM);
    let (status, output) = anna.process.wait(STOP);
    assert_eq!(status.code(), Some(0), "{output}");

    anna.restart();
    served.wait_until_serving(&client).await;
    let status = client.status().await;
    let attached: Vec<_> =
        status["workers"].as_array().unwrap().iter().filter(|w| w["state"] == "attached").collect();
    assert_eq!(attached.len(), 1, "{status:#}");
    assert_eq!(attached[0]["id"], id, "the same identity as before");
}

#[test]
fn tokens_that_are_wrong_used_expired_or_revoked_are_refused() {
    let served = Served::start(&[]);
    let token_command = |arguments: &[&str]| {
        let mut command = brigade(&served.home);
        command.arg("token").args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = |name: &str, token: &str, words: &[&str]| {
        let mut joined = served.join_with(name, "160MiB", Some(token));
        let (status, output) = joined.process.wait(Duration::from_secs(20));
        assert_ne!(status.code(), Some(0), "{name}: {output}");
        assert!(words.iter().any(|word| output.contains(word)), "{name}: none of {words:?} in:\n{output}");
        assert!(!output.contains("panicked"), "{output}");
    };

    let (ca, _) = served.token.rsplit_once('-').unwrap();
    refused("unknown", &format!("{ca}-{}", "0".repeat(32)), &["unknown", "not known"]);
    refused("malformed", "bg1-nonsense", &["token"]);
    let foreign = format!("bg1-{}-{}", "ab".repeat(32), "0".repeat(32));
    refused("foreign", &foreign, &["not the one this token was made for"]);

    let single = token_command(&["create", "--uses", "1"]).trim().to_owned();
    let mut first = served.join_with("first", "160MiB", Some(&single));
    first.process.wait_for("attachment", Duration::from_secs(20), |line| {
        (line.contains("attached") || line.contains("joined")).then_some(())
    });
    refused("second", &single, &["used"]);

    let short = token_command(&["create", "--ttl", "1s"]).trim().to_owned();
    std::thread::sleep(Duration::from_millis(1500));
    refused("late", &short, &["expired"]);

    let revoked = token_command(&["create"]).trim().to_owned();
    let listed = token_command(&["ls"]);
    let newest = listed.lines().last().and_then(|line| line.split_whitespace().next()).unwrap().to_owned();
    token_command(&["revoke", &newest]);
    refused("revoked", &revoked, &["revoked", "unknown", "not known"]);
}

#[test]
fn workers_go_to_the_devices_that_are_there() {
    for choice in ["auto", "all"] {
        let cluster =
            Up::new(setup::smollm2()).memory("224MiB").args(["--ctx", "1024", "--device", choice]).start();
        assert_eq!(cluster.workers().len(), 1, "{choice}: there is no card, so there is one worker");
        let output = cluster.process.output();
        assert!(output.contains("1 worker of 224.0 MiB"), "{choice}: {output}");
        cluster.stop();
    }
}

#[test]
fn a_device_that_is_not_there_is_refused_before_anything_is_started() {
    for (arguments, code, part) in [
        (["--device", "cuda:99"], 1, "finds no cuda:99, only cpu"),
        (["--device", "best"], 2, "auto (the best that is there)"),
    ] {
        let (mut process, _home) = Up::new(setup::smollm2()).args(arguments).spawn();
        let (status, output) = process.wait(STOP);
        assert!(status.code() == Some(code) && output.contains(part), "{arguments:?}: {status}: {output}");
    }
}

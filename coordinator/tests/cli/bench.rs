//! `brigade bench` against an HTTP server that answers as a coordinator does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use brigade_coordinator::status::{ClusterStatus, ModelStatus, Phase, StageStatus};
use serde_json::{Value, json};

use crate::program::{self, Outcome, brigade};

/// A cluster of one stage that takes 5 ms for a token, and says that it was busy for half of it.
#[derive(Clone)]
struct Server {
    key: Option<&'static str>,
    phase: Phase,
    step: Duration,
    status: Arc<Mutex<ClusterStatus>>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn new() -> Server {
        let model = ModelStatus { id: "tiny".to_owned(), vocabulary: 1000, ..ModelStatus::default() };
        let stages = vec![StageStatus { name: "w1".to_owned(), ..StageStatus::default() }];
        let status =
            ClusterStatus { model, stages, context: 1024, cache_tokens: 1024, ..ClusterStatus::default() };
        Server {
            key: None,
            phase: Phase::Serving,
            step: Duration::from_millis(5),
            status: Arc::new(Mutex::new(status)),
            asked: Arc::default(),
        }
    }

    async fn start(&self) -> String {
        let router = Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/api/status", get(status))
            .route("/v1/completions", post(complete))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let listener = listener.tap_io(|connection| connection.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }
}

async fn status(State(server): State<Server>, headers: HeaderMap) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if server.key.is_some_and(|key| given != Some(&format!("Bearer {key}"))) {
        let error = json!({"error": {"message": "the API key is wrong"}});
        return (StatusCode::UNAUTHORIZED, axum::Json(error)).into_response();
    }
    let status = ClusterStatus { phase: server.phase, ..server.status.lock().unwrap().clone() };
    axum::Json(status).into_response()
}

async fn complete(State(server): State<Server>, axum::Json(request): axum::Json<Value>) -> Response {
    let tokens = request["max_tokens"].as_u64().unwrap();
    let prompt = request["prompt"].as_array().unwrap().len();
    server.asked.lock().unwrap().push(request);
    let events = futures_util::stream::unfold(0, move |at| {
        let server = server.clone();
        async move {
            let event = match at {
                at if at < tokens => {
                    tokio::time::sleep(server.step).await;
                    json!({"choices": [{"index": 0, "text": "", "token_ids": [7], "finish_reason": null}]})
                        .to_string()
                }
                at if at == tokens => {
                    let mut status = server.status.lock().unwrap();
                    status.requests.finished += 1;
                    let totals = &mut status.stages[0].totals;
                    totals.decode_steps += tokens;
                    totals.decode_us += tokens * server.step.as_micros() as u64 / 2;
                    json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}})
                        .to_string()
                }
                at if at == tokens + 1 => "[DONE]".to_owned(),
                _ => return None,
            };
            Some((Ok::<_, std::io::Error>(format!("data: {event}\n\n")), at + 1))
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], axum::body::Body::from_stream(events)).into_response()
}

async fn bench(home: &Path, args: &[&str]) -> Outcome {
    let home = home.to_owned();
    let args: Vec<String> = ["bench"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    let run = move || program::run(&home, &args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test]
async fn tests_are_measured_with_streams_side_by_side() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::new();
    let url = server.start().await;
    let args =
        ["--url", &url, "-p", "64", "-n", "32", "--streams", "1,4", "-r", "2", "--seed", "5", "--json"];
    let outcome = bench(home.path(), &args).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let document: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!((&document["model"], &document["seed"]), (&json!("tiny"), &json!(5)));
    let tests = document["tests"].as_array().unwrap();
    let named: Vec<(&str, u64)> =
        tests.iter().map(|t| (t["test"].as_str().unwrap(), t["streams"].as_u64().unwrap())).collect();
    assert_eq!(named, [("pp64", 1), ("tg32", 1), ("tg32", 4)]);
    for test in tests {
        assert_eq!(test["samples_ts"].as_array().unwrap().len(), 2);
        assert!(test["median_ts"].as_f64().unwrap() > 0.0 && test["ttft_ms"]["p50"].as_f64().unwrap() > 0.0);
        assert_eq!(test["disturbed"], false, "{test:#}");
    }
    // A token takes at least 5 ms, of which the stage computes a half; starting takes a little besides.
    let one = &tests[1];
    assert!(
        one["itl_ms"]["p50"].as_f64().unwrap() >= 4.5 && one["median_ts"].as_f64().unwrap() <= 220.0,
        "{one:#}"
    );
    let stage = &one["stages"][0];
    let busy = stage["busy"].as_f64().unwrap();
    assert!(busy > 0.0 && busy <= 0.5, "{stage:#}");
    assert!((stage["idle"].as_f64().unwrap() + busy - 1.0).abs() < 1e-9, "{stage:#}");
    assert!((stage["decode_step_us"].as_f64().unwrap() - 2500.0).abs() < 1e-9, "{stage:#}");

    let asked = server.asked.lock().unwrap();
    // The warm-up is one prompt and four streams; then two repetitions of one, one, and four streams.
    assert_eq!(asked.len(), 5 + 2 * 6);
    let prompts: Vec<&Value> = asked.iter().map(|request| &request["prompt"]).collect();
    for (at, request) in asked.iter().enumerate() {
        assert_eq!((&request["ignore_eos"], &request["return_token_ids"]), (&json!(true), &json!(true)));
        assert!(prompts[at].as_array().unwrap().iter().all(|id| id.as_u64().unwrap() < 1000));
        assert!(prompts[..at].iter().all(|other| other[0] != prompts[at][0]), "two prompts begin alike");
    }
}

#[tokio::test]
async fn a_table_is_written_by_default_and_what_does_not_fit_is_left_out() {
    let home = tempfile::tempdir().unwrap();
    let url = Server::new().start().await;
    let outcome =
        bench(home.path(), &["--url", &url, "-p", "0", "-n", "8", "--streams", "1,128", "-r", "1"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.out.starts_with("| test            | streams |"), "{}", outcome.out);
    assert!(outcome.out.contains("| tg8             |       1 |"), "{}", outcome.out);
    assert!(outcome.out.lines().all(|line| line.chars().count() <= 200), "{}", outcome.out);
    assert!(
        outcome.err.contains("left out: tg8 with 128 stream(s) needs a cache of 4096 tokens"),
        "{}",
        outcome.err
    );
}

#[tokio::test]
async fn what_cannot_be_measured_is_said_with_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let nobody = bench(home.path(), &[]).await;
    assert_eq!(nobody.code, Some(1));
    assert!(
        nobody.err.contains("no coordinator runs on this machine; start one with `brigade up"),
        "{}",
        nobody.err
    );

    let url = Server::new().start().await;
    let long = bench(home.path(), &["--url", &url, "-p", "1024"]).await;
    assert_eq!(long.code, Some(1));
    assert!(
        long.err.contains("pp1024 needs a context of 1025 tokens, and this cluster serves 1024"),
        "{}",
        long.err
    );

    let url = Server { key: Some("secret"), ..Server::new() }.start().await;
    let refused = bench(home.path(), &["--url", &url, "--api-key", "guess"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("answered 401: the API key is wrong; give --api-key"), "{}", refused.err);

    let url = Server { phase: Phase::Loading, ..Server::new() }.start().await;
    let early = bench(home.path(), &["--url", &url]).await;
    assert_eq!(early.code, Some(1));
    assert!(early.err.contains("tiny is not served yet"), "{}", early.err);

    for wrong in
        [&["-p", "0", "-n", "0"][..], &["-n", "1"], &["--streams", "0"], &["-r", "0"], &["-o", "xml"]]
    {
        let outcome = bench(home.path(), wrong).await;
        assert_eq!(outcome.code, Some(2), "{wrong:?}: {outcome:?}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn ctrl_c_ends_it_at_once() {
    let home = tempfile::tempdir().unwrap();
    let server = Server { step: Duration::from_secs(60), ..Server::new() };
    let url = server.start().await;
    let mut child = brigade(home.path(), &["bench", "--url", &url, "-r", "1"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let asked = Instant::now();
    while server.asked.lock().unwrap().is_empty() {
        assert!(asked.elapsed() < Duration::from_secs(20), "it never asks for anything");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let interrupted = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(2), "{:?}", interrupted.elapsed());
}

//! The commands that talk to a coordinator, against an HTTP server that answers as one does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use brigade_coordinator::status::{ClusterStatus, ModelStatus, Phase};
use serde_json::{Value, json};

use crate::program::{self, Outcome, brigade, outcome};

/// A server with one model, `tiny`, that says what is on `script`.
#[derive(Clone)]
struct Server {
    key: Option<&'static str>,
    script: &'static [&'static str],
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn new(script: &'static [&'static str]) -> Server {
        Server { key: None, script, asked: Arc::default() }
    }

    async fn start(&self) -> SocketAddr {
        let router = Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/api/status", get(status))
            .route("/v1/models", get(|| async { axum::Json(json!({"data": [{"id": "tiny"}]})) }))
            .route("/v1/chat/completions", post(chat))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }
}

async fn status(State(server): State<Server>, headers: HeaderMap) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if server.key.is_some_and(|key| given != Some(&format!("Bearer {key}"))) {
        let error = json!({"error": {"message": "the API key is wrong"}});
        return (StatusCode::UNAUTHORIZED, axum::Json(error)).into_response();
    }
    let model = ModelStatus { id: "tiny".to_owned(), ..ModelStatus::default() };
    axum::Json(ClusterStatus { phase: Phase::Serving, model, ..ClusterStatus::default() }).into_response()
}

async fn chat(State(server): State<Server>, axum::Json(request): axum::Json<Value>) -> Response {
    server.asked.lock().unwrap().push(request);
    let body = server.script.concat();
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// Runs the program beside the server.
async fn run(home: &Path, args: &[&str]) -> Outcome {
    let home = home.to_owned();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let run = move || program::run(&home, &args.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn announce(home: &Path, pid: u32, address: SocketAddr) {
    let announcement = json!({
        "url": format!("http://{address}"), "pid": pid, "model": "tiny",
        "control": "127.0.0.1:7481", "state": home.join(".local/state/brigade"),
    });
    std::fs::create_dir_all(home.join("brigade")).unwrap();
    std::fs::write(home.join(format!("brigade/{pid}.json")), announcement.to_string()).unwrap();
}

const ANSWER: &[&str] = &[
    ": keep-alive\n\n",
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"Hello \"}}]}\r\n\r\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"world\"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n",
    "data: [DONE]\n\n",
];

#[tokio::test]
async fn status_finds_the_coordinator_of_this_machine() {
    let home = tempfile::tempdir().unwrap();
    let address = Server::new(&[]).start().await;
    announce(home.path(), std::process::id(), address);
    let shown = run(home.path(), &["status"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.out.starts_with("model     tiny\nphase     serving\n"), "{}", shown.out);

    let shown = run(home.path(), &["status", "--json"]).await;
    let status: ClusterStatus = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((status.phase, shown.out.lines().count()), (Phase::Serving, 1));

    let token = run(home.path(), &["token", "create"]).await;
    assert!(
        token.err.contains("join 127.0.0.1:7481 --token bg1-"),
        "the running one's address: {}",
        token.err
    );
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_is_passed_over() {
    let home = tempfile::tempdir().unwrap();
    // Port 1 of loopback: nobody listens there.
    announce(home.path(), std::process::id(), ([127, 0, 0, 1], 1).into());
    let shown = run(home.path(), &["status"]).await;
    assert_eq!(shown.code, Some(1));
    assert!(shown.err.contains("no coordinator runs on this machine"), "{}", shown.err);
}

#[tokio::test]
async fn a_key_is_sent_and_a_missing_one_is_named() {
    let home = tempfile::tempdir().unwrap();
    let server = Server { key: Some("secret"), ..Server::new(&[]) };
    let url = format!("http://{}", server.start().await);
    let refused = run(home.path(), &["status", "--url", &url]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("answered 401: the API key is wrong; give --api-key"), "{}", refused.err);
    let shown = run(home.path(), &["status", "--url", &url, "--api-key", "secret"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
}

#[tokio::test]
async fn a_question_is_answered_on_standard_output_alone() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::new(ANSWER);
    let url = format!("http://{}", server.start().await);
    let options =
        ["--system", "Be brief.", "--max-tokens", "9", "--temperature", "0", "--seed", "5", "--stats"];
    let mut args = vec!["run", "models/tiny.gguf", "Hi!", "--url", &url];
    args.extend(options);
    let answer = run(home.path(), &args).await;
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(answer.out, "Hello world\n");
    assert!(answer.err.contains("7 prompt tokens") && answer.err.contains("2 tokens"), "{}", answer.err);
    assert_eq!(
        server.asked.lock().unwrap()[0],
        json!({
            "model": "tiny", "stream": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}],
            "max_tokens": 9, "temperature": 0.0, "seed": 5,
        })
    );
}

#[tokio::test]
async fn a_piped_prompt_is_asked_as_one() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::new(ANSWER);
    announce(home.path(), std::process::id(), server.start().await);
    let prompt = home.path().join("prompt.txt");
    std::fs::write(&prompt, "two\nlines\n").unwrap();
    let mut command = brigade(home.path(), &["run", "tiny"]);
    command.stdin(std::fs::File::open(&prompt).unwrap());
    let answer = tokio::task::spawn_blocking(move || outcome(&mut command)).await.unwrap();
    assert_eq!((answer.code, answer.out.as_str()), (Some(0), "Hello world\n"), "{answer:?}");
    assert_eq!(server.asked.lock().unwrap()[0]["messages"][0]["content"], "two\nlines");

    let empty = run(home.path(), &["run", "tiny"]).await;
    assert_eq!(empty.code, Some(2), "{empty:?}");
    assert!(empty.err.contains("give a PROMPT"), "{}", empty.err);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure() {
    let home = tempfile::tempdir().unwrap();
    for (script, said) in [
        (&ANSWER[..3], "the coordinator closed the stream"),
        (
            &["data: {\"error\":{\"message\":\"worker w2 was lost\"}}\n\n"][..],
            "the answer broke off: worker w2 was lost",
        ),
    ] {
        let url = format!("http://{}", Server::new(script).start().await);
        let answer = run(home.path(), &["run", "tiny", "Hi!", "--url", &url]).await;
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.err.contains(said), "{}", answer.err);
    }
}

#[tokio::test]
async fn another_model_than_the_one_served_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let url = format!("http://{}", Server::new(ANSWER).start().await);
    let answer = run(home.path(), &["run", "huge.gguf", "Hi!", "--url", &url]).await;
    assert_eq!(answer.code, Some(1));
    assert!(answer.err.contains("serves tiny, not huge.gguf"), "{}", answer.err);
}

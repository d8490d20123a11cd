//! Answers that are asked for with a key: told again, gone on with, and never twice.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use brigade_coordinator::api::{ApiSettings, KeptAnswers};
use brigade_coordinator::generation::{GenerationError, GenerationRequest};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{PATIENCE, Server, eventually};
use crate::engine::{Act, ScriptedEngine, draw};
use crate::model::{TOOL_CALLS, bytes, model_with};

const COMPLETIONS: &str = "/v1/completions";
const HOUR: Duration = Duration::from_secs(3600);

/// What an answer consists of, by its seed, so that choices differ.
fn answer(request: &GenerationRequest) -> Vec<u32> {
    let texts = ["a tale of two cities", "b, as in bravo", "c is for cookie, that's good enough for me"];
    bytes(texts[(request.sampling.seed % 3) as usize])
}

/// Says the answer as far as it has not been drawn, and breaks off after `most` tokens.
fn telling(most: Arc<AtomicUsize>) -> ScriptedEngine {
    ScriptedEngine::new(move |request| {
        let told = request.drawn.len();
        let tokens = answer(request);
        assert_eq!(request.drawn, tokens[..told], "what was drawn before is not what was told");
        let most = most.load(Ordering::SeqCst);
        let mut acts = draw(&tokens[told..]);
        if acts.len() > most {
            acts.truncate(most);
            acts.push(Act::Fail(GenerationError::Interrupted { reason: "as the test wants".to_owned() }));
        }
        acts
    })
}

async fn serve(engine: ScriptedEngine, folder: &Path) -> Server {
    let kept = Some(KeptAnswers::open(folder, HOUR).unwrap());
    Server::with(engine, ApiSettings { kept, ..ApiSettings::default() }).await
}

/// An event of a stream: its number, where it has one, and what it says.
type Event = (Option<u64>, String);

async fn ask(server: &Server, key: &str, seen: Option<u64>, body: &Value) -> (StatusCode, String) {
    let mut request = server.request(Method::POST, COMPLETIONS).header("Idempotency-Key", key);
    if let Some(seen) = seen {
        request = request.header("Last-Event-ID", seen.to_string());
    }
    let response = request.body(body.to_string()).send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

async fn stream(server: &Server, key: &str, seen: Option<u64>, body: &Value) -> Vec<Event> {
    let (status, text) = ask(server, key, seen, body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let number = field("id: ").map(|id| id.parse().unwrap());
        field("data: ").map(|data| (number, data))
    };
    text.split("\n\n").filter_map(event).collect()
}

/// Requests of every kind, as streams.
fn bodies() -> Vec<Value> {
    let body = |more: Value| {
        let mut body = json!({"prompt": "x", "stream": true, "seed": 3, "max_tokens": 60});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    vec![
        body(json!({})),
        body(json!({"stop": "two"})),
        body(json!({"max_tokens": 7, "stream_options": {"include_usage": true}})),
        body(json!({"n": 3, "logprobs": 2, "echo": true})),
        body(json!({"prompt": ["one", "two"], "n": 2, "return_token_ids": true})),
    ]
}

/// The events without the answer's random id and its time.
fn said(events: &[Event]) -> Vec<Value> {
    let said = events.iter().map(|(_, data)| {
        let mut event: Value = serde_json::from_str(data).unwrap_or_else(|_| Value::from(data.as_str()));
        if let Some(event) = event.as_object_mut() {
            event.remove("id");
            event.remove("created");
        }
        event
    });
    said.collect()
}

/// The same for an answer with several choices, whose order may differ: choice by choice.
fn by_choice(events: &[Event]) -> Vec<Vec<Value>> {
    let mut choices: Vec<Vec<Value>> = Vec::new();
    for event in said(events) {
        let index = event["choices"][0]["index"].as_u64().unwrap_or(0) as usize;
        choices.resize(choices.len().max(index + 1), Vec::new());
        choices[index].push(event);
    }
    choices
}

#[tokio::test]
async fn the_same_request_with_the_same_key_gets_the_same_answer() {
    for body in bodies() {
        let folder = tempfile::tempdir().unwrap();
        let engine = telling(Arc::new(AtomicUsize::new(1000)));
        let requests = engine.requests.clone();
        let server = serve(engine, folder.path()).await;
        let first = stream(&server, "key", None, &body).await;
        assert_eq!(first.last().unwrap().1, "[DONE]");
        let numbers: Vec<u64> = first.iter().map(|(number, _)| number.unwrap()).collect();
        assert_eq!(numbers, (0..first.len() as u64).collect::<Vec<_>>());
        let asked = requests.lock().unwrap().len();
        assert_eq!(stream(&server, "key", None, &body).await, first);
        // Another process, later.
        let later = serve(telling(Arc::new(AtomicUsize::new(0))), folder.path()).await;
        assert_eq!(stream(&later, "key", None, &body).await, first);
        for seen in 0..first.len() as u64 {
            let rest = stream(&later, "key", Some(seen), &body).await;
            assert_eq!(rest, first[seen as usize + 1..], "after event {seen}");
        }
        assert_eq!(requests.lock().unwrap().len(), asked, "the answer was generated again");
        // Another key is another answer.
        let other = stream(&server, "other", None, &body).await;
        assert_eq!(by_choice(&other), by_choice(&first));
        assert_ne!(other[0], first[0], "another answer has another id");
    }
}

#[tokio::test]
async fn a_whole_answer_is_told_again_with_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(telling(Arc::new(AtomicUsize::new(1000))), folder.path()).await;
    let body = json!({"prompt": "x", "max_tokens": 60});
    let first = ask(&server, "k", None, &body).await;
    assert_eq!(first.0, StatusCode::OK, "{}", first.1);
    // Without a seed of its own the request was given one, which is kept.
    assert_eq!(ask(&server, "k", None, &body).await, first);
}

#[tokio::test]
async fn an_answer_that_broke_off_goes_on_behind_what_was_told() {
    for body in bodies() {
        let undisturbed = {
            let folder = tempfile::tempdir().unwrap();
            let server = serve(telling(Arc::new(AtomicUsize::new(1000))), folder.path()).await;
            stream(&server, "key", None, &body).await
        };
        for step in [1, 2, 5] {
            let folder = tempfile::tempdir().unwrap();
            let mut events: Vec<Event> = Vec::new();
            for attempt in 0.. {
                assert!(attempt < 200, "no end: {events:?}");
                // Each time another process, which draws a few tokens.
                let server = serve(telling(Arc::new(AtomicUsize::new(step))), folder.path()).await;
                let seen = events.last().and_then(|(number, _)| *number);
                let more = stream(&server, "key", seen, &body).await;
                let last = more.last().unwrap().clone();
                events.extend(more.into_iter().filter(|(number, _)| number.is_some()));
                if last.1 == "[DONE]" {
                    break;
                }
                assert!(last.1.contains("as the test wants"), "{last:?}");
            }
            let numbers: Vec<u64> = events.iter().map(|(number, _)| number.unwrap()).collect();
            assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>(), "each event once, in order");
            let (found, wanted) = (by_choice(&events), by_choice(&undisturbed));
            for (choice, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                for (found, wanted) in found.iter().zip(wanted) {
                    assert_eq!(found, wanted, "choice {choice} in steps of {step}: {body}");
                }
                assert_eq!(found.len(), wanted.len(), "choice {choice} in steps of {step}: {body}");
            }
            assert_eq!(found.len(), wanted.len());
        }
    }
}

#[tokio::test]
async fn a_record_that_was_cut_anywhere_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let body =
        json!({"prompt": "x", "stream": true, "seed": 3, "max_tokens": 60, "logprobs": 1, "echo": true});
    let server = serve(telling(Arc::new(AtomicUsize::new(1000))), folder.path()).await;
    let whole = stream(&server, "key", None, &body).await;
    let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let record = std::fs::read(&path).unwrap();
    let head = record.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in (0..record.len()).step_by(3) {
        std::fs::write(&path, &record[..length]).unwrap();
        let again = stream(&server, "key", None, &body).await;
        if length >= head {
            assert_eq!(again, whole, "cut at {length} of {}", record.len());
        } else {
            assert_eq!(said(&again), said(&whole), "cut at {length} of {}", record.len());
        }
    }
    std::fs::write(&path, b"{\"version\":1}\nnonsense\n").unwrap();
    assert_eq!(said(&stream(&server, "key", None, &body).await), said(&whole));
}

#[tokio::test]
async fn calls_of_tools_keep_their_ids() {
    let call = [&[TOOL_CALLS][..], &bytes("[{\"name\": \"sun\", \"arguments\": {}}]")].concat();
    let template = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}";
    let engine =
        ScriptedEngine::of(model_with(Some(template)), move |request| draw(&call[request.drawn.len()..]));
    let folder = tempfile::tempdir().unwrap();
    let server = serve(engine, folder.path()).await;
    let body = json!({
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "sun", "parameters": {"type": "object"}}}],
    });
    let ask = async |key: &str| {
        let request = server.request(Method::POST, "/v1/chat/completions").header("Idempotency-Key", key);
        let answer: Value = request.body(body.to_string()).send().await.unwrap().json().await.unwrap();
        answer["choices"][0]["message"]["tool_calls"][0]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    };
    let (first, again, other) = (ask("one").await, ask("one").await, ask("two").await);
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(first.len() == 9 && first.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{first}");
}

#[tokio::test]
async fn the_last_request_with_a_key_has_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let hangs = Arc::new(AtomicUsize::new(1));
    let first_hangs = hangs.clone();
    let engine = ScriptedEngine::new(move |request| {
        let mut acts = draw(&answer(request)[request.drawn.len()..]);
        if first_hangs.swap(0, Ordering::SeqCst) == 1 {
            acts.truncate(4);
            acts.push(Act::Hang);
        }
        acts
    });
    let cancelled = engine.cancelled.clone();
    let server = serve(engine, folder.path()).await;
    let body = json!({"prompt": "x", "stream": true, "seed": 3, "max_tokens": 60});
    let mut first = server
        .request(Method::POST, COMPLETIONS)
        .header("Idempotency-Key", "key")
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    let mut seen = String::new();
    while !seen.contains("id: 3") {
        seen.push_str(std::str::from_utf8(&first.chunk().await.unwrap().unwrap()).unwrap());
    }
    let second = stream(&server, "key", None, &body).await;
    assert_eq!(second.last().unwrap().1, "[DONE]");
    seen.push_str(&tokio::time::timeout(PATIENCE, first.text()).await.unwrap().unwrap());
    assert!(seen.contains("taken_over"), "{seen}");
    eventually("the first generation is given up", || cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_generation_and_may_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let waits = Duration::from_millis(20);
    let engine = ScriptedEngine::new(move |request| {
        let tokens = answer(request);
        let told = request.drawn.len();
        tokens[told..].iter().flat_map(|token| [Act::Wait(waits), Act::Draw(*token)]).collect()
    });
    let (cancelled, running) = (engine.cancelled.clone(), engine.running.clone());
    let server = serve(engine, folder.path()).await;
    let body = json!({"prompt": "x", "stream": true, "seed": 3, "max_tokens": 60});
    for leave in 1..4 {
        let request = server.request(Method::POST, COMPLETIONS).header("Idempotency-Key", "key");
        let mut response = request.body(body.to_string()).send().await.unwrap();
        for _ in 0..leave {
            response.chunk().await.unwrap();
        }
        drop(response);
        eventually("the generation ends", || running.load(Ordering::SeqCst) == 0).await;
        assert_eq!(cancelled.load(Ordering::SeqCst), leave);
    }
    let text: String = said(&stream(&server, "key", None, &body).await)
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, "a tale of two cities");
}

#[tokio::test]
async fn a_key_is_for_one_request_of_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(telling(Arc::new(AtomicUsize::new(1000))), folder.path()).await;
    let body = json!({"prompt": "x", "seed": 3, "max_tokens": 5});
    assert_eq!(ask(&server, "key", None, &body).await.0, StatusCode::OK);
    let (status, text) = ask(&server, "key", None, &json!({"prompt": "y"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(text.contains("key_of_another_request"), "{text}");
    assert_eq!(ask(&server, "key", None, &body).await.0, StatusCode::OK, "the answer is there all the same");
    let mut other = model_with(None);
    other.fingerprint = brigade_shard::model_file::Fingerprint::new([7; 32]);
    let other = serve(ScriptedEngine::of(other, |_| draw(&bytes("other"))), folder.path()).await;
    let (status, text) = ask(&other, "key", None, &body).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(text.contains("key_of_another_model"), "{text}");
}

#[tokio::test]
async fn wrong_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(telling(Arc::new(AtomicUsize::new(1000))), folder.path()).await;
    let plain = Server::start(telling(Arc::new(AtomicUsize::new(1000)))).await;
    let long = "k".repeat(256);
    for (server, headers, said) in [
        (&server, vec![("Idempotency-Key", "")], "1 to 255"),
        (&server, vec![("Idempotency-Key", long.as_str())], "1 to 255"),
        (&server, vec![("Idempotency-Key", "k"), ("Last-Event-ID", "three")], "whole number"),
        (&server, vec![("Last-Event-ID", "3")], "needs the `Idempotency-Key`"),
        (&plain, vec![("Idempotency-Key", "k")], "keeps no answers"),
    ] {
        let request = server.request(Method::POST, COMPLETIONS).body(json!({"prompt": "x"}).to_string());
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{headers:?}");
        let text = response.text().await.unwrap();
        assert!(text.contains(said), "{headers:?}: {text}");
    }
}

#[tokio::test]
async fn answers_are_kept_for_their_time_and_for_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let answers = folder.path().join("answers");
    let short = Duration::from_millis(100);
    let start = || {
        let kept = Some(KeptAnswers::open(&answers, short).unwrap());
        let settings = ApiSettings { kept, ..ApiSettings::default() };
        Server::with(telling(Arc::new(AtomicUsize::new(1000))), settings)
    };
    let body = json!({"prompt": "x", "seed": 3, "max_tokens": 5});
    ask(&start().await, "old", None, &body).await;
    let records =
        || std::fs::read_dir(&answers).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let old = records();
    assert_eq!(old.len(), 1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&answers), mode(&old[0])), (0o700, 0o600));
    }
    tokio::time::sleep(short * 2).await;
    // The next process looks at once, and then now and then.
    let _server = start().await;
    eventually("the old answer is removed", || records().is_empty()).await;
}

//! What is refused, and how.

use std::time::Duration;

use brigade_coordinator::generation::GenerationError;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Server, events_of};
use crate::engine::{Act, CONTEXT, ScriptedEngine, draw};
use crate::model::{MODEL, VOCAB, bytes};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Asserts that an answer is an error object and gives its fields.
fn error(answer: &Value) -> (&str, &Value, &Value) {
    let error = answer["error"].as_object().unwrap_or_else(|| panic!("no error: {answer}"));
    let mut names: Vec<&str> = error.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["code", "message", "param", "type"]);
    assert!(error["type"].is_string(), "{answer}");
    (error["message"].as_str().unwrap(), &error["param"], &error["code"])
}

async fn refused(server: &Server, path: &str, body: impl ToString, status: u16, param: Value, code: &str) {
    let body = body.to_string();
    let (seen, answer) = server.post(path, &body).await;
    let shown: String = body.chars().take(100).collect();
    assert_eq!(seen.as_u16(), status, "{path} {shown}: {answer}");
    let (message, seen_param, seen_code) = error(&answer);
    assert_eq!((seen_param, seen_code), (&param, &json!(code)), "{path} {shown}: {message}");
    if let Some(param) = param.as_str() {
        assert!(message.contains(param) || param == "model", "{message} does not name {param}");
    }
}

#[tokio::test]
async fn every_wrong_request_is_refused_in_openai_s_shape() {
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    let no = Value::Null;
    for body in ["{not json", "", "[]", "\"text\"", "{\"prompt\": \"\u{0}\"}"] {
        refused(&server, COMPLETIONS, body, 400, no.clone(), "invalid_json").await;
    }
    let nested = format!("{{\"prompt\": {}", "[".repeat(100_000));
    refused(&server, COMPLETIONS, nested, 400, no.clone(), "invalid_json").await;
    for (body, param, code) in [
        (json!({}), "prompt", "missing_required_parameter"),
        (json!({"prompt": {"a": 1}}), "prompt", "invalid_type"),
        (json!({"prompt": [VOCAB]}), "prompt[0]", "invalid_value"),
        (json!({"prompt": [-1]}), "prompt[0]", "invalid_value"),
        (json!({"prompt": ""}), "prompt", "invalid_value"),
        (json!({"prompt": "a", "temperature": 3}), "temperature", "invalid_value"),
        (json!({"prompt": "a", "max_tokens": "5"}), "max_tokens", "invalid_type"),
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens", "invalid_value"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs", "invalid_value"),
        (json!({"prompt": "a", "n": 17}), "n", "invalid_value"),
        (json!({"prompt": "a", "best_of": 2}), "best_of", "unsupported_parameter"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix", "unsupported_parameter"),
        (json!({"prompt": "a", "no_such": 1}), "no_such", "unknown_parameter"),
    ] {
        refused(&server, COMPLETIONS, body, 400, json!(param), code).await;
    }
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (name, value, code) in [
        ("tool_choice", json!("required"), "unsupported_parameter"),
        ("tool_choice", json!("auto"), "invalid_value"),
        ("functions", json!([{}]), "unsupported_parameter"),
        ("response_format", json!({"type": "json_object"}), "unsupported_parameter"),
        ("n", json!(0), "invalid_value"),
        ("top_logprobs", json!(99), "invalid_value"),
        ("stop", json!(""), "invalid_value"),
        ("stream", json!("yes"), "invalid_type"),
        ("prompt", json!("a"), "unknown_parameter"),
    ] {
        refused(&server, CHAT, json!({"messages": messages, name: value}), 400, json!(name), code).await;
    }
    refused(&server, CHAT, "{}", 400, json!("messages"), "missing_required_parameter").await;
    refused(
        &server,
        CHAT,
        json!({"messages": messages, "model": "x"}),
        404,
        json!("model"),
        "model_not_found",
    )
    .await;
    refused(
        &server,
        COMPLETIONS,
        json!({"prompt": "a", "model": "x"}),
        404,
        json!("model"),
        "model_not_found",
    )
    .await;
    assert_eq!(engine.requests.lock().unwrap().len(), 0, "a wrong request reached the engine");
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_with_its_numbers() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    let code = "context_length_exceeded";
    let context = CONTEXT as usize;
    refused(&server, COMPLETIONS, json!({"prompt": vec![7; 1_000_000]}), 400, Value::Null, code).await;
    refused(&server, COMPLETIONS, json!({"prompt": ["a", "a".repeat(context)]}), 400, Value::Null, code)
        .await;
    let body = json!({"prompt": vec![7; context], "max_tokens": 1});
    let (_, answer) = server.post(COMPLETIONS, &body).await;
    let (message, _, _) = error(&answer);
    assert!(message.contains("256 in the prompt and 1 of the answer"), "{message}");
    let messages = json!([{"role": "user", "content": "a".repeat(context)}]);
    refused(&server, CHAT, json!({"messages": messages}), 400, Value::Null, code).await;
    let fits = json!({"prompt": vec![7; context - 1], "max_tokens": 1});
    server.complete(fits).await;
    server.complete(json!({"prompt": vec![7; context], "max_tokens": 0, "echo": true})).await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    let body = json!({"prompt": "a".repeat(17 << 20)});
    refused(&server, COMPLETIONS, body, 413, Value::Null, "request_too_large").await;
}

#[tokio::test]
async fn unknown_routes_and_methods_answer_in_openai_s_shape() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    for (method, path, status, code) in [
        (Method::GET, "/v1/no-such", 404, "unknown_url"),
        (Method::POST, "/v1/embeddings", 404, "unknown_url"),
        (Method::GET, "/v1/models/other", 404, "model_not_found"),
        (Method::GET, COMPLETIONS, 405, "method_not_allowed"),
        (Method::DELETE, "/v1/models", 405, "method_not_allowed"),
        (Method::POST, "/health", 405, "method_not_allowed"),
    ] {
        let response = server.request(method.clone(), path).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        assert_eq!(response.headers().contains_key("allow"), status == 405, "{method} {path}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(error(&answer).2, code, "{method} {path}");
    }
}

#[tokio::test]
async fn a_full_queue_is_429_and_says_when_to_come_back() {
    for (wait_ms, seconds) in [(0, "1"), (900, "1"), (11_300, "12")] {
        let mut engine = ScriptedEngine::saying(bytes("ok"));
        (engine.most_running, engine.likely_wait) = (0, Duration::from_millis(wait_ms));
        let server = Server::start(engine).await;
        for stream in [false, true] {
            let response = server.send(COMPLETIONS, json!({"prompt": "a", "stream": stream})).await;
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()["retry-after"], seconds);
            let answer: Value = response.json().await.unwrap();
            assert_eq!(error(&answer).2, "overloaded");
        }
    }
}

#[tokio::test]
async fn an_interrupted_generation_is_503_or_a_stream_s_last_event() {
    let failure = GenerationError::Interrupted { reason: "worker w2 was lost".to_owned() };
    let acts = move || [draw(&bytes("ab")), vec![Act::Fail(failure.clone())]].concat();
    let server = Server::start(ScriptedEngine::new(move |_| acts())).await;
    let response = server.send(COMPLETIONS, json!({"model": MODEL, "prompt": "a"})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    let answer: Value = response.json().await.unwrap();
    assert!(error(&answer).0.contains("worker w2 was lost"), "{answer}");

    let response = server.send(COMPLETIONS, json!({"prompt": "a", "stream": true})).await;
    assert_eq!(response.status(), StatusCode::OK);
    let events = events_of(&response.text().await.unwrap());
    let (last, before) = events.split_last().unwrap();
    assert_eq!(error(last).2, "interrupted");
    let text: String = before.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "ab");
}

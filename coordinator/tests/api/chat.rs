//! Chat in one piece.

use serde_json::json;

use crate::client::Server;
use crate::engine::{CONTEXT, ScriptedEngine};
use crate::model::{IM_END, IM_START, MODEL, bytes, model, word};

fn user(content: &str) -> serde_json::Value {
    json!([{"role": "user", "content": content}])
}

#[tokio::test]
async fn a_chat_completion_has_openai_s_shape() {
    let engine = ScriptedEngine::saying(vec![word("Hello")]);
    let server = Server::start(engine.clone()).await;
    let answer = server.chat(json!({"model": MODEL, "messages": user("hi")})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"), "{answer}");
    assert_eq!(answer["object"], "chat.completion");
    let message = json!({"role": "assistant", "content": "Hello", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"], json!([choice]));

    let mut prompt = vec![IM_START];
    prompt.extend(bytes("user\nhi"));
    prompt.push(IM_END);
    prompt.extend(bytes("\n"));
    prompt.push(IM_START);
    prompt.extend(bytes("assistant\n"));
    let request = engine.requests.lock().unwrap()[0].clone();
    assert_eq!(request.prompt, prompt, "the template's text with its special tokens");
    assert_eq!(request.max_tokens, CONTEXT - prompt.len() as u32, "the rest of the context");
    assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn the_limit_has_two_names() {
    let engine = ScriptedEngine::saying(bytes("abcdef"));
    let server = Server::start(engine).await;
    for name in ["max_tokens", "max_completion_tokens"] {
        let answer = server.chat(json!({"messages": user("hi"), name: 3})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "abc", "{name}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length", "{name}");
    }
}

#[tokio::test]
async fn log_probabilities_come_with_their_bytes() {
    let server = Server::start(ScriptedEngine::saying(bytes("é"))).await;
    let answer = server.chat(json!({"messages": user("hi"), "logprobs": true, "top_logprobs": 2})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "é");
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3);
    let entry =
        |token: &str, logprob: f64, bytes: &[u8]| json!({"token": token, "logprob": logprob, "bytes": bytes});
    let mut first = entry("\u{fffd}", -0.25, &[0xc3]);
    first["top_logprobs"] = json!([entry("\u{fffd}", -0.25, &[0xc3]), entry("\u{fffd}", -1.25, &[0xc4])]);
    assert_eq!(content[0], first);
    assert_eq!(content[1]["bytes"], json!([0xa9]));
    assert_eq!(content[2]["token"], "<|im_end|>");
    let answer = server.chat(json!({"messages": user("hi"), "logprobs": true})).await;
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn template_kwargs_and_token_ids_reach_where_they_belong() {
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    let answer = server
        .chat(json!({
            "messages": user("hi"), "chat_template_kwargs": {"prefix": "Well,"}, "return_token_ids": true,
        }))
        .await;
    let prompt = engine.requests.lock().unwrap()[0].prompt.clone();
    assert!(prompt.ends_with(&bytes("assistant\nWell,")), "{prompt:?}");
    assert_eq!(answer["prompt_token_ids"], json!(prompt));
    assert_eq!(answer["choices"][0]["token_ids"], json!([bytes("ok"), vec![IM_END]].concat()));
}

#[tokio::test]
async fn the_template_sees_all_of_a_message() {
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    server.chat(json!({"messages": [{"role": "user", "content": "hi", "name": "Ann"}]})).await;
    let prompt = engine.requests.lock().unwrap()[0].prompt.clone();
    assert!(prompt[1..].starts_with(&bytes("user Ann\nhi")), "{prompt:?}");
}

#[tokio::test]
async fn what_the_template_refuses_is_the_client_s_error() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    let messages = json!([{"role": "tool", "content": "x", "tool_call_id": "1"}]);
    let (status, answer) = server.post("/v1/chat/completions", json!({"messages": messages})).await;
    assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("messages")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("no tools here"), "{answer}");

    let server = Server::start(ScriptedEngine::of(model(false), |_| Vec::new())).await;
    let (status, answer) = server.post("/v1/chat/completions", json!({"messages": user("hi")})).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (400, &json!("no_chat_template")));
}

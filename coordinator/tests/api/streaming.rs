//! Streams: order, usage, whole characters.

use brigade_coordinator::generation::Origin;
use serde_json::{Value, json};

use crate::client::Server;
use crate::engine::{Act, ScriptedEngine, draw};
use crate::model::{IM_END, bytes, word};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn user() -> Value {
    json!([{"role": "user", "content": "hi"}])
}

#[tokio::test]
async fn a_chat_stream_has_the_role_first_and_done_last() {
    let server = Server::start(ScriptedEngine::saying(vec![word("Hello"), word(" world")])).await;
    let mut events = server.events(CHAT, json!({"messages": user(), "stream": true})).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let ids: Vec<&Value> = events.iter().map(|event| &event["id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event.get("usage"), None, "usage that nobody asked for");
    }
    let choices: Vec<&Value> = events.iter().map(|event| &event["choices"][0]).collect();
    let chunk = |delta: Value, finish: Value| json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
    assert_eq!(*choices[0], chunk(json!({"role": "assistant", "content": ""}), Value::Null));
    assert_eq!(*choices[1], chunk(json!({"content": "Hello"}), Value::Null));
    assert_eq!(*choices[2], chunk(json!({"content": " world"}), Value::Null));
    assert_eq!(*choices[3], chunk(json!({}), json!("stop")));
    assert_eq!(choices.len(), 4);
}

#[tokio::test]
async fn usage_comes_last_with_no_choices() {
    let server = Server::start(ScriptedEngine::saying(bytes("abc"))).await;
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (path, name, prompt) in [(COMPLETIONS, "prompt", json!("xy")), (CHAT, "messages", user())] {
        let mut body = options.clone();
        body[name] = prompt;
        let mut events = server.events(path, &body).await;
        assert_eq!(events.pop().unwrap(), "[DONE]");
        let last = events.pop().unwrap();
        assert_eq!(last["choices"], json!([]), "{path}");
        assert_eq!(last["usage"]["completion_tokens"], 4, "{path}");
        let total = last["usage"]["prompt_tokens"].as_u64().unwrap() + 4;
        assert_eq!(last["usage"]["total_tokens"], total, "{path}");
        for event in events {
            assert_eq!(event.get("usage"), Some(&Value::Null), "{path}");
        }
    }
}

#[tokio::test]
async fn drafts_are_part_of_the_usage_as_far_as_they_are_part_of_the_answer() {
    let server = Server::start(ScriptedEngine::new(|_| {
        let origins = [Origin::Drawn { rejected: 4 }, Origin::Draft, Origin::Draft, Origin::Draft];
        bytes("abcd").into_iter().zip(origins).map(|(token, origin)| Act::Guess(token, origin)).collect()
    }))
    .await;
    // The answer ends with its third token, and what comes after that is not read.
    for (body, accepted) in [(json!({"prompt": "x"}), 3), (json!({"prompt": "x", "stop": "c"}), 2)] {
        let answer = server.complete(body).await;
        let details = &answer["usage"]["completion_tokens_details"];
        let expected = json!({"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": 4});
        assert_eq!(*details, expected, "{answer}");
    }
}

#[tokio::test]
async fn tokens_found_in_the_cache_are_part_of_the_usage() {
    let server = Server::start(ScriptedEngine::new(|request| {
        [&[Act::Reuse(request.prompt.len() as u32 - 1)][..], &draw(&bytes("abc"))].concat()
    }))
    .await;
    for (path, name, prompt, cached) in
        [(COMPLETIONS, "prompt", json!(["xyz", "xy", "x"]), 3), (CHAT, "messages", user(), -1)]
    {
        let mut body = json!({"stop": "bc"});
        body[name] = prompt;
        let (_, whole) = server.post(path, &body).await;
        let prompt = whole["usage"]["prompt_tokens"].as_i64().unwrap();
        let expected = if cached < 0 { prompt + cached } else { cached };
        assert_eq!(whole["usage"]["prompt_tokens_details"], json!({"cached_tokens": expected}), "{path}");
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let events = server.events(path, &body).await;
        assert_eq!(events[events.len() - 2]["usage"], whole["usage"], "{path}");
    }
}

#[tokio::test]
async fn characters_are_never_split() {
    let text = "naïve 漢字 🦀!";
    let server = Server::start(ScriptedEngine::saying(bytes(text))).await;
    let events = server.events(CHAT, json!({"messages": user(), "stream": true})).await;
    let contents = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let contents: Vec<&str> = contents.filter(|content| !content.is_empty()).collect();
    assert_eq!(contents.concat(), text);
    assert_eq!(contents.len(), text.chars().count(), "one event per character: {contents:?}");
}

#[tokio::test]
async fn token_ids_do_not_wait_for_whole_characters() {
    let text = "a漢b";
    let server = Server::start(ScriptedEngine::saying(bytes(text))).await;
    let body = json!({"prompt": "x", "stream": true, "return_token_ids": true});
    let events = server.events(COMPLETIONS, &body).await;
    let choices = events[..events.len() - 1].iter().map(|event| &event["choices"][0]);
    let (mut whole, mut told) = (String::new(), Vec::new());
    for choice in choices {
        whole.push_str(choice["text"].as_str().unwrap());
        told.push(choice["token_ids"].as_array().unwrap().len());
    }
    assert_eq!((whole.as_str(), told), (text, vec![1, 1, 1, 1, 1, 1, 0]));
}

#[tokio::test]
async fn a_stream_of_several_prompts_keeps_each_in_order() {
    let server = Server::start(ScriptedEngine::new(|request| draw(&request.prompt))).await;
    let prompts = ["first prompt", "second", "x", "and a fourth to end it"];
    let events = server
        .events(
            COMPLETIONS,
            json!({"prompt": prompts, "stream": true, "max_tokens": 50, "return_token_ids": true}),
        )
        .await;
    let (mut texts, mut ids) = (vec![String::new(); 4], vec![Vec::<Value>::new(); 4]);
    let mut ended = [0; 4];
    for event in &events[..events.len() - 1] {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index].push_str(choice["text"].as_str().unwrap());
        ids[index].extend(choice["token_ids"].as_array().unwrap().iter().cloned());
        ended[index] += usize::from(choice["finish_reason"] == "stop");
    }
    assert_eq!(texts, prompts);
    assert_eq!(ended, [1; 4]);
    for (ids, prompt) in ids.iter().zip(prompts) {
        assert_eq!(json!(ids), json!([bytes(prompt), vec![IM_END]].concat()));
    }
}

#[tokio::test]
async fn streamed_log_probabilities_are_those_of_the_whole_answer() {
    let server = Server::start(ScriptedEngine::saying([bytes("aé漢"), vec![word("end.")]].concat())).await;
    for echo in [false, true] {
        let mut body = json!({"prompt": "né", "echo": echo, "logprobs": 2, "max_tokens": 20});
        let whole = server.complete(&body).await["choices"][0]["logprobs"].clone();
        body["stream"] = true.into();
        let events = server.events(COMPLETIONS, &body).await;
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let parts = events[..events.len() - 1].iter().map(|event| &event["choices"][0]["logprobs"][list]);
            let joined: Vec<Value> = parts.flat_map(|part| part.as_array().unwrap().clone()).collect();
            assert_eq!(json!(joined), whole[list], "{list}, echo {echo}");
        }
    }
    let mut body = json!({"messages": user(), "logprobs": true, "top_logprobs": 3});
    let whole = server.chat(&body).await["choices"][0]["logprobs"]["content"].clone();
    body["stream"] = true.into();
    let events = server.events(CHAT, &body).await;
    let parts = events[..events.len() - 1]
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(json!(parts.flatten().cloned().collect::<Vec<Value>>()), whole);
}

//! Stop strings: over token boundaries, over bytes of a character, and at once.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::client::{Server, eventually};
use crate::engine::{Act, ScriptedEngine, draw};
use crate::model::{bytes, word};

const PATH: &str = "/v1/completions";

/// The whole answer and the streamed one, which must be the same text.
async fn both(server: &Server, options: Value) -> Value {
    let whole = server.complete(&options).await;
    let mut options = options;
    options["stream"] = true.into();
    let events = server.events(PATH, &options).await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let texts = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap());
    assert_eq!(texts.collect::<String>(), whole["choices"][0]["text"].as_str().unwrap(), "streamed text");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    whole["choices"][0].clone()
}

#[tokio::test]
async fn a_stop_string_is_found_wherever_it_lies() {
    let say = "Hello world!\n\nÄnd so ön, end.";
    let tokens =
        [vec![word("Hello"), word(" world"), word("!\n\n")], bytes("Änd so ön, "), vec![word("end.")]];
    let server = Server::start(ScriptedEngine::saying(tokens.concat())).await;
    for stop in ["lo wor", "\n\n", "!\n\nÄ", "Ä", "ö", " so ön", ", en", "end.", "Hello"] {
        for stops in [json!(stop), json!(["never", stop])] {
            let choice = both(&server, json!({"prompt": "x", "max_tokens": 64, "stop": stops})).await;
            assert_eq!(choice["text"], say[..say.find(stop).unwrap()], "{stop:?}");
            assert_eq!(choice["finish_reason"], "stop", "{stop:?}");
        }
    }
    for absent in ["ende", "Hello  ", "\n\n\n", "end.x"] {
        let choice = both(&server, json!({"prompt": "x", "max_tokens": 64, "stop": absent})).await;
        assert_eq!(choice["text"], say, "{absent:?}");
    }
}

#[tokio::test]
async fn the_generation_is_cancelled_at_the_stop_string() {
    let engine = ScriptedEngine::new(|_| [draw(&bytes("abcd")), vec![Act::Hang]].concat());
    let server = Server::start(engine.clone()).await;
    let choice = both(&server, json!({"prompt": "x", "stop": "cd"})).await;
    assert_eq!(choice["text"], "ab");
    eventually("both generations end", || engine.cancelled.load(Ordering::SeqCst) == 2).await;
    assert_eq!(engine.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tokens_and_usage_tell_of_a_stop_string_what_the_text_tells() {
    let server =
        Server::start(ScriptedEngine::saying(vec![word("Hello"), word(" world"), word("end.")])).await;
    let answer =
        server.complete(json!({"prompt": "x", "stop": "wor", "logprobs": 0, "return_token_ids": true})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "Hello ");
    assert_eq!(choice["logprobs"]["tokens"], json!(["Hello", " "]));
    assert_eq!(choice["token_ids"], json!([word("Hello"), word(" world")]), "what was drawn");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn stop_strings_count_only_after_min_tokens_and_never_in_the_prompt() {
    let server = Server::start(ScriptedEngine::saying(bytes("a.b.c."))).await;
    let choice = both(&server, json!({"prompt": "x", "stop": ".", "min_tokens": 2})).await;
    assert_eq!(choice["text"], "a.b");
    let choice = both(&server, json!({"prompt": "x.", "stop": ".", "echo": true})).await;
    assert_eq!(choice["text"], "x.a");
}

#[tokio::test]
async fn a_character_that_is_never_completed_becomes_a_replacement_character() {
    let cut = bytes("ab漢")[..4].to_vec();
    let server = Server::start(ScriptedEngine::saying(cut)).await;
    for options in [json!({"prompt": "x"}), json!({"prompt": "x", "max_tokens": 4})] {
        let mut options = options;
        options["logprobs"] = 0.into();
        let choice = both(&server, options).await;
        assert_eq!(choice["text"], "ab\u{fffd}");
        let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
        let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
        assert_eq!(joined, "ab\u{fffd}");
    }
}

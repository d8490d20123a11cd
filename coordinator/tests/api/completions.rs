//! Completions in one piece: shapes, prompts, log-probabilities, what reaches the engine.

use brigade_coordinator::generation::GenerationRequest;
use brigade_proto::sampling::Sampling;
use serde_json::json;

use crate::client::Server;
use crate::engine::{Act, ScriptedEngine, draw};
use crate::model::{IM_END, MODEL, bytes, word};

#[tokio::test]
async fn a_completion_has_openai_s_shape() {
    let server = Server::start(ScriptedEngine::saying(vec![word("Hello"), word(" world")])).await;
    let answer = server.complete(json!({"model": MODEL, "prompt": "Say:"})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"), "{answer}");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000, "{answer}");
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"), "{answer}");
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], MODEL);
    let choice = json!({"index": 0, "text": "Hello world", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"], json!([choice]));
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        })
    );
}

#[tokio::test]
async fn the_length_is_sixteen_tokens_unless_told_otherwise() {
    let server = Server::start(ScriptedEngine::saying(bytes(&"abcdefghij".repeat(4)))).await;
    for (asked, text) in [(json!(null), "abcdefghijabcdef"), (json!(3), "abc")] {
        let answer = server.complete(json!({"prompt": "x", "max_tokens": asked})).await;
        assert_eq!(answer["choices"][0]["text"], text);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], text.len());
    }
}

#[tokio::test]
async fn every_prompt_of_a_list_makes_a_choice_at_its_index() {
    // Says the prompt again; the first of the list has the most to say.
    let server = Server::start(ScriptedEngine::new(|request| draw(&request.prompt))).await;
    let texts = ["a long one, to be last", "short", "é", "x"];
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| bytes(text)).collect();
    for prompts in [json!(texts), json!(ids)] {
        let answer = server.complete(json!({"prompt": prompts, "max_tokens": 100})).await;
        for (index, text) in texts.iter().enumerate() {
            assert_eq!(answer["choices"][index]["index"], index);
            assert_eq!(answer["choices"][index]["text"], *text);
        }
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens);
        assert_eq!(answer["usage"]["completion_tokens"], tokens + texts.len());
    }
    let answer = server.complete(json!({"prompt": bytes("one list"), "max_tokens": 100})).await;
    assert_eq!(answer["choices"][0]["text"], "one list");
}

#[tokio::test]
async fn each_prompt_gets_as_many_choices_as_are_asked_for() {
    // Says the prompt, and behind it the seed that the choice was given; all but the first find the prompt in the cache.
    let script = |request: &GenerationRequest| -> Vec<Act> {
        let seed = request.sampling.seed;
        let mut acts = if seed == 7 { Vec::new() } else { vec![Act::Reuse(1)] };
        acts.extend(draw(&request.prompt));
        acts.extend(draw(&bytes(&seed.to_string())));
        acts
    };
    let server = Server::start(ScriptedEngine::new(script)).await;
    let answer = server
        .complete(
            json!({"prompt": ["ab", "cd"], "n": 3, "seed": 7, "max_tokens": 9, "return_token_ids": true}),
        )
        .await;
    for (index, text) in ["ab7", "ab8", "ab9", "cd7", "cd8", "cd9"].into_iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!(text)));
        assert_eq!(choice["prompt_token_ids"], json!(bytes(&text[..2])));
    }
    assert_eq!(answer["usage"]["prompt_tokens"], 4, "prompts count once");
    assert_eq!(answer["usage"]["completion_tokens"], 6 * 4);
    assert_eq!(answer["usage"]["prompt_tokens_details"], json!({"cached_tokens": 0}));
}

#[tokio::test]
async fn more_prompts_than_run_at_a_time_are_all_answered() {
    let mut engine = ScriptedEngine::new(|request| draw(&request.prompt));
    engine.most_running = 20;
    let server = Server::start(engine).await;
    let prompts: Vec<String> = (0..100).map(|n| format!("prompt {n}")).collect();
    let answer = server.complete(json!({"prompt": prompts, "max_tokens": 100})).await;
    for (index, prompt) in prompts.iter().enumerate() {
        assert_eq!(answer["choices"][index]["text"], *prompt);
    }
}

#[tokio::test]
async fn log_probabilities_come_in_parallel_lists() {
    let server = Server::start(ScriptedEngine::saying([bytes("aé"), vec![word("Hello")]].concat())).await;
    let answer = server.complete(json!({"prompt": "x", "logprobs": 2})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "aéHello");
    let logprobs = &choice["logprobs"];
    // The first byte of é has no text of its own; the end token has none at all.
    assert_eq!(logprobs["tokens"], json!(["a", "", "é", "Hello", ""]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.25, -0.25, -0.25, -0.25, -0.25]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2, 7]));
    assert_eq!(logprobs["top_logprobs"][0], json!({"a": -0.25, "b": -1.25}));
    assert_eq!(logprobs["top_logprobs"][1], json!({"bytes:\\xc3": -0.25, "bytes:\\xc4": -1.25}));
    assert_eq!(logprobs["top_logprobs"][4], json!({"<|im_end|>": -0.25, "<|endoftext|>": -1.25}));
}

#[tokio::test]
async fn echo_scores_the_prompt() {
    let server = Server::start(ScriptedEngine::saying(bytes("yz"))).await;
    let prompt = "a<|im_start|>né";
    let answer =
        server.complete(json!({"prompt": prompt, "echo": true, "max_tokens": 0, "logprobs": 1})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], prompt);
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        })
    );
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "<|im_start|>", "n", "", "é"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.25, -0.25, -0.25, -0.25]));
    assert_eq!(choice["logprobs"]["top_logprobs"][0], json!(null));
    assert_eq!(choice["logprobs"]["top_logprobs"][2], json!({"n": -0.25}));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 13, 14, 14]));

    let answer =
        server.complete(json!({"prompt": prompt, "echo": true, "max_tokens": 1, "logprobs": 1})).await;
    assert_eq!(answer["choices"][0]["text"], format!("{prompt}y"));
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"][5], "y");
    assert_eq!(answer["choices"][0]["logprobs"]["text_offset"][5], 15);

    let answer = server.complete(json!({"prompt": bytes("né"), "echo": true, "max_tokens": 1})).await;
    assert_eq!(answer["choices"][0]["text"], "néy");
    assert_eq!(answer["choices"][0]["logprobs"], json!(null));
}

#[tokio::test]
async fn token_ids_are_given_where_they_are_wanted() {
    let server = Server::start(ScriptedEngine::saying(bytes("ok"))).await;
    let answer = server.complete(json!({"prompt": ["a", "bc"], "return_token_ids": true})).await;
    assert_eq!(answer["choices"][0]["token_ids"], json!([u32::from(b'o'), u32::from(b'k'), IM_END]));
    assert_eq!(answer["choices"][1]["prompt_token_ids"], json!(bytes("bc")));
}

#[tokio::test]
async fn the_engine_gets_what_was_asked_for() {
    let engine = ScriptedEngine::saying(bytes("ok"));
    let server = Server::start(engine.clone()).await;
    let options = json!({
        "prompt": "a", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 99,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.5, "logit_bias": {"65": -3},
        "ignore_eos": true, "min_tokens": 2, "logprobs": 4, "user": "u", "echo": true,
    });
    server.complete(options).await;
    let request = engine.requests.lock().unwrap()[0].clone();
    assert_eq!((request.prompt, request.max_tokens, request.score_prompt), (bytes("a"), 5, true));
    let expected = Sampling {
        temperature: 0.5,
        top_k: 7,
        top_p: 0.9,
        min_p: 0.1,
        repetition_penalty: 1.5,
        presence_penalty: 0.5,
        frequency_penalty: -0.5,
        seed: 99,
        logit_bias: vec![(65, -3.0)],
        logprobs: Some(4),
        min_tokens: 2,
        end_ids: Vec::new(),
    };
    assert_eq!(request.sampling, expected);

    server.complete(json!({"prompt": "a"})).await;
    let request = engine.requests.lock().unwrap()[1].clone();
    assert_eq!(request.sampling.temperature, 1.0);
    assert!(request.sampling.end_ids.contains(&IM_END), "{:?}", request.sampling.end_ids);
    assert!(!request.score_prompt);
}

//! The real model computes what llama.cpp computes.

use std::path::Path;

use brigade_tests::cluster::{Cluster, Up};
use brigade_tests::reference::{self, Distance};
use brigade_tests::setup;
use serde_json::json;

/// Our mean distance from the exact log-probabilities against llama.cpp's own on the same quantised file.
const MEAN_BOUND: f64 = 1.25;
/// The same for the largest distance.
const LARGEST_BOUND: f64 = 1.6;
/// The largest distance of a file whose weights are not quantised, with a cache in `f32` as in the reference.
const FLOAT_BOUND: f64 = 0.02;

fn two_stages(model: &Path, memory: &str, cache: &str) -> Cluster {
    let up = Up::new(model).workers(2).memory(memory);
    up.args(["--ctx", "2048", "--parallel", "1", "--kv-dtype", cache]).start()
}

#[tokio::test]
async fn quantised_weights_are_as_near_to_the_exact_as_in_llama_cpp() {
    let cluster = two_stages(setup::smollm2(), "256MiB", "f16");
    let cases = reference::smollm2();
    assert!(cases.len() >= 12, "{} prompts", cases.len());
    assert!(cases.iter().any(|case| case.prompt_tokens.len() >= 1490), "a prompt of about 1,500 tokens");
    let (mut ours, mut theirs) = (Distance::default(), Distance::default());
    for case in &cases {
        let scores = cluster.client.score(&case.path).await;
        ours.add(&scores, &case.exact);
        theirs.add(&case.quantised, &case.exact);
    }
    println!(
        "distance from the exact over {} prompts: mean {:.4} (llama.cpp {:.4}), largest {:.4} (llama.cpp {:.4})",
        cases.len(),
        ours.mean(),
        theirs.mean(),
        ours.largest,
        theirs.largest
    );
    assert!(ours.mean() <= MEAN_BOUND * theirs.mean(), "mean {} against {}", ours.mean(), theirs.mean());
    assert!(
        ours.largest <= LARGEST_BOUND * theirs.largest,
        "largest {} against {}",
        ours.largest,
        theirs.largest
    );

    // Greedy text may differ only where the reference's lead is within the error.
    let error = theirs.largest.max(ours.largest);
    let (mut compared, mut within) = (0, 0);
    for case in &cases {
        let start = case.prompt_tokens.len();
        let request = json!({
            "prompt": case.prompt_tokens, "max_tokens": case.margins.len(), "temperature": 0, "ignore_eos": true,
            "return_token_ids": true,
        });
        let answer = cluster.client.complete(request).await;
        let greedy: Vec<u32> = serde_json::from_value(answer["choices"][0]["token_ids"].clone()).unwrap();
        for (offset, (found, wanted)) in greedy.iter().zip(&case.path[start..]).enumerate() {
            if case.margins[offset] > error {
                compared += 1;
                assert_eq!(found, wanted, "{}: token {offset} of the greedy text", case.name);
            } else {
                within += 1;
            }
            if found != wanted {
                break; // From here on the texts have different prefixes.
            }
        }
    }
    println!(
        "greedy tokens equal where the lead exceeds {error:.3}: {compared}; beside them, within the error: {within}"
    );
    assert!(compared >= 100, "only {compared} greedy tokens had a clear lead");
    cluster.stop();
}

#[tokio::test]
async fn unquantised_weights_agree_with_llama_cpp() {
    for kind in ["f32", "f16"] {
        let cluster = two_stages(&setup::smollm2_as(kind), "640MiB", "f32");
        let mut ours = Distance::default();
        for case in reference::smollm2().iter().filter(|case| case.path.len() < 400) {
            let exact = if kind == "f16" { &case.f16_exact } else { &case.exact };
            ours.add(&cluster.client.score(&case.path).await, exact);
        }
        println!(
            "{kind}: mean {:.5}, largest {:.5} from llama.cpp on the same weights",
            ours.mean(),
            ours.largest
        );
        assert!(ours.largest <= FLOAT_BOUND, "{kind}: largest distance {}", ours.largest);
        cluster.stop();
    }
}

#[tokio::test]
async fn token_ids_of_a_mixed_bag_of_text_equal_llama_cpps() {
    use brigade_shard::model_file::Header;
    use brigade_shard::tokenizer::{ParseSpecial, Tokenizer};

    let header = Header::open(setup::smollm2()).unwrap();
    let tokenizer = Tokenizer::from_header(&header).unwrap();
    let texts = reference::smollm2_texts();
    assert!(texts.len() >= 60, "{} texts", texts.len());
    for text in &texts {
        let plain = tokenizer.encode(&text.text, ParseSpecial::No).unwrap();
        let special = tokenizer.encode(&text.text, ParseSpecial::Yes).unwrap();
        assert_eq!(plain, text.plain, "{:?} with special tokens as plain text", text.text);
        assert_eq!(special, text.special, "{:?} with special tokens parsed", text.text);
    }

    // The server's own way to tokens is the same one.
    let cluster = two_stages(setup::smollm2(), "256MiB", "f16");
    for case in reference::smollm2().iter().filter(|case| case.prompt_tokens.len() < 100) {
        let request = json!({ "prompt": case.prompt, "max_tokens": 1, "return_token_ids": true });
        let answer = cluster.client.complete(request).await;
        assert_eq!(answer["choices"][0]["prompt_token_ids"], json!(case.prompt_tokens), "{}", case.name);
    }
    cluster.stop();
}

#[test]
fn the_real_model_is_shown_as_one_that_can_be_served() {
    let mut show = std::process::Command::new(&setup::programs().brigade);
    let output =
        show.args(["models", "show", "--json"]).arg(setup::smollm2()).output().expect("brigade runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let card: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a card");
    assert_eq!(card["problems"], json!([]));
    assert_eq!((&card["architecture"], &card["spec"]["layers"]), (&json!("llama"), &json!(30)));
    assert_eq!(card["spec"]["kinds"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        card["spec"]["kinds"][0]["attention"],
        "9 query heads on 3 key/value heads of 64, all positions, rope base 100000"
    );
    assert_eq!(card["tokenizer"]["kind"], "byte-level BPE, split as `smollm`");
    let ends = card["tokenizer"]["ends_at"].as_array().expect("a list");
    assert!(ends.iter().any(|end| end["text"] == "<|im_end|>"), "{ends:?}");
    assert!(card["template"]["bytes"].as_u64().is_some_and(|bytes| bytes > 100), "{}", card["template"]);
}

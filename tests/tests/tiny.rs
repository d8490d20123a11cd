//! Every part of the llama family, on tiny random models that llama.cpp has run: `rope_freqs`, scaled rope, heads whose
//! width is not hidden / heads, tied and untied output, both tokenizers, every tensor type.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;

use brigade_tests::cluster::Up;
use brigade_tests::reference::{self, Distance};
use brigade_tests::setup;
use serde::Deserialize;

/// Largest distance of a model with F32 weights from llama.cpp's log-probabilities.
const FLOAT_BOUND: f64 = 0.02;
/// Mean distance of a quantised model from the exact, against llama.cpp's own.
const QUANTISED_BOUND: f64 = 1.25;

#[derive(Deserialize)]
struct Variant {
    name: String,
    flags: String,
    paths: Vec<Scored>,
}

#[derive(Deserialize)]
struct Scored {
    path: Vec<u32>,
    exact: Vec<Option<f64>>,
    llama_cpp: Vec<Option<f64>>,
}

fn made(variant: &Variant) -> PathBuf {
    let folder = setup::target_folder().join("models/tiny");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{}.gguf", variant.name));
    reference::make("make_tiny.py", &file, &variant.flags);
    file
}

#[tokio::test]
async fn every_part_of_the_family_computes_what_llama_cpp_computes() {
    #[derive(Deserialize)]
    struct Document {
        variants: Vec<Variant>,
    }
    let document: Document = reference::read("tiny.json");
    assert!(document.variants.len() >= 15, "{} variants", document.variants.len());
    let mut wrong = Vec::new();
    for variant in &document.variants {
        let workers = if variant.flags.contains("--layers 1 ") { 1 } else { 2 };
        let cluster = Up::new(&made(variant)).workers(workers).memory("64MiB").args(["--ctx", "256"]).start();
        let (mut ours, mut theirs, mut first) = (Distance::default(), Distance::default(), None);
        for scored in &variant.paths {
            let scores = cluster.client.score(&scored.path).await;
            ours.add(&scores, &scored.exact);
            theirs.add(&scored.llama_cpp, &scored.exact);
            let far = scores.iter().zip(&scored.exact).position(|(a, b)| match (a, b) {
                (Some(a), Some(b)) => (a - b).abs() > FLOAT_BOUND,
                _ => false,
            });
            let place = |token| format!("token {token} of the path of {}", scored.path.len());
            first = first.or(far.map(place));
        }
        cluster.stop();
        println!(
            "{:14} mean {:.4} (llama.cpp {:.4}), largest {:.4} (llama.cpp {:.4})",
            variant.name,
            ours.mean(),
            theirs.mean(),
            ours.largest,
            theirs.largest
        );
        // llama.cpp rounds activations with F16 and BF16 weights, so its own distance is the measure there, too.
        let near = ours.largest <= FLOAT_BOUND || ours.mean() <= QUANTISED_BOUND * theirs.mean();
        let float = theirs.largest <= FLOAT_BOUND;
        if !near || (float && ours.largest > FLOAT_BOUND) {
            wrong.push(format!("{} ({}): first difference at {first:?}", variant.name, variant.flags));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

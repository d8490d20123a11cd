//! Llama 4 where its first chunk of positions ends: what llama.cpp computes, in one stage and in several.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

use brigade_proto::control::{CacheDtype, StageRoom};
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;
use brigade_tests::{reference, setup};
use brigade_worker::backend::{BackendError, Batch, Span};
use brigade_worker::cpu::CpuBackend;
use brigade_worker::model::{self, Input, StageModel};
use brigade_worker::weights::{LoadProgress, ModelFiles};
use serde::Deserialize;

/// Largest distance from llama.cpp's log-probabilities, about what its own are apart with its cache in F16 and in F32. A
/// factor on queries that is 1.3% too large past the chunk's end shows several times as much.
const BOUND: f64 = 0.002;
/// Tokens that go through at a time; neither the chunk nor the path is a multiple of it.
const STEP_ROWS: usize = 500;
const PAGE_TOKENS: usize = 32;

#[derive(Deserialize)]
struct Reference {
    flags: String,
    path: Vec<u32>,
    /// The token of the path that the first score is of.
    first: usize,
    exact: Vec<f64>,
}

/// Loads the model in stages of some layers each.
fn load(header: &Header, positions: usize, layers_of_each: usize) -> Vec<StageModel<CpuBackend>> {
    let spec = ModelSpec::from_header(header).unwrap();
    let table = TensorTable::new(header, &spec).unwrap();
    let room = StageRoom {
        cache_tokens: positions.next_multiple_of(PAGE_TOKENS) as u32,
        context: positions as u32,
        step_rows: STEP_ROWS as u32,
        sequences: 1,
        cache_dtype: CacheDtype::F32,
    };
    let progress = LoadProgress::new();
    let files = ModelFiles::open(header, &progress).unwrap();
    let layers = spec.layers.len();
    let stage = |first: usize| {
        let range = LayerRange::new(first, layers.min(first + layers_of_each)).unwrap();
        let shard = Shard::of(range, layers);
        model::load(CpuBackend::new(2).unwrap(), &files, &spec, &table, &shard, &room, &progress).unwrap()
    };
    (0..layers).step_by(layers_of_each).map(stage).collect()
}

/// The log-probability of `token` under `logits`.
fn score(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    f64::from(logits[token as usize] - largest) - sum.ln()
}

/// The log-probabilities of the path's tokens from `first` on.
fn scores(stages: &mut [StageModel<CpuBackend>], path: &[u32], first: usize) -> Vec<f64> {
    let pages: Vec<u32> = (0..path.len().div_ceil(PAGE_TOKENS) as u32).collect();
    let mut scores = Vec::new();
    for (step, tokens) in path.chunks(STEP_ROWS).enumerate() {
        let start = step * STEP_ROWS;
        let batch = Batch { spans: vec![Span { rows: 0..tokens.len(), start, pages: pages.clone() }] };
        let mut hidden: Option<Vec<f32>> = None;
        for stage in stages.iter_mut() {
            stage.run(hidden.as_deref().map_or(Input::Tokens(tokens), Input::Hidden), &batch).unwrap();
            hidden = Some(stage.hidden(<[f32]>::to_vec).unwrap());
        }
        // A row's logits are about the token after its own.
        let rows: Vec<usize> =
            (0..tokens.len()).filter(|row| (first..path.len()).contains(&(start + row + 1))).collect();
        let keep = |i: usize, logits: &[f32]| {
            scores.push(score(logits, path[start + rows[i] + 1]));
            Ok::<(), BackendError>(())
        };
        stages.last_mut().unwrap().logits(&rows, keep).unwrap();
    }
    scores
}

#[test]
fn llama_4_past_the_end_of_its_first_chunk_computes_what_llama_cpp_computes() {
    let reference: Reference = reference::read("chunks.json");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chunks.gguf");
    let output = Command::new(setup::python())
        .arg(setup::repository().join("tests/reference/make_family.py"))
        .arg(&file)
        .args(reference.flags.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let header = Header::open(&file).unwrap();
    let path = &reference.path;
    let whole = scores(&mut load(&header, path.len(), usize::MAX / 2), path, reference.first);
    assert_eq!(whole.len(), reference.exact.len());
    let distances = whole.iter().zip(&reference.exact).map(|(a, b)| (a - b).abs());
    println!("largest distance {:.4}", distances.clone().fold(0.0, f64::max));
    let far = distances.enumerate().find(|(_, distance)| distance.is_nan() || *distance > BOUND);
    let first = far.map(|(i, distance)| (reference.first + i, distance));
    assert_eq!(first, None, "the first token that is too far from llama.cpp's, and its distance");
    let cut = scores(&mut load(&header, path.len(), 1), path, reference.first);
    assert_eq!(whole, cut, "the same bits in a stage for every layer");
}

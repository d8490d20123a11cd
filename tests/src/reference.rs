//! What llama.cpp computed, as kept in `tests/reference`, and the tiny models beside it that it computed with.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::setup::{python, repository};

/// One prompt of the real model with a continuation, and what llama.cpp says of every token on that path.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// The prompt's name.
    pub name: String,
    /// Its text.
    pub prompt: String,
    /// Its token ids.
    pub prompt_tokens: Vec<u32>,
    /// The prompt's token ids and those of the greedy continuation.
    pub path: Vec<u32>,
    /// Log-probabilities on the path, from the weights widened to `f32`, with an `f32` cache; the first is null.
    pub exact: Vec<Option<f64>>,
    /// Log-probabilities on the path from the quantised file, with llama.cpp's default cache.
    pub quantised: Vec<Option<f64>>,
    /// Log-probabilities on the path from the weights rounded to `f16`, but computed in `f32` with an `f32` cache.
    pub f16_exact: Vec<Option<f64>>,
    /// How far the greedy token leads the second best, for each token of the continuation.
    pub margins: Vec<f64>,
}

/// The references of the real model.
pub fn smollm2() -> Vec<Case> {
    #[derive(Deserialize)]
    struct Document {
        cases: Vec<Case>,
    }
    read::<Document>("smollm2.json").cases
}

/// A text with its token ids.
#[derive(Debug, Deserialize)]
pub struct Text {
    /// The text.
    pub text: String,
    /// Ids where special tokens are plain text.
    pub plain: Vec<u32>,
    /// Ids where special tokens are parsed.
    pub special: Vec<u32>,
}

/// The mixed bag of texts with llama.cpp's ids under the real model's tokenizer.
pub fn smollm2_texts() -> Vec<Text> {
    #[derive(Deserialize)]
    struct Document {
        texts: Vec<Text>,
    }
    read::<Document>("smollm2-tokens.json").texts
}

/// Reads a JSON file of `tests/reference`.
pub fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path: PathBuf = repository().join("tests/reference").join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("failed to read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("failed to read {}: {error}", path.display()))
}

/// Makes a model or a vocabulary at `path`, by a script of `tests/reference` with these flags.
pub fn make(script: &str, path: &Path, flags: &str) {
    let mut command = Command::new(python());
    command.arg(repository().join("tests/reference").join(script)).arg(path).args(flags.split_whitespace());
    let output = command.output().unwrap_or_else(|error| panic!("failed to run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// How far log-probabilities lie from the exact ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    sum: f64,
    count: usize,
    /// The largest absolute difference.
    pub largest: f64,
}

impl Distance {
    /// Takes in two equally long lists; entries that are null in both are left out.
    pub fn add(&mut self, found: &[Option<f64>], exact: &[Option<f64>]) {
        assert_eq!(found.len(), exact.len(), "as many log-probabilities as tokens");
        for pair in found.iter().zip(exact) {
            match pair {
                (Some(found), Some(exact)) => {
                    let difference = (found - exact).abs();
                    assert!(difference.is_finite(), "log-probability {found} against {exact}");
                    self.sum += difference;
                    self.count += 1;
                    self.largest = self.largest.max(difference);
                }
                (None, None) => {}
                _ => panic!("a log-probability stands on one side only: {pair:?}"),
            }
        }
    }

    /// The mean absolute difference.
    pub fn mean(&self) -> f64 {
        assert!(self.count > 0, "nothing was compared");
        self.sum / self.count as f64
    }
}

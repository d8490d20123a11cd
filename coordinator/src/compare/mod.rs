//! A cluster against one box, measured in turn on the same machines: what was measured, what was predicted of it, and what
//! follows.
//!
//! A [`Comparison`] is what a comparison comes to; everything that shows or keeps one is made from it alone.

pub mod against;
pub mod choices;
pub mod history;
mod lease;
mod measure;
mod opponent;
pub mod report;
mod run;
pub mod statistics;
mod verdict;
mod watch;

pub use lease::Lease;
pub use opponent::Opponent;
pub use run::{CompareError, CompareSettings, compare};
pub use verdict::verdict;

use serde::{Deserialize, Serialize};

use crate::render::PlanView;

/// What was compared, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
    /// Version of the program.
    pub version: String,
    /// The model's id.
    pub model: String,
    /// The model's identity, in hexadecimal.
    pub fingerprint: String,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// How often each side was measured; sides took turns.
    pub rounds: u32,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// What ran: one box first, then the cluster, then others.
    pub sides: Vec<Side>,
    /// Whether other requests ran meanwhile.
    pub disturbed: bool,
    /// What could not be measured, and why, one sentence each.
    pub left_out: Vec<String>,
    /// What follows.
    pub verdict: ComparisonVerdict,
}

/// One of those that took turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// What it is.
    pub kind: SideKind,
    /// In words, such as `one box: w1`, `cluster: w1, w2` or a URL.
    pub name: String,
    /// How the model lay on it; `None` for another server.
    pub plan: Option<PlanView>,
    /// What it was seen to do.
    pub figures: Vec<Figure>,
    /// Where its stages' time went, by the load.
    pub shares: Vec<LoadShares>,
    /// Resident memory of its workers' processes at the most, in bytes, by worker; empty for another server.
    pub resident: Vec<(String, u64)>,
}

/// What a [`Side`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SideKind {
    /// One worker with all of the model.
    OneBox,
    /// One worker that reads for every step what it cannot hold.
    OneBoxWithOffload,
    /// Several workers.
    Cluster,
    /// Another server, by its URL.
    Other,
}

/// What a figure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Quantity {
    /// Tokens per second of all streams together.
    Decode {
        /// Streams at the same time.
        streams: u32,
    },
    /// Tokens per second of a prompt.
    Prompt {
        /// Its length.
        tokens: u32,
    },
    /// From asking to the first token, in milliseconds.
    Ttft {
        /// Length of the prompt.
        tokens: u32,
    },
    /// Joules for a token that is decoded.
    Energy {
        /// Streams at the same time.
        streams: u32,
    },
}

/// A quantity as it was measured, and as it was predicted before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is of, and with it the unit.
    #[serde(flatten)]
    pub quantity: Quantity,
    /// One for each round.
    pub samples: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Between which the mean lies with 95% confidence, by Student's t; `None` for a single sample.
    pub interval: Option<(f64, f64)>,
    /// What was predicted; `None` where nobody can.
    pub predicted: Option<f64>,
}

/// Where the stages' time went under a load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadShares {
    /// Which.
    #[serde(flatten)]
    pub quantity: Quantity,
    /// Of the steps' time, what no stage accounts for: links and coordinator.
    pub wire: f64,
    /// Each stage's.
    pub stages: Vec<StageShares>,
}

/// Where one stage's time went; shares of the time measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageShares {
    /// The worker's name.
    pub worker: String,
    /// Computing.
    pub busy: f64,
    /// Sending, beside computing.
    pub wire: f64,
    /// Not computing.
    pub idle: f64,
}

/// What follows from a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparisonVerdict {
    /// Whether splitting is worth it for one stream; `None` where intervals overlap or there is nothing to compare with.
    pub split_for_one_stream: Option<bool>,
    /// Whether it is for the most streams measured.
    pub split_for_many_streams: Option<bool>,
    /// In a sentence or two.
    pub text: String,
}

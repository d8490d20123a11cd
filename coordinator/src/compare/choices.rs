//! What there is to compare: the workers of each side, and what is predicted of them, as a coordinator tells it.

use brigade_shard::plan::{Forecast, Load};
use serde::{Deserialize, Serialize};

use super::{Quantity, SideKind};

/// Loads to predict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceLoads {
    /// Streams that decode at the same time, one load each.
    pub streams: Vec<u32>,
    /// Lengths of prompts in tokens, one load each.
    pub prompts: Vec<u32>,
    /// Tokens that every sequence has in the cache while it decodes, on average.
    pub context: u32,
}

impl ChoiceLoads {
    /// All of them: every number of streams with every length of a prompt.
    pub fn loads(&self) -> impl Iterator<Item = Load> {
        let load = |streams, prompt_tokens| Load { streams, prompt_tokens, context: self.context };
        self.streams
            .iter()
            .flat_map(move |streams| self.prompts.iter().map(move |prompt| load(*streams, *prompt)))
    }
}

/// What is predicted under a load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecasted {
    /// Sequences that decode at the same time.
    pub streams: u32,
    /// Tokens of a prompt.
    pub prompt_tokens: u32,
    /// Tokens per second of all streams together while they decode.
    pub decode_tokens_per_s: f64,
    /// Tokens per second of one prompt alone.
    pub prompt_tokens_per_s: f64,
    /// From asking to the first token, of one prompt alone, in milliseconds.
    pub ttft_ms: f64,
}

impl Forecasted {
    /// Of a load.
    pub fn new(load: Load, forecast: &Forecast) -> Forecasted {
        Forecasted {
            streams: load.streams,
            prompt_tokens: load.prompt_tokens,
            decode_tokens_per_s: forecast.decode_tokens_per_s,
            prompt_tokens_per_s: forecast.prompt_tokens_per_s,
            ttft_ms: forecast.ttft_ms,
        }
    }
}

/// One side of a comparison, before it is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SideChoice {
    /// What it is.
    pub kind: SideKind,
    /// Ids of its workers, in the order of the pipeline.
    pub workers: Vec<String>,
    /// Their names.
    pub names: Vec<String>,
    /// What is predicted of it.
    pub forecasts: Vec<Forecasted>,
}

impl SideChoice {
    /// In words, such as `one box: w1`.
    pub fn title(&self) -> String {
        let what = match self.kind {
            SideKind::OneBox => "one box",
            SideKind::OneBoxWithOffload => "one box with offload",
            SideKind::Cluster => "cluster",
            SideKind::Other => "server",
        };
        format!("{what}: {}", self.names.join(", "))
    }

    /// What was predicted of a quantity; `None` where nobody can.
    pub fn predicted(&self, quantity: Quantity) -> Option<f64> {
        let find = |is: &dyn Fn(&&Forecasted) -> bool| self.forecasts.iter().find(is);
        match quantity {
            Quantity::Decode { streams } => Some(find(&|f| f.streams == streams)?.decode_tokens_per_s),
            Quantity::Prompt { tokens } => Some(find(&|f| f.prompt_tokens == tokens)?.prompt_tokens_per_s),
            Quantity::Ttft { tokens } => Some(find(&|f| f.prompt_tokens == tokens)?.ttft_ms),
            Quantity::Energy { .. } => None,
        }
    }
}

/// What `GET /api/choices` tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SideChoices {
    /// The worker that is predicted to be the fastest alone; `None` where none holds the model.
    pub one_box: Option<SideChoice>,
    /// The best plan over several; `None` where there is none.
    pub cluster: Option<SideChoice>,
    /// What cannot be measured, and why, one sentence each.
    pub left_out: Vec<String>,
}

//! A model's stages one behind the other in one process, without the programs around them.

use std::ops::Range;

use brigade_proto::control::{CacheDtype, StageRoom};
use brigade_shard::cost::PAGE_TOKENS;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;
use brigade_worker::backend::{Backend, BackendError, Batch, Span};
use brigade_worker::cpu::CpuBackend;
use brigade_worker::model::{self, Input, StageModel};
use brigade_worker::weights::{LoadError, LoadProgress, ModelFiles};

/// Tokens that go through at a time; no multiple of a page.
const STEP_ROWS: usize = 500;

/// Stages on the processor that together are a whole model, with room for one sequence.
pub struct Chain {
    stages: Vec<StageModel<CpuBackend>>,
    pages: Vec<u32>,
}

/// Loads the layers `range` of a model, and the ends that belong to them, with room for a sequence of `positions` tokens.
///
/// # Errors
/// Where the device cannot run the model.
pub fn load<B: Backend>(
    backend: B,
    header: &Header,
    range: Range<usize>,
    positions: usize,
    cache_dtype: CacheDtype,
) -> Result<StageModel<B>, LoadError> {
    let end = range.end;
    load_streaming(backend, header, range, end..end, positions, cache_dtype)
}

/// The same, where the layers `streamed`, the last of `range`, are read again for every step.
fn load_streaming<B: Backend>(
    backend: B,
    header: &Header,
    range: Range<usize>,
    streamed: Range<usize>,
    positions: usize,
    cache_dtype: CacheDtype,
) -> Result<StageModel<B>, LoadError> {
    let spec = ModelSpec::from_header(header)?;
    let table = TensorTable::new(header, &spec)?;
    let room = StageRoom {
        cache_tokens: (positions as u32).next_multiple_of(PAGE_TOKENS),
        context: positions as u32,
        step_rows: STEP_ROWS as u32,
        sequences: 1,
        cache_dtype,
    };
    let progress = LoadProgress::new();
    let streamed = LayerRange { start: streamed.start, end: streamed.end };
    let files = ModelFiles::open(header, &progress)?.streaming(&table, streamed)?;
    let range = LayerRange::new(range.start, range.end).expect("the range has layers");
    let shard = Shard::of(range, spec.layers.len());
    model::load(backend, &files, &spec, &table, &shard, &room, &progress)
}

impl Chain {
    /// Loads a model in stages of some layers each, with room for a sequence of `positions` tokens.
    pub fn load(header: &Header, layers_of_each: usize, positions: usize, cache_dtype: CacheDtype) -> Chain {
        let layers = ModelSpec::from_header(header).expect("the model can be run").layers.len();
        let stage = |first: usize| {
            let range = first..layers.min(first.saturating_add(layers_of_each));
            let backend = CpuBackend::new(1).expect("threads can be started");
            load(backend, header, range, positions, cache_dtype).expect("the stage can be loaded")
        };
        let stages = (0..layers).step_by(layers_of_each).map(stage).collect();
        Chain { stages, pages: (0..positions.div_ceil(PAGE_TOKENS as usize) as u32).collect() }
    }

    /// Loads a model as one stage that reads all of its layers again for every step.
    pub fn streaming(header: &Header, positions: usize, cache_dtype: CacheDtype) -> Chain {
        let layers = ModelSpec::from_header(header).expect("the model can be run").layers.len();
        let backend = CpuBackend::new(2).expect("threads can be started");
        let stage = load_streaming(backend, header, 0..layers, 0..layers, positions, cache_dtype);
        let stages = vec![stage.expect("the stage can be loaded")];
        Chain { stages, pages: (0..positions.div_ceil(PAGE_TOKENS as usize) as u32).collect() }
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// Runs `path`, `step_rows` tokens at a time but no more than 500, and hands on the logits after each token from
    /// `first` on, with the token's index in the path.
    pub fn run(&mut self, path: &[u32], step_rows: usize, first: usize, mut each: impl FnMut(usize, &[f32])) {
        let step_rows = step_rows.min(STEP_ROWS);
        for (step, tokens) in path.chunks(step_rows).enumerate() {
            let start = step * step_rows;
            let span = Span { rows: 0..tokens.len(), start, pages: self.pages.clone() };
            let batch = Batch { spans: vec![span] };
            let mut hidden: Option<Vec<f32>> = None;
            for stage in &mut self.stages {
                let input = hidden.as_deref().map_or(Input::Tokens(tokens), Input::Hidden);
                stage.run(input, &batch).expect("the stage runs");
                hidden = Some(stage.hidden(<[f32]>::to_vec).expect("hidden states are there"));
            }
            let rows: Vec<usize> = (0..tokens.len()).filter(|row| start + row >= first).collect();
            let keep = |i: usize, logits: &[f32]| {
                each(start + rows[i], logits);
                Ok::<(), BackendError>(())
            };
            self.stages.last_mut().expect("a stage").logits(&rows, keep).expect("logits are made");
        }
    }

    /// The log-probability of each token of `path` from `first` on, given those before it; `first` is at least 1.
    pub fn scores(&mut self, path: &[u32], first: usize) -> Vec<f64> {
        let mut scores = Vec::new();
        self.run(path, STEP_ROWS, first - 1, |i, logits| {
            if let Some(&token) = path.get(i + 1) {
                scores.push(log_probability(logits, token));
            }
        });
        scores
    }
}

/// The log-probability of `token` under `logits`.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    f64::from(logits[token as usize] - largest) - sum.ln()
}

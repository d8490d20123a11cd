//! The model that is measured: all of it as one stage, on one device.

use std::ops::Range;

use brigade_proto::control::{CacheDtype, DeviceKind, StageMemory, StageRoom};
use brigade_shard::cost::{Cost, PAGE_TOKENS};
use brigade_shard::model_file::Header;
use brigade_shard::spec::{Attention, FeedForward, ModelSpec, Visibility};
use brigade_shard::tensors::TensorTable;
use brigade_shard::units::Bytes;

use super::BenchError;
use crate::backend::{Backend, BackendError, Batch, Span};
use crate::candle_backend::{self, CandleBackend};
use crate::cpu::CpuBackend;
use crate::model::{self, Converted, Input, StageModel, StageNeeds};
use crate::sampler;
use crate::stage::check_streaming;
use crate::weights::{LoadError, LoadProgress, ModelFiles};

/// Tokens are drawn with it, as in llama-bench: what they are changes no speed, but which experts they take does.
const SEED: u64 = 31;

/// Bytes of a cached value.
const CACHE_VALUE_BYTES: u64 = 2;

/// What a model is, beside its weights.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Its name and the type of most of its weights.
    pub(super) name: String,
    /// Values of all its tensors that are run.
    pub(super) params: u64,
    /// Bytes of all its tensors that are run.
    pub(super) weights: Bytes,
    /// What it takes.
    pub(super) memory: StageMemory,
    /// What one token reads.
    pub(super) reads: Reads,
}

/// Bytes that decoding a token reads.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    weights: Bytes,
    /// Whether tokens of a step may read different weights.
    experts: bool,
    /// For each layer the bytes of a cached position, and which are read.
    cached: Vec<(u64, Visibility)>,
}

impl Reads {
    fn new(spec: &ModelSpec, cost: &Cost) -> Reads {
        let layers = cost.layers().iter().map(|layer| layer.active);
        let cached = cost.layers().iter().zip(&spec.layers).map(|(cost, layer)| {
            let visibility = match &layer.attention {
                Attention::Grouped(attention) => attention.visibility,
                Attention::Latent(_) => Visibility::All,
            };
            (cost.cache_values * CACHE_VALUE_BYTES, visibility)
        });
        Reads {
            weights: layers.sum::<Bytes>() + cost.embedding().active + cost.head().active,
            experts: spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Experts(_))),
            cached: cached.collect(),
        }
    }

    /// Bytes read per token, on average over `count` tokens from `start` on of each of `streams` sequences: weights, and
    /// keys and values. `None` where it is left to chance which experts the sequences have in common.
    pub(super) fn per_token(&self, streams: u32, start: u32, count: u32) -> Option<f64> {
        if self.experts && streams > 1 {
            return None;
        }
        let positions = start as usize..(start + count) as usize;
        let cached = positions.map(|position| {
            let seen = |visibility: &Visibility| (position + 1 - visibility.first(position)) as u64;
            self.cached.iter().map(|(bytes, visibility)| bytes * seen(visibility)).sum::<u64>()
        });
        Some(
            self.weights.0 as f64 / f64::from(streams) + cached.sum::<u64>() as f64 / f64::from(count.max(1)),
        )
    }
}

/// A loaded model with its sequences.
pub(super) struct Subject {
    runner: Box<dyn Run>,
    vocab: usize,
    batch: u32,
    /// Positions that the cache holds of each sequence; the token at each is always the same.
    held: Vec<u32>,
}

/// What is asked of a model, whatever its device.
trait Run {
    /// Computes as many `tokens` of each of some sequences from position `start` on, one sequence's after another's, and
    /// the logits of each sequence's last one where they are wanted.
    fn run(
        &mut self,
        sequences: Range<usize>,
        tokens: &[u32],
        start: u32,
        logits: Logits,
    ) -> Result<(), BackendError>;
    /// Waits until the weights lie where they stay.
    fn settle(&mut self);
}

/// What becomes of the last token's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logits {
    /// They are not computed.
    Unwanted,
    /// They are computed, and nobody looks at them.
    Computed,
    /// They must be numbers.
    Checked,
}

struct Runner<B: Backend> {
    model: StageModel<B>,
    /// Pages of a sequence; each has as many of its own.
    pages: u32,
}

impl<B: Backend> Run for Runner<B> {
    fn settle(&mut self) {
        self.model.settle();
    }

    fn run(
        &mut self,
        sequences: Range<usize>,
        tokens: &[u32],
        start: u32,
        wanted: Logits,
    ) -> Result<(), BackendError> {
        let rows = tokens.len() / sequences.len();
        let span = |(i, sequence): (usize, usize)| Span {
            rows: i * rows..(i + 1) * rows,
            start: start as usize,
            pages: (sequence as u32 * self.pages..).take(self.pages as usize).collect(),
        };
        let last: Vec<usize> = (1..=sequences.len()).map(|i| i * rows - 1).collect();
        let spans = sequences.enumerate().map(span).collect();
        self.model.run(Input::Tokens(tokens), &Batch { spans })?;
        if wanted == Logits::Unwanted {
            // Looking at the hidden states waits for a device that computes behind our back.
            self.model.hidden(|hidden| std::hint::black_box(hidden).len())?;
            return Ok(());
        }
        self.model.logits(&last, |_, logits| {
            let numbers = wanted == Logits::Computed || logits.iter().all(|logit| logit.is_finite());
            std::hint::black_box(logits);
            let damaged = || BackendError {
                operation: "compute logits",
                reason: "they are no numbers: the weights are damaged, fetch the file again".to_owned(),
            };
            if numbers { Ok(()) } else { Err(damaged()) }
        })
    }
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loading {
    pub(super) device: DeviceKind,
    pub(super) threads: usize,
    /// Most tokens in one step.
    pub(super) batch: u32,
    /// Longest sequence, in tokens.
    pub(super) context: u32,
    /// Most sequences.
    pub(super) streams: u32,
    /// How many of its last layers are read again for every step.
    pub(super) streamed_layers: usize,
    /// Memory that there is on the device.
    pub(super) memory: Bytes,
}

/// Loads a model, and says what it is.
///
/// # Errors
/// Where it does not fit the device, or cannot be loaded.
pub(super) fn load(header: &Header, loading: Loading) -> Result<(Subject, Facts), BenchError> {
    let Loading { device, threads, batch, context, streams, streamed_layers, memory: there } = loading;
    check_streaming(device, streamed_layers)?;
    let pages = context.div_ceil(PAGE_TOKENS);
    let room = StageRoom {
        cache_tokens: pages
            .checked_mul(streams)
            .and_then(|pages| pages.checked_mul(PAGE_TOKENS))
            .ok_or(BenchError::TooLong)?,
        context,
        step_rows: batch.min(context).max(streams),
        sequences: streams,
        cache_dtype: CacheDtype::F16,
    };
    let spec = ModelSpec::from_header(header).map_err(LoadError::from)?;
    let table = TensorTable::new(header, &spec).map_err(LoadError::from)?;
    let cost = Cost::new(&spec, &table);
    let shard = cost.whole();
    let StageNeeds { memory, streamed, .. } =
        StageNeeds::streaming(header, &shard, streamed_layers, &room, Converted::No)?;
    if memory.total() > there {
        let (needed, device) = (memory.total(), device.to_string());
        return Err(BenchError::TooLittleMemory { needed, memory: there, device });
    }
    let facts = Facts {
        name: format!("{} {}", spec.name, most_common_type(&table)),
        params: table.iter().map(|(_, tensor)| tensor.values()).sum(),
        weights: cost.weights(&shard),
        memory,
        reads: Reads::new(&spec, &cost),
    };
    let progress = LoadProgress::new();
    let files = ModelFiles::open(header, &progress)?.streaming(&table, streamed)?;
    let runner: Box<dyn Run> = match device {
        DeviceKind::Cpu => {
            let backend = CpuBackend::new(threads).map_err(LoadError::from)?;
            Box::new(Runner {
                model: model::load(backend, &files, &spec, &table, &shard, &room, &progress)?,
                pages,
            })
        }
        DeviceKind::Cuda(_) | DeviceKind::Metal => {
            let backend = CandleBackend::new(candle_backend::device(device)?)?;
            Box::new(Runner {
                model: model::load(backend, &files, &spec, &table, &shard, &room, &progress)?,
                pages,
            })
        }
    };
    Ok((Subject { runner, vocab: spec.vocab, batch, held: vec![0; streams as usize] }, facts))
}

/// The type that most bytes of weights have.
fn most_common_type(table: &TensorTable) -> String {
    let mut bytes = std::collections::BTreeMap::new();
    for (_, tensor) in table.iter() {
        *bytes.entry(tensor.kind).or_insert(0) += tensor.bytes.0;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(kind, _)| kind.to_string())
}

impl Subject {
    /// Waits until the weights lie where they stay.
    pub(super) fn settle(&mut self) {
        self.runner.settle();
    }

    /// Processes `count` tokens of the first sequence from `start` on as a prompt: in steps, with the logits of the last
    /// token.
    pub(super) fn prompt(&mut self, start: u32, count: u32) -> Result<(), BackendError> {
        self.prompt_of(0, start, count)
    }

    fn prompt_of(&mut self, sequence: usize, start: u32, count: u32) -> Result<(), BackendError> {
        let end = start + count;
        for at in (start..end).step_by(self.batch as usize) {
            let next = end.min(at + self.batch);
            let tokens: Vec<u32> = (at..next).map(|position| self.token(sequence, position)).collect();
            let logits = if next == end { Logits::Computed } else { Logits::Unwanted };
            self.runner.run(sequence..sequence + 1, &tokens, at, logits)?;
        }
        self.held[sequence] = end;
        Ok(())
    }

    /// Processes `count` tokens of each of `streams` sequences from `start` on one by one, each with its logits.
    pub(super) fn decode(&mut self, streams: u32, start: u32, count: u32) -> Result<(), BackendError> {
        let streams = 0..streams as usize;
        for position in start..start + count {
            let tokens: Vec<u32> = streams.clone().map(|sequence| self.token(sequence, position)).collect();
            self.runner.run(streams.clone(), &tokens, position, Logits::Computed)?;
        }
        self.held[streams].fill(start + count);
        Ok(())
    }

    /// Sees to it that the cache holds the first `depth` positions of `streams` sequences.
    pub(super) fn fill(&mut self, streams: u32, depth: u32) -> Result<(), BackendError> {
        for sequence in 0..streams as usize {
            let held = self.held[sequence];
            if held < depth {
                self.prompt_of(sequence, held, depth - held)?;
            }
        }
        Ok(())
    }

    /// Computes each sequence's last token held once more, and looks at its logits.
    pub(super) fn check(&mut self) -> Result<(), BackendError> {
        for (sequence, held) in self.held.iter().enumerate() {
            let last = held.saturating_sub(1);
            self.runner.run(sequence..sequence + 1, &[self.token(sequence, last)], last, Logits::Checked)?;
        }
        Ok(())
    }

    fn token(&self, sequence: usize, position: u32) -> u32 {
        let seed = SEED + sequence as u64;
        (sampler::uniform(seed, u64::from(position)) * self.vocab as f64) as u32
    }
}

//! Whole models: a small one of every family, and one that the user names.

use std::ops::Range;

use brigade_proto::control::{CacheDtype, DeviceKind, StageRoom};
use brigade_shard::cost::PAGE_TOKENS;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use candle_core::Device;

use super::SelftestError;
use super::compare::{Check, usual_difference};
use crate::backend::{Backend, BackendError, Batch, Span};
use crate::candle_backend::CandleBackend;
use crate::cpu::CpuBackend;
use crate::model::{self, Converted, Input, StageModel, StageNeeds};
use crate::tiny::{FAMILIES, Random, TinyTypes};
use crate::weights::{LoadError, LoadProgress, ModelFiles};

/// Types of the small models' layers, and how far the usual row of logits may be from the reference's. A model with random
/// weights makes more of a difference in rounding than a trained one.
const TYPES: [(TensorType, f64); 4] =
    [(TensorType::F32, 1e-3), (TensorType::F16, 0.03), (TensorType::Q8_0, 0.15), (TensorType::Q4K, 0.15)];

/// The same of a model with trained weights: of floats of 4 bytes, of 2, and of blocks.
const TRAINED: [f64; 3] = [1e-3, 0.03, 0.1];

/// Rows of logits that [`tiny_logits`] gives.
pub const STEPS_ROWS: usize = 75;

/// Tokens of the prompt of a model that the user names, and of its answer.
const PROMPT: usize = 48;
const ANSWER: usize = 8;

/// Compares a small model of every family.
///
/// # Errors
/// Where a model cannot be made, or the reference fails.
pub(super) fn all(threads: usize, device: &Device) -> Result<Vec<Check>, SelftestError> {
    let folder = tempfile::tempdir()
        .map_err(|source| SelftestError::Directory { at: std::env::temp_dir(), source })?;
    let path = folder.path().join("tiny.gguf");
    let mut checks = Vec::new();
    for family in &FAMILIES {
        for (kind, tolerance) in TYPES {
            let ends = if kind == TensorType::F32 { kind } else { TensorType::Q8_0 };
            let header = family.write(TinyTypes { layers: kind, ends }, &path)?;
            let wanted = tiny_logits(CpuBackend::new(threads)?, &header)?;
            let found = CandleBackend::new(device.clone())
                .map_err(LoadError::from)
                .and_then(|backend| tiny_logits(backend, &header));
            let compared = found.map(|found| usual_difference(&wanted, &found));
            let compared = compared.map_err(|error| error.to_string());
            checks.push(Check::new("family", family.name, Some(kind), tolerance, compared));
        }
    }
    Ok(checks)
}

/// Logits of a small model, with two sequences on scattered pages: a prompt in two chunks beside a shorter one, whose answer
/// begins in the second step.
///
/// # Errors
/// Where the model cannot be loaded or computed on the backend.
pub fn tiny_logits<B: Backend>(backend: B, header: &Header) -> Result<Vec<Vec<f32>>, LoadError> {
    let room = StageRoom {
        cache_tokens: 8 * PAGE_TOKENS,
        context: 128,
        step_rows: 64,
        sequences: 2,
        cache_dtype: CacheDtype::F32,
    };
    let spec = ModelSpec::from_header(header)?;
    let mut model = load(backend, header, &room)?;
    let tokens = Random::new(3).tokens(64, spec.vocab);
    let span = |rows: Range<usize>, start, pages: &[u32]| Span { rows, start, pages: pages.to_vec() };
    let steps = [
        Batch { spans: vec![span(0..40, 0, &[3, 1]), span(40..45, 0, &[0])] },
        Batch { spans: vec![span(0..1, 5, &[0]), span(1..30, 40, &[3, 1, 7])] },
    ];
    let mut all = Vec::with_capacity(STEPS_ROWS);
    for batch in steps {
        step(&mut model, &tokens[..batch.rows()], &batch, &mut all)?;
    }
    Ok(all)
}

/// Compares a model's logits: a prompt in one step, and then an answer token by token.
///
/// # Errors
/// Where the model cannot be run, the reference does not fit `memory` or fails, or the device cannot load it.
pub(super) fn of_file(
    header: &Header,
    threads: usize,
    device: &Device,
    kind: DeviceKind,
    memory: Bytes,
) -> Result<Vec<Check>, SelftestError> {
    let spec = ModelSpec::from_header(header)?;
    let positions = (PROMPT + ANSWER) as u32;
    let room = StageRoom {
        cache_tokens: positions.next_multiple_of(PAGE_TOKENS),
        context: positions,
        step_rows: PROMPT as u32,
        sequences: 1,
        cache_dtype: CacheDtype::F16,
    };
    let shard = whole(&spec)?;
    let needs = StageNeeds::new(header, &shard, &room)?;
    if needs.memory.total() > memory {
        return Err(SelftestError::TooLittleMemory { needed: needs.memory.total(), machine: memory });
    }
    let tokens = Random::new(5).tokens(positions as usize, spec.vocab);
    // One after the other, so that both need not fit together.
    let wanted = answer_logits(CpuBackend::new(threads)?, header, &room, &tokens)?;
    let backend = CandleBackend::new(device.clone())?.converting()?;
    let found = answer_logits(backend, header, &room, &tokens)?;
    let kinds = || needs.table.iter().map(|(_, tensor)| tensor).filter(|tensor| tensor.dims.len() > 1);
    let [floats, halves, blocks] = TRAINED;
    let tolerance = match () {
        () if kinds().any(|tensor| tensor.kind.is_quantised()) => blocks,
        () if kinds().any(|tensor| tensor.kind != TensorType::F32) => halves,
        () => floats,
    };
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| token);
    let same = wanted.iter().zip(&found).filter(|(a, b)| best(a) == best(b)).count();
    let converted =
        match Converted::on(kind, true).counted(&needs.table).iter().map(|(_, t)| t.bytes).sum::<Bytes>() {
            bytes if bytes > needs.table.iter().map(|(_, t)| t.bytes).sum() => ", some weights converted",
            _ => "",
        };
    let name = format!("{}: {same} of {} likeliest tokens the same{converted}", spec.name, wanted.len());
    Ok(vec![Check::new("model", name, None, tolerance, Ok(usual_difference(&wanted, &found)))])
}

fn answer_logits<B: Backend>(
    backend: B,
    header: &Header,
    room: &StageRoom,
    tokens: &[u32],
) -> Result<Vec<Vec<f32>>, LoadError> {
    let mut model = load(backend, header, room)?;
    let pages: Vec<u32> = (0..room.cache_tokens / PAGE_TOKENS).collect();
    let mut all = Vec::new();
    let steps = std::iter::once(0..PROMPT).chain((PROMPT..tokens.len()).map(|at| at..at + 1));
    for positions in steps {
        let span = Span { rows: 0..positions.len(), start: positions.start, pages: pages.clone() };
        step(&mut model, &tokens[positions], &Batch { spans: vec![span] }, &mut all)?;
    }
    Ok(all)
}

fn load<B: Backend>(backend: B, header: &Header, room: &StageRoom) -> Result<StageModel<B>, LoadError> {
    let spec = ModelSpec::from_header(header)?;
    let shard = whole(&spec)?;
    let needs = StageNeeds::new(header, &shard, room)?;
    let progress = LoadProgress::new();
    let files = ModelFiles::open(header, &progress)?;
    model::load(backend, &files, &needs.spec, &needs.table, &shard, room, &progress)
}

/// The shard that is the whole model.
fn whole(spec: &ModelSpec) -> Result<Shard, LoadError> {
    let layers = spec.layers.len();
    let no_layers = || LoadError::NoSuchShard { shard: "all layers".to_owned(), layers };
    Ok(Shard::of(LayerRange::new(0, layers).ok_or_else(no_layers)?, layers))
}

/// Runs a step and adds the logits of all its rows to `all`.
fn step<B: Backend>(
    model: &mut StageModel<B>,
    tokens: &[u32],
    batch: &Batch,
    all: &mut Vec<Vec<f32>>,
) -> Result<(), BackendError> {
    model.run(Input::Tokens(tokens), batch)?;
    let rows: Vec<usize> = (0..batch.rows()).collect();
    model.logits(&rows, |_, logits| {
        all.push(logits.to_vec());
        Ok(())
    })
}

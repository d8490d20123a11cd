//! Every kernel on the same random inputs, on both backends.

use std::ops::Range;

use brigade_proto::control::CacheDtype;
use brigade_shard::spec::{Activation, Norm, RopePairing, Visibility};
use brigade_shard::tensor_type::TensorType;

use super::compare::{Check, difference};
use super::{SelftestError, stored_as};
use crate::backend::{
    AttentionShape, Backend, BackendError, Batch, CacheShape, HeadRows, MatrixShape, Routes, Span,
};
use crate::tiny::{Random, random_blocks};
use crate::weights::{LoadError, TensorSource};

/// Inputs of the matrices: whole blocks of every type.
pub(super) const WIDTH: usize = 512;
/// Outputs of the matrices; not whole tiles of any kernel.
const OUTPUTS: usize = 83;
/// Experts, and how many of them a row takes.
const EXPERTS: usize = 5;
const USED: usize = 2;
/// Rows of each head, of which some are meant.
const HEADS: HeadRows = HeadRows { heads: 4, stride: 40, first: 8, count: 32 };
/// Rows of activations where one is not meant to be special.
const ROWS: usize = 45;
/// Deviation of weights: that of a model with matrices of this width.
const WEIGHTS: f32 = 0.05;

/// How far kernels may be apart that compute with floats: the order of sums is theirs, and so is the exponential.
const FLOATS: f64 = 1e-3;
/// The same where a value has passed through half precision.
const HALVES: f64 = 5e-3;

/// What is done with a matrix.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Lookup,
    Product { rows: usize },
    Experts { row_per_route: bool },
    Heads { transposed: bool },
}

const USES: [Use; 8] = [
    Use::Lookup,
    // One row, few, and many: devices have a kernel for each.
    Use::Product { rows: 1 },
    Use::Product { rows: 5 },
    Use::Product { rows: ROWS },
    Use::Experts { row_per_route: false },
    Use::Experts { row_per_route: true },
    Use::Heads { transposed: false },
    Use::Heads { transposed: true },
];

impl Use {
    fn name(self) -> String {
        match self {
            Use::Lookup => "lookup".to_owned(),
            Use::Product { rows } => format!("product of {rows}"),
            Use::Experts { row_per_route: false } => "experts".to_owned(),
            Use::Experts { row_per_route: true } => "experts by route".to_owned(),
            Use::Heads { transposed: false } => "heads".to_owned(),
            Use::Heads { transposed: true } => "heads transposed".to_owned(),
        }
    }

    /// How far a device may be from the reference with weights of this type.
    fn tolerance(self, kind: TensorType) -> f64 {
        // What turning weights into another type loses, with room for chance.
        let converted = match (kind, stored_as(kind)) {
            (from, to) if from == to => 0.0,
            (_, TensorType::Q8_0) => 0.01,
            (_, TensorType::Q6K) => 0.03,
            (_, TensorType::Q5K) => 0.06,
            (_, _) => 0.1,
        };
        let own = match (kind, self) {
            (_, Use::Lookup) => FLOATS,
            (TensorType::F32, _) => FLOATS,
            (TensorType::F16, _) => HALVES,
            // Some devices round activations to as few bits as the weights have.
            (TensorType::BF16, _) => 0.02,
            // Both round activations to 8 bits, each in its own way.
            (_, _) => 0.03,
        };
        own + converted
    }

    fn run<B: Backend>(self, backend: &mut B, kind: TensorType) -> Result<Vec<f32>, LoadError> {
        let mut random = Random::new(u64::from(kind.to_ggml()) + 1);
        let mut out = backend.rows(1, 1)?;
        match self {
            Use::Lookup => {
                let table = weights(kind, OUTPUTS, &mut random)?.matrix(backend)?;
                backend.embed(&table, &[82, 0, 7, 82], &mut out)?;
            }
            Use::Product { rows } => {
                let matrix = weights(kind, OUTPUTS, &mut random)?.matrix(backend)?;
                let input = input(backend, rows, WIDTH, &mut random)?;
                backend.linear(&input, &mut [(&matrix, &mut out)])?;
            }
            Use::Experts { row_per_route } => {
                let stack = weights(kind, EXPERTS * OUTPUTS, &mut random)?.experts(backend)?;
                let routes = routes(ROWS, &mut random);
                let rows = if row_per_route { ROWS * USED } else { ROWS };
                let input = input(backend, rows, WIDTH, &mut random)?;
                backend.expert_linear(&input, &routes, EXPERTS, &mut [(&stack, &mut out)])?;
            }
            Use::Heads { transposed } => {
                let stack = weights(kind, HEADS.heads * HEADS.stride, &mut random)?.matrix(backend)?;
                let width = if transposed { HEADS.count } else { WIDTH };
                let input = input(backend, ROWS, HEADS.heads * width, &mut random)?;
                match transposed {
                    false => backend.head_linear(&input, &stack, HEADS, &mut out)?,
                    true => backend.head_linear_transposed(&input, &stack, HEADS, &mut out)?,
                }
            }
        }
        Ok(values(backend, &out)?)
    }
}

/// Kernels that have no matrix.
#[derive(Clone, Copy)]
enum Other {
    Norm(Norm),
    NormOfParts { norm: Norm, of_row: bool },
    Bias,
    Scale,
    ScaleRows,
    Rope(RopePairing),
    RopeOfSome(RopePairing),
    Gate(Activation),
    Add,
    Select,
    JoinHeads,
    Combine,
    ExpertBias,
    Attention { visibility: Visibility, sinks: bool, dtype: CacheDtype },
    LatentAttention(CacheDtype),
}

const RMS: Norm = Norm::Rms { epsilon: 1e-5 };
const LAYER: Norm = Norm::Layer { epsilon: 1e-4 };

const OTHERS: [Other; 30] = [
    Other::Norm(RMS),
    Other::Norm(LAYER),
    Other::NormOfParts { norm: RMS, of_row: false },
    Other::NormOfParts { norm: RMS, of_row: true },
    Other::NormOfParts { norm: LAYER, of_row: false },
    Other::NormOfParts { norm: LAYER, of_row: true },
    Other::Bias,
    Other::Scale,
    Other::ScaleRows,
    Other::Rope(RopePairing::Adjacent),
    Other::Rope(RopePairing::Halves),
    Other::RopeOfSome(RopePairing::Adjacent),
    Other::RopeOfSome(RopePairing::Halves),
    Other::Gate(Activation::Silu),
    Other::Gate(Activation::Gelu),
    Other::Gate(Activation::ClampedSwish),
    Other::Add,
    Other::Select,
    Other::JoinHeads,
    Other::Combine,
    Other::ExpertBias,
    attention(Visibility::All, false, CacheDtype::F32),
    attention(Visibility::All, false, CacheDtype::F16),
    attention(Visibility::All, true, CacheDtype::F16),
    attention(Visibility::Window(7), false, CacheDtype::F16),
    attention(Visibility::Window(7), true, CacheDtype::F16),
    attention(Visibility::Chunk(24), false, CacheDtype::F16),
    attention(Visibility::Chunk(24), true, CacheDtype::F16),
    Other::LatentAttention(CacheDtype::F32),
    Other::LatentAttention(CacheDtype::F16),
];

const fn attention(visibility: Visibility, sinks: bool, dtype: CacheDtype) -> Other {
    Other::Attention { visibility, sinks, dtype }
}

/// Query heads, key and value heads, and the width of each.
const QUERY_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD: usize = 64;

impl Other {
    fn name(self) -> String {
        let norm_name = |norm| match norm {
            Norm::Rms { .. } => "RMS norm",
            Norm::Layer { .. } => "layer norm",
        };
        let pairs = |pairing| match pairing {
            RopePairing::Adjacent => "neighbours",
            RopePairing::Halves => "halves",
        };
        match self {
            Other::Norm(norm) => norm_name(norm).to_owned(),
            Other::NormOfParts { norm, of_row: false } => format!("{} of heads", norm_name(norm)),
            Other::NormOfParts { norm, of_row: true } => {
                format!("{} of heads, each its own", norm_name(norm))
            }
            Other::Bias => "bias".to_owned(),
            Other::Scale => "scale".to_owned(),
            Other::ScaleRows => "scale by row".to_owned(),
            Other::Rope(pairing) => format!("rope of {}", pairs(pairing)),
            Other::RopeOfSome(pairing) => format!("rope of {}, some channels", pairs(pairing)),
            Other::Gate(Activation::Silu) => "SiLU gate".to_owned(),
            Other::Gate(Activation::Gelu) => "GELU gate".to_owned(),
            Other::Gate(Activation::ClampedSwish) => "clamped gate".to_owned(),
            Other::Add => "addition".to_owned(),
            Other::Select => "selection of rows".to_owned(),
            Other::JoinHeads => "joining of heads".to_owned(),
            Other::Combine => "sum of experts".to_owned(),
            Other::ExpertBias => "bias of experts".to_owned(),
            Other::Attention { visibility, sinks, dtype } => {
                let seen = match visibility {
                    Visibility::All => "all".to_owned(),
                    Visibility::Window(window) => format!("a window of {window}"),
                    Visibility::Chunk(chunk) => format!("a chunk of {chunk}"),
                };
                let sinks = if sinks { ", sinks" } else { "" };
                format!("attention to {seen}{sinks}, {} cache", dtype_name(dtype))
            }
            Other::LatentAttention(dtype) => format!("latent attention, {} cache", dtype_name(dtype)),
        }
    }

    fn tolerance(self) -> f64 {
        match self {
            Other::Attention { dtype: CacheDtype::F16, .. } | Other::LatentAttention(CacheDtype::F16) => {
                HALVES
            }
            _ => FLOATS,
        }
    }

    fn run<B: Backend>(self, backend: &mut B) -> Result<Vec<f32>, BackendError> {
        let mut random = Random::new(17);
        let width = QUERY_HEADS * HEAD;
        let mut rows = input(backend, ROWS, width, &mut random)?;
        let other = input(backend, ROWS, width, &mut random)?;
        let vector = |backend: &B, len: usize, random: &mut Random| backend.vector(&random.normals(len, 1.0));
        let mut out = backend.rows(1, 1)?;
        match self {
            Other::Norm(norm) => {
                let weight = vector(backend, width, &mut random)?;
                backend.norm(norm, &rows, &weight, &mut out)?;
                return values(backend, &out);
            }
            Other::NormOfParts { norm, of_row } => {
                let weight = vector(backend, if of_row { width } else { HEAD }, &mut random)?;
                backend.norm_parts(norm, &mut rows, HEAD, &weight)?;
            }
            Other::Bias => {
                let bias = vector(backend, width, &mut random)?;
                backend.add_bias(&mut rows, &bias)?;
            }
            Other::Scale => backend.scale(&mut rows, 0.37)?,
            Other::ScaleRows => backend.scale_rows(&mut rows, &random.normals(ROWS, 1.0))?,
            Other::Rope(pairing) => turn(backend, &mut rows, pairing, HEAD / 2)?,
            Other::RopeOfSome(pairing) => turn(backend, &mut rows, pairing, HEAD / 8)?,
            Other::Gate(activation) => {
                // Wide enough to reach every limit.
                backend.scale(&mut rows, 4.0)?;
                backend.gate(&mut rows, &other, activation)?;
            }
            Other::Add => backend.add(&mut rows, &other)?,
            Other::Select => {
                backend.select(&rows, &[44, 3, 3, 0], &mut out)?;
                return values(backend, &out);
            }
            Other::JoinHeads => {
                let parts = [(&rows, 5..HEAD), (&other, 0..9)];
                backend.join_heads(QUERY_HEADS, &parts, &mut out)?;
                return values(backend, &out);
            }
            Other::Combine => {
                let routed = input(backend, ROWS * USED, width, &mut random)?;
                backend.combine(&routed, &routes(ROWS, &mut random), &mut out)?;
                return values(backend, &out);
            }
            Other::ExpertBias => {
                let mut routed = input(backend, ROWS * USED, width, &mut random)?;
                let biases = vector(backend, EXPERTS * width, &mut random)?;
                backend.add_expert_bias(&mut routed, &routes(ROWS, &mut random), &biases)?;
                return values(backend, &routed);
            }
            Other::Attention { visibility, sinks, dtype } => {
                let sinks =
                    if sinks { Some(backend.vector(&[-1.0, 0.5, 4.0, f32::NEG_INFINITY])?) } else { None };
                let shape = AttentionShape { heads: QUERY_HEADS, scale: 0.125, visibility };
                let cached = CacheShape {
                    pages: 8,
                    kv_heads: KV_HEADS,
                    key_width: HEAD,
                    value_width: HEAD,
                    values_in_keys: false,
                    dtype,
                };
                return attend(backend, cached, shape, sinks.as_ref(), &mut random);
            }
            Other::LatentAttention(dtype) => {
                let shape = AttentionShape { heads: QUERY_HEADS, scale: 0.125, visibility: Visibility::All };
                let cached = CacheShape {
                    pages: 8,
                    kv_heads: 1,
                    key_width: 96,
                    value_width: 64,
                    values_in_keys: true,
                    dtype,
                };
                return attend(backend, cached, shape, None, &mut random);
            }
        }
        values(backend, &rows)
    }
}

fn dtype_name(dtype: CacheDtype) -> &'static str {
    match dtype {
        CacheDtype::F16 => "F16",
        CacheDtype::F32 => "F32",
    }
}

/// Compares what both do with matrices of a type. What the device fails at has not passed; the reference must not fail.
///
/// # Errors
/// Where the reference fails.
pub(super) fn of_type<R: Backend, D: Backend>(
    reference: &mut R,
    device: &mut D,
    kind: TensorType,
) -> Result<Vec<Check>, SelftestError> {
    let check = |used: Use| {
        let wanted = used.run(reference, kind)?;
        let found = used.run(device, kind).map(|found| difference(&wanted, &found));
        let compared = found.map_err(|error| error.to_string());
        Ok(Check::new("kernel", used.name(), Some(kind), used.tolerance(kind), compared))
    };
    USES.into_iter().map(check).collect()
}

/// The same of the kernels that have no matrix.
///
/// # Errors
/// Where the reference fails.
pub(super) fn without_matrices<R: Backend, D: Backend>(
    reference: &mut R,
    device: &mut D,
) -> Result<Vec<Check>, SelftestError> {
    let check = |other: Other| {
        let wanted = other.run(reference)?;
        let found = other.run(device).map(|found| difference(&wanted, &found));
        let compared = found.map_err(|error| error.to_string());
        Ok(Check::new("kernel", other.name(), None, other.tolerance(), compared))
    };
    OTHERS.into_iter().map(check).collect()
}

/// Keys and values of two sequences on scattered pages, a prompt of each and then a token, and what queries see.
fn attend<B: Backend>(
    backend: &mut B,
    cached: CacheShape,
    shape: AttentionShape,
    sinks: Option<&B::Vector>,
    random: &mut Random,
) -> Result<Vec<f32>, BackendError> {
    let mut cache = backend.cache(cached)?;
    let span = |rows: Range<usize>, start, pages: &[u32]| Span { rows, start, pages: pages.to_vec() };
    let steps = [
        Batch { spans: vec![span(0..40, 0, &[3, 1]), span(40..ROWS, 0, &[0])] },
        Batch { spans: vec![span(0..1, 5, &[0]), span(1..2, 40, &[3, 1])] },
    ];
    let mut found = Vec::new();
    let mut out = backend.rows(1, 1)?;
    for batch in steps {
        let rows = batch.rows();
        let keys = random.normals(rows * cached.kv_heads * cached.key_width, 1.0);
        let value_values = match cached.values_in_keys {
            // The last channels of the keys.
            true => keys
                .chunks(cached.key_width)
                .flat_map(|key| key[key.len() - cached.value_width..].to_vec())
                .collect(),
            false => random.normals(rows * cached.kv_heads * cached.value_width, 1.0),
        };
        let (mut key_rows, mut value_rows) = (backend.rows(1, 1)?, backend.rows(1, 1)?);
        backend.upload(&keys, cached.kv_heads * cached.key_width, &mut key_rows)?;
        backend.upload(&value_values, cached.kv_heads * cached.value_width, &mut value_rows)?;
        let queries = input(backend, rows, shape.heads * cached.key_width, random)?;
        backend.store(&mut cache, &batch, &key_rows, &value_rows)?;
        backend.attend(&cache, &batch, shape, sinks, &queries, &mut out)?;
        found.extend(values(backend, &out)?);
    }
    Ok(found)
}

/// Turns heads by angles that no two rows share.
fn turn<B: Backend>(
    backend: &B,
    rows: &mut B::Rows,
    pairing: RopePairing,
    pairs: usize,
) -> Result<(), BackendError> {
    let angles = (0..ROWS).flat_map(|row| (0..pairs).map(move |pair| row as f32 * 0.7f32.powi(pair as i32)));
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
    let (mut cos_rows, mut sin_rows) = (backend.rows(1, 1)?, backend.rows(1, 1)?);
    backend.upload(&cos, pairs, &mut cos_rows)?;
    backend.upload(&sin, pairs, &mut sin_rows)?;
    backend.rope(rows, HEAD, pairing, &cos_rows, &sin_rows)
}

/// Random routes; the last expert has none.
fn routes(rows: usize, random: &mut Random) -> Routes {
    let first = (0..rows).map(|_| (random.uniform() * (EXPERTS - 2) as f32) as u32).collect::<Vec<_>>();
    let experts = first.iter().flat_map(|expert| [*expert, expert + 1]).collect::<Vec<_>>();
    let weights = (0..rows * USED).map(|_| random.between(0.1, 1.0)).collect();
    Routes { used: USED, experts, weights }
}

fn input<B: Backend>(
    backend: &B,
    rows: usize,
    width: usize,
    random: &mut Random,
) -> Result<B::Rows, BackendError> {
    let mut out = backend.rows(1, 1)?;
    backend.upload(&random.normals(rows * width, 1.0), width, &mut out)?;
    Ok(out)
}

fn values<B: Backend>(backend: &B, rows: &B::Rows) -> Result<Vec<f32>, BackendError> {
    Ok(backend.host(rows, &mut Vec::new())?.to_vec())
}

/// A matrix's bytes, in memory.
struct Weights {
    kind: TensorType,
    rows: usize,
    bytes: Vec<u8>,
}

fn weights(kind: TensorType, rows: usize, random: &mut Random) -> Result<Weights, BackendError> {
    Ok(Weights { kind, rows, bytes: random_blocks(kind, rows * WIDTH, WEIGHTS, random)? })
}

impl Weights {
    fn matrix<B: Backend>(mut self, backend: &B) -> Result<B::Matrix, LoadError> {
        let shape = MatrixShape { kind: self.kind, rows: self.rows, width: WIDTH };
        backend.matrix(shape, &mut self)
    }

    fn experts<B: Backend>(mut self, backend: &B) -> Result<B::Matrix, LoadError> {
        let shape = MatrixShape { kind: self.kind, rows: self.rows / EXPERTS, width: WIDTH };
        backend.experts(shape, EXPERTS, &mut self)
    }
}

impl TensorSource for Weights {
    fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(from..).and_then(|rest| rest.get(..out.len()));
        let bytes = bytes.ok_or_else(|| BackendError {
            operation: "read test weights",
            reason: format!("{} bytes at {at} were asked for, of {}", out.len(), self.bytes.len()),
        })?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError {
        LoadError::Unsupported { tensor: "selftest".to_owned(), kind, device }
    }
}

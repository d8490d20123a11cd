//! What a step takes beside its products: attention, what passes norms, rope, gates and additions, taking rows into products
//! and out, handing all of it to the device, and drawing.

use std::time::{Duration, Instant};

use brigade_proto::control::CacheDtype;
use brigade_proto::sampling::Sampling;
use brigade_shard::cost::{PAGE_TOKENS, passed_values};
use brigade_shard::plan::{Kernel, KernelSpeed};
use brigade_shard::spec::{Activation, Norm, RopePairing, Visibility};
use brigade_shard::tensor_type::TensorType;

use super::measure::{Pattern, usual_s};
use crate::backend::{AttentionShape, Backend, BackendError, Batch, CacheShape, MatrixShape, Span};
use crate::sampler::{History, Sampler};
use crate::weights::LoadError;

/// What all of it may take; where it is spent, what remains is run once.
const ALL: Duration = Duration::from_millis(120);
/// Runs of each size.
const RUNS: usize = 9;
/// How often a run does the same: what is measured is short.
const TIMES: usize = 8;
/// Sequences of a step that are handed over.
const SEQUENCES: [usize; 2] = [1, 8];
/// Rows and columns of matrices in which rows going in and out count beside the weights.
const SMALL: usize = 512;
/// Matrices of that size in turn, as those of a layer are.
const SMALL_MATRICES: usize = 4;
/// The share of what a single row takes to go in and out that reading weights does not hide.
const HIDDEN: f64 = 0.1;
/// Logits of a usual model.
const LOGITS: usize = 32_768;
/// Rows of a step: of decoding, and of a prompt's chunk.
const ROWS: [usize; 4] = [1, 4, 16, 64];
/// Positions that are cached where queries look at them.
const CACHED: usize = 512;
/// So few positions that beginning to look at them counts.
const FEW: usize = 16;
/// The least share of what passes that is passing, and not handing over: where both are as short as a clock can tell.
const LEAST_PASSING: f64 = 0.1;
const NORM: Norm = Norm::Rms { epsilon: 1e-5 };

/// The widths of a layer.
#[derive(Clone, Copy)]
struct Widths {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    gates: usize,
}

/// Those of a usual layer.
const USUAL: Widths = Widths { hidden: 2048, heads: 32, kv_heads: 8, head: 64, gates: 8192 };
/// So narrow that nothing but handing over counts.
const NARROW: Widths = Widths { hidden: 32, heads: 1, kv_heads: 1, head: 32, gates: 32 };

/// The speeds of attention, of passing and of handing over.
pub(super) fn speeds<B: Backend>(mut backend: B) -> Result<Vec<KernelSpeed>, LoadError> {
    let most = ROWS.iter().copied().max().unwrap_or(1);
    backend.reserve(most.max(CACHED), USUAL.gates);
    let until = Instant::now() + ALL;
    let matrices = [(); 4].map(|()| {
        let shape = MatrixShape { kind: TensorType::Q8_0, rows: NARROW.hidden, width: NARROW.hidden };
        backend.matrix(shape, &mut Pattern)
    });
    let [inputs, output, gates, down] = matrices;
    let matrices = [inputs?, output?, gates?, down?];
    backend.loaded();
    backend.settle();
    let found = backend.enter(|backend| -> Result<_, BackendError> {
        let mut found = Vec::new();
        for sequences in SEQUENCES {
            let handing_s = Layer::new(backend, NARROW, sequences)?.handing_s(backend, &matrices, until)?;
            found.push(speed(Kernel::Handing, sequences, 1.0, handing_s));
        }
        // Handing over what passes values is part of that, and not counted twice.
        let bare_s = Layer::new(backend, NARROW, 1)?.passing_s(backend, until)?;
        for rows in ROWS {
            let took_s = Layer::new(backend, USUAL, rows)?.passing_s(backend, until)?;
            let passing_s = (took_s - bare_s).max(took_s * LEAST_PASSING);
            found.push(speed(Kernel::Passing, rows, USUAL.passed_values(), passing_s));
        }
        found.extend(attention(backend, until)?);
        Ok(found)
    });
    // A backend moves and counts the memory of its matrices: it goes first.
    drop(backend);
    drop(matrices);
    Ok(found?)
}

fn speed(kernel: Kernel, rows: usize, units: f64, took_s: f64) -> KernelSpeed {
    KernelSpeed { kernel, rows: rows as u32, per_s: units / took_s }
}

impl Widths {
    fn passed_values(self) -> f64 {
        let turned = (self.heads + self.kv_heads) * self.head;
        passed_values(self.hidden as u64, turned as u64, self.gates as u64) as f64
    }

    fn cache(self, positions: usize) -> CacheShape {
        CacheShape {
            pages: positions.div_ceil(PAGE_TOKENS as usize),
            kv_heads: self.kv_heads,
            key_width: self.head,
            value_width: self.head,
            values_in_keys: false,
            dtype: CacheDtype::F16,
        }
    }

    fn attention(self) -> AttentionShape {
        AttentionShape { heads: self.heads, scale: 0.125, visibility: Visibility::All }
    }
}

/// `rows` rows of a sequence, which end at `end`.
fn batch(rows: usize, end: usize) -> Batch {
    let pages = (0..end.div_ceil(PAGE_TOKENS as usize) as u32).collect();
    Batch { spans: vec![Span { rows: 0..rows, start: end - rows, pages }] }
}

/// Activations of `rows` rows, none of them 0.
fn filled<B: Backend>(backend: &B, rows: usize, width: usize) -> Result<B::Rows, BackendError> {
    let mut filled = backend.rows(rows, width)?;
    let values: Vec<f32> = (0..rows * width).map(|i| (i % 13) as f32 / 8.0 - 0.75).collect();
    backend.upload(&values, width, &mut filled)?;
    Ok(filled)
}

/// What a layer computes in.
struct Layer<B: Backend> {
    widths: Widths,
    rows: usize,
    weight: B::Vector,
    hidden: B::Rows,
    normed: B::Rows,
    projected: B::Rows,
    queries: B::Rows,
    keys: B::Rows,
    values: B::Rows,
    attended: B::Rows,
    gate: B::Rows,
    up: B::Rows,
    cos: B::Rows,
    sin: B::Rows,
}

impl<B: Backend> Layer<B> {
    fn new(backend: &B, widths: Widths, rows: usize) -> Result<Layer<B>, BackendError> {
        let Widths { hidden, heads, kv_heads, head, gates } = widths;
        let filled = |width| filled(backend, rows, width);
        Ok(Layer {
            widths,
            rows,
            weight: backend.vector(&vec![1.0; hidden])?,
            hidden: filled(hidden)?,
            normed: filled(hidden)?,
            projected: filled(hidden)?,
            queries: filled(heads * head)?,
            keys: filled(kv_heads * head)?,
            values: filled(kv_heads * head)?,
            attended: filled(heads * head)?,
            gate: filled(gates)?,
            up: filled(gates)?,
            cos: filled(head / 2)?,
            sin: filled(head / 2)?,
        })
    }

    /// Seconds in which a layer's values pass what is no product and no attention.
    fn passing_s(&mut self, backend: &mut B, until: Instant) -> Result<f64, BackendError> {
        let mut scratch = Vec::new();
        usual_s(RUNS, until, || {
            // Values that are gated again and again would end where arithmetic is slow.
            self.gate = filled(backend, self.rows, self.widths.gates)?;
            self.queries = filled(backend, self.rows, self.widths.heads * self.widths.head)?;
            self.keys = filled(backend, self.rows, self.widths.kv_heads * self.widths.head)?;
            let began = Instant::now();
            for _ in 0..TIMES {
                backend.norm(NORM, &self.hidden, &self.weight, &mut self.normed)?;
                self.turn(backend)?;
                backend.add(&mut self.hidden, &self.projected)?;
                backend.norm(NORM, &self.hidden, &self.weight, &mut self.normed)?;
                backend.gate(&mut self.gate, &self.up, Activation::Silu)?;
                backend.add(&mut self.hidden, &self.projected)?;
            }
            backend.host(&self.hidden, &mut scratch)?;
            Ok(began.elapsed().as_secs_f64() / TIMES as f64)
        })
    }

    fn turn(&mut self, backend: &B) -> Result<(), BackendError> {
        let (head, pairing) = (self.widths.head, RopePairing::Halves);
        backend.rope(&mut self.queries, head, pairing, &self.cos, &self.sin)?;
        backend.rope(&mut self.keys, head, pairing, &self.cos, &self.sin)
    }

    /// Seconds of all operations of a layer, for a row of each sequence that sees nothing but itself.
    fn handing_s(
        &mut self,
        backend: &mut B,
        matrices: &[B::Matrix; 4],
        until: Instant,
    ) -> Result<f64, BackendError> {
        let own_page = |row: usize| Span { rows: row..row + 1, start: 0, pages: vec![row as u32] };
        let batch = Batch { spans: (0..self.rows).map(own_page).collect() };
        let mut cache = backend.cache(self.widths.cache(self.rows * PAGE_TOKENS as usize))?;
        let (shape, mut scratch) = (self.widths.attention(), Vec::new());
        let [inputs, output, gates, down] = matrices;
        usual_s(RUNS, until, || {
            let began = Instant::now();
            for _ in 0..TIMES {
                backend.norm(NORM, &self.hidden, &self.weight, &mut self.normed)?;
                let mut products =
                    [(inputs, &mut self.queries), (inputs, &mut self.keys), (inputs, &mut self.values)];
                backend.linear(&self.normed, &mut products)?;
                self.turn(backend)?;
                backend.store(&mut cache, &batch, &self.keys, &self.values)?;
                backend.attend(&cache, &batch, shape, None, &self.queries, &mut self.attended)?;
                backend.linear(&self.attended, &mut [(output, &mut self.projected)])?;
                backend.add(&mut self.hidden, &self.projected)?;
                backend.norm(NORM, &self.hidden, &self.weight, &mut self.normed)?;
                backend.linear(&self.normed, &mut [(gates, &mut self.gate), (gates, &mut self.up)])?;
                backend.gate(&mut self.gate, &self.up, Activation::Silu)?;
                backend.linear(&self.gate, &mut [(down, &mut self.projected)])?;
                backend.add(&mut self.hidden, &self.projected)?;
            }
            backend.host(&self.hidden, &mut scratch)?;
            Ok(began.elapsed().as_secs_f64() / TIMES as f64)
        })
    }
}

/// The speed of taking rows into products of a processor and out of them, given how many weights of type `kind` it multiplies
/// with so many rows: what small matrices take beyond that.
pub(super) fn framing<B: Backend>(
    mut backend: B,
    kind: TensorType,
    known: &[(usize, f64)],
) -> Result<Vec<KernelSpeed>, LoadError> {
    let most = known.iter().map(|(rows, _)| *rows).max().unwrap_or(1);
    backend.reserve(most, SMALL);
    let until = Instant::now() + ALL;
    let shape = MatrixShape { kind, rows: SMALL, width: SMALL };
    let matrices = (0..SMALL_MATRICES).map(|_| backend.matrix(shape, &mut Pattern));
    let matrices: Vec<B::Matrix> = matrices.collect::<Result<_, LoadError>>()?;
    backend.loaded();
    backend.settle();
    let mut found = Vec::new();
    for (rows, weights_per_s) in known {
        let (input, mut output) = (filled(&backend, *rows, SMALL)?, backend.rows(*rows, SMALL)?);
        let took_s = backend.enter(|backend| {
            usual_s(RUNS, until, || {
                let began = Instant::now();
                for matrix in &matrices {
                    backend.linear(&input, &mut [(matrix, &mut output)])?;
                }
                Ok(began.elapsed().as_secs_f64() / SMALL_MATRICES as f64)
            })
        })?;
        let framing_s = took_s - (SMALL * SMALL) as f64 / weights_per_s;
        if framing_s > 0.0 {
            found.push(speed(Kernel::Framing, *rows, (2 * SMALL) as f64, framing_s));
        }
    }
    // A single row goes in and out while weights are waited for.
    if let Some(first) = found.first().copied().filter(|first| first.rows > 1) {
        found.push(KernelSpeed { rows: 1, per_s: first.per_s * f64::from(first.rows) / HIDDEN, ..first });
    }
    // A backend moves and counts the memory of its matrices: it goes first.
    drop(backend);
    drop(matrices);
    Ok(found)
}

/// The speed of drawing tokens.
pub(super) fn drawing() -> KernelSpeed {
    let logits: Vec<f32> = (0..LOGITS).map(|id| ((id * 37) % 101) as f32 / 10.0).collect();
    let (mut sampler, sampling) = (Sampler::default(), Sampling { temperature: 1.0, ..Sampling::default() });
    let history = History { tokens: &[], prompt_tokens: 0 };
    let until = Instant::now() + ALL;
    let took_s = usual_s(RUNS, until, || {
        let began = Instant::now();
        // Nothing is wrong with these logits.
        let _ = std::hint::black_box(sampler.draw(&logits, &sampling, history));
        Ok(began.elapsed().as_secs_f64())
    });
    speed(Kernel::Drawing, 1, LOGITS as f64, took_s.unwrap_or(f64::INFINITY))
}

/// The speeds of attention with the last rows of a sequence.
fn attention<B: Backend>(backend: &mut B, until: Instant) -> Result<Vec<KernelSpeed>, BackendError> {
    let Widths { heads, kv_heads, head, .. } = USUAL;
    let mut cache = backend.cache(USUAL.cache(CACHED))?;
    let all = filled(backend, CACHED, kv_heads * head)?;
    backend.store(&mut cache, &batch(CACHED, CACHED), &all, &all)?;
    let mut scratch = Vec::new();
    let mut took = |rows: usize, end: usize| {
        let queries = filled(backend, rows, heads * head)?;
        let (mut attended, batch) = (backend.rows(rows, heads * head)?, batch(rows, end));
        usual_s(RUNS, until, || {
            let began = Instant::now();
            backend.attend(&cache, &batch, USUAL.attention(), None, &queries, &mut attended)?;
            backend.host(&attended, &mut scratch)?;
            Ok(began.elapsed().as_secs_f64())
        })
    };
    let position = (kv_heads * 2 * head) as f64;
    let mut found = Vec::new();
    for rows in ROWS {
        let seen = CACHED as f64 - (rows as f64 - 1.0) / 2.0;
        found.push(speed(Kernel::Attention, rows * heads / kv_heads, seen * position, took(rows, CACHED)?));
    }
    // What few positions take beyond their share.
    let (short_s, long_s) = (took(1, FEW)?, took(1, CACHED)?);
    let opening_s = (short_s - long_s * FEW as f64 / CACHED as f64).max(0.0);
    if opening_s > 0.0 {
        found.push(speed(Kernel::Opening, heads / kv_heads, position, opening_s));
    }
    Ok(found)
}

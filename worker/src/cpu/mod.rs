//! The processor as a device.
//!
//! Weights stay in their file's blocks, read straight to where they stay. A row's result depends on nothing but the
//! row: not on the rows beside it, on how work is split, on the number of threads, or on the instruction set.

mod attention;
mod blocks;
mod cache;
mod codebooks;
mod columns;
mod grids;
mod heads;
mod matrix;
mod ops;
mod panels;
mod super_blocks;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use brigade_shard::spec::{Activation, Norm, RopePairing};
use rayon::prelude::*;

use self::blocks::{ActivationBlock, BLOCK};
pub use self::cache::CpuCache;
use self::columns::Columns;
pub use self::matrix::CpuMatrix;
use self::matrix::{ActivationForm, Activations, Format, Passing};
use self::panels::{PANEL_ROWS, QuantisedRows};
use crate::backend::{
    AttentionShape, Backend, BackendError, Batch, CacheShape, HeadRows, MatrixShape, Routes,
};
pub use crate::simd::Simd;
use crate::weights::{LoadError, TensorSource};

/// Below this many values an elementwise operation stays on one thread: handing it out would cost more.
const PARALLEL_VALUES: usize = 16 * 1024;

/// Pieces of work per thread that a product is cut into, so that a thread that was held up does not hold up the rest.
const CHUNKS_PER_THREAD: usize = 4;

/// Fewest weight values in a piece of a product.
const CHUNK_VALUES: usize = 32 * 1024;

/// Most bytes of weights in a piece of a product with several rows, which pass over it a tile at a time: it should stay
/// in the second-level cache.
const CHUNK_BYTES: usize = 128 * 1024;

/// What a backend has done so far, shared with whoever watches it.
#[derive(Clone, Debug, Default)]
pub struct CpuWork(Arc<AtomicU64>);

impl CpuWork {
    /// Multiplications, each with its addition, of all matrix products.
    pub fn multiply_adds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, multiply_adds: usize) {
        self.0.fetch_add(multiply_adds as u64, Ordering::Relaxed);
    }
}

/// The processor, with its own compute threads.
pub struct CpuBackend {
    pool: Arc<rayon::ThreadPool>,
    simd: Simd,
    panels: QuantisedRows,
    blocks: Vec<ActivationBlock>,
    /// What the scratch memory was reserved for: rows, and values of a row.
    reserved: (usize, usize),
    work: CpuWork,
}

/// Activations `[rows, width]`, in memory that was taken for the largest step.
pub struct CpuRows {
    width: usize,
    rows: usize,
    data: Vec<f32>,
}

impl CpuRows {
    fn input(&self) -> Input<'_> {
        Input { rows: self.rows, width: self.width, values: self.values() }
    }

    fn values(&self) -> &[f32] {
        &self.data[..self.rows * self.width]
    }

    /// Sets the shape and shares the values among the pieces of a product.
    fn columns(&mut self, rows: usize, width: usize) -> Columns<'_> {
        // SAFETY: each piece of a product writes columns, or rows, that no other piece writes.
        unsafe { Columns::new(self.shaped(rows, width), width) }
    }

    /// Sets the shape; the values are then to be written.
    fn shaped(&mut self, rows: usize, width: usize) -> &mut [f32] {
        let len = rows * width;
        if len > self.data.len() {
            self.data.resize(len, 0.0);
        }
        (self.rows, self.width) = (rows, width);
        &mut self.data[..len]
    }
}

/// What passes over weights: rows of a matrix's width.
#[derive(Clone, Copy)]
struct Input<'a> {
    rows: usize,
    width: usize,
    values: &'a [f32],
}

/// A piece of a product.
struct Work<'a> {
    matrix: &'a CpuMatrix,
    /// Weight rows.
    chunk: Range<usize>,
    passing: Passing<'a>,
    columns: Arc<Columns<'a>>,
}

impl CpuBackend {
    /// A backend with exactly `threads` compute threads, on the best instructions that the processor has.
    pub fn new(threads: usize) -> Result<CpuBackend, BackendError> {
        CpuBackend::with_simd(threads, Simd::detect())
    }

    /// A backend on chosen instructions; the results are the same on all of them.
    pub fn with_simd(threads: usize, simd: Simd) -> Result<CpuBackend, BackendError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|i| format!("compute-{i}"))
            .build()
            .map_err(|e| BackendError { operation: "start its threads", reason: e.to_string() })?;
        Ok(CpuBackend {
            pool: Arc::new(pool),
            simd,
            panels: QuantisedRows::default(),
            blocks: Vec::new(),
            reserved: (0, 0),
            work: CpuWork::default(),
        })
    }

    /// What this backend has done so far.
    pub fn work(&self) -> CpuWork {
        self.work.clone()
    }

    /// Applies `work` to each row of `rows` of `out`, with the row's index.
    fn each_row(&self, out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync + Send) {
        if out.len() < PARALLEL_VALUES {
            out.chunks_exact_mut(width).enumerate().for_each(|(i, row)| work(i, row));
        } else {
            let work = &work;
            self.pool.install(|| {
                out.par_chunks_exact_mut(width).with_min_len(4).enumerate().for_each(|(i, row)| work(i, row));
            });
        }
    }

    fn each_row_in_place(&self, rows: &mut CpuRows, work: impl Fn(&mut [f32]) + Sync + Send) {
        let (width, count) = (rows.width, rows.rows);
        self.each_row(&mut rows.data[..count * width], width, |_, row| work(row));
    }

    /// Cuts weight rows into pieces of work for `rows` rows of activations.
    fn cut(
        &self,
        matrix: &CpuMatrix,
        weights: Range<usize>,
        rows: usize,
        mut piece: impl FnMut(Range<usize>),
    ) {
        let threads = self.pool.current_num_threads();
        let least = CHUNK_VALUES.div_ceil(matrix.width);
        let mut chunk = weights.len().div_ceil(threads * CHUNKS_PER_THREAD).max(least);
        if rows > 1 {
            chunk = chunk.min((CHUNK_BYTES / matrix.row_bytes).max(1));
        }
        if matrix.format.is_in_panels() {
            chunk = chunk.next_multiple_of(PANEL_ROWS);
        }
        for start in weights.clone().step_by(chunk) {
            piece(start..weights.end.min(start + chunk));
        }
    }

    /// Rounds the input to the forms that the matrices want, and does all pieces of work.
    fn multiply(&mut self, input: Input<'_>, work: Vec<Work<'_>>) {
        let mut forms: Vec<_> = work.iter().map(|work| work.matrix.format.activation_form()).collect();
        forms.dedup();
        self.round(input, &forms);
        let activations =
            Activations { rows: input.rows, float: input.values, panels: &self.panels, blocks: &self.blocks };
        let products =
            |work: &Work<'_>| work.chunk.len() * work.matrix.width * work.passing.count(input.rows);
        self.work.add(work.iter().map(products).sum());
        let simd = self.simd;
        self.pool.install(|| {
            work.into_par_iter().for_each(|Work { matrix, chunk, passing, columns }| {
                debug_assert_eq!(matrix.width, input.width);
                matrix.multiply(simd, chunk, activations, passing, &columns);
            });
        });
    }

    /// Rounds the input to the forms that the matrices want.
    fn round(&mut self, input: Input<'_>, forms: &[ActivationForm]) {
        let (rows, width, simd) = (input.rows, input.width, self.simd);
        let values = rows * width;
        let parallel = values >= PARALLEL_VALUES;
        if forms.contains(&ActivationForm::Blocks) {
            let reserved = values.max(self.reserved.0 * self.reserved.1) / BLOCK;
            if self.blocks.len() < values / BLOCK {
                self.blocks.reserve_exact(reserved - self.blocks.len());
                self.blocks.resize(values / BLOCK, ActivationBlock::ZERO);
            }
            let out = &mut self.blocks[..values / BLOCK];
            let work = |(x, out): (&[f32], &mut [ActivationBlock])| blocks::quantise(simd, x, out);
            if parallel {
                self.pool.install(|| {
                    input
                        .values
                        .par_chunks_exact(width)
                        .zip(out.par_chunks_exact_mut(width / BLOCK))
                        .for_each(work);
                });
            } else {
                input.values.chunks_exact(width).zip(out.chunks_exact_mut(width / BLOCK)).for_each(work);
            }
        }
        if forms.contains(&ActivationForm::Panels) {
            self.panels.shape(rows, width, self.reserved.0 * self.reserved.1);
            let pieces = self.panels.pieces().take(rows).zip(input.values.chunks_exact(width));
            if parallel {
                let pieces: Vec<_> = pieces.collect();
                self.pool.install(|| pieces.into_par_iter().for_each(|(row, x)| row.round(simd, x)));
            } else {
                pieces.for_each(|(row, x)| row.round(simd, x));
            }
        }
    }
}

impl Backend for CpuBackend {
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;
    type Rows = CpuRows;
    type Cache = CpuCache;

    fn reserve(&mut self, rows: usize, width: usize) {
        self.reserved = (rows, width);
    }

    fn matrix(&self, shape: MatrixShape, source: &mut dyn TensorSource) -> Result<CpuMatrix, LoadError> {
        self.experts(shape, 1, source)
    }

    fn experts(
        &self,
        shape: MatrixShape,
        count: usize,
        source: &mut dyn TensorSource,
    ) -> Result<CpuMatrix, LoadError> {
        let MatrixShape { kind, rows, width } = shape;
        let unsupported = || source.unsupported(kind, "cpu");
        let format = Format::of(kind).ok_or_else(unsupported)?;
        CpuMatrix::read(format, [count, rows, width], &*source, &self.pool, unsupported)
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, BackendError> {
        Ok(values.to_vec())
    }

    fn rows(&self, capacity: usize, width: usize) -> Result<CpuRows, BackendError> {
        Ok(CpuRows { width, rows: 0, data: vec![0.0; capacity * width] })
    }

    fn cache(&self, shape: CacheShape) -> Result<CpuCache, BackendError> {
        Ok(CpuCache::new(shape))
    }

    fn enter<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        let pool = self.pool.clone();
        pool.install(|| work(self))
    }

    fn upload(&self, values: &[f32], width: usize, out: &mut CpuRows) -> Result<(), BackendError> {
        out.shaped(values.len() / width, width).copy_from_slice(values);
        Ok(())
    }

    fn host<'a>(&self, rows: &'a CpuRows, _scratch: &'a mut Vec<f32>) -> Result<&'a [f32], BackendError> {
        Ok(rows.values())
    }

    fn select(&self, rows: &CpuRows, which: &[usize], out: &mut CpuRows) -> Result<(), BackendError> {
        let width = rows.width;
        for (&row, out) in which.iter().zip(out.shaped(which.len(), width).chunks_exact_mut(width)) {
            out.copy_from_slice(&rows.data[row * width..][..width]);
        }
        Ok(())
    }

    fn embed(&self, table: &CpuMatrix, tokens: &[u32], out: &mut CpuRows) -> Result<(), BackendError> {
        let width = table.width;
        self.each_row(out.shaped(tokens.len(), width), width, |i, row| {
            table.dequantise_row(tokens[i] as usize, row)
        });
        Ok(())
    }

    fn linear(
        &mut self,
        input: &CpuRows,
        products: &mut [(&CpuMatrix, &mut CpuRows)],
    ) -> Result<(), BackendError> {
        let mut work = Vec::new();
        for (matrix, out) in products.iter_mut() {
            let columns = Arc::new(out.columns(input.rows, matrix.rows));
            self.cut(matrix, 0..matrix.rows, input.rows, |chunk| {
                work.push(Work { matrix, chunk, passing: Passing::All, columns: columns.clone() });
            });
        }
        self.multiply(input.input(), work);
        Ok(())
    }

    fn expert_linear(
        &mut self,
        input: &CpuRows,
        routes: &Routes,
        count: usize,
        products: &mut [(&CpuMatrix, &mut CpuRows)],
    ) -> Result<(), BackendError> {
        let share = routes.experts.len() / input.rows.max(1);
        let mut of_expert: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (route, &expert) in (0u32..).zip(&routes.experts) {
            of_expert.entry(expert).or_default().push(route);
        }
        let mut work = Vec::new();
        for (matrix, out) in products.iter_mut() {
            let rows = matrix.rows / count;
            let columns = Arc::new(out.columns(routes.experts.len(), rows));
            for (&expert, routes) in &of_expert {
                let first_weight = expert as usize * rows;
                let passing = Passing::Routes { routes, share, first_weight };
                self.cut(matrix, first_weight..first_weight + rows, routes.len(), |chunk| {
                    work.push(Work { matrix, chunk, passing, columns: columns.clone() });
                });
            }
        }
        self.multiply(input.input(), work);
        Ok(())
    }

    fn head_linear(
        &mut self,
        input: &CpuRows,
        matrix: &CpuMatrix,
        of: HeadRows,
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        let HeadRows { heads, stride, first, count } = of;
        let rows = input.rows;
        let columns = Arc::new(out.columns(rows, heads * count));
        let mut work = Vec::new();
        for head in 0..heads {
            let first_weight = head * stride + first;
            let passing = Passing::Head { rows, heads, head, first_weight, column: head * count };
            self.cut(matrix, first_weight..first_weight + count, rows, |chunk| {
                work.push(Work { matrix, chunk, passing, columns: columns.clone() });
            });
        }
        let parts = Input { rows: rows * heads, width: matrix.width, values: input.values() };
        self.multiply(parts, work);
        Ok(())
    }

    fn head_linear_transposed(
        &mut self,
        input: &CpuRows,
        matrix: &CpuMatrix,
        of: HeadRows,
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        self.work.add(input.rows * of.heads * of.count * matrix.width);
        let columns = out.columns(input.rows, of.heads * matrix.width);
        self.pool.install(|| {
            heads::multiply_transposed(self.simd, matrix, of, input.rows, input.values(), &columns);
        });
        Ok(())
    }

    fn join_heads(
        &self,
        heads: usize,
        parts: &[(&CpuRows, Range<usize>)],
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        let parts: Vec<_> =
            parts.iter().map(|(rows, channels)| (rows.values(), rows.width, channels.clone())).collect();
        let width = heads * parts.iter().map(|(_, _, channels)| channels.len()).sum::<usize>();
        let rows = parts.first().map_or(0, |(values, width, _)| values.len() / width);
        self.each_row(out.shaped(rows, width), width, |row, out| heads::join(heads, row, &parts, out));
        Ok(())
    }

    fn combine(&self, routed: &CpuRows, routes: &Routes, out: &mut CpuRows) -> Result<(), BackendError> {
        let width = routed.width;
        self.each_row(out.shaped(routed.rows / routes.used, width), width, |i, out| {
            out.fill(0.0);
            for route in i * routes.used..(i + 1) * routes.used {
                let row = &routed.data[route * width..][..width];
                ops::add_product(self.simd, out, row, routes.weights[route]);
            }
        });
        Ok(())
    }

    fn norm(
        &self,
        norm: Norm,
        input: &CpuRows,
        weight: &Vec<f32>,
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        let width = input.width;
        self.each_row(out.shaped(input.rows, width), width, |i, out| {
            ops::norm(self.simd, norm, &input.data[i * width..][..width], weight, out);
        });
        Ok(())
    }

    fn norm_parts(
        &self,
        norm: Norm,
        rows: &mut CpuRows,
        part: usize,
        weight: &Vec<f32>,
    ) -> Result<(), BackendError> {
        self.each_row_in_place(rows, |row| ops::norm_parts(self.simd, norm, row, part, weight));
        Ok(())
    }

    fn add_bias(&self, rows: &mut CpuRows, bias: &Vec<f32>) -> Result<(), BackendError> {
        self.each_row_in_place(rows, |row| ops::add(self.simd, row, bias));
        Ok(())
    }

    fn add_expert_bias(
        &self,
        rows: &mut CpuRows,
        routes: &Routes,
        biases: &Vec<f32>,
    ) -> Result<(), BackendError> {
        let (width, count) = (rows.width, rows.rows);
        self.each_row(&mut rows.data[..count * width], width, |i, row| {
            let expert = routes.experts[i] as usize;
            ops::add(self.simd, row, &biases[expert * width..][..width]);
        });
        Ok(())
    }

    fn scale(&self, rows: &mut CpuRows, factor: f32) -> Result<(), BackendError> {
        self.each_row_in_place(rows, |row| ops::scale(self.simd, row, factor));
        Ok(())
    }

    fn scale_rows(&self, rows: &mut CpuRows, factors: &[f32]) -> Result<(), BackendError> {
        let (width, count) = (rows.width, rows.rows);
        self.each_row(&mut rows.data[..count * width], width, |i, row| {
            ops::scale(self.simd, row, factors[i]);
        });
        Ok(())
    }

    fn rope(
        &self,
        rows: &mut CpuRows,
        head_width: usize,
        pairing: RopePairing,
        cos: &CpuRows,
        sin: &CpuRows,
    ) -> Result<(), BackendError> {
        let (width, pairs) = (rows.width, cos.width);
        let count = rows.rows;
        self.each_row(&mut rows.data[..count * width], width, |i, row| {
            let angles = i * pairs..(i + 1) * pairs;
            ops::rope(row, head_width, pairing, &cos.data[angles.clone()], &sin.data[angles]);
        });
        Ok(())
    }

    fn store(
        &self,
        cache: &mut CpuCache,
        batch: &Batch,
        keys: &CpuRows,
        values: &CpuRows,
    ) -> Result<(), BackendError> {
        cache.store(batch, keys.values(), values.values());
        Ok(())
    }

    fn attend(
        &self,
        cache: &CpuCache,
        batch: &Batch,
        shape: AttentionShape,
        sinks: Option<&Vec<f32>>,
        queries: &CpuRows,
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        let out = out.shaped(queries.rows, shape.heads * cache.shape.value_width);
        let (sinks, queries) = (sinks.map(Vec::as_slice), queries.values());
        self.pool.install(|| attention::attend(self.simd, cache, batch, shape, sinks, queries, out));
        Ok(())
    }

    fn gate(&self, gate: &mut CpuRows, up: &CpuRows, activation: Activation) -> Result<(), BackendError> {
        let (width, rows) = (gate.width, gate.rows);
        self.each_row(&mut gate.data[..rows * width], width, |i, gate| {
            let up = &up.data[i * width..][..width];
            match activation {
                Activation::Silu => ops::silu_gate(self.simd, gate, up),
                Activation::Gelu => ops::gelu_gate(self.simd, gate, up),
                Activation::ClampedSwish => ops::clamped_gate(self.simd, gate, up),
            }
        });
        Ok(())
    }

    fn add(&self, rows: &mut CpuRows, other: &CpuRows) -> Result<(), BackendError> {
        let (width, count) = (rows.width, rows.rows);
        self.each_row(&mut rows.data[..count * width], width, |i, row| {
            ops::add(self.simd, row, &other.data[i * width..][..width]);
        });
        Ok(())
    }
}

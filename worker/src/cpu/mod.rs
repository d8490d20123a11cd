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

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use brigade_shard::spec::{Activation, Norm, RopePairing};
use brigade_shard::tensor_type::TensorType;

use self::attention::{Attention, Scratch, Tile};
pub use self::cache::CpuCache;
use self::columns::Columns;
pub use self::matrix::CpuMatrix;
use self::matrix::{Activations, Format, Passing};
use self::panels::{ActivationPart, PANEL_ROWS, QuantisedRows};
use crate::backend::{
    AttentionShape, Backend, BackendError, Batch, CacheShape, HeadRows, MatrixShape, Routes,
};
pub use crate::simd::Simd;
use crate::team::{PerMember, Team};
use crate::weights::{HugePages, LoadError, TensorSource, lengthen};

/// Below this many values an elementwise operation stays on one thread: handing it out would cost more.
const PARALLEL_VALUES: usize = 16 * 1024;

/// Pieces of work per thread that a product is cut into, so that a thread that was held up does not hold up the rest.
const CHUNKS_PER_THREAD: usize = 4;

/// Fewest weight values in a piece of a product.
const CHUNK_VALUES: usize = 32 * 1024;

/// Most bytes of weights in a piece of a product with several rows, which pass over it a tile at a time: it should stay
/// in the second-level cache.
const CHUNK_BYTES: usize = 128 * 1024;

/// Writes rows of `width` values of a type, which lie one after another as in a file, as f32. Fails where there is no kernel for
/// the type, or rows are no whole blocks of it.
pub(crate) fn dequantise(
    kind: TensorType,
    width: usize,
    rows: &[u8],
    out: &mut [f32],
) -> Result<(), BackendError> {
    match Format::of(kind).filter(|format| format.row_bytes(width).is_some()) {
        Some(format) => {
            matrix::dequantise(format, width, rows, out);
            Ok(())
        }
        None => {
            let reason = format!("there is no kernel for rows of {width} values in {kind}");
            Err(BackendError { operation: "dequantise", reason })
        }
    }
}

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
    team: Team,
    simd: Simd,
    /// What is computed in; kept, so that a step asks for no memory.
    memory: Memory,
    /// What the scratch memory was reserved for: rows, and values of a row.
    reserved: (usize, usize),
    work: CpuWork,
    /// Where matrices lie that have been read.
    read: Mutex<Vec<Range<usize>>>,
    huge_pages: Option<HugePages>,
}

/// Memory of operations.
struct Memory {
    rounded: QuantisedRows,
    pieces: Vec<Piece>,
    /// The routes, ordered by their expert, and where each expert's end.
    routes: Vec<u32>,
    ends: Vec<usize>,
    tiles: Vec<Tile>,
    attention: PerMember<Scratch>,
    /// Rows of weights as numbers.
    widened: PerMember<Vec<f32>>,
}

/// Activations `[rows, width]`, in memory that was taken for the largest step.
pub struct CpuRows {
    width: usize,
    rows: usize,
    data: Vec<f32>,
}

impl CpuRows {
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

/// Most matrices that one operation multiplies with.
const MOST_PRODUCTS: usize = 4;

/// A piece of the products of an operation.
#[derive(Clone)]
struct Piece {
    /// Which of the operation's matrices.
    product: usize,
    /// Weight rows.
    chunk: Range<usize>,
    passing: Passing,
}

impl CpuBackend {
    /// A backend with exactly `threads` compute threads, on the best instructions that the processor has.
    pub fn new(threads: usize) -> Result<CpuBackend, BackendError> {
        CpuBackend::with_simd(threads, Simd::detect())
    }

    /// A backend on chosen instructions; the results are the same on all of them.
    pub fn with_simd(threads: usize, simd: Simd) -> Result<CpuBackend, BackendError> {
        let team = Team::new(threads)
            .map_err(|e| BackendError { operation: "start its threads", reason: e.to_string() })?;
        let memory = Memory {
            rounded: QuantisedRows::default(),
            pieces: Vec::new(),
            routes: Vec::new(),
            ends: Vec::new(),
            tiles: Vec::new(),
            attention: PerMember::new(team.threads()),
            widened: PerMember::new(team.threads()),
        };
        Ok(CpuBackend {
            team,
            simd,
            memory,
            reserved: (0, 0),
            work: CpuWork::default(),
            read: Mutex::default(),
            huge_pages: None,
        })
    }

    /// What this backend has done so far.
    pub fn work(&self) -> CpuWork {
        self.work.clone()
    }

    /// Applies `work` to each row of `out`, with the row's index.
    fn each_row(&self, out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        if out.len() < PARALLEL_VALUES {
            out.chunks_exact_mut(width).enumerate().for_each(|(i, row)| work(i, row));
        } else {
            let rows = (out.len() / width).div_ceil(self.team.threads() * CHUNKS_PER_THREAD);
            self.team.each_chunk(out, rows * width, |chunk, out| {
                for (i, row) in out.chunks_exact_mut(width).enumerate() {
                    work(chunk * rows + i, row);
                }
            });
        }
    }

    fn each_row_in_place(&self, rows: &mut CpuRows, work: impl Fn(&mut [f32]) + Sync) {
        let (width, count) = (rows.width, rows.rows);
        self.each_row(&mut rows.data[..count * width], width, |_, row| work(row));
    }

    /// Cuts a product with weight rows `weights` into pieces for `rows` rows of activations.
    fn cut(
        &mut self,
        product: usize,
        matrix: &CpuMatrix,
        weights: Range<usize>,
        rows: usize,
        passing: Passing,
    ) {
        let least = CHUNK_VALUES.div_ceil(matrix.width);
        let mut chunk = weights.len().div_ceil(self.team.threads() * CHUNKS_PER_THREAD).max(least);
        if rows > 1 {
            chunk = chunk.min((CHUNK_BYTES / matrix.row_bytes).max(1));
        }
        if matrix.format.is_in_panels() {
            chunk = chunk.next_multiple_of(PANEL_ROWS * panels::panels_together(self.simd));
        }
        for start in weights.clone().step_by(chunk) {
            let chunk = start..weights.end.min(start + chunk);
            self.memory.pieces.push(Piece { product, chunk, passing });
        }
    }

    /// Begins an operation on matrices `[.., width]`, and rounds its input, `[rows, width]`, where one of them takes that.
    fn begin(&mut self, rows: usize, width: usize, input: &[f32], rounded: bool) {
        self.memory.pieces.clear();
        if !rounded {
            return;
        }
        let (out, parts) = self.memory.rounded.shape(rows, width, self.reserved.0 * self.reserved.1);
        let (simd, team) = (self.simd, &self.team);
        let row = |i: usize, out: &mut [ActivationPart]| {
            panels::round(simd, &input[i * width..][..width], out);
        };
        if rows == 1 || input.len() < PARALLEL_VALUES {
            out.chunks_exact_mut(parts.max(1)).enumerate().for_each(|(i, out)| row(i, out));
        } else {
            team.each_chunk(out, parts, row);
        }
    }

    /// Does all pieces of an operation with `rows` rows of input; each product's results go to its own columns.
    fn multiply(&mut self, rows: usize, input: &[f32], products: &[Option<Product<'_>>]) {
        let Memory { rounded, pieces, routes, .. } = &self.memory;
        let input = Activations { rows, float: input, rounded, routes };
        let simd = self.simd;
        let matrix = |piece: &Piece| products[piece.product].as_ref();
        let count = |piece: &Piece| {
            let width = matrix(piece).map_or(0, |product| product.matrix.width);
            piece.chunk.len() * width * piece.passing.count(rows)
        };
        self.work.add(pieces.iter().map(count).sum());
        self.team.each(pieces.len(), |i| {
            if let Some(Product { matrix, columns }) = matrix(&pieces[i]) {
                matrix.multiply(simd, pieces[i].chunk.clone(), input, pieces[i].passing, columns);
            }
        });
    }

    /// Orders the routes by their expert, each expert's in their own order.
    fn order(&mut self, routes: &Routes, experts: usize) {
        let Memory { routes: order, ends, .. } = &mut self.memory;
        ends.clear();
        ends.resize(experts + 1, 0);
        for &expert in &routes.experts {
            ends[expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            ends[expert + 1] += ends[expert];
        }
        order.clear();
        order.resize(routes.experts.len(), 0);
        // Now each is where its expert's begin; when all have been placed, it is where they end.
        for (route, &expert) in (0u32..).zip(&routes.experts) {
            order[ends[expert as usize]] = route;
            ends[expert as usize] += 1;
        }
    }
}

/// A matrix and where its products go.
struct Product<'a> {
    matrix: &'a CpuMatrix,
    columns: Columns<'a>,
}

/// No products yet.
fn no_products<'a>() -> [Option<Product<'a>>; MOST_PRODUCTS] {
    [const { None }; MOST_PRODUCTS]
}

impl Backend for CpuBackend {
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;
    type Rows = CpuRows;
    type Cache = CpuCache;

    fn reserve(&mut self, rows: usize, width: usize) {
        self.reserved = (rows, width);
    }

    fn loaded(&mut self) {
        let read = self.read.get_mut().unwrap_or_else(PoisonError::into_inner);
        match HugePages::begin(std::mem::take(read)) {
            Ok(moving) => self.huge_pages = Some(moving),
            Err(error) => tracing::warn!(%error, "weights stay on small pages: no thread to move them"),
        }
    }

    fn settle(&mut self) {
        if let Some(moving) = &mut self.huge_pages {
            moving.wait();
        }
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
        let matrix = CpuMatrix::read(format, [count, rows, width], &*source, &self.team, unsupported)?;
        self.adopt(&matrix);
        Ok(matrix)
    }

    fn adopt(&self, matrix: &CpuMatrix) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.extend(matrix.resident());
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, BackendError> {
        Ok(values.to_vec())
    }

    fn rows(&self, capacity: usize, width: usize) -> Result<CpuRows, BackendError> {
        let mut data = Vec::new();
        lengthen("make room for a step", &mut data, capacity * width)?;
        Ok(CpuRows { width, rows: 0, data })
    }

    fn cache(&self, shape: CacheShape) -> Result<CpuCache, BackendError> {
        CpuCache::new(shape)
    }

    fn enter<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        work(self)
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
        let (rows, values) = (input.rows, input.values());
        for products in products.chunks_mut(MOST_PRODUCTS) {
            let rounded = products.iter().any(|(matrix, _)| matrix.format.takes_rounded());
            self.begin(rows, input.width, values, rounded);
            let mut all = no_products();
            for (i, (matrix, out)) in products.iter_mut().enumerate() {
                self.cut(i, matrix, 0..matrix.rows, rows, Passing::All);
                all[i] = Some(Product { matrix, columns: out.columns(rows, matrix.rows) });
            }
            self.multiply(rows, values, &all);
        }
        Ok(())
    }

    fn expert_linear(
        &mut self,
        input: &CpuRows,
        routes: &Routes,
        count: usize,
        products: &mut [(&CpuMatrix, &mut CpuRows)],
    ) -> Result<(), BackendError> {
        let (rows, values) = (input.rows, input.values());
        let share = routes.experts.len() / rows.max(1);
        self.order(routes, count);
        for products in products.chunks_mut(MOST_PRODUCTS) {
            let rounded = products.iter().any(|(matrix, _)| matrix.format.takes_rounded());
            self.begin(rows, input.width, values, rounded);
            let mut all = no_products();
            for (i, (matrix, out)) in products.iter_mut().enumerate() {
                let weights = matrix.rows / count;
                let mut first = 0;
                for expert in 0..count {
                    let (end, first_weight) = (self.memory.ends[expert], expert * weights);
                    let passing = Passing::Routes { first, count: end - first, share, first_weight };
                    if end > first {
                        self.cut(i, matrix, first_weight..first_weight + weights, end - first, passing);
                    }
                    first = end;
                }
                all[i] = Some(Product { matrix, columns: out.columns(routes.experts.len(), weights) });
            }
            self.multiply(rows, values, &all);
        }
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
        let (rows, values) = (input.rows, input.values());
        // A head's part of a row counts as a row.
        self.begin(rows * heads, matrix.width, values, matrix.format.takes_rounded());
        for head in 0..heads {
            let first_weight = head * stride + first;
            let passing = Passing::Head { rows, heads, head, first_weight, column: head * count };
            self.cut(0, matrix, first_weight..first_weight + count, rows, passing);
        }
        let mut all = no_products();
        all[0] = Some(Product { matrix, columns: out.columns(rows, heads * count) });
        self.multiply(rows * heads, values, &all);
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
        let widened = &self.memory.widened;
        heads::multiply_transposed(self.simd, &self.team, widened, matrix, of, input.values(), &columns);
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
        &mut self,
        cache: &CpuCache,
        batch: &Batch,
        shape: AttentionShape,
        sinks: Option<&Vec<f32>>,
        queries: &CpuRows,
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        let out = out.columns(queries.rows, shape.heads * cache.shape.value_width);
        let (sinks, queries) = (sinks.map(Vec::as_slice), queries.values());
        let attention = Attention { simd: self.simd, cache, batch, shape, sinks, queries, out };
        attention.run(&self.team, &mut self.memory.tiles, &self.memory.attention);
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

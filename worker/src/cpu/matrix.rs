//! A matrix in its file's blocks, and its products with rows of activations.

use brigade_shard::tensor_type::TensorType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, BlockQ8K, GgmlType,
};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::blocks::{self, ActivationBlock, BLOCK, RowFormat};
use super::codebooks;
use super::columns::Columns;
use super::super_blocks;
use crate::simd::{LANES, Simd, Vector, add_dot, kernel};
use crate::weights::{Plain, WeightBuffer};

/// Values in a block of the K, IQ and TQ formats.
pub(crate) const SUPER_BLOCK: usize = 256;

/// Rows of activations that pass over a row of weights together, while it is in the first-level cache.
const TILE_ROWS: usize = 16;

/// Half-precision weights are widened this many at a time, on the stack.
const WIDENED: usize = 16 * LANES;

/// How a matrix's rows are stored; a [`TensorType`] that this backend can multiply with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "these are the formats' own names")]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4_NL,
    MXFP4,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
}

/// What a format's products take activations as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActivationForm {
    /// As they are.
    Float,
    /// 8 bits in blocks of 32.
    Blocks,
    /// 8 bits in blocks of 256.
    SuperBlocks,
}

impl Format {
    /// The format of a tensor type; `None` where there is no kernel for it.
    pub(crate) fn of(kind: TensorType) -> Option<Format> {
        Some(match kind {
            TensorType::F32 => Format::F32,
            TensorType::F16 => Format::F16,
            TensorType::BF16 => Format::Bf16,
            TensorType::Q4_0 => Format::Q4_0,
            TensorType::Q4_1 => Format::Q4_1,
            TensorType::Q5_0 => Format::Q5_0,
            TensorType::Q5_1 => Format::Q5_1,
            TensorType::Q8_0 => Format::Q8_0,
            TensorType::Q2K => Format::Q2K,
            TensorType::Q3K => Format::Q3K,
            TensorType::Q4K => Format::Q4K,
            TensorType::Q5K => Format::Q5K,
            TensorType::Q6K => Format::Q6K,
            TensorType::IQ4_NL => Format::IQ4_NL,
            TensorType::MXFP4 => Format::MXFP4,
            TensorType::IQ4_XS => Format::IQ4_XS,
            TensorType::TQ1_0 => Format::TQ1_0,
            TensorType::TQ2_0 => Format::TQ2_0,
            TensorType::IQ1_S => Format::IQ1_S,
            TensorType::IQ1_M => Format::IQ1_M,
            TensorType::IQ2_XXS => Format::IQ2_XXS,
            TensorType::IQ2_XS => Format::IQ2_XS,
            TensorType::IQ2_S => Format::IQ2_S,
            TensorType::IQ3_XXS => Format::IQ3_XXS,
            TensorType::IQ3_S => Format::IQ3_S,
            _ => return None,
        })
    }

    /// Values and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::Bf16 => (1, 2),
            Format::Q4_0 => block_of::<blocks::Q4_0>(),
            Format::Q4_1 => block_of::<blocks::Q4_1>(),
            Format::Q5_0 => block_of::<blocks::Q5_0>(),
            Format::Q5_1 => block_of::<blocks::Q5_1>(),
            Format::Q8_0 => block_of::<blocks::Q8_0>(),
            Format::Q2K => (SUPER_BLOCK, size_of::<BlockQ2K>()),
            Format::Q3K => (SUPER_BLOCK, size_of::<BlockQ3K>()),
            Format::Q4K => (SUPER_BLOCK, size_of::<BlockQ4K>()),
            Format::Q5K => (SUPER_BLOCK, size_of::<BlockQ5K>()),
            Format::Q6K => (SUPER_BLOCK, size_of::<BlockQ6K>()),
            Format::IQ4_NL => block_of::<blocks::IQ4_NL>(),
            Format::MXFP4 => block_of::<blocks::MXFP4>(),
            Format::IQ4_XS => block_of::<super_blocks::IQ4_XS>(),
            Format::TQ1_0 => block_of::<super_blocks::TQ1_0>(),
            Format::TQ2_0 => block_of::<super_blocks::TQ2_0>(),
            Format::IQ1_S => block_of::<codebooks::IQ1_S>(),
            Format::IQ1_M => block_of::<codebooks::IQ1_M>(),
            Format::IQ2_XXS => block_of::<codebooks::IQ2_XXS>(),
            Format::IQ2_XS => block_of::<codebooks::IQ2_XS>(),
            Format::IQ2_S => block_of::<codebooks::IQ2_S>(),
            Format::IQ3_XXS => block_of::<codebooks::IQ3_XXS>(),
            Format::IQ3_S => block_of::<codebooks::IQ3_S>(),
        }
    }

    /// Bytes of a row of `width` values; `None` where no whole number of blocks makes it.
    pub(crate) fn row_bytes(self, width: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        width.is_multiple_of(values).then(|| width / values * bytes)
    }

    /// What its products take.
    pub(crate) fn activation_form(self) -> ActivationForm {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => ActivationForm::Float,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => {
                ActivationForm::SuperBlocks
            }
            _ => ActivationForm::Blocks,
        }
    }
}

/// Values and bytes of a block.
fn block_of<F: RowFormat>() -> (usize, usize) {
    (F::VALUES, F::BYTES)
}

/// A weight matrix `[rows, width]`, resident once, in its file's blocks.
pub struct CpuMatrix {
    pub(crate) format: Format,
    /// Number of outputs.
    pub(crate) rows: usize,
    /// Number of inputs; a multiple of the format's block.
    pub(crate) width: usize,
    pub(crate) row_bytes: usize,
    /// `rows * row_bytes` bytes.
    pub(crate) buffer: WeightBuffer,
}

/// A step's activations in every form that the matrices at hand want, `[rows, matrix width]`; forms that none wants
/// are left over from earlier steps.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    pub(crate) rows: usize,
    pub(crate) float: &'a [f32],
    pub(crate) blocks: &'a [ActivationBlock],
    pub(crate) super_blocks: &'a [BlockQ8K],
}

/// Which rows of the input pass over a chunk of weights, and where their products go.
#[derive(Clone, Copy)]
pub(crate) enum Passing<'a> {
    /// All of them, each to its own row.
    All,
    /// Those of these routes, each to the route's row; every row of the input has `share` routes.
    Routes {
        routes: &'a [u32],
        share: usize,
        /// The weight row whose products go to the first column.
        first_weight: usize,
    },
    /// All of `rows`, each with its part for one of `heads` heads; a part counts as a row of the input.
    Head {
        rows: usize,
        heads: usize,
        head: usize,
        /// The weight row whose products go to `column`.
        first_weight: usize,
        column: usize,
    },
}

impl Passing<'_> {
    fn count(self, rows: usize) -> usize {
        match self {
            Passing::All => rows,
            Passing::Routes { routes, .. } => routes.len(),
            Passing::Head { rows, .. } => rows,
        }
    }

    fn input(self, index: usize) -> usize {
        match self {
            Passing::All => index,
            Passing::Routes { routes, share, .. } => routes[index] as usize / share,
            Passing::Head { heads, head, .. } => index * heads + head,
        }
    }

    fn output(self, index: usize, weight: usize) -> (usize, usize) {
        match self {
            Passing::All => (index, weight),
            Passing::Routes { routes, first_weight, .. } => (routes[index] as usize, weight - first_weight),
            Passing::Head { first_weight, column, .. } => (index, column + weight - first_weight),
        }
    }
}

impl CpuMatrix {
    /// Writes weight row `row` as f32.
    pub(crate) fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        let bytes = &self.buffer.bytes()[row * self.row_bytes..][..self.row_bytes];
        match self.format {
            Format::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            Format::F16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Format::Bf16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Format::Q4_0 => blocks::Q4_0::dequantise(bytes, out),
            Format::Q4_1 => blocks::Q4_1::dequantise(bytes, out),
            Format::Q5_0 => blocks::Q5_0::dequantise(bytes, out),
            Format::Q5_1 => blocks::Q5_1::dequantise(bytes, out),
            Format::Q8_0 => blocks::Q8_0::dequantise(bytes, out),
            Format::Q2K => BlockQ2K::to_float(self.super_row(row), out),
            Format::Q3K => BlockQ3K::to_float(self.super_row(row), out),
            Format::Q4K => BlockQ4K::to_float(self.super_row(row), out),
            Format::Q5K => BlockQ5K::to_float(self.super_row(row), out),
            Format::Q6K => BlockQ6K::to_float(self.super_row(row), out),
            Format::IQ4_NL => blocks::IQ4_NL::dequantise(bytes, out),
            Format::MXFP4 => blocks::MXFP4::dequantise(bytes, out),
            Format::IQ4_XS => super_blocks::IQ4_XS::dequantise(bytes, out),
            Format::TQ1_0 => super_blocks::TQ1_0::dequantise(bytes, out),
            Format::TQ2_0 => super_blocks::TQ2_0::dequantise(bytes, out),
            Format::IQ1_S => codebooks::IQ1_S::dequantise(bytes, out),
            Format::IQ1_M => codebooks::IQ1_M::dequantise(bytes, out),
            Format::IQ2_XXS => codebooks::IQ2_XXS::dequantise(bytes, out),
            Format::IQ2_XS => codebooks::IQ2_XS::dequantise(bytes, out),
            Format::IQ2_S => codebooks::IQ2_S::dequantise(bytes, out),
            Format::IQ3_XXS => codebooks::IQ3_XXS::dequantise(bytes, out),
            Format::IQ3_S => codebooks::IQ3_S::dequantise(bytes, out),
        }
    }

    fn super_row<T: Plain>(&self, row: usize) -> &[T] {
        let blocks = self.width / SUPER_BLOCK;
        &self.buffer.values()[row * blocks..][..blocks]
    }

    /// Multiplies weight rows `chunk` with all rows of activations: column `o` of `out` gets row `o`'s products.
    pub(crate) fn multiply(
        &self,
        simd: Simd,
        chunk: std::ops::Range<usize>,
        input: Activations<'_>,
        passing: Passing<'_>,
        out: &Columns<'_>,
    ) {
        match self.format {
            Format::F32 | Format::F16 | Format::Bf16 => self.multiply_float(simd, chunk, input, passing, out),
            Format::Q4_0 => self.multiply_blocks::<blocks::Q4_0>(simd, chunk, input, passing, out),
            Format::Q4_1 => self.multiply_blocks::<blocks::Q4_1>(simd, chunk, input, passing, out),
            Format::Q5_0 => self.multiply_blocks::<blocks::Q5_0>(simd, chunk, input, passing, out),
            Format::Q5_1 => self.multiply_blocks::<blocks::Q5_1>(simd, chunk, input, passing, out),
            Format::Q8_0 => self.multiply_blocks::<blocks::Q8_0>(simd, chunk, input, passing, out),
            Format::Q2K => self.multiply_super_blocks::<BlockQ2K>(chunk, input, passing, out),
            Format::Q3K => self.multiply_super_blocks::<BlockQ3K>(chunk, input, passing, out),
            Format::Q4K => self.multiply_super_blocks::<BlockQ4K>(chunk, input, passing, out),
            Format::Q5K => self.multiply_super_blocks::<BlockQ5K>(chunk, input, passing, out),
            Format::Q6K => self.multiply_super_blocks::<BlockQ6K>(chunk, input, passing, out),
            Format::IQ4_NL => self.multiply_blocks::<blocks::IQ4_NL>(simd, chunk, input, passing, out),
            Format::MXFP4 => self.multiply_blocks::<blocks::MXFP4>(simd, chunk, input, passing, out),
            Format::IQ4_XS => self.multiply_blocks::<super_blocks::IQ4_XS>(simd, chunk, input, passing, out),
            Format::TQ1_0 => self.multiply_blocks::<super_blocks::TQ1_0>(simd, chunk, input, passing, out),
            Format::TQ2_0 => self.multiply_blocks::<super_blocks::TQ2_0>(simd, chunk, input, passing, out),
            Format::IQ1_S => self.multiply_blocks::<codebooks::IQ1_S>(simd, chunk, input, passing, out),
            Format::IQ1_M => self.multiply_blocks::<codebooks::IQ1_M>(simd, chunk, input, passing, out),
            Format::IQ2_XXS => self.multiply_blocks::<codebooks::IQ2_XXS>(simd, chunk, input, passing, out),
            Format::IQ2_XS => self.multiply_blocks::<codebooks::IQ2_XS>(simd, chunk, input, passing, out),
            Format::IQ2_S => self.multiply_blocks::<codebooks::IQ2_S>(simd, chunk, input, passing, out),
            Format::IQ3_XXS => self.multiply_blocks::<codebooks::IQ3_XXS>(simd, chunk, input, passing, out),
            Format::IQ3_S => self.multiply_blocks::<codebooks::IQ3_S>(simd, chunk, input, passing, out),
        }
    }

    fn multiply_blocks<F: RowFormat>(
        &self,
        simd: Simd,
        chunk: std::ops::Range<usize>,
        input: Activations<'_>,
        passing: Passing<'_>,
        out: &Columns<'_>,
    ) {
        let per_row = self.width / BLOCK;
        let row = |r: usize| &input.blocks[passing.input(r) * per_row..][..per_row];
        for tile in (0..passing.count(input.rows)).step_by(TILE_ROWS) {
            let end = passing.count(input.rows).min(tile + TILE_ROWS);
            for o in chunk.clone() {
                let weights = &self.buffer.bytes()[o * self.row_bytes..][..self.row_bytes];
                let mut r = tile;
                while r + 4 <= end {
                    let inputs = [row(r), row(r + 1), row(r + 2), row(r + 3)];
                    let products = F::products::<4>(simd, weights, inputs);
                    for (i, product) in products.into_iter().enumerate() {
                        out.set(passing.output(r + i, o), product);
                    }
                    r += 4;
                }
                while r < end {
                    let [product] = F::products::<1>(simd, weights, [row(r)]);
                    out.set(passing.output(r, o), product);
                    r += 1;
                }
            }
        }
    }

    fn multiply_super_blocks<T: GgmlType<VecDotType = BlockQ8K> + Plain>(
        &self,
        chunk: std::ops::Range<usize>,
        input: Activations<'_>,
        passing: Passing<'_>,
        out: &Columns<'_>,
    ) {
        let per_row = self.width / SUPER_BLOCK;
        for tile in (0..passing.count(input.rows)).step_by(TILE_ROWS) {
            for o in chunk.clone() {
                let weights: &[T] = self.super_row(o);
                for r in tile..passing.count(input.rows).min(tile + TILE_ROWS) {
                    let activations = &input.super_blocks[passing.input(r) * per_row..][..per_row];
                    out.set(passing.output(r, o), T::vec_dot(self.width, weights, activations));
                }
            }
        }
    }

    fn multiply_float(
        &self,
        simd: Simd,
        chunk: std::ops::Range<usize>,
        input: Activations<'_>,
        passing: Passing<'_>,
        out: &Columns<'_>,
    ) {
        let row = |r: usize| &input.float[passing.input(r) * self.width..][..self.width];
        for tile in (0..passing.count(input.rows)).step_by(TILE_ROWS) {
            let end = passing.count(input.rows).min(tile + TILE_ROWS);
            for o in chunk.clone() {
                let weights = &self.buffer.bytes()[o * self.row_bytes..][..self.row_bytes];
                let mut r = tile;
                while r < end {
                    // Rows past the end repeat the last one and are not written.
                    let inputs = std::array::from_fn(|i| row((r + i).min(end - 1)));
                    let products = if end - r >= FLOAT_ROWS {
                        float_products(simd, self.format, weights, inputs)
                    } else {
                        let [first, ..] = inputs;
                        [float_product(simd, self.format, weights, first); FLOAT_ROWS]
                    };
                    let done = if end - r >= FLOAT_ROWS { FLOAT_ROWS } else { 1 };
                    for (i, product) in products.into_iter().enumerate().take(done) {
                        out.set(passing.output(r + i, o), product);
                    }
                    r += done;
                }
            }
        }
    }
}

/// Rows of activations that share the widening of a row of float weights.
const FLOAT_ROWS: usize = 4;

#[inline(always)]
fn float_rows<V: Vector, const R: usize>(format: Format, weights: &[u8], inputs: [&[f32]; R]) -> [f32; R] {
    let mut lanes = [V::zero(); R];
    let mut widened = [0f32; WIDENED];
    let size = if format == Format::F32 { 4 } else { 2 };
    for (i, piece) in weights.chunks(WIDENED * size).enumerate() {
        let count = piece.len() / size;
        let widened = &mut widened[..count];
        match format {
            Format::F32 => {
                for (out, bytes) in widened.iter_mut().zip(piece.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            Format::F16 => {
                let mut halves = [f16::ZERO; WIDENED];
                for (out, bytes) in halves.iter_mut().zip(piece.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*bytes);
                }
                halves[..count].convert_to_f32_slice(widened);
            }
            _ => {
                for (out, bytes) in widened.iter_mut().zip(piece.as_chunks::<2>().0) {
                    *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
        }
        for r in 0..R {
            lanes[r] = add_dot(lanes[r], widened, &inputs[r][i * WIDENED..][..count]);
        }
    }
    lanes.map(V::sum)
}

kernel! {
    fn float_products<V>(format: Format, weights: &[u8], inputs: [&[f32]; FLOAT_ROWS]) -> [f32; FLOAT_ROWS] {
        float_rows::<V, FLOAT_ROWS>(format, weights, inputs)
    }
}

kernel! {
    fn float_product<V>(format: Format, weights: &[u8], input: &[f32]) -> f32 {
        let [product] = float_rows::<V, 1>(format, weights, [input]);
        product
    }
}

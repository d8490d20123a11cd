//! A matrix in its file's blocks, row by row or in [panels], and its products with rows of activations.

use std::cell::RefCell;
use std::ops::Range;

use brigade_shard::tensor_type::TensorType;

use super::blocks::RowFormat;
use super::codebooks;
use super::columns::{Columns, in_blocks};
use super::panels::{self, ActivationRow, FloatFormat, MOST_ROWS, PANEL_ROWS, PanelFormat, QuantisedRows};
use super::super_blocks;
use crate::simd::Simd;
use crate::team::{PerMember, Team};
use crate::weights::{
    LoadError, MappedBytes, READ_BYTES, READING, StagedBytes, StagedGuard, TensorSource, WeightBuffer,
    lengthen,
};

/// Rows of activations that pass over a row of weights together, while it is in the first-level cache.
const TILE_ROWS: usize = 16;

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

/// Evaluates an expression with the type of a format that is kept in panels, or another one for those that are not.
macro_rules! with_panel_format {
    ($format:expr, |$F:ident| $with:expr, else $without:expr) => {
        with_panel_format!(
            $format, $F, $with, $without, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K IQ4_NL MXFP4 IQ4_XS
        )
    };
    ($format:expr, $F:ident, $with:expr, $without:expr, $($name:ident)*) => {
        match $format {
            $(Format::$name => {
                type $F = panels::$name;
                $with
            })*
            _ => $without,
        }
    };
}

/// Evaluates an expression with the type of a format of single numbers, or another one for those that are none.
macro_rules! with_float_format {
    ($format:expr, |$F:ident| $with:expr, else $without:expr) => {
        match $format {
            Format::F32 => {
                type $F = panels::F32;
                $with
            }
            Format::F16 => {
                type $F = panels::F16;
                $with
            }
            Format::Bf16 => {
                type $F = panels::Bf16;
                $with
            }
            _ => $without,
        }
    };
}

/// Evaluates an expression with the type of a quantised format that is kept in rows.
macro_rules! with_row_format {
    ($format:expr, |$F:ident| $with:expr) => {
        with_row_format!(
            $format, $F, $with,
            super_blocks: TQ1_0 TQ2_0; codebooks: IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S
        )
    };
    ($format:expr, $F:ident, $with:expr, $($module:ident: $($name:ident)*);*) => {
        match $format {
            $($(Format::$name => {
                type $F = $module::$name;
                $with
            })*)*
            // The others are floats or in panels.
            _ => {}
        }
    };
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
            Format::Q4_0 => panel_block::<panels::Q4_0>(),
            Format::Q4_1 => panel_block::<panels::Q4_1>(),
            Format::Q5_0 => panel_block::<panels::Q5_0>(),
            Format::Q5_1 => panel_block::<panels::Q5_1>(),
            Format::Q8_0 => panel_block::<panels::Q8_0>(),
            Format::Q2K => panel_block::<panels::Q2K>(),
            Format::Q3K => panel_block::<panels::Q3K>(),
            Format::Q4K => panel_block::<panels::Q4K>(),
            Format::Q5K => panel_block::<panels::Q5K>(),
            Format::Q6K => panel_block::<panels::Q6K>(),
            Format::IQ4_NL => panel_block::<panels::IQ4_NL>(),
            Format::MXFP4 => panel_block::<panels::MXFP4>(),
            Format::IQ4_XS => panel_block::<panels::IQ4_XS>(),
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

    /// Whether its products take activations that are rounded to 8 bits, and not as they are.
    pub(crate) fn takes_rounded(self) -> bool {
        !matches!(self, Format::F32 | Format::F16 | Format::Bf16)
    }

    /// Whether rows are kept in panels of [`PANEL_ROWS`].
    pub(crate) fn is_in_panels(self) -> bool {
        with_panel_format!(self, |_F| true, else with_float_format!(self, |_F| true, else false))
    }
}

/// Values and bytes of a block.
fn panel_block<F: PanelFormat>() -> (usize, usize) {
    (F::VALUES, F::BYTES)
}

/// Values and bytes of a block.
fn block_of<F: RowFormat>() -> (usize, usize) {
    (F::VALUES, F::BYTES)
}

/// A weight matrix `[rows, width]`, resident once, in its file's blocks: row by row, or in panels of 16 rows.
pub struct CpuMatrix {
    pub(crate) format: Format,
    /// Number of outputs.
    pub(crate) rows: usize,
    /// Number of inputs; a multiple of the format's block.
    pub(crate) width: usize,
    pub(crate) row_bytes: usize,
    /// Rows of each of the matrices that are stacked; a panel holds rows of one of them.
    stacked: usize,
    weights: Weights,
}

/// Where a matrix's weights are.
enum Weights {
    /// In memory of their own, in panels if the format is kept so.
    Resident(WeightBuffer),
    /// In their file, row by row; a panel is put together when it is looked at.
    Mapped(MappedBytes),
    /// In a buffer that their layer is read to for every step, row by row as well.
    Staged(StagedBytes),
}

/// A matrix's weights where they lie now, and for as long as this lives.
struct Look<'a> {
    bytes: Lying<'a>,
    in_panels: bool,
}

enum Lying<'a> {
    Still(&'a [u8]),
    Staged(StagedGuard<'a>),
}

impl Look<'_> {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Lying::Still(bytes) => bytes,
            Lying::Staged(staged) => staged.bytes(),
        }
    }
}

/// Values of a row that a few more rows of activations than pass at once are multiplied with at a time: with those of 16
/// rows, and of 8 rows of activations, some 30 KiB, which stay in the first-level cache while the rows pass. A multiple of
/// every format's block.
const PIECE_VALUES: usize = 1024;

/// From so many rows of activations on it pays to take panels apart for all of them first (measured with AVX-512, where it
/// pays last).
const TILED_ROWS: usize = 24;

thread_local! {
    /// The sums of rows that pass over panels.
    static SUMS: RefCell<Vec<[f32; PANEL_ROWS]>> = const { RefCell::new(Vec::new()) };
    /// The panels that this thread puts together of a matrix that lies row by row.
    static PANELS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What passes over weights: rows of activations of a matrix's width.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    pub(crate) rows: usize,
    pub(crate) float: &'a [f32],
    /// The same rounded, where a matrix at hand wants that; else what is left of an earlier operation.
    pub(crate) rounded: &'a QuantisedRows,
    /// The routes that [`Passing::Routes`] speaks of.
    pub(crate) routes: &'a [u32],
}

/// Which rows of the input pass over a chunk of weights, and where their products go.
#[derive(Clone, Copy)]
pub(crate) enum Passing {
    /// All of them, each to its own row.
    All,
    /// Those of the routes `first..first + count`, each to the route's row; every row of the input has `share` routes.
    Routes {
        first: usize,
        count: usize,
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

impl Passing {
    /// How many they are, of `rows` rows of input.
    pub(crate) fn count(self, rows: usize) -> usize {
        match self {
            Passing::All => rows,
            Passing::Routes { count, .. } => count,
            Passing::Head { rows, .. } => rows,
        }
    }

    fn input(self, routes: &[u32], index: usize) -> usize {
        match self {
            Passing::All => index,
            Passing::Routes { first, share, .. } => routes[first + index] as usize / share,
            Passing::Head { heads, head, .. } => index * heads + head,
        }
    }

    fn output(self, routes: &[u32], index: usize, weight: usize) -> (usize, usize) {
        match self {
            Passing::All => (index, weight),
            Passing::Routes { first, first_weight, .. } => {
                (routes[first + index] as usize, weight - first_weight)
            }
            Passing::Head { first_weight, column, .. } => (index, column + weight - first_weight),
        }
    }
}

/// Puts the rows of a panel into their places; of no use for formats that are kept in rows.
fn interleave(format: Format, rows: &[u8], row_bytes: usize, count: usize, panel: &mut [u8]) {
    with_panel_format!(
        format, |F| panels::interleave::<F>(rows, row_bytes, count, panel),
        else with_float_format!(
            format, |F| panels::interleave_floats::<F>(rows, row_bytes, count, panel), else ()
        )
    );
}

/// Writes rows of `width` values that lie one after another, as in a file, as f32.
pub(crate) fn dequantise(format: Format, width: usize, rows: &[u8], out: &mut [f32]) {
    let Some(row_bytes) = format.row_bytes(width).filter(|bytes| *bytes > 0) else { return };
    if !format.is_in_panels() {
        for (row, out) in rows.chunks_exact(row_bytes).zip(out.chunks_exact_mut(width)) {
            with_row_format!(format, |F| F::dequantise(row, out));
        }
        return;
    }
    PANELS.with_borrow_mut(|panel| {
        panel.clear();
        panel.resize(PANEL_ROWS * row_bytes, 0);
        for (rows, out) in rows.chunks(PANEL_ROWS * row_bytes).zip(out.chunks_mut(PANEL_ROWS * width)) {
            interleave(format, rows, row_bytes, rows.len() / row_bytes, panel);
            for (lane, out) in out.chunks_exact_mut(width).enumerate() {
                with_panel_format!(
                    format, |F| panels::dequantise_row::<F>(panel, lane, out),
                    else with_float_format!(format, |F| panels::widen_row::<F>(panel, lane, out), else ())
                );
            }
        }
    });
}

impl CpuMatrix {
    /// Reads `count` matrices of `rows` rows that lie one after another, with the threads of `team`.
    ///
    /// Fails where rows are no whole blocks, or the source cannot be read.
    pub(crate) fn read(
        format: Format,
        [count, rows, width]: [usize; 3],
        source: &dyn TensorSource,
        team: &Team,
        unsupported: impl FnOnce() -> LoadError,
    ) -> Result<CpuMatrix, LoadError> {
        let row_bytes = format.row_bytes(width).ok_or_else(unsupported)?;
        let matrix =
            |weights| CpuMatrix { format, rows: count * rows, width, row_bytes, stacked: rows, weights };
        if let Some(staged) = source.staged().filter(|staged| staged.len() == count * rows * row_bytes) {
            return Ok(matrix(Weights::Staged(staged)));
        }
        if let Some(mapped) =
            source.mapped().filter(|mapped| mapped.bytes().len() == count * rows * row_bytes)
        {
            return Ok(matrix(Weights::Mapped(mapped)));
        }
        if !format.is_in_panels() {
            let mut buffer = WeightBuffer::zeroed(count * rows * row_bytes)?;
            source.read(buffer.bytes_mut(), team)?;
            return Ok(matrix(Weights::Resident(buffer)));
        }
        let panels = rows.div_ceil(PANEL_ROWS);
        let panel_bytes = PANEL_ROWS * row_bytes;
        let mut buffer = WeightBuffer::zeroed(count * panels * panel_bytes)?;
        let together = (READ_BYTES / panel_bytes).max(1);
        // The rows of a panel: its first, and how many; the last of a matrix may be short.
        let rows_of = |panel: usize| {
            let within = panel % panels * PANEL_ROWS;
            (panel / panels * rows + within, PANEL_ROWS.min(rows - within))
        };
        // What a thread has read of the file.
        let scratch = PerMember::<Vec<u8>>::new(team.threads());
        let piece_bytes = together * panel_bytes;
        team.try_each_chunk(buffer.bytes_mut(), piece_bytes, |member, i, piece| {
            let file = &mut *scratch.of(member);
            let first = i * together;
            let last = first + piece.len() / panel_bytes - 1;
            let (start, (end, more)) = (rows_of(first).0, rows_of(last));
            let len = (end + more - start) * row_bytes;
            lengthen(READING, file, len)?;
            source.read_at((start * row_bytes) as u64, &mut file[..len])?;
            for (panel, out) in (first..).zip(piece.chunks_exact_mut(panel_bytes)) {
                let (row, count) = rows_of(panel);
                let rows = &file[(row - start) * row_bytes..];
                interleave(format, rows, row_bytes, count, out);
            }
            Ok::<(), LoadError>(())
        })?;
        Ok(matrix(Weights::Resident(buffer)))
    }

    /// The addresses of the weights, if they lie in memory of their own.
    pub(crate) fn resident(&self) -> Option<Range<usize>> {
        let Weights::Resident(buffer) = &self.weights else { return None };
        let bytes = buffer.bytes().as_ptr_range();
        Some(bytes.start as usize..bytes.end as usize)
    }

    /// The weights. Those of a streamed layer are there while it is computed.
    fn look(&self) -> Look<'_> {
        let (bytes, in_panels) = match &self.weights {
            Weights::Resident(buffer) => (Lying::Still(buffer.bytes()), self.format.is_in_panels()),
            Weights::Mapped(mapped) => (Lying::Still(mapped.bytes()), false),
            Weights::Staged(staged) => (Lying::Staged(staged.look()), false),
        };
        Look { bytes, in_panels }
    }

    /// Hands the panel that holds weight row `row`, and that row's lane there, to `take`, with at most `most - 1` panels
    /// of the same matrix that follow it.
    fn panels<R>(&self, look: &Look<'_>, row: usize, most: usize, take: impl FnOnce(&[u8], usize) -> R) -> R {
        let (matrix, within) = (row / self.stacked, row % self.stacked);
        let (first, lane) = (within / PANEL_ROWS, within % PANEL_ROWS);
        let panels = self.stacked.div_ceil(PANEL_ROWS);
        let (count, bytes) = (most.min(panels - first), self.panel_bytes());
        let weights = look.bytes();
        if look.in_panels {
            return take(&weights[(matrix * panels + first) * bytes..][..count * bytes], lane);
        }
        PANELS.with_borrow_mut(|all| {
            all.clear();
            all.resize(count * bytes, 0);
            for (panel, first) in all.chunks_exact_mut(bytes).zip((first * PANEL_ROWS..).step_by(PANEL_ROWS))
            {
                let count = PANEL_ROWS.min(self.stacked - first);
                let rows = &weights[(matrix * self.stacked + first) * self.row_bytes..];
                interleave(self.format, rows, self.row_bytes, count, panel);
            }
            take(all, lane)
        })
    }

    /// Bytes of a panel.
    fn panel_bytes(&self) -> usize {
        PANEL_ROWS * self.row_bytes
    }

    /// Writes weight row `row` as f32.
    pub(crate) fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        let look = self.look();
        if !self.format.is_in_panels() {
            let bytes = &look.bytes()[row * self.row_bytes..][..self.row_bytes];
            return with_row_format!(self.format, |F| F::dequantise(bytes, out));
        }
        self.panels(&look, row, 1, |panel, lane| {
            with_panel_format!(
                self.format, |F| panels::dequantise_row::<F>(panel, lane, out),
                else with_float_format!(self.format, |F| panels::widen_row::<F>(panel, lane, out), else ())
            );
        });
    }

    /// Hands weight rows to `take` as f32, one after another; `scratch` is memory for some of them.
    pub(crate) fn widen_rows(
        &self,
        rows: Range<usize>,
        scratch: &mut Vec<f32>,
        mut take: impl FnMut(usize, &[f32]),
    ) {
        let width = self.width;
        // A panel is taken apart once for all of its rows.
        let together = if self.format.is_in_panels() { PANEL_ROWS } else { 1 };
        scratch.resize(together * width, 0.0);
        let look = self.look();
        let mut row = rows.start;
        while row < rows.end {
            let mut lanes = 0..1;
            if self.format.is_in_panels() {
                let lane = self.panels(&look, row, 1, |panel, lane| {
                    with_panel_format!(
                        self.format, |F| panels::dequantise::<F>(panel, scratch),
                        else with_float_format!(self.format, |F| panels::widen::<F>(panel, scratch), else ())
                    );
                    lane
                });
                lanes = lane..PANEL_ROWS.min(lane + rows.end - row);
            } else {
                self.dequantise_row(row, scratch);
            }
            for lane in lanes {
                take(row, &scratch[lane * width..][..width]);
                row += 1;
            }
        }
    }

    /// Multiplies weight rows `chunk` with all rows of activations: column `o` of `out` gets row `o`'s products. The
    /// rows belong to one of the matrices that are stacked.
    pub(crate) fn multiply(
        &self,
        simd: Simd,
        chunk: Range<usize>,
        input: Activations<'_>,
        passing: Passing,
        out: &Columns<'_>,
    ) {
        let look = self.look();
        let count = passing.count(input.rows);
        let rounded = |r: usize| input.rounded.row(passing.input(input.routes, r));
        let float = |r: usize| &input.float[passing.input(input.routes, r) * self.width..][..self.width];
        let write = |r: usize, o: usize, products: &[f32]| {
            let (row, column) = passing.output(input.routes, r, o);
            // SAFETY: the columns are this piece's own, and the reference ends here.
            unsafe { out.part(row, column..column + products.len()) }.copy_from_slice(products);
        };
        with_panel_format!(
            self.format,
            |F| match count {
                TILED_ROWS.. => self.multiply_tiled::<F>(&look, simd, chunk, count, rounded, write),
                _ => self.multiply_quantised::<F>(&look, simd, chunk, count, rounded, write),
            },
            else with_float_format!(
                self.format, |F| self.multiply_floats::<F>(&look, simd, chunk, count, float, write),
                else with_row_format!(self.format, |F| self.multiply_rows::<F>(&look, simd, chunk, input, passing, out))
            )
        );
    }

    fn multiply_tiled<'a, F: PanelFormat>(
        &self,
        look: &Look<'_>,
        simd: Simd,
        chunk: Range<usize>,
        count: usize,
        row: impl Fn(usize) -> ActivationRow<'a>,
        write: impl Fn(usize, usize, &[f32]),
    ) {
        self.each_panels(look, panels::panels_together(simd), chunk, count, write, |panels, sums| {
            panels::tiled_products::<F>(simd, panels, self.panel_bytes(), &row, sums);
        });
    }

    fn multiply_quantised<'a, F: PanelFormat>(
        &self,
        look: &Look<'_>,
        simd: Simd,
        chunk: Range<usize>,
        count: usize,
        row: impl Fn(usize) -> ActivationRow<'a>,
        write: impl Fn(usize, usize, &[f32]),
    ) {
        // What passes over a panel once needs no memory that is near.
        let piece = if count > MOST_ROWS { PIECE_VALUES.min(self.width) } else { self.width };
        self.each_panels(look, 1, chunk, count, write, |panel, sums| {
            for start in (0..self.width).step_by(piece) {
                let end = self.width.min(start + piece);
                let panel = &panel[panel.len() * start / self.width..panel.len() * end / self.width];
                in_blocks!(0..count, |r, R| {
                    let rows: [_; R] =
                        std::array::from_fn(|i| &row(r + i)[start / panels::PART..end / panels::PART]);
                    let (sums, _) = sums[r..r + R].as_chunks_mut::<R>();
                    panels::products::<F, R>(simd, panel, rows, &mut sums[0]);
                });
            }
        });
    }

    fn multiply_floats<'a, F: FloatFormat>(
        &self,
        look: &Look<'_>,
        simd: Simd,
        chunk: Range<usize>,
        count: usize,
        row: impl Fn(usize) -> &'a [f32],
        write: impl Fn(usize, usize, &[f32]),
    ) {
        self.each_panels(look, 1, chunk, count, write, |panel, sums| {
            in_blocks!(0..count, |r, R| {
                let products =
                    panels::float_products::<F, R>(simd, panel, std::array::from_fn(|i| row(r + i)));
                sums[r..r + R].copy_from_slice(&products);
            });
        });
    }

    /// Hands the panels of weight rows `chunk` to `multiply`, at most `together` at a time, with zeros to which it is to
    /// add the products of each of `count` rows of activations: as many times 16 as `together`. What is there afterwards
    /// goes to `write`, with the row of activations and the first weight row.
    fn each_panels(
        &self,
        look: &Look<'_>,
        together: usize,
        chunk: Range<usize>,
        count: usize,
        write: impl Fn(usize, usize, &[f32]),
        multiply: impl Fn(&[u8], &mut [[f32; PANEL_ROWS]]),
    ) {
        SUMS.with_borrow_mut(|sums| {
            let mut o = chunk.start;
            while o < chunk.end {
                let left = chunk.end - o;
                o += self.panels(look, o, together.min(left.div_ceil(PANEL_ROWS)), |panels, first| {
                    let lanes = first..(panels.len() / self.row_bytes).min(first + left);
                    sums.clear();
                    sums.resize(count * together, [0.0; PANEL_ROWS]);
                    multiply(panels, sums);
                    for (r, products) in sums.chunks_exact(together).enumerate() {
                        write(r, o, &products.as_flattened()[lanes.clone()]);
                    }
                    lanes.len()
                });
            }
        });
    }

    fn multiply_rows<F: RowFormat>(
        &self,
        look: &Look<'_>,
        simd: Simd,
        chunk: Range<usize>,
        input: Activations<'_>,
        passing: Passing,
        out: &Columns<'_>,
    ) {
        let row = |r: usize| input.rounded.row(passing.input(input.routes, r));
        for tile in (0..passing.count(input.rows)).step_by(TILE_ROWS) {
            let end = passing.count(input.rows).min(tile + TILE_ROWS);
            for o in chunk.clone() {
                let weights = &look.bytes()[o * self.row_bytes..][..self.row_bytes];
                let mut r = tile;
                while r + 4 <= end {
                    let inputs = [row(r), row(r + 1), row(r + 2), row(r + 3)];
                    let products = F::products::<4>(simd, weights, inputs);
                    for (i, product) in products.into_iter().enumerate() {
                        out.set(passing.output(input.routes, r + i, o), product);
                    }
                    r += 4;
                }
                while r < end {
                    let [product] = F::products::<1>(simd, weights, [row(r)]);
                    out.set(passing.output(input.routes, r, o), product);
                    r += 1;
                }
            }
        }
    }
}

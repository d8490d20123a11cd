//! Products in which every head has a matrix of its own.
//!
//! Weights are widened on the device, some heads at a time, and multiplied head by head in one call: what that takes beside
//! the workspace is bounded, and nothing stays.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::matrix::CandleMatrix;
use crate::backend::HeadRows;

/// Weights that are widened at a time: 64 MiB of f32.
const WIDENED_VALUES: usize = 16 << 20;

/// Most lists of rows that are kept: a model has a few.
const KEPT_LISTS: usize = 64;

/// Lists of the rows of some heads, on the device; they are the same in every layer and step.
#[derive(Default)]
pub(super) struct RowLists(Vec<(HeadRows, Range<usize>, Tensor)>);

impl RowLists {
    /// The rows of the heads `which`, one head after another.
    fn of(&mut self, of: HeadRows, which: Range<usize>, device: &Device) -> Result<Tensor> {
        if let Some((.., rows)) = self.0.iter().find(|known| (known.0, &known.1) == (of, &which)) {
            return Ok(rows.clone());
        }
        let first = |head: usize| (head * of.stride + of.first) as u32;
        let rows: Vec<u32> =
            which.clone().flat_map(|head| first(head)..first(head) + of.count as u32).collect();
        let rows = Tensor::from_vec(rows, which.len() * of.count, device)?;
        if self.0.len() >= KEPT_LISTS {
            self.0.clear();
        }
        self.0.push((of, which, rows.clone()));
        Ok(rows)
    }
}

/// Multiplies each head's part of `input` with its rows of the matrix: `[rows, heads * width] -> [rows, heads * count]`, or,
/// `transposed`, `[rows, heads * count] -> [rows, heads * width]`.
pub(super) fn linear(
    lists: &mut RowLists,
    input: &Tensor,
    matrix: &CandleMatrix,
    of: HeadRows,
    transposed: bool,
) -> Result<Tensor> {
    let (rows, all) = input.dims2()?;
    let heads = of.heads;
    let input = input.reshape((rows, heads, all / heads.max(1)))?.transpose(0, 1)?.contiguous()?;
    let width = matrix.width()?;
    let together = match matrix {
        CandleMatrix::Float(_) => heads,
        _ => (WIDENED_VALUES / (of.count * width).max(1)).clamp(1, heads.max(1)),
    };
    let mut parts = Vec::new();
    for first in (0..heads).step_by(together.max(1)) {
        let which = first..heads.min(first + together);
        let weights = weights(lists, matrix, of, which.clone(), width)?;
        let input = input.narrow(0, first, which.len())?.to_dtype(weights.dtype())?;
        let product = match transposed {
            true => input.matmul(&weights)?,
            false => input.matmul(&weights.transpose(1, 2)?)?,
        };
        parts.push(product.to_dtype(DType::F32)?);
    }
    let product = Tensor::cat(&parts, 0)?;
    let out = product.dim(2)?;
    product.transpose(0, 1)?.contiguous()?.reshape((rows, heads * out))
}

/// The rows of the heads `which`, `[heads, count, width]`.
fn weights(
    lists: &mut RowLists,
    matrix: &CandleMatrix,
    of: HeadRows,
    which: Range<usize>,
    width: usize,
) -> Result<Tensor> {
    match matrix {
        CandleMatrix::Quantised(tensor) => {
            let rows = lists.of(of, which.clone(), &tensor.device())?;
            tensor.embedding(&rows)?.reshape((which.len(), of.count, width))
        }
        CandleMatrix::Float(tensor) => tensor
            .reshape((of.heads, of.stride, width))?
            .narrow(0, which.start, which.len())?
            .narrow(1, of.first, of.count),
        CandleMatrix::Experts(_) => candle_core::bail!("heads have no experts"),
    }
}

/// Puts channels of the heads of several inputs side by side, head by head.
pub(super) fn join(heads: usize, parts: &[(&Tensor, Range<usize>)]) -> Result<Tensor> {
    let part = |(rows, channels): &(&Tensor, Range<usize>)| {
        let (count, width) = rows.dims2()?;
        rows.reshape((count, heads, width / heads))?.narrow(2, channels.start, channels.len())
    };
    let parts: Vec<Tensor> = parts.iter().map(part).collect::<Result<_>>()?;
    let joined = match &parts[..] {
        [one] => one.contiguous()?,
        all => Tensor::cat(all, 2)?,
    };
    let (rows, heads, width) = joined.dims3()?;
    joined.reshape((rows, heads * width))
}

//! Attention over pages, with candle's tensors.

use brigade_shard::cost::PAGE_TOKENS;
use candle_core::{D, DType, Device, Result, Tensor};

use super::CandleCache;
use crate::backend::{AttentionShape, Batch, Span};

const PAGE: usize = PAGE_TOKENS as usize;

/// Rows of a sequence whose scores exist at a time: `heads x TILE_ROWS x positions` f32.
pub(super) const TILE_ROWS: usize = 32;

/// Writes `rows`, `[rows, width]`, to their slots of `cache`, `[pages * PAGE_TOKENS, width]`.
pub(super) fn store(cache: &Tensor, batch: &Batch, rows: &Tensor) -> Result<()> {
    let rows = rows.to_dtype(cache.dtype())?;
    for span in &batch.spans {
        let (mut row, mut position) = (span.rows.start, span.start);
        while row < span.rows.end {
            let count = (PAGE - position % PAGE).min(span.rows.end - row);
            let slot = span.pages[position / PAGE] as usize * PAGE + position % PAGE;
            cache.slice_set(&rows.narrow(0, row, count)?.contiguous()?, 0, slot)?;
            row += count;
            position += count;
        }
    }
    Ok(())
}

/// Computes `[rows, heads * value_width]` from queries `[rows, heads * key_width]`.
pub(super) fn attend(
    cache: &CandleCache,
    batch: &Batch,
    shape: AttentionShape,
    sinks: Option<&Tensor>,
    queries: &Tensor,
    device: &Device,
) -> Result<Tensor> {
    let mut parts = Vec::new();
    for span in &batch.spans {
        let pages = Tensor::from_slice(&span.pages, span.pages.len(), device)?;
        let keys = gather(&cache.keys, cache, &pages, span)?;
        let values = gather(&cache.values, cache, &pages, span)?;
        for first in (0..span.rows.len()).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(span.rows.len() - first);
            let queries = queries.narrow(0, span.rows.start + first, rows)?;
            parts.push(attend_tile(cache, shape, sinks, &queries, span.start + first, &keys, &values)?);
        }
    }
    Tensor::cat(&parts, 0)
}

/// A sequence's keys or values, `[kv_heads, positions, width]` in f32.
fn gather(all: &Tensor, cache: &CandleCache, pages: &Tensor, span: &Span) -> Result<Tensor> {
    let (slots, width) = all.dims2()?;
    let positions = span.start + span.rows.len();
    let kv_heads = cache.shape.kv_heads;
    all.reshape((slots / PAGE, PAGE * width))?
        .index_select(pages, 0)?
        .reshape((span.pages.len() * PAGE, kv_heads, width / kv_heads))?
        .narrow(0, 0, positions)?
        .to_dtype(DType::F32)?
        .transpose(0, 1)?
        .contiguous()
}

fn attend_tile(
    cache: &CandleCache,
    shape: AttentionShape,
    sinks: Option<&Tensor>,
    queries: &Tensor,
    first: usize,
    keys: &Tensor,
    values: &Tensor,
) -> Result<Tensor> {
    let rows = queries.dim(0)?;
    let (kv_heads, key_width, value_width) =
        (cache.shape.kv_heads, cache.shape.key_width, cache.shape.value_width);
    let group = shape.heads / kv_heads;
    // Positions past the last row's are visible to none.
    let positions = first + rows;
    let (keys, values) = (keys.narrow(1, 0, positions)?, values.narrow(1, 0, positions)?);
    let queries = queries
        .reshape((rows, kv_heads, group, key_width))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((kv_heads, group * rows, key_width))?;
    let scores = (queries.matmul(&keys.transpose(1, 2)?.contiguous()?)? * f64::from(shape.scale))?;
    let scores = scores.reshape((kv_heads, group, rows, positions))?;
    let scores = scores.broadcast_add(&mask(shape, rows, first, queries.device())?)?;
    let largest = scores.max_keepdim(D::Minus1)?;
    let weights = match sinks {
        None => {
            let weights = scores.broadcast_sub(&largest)?.exp()?;
            weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?
        }
        Some(sinks) => {
            let sinks = sinks.reshape((kv_heads, group, 1, 1))?.broadcast_as(largest.shape())?;
            let largest = largest.maximum(&sinks)?;
            let weights = scores.broadcast_sub(&largest)?.exp()?;
            let all = (weights.sum_keepdim(D::Minus1)? + (sinks - largest)?.exp()?)?;
            weights.broadcast_div(&all)?
        }
    };
    weights
        .reshape((kv_heads, group * rows, positions))?
        .matmul(&values.contiguous()?)?
        .reshape((kv_heads, group, rows, value_width))?
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((rows, shape.heads * value_width))
}

/// 0 where a row sees a position and minus infinity where it does not, `[rows, positions]`.
fn mask(shape: AttentionShape, rows: usize, first: usize, device: &Device) -> Result<Tensor> {
    let positions = first + rows;
    let value = |i: usize| {
        let (position, row) = (i % positions, first + i / positions);
        if (shape.visibility.first(row)..=row).contains(&position) { 0.0 } else { f32::NEG_INFINITY }
    };
    let values: Vec<f32> = (0..rows * positions).map(value).collect();
    Tensor::from_vec(values, (rows, positions), device)
}

//! Attention over pages, with candle's tensors.

use brigade_shard::cost::PAGE_TOKENS;
use brigade_shard::spec::Visibility;
use candle_core::{D, DType, Device, Result, Tensor};

use super::CandleCache;
use crate::backend::{AttentionShape, Batch, Span};

const PAGE: usize = PAGE_TOKENS as usize;

/// Scores of a tile of rows, over all heads: 32 MiB of f32. A row is a tile in any case.
const TILE_SCORES: usize = 8 << 20;

/// Values of masks that are kept for a step's other layers: 32 MiB of f32.
const KEPT_MASKS: usize = 8 << 20;

/// Widths of heads that Metal has a fused kernel for, of one row of queries.
const FUSED_WIDTHS: [usize; 5] = [32, 64, 96, 128, 256];

/// What a step's layers have in common, on the device: made by the first that needs it.
#[derive(Default)]
pub(super) struct StepTensors {
    batch: Batch,
    /// Pages, by the span's place in the batch and the first of its pages that is meant.
    pages: Vec<((usize, usize), Tensor)>,
    masks: Vec<(Mask, Tensor)>,
    /// Values of all masks.
    masked: usize,
}

/// What a mask is for: rows at `first..first + rows` and positions from `low` up to the last row's.
#[derive(Clone, Copy, PartialEq)]
struct Mask {
    visibility: Visibility,
    low: usize,
    first: usize,
    rows: usize,
}

impl StepTensors {
    /// Forgets what belongs to another step.
    fn begin(&mut self, batch: &Batch) {
        if self.batch != *batch {
            *self = StepTensors { batch: batch.clone(), ..StepTensors::default() };
        }
    }

    fn pages(
        &mut self,
        index: usize,
        span: &Span,
        which: std::ops::Range<usize>,
        device: &Device,
    ) -> Result<Tensor> {
        let key = (index, which.start);
        if let Some((_, pages)) = self.pages.iter().find(|known| known.0 == key) {
            return Ok(pages.clone());
        }
        let pages = Tensor::from_slice(&span.pages[which.clone()], which.len(), device)?;
        self.pages.push((key, pages.clone()));
        Ok(pages)
    }

    /// 0 where a row sees a position and minus infinity where it does not, `[rows, positions]`.
    fn mask(&mut self, mask: Mask, device: &Device) -> Result<Tensor> {
        if let Some((_, known)) = self.masks.iter().find(|known| known.0 == mask) {
            return Ok(known.clone());
        }
        let Mask { visibility, low, first, rows } = mask;
        let positions = first + rows - low;
        let mut values = vec![f32::NEG_INFINITY; rows * positions];
        for (row, values) in (first..).zip(values.chunks_exact_mut(positions)) {
            values[visibility.first(row).max(low) - low..=row - low].fill(0.0);
        }
        let tensor = Tensor::from_vec(values, (rows, positions), device)?;
        if self.masked + rows * positions <= KEPT_MASKS {
            self.masked += rows * positions;
            self.masks.push((mask, tensor.clone()));
        }
        Ok(tensor)
    }
}

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
    step: &mut StepTensors,
    cache: &CandleCache,
    batch: &Batch,
    shape: AttentionShape,
    sinks: Option<&Tensor>,
    queries: &Tensor,
) -> Result<Tensor> {
    step.begin(batch);
    let mut parts = Vec::new();
    for (index, span) in batch.spans.iter().enumerate() {
        // Pages before the first that any of the rows sees are left alone.
        let low = shape.visibility.first(span.start) / PAGE * PAGE;
        let end = span.start + span.rows.len();
        let pages = step.pages(index, span, low / PAGE..end.div_ceil(PAGE), queries.device())?;
        let fused = sinks.is_none() && span.rows.len() == 1 && is_fused(cache, queries.device());
        let dtype = if fused { cache.keys.dtype() } else { DType::F32 };
        let keys = gather(&cache.keys, cache.shape.kv_heads, &pages, end - low, dtype)?;
        let values = match &cache.values {
            Some(values) => gather(values, cache.shape.kv_heads, &pages, end - low, dtype)?,
            // The last channels of a key.
            None => {
                let skipped = cache.shape.key_width - cache.shape.value_width;
                keys.narrow(2, skipped, cache.shape.value_width)?.contiguous()?
            }
        };
        let cached = Cached { keys, values, low };
        if fused {
            parts.push(attend_fused(&cached, shape, span, queries)?);
            continue;
        }
        let most = (TILE_SCORES / (shape.heads * (end - low)).max(1)).max(1);
        for row in (0..span.rows.len()).step_by(most) {
            let rows = most.min(span.rows.len() - row);
            let queries = queries.narrow(0, span.rows.start + row, rows)?;
            parts.push(attend_tile(step, &cached, shape, sinks, &queries, span.start + row)?);
        }
    }
    Tensor::cat(&parts, 0)
}

/// A sequence's keys and values from position `low` on: `[kv_heads, positions, width]`.
struct Cached {
    keys: Tensor,
    values: Tensor,
    low: usize,
}

impl Cached {
    /// Those of the positions `from..to`.
    fn between(&self, from: usize, to: usize) -> Result<(Tensor, Tensor)> {
        let part = |all: &Tensor| all.narrow(1, from - self.low, to - from);
        Ok((part(&self.keys)?, part(&self.values)?))
    }
}

/// A sequence's keys or values, `[kv_heads, positions, width]`.
fn gather(all: &Tensor, kv_heads: usize, pages: &Tensor, positions: usize, dtype: DType) -> Result<Tensor> {
    let (slots, width) = all.dims2()?;
    all.reshape((slots / PAGE, PAGE * width))?
        .index_select(pages, 0)?
        .reshape((pages.dim(0)? * PAGE, kv_heads, width / kv_heads))?
        .narrow(0, 0, positions)?
        .to_dtype(dtype)?
        .transpose(0, 1)?
        .contiguous()
}

/// Whether one row's attention to the cache is one kernel.
fn is_fused(cache: &CandleCache, device: &Device) -> bool {
    let shape = &cache.shape;
    device.is_metal() && shape.key_width == shape.value_width && FUSED_WIDTHS.contains(&shape.key_width)
}

/// The attention of a span of one row.
fn attend_fused(cached: &Cached, shape: AttentionShape, span: &Span, queries: &Tensor) -> Result<Tensor> {
    let (keys, values) = cached.between(shape.visibility.first(span.start), span.start + 1)?;
    let queries = queries.narrow(0, span.rows.start, 1)?;
    let width = queries.dim(1)? / shape.heads;
    let queries = queries.reshape((1, shape.heads, 1, width))?.to_dtype(keys.dtype())?.contiguous()?;
    let (keys, values) = (keys.unsqueeze(0)?, values.unsqueeze(0)?);
    candle_nn::ops::sdpa(&queries, &keys, &values, None, false, shape.scale, 1.0)?
        .to_dtype(DType::F32)?
        .reshape((1, shape.heads * width))
}

/// The attention of the rows from position `first` on.
fn attend_tile(
    step: &mut StepTensors,
    cached: &Cached,
    shape: AttentionShape,
    sinks: Option<&Tensor>,
    queries: &Tensor,
    first: usize,
) -> Result<Tensor> {
    let rows = queries.dim(0)?;
    // Positions past the last row's are visible to none.
    let (low, end) = (shape.visibility.first(first), first + rows);
    let (keys, values) = cached.between(low, end)?;
    let (kv_heads, positions, key_width) = keys.dims3()?;
    let (group, value_width) = (shape.heads / kv_heads, values.dim(2)?);
    let queries = queries
        .reshape((rows, kv_heads, group, key_width))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((kv_heads, group * rows, key_width))?;
    let scores = (queries.matmul(&keys.transpose(1, 2)?)? * f64::from(shape.scale))?;
    let scores = scores.reshape((kv_heads, group, rows, positions))?;
    let scores = match rows {
        // It sees all of them.
        1 => scores,
        _ => {
            let mask = Mask { visibility: shape.visibility, low, first, rows };
            scores.broadcast_add(&step.mask(mask, scores.device())?)?
        }
    };
    let weights = match sinks {
        None => candle_nn::ops::softmax_last_dim(&scores)?,
        Some(sinks) => {
            let largest = scores.max_keepdim(D::Minus1)?;
            let sinks = sinks.reshape((kv_heads, group, 1, 1))?.broadcast_as(largest.shape())?;
            let largest = largest.maximum(&sinks)?;
            let weights = scores.broadcast_sub(&largest)?.exp()?;
            let all = (weights.sum_keepdim(D::Minus1)? + (sinks - largest)?.exp()?)?;
            weights.broadcast_div(&all)?
        }
    };
    weights
        .reshape((kv_heads, group * rows, positions))?
        .matmul(&values)?
        .reshape((kv_heads, group, rows, value_width))?
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((rows, shape.heads * value_width))
}

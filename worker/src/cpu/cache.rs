//! Keys and values of one layer, in pages.

use brigade_proto::control::CacheDtype;
use brigade_shard::cost::PAGE_TOKENS;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::panels::PANEL_ROWS;
use crate::backend::{BackendError, Batch, CacheShape};
use crate::weights::WeightBuffer;

/// Tokens of a page.
pub(crate) const PAGE: usize = PAGE_TOKENS as usize;

/// Keys and values of one layer: for each page and head, those of the page's tokens.
///
/// Keys lie in panels of 16 tokens as a matrix of floating-point numbers does, so that queries are multiplied
/// with them by the same kernels. Values lie token by token, and so do keys that hold their values.
pub struct CpuCache {
    pub(crate) shape: CacheShape,
    keys: Numbers,
    /// `None` where they are parts of the keys.
    values: Option<Numbers>,
}

/// Numbers in one allocation of zeros, so that pages never written take no memory.
struct Numbers {
    buffer: WeightBuffer,
    dtype: CacheDtype,
}

impl Numbers {
    fn zeroed(len: usize, dtype: CacheDtype) -> Result<Numbers, BackendError> {
        let buffer = WeightBuffer::zeroed_to("make room for the cache", len * size(dtype))?;
        Ok(Numbers { buffer, dtype })
    }

    /// Writes numbers that lie `stride` apart, the first at `at`.
    fn write(&mut self, at: usize, stride: usize, numbers: &[f32]) {
        match self.dtype {
            CacheDtype::F16 => {
                let mut halves = [f16::ZERO; PANEL_ROWS];
                for (i, numbers) in numbers.chunks(PANEL_ROWS).enumerate() {
                    let halves = &mut halves[..numbers.len()];
                    halves.convert_from_f32_slice(numbers);
                    let out = &mut self.buffer.bytes_mut()[2 * (at + i * PANEL_ROWS * stride)..];
                    for (half, out) in halves.iter().zip(out.chunks_mut(2 * stride)) {
                        out[..2].copy_from_slice(&half.to_le_bytes());
                    }
                }
            }
            CacheDtype::F32 => {
                for (number, out) in
                    numbers.iter().zip(self.buffer.bytes_mut()[4 * at..].chunks_mut(4 * stride))
                {
                    out[..4].copy_from_slice(&number.to_le_bytes());
                }
            }
        }
    }

    fn read(&self, at: usize, len: usize) -> &[u8] {
        &self.buffer.bytes()[at * size(self.dtype)..][..len * size(self.dtype)]
    }
}

/// Bytes of a number.
fn size(dtype: CacheDtype) -> usize {
    match dtype {
        CacheDtype::F16 => 2,
        CacheDtype::F32 => 4,
    }
}

impl CpuCache {
    /// An empty cache.
    ///
    /// Fails where the system gives no memory.
    pub(crate) fn new(shape: CacheShape) -> Result<CpuCache, BackendError> {
        let rows = shape.pages * shape.kv_heads * PAGE;
        let numbers = |width| Numbers::zeroed(rows * width, shape.dtype);
        let values = if shape.values_in_keys { None } else { Some(numbers(shape.value_width)?) };
        Ok(CpuCache { shape, keys: numbers(shape.key_width)?, values })
    }

    /// The first of a head's tokens on a page.
    fn first(&self, page: u32, head: usize) -> usize {
        (page as usize * self.shape.kv_heads + head) * PAGE
    }

    /// Writes the rows' keys and values (`[rows, kv_heads * width]`) to their sequences' pages; values that are parts of
    /// the keys are not written again.
    pub(crate) fn store(&mut self, batch: &Batch, keys: &[f32], values: &[f32]) {
        let CacheShape { kv_heads, key_width, value_width, .. } = self.shape;
        for span in &batch.spans {
            for (row, position) in span.rows.clone().zip(span.start..) {
                let page = span.pages[position / PAGE];
                for head in 0..kv_heads {
                    let (first, token) = (self.first(page, head), position % PAGE);
                    let part = row * kv_heads + head;
                    let key = &keys[part * key_width..][..key_width];
                    match &mut self.values {
                        Some(all) => {
                            let panel = (first + token / PANEL_ROWS * PANEL_ROWS) * key_width;
                            self.keys.write(panel + token % PANEL_ROWS, PANEL_ROWS, key);
                            let value = &values[part * value_width..][..value_width];
                            all.write((first + token) * value_width, 1, value);
                        }
                        None => self.keys.write((first + token) * key_width, 1, key),
                    }
                }
            }
        }
    }

    /// A head's keys on a page: panels of tokens, or token by token where they hold their values.
    pub(crate) fn keys(&self, page: u32, head: usize) -> &[u8] {
        let width = self.shape.key_width;
        self.keys.read(self.first(page, head) * width, PAGE * width)
    }

    /// A head's values on a page, token by token; a token's begin at [`value_stride`](Self::value_stride) numbers after
    /// those of the one before.
    pub(crate) fn values(&self, page: u32, head: usize) -> &[u8] {
        let CacheShape { key_width, value_width, .. } = self.shape;
        match &self.values {
            Some(values) => values.read(self.first(page, head) * value_width, PAGE * value_width),
            None => {
                let before = key_width - value_width;
                self.keys.read(self.first(page, head) * key_width + before, PAGE * key_width - before)
            }
        }
    }

    /// Numbers from a token's values to the next one's.
    pub(crate) fn value_stride(&self) -> usize {
        if self.values.is_some() { self.shape.value_width } else { self.shape.key_width }
    }
}

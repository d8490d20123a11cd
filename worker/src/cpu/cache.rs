//! Keys and values of one layer, in pages.

use brigade_proto::control::CacheDtype;
use brigade_shard::cost::PAGE_TOKENS;
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::backend::{Batch, CacheShape};

/// Tokens of a page.
pub(crate) const PAGE: usize = PAGE_TOKENS as usize;

/// Keys and values of one layer: for each page and head a block of rows, one per token of the page.
pub struct CpuCache {
    pub(crate) shape: CacheShape,
    keys: Values,
    /// `None` where they are parts of the keys.
    values: Option<Values>,
}

/// One allocation of zeros, so that pages never written take no memory.
enum Values {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl Values {
    fn zeroed(len: usize, dtype: CacheDtype) -> Values {
        match dtype {
            CacheDtype::F16 => Values::F16(vec![0; len]),
            CacheDtype::F32 => Values::F32(vec![0.0; len]),
        }
    }

    fn write(&mut self, at: usize, row: &[f32]) {
        match self {
            Values::F16(all) => {
                let out: &mut [f16] = all[at..at + row.len()].reinterpret_cast_mut();
                out.convert_from_f32_slice(row);
            }
            Values::F32(all) => all[at..at + row.len()].copy_from_slice(row),
        }
    }

    fn read<'a>(&'a self, at: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        match self {
            Values::F16(all) => {
                let halves: &[f16] = all[at..at + scratch.len()].reinterpret_cast();
                halves.convert_to_f32_slice(scratch);
                scratch
            }
            Values::F32(all) => &all[at..at + scratch.len()],
        }
    }
}

impl CpuCache {
    /// An empty cache.
    pub(crate) fn new(shape: CacheShape) -> CpuCache {
        let rows = shape.pages * shape.kv_heads * PAGE;
        CpuCache {
            shape,
            keys: Values::zeroed(rows * shape.key_width, shape.dtype),
            values: (!shape.values_in_keys).then(|| Values::zeroed(rows * shape.value_width, shape.dtype)),
        }
    }

    fn row(&self, page: u32, head: usize) -> usize {
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
                    let at = self.row(page, head) + position % PAGE;
                    let part = row * kv_heads + head;
                    self.keys.write(at * key_width, &keys[part * key_width..][..key_width]);
                    if let Some(all) = &mut self.values {
                        all.write(at * value_width, &values[part * value_width..][..value_width]);
                    }
                }
            }
        }
    }

    /// A head's keys on a page, `[PAGE, key_width]`; `scratch` has that size.
    pub(crate) fn keys<'a>(&'a self, page: u32, head: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        self.keys.read(self.row(page, head) * self.shape.key_width, scratch)
    }

    /// A head's values on a page, `[PAGE, value_width]`; `scratch` has that size. Where they are parts of the keys, there
    /// are none.
    pub(crate) fn values<'a>(&'a self, page: u32, head: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let at = self.row(page, head) * self.shape.value_width;
        self.values.as_ref().map_or(&[], |values| values.read(at, scratch))
    }
}

//! Attention over the paged cache.
//!
//! The softmax is taken page by page: each row and head keeps the largest score so far, the sum of the exponentials and
//! the weighted sum of the values, and all three are rescaled when a page brings a larger score. Pages begin at fixed
//! positions, so a row's result does not depend on how its prompt was cut or on which rows are computed beside it.

use std::ops::Range;

use rayon::prelude::*;

use super::cache::{CpuCache, PAGE};
use super::columns::Columns;
use crate::backend::{AttentionShape, Batch};
use crate::exponential::exp;
use crate::simd::{LANES, Simd, dot, kernel};

/// Rows of a sequence that share the reading of a page.
const TILE_ROWS: usize = 16;

/// Query heads that share the reading of a page; those of one key and value head may be so many that several threads
/// should take them.
const TILE_HEADS: usize = 16;

/// Rows of one sequence and query heads of one key and value head.
struct Tile<'a> {
    /// The pages that its rows see something of.
    pages: &'a [u32],
    /// Position of the first page's first token.
    pages_start: usize,
    /// First row, in the step.
    row: usize,
    rows: usize,
    /// Position of the first row.
    position: usize,
    kv_head: usize,
    heads: Range<usize>,
    /// Sinks of the query heads.
    sinks: Option<&'a [f32]>,
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Largest score and sum of exponentials, per row and head.
    states: Vec<(f32, f32)>,
}

/// Computes `[rows, heads * value_width]` from queries `[rows, heads * key_width]`.
pub(crate) fn attend(
    simd: Simd,
    cache: &CpuCache,
    batch: &Batch,
    shape: AttentionShape,
    sinks: Option<&[f32]>,
    queries: &[f32],
    out: &mut [f32],
) {
    let kv_heads = cache.shape.kv_heads;
    let group = shape.heads / kv_heads;
    let mut tiles = Vec::new();
    for span in &batch.spans {
        for first in (0..span.rows.len()).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(span.rows.len() - first);
            let position = span.start + first;
            let first_page = shape.visibility.first(position) / PAGE;
            let pages = &span.pages[first_page..(position + rows).div_ceil(PAGE)];
            for kv_head in 0..kv_heads {
                let end = (kv_head + 1) * group;
                tiles.extend((kv_head * group..end).step_by(TILE_HEADS).map(|head| {
                    let heads = head..end.min(head + TILE_HEADS);
                    Tile {
                        pages,
                        pages_start: first_page * PAGE,
                        row: span.rows.start + first,
                        rows,
                        position,
                        kv_head,
                        sinks: sinks.map(|sinks| &sinks[heads.clone()]),
                        heads,
                    }
                }));
            }
        }
    }
    // SAFETY: each tile writes its own rows and heads.
    let out = unsafe { Columns::new(out, shape.heads * cache.shape.value_width) };
    tiles.par_iter().for_each_init(Scratch::default, |scratch, tile| {
        attend_tile(simd, cache, tile, shape, queries, &out, scratch);
    });
}

fn attend_tile(
    simd: Simd,
    cache: &CpuCache,
    tile: &Tile<'_>,
    shape: AttentionShape,
    queries: &[f32],
    out: &Columns<'_>,
    scratch: &mut Scratch,
) {
    let (key_width, value_width) = (cache.shape.key_width, cache.shape.value_width);
    let (heads, group) = (tile.heads.clone(), tile.heads.len());
    let Scratch { keys, values, states } = scratch;
    keys.resize(PAGE * key_width, 0.0);
    let value_stride = if cache.shape.values_in_keys { key_width } else { value_width };
    states.clear();
    // A sink is a score that was there before all others.
    let first = |i: usize| tile.sinks.map_or((f32::NEG_INFINITY, 0.0), |sinks| (sinks[i], 1.0));
    (0..tile.rows).for_each(|_| states.extend((0..group).map(first)));
    // SAFETY: no other tile has these rows and heads, and each reference ends before the next is made.
    let part = |row: usize, head: usize| unsafe {
        out.part(tile.row + row, head * value_width..(head + 1) * value_width)
    };
    for row in 0..tile.rows {
        heads.clone().for_each(|head| part(row, head).fill(0.0));
    }
    for (index, &page) in tile.pages.iter().enumerate() {
        let keys = cache.keys(page, tile.kv_head, keys);
        let values = match cache.shape.values_in_keys {
            true => &keys[key_width - value_width..],
            false => {
                values.resize(PAGE * value_width, 0.0);
                cache.values(page, tile.kv_head, values)
            }
        };
        for row in 0..tile.rows {
            let page_start = tile.pages_start + index * PAGE;
            let position = tile.position + row;
            let visible = shape.visibility.first(position).saturating_sub(page_start)
                ..(position + 1).saturating_sub(page_start).min(PAGE);
            if visible.is_empty() {
                continue;
            }
            for (i, head) in heads.clone().enumerate() {
                let query = &queries[((tile.row + row) * shape.heads + head) * key_width..][..key_width];
                attend_page(
                    simd,
                    query,
                    &keys[visible.start * key_width..visible.end * key_width],
                    PageValues { all: &values[visible.start * value_stride..], stride: value_stride },
                    shape.scale,
                    &mut states[row * group + i],
                    part(row, head),
                );
            }
        }
    }
    for row in 0..tile.rows {
        for (i, head) in heads.clone().enumerate() {
            let (_, sum) = states[row * group + i];
            part(row, head).iter_mut().for_each(|value| *value /= sum);
        }
    }
}

/// Values of positions that follow each other on a page, one at every `stride`th number.
#[derive(Clone, Copy)]
struct PageValues<'a> {
    all: &'a [f32],
    stride: usize,
}

kernel! {
    /// Adds a page's positions to a row and head: `keys` `[n, key width]`, `n <= PAGE`, and as many values.
    fn attend_page<V>(
        query: &[f32],
        keys: &[f32],
        values: PageValues<'_>,
        scale: f32,
        state: &mut (f32, f32),
        out: &mut [f32],
    ) {
        let count = keys.len() / query.len();
        // Positions that the row does not see, or that are not there, get the weight 0.
        let mut weights = [f32::NEG_INFINITY; PAGE];
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(query.len())) {
            *weight = dot::<V>(query, key) * scale;
        }
        let (before, sum) = *state;
        // A score that is not a number may come and go here: its weight, and so the sum, is not one either, and shows.
        let largest = weights.iter().fold(before, |a, &b| if b <= a { a } else { b });
        for weight in weights.iter_mut() {
            *weight = exp(*weight - largest);
        }
        weights[count..].fill(0.0);
        let shrink = exp(before - largest);
        let (chunks, _) = weights.as_chunks::<LANES>();
        let ones = V::splat(1.0);
        let added = chunks.iter().fold(V::zero(), |sum, chunk| sum.add_product(V::load(chunk), ones));
        *state = (largest, sum * shrink + added.sum());

        for value in out.iter_mut() {
            *value *= shrink;
        }
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let whole = chunks.len() * LANES;
        for (i, out) in chunks.iter_mut().enumerate() {
            let mut sum = V::load(out);
            for (&weight, value) in weights[..count].iter().zip(values.all.chunks(values.stride)) {
                let (value, _) = value[i * LANES..].as_chunks::<LANES>();
                sum = sum.add_product(V::splat(weight), V::load(&value[0]));
            }
            sum.store(out);
        }
        for (i, out) in rest.iter_mut().enumerate() {
            for (&weight, value) in weights[..count].iter().zip(values.all.chunks(values.stride)) {
                *out += weight * value[whole + i];
            }
        }
    }
}

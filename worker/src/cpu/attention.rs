//! Attention over the paged cache.
//!
//! The softmax is taken page by page: each row and head keeps the largest score so far, the sum of the exponentials and
//! the weighted sum of the values, and all three are rescaled when a page brings a larger score. Pages begin at fixed
//! positions, so a row's result does not depend on how its prompt was cut or on which rows are computed beside it.
//!
//! The cache is multiplied as it lies: a page's keys are a matrix in [panels], and its values are added up row by row.

use std::ops::Range;

use brigade_proto::control::CacheDtype;

use super::cache::{CpuCache, PAGE};
use super::columns::{Columns, in_blocks};
use super::panels::{self, FloatFormat, PANEL_ROWS, WeighedRows};
use crate::backend::{AttentionShape, Batch};
use crate::exponential::exp;
use crate::simd::{Simd, kernel};
use crate::team::{PerMember, Team};

/// Rows of a sequence that share the reading of a page.
const TILE_ROWS: usize = 16;

/// Query heads that share the reading of a page; those of one key and value head may be so many that several threads
/// should take them.
const TILE_HEADS: usize = 16;

/// Partial sums of a page's weights.
const LANES: usize = 16;

/// Rows of one sequence and query heads of one key and value head.
pub(crate) struct Tile {
    /// Which sequence of the step.
    span: usize,
    /// First row, in the sequence's part of the step.
    first: usize,
    rows: usize,
    kv_head: usize,
    heads: Range<usize>,
}

/// Memory of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// A page's keys in panels, where the cache has them token by token.
    keys: Vec<u8>,
    /// Scores of a page's tokens, then their weights; per row and head.
    weights: Vec<[f32; PAGE]>,
    /// Largest score and sum of exponentials, per row and head.
    states: Vec<(f32, f32)>,
    /// Which of a page's tokens each row sees.
    visible: Vec<Range<usize>>,
}

/// What a layer's attention is computed from and to.
pub(crate) struct Attention<'a> {
    pub(crate) simd: Simd,
    pub(crate) cache: &'a CpuCache,
    pub(crate) batch: &'a Batch,
    pub(crate) shape: AttentionShape,
    /// One per query head.
    pub(crate) sinks: Option<&'a [f32]>,
    /// `[rows, heads * key_width]`
    pub(crate) queries: &'a [f32],
    /// `[rows, heads * value_width]`; each tile writes its own rows and heads.
    pub(crate) out: Columns<'a>,
}

impl Attention<'_> {
    /// Computes the output with the threads of `team`; `tiles` and `scratch` are memory.
    pub(crate) fn run(&self, team: &Team, tiles: &mut Vec<Tile>, scratch: &PerMember<Scratch>) {
        self.cut(tiles);
        team.each_by(tiles.len(), |member, tile| {
            let scratch = &mut scratch.of(member);
            match self.cache.shape.dtype {
                CacheDtype::F16 => self.tile::<panels::F16>(&tiles[tile], scratch),
                CacheDtype::F32 => self.tile::<panels::F32>(&tiles[tile], scratch),
            }
        });
    }

    fn cut(&self, tiles: &mut Vec<Tile>) {
        tiles.clear();
        let kv_heads = self.cache.shape.kv_heads;
        let group = self.shape.heads / kv_heads;
        for (span, rows) in self.batch.spans.iter().map(|span| span.rows.len()).enumerate() {
            for first in (0..rows).step_by(TILE_ROWS) {
                let rows = TILE_ROWS.min(rows - first);
                for kv_head in 0..kv_heads {
                    let end = (kv_head + 1) * group;
                    tiles.extend((kv_head * group..end).step_by(TILE_HEADS).map(|head| {
                        let heads = head..end.min(head + TILE_HEADS);
                        Tile { span, first, rows, kv_head, heads }
                    }));
                }
            }
        }
    }

    fn tile<F: FloatFormat>(&self, tile: &Tile, scratch: &mut Scratch) {
        let Attention { simd, cache, shape, .. } = self;
        let span = &self.batch.spans[tile.span];
        let (row, position) = (span.rows.start + tile.first, span.start + tile.first);
        let (heads, group) = (tile.heads.clone(), tile.heads.len());
        let queries = tile.rows * group;
        let (key_width, value_width) = (cache.shape.key_width, cache.shape.value_width);
        // A tile's rows and heads, one row's heads after another's.
        let place = |i: usize| (row + i / group, heads.start + i % group);
        let query = |i: usize| {
            let (row, head) = place(i);
            &self.queries[(row * shape.heads + head) * key_width..][..key_width]
        };
        // SAFETY: no other tile has these rows and heads, and the caller lets each go before it asks for it again.
        let out = |i: usize| unsafe {
            let (row, head) = place(i);
            self.out.part(row, head * value_width..(head + 1) * value_width)
        };
        (0..queries).for_each(|i| out(i).fill(0.0));
        // A sink is a score that was there before all others.
        let state = |i: usize| {
            self.sinks.map_or((f32::NEG_INFINITY, 0.0), |sinks| (sinks[heads.start + i % group], 1.0))
        };
        let Scratch { keys: panels, weights, states, visible } = scratch;
        states.clear();
        states.extend((0..queries).map(state));
        weights.resize(weights.len().max(queries), [0.0; PAGE]);

        let first_page = shape.visibility.first(position) / PAGE;
        let last_page = (position + tile.rows).div_ceil(PAGE);
        for (page, page_start) in
            span.pages[first_page..last_page].iter().zip((first_page * PAGE..).step_by(PAGE))
        {
            visible.clear();
            visible.extend((position..position + tile.rows).map(|position| {
                shape.visibility.first(position).saturating_sub(page_start)
                    ..(position + 1).saturating_sub(page_start).min(PAGE)
            }));
            let tokens = visible.iter().map(|visible| visible.end).max().unwrap_or(0);
            let mut keys = cache.keys(*page, tile.kv_head);
            if cache.shape.values_in_keys {
                panels.resize(keys.len(), 0);
                for (rows, panel) in keys
                    .chunks_exact(PANEL_ROWS * key_width * F::BYTES)
                    .zip(panels.chunks_exact_mut(PANEL_ROWS * key_width * F::BYTES))
                {
                    panels::interleave_floats::<F>(rows, key_width * F::BYTES, PANEL_ROWS, panel);
                }
                keys = panels;
            }
            for (panel, keys) in keys.chunks_exact(PANEL_ROWS * key_width * F::BYTES).enumerate() {
                if panel * PANEL_ROWS >= tokens {
                    break;
                }
                in_blocks!(0..queries, |i, R| {
                    let scores =
                        panels::float_products::<F, R>(*simd, keys, std::array::from_fn(|k| query(i + k)));
                    for (weights, scores) in weights[i..i + R].iter_mut().zip(scores) {
                        weights[panel * PANEL_ROWS..][..PANEL_ROWS].copy_from_slice(&scores);
                    }
                });
            }
            for (i, (weights, state)) in weights.iter_mut().zip(states.iter_mut()).enumerate() {
                let visible = visible[i / group].clone();
                if !visible.is_empty() {
                    let shrink = weigh(*simd, weights, visible.start, visible.end, shape.scale, state);
                    if shrink != 1.0 {
                        out(i).iter_mut().for_each(|value| *value *= shrink);
                    }
                }
            }
            let (values, stride) = (cache.values(*page, tile.kv_head), cache.value_stride());
            // Neighbours that see the same tokens are taken together.
            let mut first = 0;
            for rows in visible.chunk_by(|a, b| a == b) {
                let (tokens, some) = (rows[0].clone(), first * group..(first + rows.len()) * group);
                first += rows.len();
                if tokens.is_empty() {
                    continue;
                }
                let rows = WeighedRows { bytes: &values[tokens.start * stride * F::BYTES..], stride };
                in_blocks!(some, |i, R| {
                    let weights = std::array::from_fn(|k| &weights[i + k][tokens.clone()]);
                    panels::add_weighed::<F, R>(*simd, rows, weights, std::array::from_fn(|k| out(i + k)));
                });
            }
        }
        for (i, (_, sum)) in states.iter().enumerate() {
            out(i).iter_mut().for_each(|value| *value /= sum);
        }
    }
}

kernel! {
    /// Turns the scores of a page's tokens `first..end` into weights relative to the largest score so far, those of others
    /// into 0, and adds them to the sum; gives the factor on what was weighed before.
    fn weigh(
        scores: &mut [f32; PAGE],
        first: usize,
        end: usize,
        scale: f32,
        state: &mut (f32, f32),
    ) -> f32 {
        let weights = scores;
        for weight in weights.iter_mut() {
            *weight *= scale;
        }
        weights[..first].fill(f32::NEG_INFINITY);
        weights[end..].fill(f32::NEG_INFINITY);
        let (before, sum) = *state;
        // A score that is not a number may come and go here: its weight, and so the sum, is not one either, and shows.
        let largest = weights.iter().fold(before, |a, &b| if b <= a { a } else { b });
        for weight in weights.iter_mut() {
            *weight = exp(*weight - largest);
        }
        weights[..first].fill(0.0);
        weights[end..].fill(0.0);
        let shrink = exp(before - largest);
        // Sixteen sums side by side, then halves onto each other.
        let (mut sums, mut half) = ([0f32; LANES], LANES / 2);
        for chunk in weights.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                sums[i] += chunk[i];
            }
        }
        while half > 0 {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
            half /= 2;
        }
        *state = (largest, sum * shrink + sums[0]);
        shrink
    }
}

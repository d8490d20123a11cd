//! Products in which every head has a matrix of its own.

use std::ops::Range;

use super::columns::Columns;
use super::matrix::CpuMatrix;
use super::ops;
use crate::backend::HeadRows;
use crate::simd::Simd;
use crate::team::{PerMember, Team};

/// Rows of activations for which a row of weights is widened once.
const TILE_ROWS: usize = 16;

/// Puts parts of each head side by side; a part has some channels of each of `heads` heads of `values`, rows of `width`.
pub(crate) fn join(heads: usize, row: usize, parts: &[(&[f32], usize, Range<usize>)], out: &mut [f32]) {
    let head_width = out.len() / heads;
    for (head, mut out) in out.chunks_exact_mut(head_width).enumerate() {
        for (values, width, channels) in parts {
            let first = row * width + head * (width / heads) + channels.start;
            let (part, rest) = out.split_at_mut(channels.len());
            part.copy_from_slice(&values[first..first + channels.len()]);
            out = rest;
        }
    }
}

/// Multiplies each head's part of `input`, `[rows, heads * count]`, with the transposed matrix of the head, whose rows are
/// widened one after another: `out` gets `[rows, heads * matrix width]`.
///
/// A result is the sum of the rows times their inputs, in the rows' order.
pub(crate) fn multiply_transposed(
    simd: Simd,
    team: &Team,
    scratch: &PerMember<Vec<f32>>,
    matrix: &CpuMatrix,
    of: HeadRows,
    input: &[f32],
    out: &Columns<'_>,
) {
    let HeadRows { heads, stride, first, count } = of;
    let (width, rows) = (matrix.width, input.len() / (heads * count).max(1));
    let tiles = rows.div_ceil(TILE_ROWS);
    team.each_by(heads * tiles, |member, task| {
        let weights = &mut *scratch.of(member);
        let (head, tile) = (task / tiles, task % tiles * TILE_ROWS);
        let tile = tile..rows.min(tile + TILE_ROWS);
        // SAFETY: no other task has this head and these rows, and each reference ends before the next is made.
        let part = |row: usize| unsafe { out.part(row, head * width..(head + 1) * width) };
        tile.clone().for_each(|row| part(row).fill(0.0));
        let start = head * stride + first;
        matrix.widen_rows(start..start + count, weights, |weight_row, weights| {
            for row in tile.clone() {
                let factor = input[(row * heads + head) * count + weight_row - start];
                ops::add_product(simd, part(row), weights, factor);
            }
        });
    });
}

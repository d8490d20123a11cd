//! Rows of activations rounded to 8 bits.

use super::{GROUP, PART};
use crate::simd::Simd;

/// Rounded rows `[rows, width]`, each value with its part's scale; kept apart so that a product walks over each.
#[derive(Default)]
pub(crate) struct QuantisedRows {
    values: Vec<i8>,
    /// The value of one step, for each part.
    scales: Vec<f32>,
    /// Sums of the rounded values of both halves of each part.
    halves: Vec<[i16; 2]>,
    /// The same times the scale.
    sums: Vec<[f32; 2]>,
    parts: usize,
}

/// One row of them.
#[derive(Clone, Copy)]
pub(crate) struct ActivationRow<'a> {
    /// Groups of four, [`GROUPS`](super::GROUPS) a part.
    pub(super) values: &'a [[i8; GROUP]],
    pub(super) scales: &'a [f32],
    pub(super) halves: &'a [[i16; 2]],
    pub(super) sums: &'a [[f32; 2]],
}

impl QuantisedRows {
    /// Makes room for `rows` rows of `width` values; memory is taken once for `reserved` values in all.
    pub(in crate::cpu) fn shape(&mut self, rows: usize, width: usize, reserved: usize) {
        self.parts = width / PART;
        let parts = rows * self.parts;
        if self.scales.len() < parts {
            let reserved = parts.max(reserved / PART);
            let more = reserved - self.scales.len();
            self.values.reserve_exact(more * PART);
            self.scales.reserve_exact(more);
            self.halves.reserve_exact(more);
            self.sums.reserve_exact(more);
            self.values.resize(parts * PART, 0);
            self.scales.resize(parts, 0.0);
            self.halves.resize(parts, [0; 2]);
            self.sums.resize(parts, [0.0; 2]);
        }
    }

    /// Rounds a single row.
    pub(in crate::cpu) fn pieces(&mut self) -> impl ExactSizeIterator<Item = RowMut<'_>> {
        let parts = self.parts;
        let values = self.values.chunks_exact_mut((parts * PART).max(1));
        let scales = self.scales.chunks_exact_mut(parts.max(1));
        let halves = self.halves.chunks_exact_mut(parts.max(1));
        let sums = self.sums.chunks_exact_mut(parts.max(1));
        values.zip(scales).zip(halves.zip(sums)).map(|((values, scales), (halves, sums))| RowMut {
            values,
            scales,
            halves,
            sums,
        })
    }

    /// The rounded row `row`.
    pub(in crate::cpu) fn row(&self, row: usize) -> ActivationRow<'_> {
        let parts = row * self.parts..(row + 1) * self.parts;
        ActivationRow {
            values: self.values[parts.start * PART..parts.end * PART].as_chunks::<GROUP>().0,
            scales: &self.scales[parts.clone()],
            halves: &self.halves[parts.clone()],
            sums: &self.sums[parts],
        }
    }
}

/// A row that is being rounded.
pub(crate) struct RowMut<'a> {
    values: &'a mut [i8],
    scales: &'a mut [f32],
    halves: &'a mut [[i16; 2]],
    sums: &'a mut [[f32; 2]],
}

impl RowMut<'_> {
    /// Rounds `x`, as long as the row.
    pub(in crate::cpu) fn round(self, simd: Simd, x: &[f32]) {
        round(simd, x, self.values, self.scales, self.halves, self.sums);
    }
}

crate::simd::kernel! {
    fn round(x: &[f32], values: &mut [i8], scales: &mut [f32], halves: &mut [[i16; 2]], sums: &mut [[f32; 2]]) {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and taking it away rounds to the nearest integer
        let parts = x.as_chunks::<PART>().0.iter().zip(values.as_chunks_mut::<PART>().0);
        for (i, (x, values)) in parts.enumerate() {
            let mut largest = [0f32; 8];
            let mut not_finite = [0f32; 8];
            for part in x.as_chunks::<8>().0 {
                for i in 0..8 {
                    let size = part[i].abs();
                    largest[i] = if size > largest[i] { size } else { largest[i] };
                    not_finite[i] += part[i] * 0.0;
                }
            }
            let largest = largest.iter().fold(0f32, |a, &b| if b > a { b } else { a });
            // Not a number where an activation is not finite, so that it shows in every product.
            let scale = largest / 127.0 + not_finite.iter().sum::<f32>();
            let steps = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            for half in 0..2 {
                let range = half * PART / 2..(half + 1) * PART / 2;
                let mut sum = 0i32;
                for (value, &x) in values[range.clone()].iter_mut().zip(&x[range]) {
                    let rounded = (x * steps + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
                    *value = rounded as i8;
                    sum += rounded as i8 as i32;
                }
                halves[i][half] = sum as i16;
                sums[i][half] = scale * sum as f32;
            }
            scales[i] = scale;
        }
    }
}

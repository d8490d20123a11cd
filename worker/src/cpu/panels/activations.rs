//! Rows of activations rounded to 8 bits.

use super::{GROUP, PART, RUN};

/// Rounded rows `[rows, width]`.
#[derive(Default)]
pub(crate) struct QuantisedRows {
    all: Vec<ActivationPart>,
    /// Parts of a row.
    parts: usize,
}

/// [`PART`] rounded values and what belongs to them, side by side, so that a product reads one place for each row.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(in crate::cpu) struct ActivationPart {
    /// Groups of four, [`RUN`] a half.
    pub(super) values: [[[i8; GROUP]; RUN]; 2],
    /// The value of one step; NaN where an activation was not finite, so that it shows in every product.
    pub(super) scale: f32,
    /// Sums of the rounded values of both halves.
    pub(super) halves: [i16; 2],
    /// The same times the scale.
    pub(super) sums: [f32; 2],
}

impl ActivationPart {
    const ZERO: ActivationPart =
        ActivationPart { values: [[[0; GROUP]; RUN]; 2], scale: 0.0, halves: [0; 2], sums: [0.0; 2] };

    /// The rounded activations, -127..=127.
    pub(in crate::cpu) fn values(&self) -> &[i8; PART] {
        &self.values.as_flattened().as_flattened().as_chunks().0[0]
    }

    /// The value of one step.
    pub(in crate::cpu) fn scale(&self) -> f32 {
        self.scale
    }
}

/// One row of them.
pub(crate) type ActivationRow<'a> = &'a [ActivationPart];

impl QuantisedRows {
    /// Makes room for `rows` rows of `width` values and gives it, with the parts of a row; memory is taken once for
    /// `reserved` values in all.
    pub(in crate::cpu) fn shape(
        &mut self,
        rows: usize,
        width: usize,
        reserved: usize,
    ) -> (&mut [ActivationPart], usize) {
        self.parts = width / PART;
        let parts = rows * self.parts;
        if self.all.len() < parts {
            self.all.reserve_exact(parts.max(reserved / PART) - self.all.len());
            self.all.resize(parts, ActivationPart::ZERO);
        }
        (&mut self.all[..parts], self.parts)
    }

    /// The rounded row `row`.
    pub(in crate::cpu) fn row(&self, row: usize) -> ActivationRow<'_> {
        &self.all[row * self.parts..][..self.parts]
    }
}

crate::simd::kernel! {
    /// Rounds a row.
    pub(in crate::cpu) fn round(x: &[f32], parts: &mut [ActivationPart]) {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and taking it away rounds to the nearest integer
        for (x, part) in x.as_chunks::<PART>().0.iter().zip(parts) {
            let mut largest = [0f32; 8];
            let mut not_finite = [0f32; 8];
            for eight in x.as_chunks::<8>().0 {
                for i in 0..8 {
                    let size = eight[i].abs();
                    largest[i] = if size > largest[i] { size } else { largest[i] };
                    not_finite[i] += eight[i] * 0.0;
                }
            }
            let largest = largest.iter().fold(0f32, |a, &b| if b > a { b } else { a });
            // Not a number where an activation is not finite, so that it shows in every product.
            part.scale = largest / 127.0 + not_finite.iter().sum::<f32>();
            let steps = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let values = part.values.as_flattened_mut().as_flattened_mut();
            for half in 0..2 {
                let range = half * PART / 2..(half + 1) * PART / 2;
                let mut sum = 0i32;
                for (value, &x) in values[range.clone()].iter_mut().zip(&x[range]) {
                    let rounded = (x * steps + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
                    *value = rounded as i8;
                    sum += rounded as i8 as i32;
                }
                part.halves[half] = sum as i16;
                part.sums[half] = part.scale * sum as f32;
            }
        }
    }
}

//! Rows of activations rounded to 8 bits.

use super::{GROUP, PART, RUN};
use crate::simd::Simd;

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

/// What is added to a number and taken away again rounds it to the nearest integer, ties to even: 1.5 * 2^23.
pub(super) const ROUND: f32 = 12_582_912.0;

/// The value of one step for a part whose largest size is `largest`, and how many steps 1 is.
#[inline(always)]
pub(super) fn step(largest: f32) -> (f32, f32) {
    // Not a number where an activation is not finite, so that it shows in every product.
    let scale = if largest < f32::INFINITY { largest / 127.0 } else { f32::NAN };
    (scale, if largest > 0.0 { 127.0 / largest } else { 0.0 })
}

/// Rounds a row.
pub(in crate::cpu) fn round(simd: Simd, x: &[f32], parts: &mut [ActivationPart]) {
    let parts = x.as_chunks().0.iter().zip(parts);
    match simd {
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2(_) | Simd::Avx512(_) => {
            // SAFETY: these exist only where detection found AVX2.
            parts.for_each(|(x, part)| unsafe { super::x86::round(x, part) });
        }
        _ => parts.for_each(|(x, part)| round_part(x, part)),
    }
}

fn round_part(x: &[f32; PART], part: &mut ActivationPart) {
    // Sizes of numbers stand in the order of their bits, and those that are not finite above all others.
    let largest = x.iter().fold(0, |largest, x| x.abs().to_bits().max(largest));
    let (scale, steps) = step(f32::from_bits(largest));
    part.scale = scale;
    let values = part.values.as_flattened_mut().as_flattened_mut();
    for (value, x) in values.iter_mut().zip(x) {
        // The low byte alone, where steps are so many that nothing is left of the number.
        *value = ((x * steps + ROUND).to_bits() as i32 - ROUND.to_bits() as i32) as i8;
    }
    for (half, values) in values.as_chunks::<{ PART / 2 }>().0.iter().enumerate() {
        let sum = values.iter().map(|value| i16::from(*value)).sum();
        part.halves[half] = sum;
        part.sums[half] = scale * f32::from(sum);
    }
}

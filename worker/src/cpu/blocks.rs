//! The formats whose rows are not kept in [panels](super::panels): their grids are looked up value by value.
//!
//! Activations are rounded as for panels, to 8 bits in blocks of 32 with a scale each, so that a block's share of a
//! product is `scale * activation_scale * sum(code * activation)`, with the integer sum exact.

use half::f16;

use super::panels::ActivationRow;
use crate::simd::Simd;

/// Values in a block of weights and of activations.
pub(crate) const BLOCK: usize = 32;

/// A weight format whose products take activations in blocks of 32; rows are whole blocks.
pub(crate) trait RowFormat {
    /// Values in a block of weights, a multiple of [`BLOCK`].
    const VALUES: usize;
    /// Size of a block of weights.
    const BYTES: usize;

    /// Writes a row's weights as f32, `[width]`.
    fn dequantise(row: &[u8], out: &mut [f32]);

    /// The products of one row of weights with `R` rows of activations, none of which has an influence on another's.
    fn products<const R: usize>(simd: Simd, weights: &[u8], activations: [ActivationRow<'_>; R]) -> [f32; R];
}

/// The half-precision number at byte `at`.
#[inline(always)]
pub(super) fn widen(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Adds a block's share to the lanes, each half of the block with its own factor.
#[inline(always)]
pub(super) fn add_block(
    lanes: &mut [f32; 8],
    codes: &[i8; BLOCK],
    values: &[i8; BLOCK],
    [low, high]: [f32; 2],
) {
    let groups = codes.as_chunks::<4>().0.iter().zip(values.as_chunks::<4>().0);
    let factors = [low, low, low, low, high, high, high, high];
    for ((lane, factor), (codes, values)) in lanes.iter_mut().zip(factors).zip(groups) {
        let products = codes.iter().zip(values).map(|(c, v)| i32::from(*c) * i32::from(*v));
        *lane += factor * products.sum::<i32>() as f32;
    }
}

/// The sum of all lanes.
#[inline(always)]
pub(super) fn sum_lanes(l: [f32; 8]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    //! The same on AVX2.

    use std::arch::x86_64::*;

    /// The sum of all lanes, in the lowest one.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn sum(lanes: __m256) -> __m128 {
        // SAFETY: the caller has AVX2.
        unsafe {
            let quarter = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_add_ss(pair, _mm_movehdup_ps(pair))
        }
    }
}

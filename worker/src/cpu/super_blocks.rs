//! Weight formats whose blocks hold 256 values with a scale for every 16 or more of them, and the products of their rows
//! with 8-bit activations: TQ1_0, TQ2_0 and the [grids](super::codebooks).
//!
//! A block is unpacked to 256 integers and 16 scales, of which each 32 integers meet one block of activations.

use super::blocks::{self, BLOCK, RowFormat, widen};
use super::panels::ActivationRow;
use crate::simd::Simd;

/// Values in a block.
pub(super) const SUPER_BLOCK: usize = 256;

/// Neighbours that share a scale.
pub(super) const RUN: usize = 16;

/// A block's integers and what turns them into weights.
pub(super) struct Codes {
    /// The integers, -127..=127.
    pub(super) codes: [i8; SUPER_BLOCK],
    /// Factor on the codes of each run.
    pub(super) scales: [f32; SUPER_BLOCK / RUN],
}

impl Codes {
    const ZERO: Codes = Codes { codes: [0; SUPER_BLOCK], scales: [0.0; SUPER_BLOCK / RUN] };

    /// Writes the scale of both runs of part `part` of 32 values.
    #[inline(always)]
    pub(super) fn scale_part(&mut self, part: usize, scale: f32) {
        self.scales[2 * part] = scale;
        self.scales[2 * part + 1] = scale;
    }
}

/// A weight format with blocks of 256 values: a weight is `scale * code`.
pub(super) trait SuperFormat {
    /// Size of a block.
    const SIZE: usize;

    /// Takes a block of [`Self::SIZE`] bytes apart.
    fn unpack(block: &[u8], out: &mut Codes);
}

/// Makes row formats of these formats.
macro_rules! row_formats {
    ($($name:ty),*) => {$(
        impl RowFormat for $name {
            const VALUES: usize = $crate::cpu::super_blocks::SUPER_BLOCK;
            const BYTES: usize = <$name as SuperFormat>::SIZE;

            fn dequantise(row: &[u8], out: &mut [f32]) {
                $crate::cpu::super_blocks::dequantise::<$name>(row, out);
            }

            fn products<const R: usize>(
                simd: Simd,
                weights: &[u8],
                activations: [$crate::cpu::panels::ActivationRow<'_>; R],
            ) -> [f32; R] {
                $crate::cpu::super_blocks::products::<$name, R>(simd, weights, activations)
            }
        }
    )*};
}
pub(super) use row_formats;

row_formats!(TQ1_0, TQ2_0);

/// 48 bytes of five and 4 bytes of four base-3 digits, `d: f16`; weight = d (digit - 1).
pub(crate) struct TQ1_0;

impl SuperFormat for TQ1_0 {
    const SIZE: usize = 54;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        out.scales = [widen(block, 52); SUPER_BLOCK / RUN];
        let mut rest = &mut out.codes[..];
        for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
            let mut power = 1u8;
            for _ in 0..digits {
                let (codes, after) = rest.split_at_mut(bytes.len());
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    // A byte is a fraction of 256, its digits behind the point: a power of three moves the point,
                    // wrapping drops what stands before it, and the next digit is the whole part of three times that.
                    *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
                }
                power = power.wrapping_mul(3);
                rest = after;
            }
        }
    }
}

/// 64 bytes of four 2-bit codes, `d: f16`; weight = d (code - 1).
pub(crate) struct TQ2_0;

impl SuperFormat for TQ2_0 {
    const SIZE: usize = 66;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        out.scales = [widen(block, 64); SUPER_BLOCK / RUN];
        for (part, codes) in out.codes.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let bytes = &block[part / 4 * BLOCK..][..BLOCK];
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = ((byte >> (2 * (part % 4))) & 3) as i8 - 1;
            }
        }
    }
}

/// Writes a row's weights as f32, `[width]`.
pub(super) fn dequantise<F: SuperFormat>(row: &[u8], out: &mut [f32]) {
    let mut unpacked = Codes::ZERO;
    for (block, out) in row.chunks_exact(F::SIZE).zip(out.chunks_exact_mut(SUPER_BLOCK)) {
        F::unpack(block, &mut unpacked);
        for (i, (out, code)) in out.iter_mut().zip(unpacked.codes).enumerate() {
            *out = unpacked.scales[i / RUN] * f32::from(code);
        }
    }
}

/// As [`blocks`] multiplies: eight lanes of exact integer sums, scaled and added up in f32, 32 values at a time.
pub(super) fn products<F: SuperFormat, const R: usize>(
    simd: Simd,
    weights: &[u8],
    activations: [ActivationRow<'_>; R],
) -> [f32; R] {
    match simd {
        Simd::Portable => products_portable::<F, R>(weights, activations),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these exist only where detection found AVX2 and F16C.
        Simd::Avx2(_) | Simd::Avx512(_) => unsafe { products_avx2::<F, R>(weights, activations) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Neon` exists only where detection found NEON.
        Simd::Neon(_) => unsafe { products_neon::<F, R>(weights, activations) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Dotprod` exists only where detection found NEON and its dot products.
        Simd::Dotprod(_) => unsafe { products_dotprod::<F, R>(weights, activations) },
    }
}

fn products_portable<F: SuperFormat, const R: usize>(
    weights: &[u8],
    activations: [ActivationRow<'_>; R],
) -> [f32; R] {
    const PARTS: usize = SUPER_BLOCK / BLOCK;
    let mut lanes = [[0f32; 8]; R];
    let mut unpacked = Codes::ZERO;
    for (i, block) in weights.chunks_exact(F::SIZE).enumerate() {
        F::unpack(block, &mut unpacked);
        let scales = unpacked.scales.as_chunks::<2>().0;
        for (part, (codes, scales)) in unpacked.codes.as_chunks::<BLOCK>().0.iter().zip(scales).enumerate() {
            for r in 0..R {
                let activation = &activations[r][i * PARTS + part];
                let factors = scales.map(|scale| scale * activation.scale());
                blocks::add_block(&mut lanes[r], codes, activation.values(), factors);
            }
        }
    }
    lanes.map(blocks::sum_lanes)
}

/// [`products_portable`] on AVX2, bit for bit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn products_avx2<F: SuperFormat, const R: usize>(
    weights: &[u8],
    activations: [ActivationRow<'_>; R],
) -> [f32; R] {
    use std::arch::x86_64::*;

    const PARTS: usize = SUPER_BLOCK / BLOCK;
    let ones = _mm256_set1_epi16(1);
    let mut lanes = [_mm256_setzero_ps(); R];
    let mut unpacked = Codes::ZERO;
    for (i, block) in weights.chunks_exact(F::SIZE).enumerate() {
        F::unpack(block, &mut unpacked);
        let scales = unpacked.scales.as_chunks::<2>().0;
        for (part, (codes, scales)) in unpacked.codes.as_chunks::<BLOCK>().0.iter().zip(scales).enumerate() {
            // SAFETY: the chunk holds the 32 bytes that are read.
            let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
            let sizes = _mm256_abs_epi8(codes);
            let scales = _mm256_set_m128(_mm_set1_ps(scales[1]), _mm_set1_ps(scales[0]));
            for r in 0..R {
                let activation = &activations[r][i * PARTS + part];
                // SAFETY: `values` holds the 32 bytes that are read.
                let values = unsafe { _mm256_loadu_si256(activation.values().as_ptr().cast()) };
                // 127 * 127 * 2 still fits 16 bits, so the saturating pair sum is exact.
                let pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(values, codes));
                let sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                let factors = _mm256_mul_ps(scales, _mm256_set1_ps(activation.scale()));
                lanes[r] = _mm256_add_ps(lanes[r], _mm256_mul_ps(factors, sums));
            }
        }
    }
    // SAFETY: this function has AVX2.
    lanes.map(|lanes| _mm_cvtss_f32(unsafe { blocks::avx2::sum(lanes) }))
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn products_neon<F: SuperFormat, const R: usize>(
    weights: &[u8],
    activations: [ActivationRow<'_>; R],
) -> [f32; R] {
    neon::products::<F, false, R>(weights, activations)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn products_dotprod<F: SuperFormat, const R: usize>(
    weights: &[u8],
    activations: [ActivationRow<'_>; R],
) -> [f32; R] {
    neon::products::<F, true, R>(weights, activations)
}

#[cfg(target_arch = "aarch64")]
mod neon {
    //! The same on NEON: lanes 0..4 and 4..8, which belong to either half of a part.

    use std::arch::aarch64::*;

    use super::{ActivationRow, BLOCK, Codes, SUPER_BLOCK, SuperFormat};
    use crate::cpu::panels::add_dots;

    /// `products_portable`, bit for bit. Needs NEON, and with `DOTPROD` its dot products of bytes.
    #[inline(always)]
    pub(super) fn products<F: SuperFormat, const DOTPROD: bool, const R: usize>(
        weights: &[u8],
        activations: [ActivationRow<'_>; R],
    ) -> [f32; R] {
        const PARTS: usize = SUPER_BLOCK / BLOCK;
        // SAFETY: the callers have NEON.
        let (zeros, none) = unsafe { (vdupq_n_f32(0.0), vdupq_n_s32(0)) };
        let mut lanes = [[zeros; 2]; R];
        let mut unpacked = Codes::ZERO;
        for (i, block) in weights.chunks_exact(F::SIZE).enumerate() {
            F::unpack(block, &mut unpacked);
            let scales = unpacked.scales.as_chunks::<2>().0;
            for (part, (codes, scales)) in
                unpacked.codes.as_chunks::<BLOCK>().0.iter().zip(scales).enumerate()
            {
                let codes = load(codes);
                for r in 0..R {
                    let activation = &activations[r][i * PARTS + part];
                    let values = load(activation.values());
                    for half in 0..2 {
                        let sums = add_dots::<DOTPROD>(none, codes[half], values[half]);
                        let factor = scales[half] * activation.scale();
                        // SAFETY: the callers have NEON.
                        lanes[r][half] = unsafe {
                            let share = vmulq_n_f32(vcvtq_f32_s32(sums), factor);
                            vaddq_f32(lanes[r][half], share)
                        };
                    }
                }
            }
        }
        let mut products = [0.0; R];
        for r in 0..R {
            // SAFETY: the callers have NEON.
            products[r] = unsafe {
                let four = vaddq_f32(lanes[r][0], lanes[r][1]);
                let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
                vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
            };
        }
        products
    }

    /// The halves of a part.
    #[inline(always)]
    fn load(bytes: &[i8; BLOCK]) -> [int8x16_t; 2] {
        // SAFETY: the array holds the 32 bytes that are read; the callers have NEON.
        unsafe { [vld1q_s8(bytes.as_ptr()), vld1q_s8(bytes.as_ptr().add(BLOCK / 2))] }
    }
}

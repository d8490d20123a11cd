//! Weight formats whose blocks hold 32 values, and the products of their rows with 8-bit activations.
//!
//! Each of them (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4) is a scale, an offset and 32 small integers, which stand
//! in the block or are looked up in a codebook: a weight is `scale * code + offset`. The activations of a row are rounded
//! to 8 bits in blocks of 32 with a scale each, so that a block's share of a product is
//! `scale * activation_scale * sum(code * activation) + offset * sum(activations)`, with the integer sum exact.

use half::f16;

use super::grids::{IQ4_VALUES, MXFP4_VALUES};
use crate::simd::Simd;

/// Values in a block of weights and of activations.
pub(crate) const BLOCK: usize = 32;

/// 32 activations rounded to 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct ActivationBlock {
    /// The value of one step; NaN where an activation was not finite, so that it shows in every product.
    pub(crate) scale: f32,
    /// `scale` times the sum of `values`.
    pub(crate) sum: f32,
    /// The rounded activations, -127..=127.
    pub(crate) values: [i8; BLOCK],
}

impl ActivationBlock {
    /// A block of zeros.
    pub(crate) const ZERO: ActivationBlock = ActivationBlock { scale: 0.0, sum: 0.0, values: [0; BLOCK] };
}

crate::simd::kernel! {
    /// Rounds a row of activations to 8 bits; `x` holds 32 values for each block of `out`.
    pub(crate) fn quantise(x: &[f32], out: &mut [ActivationBlock]) {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and taking it away rounds to the nearest integer
        for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
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
            let scale = largest / 127.0 + not_finite.iter().sum::<f32>();
            let steps = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut sum = 0i32;
            for (value, &x) in out.values.iter_mut().zip(x) {
                let rounded = (x * steps + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
                *value = rounded as i8;
                sum += rounded as i8 as i32;
            }
            out.scale = scale;
            out.sum = scale * sum as f32;
        }
    }
}

/// A block's integers and what turns them into weights.
pub(crate) struct Codes {
    /// The integers; unsigned formats use 0..=31.
    pub(crate) codes: [i8; BLOCK],
    /// Factor on a code.
    pub(crate) scale: f32,
    /// Added after the factor.
    pub(crate) offset: f32,
}

/// A weight format whose products take activations in blocks of 32; rows are whole blocks.
pub(crate) trait RowFormat {
    /// Values in a block of weights, a multiple of [`BLOCK`].
    const VALUES: usize;
    /// Size of a block of weights.
    const BYTES: usize;

    /// Writes a row's weights as f32, `[width]`.
    fn dequantise(row: &[u8], out: &mut [f32]);

    /// The products of one row of weights with `R` rows of activations, none of which has an influence on another's.
    fn products<const R: usize>(simd: Simd, weights: &[u8], activations: [&[ActivationBlock]; R])
    -> [f32; R];
}

/// A weight format with blocks of 32 values.
pub(crate) trait BlockFormat {
    /// Size of a block.
    const BYTES: usize;
    /// Whether codes may be negative: AVX2 multiplies unsigned with signed bytes, so that their signs change sides.
    #[cfg(target_arch = "x86_64")]
    const SIGNED: bool;
    /// Whether there is an offset.
    const OFFSET: bool;

    /// Takes a block of [`Self::BYTES`] bytes apart.
    fn unpack(block: &[u8]) -> Codes;

    /// The same codes as [`Self::unpack`] in one register.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn codes_avx2(block: &[u8]) -> std::arch::x86_64::__m256i;

    /// Scale and offset in the two lowest lanes, equal to those of [`Self::unpack`].
    ///
    /// # Safety
    /// The processor must have AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn factors_avx2(block: &[u8]) -> std::arch::x86_64::__m128;
}

/// Where a format's scale and offset come from.
#[derive(Clone, Copy)]
enum Factors {
    /// A half-precision scale at the block's start.
    Half,
    /// Such a scale; the offset is this many times it.
    HalfTimes(f32),
    /// Such a scale, and the half-precision offset after it.
    HalfAndOffset,
    /// An 8-bit exponent at the block's start, for codes that are doubled.
    Exponent,
}

fn nibbles(block: &[u8]) -> [i8; BLOCK] {
    let mut codes = [0; BLOCK];
    for (i, &byte) in block.iter().enumerate().take(BLOCK / 2) {
        codes[i] = (byte & 15) as i8;
        codes[i + BLOCK / 2] = (byte >> 4) as i8;
    }
    codes
}

fn nibbles_and_high_bits(block: &[u8], high: &[u8]) -> [i8; BLOCK] {
    let mut codes = nibbles(block);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (((high[i / 8] >> (i % 8)) & 1) << 4) as i8;
    }
    codes
}

/// The half-precision number at byte `at`.
#[inline(always)]
pub(super) fn widen(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Half of the power of two that an exponent of the OCP microscaling formats stands for: 2^(e - 128).
fn half_power(exponent: u8) -> f32 {
    // The two smallest are subnormal.
    let bits = if exponent < 2 { 1 << (21 + exponent) } else { (u32::from(exponent) - 1) << 23 };
    f32::from_bits(bits)
}

macro_rules! format {
    ($(#[$meta:meta])* $name:ident: $bytes:literal bytes, signed $signed:literal, factors $factors:expr,
     codes |$c:ident| $codes:expr, avx2 |$a:ident| $avx2:expr) => {
        $(#[$meta])*
        pub(crate) struct $name;

        impl BlockFormat for $name {
            const BYTES: usize = $bytes;
            #[cfg(target_arch = "x86_64")]
            const SIGNED: bool = $signed;
            const OFFSET: bool = matches!($factors, Factors::HalfTimes(_) | Factors::HalfAndOffset);

            #[inline(always)]
            fn unpack(block: &[u8]) -> Codes {
                let block = &block[..$bytes];
                let (scale, offset) = match $factors {
                    Factors::Half => (widen(block, 0), 0.0),
                    Factors::HalfTimes(factor) => (widen(block, 0), factor * widen(block, 0)),
                    Factors::HalfAndOffset => (widen(block, 0), widen(block, 2)),
                    Factors::Exponent => (half_power(block[0]), 0.0),
                };
                let $c = block;
                Codes { codes: $codes, scale, offset }
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn codes_avx2(block: &[u8]) -> std::arch::x86_64::__m256i {
                let $a = &block[..$bytes];
                // SAFETY: the caller has AVX2.
                unsafe { $avx2 }
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn factors_avx2(block: &[u8]) -> std::arch::x86_64::__m128 {
                // SAFETY: the caller has AVX2 and F16C.
                unsafe { avx2::factors(block, $factors) }
            }
        }

        impl RowFormat for $name {
            const VALUES: usize = BLOCK;
            const BYTES: usize = $bytes;

            fn dequantise(row: &[u8], out: &mut [f32]) {
                dequantise::<$name>(row, out);
            }

            fn products<const R: usize>(
                simd: Simd,
                weights: &[u8],
                activations: [&[ActivationBlock]; R],
            ) -> [f32; R] {
                products::<$name, R>(simd, weights, activations)
            }
        }
    };
}

format! {
    /// `d: f16`, 16 bytes of nibbles; weight = d (code - 8).
    Q4_0: 18 bytes, signed false, factors Factors::HalfTimes(-8.0),
    codes |b| nibbles(&b[2..]),
    avx2 |b| avx2::nibbles(&b[2..])
}
format! {
    /// `d: f16, m: f16`, 16 bytes of nibbles; weight = d code + m.
    Q4_1: 20 bytes, signed false, factors Factors::HalfAndOffset,
    codes |b| nibbles(&b[4..]),
    avx2 |b| avx2::nibbles(&b[4..])
}
format! {
    /// `d: f16`, 32 high bits, 16 bytes of nibbles; weight = d (code - 16).
    Q5_0: 22 bytes, signed false, factors Factors::HalfTimes(-16.0),
    codes |b| nibbles_and_high_bits(&b[6..], &b[2..6]),
    avx2 |b| avx2::nibbles_and_high_bits(&b[6..], &b[2..6])
}
format! {
    /// `d: f16, m: f16`, 32 high bits, 16 bytes of nibbles; weight = d code + m.
    Q5_1: 24 bytes, signed false, factors Factors::HalfAndOffset,
    codes |b| nibbles_and_high_bits(&b[8..], &b[4..8]),
    avx2 |b| avx2::nibbles_and_high_bits(&b[8..], &b[4..8])
}
format! {
    /// `d: f16`, 32 signed bytes; weight = d code.
    Q8_0: 34 bytes, signed true, factors Factors::Half,
    codes |b| std::array::from_fn(|i| b[2 + i] as i8),
    avx2 |b| avx2::bytes(&b[2..])
}
format! {
    /// `d: f16`, 16 bytes of nibbles; weight = d value(code).
    #[expect(non_camel_case_types, reason = "the format's own name")]
    IQ4_NL: 18 bytes, signed true, factors Factors::Half,
    codes |b| nibbles(&b[2..]).map(|code| IQ4_VALUES[code as usize]),
    avx2 |b| avx2::values(&b[2..], &IQ4_VALUES)
}
format! {
    /// An exponent, 16 bytes of nibbles; weight = 2^(exponent - 128) value(code).
    MXFP4: 17 bytes, signed true, factors Factors::Exponent,
    codes |b| nibbles(&b[1..]).map(|code| MXFP4_VALUES[code as usize]),
    avx2 |b| avx2::values(&b[1..], &MXFP4_VALUES)
}

fn dequantise<F: BlockFormat>(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(BLOCK)) {
        let Codes { codes, scale, offset } = F::unpack(block);
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(code) + offset;
        }
    }
}

/// A row's result does not depend on the other rows: eight lanes of integer sums per block (four neighbouring codes
/// each) are scaled and added up in f32 block by block, offsets in a sum of their own.
fn products<F: BlockFormat, const R: usize>(
    simd: Simd,
    weights: &[u8],
    activations: [&[ActivationBlock]; R],
) -> [f32; R] {
    match simd {
        Simd::Portable => products_portable::<F, R>(weights, activations),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` exists only where detection found AVX2 and F16C.
        Simd::Avx2(_) => unsafe { avx2::products::<F, R>(weights, activations) },
    }
}

fn products_portable<F: BlockFormat, const R: usize>(
    weights: &[u8],
    activations: [&[ActivationBlock]; R],
) -> [f32; R] {
    let mut lanes = [[0f32; 8]; R];
    let mut offsets = [0f32; R];
    for (i, block) in weights.chunks_exact(F::BYTES).enumerate() {
        let Codes { codes, scale, offset } = F::unpack(block);
        for r in 0..R {
            let activation = &activations[r][i];
            let factor = scale * activation.scale;
            add_block(&mut lanes[r], &codes, &activation.values, [factor; 2]);
            if F::OFFSET {
                offsets[r] += offset * activation.sum;
            }
        }
    }
    std::array::from_fn(|r| sum_lanes(lanes[r]) + offsets[r])
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
    //! The products on AVX2, bit for bit those of the portable code.

    use std::arch::x86_64::*;

    use super::{ActivationBlock, BlockFormat, Factors, half_power};

    /// 32 nibbles of 16 bytes: the low ones, then the high ones.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[inline(always)]
    pub(super) unsafe fn nibbles(block: &[u8]) -> __m256i {
        let block = &block[..16];
        // SAFETY: the slice holds the 16 bytes that are read; the caller has AVX2.
        unsafe {
            let packed = _mm_loadu_si128(block.as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    /// The values of 32 [`nibbles`].
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn values(block: &[u8], values: &[i8; 16]) -> __m256i {
        // SAFETY: the array holds the 16 bytes that are read; the caller has AVX2.
        unsafe {
            let values = _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast()));
            _mm256_shuffle_epi8(values, nibbles(block))
        }
    }

    /// [`nibbles`] with a fifth bit each.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[inline(always)]
    pub(super) unsafe fn nibbles_and_high_bits(block: &[u8], high: &[u8]) -> __m256i {
        let high = i32::from_le_bytes([high[0], high[1], high[2], high[3]]);
        // SAFETY: the caller has AVX2.
        unsafe {
            // Byte i of the register gets byte i / 8 of the high bits, of which bit i % 8 is then looked at.
            let source =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(high), source);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask);
            _mm256_or_si256(nibbles(block), _mm256_and_si256(set, _mm256_set1_epi8(16)))
        }
    }

    /// 32 bytes as they stand.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[inline(always)]
    pub(super) unsafe fn bytes(block: &[u8]) -> __m256i {
        let block = &block[..32];
        // SAFETY: the slice holds the 32 bytes that are read; the caller has AVX2.
        unsafe { _mm256_loadu_si256(block.as_ptr().cast()) }
    }

    /// A block's scale and offset, in the two lowest lanes.
    ///
    /// # Safety
    /// The processor must have F16C.
    #[inline(always)]
    pub(super) unsafe fn factors(block: &[u8], factors: Factors) -> __m128 {
        let bits = i32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        // SAFETY: the caller has F16C.
        unsafe {
            let halves = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
            match factors {
                Factors::Half | Factors::HalfAndOffset => halves,
                Factors::HalfTimes(factor) => {
                    _mm_mul_ps(_mm_shuffle_ps::<0>(halves, halves), _mm_setr_ps(1.0, factor, 0.0, 0.0))
                }
                Factors::Exponent => _mm_set_ss(half_power(block[0])),
            }
        }
    }

    /// See [`super::products`].
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn products<F: BlockFormat, const R: usize>(
        weights: &[u8],
        activations: [&[ActivationBlock]; R],
    ) -> [f32; R] {
        let ones = _mm256_set1_epi16(1);
        let mut lanes = [_mm256_setzero_ps(); R];
        // The sum of offsets is kept in the second lane; the first is of no use.
        let mut offsets = [_mm_setzero_ps(); R];
        let blocks = weights.len() / F::BYTES;
        let activations = activations.map(|row| &row[..blocks]);
        for (i, block) in weights.chunks_exact(F::BYTES).enumerate() {
            // SAFETY: this function has AVX2 and F16C.
            let (codes, factors) = unsafe { (F::codes_avx2(block), F::factors_avx2(block)) };
            let sizes = if F::SIGNED { _mm256_abs_epi8(codes) } else { codes };
            for r in 0..R {
                let activation = &activations[r][i];
                // SAFETY: `values` holds the 32 bytes that are read.
                let values = unsafe { _mm256_loadu_si256(activation.values.as_ptr().cast()) };
                // SAFETY: `scale` and `sum`, the 8 bytes that are read, stand next to each other.
                let scales = unsafe { _mm_loadl_epi64((&raw const *activation).cast()) };
                let values = if F::SIGNED { _mm256_sign_epi8(values, codes) } else { values };
                // 128 * 127 * 2 still fits 16 bits, so the saturating pair sum is exact.
                let sums = _mm256_madd_epi16(_mm256_maddubs_epi16(sizes, values), ones);
                let scaled = _mm_mul_ps(factors, _mm_castsi128_ps(scales));
                let factor = _mm256_broadcastss_ps(scaled);
                lanes[r] = _mm256_add_ps(lanes[r], _mm256_mul_ps(factor, _mm256_cvtepi32_ps(sums)));
                if F::OFFSET {
                    offsets[r] = _mm_add_ps(offsets[r], scaled);
                }
            }
        }
        std::array::from_fn(|r| {
            let offset = _mm_movehdup_ps(offsets[r]);
            // SAFETY: this function has AVX2.
            _mm_cvtss_f32(_mm_add_ss(unsafe { sum(lanes[r]) }, offset))
        })
    }

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

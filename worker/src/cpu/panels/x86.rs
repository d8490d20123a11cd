//! Lanes on x86-64: a pair of AVX2 registers, or one of AVX-512.

use std::arch::x86_64::*;

use super::activations::{ROUND, step};
use super::{ActivationPart, GROUP, Lanes, PANEL_ROWS, PART, RUN};

/// How far ahead memory is asked for, for one row of activations. The processor itself asks for what follows, but not soon
/// enough: a part takes less time to multiply than to arrive.
const AHEAD: usize = 8 << 10;

/// The same for several rows. Their instructions fill the processor's window with a part or two, so that it finds fewer of
/// the loads to come by itself.
const AHEAD_OF_SEVERAL: usize = 12 << 10;

/// Asks memory for the bytes that a walk with `rows` rows of activations reads some time after these.
#[inline(always)]
fn prefetch(bytes: &[u8], rows: usize) {
    let ahead = if rows == 1 { AHEAD } else { AHEAD_OF_SEVERAL };
    for line in (0..bytes.len()).step_by(64) {
        // SAFETY: a prefetch of any address does nothing but fill a cache.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead + line).cast()) };
    }
}

/// Rounds a part of a row of activations.
#[target_feature(enable = "avx2")]
pub(super) fn round(x: &[f32; PART], part: &mut ActivationPart) {
    // SAFETY: the array holds the 32 numbers that are read.
    let x: [__m256; 4] = [0, 8, 16, 24].map(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(i)) });
    let sizes = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX)));
    let sizes = _mm256_max_epu32(_mm256_max_epu32(sizes[0], sizes[1]), _mm256_max_epu32(sizes[2], sizes[3]));
    let sizes = _mm_max_epu32(_mm256_castsi256_si128(sizes), _mm256_extracti128_si256::<1>(sizes));
    let sizes = _mm_max_epu32(sizes, _mm_shuffle_epi32::<0b01_00_11_10>(sizes));
    let sizes = _mm_max_epu32(sizes, _mm_shuffle_epi32::<0b10_11_00_01>(sizes));
    let (scale, steps) = step(f32::from_bits(_mm_cvtsi128_si32(sizes) as u32));
    let codes = x.map(|x| {
        let rounded = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(steps)), _mm256_set1_ps(ROUND));
        let integers =
            _mm256_sub_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(ROUND.to_bits() as i32));
        _mm256_and_si256(integers, _mm256_set1_epi32(0xFF))
    });
    // Packing works on halves of registers: fours come out in the order 0, 2, 4, 6, 1, 3, 5, 7.
    let (front, back) = (_mm256_packus_epi32(codes[0], codes[1]), _mm256_packus_epi32(codes[2], codes[3]));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let codes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(front, back), order);
    // SAFETY: the array holds the 32 bytes that are written.
    unsafe { _mm256_storeu_si256(part.values.as_mut_ptr().cast(), codes) };
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    let eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b01_00_11_10>(fours));
    let halves = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<0b10_11_00_01>(eights));
    let halves = [_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves)];
    part.scale = scale;
    part.halves = halves.map(|half| _mm_cvtsi128_si32(half) as i16);
    part.sums = part.halves.map(|sum| scale * f32::from(sum));
}

/// Lanes 0..8 and 8..16. Needs AVX2, FMA and F16C.
pub(super) struct Avx2;

#[inline(always)]
fn word(activations: [i8; GROUP]) -> i32 {
    let [a, b, c, d] = activations;
    i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

#[inline(always)]
fn pair([low, high]: [i16; 2]) -> i32 {
    i32::from(high) << 16 | i32::from(low as u16)
}

/// Applies an operation to both halves.
macro_rules! both {
    (|$($x:ident),*| $operation:expr) => {
        // SAFETY: by the contract of `Lanes` the processor has AVX2, FMA and F16C.
        unsafe {
            let low = { $(let $x = $x.0;)* $operation };
            let high = { $(let $x = $x.1;)* $operation };
            (low, high)
        }
    };
}

// SAFETY: every operation is the portable one, in integers or with one rounding for each operation.
unsafe impl Lanes for Avx2 {
    type Bytes = (__m256i, __m256i);
    type Ints = (__m256i, __m256i);
    type Floats = (__m256, __m256);

    const SIGNED_BIAS: i16 = 0;

    #[inline(always)]
    fn prefetch(bytes: &[u8], rows: usize) {
        prefetch(bytes, rows);
    }

    #[inline(always)]
    fn load(bytes: &[u8; 64]) -> Self::Bytes {
        // SAFETY: the array holds the 64 bytes that are read; the processor has AVX2.
        unsafe {
            (_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast()))
        }
    }

    #[inline(always)]
    fn bits(x: Self::Bytes, by: u32, bits: u32) -> Self::Bytes {
        both!(|x| _mm256_and_si256(
            _mm256_srl_epi16(x, _mm_cvtsi32_si128(by as i32)),
            _mm256_set1_epi8(((1u16 << bits) - 1) as i8)
        ))
    }

    #[inline(always)]
    fn left(x: Self::Bytes, by: u32) -> Self::Bytes {
        both!(|x| _mm256_sll_epi16(x, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        both!(|a, b| _mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn spread(x: Self::Bytes, group: usize) -> Self::Bytes {
        // Times 1 + 2^7 + 2^14 + 2^21, the four bits stand at 0, 8, 16 and 24, among others that are masked.
        both!(|x| {
            let four = _mm256_srl_epi32(x, _mm_cvtsi32_si128((GROUP * group) as i32));
            let four = _mm256_and_si256(four, _mm256_set1_epi32(15));
            let apart = _mm256_mullo_epi32(four, _mm256_set1_epi32(0x0020_4081));
            _mm256_and_si256(apart, _mm256_set1_epi8(1))
        })
    }

    #[inline(always)]
    fn look_up(x: Self::Bytes, table: &[i8; 16]) -> Self::Bytes {
        both!(|x| {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, x)
        })
    }

    #[inline(always)]
    fn signed(x: Self::Bytes) -> Self::Bytes {
        x
    }

    #[inline(always)]
    fn weigh(x: [i16; 2], by: [i16; 2]) -> Self::Ints {
        // SAFETY: the processor has AVX2.
        let x = unsafe { _mm256_madd_epi16(_mm256_set1_epi32(pair(x)), _mm256_set1_epi32(pair(by))) };
        (x, x)
    }

    #[inline(always)]
    fn dot(
        sum: Self::Ints,
        codes: Self::Bytes,
        activations: &[[i8; GROUP]; RUN],
        group: usize,
    ) -> Self::Ints {
        // 127 * 127 * 2 fits 16 bits, so the saturating pair sum is exact.
        both!(|sum, codes| {
            let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(word(activations[group])));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }

    #[inline(always)]
    fn dot_signed(
        sum: Self::Ints,
        codes: Self::Bytes,
        activations: &[[i8; GROUP]; RUN],
        group: usize,
    ) -> Self::Ints {
        // The codes' signs change sides; 128 * 127 * 2 still fits 16 bits.
        both!(|sum, codes| {
            let values = _mm256_sign_epi8(_mm256_set1_epi32(word(activations[group])), codes);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), values);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }

    #[inline(always)]
    fn floats(x: Self::Ints) -> Self::Floats {
        both!(|x| _mm256_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn splat(x: f32) -> Self::Floats {
        // SAFETY: the processor has AVX2.
        let x = unsafe { _mm256_set1_ps(x) };
        (x, x)
    }

    #[inline(always)]
    fn bytes_as_floats(x: [u8; PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 16 bytes that are read; the processor has AVX2.
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            let low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            let high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
            (low, high)
        }
    }

    #[inline(always)]
    fn signed_bytes_as_floats(x: [u8; PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 16 bytes that are read; the processor has AVX2.
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
            (low, high)
        }
    }

    #[inline(always)]
    fn halves(x: &[u8; 2 * PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 32 bytes that are read; the processor has F16C.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
            (low, _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(16).cast())))
        }
    }

    #[inline(always)]
    fn singles(x: &[u8; 4 * PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 64 bytes that are read; the processor has AVX2.
        unsafe { (_mm256_loadu_ps(x.as_ptr().cast()), _mm256_loadu_ps(x.as_ptr().add(32).cast())) }
    }

    #[inline(always)]
    fn high_halves(x: &[u8; 2 * PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 32 bytes that are read; the processor has AVX2.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(16).cast()));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    fn from_array(x: [f32; PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 16 numbers that are read; the processor has AVX2.
        unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        both!(|a, b| _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        both!(|a, b, c| _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn to_array(x: Self::Floats) -> [f32; PANEL_ROWS] {
        let mut out = [0.0; PANEL_ROWS];
        // SAFETY: the array holds the 16 numbers that are written; the processor has AVX2.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), x.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x.1);
        }
        out
    }
}

/// All lanes in one register. Needs AVX-512 F, BW and VNNI.
pub(super) struct Avx512;

/// An operation that needs nothing but the processor's instructions.
macro_rules! here {
    ($operation:expr) => {
        // SAFETY: by the contract of `Lanes` the processor has AVX-512 F, BW and VNNI.
        unsafe { $operation }
    };
}

// SAFETY: as above.
unsafe impl Lanes for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const SIGNED_BIAS: i16 = 128;

    #[inline(always)]
    fn prefetch(bytes: &[u8], rows: usize) {
        prefetch(bytes, rows);
    }

    #[inline(always)]
    fn load(bytes: &[u8; 64]) -> __m512i {
        // SAFETY: the array holds the 64 bytes that are read; the processor has AVX-512.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn bits(x: __m512i, by: u32, bits: u32) -> __m512i {
        here!(_mm512_and_si512(
            _mm512_srl_epi16(x, _mm_cvtsi32_si128(by as i32)),
            _mm512_set1_epi8(((1u16 << bits) - 1) as i8)
        ))
    }

    #[inline(always)]
    fn left(x: __m512i, by: u32) -> __m512i {
        here!(_mm512_sll_epi16(x, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn or(a: __m512i, b: __m512i) -> __m512i {
        here!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn spread(x: __m512i, group: usize) -> __m512i {
        // As with AVX2.
        here!({
            let four = _mm512_srl_epi32(x, _mm_cvtsi32_si128((GROUP * group) as i32));
            let four = _mm512_and_si512(four, _mm512_set1_epi32(15));
            let apart = _mm512_mullo_epi32(four, _mm512_set1_epi32(0x0020_4081));
            _mm512_and_si512(apart, _mm512_set1_epi8(1))
        })
    }

    #[inline(always)]
    fn look_up(x: __m512i, table: &[i8; 16]) -> __m512i {
        // SAFETY: the table holds the 16 bytes that are read; the processor has AVX-512.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, x)
        }
    }

    #[inline(always)]
    fn signed(x: __m512i) -> __m512i {
        here!(_mm512_xor_si512(x, _mm512_set1_epi8(-128)))
    }

    #[inline(always)]
    fn weigh(x: [i16; 2], by: [i16; 2]) -> __m512i {
        here!(_mm512_madd_epi16(_mm512_set1_epi32(pair(x)), _mm512_set1_epi32(pair(by))))
    }

    #[inline(always)]
    fn dot(sum: __m512i, codes: __m512i, activations: &[[i8; GROUP]; RUN], group: usize) -> __m512i {
        here!(_mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(word(activations[group]))))
    }

    #[inline(always)]
    fn dot_signed(sum: __m512i, codes: __m512i, activations: &[[i8; GROUP]; RUN], group: usize) -> __m512i {
        Self::dot(sum, codes, activations, group)
    }

    #[inline(always)]
    fn floats(x: __m512i) -> __m512 {
        here!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn splat(x: f32) -> __m512 {
        here!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn bytes_as_floats(x: [u8; PANEL_ROWS]) -> __m512 {
        // SAFETY: the array holds the 16 bytes that are read; the processor has AVX-512.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn signed_bytes_as_floats(x: [u8; PANEL_ROWS]) -> __m512 {
        // SAFETY: the array holds the 16 bytes that are read; the processor has AVX-512.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn halves(x: &[u8; 2 * PANEL_ROWS]) -> __m512 {
        // SAFETY: the array holds the 32 bytes that are read; the processor has AVX-512.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn singles(x: &[u8; 4 * PANEL_ROWS]) -> __m512 {
        // SAFETY: the array holds the 64 bytes that are read; the processor has AVX-512.
        unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn high_halves(x: &[u8; 2 * PANEL_ROWS]) -> __m512 {
        // SAFETY: the array holds the 32 bytes that are read; the processor has AVX-512.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn from_array(x: [f32; PANEL_ROWS]) -> __m512 {
        // SAFETY: the array holds the 16 numbers that are read; the processor has AVX-512.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        here!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        here!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn to_array(x: __m512) -> [f32; PANEL_ROWS] {
        let mut out = [0.0; PANEL_ROWS];
        // SAFETY: the array holds the 16 numbers that are written; the processor has AVX-512.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
        out
    }
}

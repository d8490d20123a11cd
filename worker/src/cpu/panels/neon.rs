//! Lanes on 64-bit Arm processors: four registers of four.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{GROUP, Lanes, PANEL_ROWS, RUN};

/// Lanes 0..4, 4..8, 8..12 and 12..16. Needs NEON, and with `DOTPROD` its dot products of bytes. `CONSTANT` code is
/// written out for every part of a block, and its shifts are constants.
pub(super) struct Neon<const DOTPROD: bool, const CONSTANT: bool>;

/// Applies an operation to all four registers.
macro_rules! all {
    (|$($x:ident),*| $operation:expr) => {
        // SAFETY: by the contract of `Lanes` the processor has NEON.
        unsafe {
            [
                { $(let $x = $x[0];)* $operation },
                { $(let $x = $x[1];)* $operation },
                { $(let $x = $x[2];)* $operation },
                { $(let $x = $x[3];)* $operation },
            ]
        }
    };
}

/// Adds the products of four neighbouring codes with as many activations, -127..=127, to each integer. Needs NEON, and
/// with `DOTPROD` its dot products of bytes.
#[inline(always)]
pub(in crate::cpu) fn add_dots<const DOTPROD: bool>(
    mut sum: int32x4_t,
    codes: int8x16_t,
    activations: int8x16_t,
) -> int32x4_t {
    if DOTPROD {
        // The intrinsics, `vdotq_s32` and `vdotq_laneq_s32`, are not stable yet.
        // SAFETY: the caller has dot products of bytes.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {codes:v}.16b, {activations:v}.16b",
                sum = inout(vreg) sum,
                codes = in(vreg) codes,
                activations = in(vreg) activations,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        return sum;
    }
    // SAFETY: the caller has NEON.
    unsafe {
        // 128 * 127 * 2 fits 16 bits, so the sums of pairs are exact.
        let low = vmull_s8(vget_low_s8(codes), vget_low_s8(activations));
        let high = vmull_high_s8(codes, activations);
        vpadalq_s16(sum, vpaddq_s16(low, high))
    }
}

/// The same with group `LANE` of 16 activations for all.
#[inline(always)]
fn add_dots_with<const DOTPROD: bool, const LANE: i32>(
    mut sum: int32x4_t,
    codes: uint8x16_t,
    activations: int8x16_t,
) -> int32x4_t {
    if DOTPROD {
        // SAFETY: by the contract of `Lanes` the processor has dot products of bytes.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {codes:v}.16b, {activations:v}.4b[{lane}]",
                sum = inout(vreg) sum,
                codes = in(vreg) codes,
                activations = in(vreg) activations,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        return sum;
    }
    // SAFETY: by the contract of `Lanes` the processor has NEON.
    unsafe {
        let group = vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(activations));
        add_dots::<false>(sum, vreinterpretq_s8_u8(codes), vreinterpretq_s8_s32(group))
    }
}

/// Four half-precision numbers, in the low half of a register, as they are.
#[inline(always)]
fn widen_low(halves: uint16x8_t) -> float32x4_t {
    let wide: float32x4_t;
    // The intrinsic, `vcvt_f32_f16`, asks for arithmetic in half precision, which the instruction does not need.
    // SAFETY: by the contract of `Lanes` the processor has NEON.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    wide
}

/// The four in the high half.
#[inline(always)]
fn widen_high(halves: uint16x8_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: by the contract of `Lanes` the processor has NEON.
    unsafe {
        asm!(
            "fcvtl2 {wide:v}.4s, {halves:v}.8h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    wide
}

/// Adds the products with group `$lane` of the activations to all four registers.
macro_rules! dots {
    ($lane:literal, $dotprod:ident, $sum:ident, $codes:ident, $values:ident) => {
        [
            add_dots_with::<$dotprod, $lane>($sum[0], $codes[0], $values),
            add_dots_with::<$dotprod, $lane>($sum[1], $codes[1], $values),
            add_dots_with::<$dotprod, $lane>($sum[2], $codes[2], $values),
            add_dots_with::<$dotprod, $lane>($sum[3], $codes[3], $values),
        ]
    };
}

// SAFETY: every operation is the portable one, in integers or with one rounding for each operation.
unsafe impl<const DOTPROD: bool, const CONSTANT: bool> Lanes for Neon<DOTPROD, CONSTANT> {
    type Bytes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

    const SIGNED_BIAS: i16 = 0;

    #[inline(always)]
    fn load(bytes: &[u8; 64]) -> Self::Bytes {
        let bytes = bytes.as_ptr();
        // SAFETY: the array holds the 64 bytes that are read; the processor has NEON.
        unsafe {
            [vld1q_u8(bytes), vld1q_u8(bytes.add(16)), vld1q_u8(bytes.add(32)), vld1q_u8(bytes.add(48))]
        }
    }

    #[inline(always)]
    fn bits(x: Self::Bytes, by: u32, bits: u32) -> Self::Bytes {
        // SAFETY: the processor has NEON.
        let (mask, right) = unsafe { (vdupq_n_u8(((1u16 << bits) - 1) as u8), vdupq_n_s8(-(by as i8))) };
        if !CONSTANT {
            return all!(|x| vandq_u8(vshlq_u8(x, right), mask));
        }
        match by {
            0 => all!(|x| vandq_u8(x, mask)),
            1 => all!(|x| vandq_u8(vshrq_n_u8::<1>(x), mask)),
            2 => all!(|x| vandq_u8(vshrq_n_u8::<2>(x), mask)),
            3 => all!(|x| vandq_u8(vshrq_n_u8::<3>(x), mask)),
            4 => all!(|x| vandq_u8(vshrq_n_u8::<4>(x), mask)),
            5 => all!(|x| vandq_u8(vshrq_n_u8::<5>(x), mask)),
            6 => all!(|x| vandq_u8(vshrq_n_u8::<6>(x), mask)),
            _ => all!(|x| vandq_u8(vshrq_n_u8::<7>(x), mask)),
        }
    }

    #[inline(always)]
    fn left(x: Self::Bytes, by: u32) -> Self::Bytes {
        match by {
            2 => all!(|x| vshlq_n_u8::<2>(x)),
            4 => all!(|x| vshlq_n_u8::<4>(x)),
            _ => all!(|x| vshlq_u8(x, vdupq_n_s8(by as i8))),
        }
    }

    #[inline(always)]
    fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        all!(|a, b| vorrq_u8(a, b))
    }

    #[inline(always)]
    fn spread(x: Self::Bytes, group: usize) -> Self::Bytes {
        // Bytes of each lane: the one that holds the group's bits, four times; then each its own bit of it.
        const BITS: [[u8; 4]; 2] = [[1, 2, 4, 8], [16, 32, 64, 128]];
        // SAFETY: the processor has NEON.
        let (byte, bit) = unsafe {
            let lanes = vdupq_n_u32((group / 2) as u32 * 0x0101_0101);
            let firsts = vmulq_n_u32(vld1q_u32([0, 1, 2, 3].as_ptr()), 0x0404_0404);
            let bits = vdupq_n_u32(u32::from_le_bytes(BITS[group % 2]));
            (vreinterpretq_u8_u32(vaddq_u32(lanes, firsts)), vreinterpretq_u8_u32(bits))
        };
        all!(|x| vshrq_n_u8::<7>(vtstq_u8(vqtbl1q_u8(x, byte), bit)))
    }

    #[inline(always)]
    fn look_up(x: Self::Bytes, table: &[i8; 16]) -> Self::Bytes {
        // SAFETY: the table holds the 16 bytes that are read; the processor has NEON.
        let table = unsafe { vld1q_u8(table.as_ptr().cast()) };
        all!(|x| vqtbl1q_u8(table, x))
    }

    #[inline(always)]
    fn signed(x: Self::Bytes) -> Self::Bytes {
        x
    }

    #[inline(always)]
    fn weigh([a, b]: [i16; 2], [x, y]: [i16; 2]) -> Self::Ints {
        let sum = i32::from(a) * i32::from(x) + i32::from(b) * i32::from(y);
        // SAFETY: the processor has NEON.
        [unsafe { vdupq_n_s32(sum) }; 4]
    }

    #[inline(always)]
    fn dot(
        sum: Self::Ints,
        codes: Self::Bytes,
        activations: &[[i8; GROUP]; RUN],
        group: usize,
    ) -> Self::Ints {
        // SAFETY: the array holds the 16 bytes that are read; the processor has NEON.
        let values = unsafe { vld1q_s8(activations.as_ptr().cast()) };
        match group {
            0 => dots!(0, DOTPROD, sum, codes, values),
            1 => dots!(1, DOTPROD, sum, codes, values),
            2 => dots!(2, DOTPROD, sum, codes, values),
            _ => dots!(3, DOTPROD, sum, codes, values),
        }
    }

    #[inline(always)]
    fn dot_signed(
        sum: Self::Ints,
        codes: Self::Bytes,
        activations: &[[i8; GROUP]; RUN],
        group: usize,
    ) -> Self::Ints {
        // Codes of 0..=127 are the same in either reading.
        Self::dot(sum, codes, activations, group)
    }

    #[inline(always)]
    fn floats(x: Self::Ints) -> Self::Floats {
        all!(|x| vcvtq_f32_s32(x))
    }

    #[inline(always)]
    fn splat(x: f32) -> Self::Floats {
        // SAFETY: the processor has NEON.
        [unsafe { vdupq_n_f32(x) }; 4]
    }

    #[inline(always)]
    fn bytes_as_floats(x: [u8; PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 16 bytes that are read; the processor has NEON.
        unsafe {
            let bytes = vld1q_u8(x.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ]
        }
    }

    #[inline(always)]
    fn signed_bytes_as_floats(x: [u8; PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 16 bytes that are read; the processor has NEON.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(x.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        }
    }

    #[inline(always)]
    fn halves(x: &[u8; 2 * PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 32 bytes that are read; the processor has NEON.
        let (low, high) = unsafe {
            let low = vreinterpretq_u16_u8(vld1q_u8(x.as_ptr()));
            (low, vreinterpretq_u16_u8(vld1q_u8(x.as_ptr().add(16))))
        };
        [widen_low(low), widen_high(low), widen_low(high), widen_high(high)]
    }

    #[inline(always)]
    fn singles(x: &[u8; 4 * PANEL_ROWS]) -> Self::Floats {
        let x = Self::load(x);
        all!(|x| vreinterpretq_f32_u8(x))
    }

    #[inline(always)]
    fn high_halves(x: &[u8; 2 * PANEL_ROWS]) -> Self::Floats {
        // SAFETY: the array holds the 32 bytes that are read; the processor has NEON.
        unsafe {
            let low = vreinterpretq_u16_u8(vld1q_u8(x.as_ptr()));
            let high = vreinterpretq_u16_u8(vld1q_u8(x.as_ptr().add(16)));
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(low)),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn from_array(x: [f32; PANEL_ROWS]) -> Self::Floats {
        let x = x.as_ptr();
        // SAFETY: the array holds the 16 numbers that are read; the processor has NEON.
        unsafe { [vld1q_f32(x), vld1q_f32(x.add(4)), vld1q_f32(x.add(8)), vld1q_f32(x.add(12))] }
    }

    #[inline(always)]
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        all!(|a, b| vmulq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        all!(|a, b, c| vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn to_array(x: Self::Floats) -> [f32; PANEL_ROWS] {
        let mut out = [0.0; PANEL_ROWS];
        for i in 0..4 {
            // SAFETY: the array holds the 4 numbers that are written; the processor has NEON.
            unsafe { vst1q_f32(out[4 * i..].as_mut_ptr(), x[i]) };
        }
        out
    }
}

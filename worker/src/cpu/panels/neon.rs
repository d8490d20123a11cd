//! Lanes on 64-bit Arm processors: four registers of four.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{GROUP, Lanes, PANEL_ROWS, RUN};

/// Lanes 0..4, 4..8, 8..12 and 12..16. Needs NEON.
pub(super) struct Neon;

/// The same. Needs NEON's dot products of bytes besides.
pub(super) struct Dotprod;

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

/// Sums of the products of neighbours: of four bytes with four others, added to each integer.
#[inline(always)]
fn dot_by_products(sum: int32x4_t, codes: uint8x16_t, activations: int8x16_t) -> int32x4_t {
    // SAFETY: by the contract of `Lanes` the processor has NEON.
    unsafe {
        let codes = vreinterpretq_s8_u8(codes);
        // 128 * 127 * 2 fits 16 bits, so the sums of pairs are exact.
        let low = vmull_s8(vget_low_s8(codes), vget_low_s8(activations));
        let high = vmull_high_s8(codes, activations);
        vpadalq_s16(sum, vpaddq_s16(low, high))
    }
}

/// The same in one instruction, with group `LANE` of 16 activations for all.
#[inline(always)]
fn dot_by_lane<const LANE: usize>(sum: int32x4_t, codes: uint8x16_t, activations: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // The intrinsic, `vdotq_laneq_s32`, is not stable yet.
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
    sum
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

/// Implements [`Lanes`] with a `dot` of its own.
macro_rules! neon_lanes {
    ($name:ident, |$sum:ident, $codes:ident, $activations:ident, $group:ident| $dot:expr) => {
        // SAFETY: every operation is the portable one, in integers or with one rounding for each operation.
        unsafe impl Lanes for $name {
            type Bytes = [uint8x16_t; 4];
            type Ints = [int32x4_t; 4];
            type Floats = [float32x4_t; 4];

            const SIGNED_BIAS: i32 = 0;

            #[inline(always)]
            fn load(bytes: &[u8; 64]) -> Self::Bytes {
                let bytes = bytes.as_ptr();
                // SAFETY: the array holds the 64 bytes that are read; the processor has NEON.
                unsafe {
                    [
                        vld1q_u8(bytes),
                        vld1q_u8(bytes.add(16)),
                        vld1q_u8(bytes.add(32)),
                        vld1q_u8(bytes.add(48)),
                    ]
                }
            }

            #[inline(always)]
            fn bits(x: Self::Bytes, by: u32, bits: u32) -> Self::Bytes {
                all!(|x| vandq_u8(
                    vshlq_u8(x, vdupq_n_s8(-(by as i8))),
                    vdupq_n_u8(((1u16 << bits) - 1) as u8)
                ))
            }

            #[inline(always)]
            fn left(x: Self::Bytes, by: u32) -> Self::Bytes {
                all!(|x| vshlq_u8(x, vdupq_n_s8(by as i8)))
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
            fn ints(x: i32) -> Self::Ints {
                // SAFETY: the processor has NEON.
                [unsafe { vdupq_n_s32(x) }; 4]
            }

            #[inline(always)]
            fn dot(
                $sum: Self::Ints,
                $codes: Self::Bytes,
                activations: &[[i8; GROUP]; RUN],
                $group: usize,
            ) -> Self::Ints {
                // SAFETY: the array holds the 16 bytes that are read; the processor has NEON.
                let $activations = unsafe { vld1q_s8(activations.as_ptr().cast()) };
                $dot
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
    };
}

neon_lanes!(Neon, |sum, codes, activations, group| {
    // SAFETY: the processor has NEON.
    let activations = unsafe {
        let words = vreinterpretq_s32_s8(activations);
        vreinterpretq_s8_s32(match group {
            0 => vdupq_laneq_s32::<0>(words),
            1 => vdupq_laneq_s32::<1>(words),
            2 => vdupq_laneq_s32::<2>(words),
            _ => vdupq_laneq_s32::<3>(words),
        })
    };
    [
        dot_by_products(sum[0], codes[0], activations),
        dot_by_products(sum[1], codes[1], activations),
        dot_by_products(sum[2], codes[2], activations),
        dot_by_products(sum[3], codes[3], activations),
    ]
});

/// Applies [`dot_by_lane`] to all four registers.
macro_rules! dots {
    ($lane:literal, $sum:ident, $codes:ident, $activations:ident) => {
        [
            dot_by_lane::<$lane>($sum[0], $codes[0], $activations),
            dot_by_lane::<$lane>($sum[1], $codes[1], $activations),
            dot_by_lane::<$lane>($sum[2], $codes[2], $activations),
            dot_by_lane::<$lane>($sum[3], $codes[3], $activations),
        ]
    };
}

neon_lanes!(Dotprod, |sum, codes, activations, group| match group {
    0 => dots!(0, sum, codes, activations),
    1 => dots!(1, sum, codes, activations),
    2 => dots!(2, sum, codes, activations),
    _ => dots!(3, sum, codes, activations),
});

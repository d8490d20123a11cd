//! Matrices of floating-point numbers in panels, and their products with activations as they are.
//!
//! A panel holds the first value of its 16 rows, then the second, and so on. Products add up values of even and of odd
//! index apart, in order, each with `fma(weight, activation, sum)`, and then both sums.

use half::f16;

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{Lanes, PANEL_ROWS};
use crate::simd::Simd;

/// Values of a row that are put in their places before the next row's: few enough that the panel's part stays in the
/// first-level cache.
const TILE: usize = 128;

/// A format of single numbers.
pub(in crate::cpu) trait FloatFormat {
    /// Bytes of a number.
    const BYTES: usize;

    /// A number.
    fn one(bytes: &[u8]) -> f32;

    /// A number of each row.
    fn load<L: Lanes>(bytes: &[u8]) -> L::Floats;
}

pub(in crate::cpu) struct F32;

impl FloatFormat for F32 {
    const BYTES: usize = 4;

    fn one(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    fn load<L: Lanes>(bytes: &[u8]) -> L::Floats {
        L::singles(&bytes.as_chunks().0[0])
    }
}

pub(in crate::cpu) struct F16;

impl FloatFormat for F16 {
    const BYTES: usize = 2;

    fn one(bytes: &[u8]) -> f32 {
        f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }

    #[inline(always)]
    fn load<L: Lanes>(bytes: &[u8]) -> L::Floats {
        L::halves(&bytes.as_chunks().0[0])
    }
}

pub(in crate::cpu) struct Bf16;

impl FloatFormat for Bf16 {
    const BYTES: usize = 2;

    fn one(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }

    #[inline(always)]
    fn load<L: Lanes>(bytes: &[u8]) -> L::Floats {
        L::high_halves(&bytes.as_chunks().0[0])
    }
}

/// Copies `count` rows to a panel.
pub(in crate::cpu) fn interleave_floats<F: FloatFormat>(
    rows: &[u8],
    row_bytes: usize,
    count: usize,
    panel: &mut [u8],
) {
    for (tile, panel) in panel.chunks_mut(TILE * F::BYTES * PANEL_ROWS).enumerate() {
        for row in 0..count {
            let from = &rows[row * row_bytes + tile * TILE * F::BYTES..][..panel.len() / PANEL_ROWS];
            for (k, value) in from.chunks_exact(F::BYTES).enumerate() {
                panel[(k * PANEL_ROWS + row) * F::BYTES..][..F::BYTES].copy_from_slice(value);
            }
        }
    }
}

/// Writes row `row` of a panel as f32.
pub(in crate::cpu) fn widen_row<F: FloatFormat>(panel: &[u8], row: usize, out: &mut [f32]) {
    for (values, out) in panel.chunks_exact(F::BYTES * PANEL_ROWS).zip(out) {
        *out = F::one(&values[row * F::BYTES..]);
    }
}

/// Writes all rows of a panel as f32, one after another.
pub(in crate::cpu) fn widen<F: FloatFormat>(panel: &[u8], out: &mut [f32]) {
    let width = out.len() / PANEL_ROWS;
    for (row, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
        widen_row::<F>(panel, row, out);
    }
}

/// The products of all rows of a panel with `R` rows of activations, each as long as the panel's.
pub(in crate::cpu) fn float_products<F: FloatFormat, const R: usize>(
    simd: Simd,
    panel: &[u8],
    rows: [&[f32]; R],
) -> [[f32; PANEL_ROWS]; R] {
    match simd {
        Simd::Portable => rows.map(|row| {
            let [products] = walk::<F, Portable, 1>(panel, [row]);
            products
        }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` exists only where detection found AVX2, FMA and F16C.
        Simd::Avx2(_) => unsafe { avx2::<F, R>(panel, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx512` exists only where detection found AVX-512 F, BW and VNNI besides.
        Simd::Avx512(_) => unsafe { avx512::<F, R>(panel, rows) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: these exist only where detection found NEON.
        Simd::Neon(_) | Simd::Dotprod(_) => unsafe { neon::<F, R>(panel, rows) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<F: FloatFormat, const R: usize>(panel: &[u8], rows: [&[f32]; R]) -> [[f32; PANEL_ROWS]; R] {
    in_twos::<F, Avx2, R>(panel, rows)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn avx512<F: FloatFormat, const R: usize>(panel: &[u8], rows: [&[f32]; R]) -> [[f32; PANEL_ROWS]; R] {
    walk::<F, Avx512, R>(panel, rows)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<F: FloatFormat, const R: usize>(panel: &[u8], rows: [&[f32]; R]) -> [[f32; PANEL_ROWS]; R] {
    in_twos::<F, Neon<false, false>, R>(panel, rows)
}

/// Two rows of activations after two others: the sums of more, a pair for each, are more than the registers of AVX2 or NEON
/// hold.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn in_twos<F: FloatFormat, L: Lanes, const R: usize>(
    panel: &[u8],
    rows: [&[f32]; R],
) -> [[f32; PANEL_ROWS]; R] {
    let mut products = [[0.0; PANEL_ROWS]; R];
    for (rows, products) in rows.as_chunks().0.iter().zip(products.as_chunks_mut().0) {
        *products = walk::<F, L, 2>(panel, *rows);
    }
    if const { R % 2 == 1 } {
        [products[R - 1]] = walk::<F, L, 1>(panel, [rows[R - 1]]);
    }
    products
}

#[inline(always)]
fn walk<F: FloatFormat, L: Lanes, const R: usize>(panel: &[u8], rows: [&[f32]; R]) -> [[f32; PANEL_ROWS]; R] {
    let line = F::BYTES * PANEL_ROWS;
    let width = panel.len() / line;
    let (mut even, mut odd) = ([L::splat(0.0); R], [L::splat(0.0); R]);
    let mut at = [&[] as &[f32]; R];
    for r in 0..R {
        at[r] = &rows[r][..width];
    }
    for (i, pair) in panel.chunks_exact(2 * line).enumerate() {
        let (first, second) = (F::load::<L>(pair), F::load::<L>(&pair[line..]));
        for r in 0..R {
            even[r] = L::mul_add(first, L::splat(at[r][2 * i]), even[r]);
            odd[r] = L::mul_add(second, L::splat(at[r][2 * i + 1]), odd[r]);
        }
    }
    if width % 2 == 1 {
        let last = F::load::<L>(&panel[(width - 1) * line..]);
        for r in 0..R {
            even[r] = L::mul_add(last, L::splat(at[r][width - 1]), even[r]);
        }
    }
    let mut products = [[0.0; PANEL_ROWS]; R];
    for r in 0..R {
        products[r] = L::to_array(L::mul_add(even[r], L::splat(1.0), odd[r]));
    }
    products
}

/// Rows of numbers that follow each other, the first of each at every `stride`th number.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct WeighedRows<'a> {
    pub(in crate::cpu) bytes: &'a [u8],
    pub(in crate::cpu) stride: usize,
}

/// Adds rows of numbers, each times its weight, to each of `R` outputs, in the order of the rows with
/// `fma(number, weight, sum)`. There are as many rows as weights for an output.
pub(in crate::cpu) fn add_weighed<F: FloatFormat, const R: usize>(
    simd: Simd,
    rows: WeighedRows<'_>,
    weights: [&[f32]; R],
    out: [&mut [f32]; R],
) {
    match simd {
        Simd::Portable => weigh::<F, Portable, R>(rows, weights, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` exists only where detection found AVX2, FMA and F16C.
        Simd::Avx2(_) => unsafe { weigh_avx2::<F, R>(rows, weights, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx512` exists only where detection found AVX-512 F, BW and VNNI besides.
        Simd::Avx512(_) => unsafe { weigh_avx512::<F, R>(rows, weights, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: these exist only where detection found NEON.
        Simd::Neon(_) | Simd::Dotprod(_) => unsafe { weigh_neon::<F, R>(rows, weights, out) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh_avx2<F: FloatFormat, const R: usize>(
    rows: WeighedRows<'_>,
    weights: [&[f32]; R],
    out: [&mut [f32]; R],
) {
    weigh::<F, Avx2, R>(rows, weights, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn weigh_avx512<F: FloatFormat, const R: usize>(
    rows: WeighedRows<'_>,
    weights: [&[f32]; R],
    out: [&mut [f32]; R],
) {
    weigh::<F, Avx512, R>(rows, weights, out);
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn weigh_neon<F: FloatFormat, const R: usize>(
    rows: WeighedRows<'_>,
    weights: [&[f32]; R],
    out: [&mut [f32]; R],
) {
    weigh::<F, Neon<false, false>, R>(rows, weights, out);
}

#[expect(clippy::needless_range_loop, reason = "the row counts for all outputs")]
#[inline(always)]
fn weigh<F: FloatFormat, L: Lanes, const R: usize>(
    rows: WeighedRows<'_>,
    weights: [&[f32]; R],
    out: [&mut [f32]; R],
) {
    let line = F::BYTES * PANEL_ROWS;
    let (count, width) = (weights[0].len(), out[0].len());
    let mut channel = 0;
    // Two registers of channels at a time: a sum waits for the one before it, and two are waited for together.
    while channel + 2 * PANEL_ROWS <= width {
        let (mut low, mut high) = ([L::splat(0.0); R], [L::splat(0.0); R]);
        for r in 0..R {
            let sums = out[r][channel..].as_chunks::<PANEL_ROWS>().0;
            (low[r], high[r]) = (L::from_array(sums[0]), L::from_array(sums[1]));
        }
        for row in 0..count {
            let numbers = &rows.bytes[(row * rows.stride + channel) * F::BYTES..][..2 * line];
            let (first, second) = (F::load::<L>(numbers), F::load::<L>(&numbers[line..]));
            for r in 0..R {
                let weight = L::splat(weights[r][row]);
                low[r] = L::mul_add(first, weight, low[r]);
                high[r] = L::mul_add(second, weight, high[r]);
            }
        }
        for r in 0..R {
            let sums = out[r][channel..].as_chunks_mut::<PANEL_ROWS>().0;
            (sums[0], sums[1]) = (L::to_array(low[r]), L::to_array(high[r]));
        }
        channel += 2 * PANEL_ROWS;
    }
    while channel < width {
        let channels = PANEL_ROWS.min(width - channel);
        let mut sums = [L::splat(0.0); R];
        for r in 0..R {
            let mut padded = [0.0; PANEL_ROWS];
            padded[..channels].copy_from_slice(&out[r][channel..][..channels]);
            sums[r] = L::from_array(padded);
        }
        for row in 0..count {
            let mut padded = [0; 4 * PANEL_ROWS];
            let numbers = &rows.bytes[(row * rows.stride + channel) * F::BYTES..][..channels * F::BYTES];
            padded[..numbers.len()].copy_from_slice(numbers);
            let numbers = F::load::<L>(&padded);
            for r in 0..R {
                sums[r] = L::mul_add(numbers, L::splat(weights[r][row]), sums[r]);
            }
        }
        for r in 0..R {
            out[r][channel..][..channels].copy_from_slice(&L::to_array(sums[r])[..channels]);
        }
        channel += channels;
    }
}

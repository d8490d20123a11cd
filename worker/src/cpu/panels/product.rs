//! Products of a panel with rows of activations.

use super::formats::each;
use super::portable::Portable;
#[cfg(target_arch = "aarch64")]
use super::together;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{ActivationRow, Factors, GROUP, GROUPS, Lanes, PANEL_ROWS, PART, PanelFormat, RUN};
use crate::simd::Simd;

/// Most rows of activations that one walk over a panel serves.
pub(in crate::cpu) const MOST_ROWS: usize = 8;
const _: () = assert!(MOST_ROWS.is_multiple_of(4), "several rows of activations are taken in fours");

/// The products of all rows of a panel with `R` rows of activations.
pub(in crate::cpu) fn products<F: PanelFormat, const R: usize>(
    simd: Simd,
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    match simd {
        Simd::Portable => rows.map(|row| portable::<F>(panel, row)),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` exists only where detection found AVX2, FMA and F16C.
        Simd::Avx2(_) => unsafe { avx2::<F, R>(panel, rows) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx512` exists only where detection found AVX-512 F, BW and VNNI besides.
        Simd::Avx512(_) => unsafe { avx512::<F, R>(panel, rows) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Neon` exists only where detection found NEON.
        Simd::Neon(_) => unsafe { neon::<F, R>(panel, rows) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Dotprod` exists only where detection found NEON and its dot products.
        Simd::Dotprod(_) => unsafe { dotprod::<F, R>(panel, rows) },
    }
}

/// Row by row: what is slow anyway need not be compiled for many rows.
fn portable<F: PanelFormat>(panel: &[u8], row: ActivationRow<'_>) -> [f32; PANEL_ROWS] {
    let [products] = walk::<F, Portable, 1>(panel, [row]);
    products
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    walk::<F, Avx2, R>(panel, rows)
}

/// Four rows at once are up to a third faster here than eight, whose sums and codes are more than the registers hold; only
/// what the codes of formats with two scales for a part take to unpack is worth sharing among eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn avx512<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    if const { R <= 4 || F::HALVES } {
        return walk::<F, Avx512, R>(panel, rows);
    }
    let mut products = [[0.0; PANEL_ROWS]; R];
    for (rows, products) in rows.as_chunks().0.iter().zip(products.as_chunks_mut().0) {
        *products = avx512::<F, 4>(panel, *rows);
    }
    products
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    together::by_fours::<F, false, R>(panel, rows)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn dotprod<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    together::by_fours::<F, true, R>(panel, rows)
}

#[inline(always)]
fn walk<F: PanelFormat, L: Lanes, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    let bias = if F::SIGNED { L::SIGNED_BIAS } else { F::CENTER };
    let mut sums = [L::splat(0.0); R];
    let mut number = 0;
    for block in panel.chunks_exact(F::BYTES * PANEL_ROWS) {
        for part in 0..F::VALUES / PART {
            let codes = each!(group, |g| F::codes::<L>(block, part, g));
            let Factors { scales, offsets } = F::factors::<L>(block, part);
            let codes = if F::SIGNED { signed::<L>(codes) } else { codes };
            for r in 0..R {
                let row = &rows[r];
                let scale = L::splat(row.scales[number]);
                let values = row.values.as_chunks::<GROUPS>().0[number].as_chunks::<RUN>().0;
                let halves = [i32::from(row.halves[number][0]), i32::from(row.halves[number][1])];
                if F::HALVES {
                    let first = dot::<F, L>(&codes[..RUN], &values[..1], bias * halves[0]);
                    sums[r] = L::mul_add(first, L::mul(scales[0], scale), sums[r]);
                    let second = dot::<F, L>(&codes[RUN..], &values[1..], bias * halves[1]);
                    sums[r] = L::mul_add(second, L::mul(scales[1], scale), sums[r]);
                    if F::OFFSET {
                        let [first, second] = row.sums[number];
                        sums[r] = L::mul_add(offsets[0], L::splat(first), sums[r]);
                        sums[r] = L::mul_add(offsets[1], L::splat(second), sums[r]);
                    }
                } else {
                    let whole = dot::<F, L>(&codes, values, bias * (halves[0] + halves[1]));
                    sums[r] = L::mul_add(whole, L::mul(scales[0], scale), sums[r]);
                    if F::OFFSET {
                        let [first, second] = row.sums[number];
                        sums[r] = L::mul_add(offsets[0], L::splat(first + second), sums[r]);
                    }
                }
            }
            number += 1;
        }
    }
    let mut products = [[0.0; PANEL_ROWS]; R];
    for r in 0..R {
        products[r] = L::to_array(sums[r]);
    }
    products
}

/// The sum of products of codes with activations, less `bias`.
#[inline(always)]
fn dot<F: PanelFormat, L: Lanes>(codes: &[L::Bytes], values: &[[[i8; GROUP]; RUN]], bias: i32) -> L::Floats {
    let mut sum = L::ints(-bias);
    for (i, codes) in codes.iter().enumerate() {
        sum = match F::SIGNED {
            true => L::dot_signed(sum, *codes, &values[i / RUN], i % RUN),
            false => L::dot(sum, *codes, &values[i / RUN], i % RUN),
        };
    }
    L::floats(sum)
}

#[inline(always)]
fn signed<L: Lanes>(mut codes: [L::Bytes; GROUPS]) -> [L::Bytes; GROUPS] {
    for codes in &mut codes {
        *codes = L::signed(*codes);
    }
    codes
}

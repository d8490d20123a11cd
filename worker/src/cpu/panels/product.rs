//! Products of a panel with rows of activations.

use super::portable::Portable;
use super::tile::multiply;
use super::walk::walk;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{ActivationRow, PANEL_ROWS, PanelFormat};
#[cfg(target_arch = "aarch64")]
use super::{PART, neon::Neon};
use crate::simd::Simd;

/// Most rows of activations that one walk over a panel serves.
pub(in crate::cpu) const MOST_ROWS: usize = 8;

/// Adds the products of all rows of a panel with `R` rows of activations to what is in `products`. The panel may be a part
/// of one, some blocks of each row, with the same parts of the activations.
pub(in crate::cpu) fn products<F: PanelFormat, const R: usize>(
    simd: Simd,
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
    products: &mut [[f32; PANEL_ROWS]; R],
) {
    match simd {
        // Row by row: what is slow anyway need not be compiled for many rows.
        Simd::Portable => {
            for (row, products) in rows.into_iter().zip(products) {
                walk::<F, Portable, 1, 1>(panel, &[row], std::array::from_mut(products));
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` exists only where detection found AVX2, FMA and F16C.
        Simd::Avx2(_) => unsafe { avx2::<F, R>(panel, rows, products) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx512` exists only where detection found AVX-512 F, BW and VNNI besides.
        Simd::Avx512(_) => unsafe { avx512::<F, R>(panel, rows, products) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Neon` exists only where detection found NEON.
        Simd::Neon(_) => unsafe { neon::<F, R>(panel, rows, products) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Dotprod` exists only where detection found NEON and its dot products.
        Simd::Dotprod(_) => unsafe { dotprod::<F, R>(panel, rows, products) },
    }
}

/// How many panels [`tiled_products`] passes rows of activations over at a time.
pub(in crate::cpu) fn panels_together(simd: Simd) -> usize {
    match simd {
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512(_) => 2,
        _ => 1,
    }
}

/// Adds the products of all rows of one panel, or of some that lie one after another, at most [`panels_together`], with many
/// rows of activations, of which `row` gives each, to what is in `products`: for each row of activations as many entries as
/// [`panels_together`], of which those beyond the panels given are of no use.
///
/// Codes are taken apart once for all rows.
pub(in crate::cpu) fn tiled_products<'a, F: PanelFormat>(
    simd: Simd,
    panels: &[u8],
    panel_bytes: usize,
    row: impl Fn(usize) -> ActivationRow<'a>,
    products: &mut [[f32; PANEL_ROWS]],
) {
    match simd {
        // What is slow anyway need not be compiled once more.
        Simd::Portable => {
            for (i, products) in products.iter_mut().enumerate() {
                walk::<F, Portable, 1, 1>(panels, &[row(i)], std::array::from_mut(products));
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx2` exists only where detection found AVX2, FMA and F16C.
        Simd::Avx2(_) => unsafe { avx2_tiled::<F>(panels, panel_bytes, row, products) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Avx512` exists only where detection found AVX-512 F, BW and VNNI besides.
        Simd::Avx512(_) => unsafe { avx512_tiled::<F>(panels, panel_bytes, row, products) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Neon` exists only where detection found NEON.
        Simd::Neon(_) => unsafe { neon_tiled::<F>(panels, panel_bytes, row, products) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Dotprod` exists only where detection found NEON and its dot products.
        Simd::Dotprod(_) => unsafe { dotprod_tiled::<F>(panels, panel_bytes, row, products) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_tiled<'a, F: PanelFormat>(
    panels: &[u8],
    panel_bytes: usize,
    row: impl Fn(usize) -> ActivationRow<'a>,
    products: &mut [[f32; PANEL_ROWS]],
) {
    multiply::<F, Avx2, 1>(panels, panel_bytes, row, products)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn avx512_tiled<'a, F: PanelFormat>(
    panels: &[u8],
    panel_bytes: usize,
    row: impl Fn(usize) -> ActivationRow<'a>,
    products: &mut [[f32; PANEL_ROWS]],
) {
    multiply::<F, Avx512, 2>(panels, panel_bytes, row, products)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon_tiled<'a, F: PanelFormat>(
    panels: &[u8],
    panel_bytes: usize,
    row: impl Fn(usize) -> ActivationRow<'a>,
    products: &mut [[f32; PANEL_ROWS]],
) {
    multiply::<F, Neon<false, false>, 1>(panels, panel_bytes, row, products)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn dotprod_tiled<'a, F: PanelFormat>(
    panels: &[u8],
    panel_bytes: usize,
    row: impl Fn(usize) -> ActivationRow<'a>,
    products: &mut [[f32; PANEL_ROWS]],
) {
    multiply::<F, Neon<true, false>, 1>(panels, panel_bytes, row, products)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
    products: &mut [[f32; PANEL_ROWS]; R],
) {
    walk::<F, Avx2, R, 1>(panel, &rows, products)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
fn avx512<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
    products: &mut [[f32; PANEL_ROWS]; R],
) {
    walk::<F, Avx512, R, 1>(panel, &rows, products)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
    products: &mut [[f32; PANEL_ROWS]; R],
) {
    by_fours::<F, false, R>(panel, rows, products)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn dotprod<F: PanelFormat, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
    products: &mut [[f32; PANEL_ROWS]; R],
) {
    by_fours::<F, true, R>(panel, rows, products)
}

/// The products of all rows of a panel with `R` rows of activations, four at a time: their sums and what codes are
/// taken apart in fill 32 short registers.
///
/// About how many instructions the innermost loop has for a part, 32 values of 16 rows, with dot products of bytes
/// (counted with rustc 1.95; nothing is called). 32 of them are the dot products of each row of activations:
///
/// | rows of activations | Q4_0 | Q8_0 | Q4_K | Q5_K | Q6_K | IQ4_XS |
/// |---|---|---|---|---|---|---|
/// | 1 | 116 | 86 | 205 | 312 | 304 | 213 |
/// | 4 | 369 | 292 | 514 | 713 | 795 | 483 |
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn by_fours<F: PanelFormat, const DOTPROD: bool, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
    products: &mut [[f32; PANEL_ROWS]; R],
) {
    if const { R >= 4 } {
        for (rows, products) in rows.as_chunks().0.iter().zip(products.as_chunks_mut().0) {
            walk::<F, Neon<DOTPROD, false>, 4, 1>(panel, rows, products);
        }
    }
    if const { R % 4 >= 2 } {
        let first = R / 4 * 4;
        for (rows, products) in rows[first..].as_chunks().0.iter().zip(products[first..].as_chunks_mut().0) {
            walk::<F, Neon<DOTPROD, false>, 2, 1>(panel, rows, products);
        }
    }
    if const { R % 2 == 1 } {
        // What passes alone is bound by what is done to the codes.
        let (last, products) = (&[rows[R - 1]], std::array::from_mut(&mut products[R - 1]));
        if const { F::VALUES == PART } {
            walk::<F, Neon<DOTPROD, true>, 1, 1>(panel, last, products);
        } else {
            walk::<F, Neon<DOTPROD, true>, 1, 8>(panel, last, products);
        }
    }
}

//! One walk over a panel, which serves a few rows of activations.
//!
//! The integer sums of all rows stay in registers, and codes are taken apart just before they are used, once for all
//! rows.

#[cfg(target_arch = "aarch64")]
use std::arch::asm;

use super::{ActivationPart, ActivationRow, Factors, Lanes, PANEL_ROWS, PART, PanelFormat, RUN};

/// Does something for each of these indices below a constant. A loop's code would be as fast only if it were unrolled,
/// which is not certain.
macro_rules! unrolled {
    (below $count:expr, |$i:ident| $do:expr) => { unrolled!($count, $i, $do, 0 1 2 3 4 5 6 7) };
    ($count:expr, $i:ident, $do:expr, $($index:literal)*) => {{$(
        if const { $index < $count } {
            let $i: usize = $index;
            $do
        }
    )*}};
}
pub(super) use unrolled;

/// Adds the products of all rows of a panel with a few rows of activations; the code of `PARTS` parts of a block is
/// written out.
#[inline(always)]
pub(super) fn walk<F: PanelFormat, L: Lanes, const R: usize, const PARTS: usize>(
    panel: &[u8],
    rows: &[ActivationRow<'_>; R],
    products: &mut [[f32; PANEL_ROWS]; R],
) {
    let parts = panel.len() / (F::BYTES * PANEL_ROWS) * (F::VALUES / PART);
    assert!(rows.iter().all(|row| row.len() >= parts), "rows of activations are as long as the panel's");
    let mut sums = [L::splat(0.0); R];
    unrolled!(below R, |r| sums[r] = L::from_array(products[r]));
    let mut number = 0;
    let part_bytes = F::BYTES * PANEL_ROWS / (F::VALUES / PART);
    for block in panel.chunks_exact(F::BYTES * PANEL_ROWS) {
        for first in (0..F::VALUES / PART).step_by(PARTS) {
            unrolled!(below PARTS, |part| {
                // As many bytes as the part has, wherever they lie.
                L::prefetch(&block[(first + part) * part_bytes..][..part_bytes], R);
                // Eight checks for each part would be a good part of the instructions.
                // SAFETY: the rows are long enough, as asserted above.
                let parts = rows.map(|row| unsafe { row.get_unchecked(number + part) });
                add_part::<F, L, R>(&mut sums, afresh(block), first + part, &parts);
            });
            number += PARTS;
        }
    }
    unrolled!(below R, |r| products[r] = L::to_array(sums[r]));
}

/// The same bytes. Where the code of several parts is written out for few registers, the compiler is not to know, so that
/// it does not keep what one part has loaded for the next ones.
#[cfg_attr(
    target_arch = "aarch64",
    expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through it")
)]
#[inline(always)]
fn afresh(block: &[u8]) -> &[u8] {
    #[cfg(target_arch = "aarch64")]
    let block = {
        let mut bytes = block.as_ptr();
        // SAFETY: nothing is done.
        unsafe { asm!("/* {bytes} */", bytes = inout(reg) bytes, options(nomem, nostack, preserves_flags)) };
        // SAFETY: these are the parts of a slice.
        unsafe { std::slice::from_raw_parts(bytes, block.len()) }
    };
    block
}

/// Adds the products of part `part` of a panel's block with those parts of a few rows of activations.
#[inline(always)]
fn add_part<F: PanelFormat, L: Lanes, const R: usize>(
    sums: &mut [L::Floats; R],
    block: &[u8],
    part: usize,
    rows: &[&ActivationPart; R],
) {
    let bias = if F::SIGNED { L::SIGNED_BIAS } else { F::CENTER };
    let mut ints = [L::weigh([0; 2], [0; 2]); R];
    let first = if F::HALVES { [-bias, 0] } else { [-bias; 2] };
    unrolled!(below R, |r| ints[r] = L::weigh(rows[r].halves, first));
    add_half::<F, L, R, 0>(&mut ints, block, part, rows);
    if !F::HALVES {
        add_half::<F, L, R, 1>(&mut ints, block, part, rows);
    }
    let Factors { scales, offsets } = F::factors::<L>(block, part);
    if F::HALVES {
        unrolled!(below R, |r| {
            let scale = L::mul(scales[0], L::splat(rows[r].scale));
            sums[r] = L::mul_add(L::floats(ints[r]), scale, sums[r]);
            ints[r] = L::weigh(rows[r].halves, [0, -bias]);
        });
        add_half::<F, L, R, 1>(&mut ints, block, part, rows);
    }
    unrolled!(below R, |r| {
        let scale = L::mul(scales[1], L::splat(rows[r].scale));
        sums[r] = L::mul_add(L::floats(ints[r]), scale, sums[r]);
        if F::OFFSET {
            let [first, second] = rows[r].sums;
            if F::HALVES {
                sums[r] = L::mul_add(offsets[0], L::splat(first), sums[r]);
                sums[r] = L::mul_add(offsets[1], L::splat(second), sums[r]);
            } else {
                sums[r] = L::mul_add(offsets[0], L::splat(first + second), sums[r]);
            }
        }
    });
}

/// Adds the products of half `HALF` of a part with that of those parts of a few rows of activations.
#[inline(always)]
fn add_half<F: PanelFormat, L: Lanes, const R: usize, const HALF: usize>(
    ints: &mut [L::Ints; R],
    block: &[u8],
    part: usize,
    rows: &[&ActivationPart; R],
) {
    unrolled!(below RUN, |group| {
        let codes = F::codes::<L>(block, part, HALF * RUN + group);
        let codes = if F::SIGNED { L::signed(codes) } else { codes };
        unrolled!(below R, |r| {
            let values = &rows[r].values[HALF];
            ints[r] = match F::SIGNED {
                true => L::dot_signed(ints[r], codes, values, group),
                false => L::dot(ints[r], codes, values, group),
            };
        });
    });
}

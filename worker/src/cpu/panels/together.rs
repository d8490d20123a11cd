//! Products of a panel with rows of activations side by side, for processors with many short registers.
//!
//! The integer sums of all rows stay in registers, and codes are taken apart just before they are used, once for all
//! rows. Four rows of activations and their sums leave room for that in 32 registers.

use super::{ActivationRow, Factors, Lanes, PANEL_ROWS, PART, PanelFormat, RUN};

/// Does something for each of these indices below a constant. A loop's code would be as fast only if it were unrolled,
/// which is not certain.
macro_rules! unrolled {
    (below $count:expr, |$i:ident| $do:expr) => { unrolled!($count, $i, $do, 0 1 2 3) };
    ($count:expr, $i:ident, $do:expr, $($index:literal)*) => {$(
        if const { $index < $count } {
            let $i: usize = $index;
            $do
        }
    )*};
}

/// The products of all rows of a panel with `R` rows of activations, four at a time.
#[inline(always)]
pub(super) fn by_fours<F: PanelFormat, L: Lanes, const R: usize>(
    panel: &[u8],
    rows: [ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    let mut products = [[0.0; PANEL_ROWS]; R];
    if const { R >= 4 } {
        for (rows, products) in rows.as_chunks().0.iter().zip(products.as_chunks_mut().0) {
            *products = walk::<F, L, 4>(panel, rows);
        }
    }
    if const { R % 4 >= 2 } {
        let first = R / 4 * 4;
        products[first..first + 2].copy_from_slice(&walk::<F, L, 2>(panel, &[rows[first], rows[first + 1]]));
    }
    if const { R % 2 == 1 } {
        [products[R - 1]] = walk::<F, L, 1>(panel, &[rows[R - 1]]);
    }
    products
}

#[inline(always)]
fn walk<F: PanelFormat, L: Lanes, const R: usize>(
    panel: &[u8],
    rows: &[ActivationRow<'_>; R],
) -> [[f32; PANEL_ROWS]; R] {
    let bias = if F::SIGNED { L::SIGNED_BIAS } else { F::CENTER };
    let mut sums = [L::splat(0.0); R];
    let mut number = 0;
    for block in panel.chunks_exact(F::BYTES * PANEL_ROWS) {
        for part in 0..F::VALUES / PART {
            let Factors { scales, offsets } = F::factors::<L>(block, part);
            let mut ints = [L::ints(0); R];
            unrolled!(below R, |r| {
                let [first, second] = rows[r].halves[number].map(i32::from);
                ints[r] = L::ints(-bias * if F::HALVES { first } else { first + second });
            });
            add::<F, L, R, 0>(&mut ints, block, part, rows, number);
            if F::HALVES {
                unrolled!(below R, |r| {
                    let scale = L::mul(scales[0], L::splat(rows[r].scales[number]));
                    sums[r] = L::mul_add(L::floats(ints[r]), scale, sums[r]);
                    ints[r] = L::ints(-bias * i32::from(rows[r].halves[number][1]));
                });
            }
            add::<F, L, R, 1>(&mut ints, block, part, rows, number);
            unrolled!(below R, |r| {
                let scale = L::mul(scales[1], L::splat(rows[r].scales[number]));
                sums[r] = L::mul_add(L::floats(ints[r]), scale, sums[r]);
                if F::OFFSET {
                    let [first, second] = rows[r].sums[number];
                    if F::HALVES {
                        sums[r] = L::mul_add(offsets[0], L::splat(first), sums[r]);
                        sums[r] = L::mul_add(offsets[1], L::splat(second), sums[r]);
                    } else {
                        sums[r] = L::mul_add(offsets[0], L::splat(first + second), sums[r]);
                    }
                }
            });
            number += 1;
        }
    }
    let mut products = [[0.0; PANEL_ROWS]; R];
    unrolled!(below R, |r| products[r] = L::to_array(sums[r]));
    products
}

/// Adds the products of half `HALF` of a part with that of part `number` of each row of activations.
#[inline(always)]
fn add<F: PanelFormat, L: Lanes, const R: usize, const HALF: usize>(
    ints: &mut [L::Ints; R],
    block: &[u8],
    part: usize,
    rows: &[ActivationRow<'_>; R],
    number: usize,
) {
    unrolled!(below RUN, |group| {
        let codes = F::codes::<L>(block, part, HALF * RUN + group);
        let codes = if F::SIGNED { L::signed(codes) } else { codes };
        unrolled!(below R, |r| {
            let values = &rows[r].values.as_chunks::<RUN>().0[2 * number + HALF];
            ints[r] = match F::SIGNED {
                true => L::dot_signed(ints[r], codes, values, group),
                false => L::dot(ints[r], codes, values, group),
            };
        });
    });
}

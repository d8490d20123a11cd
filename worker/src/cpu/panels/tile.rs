//! Products of panels with many rows of activations: a part of the panels is taken apart once for all of them.
//!
//! Codes and factors of the part stay in the first-level cache while rows pass over them, a few at a time. What the rows
//! share then is only multiplied, and activations are read once for all panels of a tile. The sums are the same, in the
//! same order, as those of a [walk](super::walk).

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::walk::unrolled;
use super::{ActivationPart, ActivationRow, Factors, GROUPS, Lanes, PANEL_ROWS, PART, PanelFormat, RUN};

/// Parts of a tile, whole blocks of every format: with two panels 24 KiB, which leave room for rows of activations in a
/// first-level cache. With half as many the compiler would write the code of each out.
const TILE_PARTS: usize = 16;

/// Rows of activations that pass together: with two panels, their sums and what they are multiplied with fill 32 registers
/// of AVX-512.
const TOGETHER: usize = 4;

/// Some parts of `P` panels, taken apart. It is made for each product anew, and what its format has not is never written.
struct Tile<F, L: Lanes, const P: usize> {
    codes: [[[MaybeUninit<L::Bytes>; P]; GROUPS]; TILE_PARTS],
    /// Of both halves; only the second is there where the format has one scale for a part.
    scales: [[[MaybeUninit<L::Floats>; P]; 2]; TILE_PARTS],
    /// The same; only the first is there where the format has one offset for a part.
    offsets: [[[MaybeUninit<L::Floats>; P]; 2]; TILE_PARTS],
    /// How many parts are written, of every panel.
    parts: usize,
    format: PhantomData<F>,
}

/// Adds the products of all rows of at most `P` panels, one after another, with the rows of activations that `row` gives, to
/// what is in `products`, which has `P` entries for each row of activations.
#[inline(always)]
pub(super) fn multiply<'a, F: PanelFormat, L: Lanes, const P: usize>(
    panels: &[u8],
    panel_bytes: usize,
    row: impl Fn(usize) -> ActivationRow<'a>,
    products: &mut [[f32; PANEL_ROWS]],
) {
    // In the place of panels that are not there stands one that is, so that no other code is needed.
    let last = panels.len() / panel_bytes - 1;
    let panels: [&[u8]; P] = std::array::from_fn(|p| &panels[p.min(last) * panel_bytes..][..panel_bytes]);
    let part_bytes = F::BYTES * PANEL_ROWS / (F::VALUES / PART);
    let parts = panel_bytes / part_bytes;
    let mut tile = Tile::<F, L, P>::new();
    let (products, _) = products.as_chunks_mut::<P>();
    for first in (0..parts).step_by(TILE_PARTS) {
        let end = parts.min(first + TILE_PARTS);
        tile.fill(panels.map(|panel| &panel[first * part_bytes..end * part_bytes]));
        let (fours, rest) = products.as_chunks_mut::<TOGETHER>();
        let alone = TOGETHER * fours.len();
        for (i, products) in fours.iter_mut().enumerate() {
            let rows: [_; TOGETHER] = std::array::from_fn(|r| &row(TOGETHER * i + r)[first..end]);
            tile.add(&rows, products);
        }
        for (i, products) in rest.iter_mut().enumerate() {
            tile.add(&[&row(alone + i)[first..end]], std::array::from_mut(products));
        }
    }
}

impl<F: PanelFormat, L: Lanes, const P: usize> Tile<F, L, P> {
    #[inline(always)]
    fn new() -> Tile<F, L, P> {
        Tile {
            codes: [const { [const { [const { MaybeUninit::uninit() }; P] }; GROUPS] }; TILE_PARTS],
            scales: [const { [const { [const { MaybeUninit::uninit() }; P] }; 2] }; TILE_PARTS],
            offsets: [const { [const { [const { MaybeUninit::uninit() }; P] }; 2] }; TILE_PARTS],
            parts: 0,
            format: PhantomData,
        }
    }

    /// Takes parts of panels apart, as many of each, at most as many as a tile has.
    #[inline(always)]
    fn fill(&mut self, panels: [&[u8]; P]) {
        const { assert!(TILE_PARTS.is_multiple_of(F::VALUES / PART), "a tile holds whole blocks") };
        let block_bytes = F::BYTES * PANEL_ROWS;
        let part_bytes = block_bytes / (F::VALUES / PART);
        self.parts = panels[0].len() / part_bytes;
        for (p, panel) in panels.into_iter().enumerate() {
            assert_eq!(panel.len(), self.parts * part_bytes, "panels are of the same size");
            for (i, block) in panel.chunks_exact(block_bytes).enumerate() {
                for part in 0..F::VALUES / PART {
                    L::prefetch(&block[part * part_bytes..][..part_bytes], TOGETHER);
                    self.fill_part(p, i * (F::VALUES / PART) + part, block, part);
                }
            }
        }
    }

    /// Takes part `part` of a block of panel `p` apart, which becomes part `number` of the tile.
    #[inline(always)]
    fn fill_part(&mut self, p: usize, number: usize, block: &[u8], part: usize) {
        let codes = &mut self.codes[number];
        unrolled!(below GROUPS, |group| {
            let taken = F::codes::<L>(block, part, group);
            codes[group][p].write(if F::SIGNED { L::signed(taken) } else { taken });
        });
        let Factors { scales, offsets } = F::factors::<L>(block, part);
        self.scales[number][1][p].write(scales[1]);
        if F::HALVES {
            self.scales[number][0][p].write(scales[0]);
        }
        if F::OFFSET {
            self.offsets[number][0][p].write(offsets[0]);
            if F::HALVES {
                self.offsets[number][1][p].write(offsets[1]);
            }
        }
    }

    /// Adds the products with as many parts of a few rows of activations.
    #[inline(always)]
    fn add<const R: usize>(&self, rows: &[ActivationRow<'_>; R], products: &mut [[[f32; PANEL_ROWS]; P]; R]) {
        assert!(
            rows.iter().all(|row| row.len() == self.parts),
            "rows of activations are as long as the tile"
        );
        let mut sums = [[L::splat(0.0); P]; R];
        unrolled!(below R, |r| unrolled!(below P, |p| sums[r][p] = L::from_array(products[r][p])));
        for number in 0..self.parts {
            // SAFETY: the rows have as many parts, as asserted above.
            let rows = rows.map(|row| unsafe { row.get_unchecked(number) });
            // SAFETY: so many parts are written.
            unsafe { self.add_part(number, &rows, &mut sums) };
        }
        unrolled!(below R, |r| unrolled!(below P, |p| products[r][p] = L::to_array(sums[r][p])));
    }

    /// Adds the products of part `number` with those parts of a few rows of activations.
    ///
    /// # Safety
    /// The part must be written.
    #[inline(always)]
    unsafe fn add_part<const R: usize>(
        &self,
        number: usize,
        rows: &[&ActivationPart; R],
        sums: &mut [[L::Floats; P]; R],
    ) {
        /// A factor that the format has. Not a closure: its code would not be compiled for the lanes' instructions.
        macro_rules! factor {
            ($of:ident, $half:literal, $p:ident) => {
                // SAFETY: the format has it, and the caller upholds the rest.
                unsafe { self.$of[number][$half][$p].assume_init() }
            };
        }
        let bias = if F::SIGNED { L::SIGNED_BIAS } else { F::CENTER };
        let mut ints = [[L::weigh([0; 2], [0; 2]); P]; R];
        let first = if F::HALVES { [-bias, 0] } else { [-bias; 2] };
        unrolled!(below R, |r| ints[r] = [L::weigh(rows[r].halves, first); P]);
        // SAFETY: the caller upholds it.
        unsafe { self.add_half::<R, 0>(number, rows, &mut ints) };
        if F::HALVES {
            unrolled!(below R, |r| {
                let step = L::splat(rows[r].scale);
                unrolled!(below P, |p| {
                    let scale = L::mul(factor!(scales, 0, p), step);
                    sums[r][p] = L::mul_add(L::floats(ints[r][p]), scale, sums[r][p]);
                });
                ints[r] = [L::weigh(rows[r].halves, [0, -bias]); P];
            });
        }
        // SAFETY: the caller upholds it.
        unsafe { self.add_half::<R, 1>(number, rows, &mut ints) };
        unrolled!(below R, |r| {
            let step = L::splat(rows[r].scale);
            let [front, back] = rows[r].sums;
            unrolled!(below P, |p| {
                let scale = L::mul(factor!(scales, 1, p), step);
                sums[r][p] = L::mul_add(L::floats(ints[r][p]), scale, sums[r][p]);
                if F::OFFSET && F::HALVES {
                    sums[r][p] = L::mul_add(factor!(offsets, 0, p), L::splat(front), sums[r][p]);
                    sums[r][p] = L::mul_add(factor!(offsets, 1, p), L::splat(back), sums[r][p]);
                } else if F::OFFSET {
                    sums[r][p] = L::mul_add(factor!(offsets, 0, p), L::splat(front + back), sums[r][p]);
                }
            });
        });
    }

    /// Adds the products of half `HALF` of a part with that of those parts of a few rows of activations.
    ///
    /// # Safety
    /// The part must be written.
    #[inline(always)]
    unsafe fn add_half<const R: usize, const HALF: usize>(
        &self,
        number: usize,
        rows: &[&ActivationPart; R],
        ints: &mut [[L::Ints; P]; R],
    ) {
        unrolled!(below RUN, |group| {
            let codes = &self.codes[number][HALF * RUN + group];
            unrolled!(below R, |r| {
                let values = &rows[r].values[HALF];
                unrolled!(below P, |p| {
                    // SAFETY: the caller upholds it.
                    let codes = unsafe { codes[p].assume_init() };
                    ints[r][p] = match F::SIGNED {
                        true => L::dot_signed(ints[r][p], codes, values, group),
                        false => L::dot(ints[r][p], codes, values, group),
                    };
                });
            });
        });
    }
}

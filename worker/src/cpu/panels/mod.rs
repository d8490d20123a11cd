//! Matrices in panels of 16 rows, and their products with rows of activations.
//!
//! A panel holds 16 neighbouring rows of a matrix, block by block, each block with its [fields](formats::Field) taken
//! apart into units: the first unit of all 16 rows, then the second, and so on. It has the bytes of the file's blocks in
//! another order. A vector with a lane for each row then multiplies four neighbouring values of every row with the same
//! four activations at once, and one walk over a panel serves several rows of activations.
//!
//! **What a product is**, on any processor. Floating-point weights: see [floats]. Quantised weights: activations are
//! rounded to 8 bits in parts of 32 with a scale each. Part by part, in order, and for each run of weights with a scale
//! of its own, `sum = fma(exact integer sum, weight scale * activation scale, sum)`, then `sum = fma(weight offset,
//! activation sum, sum)` where the format has offsets. A result's bits depend on its row of weights and its row of
//! activations alone; a panel may be walked over in pieces.

mod activations;
mod floats;
mod formats;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod product;
mod tile;
mod walk;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use activations::{ActivationPart, round};
pub(crate) use activations::{ActivationRow, QuantisedRows};
pub(super) use floats::*;
pub(super) use formats::*;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::add_dots;
pub(super) use product::{MOST_ROWS, panels_together, products, tiled_products};

/// Rows of a panel.
pub(super) const PANEL_ROWS: usize = 16;
/// Values with a scale of their own in activations; weights have whole parts, with one or two scales.
pub(super) const PART: usize = 32;
/// Neighbouring values that one lane multiplies at once.
const GROUP: usize = 4;
/// Groups of a part.
const GROUPS: usize = PART / GROUP;
/// Groups of half a part.
const RUN: usize = GROUPS / 2;

/// Sixteen lanes, one for each row of a panel. Every operation gives the same bits on every implementation.
///
/// # Safety
/// An implementation may only be used where the processor has its instructions; [`products`] sees to it.
pub(super) unsafe trait Lanes {
    /// Four bytes in each lane.
    type Bytes: Copy;
    /// An integer in each lane.
    type Ints: Copy;
    /// A number in each lane.
    type Floats: Copy;

    /// What [`signed`](Self::signed) has added to each code: a sum of products is to begin with minus as many times the
    /// sum of its activations.
    const SIGNED_BIAS: i16;

    /// Asks memory for what a walk with `rows` rows of activations will read some time after these bytes, where that is
    /// worth it: panels lie one after another.
    #[inline(always)]
    fn prefetch(_bytes: &[u8], _rows: usize) {}

    /// Bytes as they stand in a panel: four for each row.
    fn load(bytes: &[u8; 64]) -> Self::Bytes;
    /// The low `bits` bits of every byte, moved right by `by` first. Neighbours' bits do not come in, `by + bits <= 8`.
    fn bits(x: Self::Bytes, by: u32, bits: u32) -> Self::Bytes;
    /// Every byte moved left by `by`; no bit may leave its byte.
    fn left(x: Self::Bytes, by: u32) -> Self::Bytes;
    /// Bits of either.
    fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Bits `4 * group..` of each lane, one in each of its bytes.
    fn spread(x: Self::Bytes, group: usize) -> Self::Bytes;
    /// The entry of `table` for every byte, 0..16.
    fn look_up(x: Self::Bytes, table: &[i8; 16]) -> Self::Bytes;
    /// Signed codes in the form that [`dot_signed`](Self::dot_signed) takes.
    fn signed(x: Self::Bytes) -> Self::Bytes;

    /// The same integer in every lane: the first of the pair times the first of `by`, plus the second times the second.
    fn weigh(pair: [i16; 2], by: [i16; 2]) -> Self::Ints;
    /// Adds the products of every lane's codes, 0..=127, with group `group` of the activations, -127..=127.
    fn dot(sum: Self::Ints, codes: Self::Bytes, activations: &[[i8; GROUP]; RUN], group: usize)
    -> Self::Ints;
    /// The same for codes of -128..=127 that [`signed`](Self::signed) has made.
    fn dot_signed(
        sum: Self::Ints,
        codes: Self::Bytes,
        activations: &[[i8; GROUP]; RUN],
        group: usize,
    ) -> Self::Ints;

    /// The integers as numbers.
    fn floats(x: Self::Ints) -> Self::Floats;
    /// The same number in every lane.
    fn splat(x: f32) -> Self::Floats;
    /// A small integer for each lane.
    fn bytes_as_floats(x: [u8; PANEL_ROWS]) -> Self::Floats;
    /// A small signed integer for each lane.
    fn signed_bytes_as_floats(x: [u8; PANEL_ROWS]) -> Self::Floats;
    /// A half-precision number for each lane.
    fn halves(x: &[u8; 2 * PANEL_ROWS]) -> Self::Floats;
    /// A single-precision number for each lane.
    fn singles(x: &[u8; 4 * PANEL_ROWS]) -> Self::Floats;
    /// The high half of a single-precision number for each lane; the low ones are 0.
    fn high_halves(x: &[u8; 2 * PANEL_ROWS]) -> Self::Floats;
    /// Any numbers.
    fn from_array(x: [f32; PANEL_ROWS]) -> Self::Floats;
    /// `a * b`.
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The lanes in order.
    fn to_array(x: Self::Floats) -> [f32; PANEL_ROWS];
}

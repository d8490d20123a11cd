//! The block formats that are kept in panels: how their fields lie, and what their values unpack to.
//!
//! Formats are those of ggml (`ggml-common.h`); in a comment, a weight of the block is given by its fields.

use std::marker::PhantomData;

use super::portable::Portable;
use super::{GROUP, GROUPS, Lanes, PANEL_ROWS, PART};
use crate::cpu::grids::{IQ4_VALUES, MXFP4_VALUES};

/// An array of an expression for each of these indices. Unlike a closure's, its code is compiled for the instructions of
/// the function that it stands in.
macro_rules! each {
    (half, |$i:ident| $value:expr) => { each!($i, $value, 0 1) };
    (group, |$i:ident| $value:expr) => { each!($i, $value, 0 1 2 3 4 5 6 7) };
    ($i:ident, $value:expr, $($index:literal)*) => {
        [$({
            let $i: usize = $index;
            $value
        }),*]
    };
}

/// An array of an expression for each row of a panel.
macro_rules! each_row {
    (|$i:ident| $value:expr) => {{
        let mut all = [Default::default(); PANEL_ROWS];
        for $i in 0..PANEL_ROWS {
            all[$i] = $value;
        }
        all
    }};
}

/// A field of a block: `bytes` bytes at `at`, which lie in a panel in units of `unit` bytes, row by row.
pub(in crate::cpu) struct Field {
    at: usize,
    bytes: usize,
    unit: usize,
}

const fn field(at: usize, bytes: usize, unit: usize) -> Field {
    Field { at, bytes, unit }
}

/// What makes weights of the codes of 32 values of each row: a weight is `scale * (code - center) + offset`.
pub(in crate::cpu) struct Factors<L: Lanes> {
    /// Of the two halves; equal where the part has one scale.
    pub(super) scales: [L::Floats; 2],
    /// The same for offsets; of no use where the format has none.
    pub(super) offsets: [L::Floats; 2],
}

/// A format whose blocks are kept in panels.
pub(in crate::cpu) trait PanelFormat {
    /// Values of a block.
    const VALUES: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Its fields, in the order in which a panel has them.
    const FIELDS: &'static [Field];
    /// Whether the halves of a part have scales of their own.
    const HALVES: bool = false;
    /// What is to be taken from a code.
    const CENTER: i16 = 0;
    /// Whether codes are signed, of -128..=127, and not of 0..=127.
    const SIGNED: bool = false;
    /// Whether weights have offsets.
    const OFFSET: bool = false;

    /// Codes of group `group` of part `part` of a panel's block.
    fn codes<L: Lanes>(block: &[u8], part: usize, group: usize) -> L::Bytes;

    /// Scales and offsets of part `part` of a panel's block.
    fn factors<L: Lanes>(block: &[u8], part: usize) -> Factors<L>;
}

/// Where the units of a field begin in a panel's block, for the field at `at` in a row's block.
const fn place<F: PanelFormat + ?Sized>(at: usize) -> usize {
    let mut place = 0;
    let mut i = 0;
    while i < F::FIELDS.len() {
        if F::FIELDS[i].at == at {
            return place;
        }
        place += F::FIELDS[i].bytes * PANEL_ROWS;
        i += 1;
    }
    panic!("no such field")
}

/// Copies rows' blocks, of which each is [`PanelFormat::BYTES`] long, to a panel's block.
pub(in crate::cpu) fn interleave<F: PanelFormat>(
    rows: &[u8],
    row_bytes: usize,
    count: usize,
    panel: &mut [u8],
) {
    fn units<const U: usize>(rows: &[u8], row_bytes: usize, count: usize, at: usize, out: &mut [[u8; U]]) {
        for row in 0..count {
            let from = rows[row * row_bytes + at..][..out.len() / PANEL_ROWS * U].as_chunks::<U>().0;
            for (k, unit) in from.iter().enumerate() {
                out[k * PANEL_ROWS + row] = *unit;
            }
        }
    }
    for (i, block) in panel.chunks_exact_mut(F::BYTES * PANEL_ROWS).enumerate() {
        let mut rest = block;
        for field in F::FIELDS {
            let (out, after) = rest.split_at_mut(field.bytes * PANEL_ROWS);
            rest = after;
            let at = i * F::BYTES + field.at;
            match field.unit {
                1 => units::<1>(rows, row_bytes, count, at, out.as_chunks_mut().0),
                2 => units::<2>(rows, row_bytes, count, at, out.as_chunks_mut().0),
                _ => units::<4>(rows, row_bytes, count, at, out.as_chunks_mut().0),
            }
        }
    }
}

/// Writes row `row` of a panel as f32.
pub(in crate::cpu) fn dequantise_row<F: PanelFormat>(panel: &[u8], row: usize, out: &mut [f32]) {
    for (number, out) in out.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
        Values::<F>::new(panel, number).write(row, out);
    }
}

/// Writes all rows of a panel as f32, one after another.
pub(in crate::cpu) fn dequantise<F: PanelFormat>(panel: &[u8], out: &mut [f32]) {
    let width = out.len() / PANEL_ROWS;
    for number in 0..width / PART {
        let values = Values::<F>::new(panel, number);
        for row in 0..PANEL_ROWS {
            values.write(row, &mut out[row * width + number * PART..].as_chunks_mut().0[0]);
        }
    }
}

/// A part of a panel, taken apart.
struct Values<F> {
    codes: [<Portable as Lanes>::Bytes; GROUPS],
    factors: Factors<Portable>,
    format: PhantomData<F>,
}

impl<F: PanelFormat> Values<F> {
    fn new(panel: &[u8], number: usize) -> Values<F> {
        let parts = F::VALUES / PART;
        let bytes = F::BYTES * PANEL_ROWS;
        let block = &panel[number / parts * bytes..][..bytes];
        let part = number % parts;
        Values {
            codes: each!(group, |g| F::codes::<Portable>(block, part, g)),
            factors: F::factors::<Portable>(block, part),
            format: PhantomData,
        }
    }

    fn write(&self, row: usize, out: &mut [f32; PART]) {
        let Factors { scales, offsets } = &self.factors;
        for (i, out) in out.iter_mut().enumerate() {
            let code = self.codes[i / GROUP][row * GROUP + i % GROUP];
            let code = if F::SIGNED { i32::from(code as i8) } else { i32::from(code) };
            let half = i / (PART / 2);
            let scaled = scales[half][row] * (code - i32::from(F::CENTER)) as f32;
            *out = if F::OFFSET { scaled + offsets[half][row] } else { scaled };
        }
    }
}

/// Four bytes of each row.
#[inline(always)]
fn load<L: Lanes>(block: &[u8], place: usize, unit: usize) -> L::Bytes {
    let bytes = &block[place + unit * 64..].as_chunks::<64>().0[0];
    L::load(bytes)
}

/// A byte of each row.
#[inline(always)]
fn bytes(block: &[u8], place: usize, unit: usize) -> [u8; PANEL_ROWS] {
    block[place + unit * PANEL_ROWS..].as_chunks().0[0]
}

/// A half-precision number of each row.
#[inline(always)]
fn halves<L: Lanes>(block: &[u8], place: usize) -> L::Floats {
    L::halves(&block[place..].as_chunks().0[0])
}

/// Nibbles of 16 bytes: the low ones are the first 16 values, the high ones the others.
#[inline(always)]
fn nibbles<L: Lanes>(block: &[u8], place: usize, first: usize, group: usize) -> L::Bytes {
    L::bits(load::<L>(block, place, first + group % 4), if group < 4 { 0 } else { 4 }, 4)
}

#[inline(always)]
fn no_offset<L: Lanes>() -> [L::Floats; 2] {
    [L::splat(0.0); 2]
}

macro_rules! block_formats {
    ($($(#[$meta:meta])* $name:ident: $bytes:literal, fields $fields:expr, $({ $($consts:tt)* },)?
       |$block:ident, $group:ident, $L:ident| codes $codes:expr, scale $scale:expr $(, offset $offset:expr)?;)*) => {$(
        $(#[$meta])*
        pub(in crate::cpu) struct $name;

        impl PanelFormat for $name {
            const VALUES: usize = PART;
            const BYTES: usize = $bytes;
            const FIELDS: &'static [Field] = $fields;
            $($($consts)*)?

            #[inline(always)]
            fn codes<$L: Lanes>($block: &[u8], _: usize, $group: usize) -> $L::Bytes {
                let $block = &$block[..$bytes * PANEL_ROWS];
                $codes
            }

            #[inline(always)]
            fn factors<$L: Lanes>($block: &[u8], _: usize) -> Factors<$L> {
                let $block = &$block[..$bytes * PANEL_ROWS];
                Factors { scales: [$scale; 2], offsets: block_formats!(offsets $L $($offset)?) }
            }
        }
    )*};
    (offsets $L:ident) => { no_offset::<$L>() };
    (offsets $L:ident $offset:expr) => { [$offset; 2] };
}

block_formats! {
    /// `d: f16`, 16 bytes of nibbles; d (code - 8).
    Q4_0: 18, fields &[field(0, 2, 2), field(2, 16, 4)], { const CENTER: i16 = 8; },
    |b, g, L| codes nibbles::<L>(b, const { place::<Q4_0>(2) }, 0, g), scale halves::<L>(b, 0);
    /// `d: f16, m: f16`, 16 bytes of nibbles; d code + m.
    Q4_1: 20, fields &[field(0, 2, 2), field(2, 2, 2), field(4, 16, 4)], { const OFFSET: bool = true; },
    |b, g, L| codes nibbles::<L>(b, const { place::<Q4_1>(4) }, 0, g),
    scale halves::<L>(b, 0), offset halves::<L>(b, const { place::<Q4_1>(2) });
    /// `d: f16`, 32 high bits, 16 bytes of nibbles; d (code - 16).
    Q5_0: 22, fields &[field(0, 2, 2), field(2, 4, 4), field(6, 16, 4)], { const CENTER: i16 = 16; },
    |b, g, L| codes with_fifth_bit::<L>(
        nibbles::<L>(b, const { place::<Q5_0>(6) }, 0, g),
        load::<L>(b, const { place::<Q5_0>(2) }, 0),
        g,
    ),
    scale halves::<L>(b, 0);
    /// `d: f16, m: f16`, 32 high bits, 16 bytes of nibbles; d code + m.
    Q5_1: 24, fields &[field(0, 2, 2), field(2, 2, 2), field(4, 4, 4), field(8, 16, 4)],
    { const OFFSET: bool = true; },
    |b, g, L| codes with_fifth_bit::<L>(
        nibbles::<L>(b, const { place::<Q5_1>(8) }, 0, g),
        load::<L>(b, const { place::<Q5_1>(4) }, 0),
        g,
    ),
    scale halves::<L>(b, 0), offset halves::<L>(b, const { place::<Q5_1>(2) });
    /// `d: f16`, 32 signed bytes; d code.
    Q8_0: 34, fields &[field(0, 2, 2), field(2, 32, 4)], { const SIGNED: bool = true; },
    |b, g, L| codes load::<L>(b, const { place::<Q8_0>(2) }, g), scale halves::<L>(b, 0);
    /// `d: f16`, 16 bytes of nibbles; d value(code).
    #[expect(non_camel_case_types, reason = "the format's own name")]
    IQ4_NL: 18, fields &[field(0, 2, 2), field(2, 16, 4)], { const SIGNED: bool = true; },
    |b, g, L| codes L::look_up(nibbles::<L>(b, const { place::<IQ4_NL>(2) }, 0, g), &IQ4_VALUES),
    scale halves::<L>(b, 0);
    /// An exponent, 16 bytes of nibbles; 2^(exponent - 128) value(code), with values that are doubled.
    MXFP4: 17, fields &[field(0, 1, 1), field(1, 16, 4)], { const SIGNED: bool = true; },
    |b, g, L| codes L::look_up(nibbles::<L>(b, const { place::<MXFP4>(1) }, 0, g), &MXFP4_VALUES),
    scale {
        let exponents = bytes(b, 0, 0);
        L::from_array(each_row!(|i| half_power(exponents[i])))
    };
}

/// Half of the power of two that an exponent of the OCP microscaling formats stands for: 2^(e - 128).
#[inline(always)]
fn half_power(exponent: u8) -> f32 {
    // The two smallest are subnormal.
    let bits = if exponent < 2 { 1 << (21 + exponent) } else { (u32::from(exponent) - 1) << 23 };
    f32::from_bits(bits)
}

#[inline(always)]
fn with_fifth_bit<L: Lanes>(nibbles: L::Bytes, high: L::Bytes, group: usize) -> L::Bytes {
    L::or(nibbles, L::left(L::spread(high, group), 4))
}

macro_rules! super_formats {
    ($($(#[$meta:meta])* $name:ident: $bytes:literal, fields $fields:expr, { $($consts:tt)* },
       |$block:ident, $part:ident, $group:ident, $L:ident| codes $codes:expr, factors $factors:expr;)*) => {$(
        $(#[$meta])*
        pub(in crate::cpu) struct $name;

        impl PanelFormat for $name {
            const VALUES: usize = 8 * PART;
            const BYTES: usize = $bytes;
            const FIELDS: &'static [Field] = $fields;
            $($consts)*

            #[inline(always)]
            fn codes<$L: Lanes>($block: &[u8], $part: usize, $group: usize) -> $L::Bytes {
                let $block = &$block[..$bytes * PANEL_ROWS];
                $codes
            }

            #[inline(always)]
            fn factors<$L: Lanes>($block: &[u8], $part: usize) -> Factors<$L> {
                let $block = &$block[..$bytes * PANEL_ROWS];
                $factors
            }
        }
    )*};
}

super_formats! {
    /// 16 x 4-bit scales and minimums, 64 bytes of 2-bit codes, `d: f16, m: f16`; d scale code - m minimum.
    Q2K: 84, fields &[field(80, 2, 2), field(82, 2, 2), field(0, 16, 1), field(16, 64, 4)],
    { const HALVES: bool = true; const OFFSET: bool = true; },
    |b, part, g, L| codes two_bits::<L>(b, const { place::<Q2K>(16) }, part, g),
    factors {
        let (d, m) = (halves::<L>(b, 0), halves::<L>(b, const { place::<Q2K>(82) }));
        let both = each!(half, |half| bytes(b, const { place::<Q2K>(0) }, 2 * part + half));
        Factors {
            scales: each!(half, |half| L::mul(d, L::bytes_as_floats(each_row!(|i| both[half][i] & 15)))),
            offsets: each!(half, |half| {
                minus::<L>(L::mul(m, L::bytes_as_floats(each_row!(|i| both[half][i] >> 4))))
            }),
        }
    };
    /// 32 bytes of high bits, 64 bytes of 2-bit codes, 16 x 6-bit scales, `d: f16`; d (scale - 32) (code - 4).
    Q3K: 110, fields &[field(108, 2, 2), field(96, 12, 1), field(32, 64, 4), field(0, 32, 4)],
    { const HALVES: bool = true; const CENTER: i16 = 4; },
    |b, part, g, L| codes {
        let high = L::bits(load::<L>(b, const { place::<Q3K>(0) }, g), part as u32, 1);
        L::or(two_bits::<L>(b, const { place::<Q3K>(32) }, part, g), L::left(high, 2))
    },
    factors {
        let d = halves::<L>(b, 0);
        let scales = each!(half, |half| {
            let k = 2 * part + half;
            let low = bytes(b, const { place::<Q3K>(96) }, k % 8);
            let high = bytes(b, const { place::<Q3K>(96) }, 8 + k % 4);
            let (low_by, high_by) = (4 * (k / 8), 2 * (k / 4));
            let scales = each_row!(|i| ((low[i] >> low_by) & 15) | (((high[i] >> high_by) & 3) << 4));
            L::mul(d, L::signed_bytes_as_floats(each_row!(|i| scales[i].wrapping_sub(32))))
        });
        Factors { scales, offsets: no_offset::<L>() }
    };
    /// `d: f16, m: f16`, 8 x 6-bit scales and minimums, 128 bytes of nibbles; d scale code - m minimum.
    Q4K: 144, fields &[field(0, 2, 2), field(2, 2, 2), field(4, 12, 1), field(16, 128, 4)],
    { const OFFSET: bool = true; },
    |b, part, g, L| codes alternate::<L>(b, const { place::<Q4K>(16) }, part, g),
    factors six_bits::<L>(b, const { place::<Q4K>(2) }, const { place::<Q4K>(4) }, part);
    /// `d: f16, m: f16`, 8 x 6-bit scales and minimums, 32 bytes of high bits, 128 bytes of nibbles;
    /// d scale code - m minimum.
    Q5K: 176, fields &[field(0, 2, 2), field(2, 2, 2), field(4, 12, 1), field(16, 32, 4), field(48, 128, 4)],
    { const OFFSET: bool = true; },
    |b, part, g, L| codes {
        let high = L::bits(load::<L>(b, const { place::<Q5K>(16) }, g), part as u32, 1);
        L::or(alternate::<L>(b, const { place::<Q5K>(48) }, part, g), L::left(high, 4))
    },
    factors six_bits::<L>(b, const { place::<Q5K>(2) }, const { place::<Q5K>(4) }, part);
    /// 128 bytes of low and 64 bytes of high bits, 16 signed bytes of scales, `d: f16`; d scale (code - 32).
    Q6K: 210, fields &[field(208, 2, 2), field(192, 16, 1), field(0, 128, 4), field(128, 64, 4)],
    { const HALVES: bool = true; const CENTER: i16 = 32; },
    |b, part, g, L| codes {
        let (half, quarter) = (part / 4, part % 4);
        let low = load::<L>(b, const { place::<Q6K>(0) }, half * 16 + quarter % 2 * GROUPS + g);
        let high = L::bits(load::<L>(b, const { place::<Q6K>(128) }, half * GROUPS + g), 2 * quarter as u32, 2);
        L::or(L::bits(low, quarter as u32 / 2 * 4, 4), L::left(high, 4))
    },
    factors {
        let d = halves::<L>(b, 0);
        let scales = each!(half, |half| {
            let scales = bytes(b, const { place::<Q6K>(192) }, 2 * part + half);
            L::mul(d, L::signed_bytes_as_floats(scales))
        });
        Factors { scales, offsets: no_offset::<L>() }
    };
    /// `d: f16`, 8 x 2 high bits and 8 x 4 low bits of the scales, 128 bytes of nibbles; d (scale - 32) value(code).
    #[expect(non_camel_case_types, reason = "the format's own name")]
    IQ4_XS: 136, fields &[field(0, 2, 2), field(2, 2, 1), field(4, 4, 1), field(8, 128, 4)],
    { const SIGNED: bool = true; },
    |b, part, g, L| codes {
        L::look_up(nibbles::<L>(b, const { place::<IQ4_XS>(8) }, 4 * part, g), &IQ4_VALUES)
    },
    factors {
        let low = bytes(b, const { place::<IQ4_XS>(4) }, part / 2);
        let high = bytes(b, const { place::<IQ4_XS>(2) }, part / 4);
        let (low_by, high_by) = (4 * (part % 2), 2 * (part % 4));
        let scales = each_row!(|i| ((low[i] >> low_by) & 15) | (((high[i] >> high_by) & 3) << 4));
        let scale = L::signed_bytes_as_floats(each_row!(|i| scales[i].wrapping_sub(32)));
        Factors { scales: [L::mul(halves::<L>(b, 0), scale); 2], offsets: no_offset::<L>() }
    };
}

/// Negated numbers; 0 becomes -0, which adds nothing either.
#[inline(always)]
fn minus<L: Lanes>(x: L::Floats) -> L::Floats {
    L::mul(x, L::splat(-1.0))
}

/// Codes of which each byte holds those of four parts, 128 values apart.
#[inline(always)]
fn two_bits<L: Lanes>(block: &[u8], place: usize, part: usize, group: usize) -> L::Bytes {
    L::bits(load::<L>(block, place, part / 4 * GROUPS + group), 2 * (part % 4) as u32, 2)
}

/// Nibbles of which each byte holds those of two neighbouring parts.
#[inline(always)]
fn alternate<L: Lanes>(block: &[u8], place: usize, part: usize, group: usize) -> L::Bytes {
    L::bits(load::<L>(block, place, part / 2 * GROUPS + group), 4 * (part % 2) as u32, 4)
}

/// Scale and offset of a part from 12 bytes of 6-bit numbers: four bytes of scales, four of minimums, both with the high
/// bits of the last four parts in their own high bits, and four bytes of those parts' low bits.
#[inline(always)]
fn six_bits<L: Lanes>(block: &[u8], minimum: usize, place: usize, part: usize) -> Factors<L> {
    let (scales, minimums): ([u8; PANEL_ROWS], [u8; PANEL_ROWS]) = if part < 4 {
        let (scales, minimums) = (bytes(block, place, part), bytes(block, place, part + 4));
        (each_row!(|i| scales[i] & 63), each_row!(|i| minimums[i] & 63))
    } else {
        let low = bytes(block, place, part + 4);
        let (scales, minimums) = (bytes(block, place, part - 4), bytes(block, place, part));
        (
            each_row!(|i| (low[i] & 15) | ((scales[i] >> 6) << 4)),
            each_row!(|i| (low[i] >> 4) | ((minimums[i] >> 6) << 4)),
        )
    };
    let scale = L::mul(halves::<L>(block, 0), L::bytes_as_floats(scales));
    let offset = minus::<L>(L::mul(halves::<L>(block, minimum), L::bytes_as_floats(minimums)));
    Factors { scales: [scale; 2], offsets: [offset; 2] }
}

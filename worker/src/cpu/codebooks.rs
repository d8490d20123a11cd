//! The formats of 1 to 3 bits: groups of values that are points of a [grid](super::grids), most of them with a sign each.
//!
//! Blocks hold 256 values: 8 parts of 32, each of 4 groups of 8. The grids of IQ1 and IQ2 have points of 8 values, those
//! of IQ3 of 4.

use half::f16;

use super::blocks::{RowFormat, widen};
use super::grids::{
    IQ1_GRID, IQ1_LEVELS, IQ2_LEVELS, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_S_LEVELS,
    IQ3_XXS_GRID, IQ3_XXS_LEVELS,
};
use super::super_blocks::{Codes, SuperFormat, row_formats};
use crate::simd::Simd;

/// Parts of 32 values in a block.
const PARTS: usize = 8;

/// Values in a group.
const GROUP: usize = 8;

/// Groups in a part.
const GROUPS: usize = 4;

row_formats!(IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S);

// Points as they are in memory: the first value is the lowest byte.
static IQ1: [u64; 2048] = spread(&IQ1_GRID, &IQ1_LEVELS, 8, 8);
static IQ2_XXS_POINTS: [u64; 256] = spread(&IQ2_XXS_GRID, &IQ2_LEVELS, 8, 1);
static IQ2_XS_POINTS: [u64; 512] = spread(&IQ2_XS_GRID, &IQ2_LEVELS, 8, 1);
static IQ2_S_POINTS: [u64; 1024] = spread(&IQ2_S_GRID, &IQ2_LEVELS, 8, 1);
static IQ3_XXS_POINTS: [u64; 256] = spread(&IQ3_XXS_GRID, &IQ3_XXS_LEVELS, 4, 1);
static IQ3_S_POINTS: [u64; 512] = spread(&IQ3_S_GRID, &IQ3_S_LEVELS, 4, 1);

/// The `count` values of each of a grid's points, times `factor`, from the points' numbers.
const fn spread<const N: usize>(numbers: &[u16; N], levels: &[i8], count: usize, factor: i8) -> [u64; N] {
    let mut points = [0; N];
    let mut i = 0;
    while i < N {
        let mut number = numbers[i] as usize;
        let mut bytes = [0; 8];
        let mut v = 0;
        while v < count {
            bytes[v] = (levels[number % levels.len()] * factor) as u8;
            number /= levels.len();
            v += 1;
        }
        points[i] = u64::from_le_bytes(bytes);
        i += 1;
    }
    points
}

/// Eight bytes of this value.
const fn everywhere(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The signs of 8 values from the 7 bits that a file spends on them: the number of negative ones is even.
#[inline(always)]
fn even_signs(bits: u32) -> u8 {
    let bits = bits & 127;
    // Bit n of the constant is the parity of the number n.
    let odd = 0x6996 >> ((bits ^ bits >> 4) & 15) & 1;
    (bits | odd << 7) as u8
}

#[inline(always)]
fn put(values: u64, group: usize, out: &mut Codes) {
    out.codes.as_chunks_mut::<GROUP>().0[group] = values.to_le_bytes().map(|byte| byte as i8);
}

/// Writes a group of 8 values: a point's, all of them positive, negated where their bit of `signs` is set.
#[inline(always)]
fn put_signed(point: u64, signs: u8, group: usize, out: &mut Codes) {
    // All eight at once. Bit i of the signs, alone in byte i, makes that byte 1; as none is above 128 and no value is
    // zero, neither this sum nor the last one carries from byte to byte.
    let alone = (u64::from(signs) * everywhere(1)) & 0x8040_2010_0804_0201;
    let ones = (alone + everywhere(127)) >> 7 & everywhere(1);
    let flipped = point ^ (ones * 255);
    put(flipped + ones, group, out);
}

/// Writes a group of IQ1's 8 values: a point's shifted by an eighth up or down, in eighths.
#[inline(always)]
fn put_shifted(index: usize, down: bool, group: usize, out: &mut Codes) {
    let (point, shift) = (IQ1[index], if down { everywhere(255) } else { everywhere(1) });
    // A sum in each byte: the top bits are added without their carry.
    let low = (point & everywhere(127)) + (shift & everywhere(127));
    put(low ^ (point ^ shift) & everywhere(128), group, out);
}

#[inline(always)]
fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn double_word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The `i`th of a row of nibbles.
#[inline(always)]
fn nibble(bytes: &[u8], i: usize) -> u8 {
    (bytes[i / 2] >> (4 * (i % 2))) & 15
}

/// `d: f16`, low bytes of the points, 8 words of 4 x 3 high bits, a 3-bit scale and the shift's direction;
/// weight = d (2 scale + 1) (value +- 1/8).
#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ1_S;

impl SuperFormat for IQ1_S {
    const SIZE: usize = 50;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        let d = widen(block, 0) / 8.0;
        for part in 0..PARTS {
            let high = word(block, 34 + 2 * part);
            out.scale_part(part, d * f32::from(2 * (high >> 12 & 7) + 1));
            for k in 0..GROUPS {
                let group = GROUPS * part + k;
                let index = usize::from(block[2 + group]) | usize::from(high >> (3 * k) & 7) << 8;
                put_shifted(index, high & 0x8000 != 0, group, out);
            }
        }
    }
}

/// Low bytes of the points, 32 nibbles of 3 high bits and the shift's direction, 4 words of 4 x 3-bit scales, the top
/// nibbles of which are `d: f16`; weight = d (2 scale + 1) (value +- 1/8).
#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ1_M;

impl SuperFormat for IQ1_M {
    const SIZE: usize = 56;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        let words: [u16; 4] = std::array::from_fn(|i| word(block, 48 + 2 * i));
        let bits = words.iter().enumerate().fold(0, |bits, (i, word)| bits | word >> 12 << (4 * i));
        let d = f16::from_bits(bits).to_f32() / 8.0;
        for (run, scale) in out.scales.iter_mut().enumerate() {
            *scale = d * f32::from(2 * (words[run / 4] >> (3 * (run % 4)) & 7) + 1);
        }
        for group in 0..PARTS * GROUPS {
            let high = nibble(&block[32..48], group);
            let index = usize::from(block[group]) | usize::from(high & 7) << 8;
            put_shifted(index, high & 8 != 0, group, out);
        }
    }
}

/// `d: f16`, for each part 4 points, 4 x 7 bits of signs and a 4-bit scale; weight = d (scale + 1/2) / 4 value.
#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ2_XXS;

impl SuperFormat for IQ2_XXS {
    const SIZE: usize = 66;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        let d = widen(block, 0);
        for part in 0..PARTS {
            let at = 2 + 8 * part;
            let signs = double_word(block, at + 4);
            out.scale_part(part, d * (0.5 + (signs >> 28) as f32) * 0.25);
            for k in 0..GROUPS {
                let point = IQ2_XXS_POINTS[usize::from(block[at + k])];
                put_signed(point, even_signs(signs >> (7 * k)), GROUPS * part + k, out);
            }
        }
    }
}

/// Writes scales of 4 bits a run: d (scale + 1/2) / 4.
#[inline(always)]
fn put_run_scales(d: f32, nibbles: &[u8], out: &mut Codes) {
    for (run, scale) in out.scales.iter_mut().enumerate() {
        *scale = d * (0.5 + f32::from(nibble(nibbles, run))) * 0.25;
    }
}

/// `d: f16`, 32 words of a point and 7 bits of signs, 16 x 4-bit scales; weight = d (scale + 1/2) / 4 value.
#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ2_XS;

impl SuperFormat for IQ2_XS {
    const SIZE: usize = 74;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        put_run_scales(widen(block, 0), &block[66..], out);
        for group in 0..PARTS * GROUPS {
            let word = word(block, 2 + 2 * group);
            let point = IQ2_XS_POINTS[usize::from(word & 511)];
            put_signed(point, even_signs(u32::from(word >> 9)), group, out);
        }
    }
}

/// `d: f16`, low bytes of the points, bytes of signs, 32 x 2 high bits of the points, 16 x 4-bit scales;
/// weight = d (scale + 1/2) / 4 value.
#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ2_S;

impl SuperFormat for IQ2_S {
    const SIZE: usize = 82;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        put_run_scales(widen(block, 0), &block[74..], out);
        for group in 0..PARTS * GROUPS {
            let high = usize::from(block[66 + group / 4] >> (2 * (group % 4)) & 3);
            let point = IQ2_S_POINTS[usize::from(block[2 + group]) | high << 8];
            put_signed(point, block[34 + group], group, out);
        }
    }
}

/// `d: f16`, bytes of the points, for each part 4 x 7 bits of signs and a 4-bit scale; weight = d (scale + 1/2) / 2 value.
#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ3_XXS;

impl SuperFormat for IQ3_XXS {
    const SIZE: usize = 98;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        let d = widen(block, 0);
        for part in 0..PARTS {
            let signs = double_word(block, 66 + 4 * part);
            out.scale_part(part, d * (0.5 + (signs >> 28) as f32) * 0.5);
            for k in 0..GROUPS {
                let group = GROUPS * part + k;
                let points = [0, 1].map(|i| IQ3_XXS_POINTS[usize::from(block[2 + 2 * group + i])]);
                put_signed(points[0] | points[1] << 32, even_signs(signs >> (7 * k)), group, out);
            }
        }
    }
}

/// `d: f16`, low bytes of the points, their high bits, bytes of signs, 8 x 4-bit scales; weight = d (2 scale + 1) value.
#[expect(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct IQ3_S;

impl SuperFormat for IQ3_S {
    const SIZE: usize = 110;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Codes) {
        let block = &block[..Self::SIZE];
        let d = widen(block, 0);
        for part in 0..PARTS {
            out.scale_part(part, d * f32::from(2 * nibble(&block[106..], part) + 1));
        }
        for group in 0..PARTS * GROUPS {
            let points = [2 * group, 2 * group + 1].map(|i| {
                let high = usize::from(block[66 + i / 8] >> (i % 8) & 1);
                IQ3_S_POINTS[usize::from(block[2 + i]) | high << 8]
            });
            put_signed(points[0] | points[1] << 32, block[74 + group], group, out);
        }
    }
}

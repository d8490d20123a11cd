//! Lanes in portable Rust: what the others must equal.

use half::f16;

use super::{GROUP, Lanes, PANEL_ROWS, RUN};

pub(super) struct Portable;

// SAFETY: it needs no instructions of its own.
unsafe impl Lanes for Portable {
    type Bytes = [u8; 64];
    type Ints = [i32; PANEL_ROWS];
    type Floats = [f32; PANEL_ROWS];

    const SIGNED_BIAS: i16 = 0;

    #[inline(always)]
    fn load(bytes: &[u8; 64]) -> [u8; 64] {
        *bytes
    }

    #[inline(always)]
    fn bits(x: [u8; 64], by: u32, bits: u32) -> [u8; 64] {
        let mask = ((1u16 << bits) - 1) as u8;
        x.map(|x| (x >> by) & mask)
    }

    #[inline(always)]
    fn left(x: [u8; 64], by: u32) -> [u8; 64] {
        x.map(|x| x << by)
    }

    #[inline(always)]
    fn or(a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn spread(x: [u8; 64], group: usize) -> [u8; 64] {
        std::array::from_fn(|i| {
            let (lane, bit) = (i / GROUP, GROUP * group + i % GROUP);
            x[lane * GROUP + bit / 8] >> (bit % 8) & 1
        })
    }

    #[inline(always)]
    fn look_up(x: [u8; 64], table: &[i8; 16]) -> [u8; 64] {
        x.map(|x| table[usize::from(x & 15)] as u8)
    }

    #[inline(always)]
    fn signed(x: [u8; 64]) -> [u8; 64] {
        x
    }

    #[inline(always)]
    fn weigh([a, b]: [i16; 2], [x, y]: [i16; 2]) -> [i32; PANEL_ROWS] {
        [i32::from(a) * i32::from(x) + i32::from(b) * i32::from(y); PANEL_ROWS]
    }

    #[inline(always)]
    fn dot(
        sum: [i32; PANEL_ROWS],
        codes: [u8; 64],
        activations: &[[i8; GROUP]; RUN],
        group: usize,
    ) -> [i32; PANEL_ROWS] {
        let codes = codes.as_chunks::<GROUP>().0;
        std::array::from_fn(|i| {
            let products = codes[i].iter().zip(activations[group]).map(|(&c, a)| i32::from(c) * i32::from(a));
            sum[i] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    fn dot_signed(
        sum: [i32; PANEL_ROWS],
        codes: [u8; 64],
        activations: &[[i8; GROUP]; RUN],
        group: usize,
    ) -> [i32; PANEL_ROWS] {
        let codes = codes.as_chunks::<GROUP>().0;
        std::array::from_fn(|i| {
            let products =
                codes[i].iter().zip(activations[group]).map(|(&c, a)| i32::from(c as i8) * i32::from(a));
            sum[i] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    fn floats(x: [i32; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn splat(x: f32) -> [f32; PANEL_ROWS] {
        [x; PANEL_ROWS]
    }

    #[inline(always)]
    fn bytes_as_floats(x: [u8; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        x.map(f32::from)
    }

    #[inline(always)]
    fn signed_bytes_as_floats(x: [u8; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        x.map(|x| f32::from(x as i8))
    }

    #[inline(always)]
    fn halves(x: &[u8; 2 * PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        std::array::from_fn(|i| f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn singles(x: &[u8; 4 * PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        std::array::from_fn(|i| f32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
    }

    #[inline(always)]
    fn high_halves(x: &[u8; 2 * PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        std::array::from_fn(|i| f32::from_le_bytes([0, 0, x[2 * i], x[2 * i + 1]]))
    }

    #[inline(always)]
    fn from_array(x: [f32; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        x
    }

    #[inline(always)]
    fn mul(a: [f32; PANEL_ROWS], b: [f32; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(a: [f32; PANEL_ROWS], b: [f32; PANEL_ROWS], c: [f32; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn to_array(x: [f32; PANEL_ROWS]) -> [f32; PANEL_ROWS] {
        x
    }
}

//! Every product gives the bits that are written down here, on any instructions of any processor.

use super::blocks::RowFormat;
use super::panels::{
    self, ActivationPart, FloatFormat, MOST_ROWS, PANEL_ROWS, PanelFormat, QuantisedRows, WeighedRows,
};
use super::{codebooks, super_blocks};
use crate::exponential::exp;
use crate::simd::{Simd, kernel};

/// Bytes of xorshift64 words.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| self.word().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }

    /// Numbers of either sign below `size`.
    fn numbers(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| ((self.word() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size).collect()
    }
}

/// FNV-1a over the bits of numbers; all that are none count as the same, since processors disagree on their bits.
fn hash(hash: u64, values: &[f32]) -> u64 {
    values.iter().fold(hash, |hash, value| {
        let bits = if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
        (hash ^ u64::from(bits)).wrapping_mul(0x100_0000_01B3)
    })
}

/// Rows of activations: as many, four and two that pass together.
const ROWS: usize = MOST_ROWS + 4 + 2;

/// What a hash begins with.
const SEED: u64 = 0xCBF2_9CE4_8422_2325;

/// Where a block's own scales stand.
enum Scales {
    /// Half-precision numbers at these bytes.
    Halves(&'static [usize]),
    /// An exponent in the first byte.
    Exponent,
    /// A half-precision number in the high four bits of four 16-bit words from this byte on.
    Quarters(usize),
}

/// Blocks of a format, as in a file.
struct Blocks {
    scales: Scales,
    /// Values of a block.
    values: usize,
    /// Bytes of a block.
    bytes: usize,
    /// Seed of random blocks.
    seed: u64,
}

impl Blocks {
    /// Sixteen rows of `width` values. Scales are random below 2, or `scale`; everything else is random, or `fill`.
    fn rows(&self, width: usize, fill: Option<u8>, scale: Option<u16>) -> Vec<u8> {
        let mut random = Random(self.seed);
        let mut rows = random.bytes(PANEL_ROWS * width / self.values * self.bytes);
        for block in rows.chunks_exact_mut(self.bytes) {
            if let Some(fill) = fill {
                block.fill(fill);
            }
            match self.scales {
                Scales::Halves(places) => {
                    for &at in places {
                        // A number below 2, of either sign.
                        let random = u16::from_le_bytes([block[at], block[at + 1]]) & 0xBFFF;
                        block[at..at + 2].copy_from_slice(&scale.unwrap_or(random).to_le_bytes());
                    }
                }
                Scales::Quarters(at) => {
                    block[at + 7] &= 0xBF;
                    for (i, word) in block[at..at + 8].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        if let Some(scale) = scale {
                            word[1] = word[1] & 15 | ((scale >> (4 * i)) as u8) << 4;
                        }
                    }
                }
                Scales::Exponent => block[0] = scale.map_or(block[0] % 16 + 116, |scale| scale as u8),
            }
        }
        rows
    }
}

/// Activations of all kinds of parts: random of several sizes, all equal, zeros, an only one, and subnormal ones.
fn activations(rows: usize, width: usize) -> Vec<f32> {
    let mut random = Random(77);
    let mut all = Vec::new();
    for part in 0..rows * width / 32 {
        let numbers = match part % 11 {
            0 => vec![-0.75; 32],
            1 => vec![0.0; 32],
            2 => (0..32).map(|i| if i == 13 { 1e3 } else { 0.0 }).collect(),
            3 => random.numbers(32, 1e-39),
            4 => (0..32).map(|i| if i % 2 == 0 { 3.0 } else { -3.0 }).collect(),
            5 => random.numbers(32, 1e9),
            _ => random.numbers(32, 1.5),
        };
        all.extend(numbers);
    }
    all
}

/// Products of each row of activations with 16 rows of weights.
type Products = Vec<[f32; PANEL_ROWS]>;

/// Products of rows of a format, each of the rows of activations alone or several at once; the bits must be the same.
fn product<F: PanelFormat>(simd: Simd, rows: &[u8], width: usize, input: &[f32]) -> Products {
    let row_bytes = rows.len() / PANEL_ROWS;
    let mut panel = vec![0; rows.len()];
    panels::interleave::<F>(rows, row_bytes, PANEL_ROWS, &mut panel);
    let count = input.len() / width;
    let rounded = rounded(simd, width, input);
    fn all<F: PanelFormat, const R: usize>(
        simd: Simd,
        panel: &[u8],
        rounded: &QuantisedRows,
        first: usize,
    ) -> Vec<[f32; PANEL_ROWS]> {
        let mut products = [[0.0; PANEL_ROWS]; R];
        let row = |r: usize| rounded.row(first + r);
        panels::products::<F, R>(simd, panel, std::array::from_fn(row), &mut products);
        // The same in two pieces.
        let blocks = panel.len() / (F::BYTES * PANEL_ROWS);
        let (bytes, parts) = (blocks / 2 * F::BYTES * PANEL_ROWS, blocks / 2 * F::VALUES / panels::PART);
        let mut pieces = [[0.0; PANEL_ROWS]; R];
        let (front, back) = (|r: usize| &row(r)[..parts], |r: usize| &row(r)[parts..]);
        panels::products::<F, R>(simd, &panel[..bytes], std::array::from_fn(front), &mut pieces);
        panels::products::<F, R>(simd, &panel[bytes..], std::array::from_fn(back), &mut pieces);
        assert_eq!(
            hash(SEED, pieces.as_flattened()),
            hash(SEED, products.as_flattened()),
            "{simd:?}, pieces"
        );
        products.to_vec()
    }
    let alone: Vec<_> = (0..count).flat_map(|r| all::<F, 1>(simd, &panel, &rounded, r)).collect();
    let together = [
        all::<F, MOST_ROWS>(simd, &panel, &rounded, 0),
        all::<F, 4>(simd, &panel, &rounded, MOST_ROWS),
        all::<F, 2>(simd, &panel, &rounded, MOST_ROWS + 4),
    ]
    .concat();
    for (r, (together, alone)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(hash(SEED, together), hash(SEED, alone), "{simd:?}, row {r}");
    }
    // The same with panels that are taken apart first: this one, and after it one of the same rows from last to first.
    let backwards: Vec<u8> = rows.chunks_exact(row_bytes).rev().flatten().copied().collect();
    let mut panels = [panel, vec![0; rows.len()]].concat();
    panels::interleave::<F>(&backwards, row_bytes, PANEL_ROWS, &mut panels[rows.len()..]);
    let together = panels::panels_together(simd);
    for given in 1..=together {
        let mut products = vec![[0.0; PANEL_ROWS]; count * together];
        let panels = &panels[..given * rows.len()];
        panels::tiled_products::<F>(simd, panels, rows.len(), |r| rounded.row(r), &mut products);
        for (r, (tiled, alone)) in products.chunks_exact(together).zip(&alone).enumerate() {
            let mut alone = *alone;
            for (p, tiled) in tiled[..given].iter().enumerate() {
                assert_eq!(hash(SEED, tiled), hash(SEED, &alone), "{simd:?}, row {r}, panel {p} of {given}");
                alone.reverse();
            }
        }
    }
    alone
}

fn rounded(simd: Simd, width: usize, input: &[f32]) -> QuantisedRows {
    let mut rounded = QuantisedRows::default();
    let (all, parts): (&mut [ActivationPart], _) = rounded.shape(input.len() / width, width, input.len());
    for (row, x) in all.chunks_exact_mut(parts).zip(input.chunks_exact(width)) {
        panels::round(simd, x, row);
    }
    rounded
}

/// The same for a format whose rows are not kept in panels.
fn row_product<F: RowFormat>(simd: Simd, rows: &[u8], width: usize, input: &[f32]) -> Products {
    let rounded = rounded(simd, width, input);
    let input: Vec<_> = (0..input.len() / width).map(|row| rounded.row(row)).collect();
    let mut products = vec![[0.0; PANEL_ROWS]; input.len()];
    for (o, weights) in rows.chunks_exact(rows.len() / PANEL_ROWS).enumerate() {
        for (r, input) in input.iter().enumerate() {
            [products[r][o]] = F::products::<1>(simd, weights, [input]);
        }
        for (r, input) in input.as_chunks::<4>().0.iter().enumerate() {
            for (k, together) in F::products::<4>(simd, weights, *input).iter().enumerate() {
                let alone = products[4 * r + k][o];
                assert_eq!(hash(SEED, &[*together]), hash(SEED, &[alone]), "{simd:?}, row {}", 4 * r + k);
            }
        }
    }
    products
}

/// The same for a format of single numbers.
fn float_product<F: FloatFormat>(simd: Simd, rows: &[u8], width: usize, input: &[f32]) -> Products {
    let mut panel = vec![0; rows.len()];
    panels::interleave_floats::<F>(rows, rows.len() / PANEL_ROWS, PANEL_ROWS, &mut panel);
    let row = |r: usize| &input[r * width..][..width];
    let alone: Vec<_> =
        (0..ROWS).flat_map(|r| panels::float_products::<F, 1>(simd, &panel, [row(r)])).collect();
    let together = [
        panels::float_products::<F, MOST_ROWS>(simd, &panel, std::array::from_fn(row)).to_vec(),
        panels::float_products::<F, 4>(simd, &panel, std::array::from_fn(|r| row(MOST_ROWS + r))).to_vec(),
        panels::float_products::<F, 2>(simd, &panel, std::array::from_fn(|r| row(MOST_ROWS + 4 + r)))
            .to_vec(),
    ]
    .concat();
    for (r, (together, alone)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(hash(SEED, together), hash(SEED, alone), "{simd:?}, row {r}");
    }
    alone
}

/// What `neon.sh` looks for: that the emulated processor has the instructions that it is to have.
#[test]
fn the_instructions_are_named() {
    println!("compared: {:?}", Simd::available());
}

/// Compares a product's hash on all instructions with the one that is written down.
fn hold(what: &str, wanted: u64, product: impl Fn(Simd) -> u64) {
    for simd in Simd::available() {
        let found = product(simd);
        assert_eq!(found, wanted, "{what} on {simd:?}: {found:#018X} instead of {wanted:#018X}");
    }
}

fn quantised(
    name: &str,
    blocks: Blocks,
    wanted: [u64; 2],
    product: fn(Simd, &[u8], usize, &[f32]) -> Products,
) {
    const WIDTH: usize = 768;
    let input = activations(ROWS, WIDTH);
    let rows = blocks.rows(WIDTH, None, None);
    hold(&format!("{name}, random blocks"), wanted[0], |simd| {
        let products = product(simd, &rows, WIDTH, &input);
        assert!(products.as_flattened().iter().all(|y| y.is_finite()), "{name}");
        hash(SEED, products.as_flattened())
    });
    // All codes equal and at their ends, and scales that are zeros, subnormal, the largest, infinite and no numbers.
    let scales = [0, 0x8000, 1, 0x83FF, 0x0400, 0x7BFF, 0x7C00, 0x7E01].map(Some);
    let extremes: Vec<_> = [None, Some(0), Some(255), Some(127), Some(128)]
        .into_iter()
        .flat_map(|fill| scales.map(|scale| blocks.rows(WIDTH, fill, scale)))
        .collect();
    hold(&format!("{name}, extreme blocks"), wanted[1], |simd| {
        extremes
            .iter()
            .fold(SEED, |so_far, rows| hash(so_far, product(simd, rows, WIDTH, &input).as_flattened()))
    });
}

macro_rules! quantised {
    ($product:ident, $format:ident; $($name:ident in $module:ident: $scales:expr, seed $seed:literal, $wanted:expr;)*) => {$(
        #[test]
        #[expect(non_snake_case, reason = "these are the formats' own names")]
        fn $name() {
            use $module::$name as Format;
            let (values, bytes) = (<Format as $format>::VALUES, <Format as $format>::BYTES);
            let blocks = Blocks { scales: $scales, values, bytes, seed: $seed };
            quantised(stringify!($name), blocks, $wanted, $product::<Format>);
        }
    )*};
}

mod formats {
    use super::Scales::{Exponent, Halves, Quarters};
    use super::*;

    quantised! {
        product, PanelFormat;
        Q4_0 in panels: Halves(&[0]), seed 1, [0xBA6F_04EE_8EA6_01E6, 0x8858_523E_60D9_C372];
        Q4_1 in panels: Halves(&[0, 2]), seed 2, [0x4303_50F4_6225_AF0B, 0x9825_D378_552A_AAFC];
        Q5_0 in panels: Halves(&[0]), seed 3, [0xD54E_FAD0_A9DF_138D, 0xBEF2_03A9_E3E2_A9AD];
        Q5_1 in panels: Halves(&[0, 2]), seed 4, [0x05D8_2D9C_CD3F_F99A, 0xC935_2007_CED2_0174];
        Q8_0 in panels: Halves(&[0]), seed 5, [0xD8C9_6FC6_19A8_A9E0, 0x39CA_30A9_F050_0A9D];
        IQ4_NL in panels: Halves(&[0]), seed 6, [0x27E7_804B_E93F_FA55, 0x5F67_AD67_832A_542A];
        MXFP4 in panels: Exponent, seed 7, [0x1E25_9006_0138_21F4, 0x8DF4_6D42_36E9_CA01];
        Q2K in panels: Halves(&[80, 82]), seed 8, [0xBD77_1749_D925_6C1D, 0x149A_2473_3C75_CAF1];
        Q3K in panels: Halves(&[108]), seed 9, [0x14C5_A03B_6901_AF71, 0xD08A_7D59_C69D_9339];
        Q4K in panels: Halves(&[0, 2]), seed 10, [0xEC12_408F_9362_816A, 0xB37C_DE7F_DC2F_58FC];
        Q5K in panels: Halves(&[0, 2]), seed 11, [0x4AF8_5CA3_20DE_9F2F, 0x7286_E607_0996_DE32];
        Q6K in panels: Halves(&[208]), seed 12, [0x2FD7_9DF1_32D7_7714, 0xADC7_0723_A23D_46AA];
        IQ4_XS in panels: Halves(&[0]), seed 13, [0xE669_CC4F_7EF7_7650, 0x6CC2_7B9A_5C61_B2AD];
    }

    quantised! {
        row_product, RowFormat;
        TQ1_0 in super_blocks: Halves(&[52]), seed 14, [0x931B_A486_38BC_7D53, 0x1986_515F_033A_2931];
        TQ2_0 in super_blocks: Halves(&[64]), seed 15, [0x9100_BB81_5E64_975A, 0x1AEF_DBFC_BAEE_96C1];
        IQ1_S in codebooks: Halves(&[0]), seed 16, [0x572C_8640_A848_D1CB, 0xEB9D_6AD1_2A4F_CA4A];
        IQ1_M in codebooks: Quarters(48), seed 17, [0x8040_F5B6_13CC_8463, 0x9D2A_D9B3_8D9A_61AC];
        IQ2_XXS in codebooks: Halves(&[0]), seed 18, [0xBCA6_AE05_F57B_007F, 0xC978_57A2_C34A_94F6];
        IQ2_XS in codebooks: Halves(&[0]), seed 19, [0xC1CC_6479_4971_3B22, 0x2D5E_E339_837E_8E7C];
        IQ2_S in codebooks: Halves(&[0]), seed 20, [0x8F4E_9CAE_AFCD_5BA2, 0x850C_8A71_A30B_27E0];
        IQ3_XXS in codebooks: Halves(&[0]), seed 21, [0xE285_3963_5183_44BC, 0xEAA4_077F_5517_B772];
        IQ3_S in codebooks: Halves(&[0]), seed 22, [0xB8A6_74CB_D776_5FC1, 0xEC64_DCCE_3FA4_FB02];
    }
}

fn floats<F: FloatFormat>(name: &str, seed: u64, wanted: u64) {
    hold(name, wanted, |simd| {
        let mut random = Random(seed);
        [1, 5, 16, 33, 257].into_iter().fold(SEED, |so_far, width| {
            let input = random.numbers(ROWS * width, 1.5);
            // Any bits, of which some are infinite or no numbers.
            let rows = random.bytes(PANEL_ROWS * width * F::BYTES);
            let so_far = hash(so_far, float_product::<F>(simd, &rows, width, &input).as_flattened());
            let rows: Vec<u8> = rows
                .as_chunks::<2>()
                .0
                .iter()
                .flat_map(|x| (u16::from_le_bytes(*x) & 0xBFFF).to_le_bytes())
                .collect();
            hash(so_far, float_product::<F>(simd, &rows, width, &input).as_flattened())
        })
    });
}

#[test]
fn f32_products() {
    floats::<panels::F32>("F32", 21, 0xC99F_C439_DB3B_6DAA);
}

#[test]
fn f16_products() {
    floats::<panels::F16>("F16", 22, 0x3944_D95D_3354_236F);
}

#[test]
fn bf16_products() {
    floats::<panels::Bf16>("BF16", 23, 0x36F3_E331_4C51_D727);
}

kernel! {
    fn exp_of(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = exp(*x);
        }
    }
}

/// Sums of rows times their weights, for outputs alone and among seven others.
fn weighed<F: FloatFormat>(name: &str, seed: u64, wanted: u64) {
    const COUNT: usize = 29;
    hold(name, wanted, |simd| {
        let mut random = Random(seed);
        [1, 15, 16, 32, 80, 100].into_iter().fold(SEED, |so_far, width| {
            let stride = width + 3;
            let bytes: Vec<u8> = random.bytes(COUNT * stride * F::BYTES);
            let weights: Vec<Vec<f32>> = (0..8).map(|_| random.numbers(COUNT, 1.0)).collect();
            let before: Vec<Vec<f32>> = (0..8).map(|_| random.numbers(width, 1e3)).collect();
            let rows = WeighedRows { bytes: &bytes, stride };
            let mut together = before.clone();
            let mut out = together.iter_mut();
            let out = std::array::from_fn(|_| out.next().map_or(&mut [] as &mut [f32], |out| out));
            panels::add_weighed::<F, 8>(simd, rows, std::array::from_fn(|r| &weights[r][..]), out);
            for ((weights, mut alone), together) in weights.iter().zip(before).zip(&together) {
                panels::add_weighed::<F, 1>(simd, rows, [weights], [&mut alone]);
                assert_eq!(hash(SEED, &alone), hash(SEED, together), "{name} on {simd:?}, width {width}");
            }
            hash(so_far, &together.concat())
        })
    });
}

#[test]
fn weighed_rows() {
    weighed::<panels::F16>("weighed F16", 32, 0xF61B_6BC8_5B20_7038);
    weighed::<panels::F32>("weighed F32", 33, 0x0710_AB55_5AAD_ED20);
}

#[test]
fn exponentials() {
    let mut x = Random(31).numbers(100_000, 100.0);
    x.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40, f32::MAX, f32::MIN]);
    hold("exponentials", 0x7DC0_C6F6_15FE_0956, |simd| {
        let mut out = vec![0.0; x.len()];
        exp_of(simd, &x, &mut out);
        hash(SEED, &out)
    });
}

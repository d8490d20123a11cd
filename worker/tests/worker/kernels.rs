//! The processor's products against exact arithmetic, and their independence of everything but the row.

use super::blocks::{
    InMemory, all_kinds, codebook_kinds, dequantised, kinds, random_blocks, set_scales, values_of,
};
use super::tiny_model::{Random, decode};
use brigade_shard::spec::Activation;
use brigade_shard::tensor_type::TensorType;
use brigade_worker::backend::{Backend, MatrixShape, Routes};
use brigade_worker::cpu::{CpuBackend, Simd};

/// Bytes of xorshift64 words, as `tests/reference/make_block_values.py` makes them.
fn random_bytes(mut state: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// A random matrix of `rows` x `width` and `count` random inputs.
struct Product {
    shape: MatrixShape,
    bytes: Vec<u8>,
    input: Vec<f32>,
}

impl Product {
    fn new(kind: TensorType, rows: usize, width: usize, count: usize) -> Product {
        let mut random = Random::new(kind.to_ggml() as u64 + 1);
        let bytes = random_blocks(kind, rows * width, &mut random);
        let input = random.normals(count * width, 1.5);
        Product { shape: MatrixShape { kind, rows, width }, bytes, input }
    }

    /// The weights as f32.
    fn weights(&self) -> Vec<f32> {
        values_of(self.shape.kind, &self.bytes, self.shape.width)
    }

    fn run(&self, backend: &mut CpuBackend, input: &[f32]) -> Vec<f32> {
        let matrix = backend.matrix(self.shape, &mut InMemory(self.bytes.clone())).unwrap();
        let count = input.len() / self.shape.width;
        let mut x = backend.rows(count, self.shape.width).unwrap();
        let mut y = backend.rows(count, self.shape.rows).unwrap();
        backend.upload(input, self.shape.width, &mut x).unwrap();
        backend.linear(&x, &mut [(&matrix, &mut y)]).unwrap();
        backend.host(&y, &mut Vec::new()).unwrap().to_vec()
    }
}

/// An input as products take it.
struct Taken {
    value: f64,
    /// What it may be off by: one step, where rounding may fall to either side.
    doubt: f64,
}

/// How far from a tie the processor's rounding to at most 127 steps may still fall to the other side: it multiplies by a
/// rounded number of steps and rounds the product, each of which is off by 2^-24 of it at most. Together at most 1.6e-5.
const TIE: f64 = 2e-5;

/// The inputs as the format's products take them: rounded to 8 bits for quantised weights.
fn taken(kind: TensorType, input: &[f32]) -> Vec<Taken> {
    if !kind.is_quantised() {
        return input.iter().map(|&x| Taken { value: f64::from(x), doubt: 0.0 }).collect();
    }
    let part = |x: &[f32]| {
        let step = f64::from(x.iter().fold(0f32, |a, x| a.max(x.abs()))) / 127.0;
        let rounded = |x: &f32| {
            let steps = f64::from(*x) / step;
            let at_tie = (steps.abs().fract() - 0.5).abs() < TIE;
            Taken { value: steps.round() * step, doubt: if at_tie { step } else { 0.0 } }
        };
        x.iter().map(rounded).collect::<Vec<_>>()
    };
    input.chunks(32).flat_map(part).collect()
}

#[test]
fn products_are_those_of_the_dequantised_weights() {
    for kind in all_kinds() {
        let (rows, width, count) = (37, 512, 7);
        let product = Product::new(kind, rows, width, count);
        let found = product.run(&mut CpuBackend::new(2).unwrap(), &product.input);
        let weights = product.weights();
        let input = taken(kind, &product.input);
        for i in 0..count {
            for o in 0..rows {
                let (mut exact, mut size, mut doubt) = (0.0, 0.0, 0.0);
                for (weight, x) in weights[o * width..].iter().zip(&input[i * width..][..width]) {
                    let weight = f64::from(*weight);
                    exact += weight * x.value;
                    size += (weight * x.value).abs();
                    doubt += (weight * x.doubt).abs();
                }
                let found = f64::from(found[i * rows + o]);
                let bound = size * 2e-6 + doubt;
                assert!(
                    (found - exact).abs() <= bound,
                    "{kind} [{i}, {o}]: {found} instead of {exact}, {bound}"
                );
            }
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_and_among_others_on_any_threads_and_instructions() {
    for kind in all_kinds() {
        let product = Product::new(kind, 333, 512, 23);
        let expected = product.run(&mut CpuBackend::with_simd(1, Simd::Portable).unwrap(), &product.input);
        assert!(expected.iter().all(|y| y.is_finite()), "{kind}");
        let all = Simd::available().into_iter().map(|simd| (1, simd));
        for (threads, simd) in all.chain([2, 3].map(|threads| (threads, Simd::detect()))) {
            let mut backend = CpuBackend::with_simd(threads, simd).unwrap();
            let found = product.run(&mut backend, &product.input);
            assert_eq!(found, expected, "{kind}, {threads} threads, {simd:?}");
            for (i, row) in product.input.chunks(512).enumerate() {
                let alone = product.run(&mut backend, row);
                assert_eq!(alone, expected[i * 333..][..333], "{kind}, row {i} alone");
            }
        }
    }
}

/// Inputs of all kinds of parts of 32: random of several sizes, all equal, of two values, zeros, an only one, subnormal.
fn adversarial_inputs(count: usize) -> Vec<f32> {
    let mut random = Random::new(41);
    let part = |i: usize| match i % 9 {
        0 => vec![-0.75; 32],
        1 => vec![0.0; 32],
        2 => (0..32).map(|k| if k == 13 { 1e3 } else { 0.0 }).collect(),
        3 => random.normals(32, 1e-39),
        4 => (0..32).map(|k| if k % 2 == 0 { 3.0 } else { -3.0 }).collect(),
        5 => random.normals(32, 1e4),
        6 => (0..32).map(|k| if k == 7 { 1e4 } else { 1e-4 }).collect(),
        _ => random.normals(32, 1.5),
    };
    (0..count / 32).flat_map(part).collect()
}

#[test]
fn rounding_activations_costs_at_most_half_a_step_of_each() {
    for kind in all_kinds().filter(|kind| kind.is_quantised()) {
        let (rows, width, count) = (37, 768, 6);
        let product =
            Product { input: adversarial_inputs(count * width), ..Product::new(kind, rows, width, 1) };
        let weights = product.weights();
        for simd in [Simd::Portable, Simd::detect()] {
            let found = product.run(&mut CpuBackend::with_simd(2, simd).unwrap(), &product.input);
            for i in 0..count {
                let input = &product.input[i * width..][..width];
                for o in 0..rows {
                    let weights = &weights[o * width..][..width];
                    let (mut exact, mut bound) = (0.0, 0.0);
                    for (x, w) in input.chunks(32).zip(weights.chunks(32)) {
                        let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
                        // A step is a 127th of the largest; below 4e-37 all count as zeros.
                        let step = f64::from(largest) / 127.0;
                        let off = if largest < 4e-37 { f64::from(largest) } else { step * 0.5001 };
                        for (x, w) in x.iter().zip(w) {
                            let (x, w) = (f64::from(*x), f64::from(*w));
                            exact += x * w;
                            bound += w.abs() * (off + (x.abs() + off) * 2e-6);
                        }
                    }
                    let found = f64::from(found[i * rows + o]);
                    let error = (found - exact).abs();
                    assert!(
                        error <= bound,
                        "{kind} [{i}, {o}] on {simd:?}: {found} instead of {exact}, {error} > {bound}"
                    );
                }
            }
        }
    }
}

#[test]
fn rows_of_64_random_batches_are_what_each_is_alone() {
    const POOL: usize = 32;
    const WIDTH: usize = 512;
    let kinds: Vec<TensorType> = all_kinds().collect();
    let (rows, other_rows) = (97, 40);
    let mut random = Random::new(64);
    let mut below = |count: usize| (random.uniform() * count as f32) as usize % count;
    let alone: Vec<(Product, Vec<f32>)> = kinds
        .iter()
        .map(|&kind| {
            let product = Product::new(kind, rows, WIDTH, POOL);
            let mut backend = CpuBackend::with_simd(1, Simd::Portable).unwrap();
            let products =
                product.input.chunks(WIDTH).flat_map(|row| product.run(&mut backend, row)).collect();
            (product, products)
        })
        .collect();
    for batch in 0..64 {
        let (product, products) = &alone[batch % kinds.len()];
        let other = &alone[below(kinds.len())].0;
        let all = Simd::available();
        let (simd, threads) = (all[below(all.len())], 1 + below(4));
        let mut backend = CpuBackend::with_simd(threads, simd).unwrap();
        let which: Vec<usize> = (0..1 + below(40)).map(|_| below(POOL)).collect();
        let input: Vec<f32> =
            which.iter().flat_map(|&row| product.input[row * WIDTH..][..WIDTH].to_vec()).collect();
        // Another matrix of another type shares the step.
        let matrix = backend.matrix(product.shape, &mut InMemory(product.bytes.clone())).unwrap();
        let shape = MatrixShape { rows: other_rows, ..other.shape };
        let bytes = other.bytes[..other.bytes.len() / rows * other_rows].to_vec();
        let other = backend.matrix(shape, &mut InMemory(bytes)).unwrap();
        let mut x = backend.rows(which.len(), WIDTH).unwrap();
        let mut y = backend.rows(which.len(), rows).unwrap();
        let mut z = backend.rows(which.len(), other_rows).unwrap();
        backend.upload(&input, WIDTH, &mut x).unwrap();
        backend.linear(&x, &mut [(&other, &mut z), (&matrix, &mut y)]).unwrap();
        let found = backend.host(&y, &mut Vec::new()).unwrap().to_vec();
        for (found, &row) in found.chunks(rows).zip(&which) {
            let kind = product.shape.kind;
            assert_eq!(
                found,
                &products[row * rows..][..rows],
                "batch {batch}: {kind}, row {row} of {which:?}, {threads} threads, {simd:?}"
            );
        }
    }
}

#[test]
fn widths_that_are_no_multiple_of_the_lanes_work_for_floats() {
    for kind in [TensorType::F32, TensorType::F16, TensorType::BF16] {
        for width in [1, 5, 16, 33, 259] {
            let product = Product::new(kind, 3, width, 5);
            let found = product.run(&mut CpuBackend::new(1).unwrap(), &product.input);
            let weights = decode(kind, &product.bytes, 3 * width);
            for (i, &found) in found.iter().enumerate() {
                let (input, row) =
                    (&product.input[i / 3 * width..][..width], &weights[i % 3 * width..][..width]);
                let exact: f64 = input.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(found) - exact).abs() < 1e-4, "{kind} of width {width}");
            }
        }
    }
}

#[test]
fn an_input_that_is_not_finite_shows_in_every_product() {
    for kind in all_kinds() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut product = Product::new(kind, 5, 512, 2);
            product.input[300] = bad;
            let found = product.run(&mut CpuBackend::new(1).unwrap(), &product.input);
            assert!(found[..5].iter().all(|y| !y.is_finite()), "{kind} with {bad}: {found:?}");
            assert!(found[5..].iter().all(|y| y.is_finite()), "{kind} with {bad}: {found:?}");
        }
    }
}

#[test]
fn embedding_rows_are_the_dequantised_ones() {
    for kind in kinds() {
        let product = Product::new(kind, 40, 256, 1);
        let backend = CpuBackend::new(2).unwrap();
        let table = backend.matrix(product.shape, &mut InMemory(product.bytes.clone())).unwrap();
        let mut rows = backend.rows(3, 256).unwrap();
        backend.embed(&table, &[39, 0, 7], &mut rows).unwrap();
        let values = decode(kind, &product.bytes, 40 * 256);
        let expected: Vec<f32> = [39, 0, 7].iter().flat_map(|t| values[t * 256..][..256].to_vec()).collect();
        assert_eq!(backend.host(&rows, &mut Vec::new()).unwrap(), expected, "{kind}");
    }
}

#[test]
fn a_type_without_kernels_is_refused_by_name() {
    let shape = MatrixShape { kind: TensorType::Q8_1, rows: 1, width: 256 };
    let error = CpuBackend::new(1).unwrap().matrix(shape, &mut InMemory(vec![0; 288])).err().unwrap();
    assert!(error.to_string().contains("Q8_1"), "{error}");
}

#[test]
fn every_type_that_is_served_is_tested() {
    let taken = |kind: &TensorType| {
        let width = kind.block_values().max(256) as usize;
        let bytes = vec![0; kind.bytes_of(width as u64).unwrap().0 as usize];
        let shape = MatrixShape { kind: *kind, rows: 1, width };
        CpuBackend::new(1).unwrap().matrix(shape, &mut InMemory(bytes)).is_ok()
    };
    let mut served: Vec<TensorType> = (0..256).filter_map(TensorType::from_ggml).filter(taken).collect();
    let mut tested: Vec<TensorType> = all_kinds().collect();
    for kinds in [&mut served, &mut tested] {
        kinds.sort_unstable_by_key(|kind| kind.to_ggml());
    }
    assert_eq!(served, tested);
}

/// Pairs of hexadecimal digits as bytes.
fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Values with minus zero as zero, which it equals.
fn without_minus_zero(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| x + 0.0).collect()
}

/// FNV-1a over the bits of the values, a word at a time.
fn hash(values: &[f32]) -> u64 {
    values.iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01B3)
    })
}

#[test]
fn codebook_blocks_stand_for_what_gguf_says() {
    let text = include_str!("../../../tests/reference/block-values.txt");
    let mut blocks = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let kind = codebook_kinds().find(|kind| kind.name() == words[0]).unwrap();
        let width = kind.block_values() as usize;
        match words[1] {
            "block" => {
                let found = without_minus_zero(&dequantised(kind, &from_hex(words[2]), width));
                let wanted = from_hex(words[3]);
                let wanted: Vec<f32> =
                    wanted.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    let same = found.to_bits() == wanted.to_bits();
                    assert!(same, "{kind} block {}: value {i} is {found} instead of {wanted}", words[2]);
                }
                assert_eq!(found.len(), wanted.len(), "{kind}");
            }
            _ => {
                let (seed, count): (u64, usize) = (words[2].parse().unwrap(), words[3].parse().unwrap());
                let mut bytes = random_bytes(seed, count * kind.block_bytes() as usize);
                set_scales(kind, &mut bytes, if kind == TensorType::MXFP4 { 128 } else { 0x3555 });
                let found = hash(&without_minus_zero(&dequantised(kind, &bytes, width)));
                assert_eq!(format!("{found:016x}"), words[4], "{kind}: {count} random blocks");
            }
        }
        blocks += 1;
    }
    assert_eq!(blocks, 7 * codebook_kinds().count());
}

#[test]
fn extreme_blocks_give_the_same_bits_on_any_instructions() {
    for kind in all_kinds().filter(|kind| kind.is_quantised()) {
        let size = kind.bytes_of(1024).unwrap().0 as usize;
        for (fill, scale) in [(0, 1), (255, 1), (0, 0x7BFF), (255, 0x7BFF), (127, 0x83FF), (128, 0x0400)] {
            let mut bytes = vec![fill; size];
            // Of these, MXFP4 takes the low byte as an exponent: the smallest, and others.
            set_scales(kind, &mut bytes, scale);
            let shape = MatrixShape { kind, rows: 1, width: 1024 };
            let input = Random::new(9).normals(5 * 1024, 1e-3);
            let product = Product { shape, bytes, input };
            let portable =
                product.run(&mut CpuBackend::with_simd(1, Simd::Portable).unwrap(), &product.input);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            for simd in Simd::available() {
                let found = product.run(&mut CpuBackend::with_simd(1, simd).unwrap(), &product.input);
                assert_eq!(bits(&found), bits(&portable), "{kind} of {fill}, scale {scale:#x}, {simd:?}");
            }
        }
    }
}

#[test]
fn a_route_gives_the_bits_of_its_experts_own_product() {
    const COUNT: usize = 3;
    for kind in all_kinds() {
        let product = Product::new(kind, 40, 256, 5);
        let mut random = Random::new(23);
        let bytes: Vec<Vec<u8>> = (0..COUNT).map(|_| random_blocks(kind, 40 * 256, &mut random)).collect();
        let mut backend = CpuBackend::new(2).unwrap();
        let all = backend.experts(product.shape, COUNT, &mut InMemory(bytes.concat())).unwrap();
        let routes = Routes {
            used: 2,
            experts: vec![2, 0, 0, 2, 2, 1, 0, 2, 1, 2],
            weights: vec![0.25, 0.75, 1.0, 0.5, 0.5, 0.5, 0.125, 0.25, 0.5, 0.75],
        };
        let mut x = backend.rows(5, 256).unwrap();
        let mut y = backend.rows(10, 40).unwrap();
        backend.upload(&product.input, 256, &mut x).unwrap();
        backend.expert_linear(&x, &routes, COUNT, &mut [(&all, &mut y)]).unwrap();
        let found = backend.host(&y, &mut Vec::new()).unwrap().to_vec();
        let mut sums = backend.rows(5, 40).unwrap();
        backend.combine(&y, &routes, &mut sums).unwrap();
        let sums = backend.host(&sums, &mut Vec::new()).unwrap().to_vec();
        for (route, &expert) in routes.experts.iter().enumerate() {
            let alone = Product { bytes: bytes[expert as usize].clone(), ..Product::new(kind, 40, 256, 5) };
            let row = route / 2;
            let wanted = alone.run(&mut backend, &product.input[row * 256..][..256]);
            assert_eq!(&found[route * 40..][..40], wanted, "{kind}: route {route} to expert {expert}");
        }
        for (row, sums) in sums.chunks(40).enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                let of = |route: usize| found[route * 40 + i] * routes.weights[route];
                assert_eq!(*sum, of(2 * row) + of(2 * row + 1), "{kind}: row {row}");
            }
        }
    }
}

#[test]
fn a_route_gets_its_experts_bias() {
    let backend = CpuBackend::new(2).unwrap();
    let routes = Routes { used: 2, experts: vec![2, 0, 1, 2], weights: vec![0.5; 4] };
    let biases = backend.vector(&[1.0, 2.0, 10.0, 20.0, 100.0, 200.0]).unwrap();
    let mut rows = backend.rows(4, 2).unwrap();
    backend.upload(&[0.5; 8], 2, &mut rows).unwrap();
    backend.add_expert_bias(&mut rows, &routes, &biases).unwrap();
    let wanted = [100.5, 200.5, 1.5, 2.5, 10.5, 20.5, 100.5, 200.5];
    assert_eq!(backend.host(&rows, &mut Vec::new()).unwrap(), wanted);
}

#[test]
fn the_clamped_gate_keeps_what_is_no_number_and_bounds_the_rest() {
    for simd in [Simd::Portable, Simd::detect()] {
        let backend = CpuBackend::with_simd(1, simd).unwrap();
        let gates = [0.5, 3.0, 7.0, 9.0, -20.0, 1.0, 1.0, f32::NAN, 1.0, f32::INFINITY];
        let ups = [0.25, -1.0, 2.0, 2.0, 2.0, 12.0, -12.0, 1.0, f32::NAN, 0.0];
        let (mut gate, mut up) = (backend.rows(1, 10).unwrap(), backend.rows(1, 10).unwrap());
        backend.upload(&gates, 10, &mut gate).unwrap();
        backend.upload(&ups, 10, &mut up).unwrap();
        backend.gate(&mut gate, &up, Activation::ClampedSwish).unwrap();
        let found = backend.host(&gate, &mut Vec::new()).unwrap().to_vec();
        for (i, (found, (gate, up))) in found.iter().zip(gates.into_iter().zip(ups)).enumerate() {
            let x = f64::from(gate).clamp(f64::NEG_INFINITY, 7.0);
            let wanted = x / (1.0 + (-1.702 * x).exp()) * (f64::from(up).clamp(-7.0, 7.0) + 1.0);
            let near = (f64::from(*found) - wanted).abs() < 1e-5 || (found.is_nan() && wanted.is_nan());
            assert!(near, "value {i}: {found} instead of {wanted}");
        }
    }
}

//! The processor's products against exact arithmetic, and their independence of everything but the row.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tiny_model;

use brigade_shard::tensor_type::TensorType;
use brigade_worker::backend::{Backend, MatrixShape};
use brigade_worker::cpu::{CpuBackend, Simd};
use brigade_worker::weights::{LoadError, TensorSource};
use candle_core::quantized::k_quants::{BlockQ8K, GgmlType};
use rayon::ThreadPool;
use tiny_model::{Random, decode, encode};

const KINDS: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];

struct InMemory(Vec<u8>);

impl TensorSource for InMemory {
    fn read(&mut self, out: &mut [u8], _pool: &ThreadPool) -> Result<(), LoadError> {
        out.copy_from_slice(&self.0);
        Ok(())
    }

    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError {
        LoadError::Unsupported { tensor: "test".to_owned(), kind, device }
    }
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
        let bytes = encode(kind, &random.normals(rows * width, 0.3));
        let input = random.normals(count * width, 1.5);
        Product { shape: MatrixShape { kind, rows, width }, bytes, input }
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

/// The input as the format's products take it: rounded to 8 bits for quantised weights.
fn rounded(kind: TensorType, input: &[f32]) -> Vec<f64> {
    match kind.block_values() {
        1 => input.iter().map(|&x| f64::from(x)).collect(),
        32 => {
            let block = |x: &[f32]| {
                let scale = x.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
                x.iter().map(|x| f64::from((x / scale).round() * scale)).collect::<Vec<_>>()
            };
            input.chunks(32).flat_map(block).collect()
        }
        _ => {
            let mut blocks = vec![BlockQ8K::zeros(); input.len() / 256];
            BlockQ8K::from_float(input, &mut blocks);
            let mut out = vec![0f32; input.len()];
            BlockQ8K::to_float(&blocks, &mut out);
            out.into_iter().map(f64::from).collect()
        }
    }
}

#[test]
fn products_are_those_of_the_dequantised_weights() {
    for kind in KINDS {
        let (rows, width, count) = (37, 512, 7);
        let product = Product::new(kind, rows, width, count);
        let found = product.run(&mut CpuBackend::new(2).unwrap(), &product.input);
        let weights = decode(kind, &product.bytes, rows * width);
        let input = rounded(kind, &product.input);
        for i in 0..count {
            for o in 0..rows {
                let terms = (0..width).map(|k| f64::from(weights[o * width + k]) * input[i * width + k]);
                let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                let found = f64::from(found[i * rows + o]);
                // A tie in the rounding of one input may fall to either side; everything else is f32 rounding.
                let bound = size * 2e-6 + if kind.block_values() == 32 { 2e-3 } else { 0.0 };
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
    for kind in KINDS {
        let product = Product::new(kind, 333, 512, 23);
        let expected = product.run(&mut CpuBackend::with_simd(1, Simd::Portable).unwrap(), &product.input);
        assert!(expected.iter().all(|y| y.is_finite()), "{kind}");
        for threads in [1, 2, 3] {
            let mut backend = CpuBackend::with_simd(threads, Simd::detect()).unwrap();
            assert_eq!(product.run(&mut backend, &product.input), expected, "{kind}, {threads} threads");
            for (i, row) in product.input.chunks(512).enumerate() {
                let alone = product.run(&mut backend, row);
                assert_eq!(alone, expected[i * 333..][..333], "{kind}, row {i} alone");
            }
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
    for kind in KINDS {
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
    for kind in KINDS {
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
    let shape = MatrixShape { kind: TensorType::IQ2_XXS, rows: 1, width: 256 };
    let error = CpuBackend::new(1).unwrap().matrix(shape, &mut InMemory(vec![0; 66])).err().unwrap();
    assert!(error.to_string().contains("IQ2_XXS"), "{error}");
}

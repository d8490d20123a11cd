//! What latent attention asks of the processor: a matrix for every head, parts of heads side by side, values that are parts
//! of keys.

use std::ops::Range;

use super::blocks::{InMemory, all_kinds, random_blocks, values_of};
use super::tiny_model::Random;
use brigade_proto::control::CacheDtype;
use brigade_shard::spec::Visibility;
use brigade_shard::tensor_type::TensorType;
use brigade_worker::backend::{AttentionShape, Backend, Batch, CacheShape, HeadRows, MatrixShape, Span};
use brigade_worker::cpu::{CpuBackend, CpuMatrix, CpuRows, Simd};

const HEADS: usize = 3;
const ROWS: usize = 37;
const WIDTH: usize = 256;
/// Rows of each head, of which some are asked for.
const OF: HeadRows = HeadRows { heads: HEADS, stride: 43, first: 11, count: 32 };

fn weights(kind: TensorType) -> Vec<u8> {
    random_blocks(kind, HEADS * OF.stride * WIDTH, &mut Random::new(5))
}

fn matrix(backend: &CpuBackend, kind: TensorType, bytes: &[u8]) -> CpuMatrix {
    let rows = bytes.len() / kind.bytes_of(WIDTH as u64).unwrap().0 as usize;
    backend.matrix(MatrixShape { kind, rows, width: WIDTH }, &mut InMemory(bytes.to_vec())).unwrap()
}

fn rows(backend: &CpuBackend, values: &[f32], width: usize) -> CpuRows {
    let mut rows = backend.rows(values.len() / width, width).unwrap();
    backend.upload(values, width, &mut rows).unwrap();
    rows
}

fn values(backend: &CpuBackend, rows: &CpuRows) -> Vec<f32> {
    backend.host(rows, &mut Vec::new()).unwrap().to_vec()
}

/// The part of one head of rows of heads that are `width` wide.
fn part(all: &[f32], width: usize, head: usize) -> Vec<f32> {
    all.chunks(HEADS * width).flat_map(|row| row[head * width..][..width].to_vec()).collect()
}

#[test]
fn each_head_meets_its_own_rows_as_it_would_alone() {
    let mut backend = CpuBackend::new(2).unwrap();
    let input = Random::new(6).normals(ROWS * HEADS * WIDTH, 1.0);
    for kind in all_kinds() {
        let bytes = weights(kind);
        let all = matrix(&backend, kind, &bytes);
        let mut out = backend.rows(1, 1).unwrap();
        let x = rows(&backend, &input, HEADS * WIDTH);
        backend.head_linear(&x, &all, OF, &mut out).unwrap();
        let found = values(&backend, &out);
        assert_eq!(found.len(), ROWS * HEADS * OF.count);
        let row_bytes = bytes.len() / (HEADS * OF.stride);
        for head in 0..HEADS {
            let first = (head * OF.stride + OF.first) * row_bytes;
            let own = matrix(&backend, kind, &bytes[first..][..OF.count * row_bytes]);
            let x = rows(&backend, &part(&input, WIDTH, head), WIDTH);
            backend.linear(&x, &mut [(&own, &mut out)]).unwrap();
            assert_eq!(part(&found, OF.count, head), values(&backend, &out), "{kind}, head {head}");
        }
    }
}

#[test]
fn a_transposed_matrix_is_multiplied_exactly_and_alike_everywhere() {
    let input = Random::new(7).normals(ROWS * HEADS * OF.count, 1.0);
    let run = |backend: &mut CpuBackend, kind, bytes: &[u8], rows_of: Range<usize>| {
        let matrix = matrix(backend, kind, bytes);
        let width = HEADS * OF.count;
        let x = rows(backend, &input[rows_of.start * width..rows_of.end * width], width);
        let mut out = backend.rows(1, 1).unwrap();
        backend.head_linear_transposed(&x, &matrix, OF, &mut out).unwrap();
        values(backend, &out)
    };
    for kind in all_kinds() {
        let bytes = weights(kind);
        let exact_weights = values_of(kind, &bytes, WIDTH);
        let found = run(&mut CpuBackend::with_simd(1, Simd::Portable).unwrap(), kind, &bytes, 0..ROWS);
        for (index, found) in found.iter().enumerate() {
            let (row, head, column) = (index / (HEADS * WIDTH), index / WIDTH % HEADS, index % WIDTH);
            let product = |i: usize| {
                let weight = exact_weights[(head * OF.stride + OF.first + i) * WIDTH + column];
                f64::from(weight) * f64::from(input[(row * HEADS + head) * OF.count + i])
            };
            let exact: f64 = (0..OF.count).map(product).sum();
            assert!((f64::from(*found) - exact).abs() < 1e-4, "{kind}, {index}: {found} instead of {exact}");
        }
        let mut backend = CpuBackend::new(3).unwrap();
        assert_eq!(run(&mut backend, kind, &bytes, 0..ROWS), found, "{kind} on other instructions");
        for row in [0, 15, 16, 36] {
            let alone = run(&mut backend, kind, &bytes, row..row + 1);
            assert_eq!(alone, found[row * HEADS * WIDTH..][..HEADS * WIDTH], "{kind}, row {row} alone");
        }
    }
}

#[test]
fn parts_of_heads_are_put_side_by_side() {
    let backend = CpuBackend::new(1).unwrap();
    let wide = rows(&backend, &(0..24).map(|i| i as f32).collect::<Vec<_>>(), 12);
    let narrow = rows(&backend, &(100..116).map(|i| i as f32).collect::<Vec<_>>(), 8);
    let mut out = backend.rows(1, 1).unwrap();
    backend.join_heads(4, &[(&wide, 1..3), (&narrow, 0..1)], &mut out).unwrap();
    let first = [1., 2., 100., 4., 5., 102., 7., 8., 104., 10., 11., 106.];
    let second = [13., 14., 108., 16., 17., 110., 19., 20., 112., 22., 23., 114.];
    assert_eq!(values(&backend, &out), [first, second].concat());
}

/// Attention of many heads to one, with the values at the end of the keys or apart.
fn attended(backend: &mut CpuBackend, values_in_keys: bool, dtype: CacheDtype) -> Vec<f32> {
    const QUERY_HEADS: usize = 37;
    let (key_width, value_width, positions) = (40, 28, 70);
    let mut random = Random::new(8);
    let keys = random.normals(positions * key_width, 1.0);
    let own: Vec<f32> =
        keys.chunks(key_width).flat_map(|key| key[key_width - value_width..].to_vec()).collect();
    let queries = random.normals(positions * QUERY_HEADS * key_width, 1.0);
    let shape = CacheShape { pages: 3, kv_heads: 1, key_width, value_width, values_in_keys, dtype };
    let mut cache = backend.cache(shape).unwrap();
    let batch = Batch { spans: vec![Span { rows: 0..positions, start: 0, pages: vec![2, 0, 1] }] };
    let (keys, own) = (rows(backend, &keys, key_width), rows(backend, &own, value_width));
    backend.store(&mut cache, &batch, &keys, &own).unwrap();
    let shape = AttentionShape { heads: QUERY_HEADS, scale: 0.2, visibility: Visibility::All };
    let queries = rows(backend, &queries, QUERY_HEADS * key_width);
    let mut out = backend.rows(1, 1).unwrap();
    backend.attend(&cache, &batch, shape, None, &queries, &mut out).unwrap();
    values(backend, &out)
}

#[test]
fn values_in_keys_are_values_like_others() {
    for dtype in [CacheDtype::F32, CacheDtype::F16] {
        let expected = attended(&mut CpuBackend::with_simd(1, Simd::Portable).unwrap(), false, dtype);
        let found = attended(&mut CpuBackend::new(3).unwrap(), true, dtype);
        assert!(expected.iter().any(|value| value.abs() > 0.1));
        assert_eq!(found, expected, "{dtype:?}");
    }
}

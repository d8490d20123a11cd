//! The processor's attention against exact arithmetic: what each position sees, sinks, and the same bits however it is
//! asked.

use std::ops::Range;

use super::tiny_model::Random;
use brigade_proto::control::CacheDtype;
use brigade_shard::spec::Visibility;
use brigade_worker::backend::{AttentionShape, Backend, Batch, CacheShape, Span};
use brigade_worker::cpu::{CpuBackend, CpuCache, Simd};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const KEY_WIDTH: usize = 24;
const VALUE_WIDTH: usize = 20;
const SCALE: f32 = 0.3;

/// Queries, keys and values of a sequence's positions.
struct Sequence {
    positions: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Sequence {
    fn new(positions: usize) -> Sequence {
        let mut random = Random::new(29);
        Sequence {
            positions,
            queries: random.normals(positions * HEADS * KEY_WIDTH, 1.0),
            keys: random.normals(positions * KV_HEADS * KEY_WIDTH, 1.0),
            values: random.normals(positions * KV_HEADS * VALUE_WIDTH, 1.0),
        }
    }

    fn batch(&self, positions: Range<usize>) -> Batch {
        let pages = (0..self.positions.div_ceil(32) as u32).rev().collect();
        Batch { spans: vec![Span { rows: 0..positions.len(), start: positions.start, pages }] }
    }

    /// A cache that holds all positions.
    fn cache(&self, backend: &mut CpuBackend) -> CpuCache {
        let shape = CacheShape {
            pages: self.positions.div_ceil(32),
            kv_heads: KV_HEADS,
            key_width: KEY_WIDTH,
            value_width: VALUE_WIDTH,
            values_in_keys: false,
            dtype: CacheDtype::F32,
        };
        let mut cache = backend.cache(shape).unwrap();
        let mut keys = backend.rows(self.positions, KV_HEADS * KEY_WIDTH).unwrap();
        let mut values = backend.rows(self.positions, KV_HEADS * VALUE_WIDTH).unwrap();
        backend.upload(&self.keys, KV_HEADS * KEY_WIDTH, &mut keys).unwrap();
        backend.upload(&self.values, KV_HEADS * VALUE_WIDTH, &mut values).unwrap();
        backend.store(&mut cache, &self.batch(0..self.positions), &keys, &values).unwrap();
        cache
    }

    /// What the rows of some positions see, `[positions, HEADS * VALUE_WIDTH]`.
    fn attend(
        &self,
        backend: &mut CpuBackend,
        visibility: Visibility,
        sinks: Option<&[f32]>,
        positions: Range<usize>,
    ) -> Vec<f32> {
        let cache = self.cache(backend);
        let width = HEADS * KEY_WIDTH;
        let mut queries = backend.rows(positions.len(), width).unwrap();
        let mut out = backend.rows(positions.len(), HEADS * VALUE_WIDTH).unwrap();
        let rows = &self.queries[positions.start * width..positions.end * width];
        backend.upload(rows, width, &mut queries).unwrap();
        let shape = AttentionShape { heads: HEADS, scale: SCALE, visibility };
        let sinks = sinks.map(<[f32]>::to_vec);
        backend.attend(&cache, &self.batch(positions), shape, sinks.as_ref(), &queries, &mut out).unwrap();
        backend.host(&out, &mut Vec::new()).unwrap().to_vec()
    }

    /// The same for one position in f64, where it sees the positions `seen`.
    fn exact(&self, position: usize, seen: Range<usize>, sinks: Option<&[f32]>) -> Vec<f64> {
        let mut out = Vec::new();
        for head in 0..HEADS {
            let kv = head / (HEADS / KV_HEADS);
            let query = &self.queries[(position * HEADS + head) * KEY_WIDTH..][..KEY_WIDTH];
            let weight = |at: usize| {
                let key = &self.keys[(at * KV_HEADS + kv) * KEY_WIDTH..][..KEY_WIDTH];
                let score: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                (score * f64::from(SCALE)).exp()
            };
            let sink = sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
            let all: f64 = sink + seen.clone().map(weight).sum::<f64>();
            out.extend((0..VALUE_WIDTH).map(|i| {
                let value = |at: usize| f64::from(self.values[(at * KV_HEADS + kv) * VALUE_WIDTH + i]);
                seen.clone().map(|at| weight(at) * value(at)).sum::<f64>() / all
            }));
        }
        out
    }
}

/// The positions that a position sees, counted one by one.
fn seen(visibility: Visibility, position: usize) -> Range<usize> {
    let sees = |at: &usize| match visibility {
        Visibility::All => true,
        Visibility::Window(window) => position - at < window,
        Visibility::Chunk(chunk) => at / chunk == position / chunk,
    };
    (0..=position).find(sees).unwrap()..position + 1
}

fn assert_near(found: &[f32], exact: &[f64], what: impl std::fmt::Display) {
    assert_eq!(found.len(), exact.len(), "{what}");
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        assert!((f64::from(*found) - exact).abs() < 1e-5, "{what}, value {i}: {found} instead of {exact}");
    }
}

const SINKS: [f32; HEADS] = [-2.0, 0.5, 3.0, 60.0];

#[test]
fn each_position_sees_its_window_or_chunk_and_sinks_take_their_share() {
    let sequence = Sequence::new(150);
    let mut backend = CpuBackend::new(2).unwrap();
    let visible = [
        Visibility::All,
        Visibility::Window(1),
        Visibility::Window(33),
        Visibility::Chunk(1),
        Visibility::Chunk(40),
        Visibility::Chunk(64),
    ];
    for visibility in visible {
        for sinks in [None, Some(&SINKS[..])] {
            let found = sequence.attend(&mut backend, visibility, sinks, 0..150);
            for (position, found) in found.chunks(HEADS * VALUE_WIDTH).enumerate() {
                let exact = sequence.exact(position, seen(visibility, position), sinks);
                let what = format!("{visibility:?}, sinks {sinks:?}, position {position}");
                assert_near(found, &exact, what);
            }
        }
    }
}

#[test]
fn a_chunk_of_8192_ends_where_the_next_begins() {
    let sequence = Sequence::new(8200);
    let found = sequence.attend(&mut CpuBackend::new(2).unwrap(), Visibility::Chunk(8192), None, 8190..8200);
    for (position, found) in (8190..8200).zip(found.chunks(HEADS * VALUE_WIDTH)) {
        let first = if position < 8192 { 0 } else { 8192 };
        let exact = sequence.exact(position, first..position + 1, None);
        assert_near(found, &exact, format!("position {position}"));
    }
}

#[test]
fn attention_gives_the_same_bits_alone_and_among_others_on_any_threads_and_instructions() {
    let sequence = Sequence::new(150);
    for visibility in [Visibility::All, Visibility::Window(37), Visibility::Chunk(40)] {
        let mut portable = CpuBackend::with_simd(1, Simd::Portable).unwrap();
        let expected = sequence.attend(&mut portable, visibility, Some(&SINKS), 0..150);
        let mut backend = CpuBackend::new(3).unwrap();
        for cut in [1, 31, 32, 75, 150] {
            let parts = [0..cut, cut..150].into_iter().filter(|part| !part.is_empty());
            let found: Vec<f32> = parts
                .flat_map(|part| sequence.attend(&mut backend, visibility, Some(&SINKS), part))
                .collect();
            assert_eq!(found, expected, "{visibility:?} cut at {cut}");
        }
    }
}

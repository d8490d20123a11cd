//! The backend for CUDA and Metal, run on candle's own processor device, against ours.

use super::blocks::{InMemory, set_scales};
use super::tiny_model::{Random, TinyModel, room};
use brigade_proto::control::{CacheDtype, DeviceKind};
use brigade_shard::kernels::Kernels;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::spec::{Activation, Norm, Visibility};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use brigade_worker::backend::{AttentionShape, Backend, Batch, CacheShape, HeadRows, MatrixShape, Span};
use brigade_worker::calibrate::calibrate_with;
use brigade_worker::candle_backend::CandleBackend;
use brigade_worker::cpu::CpuBackend;
use brigade_worker::device::Room;
use brigade_worker::model::{self, Converted, StageModel, StageNeeds};
use brigade_worker::selftest::{STEPS_ROWS, difference, tiny_logits, usual_difference};
use brigade_worker::stage::{HeldWeights, missing_weights, plan_check};
use brigade_worker::tiny::{FAMILIES, KINDS, TinyFamily, TinyTypes};
use brigade_worker::weights::{LoadError, LoadProgress, ModelFiles, TensorSource};
use candle_core::Device;

/// candle's processor, or the card that `BRIGADE_TEST_DEVICE` names, as deploy/cuda/check.sh does.
fn device() -> Device {
    let named = std::env::var("BRIGADE_TEST_DEVICE").map_or(DeviceKind::Cpu, |name| name.parse().unwrap());
    brigade_worker::candle_backend::device(named).unwrap()
}

fn load<B: Backend>(backend: B, header: &brigade_shard::model_file::Header, layers: usize) -> StageModel<B> {
    try_load(backend, header, layers).unwrap()
}

fn try_load<B: Backend>(
    backend: B,
    header: &brigade_shard::model_file::Header,
    layers: usize,
) -> Result<StageModel<B>, LoadError> {
    let shard = Shard::of(LayerRange::new(0, layers).unwrap(), layers);
    let mut room = room();
    room.cache_dtype = CacheDtype::F32;
    let needs = StageNeeds::new(header, &shard, &room).unwrap();
    let progress = LoadProgress::new();
    let files = ModelFiles::open(header, &progress).unwrap();
    model::load(backend, &files, &needs.spec, &needs.table, &shard, &room, &progress)
}

/// Both backends' logits of a small model.
fn both_logits(family: &TinyFamily, kind: TensorType) -> [Vec<Vec<f32>>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let ends = if kind == TensorType::F32 { kind } else { TensorType::Q8_0 };
    let header = family.write(TinyTypes { layers: kind, ends }, &dir.path().join("tiny.gguf")).unwrap();
    let candle = CandleBackend::new(device()).unwrap().converting().unwrap();
    [tiny_logits(CpuBackend::new(2).unwrap(), &header).unwrap(), tiny_logits(candle, &header).unwrap()]
}

#[test]
fn candle_computes_every_family() {
    use TensorType::*;
    for family in &FAMILIES {
        let [ours, candles] = both_logits(family, F32);
        assert_eq!((ours.len(), candles.len()), (STEPS_ROWS, STEPS_ROWS));
        let worst = ours.iter().zip(&candles).map(|(a, b)| difference(a, b)).fold(0.0, f64::max);
        println!("{} F32: {worst:.7} of their size at most", family.name);
        assert!(worst < 1e-5, "{}: logits differ by {worst} of their size", family.name);
        // Here the two round differently, and where two experts' scores are next to each other, a row may take the other.
        for (kind, bound) in [(F16, 0.01), (BF16, 0.03), (Q8_0, 0.1), (Q4K, 0.1)] {
            let [ours, candles] = both_logits(family, kind);
            let usual = usual_difference(&ours, &candles);
            println!("{} {kind}: {usual:.5} of their size", family.name);
            assert!(usual < bound, "{} {kind}: logits differ by {usual} of their size", family.name);
        }
    }
}

#[test]
fn candle_computes_every_type() {
    let of = |name: &str| FAMILIES.iter().find(|family| family.name == name).unwrap();
    for family in [of("qwen3"), of("qwen3moe")] {
        for (kind, spread) in KINDS {
            let [ours, candles] = both_logits(family, kind);
            let usual = usual_difference(&ours, &candles);
            println!("{} {kind}: {usual:.5} of their size", family.name);
            // Those of the second half are turned into others first.
            let bound = if spread.is_none() { 0.05 } else { 0.2 };
            assert!(usual < bound, "{} {kind}: logits differ by {usual} of their size", family.name);
        }
    }
}

#[test]
fn types_that_candle_does_not_know_are_refused_by_name() {
    use TensorType::*;
    let kinds = [IQ4_NL, MXFP4, IQ4_XS, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, TQ1_0, TQ2_0];
    for kind in kinds {
        let model = TinyModel::wide(kind);
        let dir = tempfile::tempdir().unwrap();
        let header = model.write(&dir.path().join("tiny.gguf"));
        let backend = CandleBackend::new(Device::Cpu).unwrap();
        let error = try_load(backend, &header, model.layers).err().unwrap().to_string();
        assert!(
            error.contains(&format!("is {kind}, which candle on the cpu cannot compute with"))
                && error.contains("--convert"),
            "{error}"
        );
        load(CandleBackend::new(Device::Cpu).unwrap().converting().unwrap(), &header, model.layers);
        load(CpuBackend::new(1).unwrap(), &header, model.layers);
    }
}

#[test]
fn what_is_converted_counts_as_it_lies_on_the_device() {
    let model = TinyModel::wide(TensorType::IQ4_XS);
    let dir = tempfile::tempdir().unwrap();
    let header = model.write(&dir.path().join("tiny.gguf"));
    let shard = Shard::of(LayerRange::new(0, model.layers).unwrap(), model.layers);
    let weights = |converted| plan_check(&header, &shard, 0, &room(), converted).unwrap().weights;
    let (as_filed, on_card) = (weights(Converted::No), weights(Converted::on(DeviceKind::Metal, true)));
    let codes = header.tensors().iter().filter(|tensor| tensor.kind == TensorType::IQ4_XS);
    let more = codes.map(|tensor| TensorType::Q6K.bytes_of(tensor.values()).unwrap().0 - tensor.bytes.0);
    assert_eq!(on_card.0 - as_filed.0, more.sum::<u64>());
    assert_eq!(weights(Converted::on(DeviceKind::Metal, false)), as_filed);
    assert_eq!(weights(Converted::on(DeviceKind::Cpu, true)), as_filed);
    // What is missing for the next plan counts alike.
    let converted = Converted::on(DeviceKind::Cuda(0), true);
    let held = HeldWeights::default();
    assert_eq!(missing_weights(&header, &shard, 0, &room(), converted, &held).unwrap(), on_card);
}

#[test]
fn every_type_that_is_no_older_one_has_a_stand_in_that_candle_knows() {
    for (kind, _) in KINDS {
        let stand_in = kind.stand_in(512);
        assert_eq!(stand_in.is_none(), Kernels::CANDLE.has(kind), "{kind}");
        assert!(stand_in.is_none_or(|to| Kernels::CANDLE.has(to)), "{kind}");
        // Rows that are no whole blocks of 256.
        assert!(kind.stand_in(96).is_none_or(|to| to == TensorType::Q8_0), "{kind}");
    }
}

/// A tensor of zeros.
struct Zeros;

impl TensorSource for Zeros {
    fn read_at(&self, _at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        out.fill(0);
        Ok(())
    }

    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError {
        LoadError::Unsupported { tensor: "zeros".to_owned(), kind, device }
    }
}

#[test]
fn the_planner_knows_what_each_device_computes() {
    let (ours, candle) = (CpuBackend::new(1).unwrap(), CandleBackend::new(device()).unwrap());
    for kind in TensorType::all() {
        let shape = MatrixShape { kind, rows: 16, width: 256 };
        assert_eq!(ours.matrix(shape, &mut Zeros).is_ok(), Kernels::CPU.has(kind), "{kind} on the processor");
        assert_eq!(candle.matrix(shape, &mut Zeros).is_ok(), Kernels::CANDLE.has(kind), "{kind} on cards");
    }
    let shape = MatrixShape { kind: TensorType::Q8_0, rows: 16, width: 256 };
    assert!(ours.experts(shape, 2, &mut Zeros).is_ok() && candle.experts(shape, 2, &mut Zeros).is_ok());
}

/// The values of `rows` on the host.
fn values<B: Backend>(backend: &B, rows: &B::Rows) -> Vec<f32> {
    backend.host(rows, &mut Vec::new()).unwrap().to_vec()
}

/// What the operations of families other than llama give on some rows of two sequences, one after another.
fn parts<B: Backend>(mut backend: B) -> Vec<f32> {
    const ROWS: usize = 45;
    let mut random = Random::new(17);
    let mut found = Vec::new();
    let weight = backend.vector(&random.normals(16, 1.0)).unwrap();
    let weights = backend.vector(&random.normals(64, 1.0)).unwrap();
    let input = random.normals(ROWS * 64, 2.0);
    let mut rows = backend.rows(ROWS, 64).unwrap();
    let upload = |backend: &B, rows: &mut B::Rows| backend.upload(&input, 64, rows).unwrap();
    for norm in [Norm::Rms { epsilon: 1e-5 }, Norm::Layer { epsilon: 1e-4 }] {
        for weight in [&weight, &weights] {
            upload(&backend, &mut rows);
            backend.norm_parts(norm, &mut rows, 16, weight).unwrap();
            found.extend(values(&backend, &rows));
        }
        let mut out = backend.rows(ROWS, 64).unwrap();
        upload(&backend, &mut rows);
        backend.norm(norm, &rows, &weights, &mut out).unwrap();
        found.extend(values(&backend, &out));
    }
    let up = {
        let mut up = backend.rows(ROWS, 64).unwrap();
        upload(&backend, &mut up);
        up
    };
    backend.add_bias(&mut rows, &weights).unwrap();
    backend.scale(&mut rows, 0.5).unwrap();
    backend.gate(&mut rows, &up, Activation::Gelu).unwrap();
    found.extend(values(&backend, &rows));
    let factors: Vec<f32> = (0..ROWS).map(|row| 1.0 + row as f32).collect();
    backend.scale_rows(&mut rows, &factors).unwrap();
    backend.gate(&mut rows, &up, Activation::ClampedSwish).unwrap();
    found.extend(values(&backend, &rows));

    let shape = CacheShape {
        pages: 8,
        kv_heads: 2,
        key_width: 16,
        value_width: 16,
        values_in_keys: false,
        dtype: CacheDtype::F32,
    };
    let mut cache = backend.cache(shape).unwrap();
    let (mut keys, mut out) = (backend.rows(ROWS, 32).unwrap(), backend.rows(ROWS, 64).unwrap());
    backend.upload(&random.normals(ROWS * 32, 1.0), 32, &mut keys).unwrap();
    upload(&backend, &mut rows);
    let spans = vec![
        Span { rows: 0..40, start: 0, pages: vec![3, 1] },
        Span { rows: 40..45, start: 0, pages: vec![0] },
    ];
    let batch = Batch { spans };
    backend.store(&mut cache, &batch, &keys, &keys).unwrap();
    let sinks = backend.vector(&[-1.0, 0.5, 4.0, f32::NEG_INFINITY]).unwrap();
    let visible = [1, 7, 33].into_iter().flat_map(|n| [Visibility::Window(n), Visibility::Chunk(n)]);
    for visibility in visible.chain([Visibility::All]) {
        let shape = AttentionShape { heads: 4, scale: 0.25, visibility };
        for sinks in [None, Some(&sinks)] {
            backend.attend(&cache, &batch, shape, sinks, &rows, &mut out).unwrap();
            found.extend(values(&backend, &out));
        }
    }
    backend.enter(|_| found)
}

#[test]
fn the_parts_of_other_families_agree_too() {
    let ours = parts(CpuBackend::new(2).unwrap());
    let candles = parts(CandleBackend::new(device()).unwrap());
    assert_eq!(ours.len(), candles.len());
    for (i, (a, b)) in ours.iter().zip(&candles).enumerate() {
        assert!((a - b).abs() <= 1e-4 * (1.0 + a.abs()), "value {i}: {a} and {b}");
    }
}

/// What 64 rows at the end of 4,096 positions see with 64 heads: more scores than exist at a time.
fn attended_in_tiles<B: Backend>(mut backend: B, sinks: Option<&[f32]>) -> Vec<f32> {
    const POSITIONS: usize = 4096;
    const HEADS: usize = 64;
    const WIDTH: usize = 8;
    let shape = CacheShape {
        pages: POSITIONS / 32,
        kv_heads: 1,
        key_width: WIDTH,
        value_width: WIDTH,
        values_in_keys: false,
        dtype: CacheDtype::F32,
    };
    let mut random = Random::new(23);
    let mut rows = |count: usize, width: usize| {
        let mut rows = backend.rows(count, width).unwrap();
        backend.upload(&random.normals(count * width, 1.0), width, &mut rows).unwrap();
        rows
    };
    let (keys, cached) = (rows(POSITIONS, WIDTH), rows(POSITIONS, WIDTH));
    let queries = rows(64, HEADS * WIDTH);
    let mut cache = backend.cache(shape).unwrap();
    let pages: Vec<u32> = (0..POSITIONS as u32 / 32).rev().collect();
    let all = Batch { spans: vec![Span { rows: 0..POSITIONS, start: 0, pages: pages.clone() }] };
    backend.store(&mut cache, &all, &keys, &cached).unwrap();
    let last = Batch { spans: vec![Span { rows: 0..64, start: POSITIONS - 64, pages }] };
    let shape = AttentionShape { heads: HEADS, scale: 0.35, visibility: Visibility::All };
    let sinks = sinks.map(|sinks| backend.vector(sinks).unwrap());
    let mut out = backend.rows(1, 1).unwrap();
    backend.attend(&cache, &last, shape, sinks.as_ref(), &queries, &mut out).unwrap();
    values(&backend, &out)
}

#[test]
fn attention_in_several_tiles_is_attention() {
    let sinks = Random::new(2).normals(64, 2.0);
    for sinks in [None, Some(&sinks[..])] {
        let ours = attended_in_tiles(CpuBackend::new(2).unwrap(), sinks);
        let candles = attended_in_tiles(CandleBackend::new(device()).unwrap(), sinks);
        let found = difference(&ours, &candles);
        assert!(found < 1e-5, "{found} of their size, sinks {}", sinks.is_some());
    }
}

/// What three heads of 2,048 rows each give: more weights than are widened at a time.
fn heads_in_groups<B: Backend>(mut backend: B, transposed: bool) -> Vec<f32> {
    const WIDTH: usize = 4096;
    let of = HeadRows { heads: 3, stride: 2048, first: 16, count: 2032 };
    let shape = MatrixShape { kind: TensorType::Q8_0, rows: of.heads * of.stride, width: WIDTH };
    let mut random = Random::new(29);
    let mut bytes: Vec<u8> = (0..shape.rows * WIDTH / 32 * 34).map(|i| (i % 251) as u8).collect();
    set_scales(TensorType::Q8_0, &mut bytes, half::f16::from_f32(1e-3).to_bits());
    let matrix = backend.matrix(shape, &mut InMemory(bytes)).unwrap();
    let width = of.heads * if transposed { of.count } else { WIDTH };
    let (mut input, mut out) = (backend.rows(2, width).unwrap(), backend.rows(1, 1).unwrap());
    backend.upload(&random.normals(2 * width, 1.0), width, &mut input).unwrap();
    match transposed {
        true => backend.head_linear_transposed(&input, &matrix, of, &mut out).unwrap(),
        false => backend.head_linear(&input, &matrix, of, &mut out).unwrap(),
    }
    let found = values(&backend, &out);
    // A backend goes before its matrices.
    drop(backend);
    found
}

#[test]
fn heads_in_several_groups_are_heads() {
    for transposed in [false, true] {
        let ours = heads_in_groups(CpuBackend::new(2).unwrap(), transposed);
        let candles = heads_in_groups(CandleBackend::new(device()).unwrap(), transposed);
        let found = difference(&ours, &candles);
        // The processor rounds the input to 8 bits.
        assert!(found < 0.01, "{found} of their size, transposed {transposed}");
    }
}

#[test]
fn a_device_without_memory_is_an_error_with_figures_and_gives_back_what_it_took() {
    let model = TinyModel::q4_1();
    let dir = tempfile::tempdir().unwrap();
    let header = model.write(&dir.path().join("tiny.gguf"));
    let held = HeldWeights::default();
    let load = |given: Bytes, layers: usize| {
        let backend = CandleBackend::with_room(Device::Cpu, Room::stated(given)).unwrap();
        let shard = Shard::of(LayerRange::new(0, layers).unwrap(), model.layers);
        let needs = StageNeeds::new(&header, &shard, &room()).unwrap();
        let progress = LoadProgress::new();
        let files = ModelFiles::open(&header, &progress).unwrap().sharing(&held);
        model::load(backend, &files, &needs.spec, &needs.table, &shard, &room(), &progress)
    };
    let needs = |layers: usize| {
        let shard = Shard::of(LayerRange::new(0, layers).unwrap(), model.layers);
        let missing = missing_weights(&header, &shard, 0, &room(), Converted::No, &held).unwrap();
        (missing, StageNeeds::new(&header, &shard, &room()).unwrap().memory)
    };
    let ((all, _), (_, half)) = (needs(model.layers), needs(2));
    // Too little for the first weights, for the first layer's cache behind them, and for more than half of the layers.
    let enough_for_half = half.weights + half.cache;
    let cases = [
        (Bytes(all.0 / 20), "place weights"),
        (Bytes(all.0 / 2), "make room for the cache"),
        (enough_for_half, "device failed to"),
    ];
    for (given, operation) in cases {
        let error = load(given, model.layers).err().unwrap().to_string();
        println!("{error}");
        for part in [operation, "were asked for, and", &format!("of {given} are free on this device")] {
            assert!(error.contains(part), "`{part}` is not in `{error}`");
        }
        assert_eq!(needs(model.layers).0, all, "something of the stage that failed is still held");
    }
    // The same worker takes a smaller plan, with as much.
    let stage = load(enough_for_half, 2).expect("half of the layers fit");
    assert!(needs(model.layers).0 < all, "what is loaded is held");
    drop(stage);
    assert_eq!(needs(model.layers).0, all);
}

/// As a card is asked for its speed: by the same code, through candle.
#[test]
fn a_device_is_measured_through_its_own_backend() {
    let measured = calibrate_with(|| Ok(CandleBackend::new(Device::Cpu)?), Bytes::mib(64)).unwrap();
    assert!(measured.bandwidth_bytes_per_s > 1e7 && measured.flops_per_s > 1e7, "{measured:?}");
    assert_eq!(measured.shared_host, None, "a card is not its machine's processors");
    let refused = calibrate_with(
        || Ok(CandleBackend::with_room(Device::Cpu, Room::stated(Bytes::mib(8)))?),
        Bytes::mib(64),
    );
    let error = refused.expect_err("there is no room to measure with").to_string();
    assert!(error.contains("were asked for, and"), "{error}");
}

//! Small random models, written as GGUF files, and steps to run them with.

use std::path::Path;

use brigade_proto::control::{CacheDtype, DeviceKind, StageRoom};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, SequenceId, StepId};
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{
    Segment, SegmentOutput, SequenceStart, ShortWay, StepFrame, StepKind, StepResult, TokenScore,
};
use brigade_shard::cost::PAGE_TOKENS;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use brigade_worker::model::Converted;
use brigade_worker::stage::{LoadProgress, Stage, StageOutput, StageRequest};
pub use brigade_worker::tiny::Random;
use brigade_worker::tiny::{self, GgufFile, GgufTensor, GgufValue};
use candle_core::quantized::k_quants::*;
use half::{bf16, f16};

/// Values as a file would hold them; blocks that stand for zeros, or for nothing, of types that nothing here rounds to.
pub fn encode(kind: TensorType, values: &[f32]) -> Vec<u8> {
    let none = || vec![0; kind.bytes_of(values.len() as u64).unwrap().0 as usize];
    tiny::encode(kind, values).unwrap_or_else(|_| none())
}

fn decoded<T: GgmlType>(bytes: &[u8], values: usize) -> Vec<f32> {
    let count = values / T::BLCK_SIZE;
    let mut aligned = vec![T::zeros(); count];
    // SAFETY: `aligned` holds `count` blocks without padding, for which any bytes are valid.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), aligned.as_mut_ptr().cast(), count * size_of::<T>());
    }
    let mut out = vec![0.0; values];
    T::to_float(&aligned, &mut out);
    out
}

/// What `encode`d bytes stand for, by candle's own reading.
pub fn decode(kind: TensorType, bytes: &[u8], values: usize) -> Vec<f32> {
    match kind {
        TensorType::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        TensorType::F16 => {
            bytes.chunks(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
        }
        TensorType::BF16 => {
            bytes.chunks(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
        }
        TensorType::Q4_0 => decoded::<BlockQ4_0>(bytes, values),
        TensorType::Q4_1 => decoded::<BlockQ4_1>(bytes, values),
        TensorType::Q5_0 => decoded::<BlockQ5_0>(bytes, values),
        TensorType::Q5_1 => decoded::<BlockQ5_1>(bytes, values),
        TensorType::Q8_0 => decoded::<BlockQ8_0>(bytes, values),
        TensorType::Q2K => decoded::<BlockQ2K>(bytes, values),
        TensorType::Q3K => decoded::<BlockQ3K>(bytes, values),
        TensorType::Q4K => decoded::<BlockQ4K>(bytes, values),
        TensorType::Q5K => decoded::<BlockQ5K>(bytes, values),
        TensorType::Q6K => decoded::<BlockQ6K>(bytes, values),
        other => panic!("no kernel reads {other}"),
    }
}

/// The shape of a tiny llama model.
#[derive(Clone, Debug)]
pub struct TinyModel {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub feed_forward: usize,
    pub vocab: usize,
    /// Type of the layers' matrices.
    pub kind: TensorType,
    /// Type of the embedding, and of the output matrix where the head is not tied.
    pub ends: TensorType,
    pub tied: bool,
    pub rope_divisors: bool,
}

impl TinyModel {
    /// Four layers of Q4_1 with a Q8_0 embedding, which is the head too.
    pub fn q4_1() -> TinyModel {
        TinyModel {
            layers: 4,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            feed_forward: 96,
            vocab: 200,
            kind: TensorType::Q4_1,
            ends: TensorType::Q8_0,
            tied: true,
            rope_divisors: false,
        }
    }

    /// Floats throughout, an output matrix of its own, and divided rope frequencies.
    pub fn f32() -> TinyModel {
        let kind = TensorType::F32;
        TinyModel { kind, ends: kind, tied: false, rope_divisors: true, ..TinyModel::q4_1() }
    }

    /// Wide enough for blocks of 256.
    pub fn wide(kind: TensorType) -> TinyModel {
        TinyModel {
            layers: 2,
            hidden: 256,
            feed_forward: 512,
            kind,
            ends: TensorType::Q6K,
            ..TinyModel::q4_1()
        }
    }

    /// Writes the model and reads its header.
    pub fn write(&self, path: &Path) -> Header {
        let mut random = Random::new(11);
        let mut tensors: Vec<GgufTensor> = Vec::new();
        let mut matrix = |name: &str, width: usize, rows: usize, kind: TensorType, scale: f32| {
            let values = random.normals(width * rows, scale);
            let (name, dims) = (name.to_owned(), vec![width as u64, rows as u64]);
            tensors.push(GgufTensor { name, dims, kind, bytes: encode(kind, &values) });
        };
        let (hidden, ffn) = (self.hidden, self.feed_forward);
        let kv = hidden / self.heads * self.kv_heads;
        let scale = |width: usize| 1.0 / (width as f32).sqrt();
        matrix("token_embd.weight", hidden, self.vocab, self.ends, 0.5);
        if !self.tied {
            matrix("output.weight", hidden, self.vocab, self.ends, 4.0 * scale(hidden));
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            matrix(&name("attn_q"), hidden, hidden, self.kind, 2.0 * scale(hidden));
            matrix(&name("attn_k"), hidden, kv, self.kind, 2.0 * scale(hidden));
            matrix(&name("attn_v"), hidden, kv, self.kind, scale(hidden));
            matrix(&name("attn_output"), hidden, hidden, self.kind, scale(hidden));
            matrix(&name("ffn_gate"), hidden, ffn, self.kind, scale(hidden));
            matrix(&name("ffn_up"), hidden, ffn, self.kind, scale(hidden));
            matrix(&name("ffn_down"), ffn, hidden, self.kind, scale(ffn));
        }
        let mut vector = |name: String, count: usize| {
            let values: Vec<f32> = random.normals(count, 0.2).iter().map(|v| 1.0 + v.abs()).collect();
            let kind = TensorType::F32;
            tensors.push(GgufTensor { name, dims: vec![count as u64], kind, bytes: encode(kind, &values) });
        };
        vector("output_norm.weight".to_owned(), hidden);
        for layer in 0..self.layers {
            vector(format!("blk.{layer}.attn_norm.weight"), hidden);
            vector(format!("blk.{layer}.ffn_norm.weight"), hidden);
        }
        if self.rope_divisors {
            vector("rope_freqs.weight".to_owned(), hidden / self.heads / 2);
        }
        GgufFile { keys: self.keys(), tensors }.write(path).unwrap();
        Header::open(path).unwrap()
    }

    fn keys(&self) -> Vec<(String, GgufValue)> {
        let count = |key: &str, n: usize| (format!("llama.{key}"), GgufValue::Count(n as u32));
        vec![
            ("general.architecture".to_owned(), GgufValue::Text("llama")),
            count("block_count", self.layers),
            count("context_length", 4096),
            count("embedding_length", self.hidden),
            count("feed_forward_length", self.feed_forward),
            count("attention.head_count", self.heads),
            count("attention.head_count_kv", self.kv_heads),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), GgufValue::Number(1e-5)),
        ]
    }
}

/// Room for a few sequences of 128 tokens.
pub fn room() -> StageRoom {
    StageRoom { cache_tokens: 512, context: 128, step_rows: 64, sequences: 4, cache_dtype: CacheDtype::F16 }
}

/// What loads `layers` of a model on the processor.
pub fn request(header: &Header, layers: std::ops::Range<usize>, count: usize) -> StageRequest {
    let layers = LayerRange::new(layers.start, layers.end).unwrap();
    StageRequest {
        delivered: None,
        header: header.clone(),
        shard: Shard::of(layers, count),
        room: room(),
        device: DeviceKind::Cpu,
        threads: 1,
        mapped: false,
        converted: Converted::No,
        streamed_layers: 0,
        budget: Bytes::mib(64),
    }
}

pub fn load(request: StageRequest) -> Stage {
    Stage::load(request, &LoadProgress::new()).unwrap()
}

/// A step of these segments.
pub fn step(segments: Vec<Segment>) -> StepFrame {
    StepFrame {
        fence: Fence { incarnation: Incarnation(1), epoch: Epoch(1) },
        deployment: DeploymentId(1),
        step: StepId(1),
        kind: StepKind::Prefill,
        segments,
        release: Vec::new(),
        short_way: ShortWay::default(),
        timings: Vec::new(),
        hidden: None,
    }
}

/// A segment that begins its sequence where it starts at 0, with the pages of a whole context. Sequences 0 to 3 have
/// different ones, and those after them the same again.
pub fn segment(sequence: u64, start: usize, tokens: &[u32]) -> Segment {
    let sampling = Sampling { logprobs: Some(3), seed: 5, ..Sampling::default() };
    let begin = SequenceStart { sampling, prompt_tokens: tokens.len() as u32 };
    Segment {
        sequence: SequenceId(sequence),
        start: start as u32,
        tokens: tokens.to_vec(),
        begin: (start == 0).then_some(begin),
        pages: if start == 0 { pages_of(sequence) } else { Vec::new() },
        sample: false,
        drafts: 0,
        score: false,
        next_token: None,
    }
}

/// The pages of [`segment`].
pub fn pages_of(sequence: u64) -> Vec<u32> {
    let each = room().context / PAGE_TOKENS;
    let first = sequence as u32 % room().sequences * each;
    (first..first + each).collect()
}

/// A segment whose tokens are scored, `next` being the token after them.
pub fn scored(sequence: u64, start: usize, tokens: &[u32], next: Option<u32>) -> Segment {
    Segment { score: true, next_token: next, ..segment(sequence, start, tokens) }
}

/// Stages one after another, as a pipeline would run them.
pub struct Pipeline(pub Vec<Stage>);

impl Pipeline {
    /// Cuts a model before each of `cuts`.
    pub fn cut(header: &Header, layers: usize, cuts: &[usize]) -> Pipeline {
        let bounds: Vec<usize> = [0].iter().chain(cuts).chain(&[layers]).copied().collect();
        Pipeline(bounds.windows(2).map(|ends| load(request(header, ends[0]..ends[1], layers))).collect())
    }

    pub fn run(&mut self, mut frame: StepFrame) -> StepResult {
        for stage in &mut self.0 {
            match stage.run(frame).unwrap() {
                StageOutput::Pass(passed) => frame = passed,
                StageOutput::Finish(result) => return result,
            }
        }
        panic!("no stage has the head")
    }

    pub fn outputs(&mut self, segments: Vec<Segment>) -> Vec<SegmentOutput> {
        self.run(step(segments)).outputs
    }

    /// Scores of all tokens but the first, the sequence cut into chunks of `chunk` tokens; forgets it afterwards.
    pub fn scores(&mut self, sequence: u64, tokens: &[u32], chunk: usize) -> Vec<TokenScore> {
        let mut scores = Vec::new();
        for start in (0..tokens.len()).step_by(chunk) {
            let end = tokens.len().min(start + chunk);
            let segment = scored(sequence, start, &tokens[start..end], tokens.get(end).copied());
            scores.extend(self.outputs(vec![segment]).remove(0).scores);
        }
        self.run(StepFrame { release: vec![SequenceId(sequence)], ..step(Vec::new()) });
        scores
    }
}

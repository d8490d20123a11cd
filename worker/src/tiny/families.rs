//! Every family's smallest model that has all of its parts.
//!
//! A model is its hyper-parameters, under the keys that GGUF files have; which tensors follow, and of which shapes, says the
//! same code that reads files.

use std::io;
use std::path::Path;

use brigade_shard::family::SpecError;
use brigade_shard::model_file::{FileError, Header};
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::{LayerRole, Role, shapes};

use super::GgufValue::{Count, Flag, Number, Text};
use super::{GgufFile, GgufTensor, GgufValue, Random, encode, random_blocks};
use crate::backend::BackendError;

/// Token ids of every model.
const VOCAB: usize = 200;
/// Channels of the hidden state: a whole block of every type.
const HIDDEN: u32 = 256;
/// How far logits spread.
const LOGITS: f32 = 2.0;
/// What the models' random numbers begin with.
const SEED: u64 = 11;

/// A small model.
pub struct TinyFamily {
    /// What it is called, after the models that are built so.
    pub name: &'static str,
    architecture: &'static str,
    /// Its hyper-parameters, but for those that all have.
    keys: &'static [(&'static str, GgufValue)],
    /// Whether the output matrix is the embedding.
    tied: bool,
    /// Vectors whose presence alone says what a family is, with their length.
    seeds: &'static [(&'static str, u64)],
}

/// In which types a model's matrices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TinyTypes {
    /// Those of the layers, experts among them.
    pub layers: TensorType,
    /// Of the embedding and the output matrix.
    pub ends: TensorType,
}

/// A model that could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TinyError {
    /// Weights could not be made.
    #[error("failed to make a test model: {0}")]
    Weights(#[from] BackendError),
    /// The file could not be written.
    #[error("failed to write a test model to {path}: {source}")]
    Write { path: String, source: io::Error },
    /// What was written is not what was meant: a defect.
    #[error("a test model is not one: {0}")]
    File(#[from] FileError),
    /// What was written is not what was meant: a defect.
    #[error("a test model is not one: {0}")]
    Spec(#[from] SpecError),
}

/// All of them; together they have every part that a layer may be composed from.
pub const FAMILIES: [TinyFamily; 15] = [
    TinyFamily {
        name: "llama",
        architecture: "llama",
        keys: &[layers(2), ffn(512), heads(4), kv_heads(2), rms(), rope_base(1e4)],
        tied: false,
        seeds: &[("rope_freqs.weight", 32)],
    },
    TinyFamily {
        name: "mixtral",
        architecture: "llama",
        keys: &[layers(2), ffn(256), heads(4), kv_heads(2), rms(), rope_base(1e6), experts(5), used(2)],
        tied: false,
        seeds: &[],
    },
    TinyFamily {
        name: "qwen2",
        architecture: "qwen2",
        keys: &[layers(2), ffn(512), heads(4), kv_heads(2), rms(), rope_base(1e6)],
        tied: false,
        seeds: &[],
    },
    TinyFamily {
        name: "qwen3",
        architecture: "qwen3",
        keys: &[layers(2), ffn(512), heads(5), kv_heads(1), key(64), value(64), rms(), rope_base(1e6)],
        tied: false,
        seeds: &[],
    },
    TinyFamily {
        name: "qwen3moe",
        architecture: "qwen3moe",
        keys: &[
            layers(2),
            ffn(512),
            heads(4),
            kv_heads(1),
            key(64),
            value(64),
            rms(),
            rope_base(1e6),
            experts(7),
            used(3),
            expert_ffn(256),
        ],
        tied: false,
        seeds: &[],
    },
    TinyFamily {
        name: "phi3",
        architecture: "phi3",
        keys: &[
            layers(2),
            ffn(512),
            heads(4),
            kv_heads(2),
            rms(),
            rope_base(1e4),
            turned(48),
            ("rope.scaling.original_context_length", Count(128)),
            ("rope.scaling.attn_factor", Number(1.19)),
            window(20),
        ],
        tied: false,
        seeds: &[("rope_factors_long.weight", 24), ("rope_factors_short.weight", 24)],
    },
    TinyFamily {
        name: "gemma3",
        architecture: "gemma3",
        // Every sixth layer sees all positions.
        keys: &[
            layers(7),
            ffn(512),
            heads(4),
            kv_heads(2),
            key(64),
            value(64),
            rms(),
            rope_base(1e6),
            ("rope.scaling.type", Text("linear")),
            ("rope.scaling.factor", Number(8.0)),
            window(24),
        ],
        tied: true,
        seeds: &[],
    },
    TinyFamily {
        name: "command-r",
        architecture: "command-r",
        keys: &[
            layers(2),
            ffn(512),
            heads(4),
            kv_heads(2),
            ("attention.layer_norm_epsilon", Number(1e-4)),
            ("logit_scale", Number(0.25)),
            rope_base(8e6),
            ("rope.scaling.type", Text("none")),
        ],
        tied: true,
        seeds: &[],
    },
    TinyFamily {
        name: "cohere2",
        architecture: "cohere2",
        // Every fourth layer sees all positions.
        keys: &[
            layers(5),
            ffn(512),
            heads(4),
            kv_heads(2),
            ("attention.layer_norm_epsilon", Number(1e-4)),
            ("logit_scale", Number(0.25)),
            rope_base(5e4),
            ("rope.scaling.type", Text("none")),
            turned(64),
            window(24),
        ],
        tied: true,
        seeds: &[],
    },
    TinyFamily {
        name: "gpt-oss",
        architecture: "gpt-oss",
        keys: &[
            layers(3),
            ffn(256),
            heads(8),
            kv_heads(2),
            key(64),
            value(64),
            rms(),
            rope_base(1.5e5),
            experts(7),
            used(3),
            expert_ffn(256),
            window(24),
        ],
        tied: false,
        seeds: &[],
    },
    TinyFamily {
        name: "llama4",
        architecture: "llama4",
        // Every fourth layer sees all positions, and every second has experts.
        keys: &[
            layers(5),
            ffn(512),
            heads(4),
            kv_heads(1),
            rms(),
            rope_base(5e5),
            experts(5),
            used(1),
            expert_ffn(256),
            ("interleave_moe_layer_step", Count(2)),
            ("attention.chunk_size", Count(24)),
            ("attention.temperature_period", Count(16)),
        ],
        tied: false,
        seeds: &[("rope_freqs.weight", 32)],
    },
    TinyFamily {
        name: "glm4moe",
        architecture: "glm4moe",
        keys: &[
            layers(3),
            ffn(512),
            heads(4),
            kv_heads(1),
            key(64),
            value(64),
            rms(),
            rope_base(1e6),
            turned(32),
            ("leading_dense_block_count", Count(1)),
            experts(7),
            used(3),
            expert_ffn(256),
            ("expert_shared_count", Count(1)),
            ("expert_weights_scale", Number(2.5)),
            ("expert_weights_norm", Flag(true)),
            ("expert_gating_func", Count(2)),
            ("attention.bias", Flag(true)),
            ("attention.head_norm", Flag(true)),
        ],
        tied: false,
        seeds: &[("blk.1.exp_probs_b.bias", 7)],
    },
    TinyFamily {
        name: "deepseek-v2-lite",
        architecture: "deepseek2",
        keys: &[
            layers(3),
            ffn(512),
            heads(4),
            kv_heads(4),
            key(96),
            value(64),
            rms(),
            rope_base(1e4),
            turned(32),
            ("attention.kv_lora_rank", Count(256)),
            ("leading_dense_block_count", Count(1)),
            experts(6),
            used(2),
            expert_ffn(256),
            ("expert_shared_count", Count(2)),
            ("expert_weights_scale", Number(1.0)),
        ],
        tied: false,
        seeds: &[],
    },
    TinyFamily {
        name: "deepseek-v2",
        architecture: "deepseek2",
        keys: &[
            layers(3),
            ffn(512),
            heads(4),
            kv_heads(4),
            key(96),
            value(64),
            rms(),
            rope_base(1e4),
            turned(32),
            ("attention.kv_lora_rank", Count(256)),
            ("attention.q_lora_rank", Count(256)),
            ("rope.scaling.type", Text("yarn")),
            ("rope.scaling.factor", Number(4.0)),
            ("rope.scaling.original_context_length", Count(128)),
            ("rope.scaling.yarn_log_multiplier", Number(0.0707)),
            ("leading_dense_block_count", Count(1)),
            experts(9),
            used(3),
            expert_ffn(256),
            ("expert_shared_count", Count(1)),
            ("expert_weights_scale", Number(1.5)),
            ("expert_group_count", Count(3)),
            ("expert_group_used_count", Count(2)),
        ],
        tied: false,
        seeds: &[],
    },
    TinyFamily {
        name: "deepseek-v3",
        architecture: "deepseek2",
        keys: &[
            layers(3),
            ffn(512),
            heads(4),
            kv_heads(1),
            key(288),
            value(256),
            ("attention.key_length_mla", Count(96)),
            ("attention.value_length_mla", Count(64)),
            rms(),
            rope_base(1e4),
            turned(32),
            ("attention.kv_lora_rank", Count(256)),
            ("attention.q_lora_rank", Count(256)),
            ("leading_dense_block_count", Count(1)),
            experts(9),
            used(3),
            expert_ffn(256),
            ("expert_shared_count", Count(1)),
            ("expert_weights_scale", Number(2.5)),
            ("expert_weights_norm", Flag(true)),
            ("expert_gating_func", Count(2)),
            ("expert_group_count", Count(3)),
            ("expert_group_used_count", Count(2)),
        ],
        tied: false,
        seeds: &[("blk.1.exp_probs_b.bias", 9)],
    },
];

type Key = (&'static str, GgufValue);

const fn layers(count: u32) -> Key {
    ("block_count", Count(count))
}

const fn ffn(width: u32) -> Key {
    ("feed_forward_length", Count(width))
}

const fn heads(count: u32) -> Key {
    ("attention.head_count", Count(count))
}

const fn kv_heads(count: u32) -> Key {
    ("attention.head_count_kv", Count(count))
}

const fn key(width: u32) -> Key {
    ("attention.key_length", Count(width))
}

const fn value(width: u32) -> Key {
    ("attention.value_length", Count(width))
}

const fn rms() -> Key {
    ("attention.layer_norm_rms_epsilon", Number(1e-5))
}

const fn rope_base(base: f32) -> Key {
    ("rope.freq_base", Number(base))
}

const fn turned(width: u32) -> Key {
    ("rope.dimension_count", Count(width))
}

const fn window(positions: u32) -> Key {
    ("attention.sliding_window", Count(positions))
}

const fn experts(count: u32) -> Key {
    ("expert_count", Count(count))
}

const fn used(count: u32) -> Key {
    ("expert_used_count", Count(count))
}

const fn expert_ffn(width: u32) -> Key {
    ("expert_feed_forward_length", Count(width))
}

impl TinyFamily {
    /// Writes the model to `path`, over what is there, and reads its header.
    ///
    /// # Errors
    /// Where a type is none that weights can be made in, or the file cannot be written.
    pub fn write(&self, types: TinyTypes, path: &Path) -> Result<Header, TinyError> {
        let spec = self.spec(path)?;
        let mut random = Random::new(SEED);
        let tensors = shapes(&spec).into_iter().map(|(role, dims)| {
            let name = spec.family.tensor_name(role);
            tensor(&spec, role, name, dims, types, &mut random)
        });
        let tensors = tensors.collect::<Result<Vec<_>, BackendError>>()?;
        self.write_file(tensors, path)
    }

    /// What the model computes, by a file that has no more than tells a family from its variants.
    fn spec(&self, path: &Path) -> Result<ModelSpec, TinyError> {
        let seed = |name: &str, dims: &[u64]| GgufTensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind: TensorType::F32,
            bytes: vec![0; 4 * dims.iter().product::<u64>() as usize],
        };
        let ends = [u64::from(HIDDEN), VOCAB as u64];
        let mut seeds = vec![seed("token_embd.weight", &ends)];
        if !self.tied {
            seeds.push(seed("output.weight", &ends));
        }
        seeds.extend(self.seeds.iter().map(|(name, len)| seed(name, &[*len])));
        Ok(ModelSpec::from_header(&self.write_file(seeds, path)?)?)
    }

    fn write_file(&self, tensors: Vec<GgufTensor>, path: &Path) -> Result<Header, TinyError> {
        let mut keys = vec![("general.architecture".to_owned(), Text(self.architecture))];
        let common = [("context_length", Count(512)), ("embedding_length", Count(HIDDEN))];
        let own = common.iter().chain(self.keys);
        keys.extend(own.map(|(key, value)| (format!("{}.{key}", self.architecture), *value)));
        let written = GgufFile { keys, tensors }.write(path);
        written.map_err(|source| TinyError::Write { path: path.display().to_string(), source })?;
        Ok(Header::open(path)?)
    }
}

/// A tensor with random values that suit its role.
fn tensor(
    spec: &ModelSpec,
    role: Role,
    name: String,
    dims: Vec<u64>,
    types: TinyTypes,
    random: &mut Random,
) -> Result<GgufTensor, BackendError> {
    use LayerRole::*;
    let count = dims.iter().product::<u64>() as usize;
    let root = (dims[0] as f32).sqrt();
    let output = LOGITS / root / spec.head.logit_scale;
    let matrix = |kind: TensorType, deviation: f32, random: &mut Random| {
        let kind = fitting(kind, dims[0]);
        Ok::<_, BackendError>((kind, random_blocks(kind, count, deviation, random)?))
    };
    let layers = types.layers;
    let (kind, bytes) = match role {
        Role::TokenEmbedding if spec.head.tied => matrix(types.ends, output, random)?,
        Role::TokenEmbedding => matrix(types.ends, 1.0, random)?,
        Role::Output => matrix(types.ends, output, random)?,
        Role::Layer(_, Router) => matrix(TensorType::F32, 1.0 / root, random)?,
        Role::Layer(_, Query | QueryUp | Key | Gate | ExpertGates | SharedGate) => {
            matrix(layers, 1.4 / root, random)?
        }
        Role::Layer(_, role) if !role.is_vector() => matrix(layers, 1.0 / root, random)?,
        vector => {
            let values: Vec<f32> = match vector {
                Role::RopeFrequencies | Role::RopeLong | Role::RopeShort => {
                    (0..count).map(|_| random.between(1.0, 16.0)).collect()
                }
                Role::Layer(_, Sinks) => random.normals(count, 2.0),
                Role::Layer(_, QueryBias | KeyBias | ValueBias | RouterBias) => random.normals(count, 0.5),
                // Wide enough that gates and what they multiply reach the activation's limit of 7.
                Role::Layer(_, ExpertGateBiases | ExpertUpBiases) => random.normals(count, 3.0),
                Role::Layer(_, ExpertDownBiases | AttentionOutputBias) => random.normals(count, 0.3),
                Role::Layer(_, SelectionBias) => (0..count).map(|_| random.between(-0.2, 0.2)).collect(),
                _ => (0..count).map(|_| random.between(0.7, 1.3)).collect(),
            };
            (TensorType::F32, encode(TensorType::F32, &values)?)
        }
    };
    Ok(GgufTensor { name, dims, kind, bytes })
}

/// The type, or one with shorter blocks where rows of `width` values are no whole ones of it.
fn fitting(kind: TensorType, width: u64) -> TensorType {
    let fits = |kind: &TensorType| width.is_multiple_of(kind.block_values());
    [kind, TensorType::Q8_0].into_iter().find(fits).unwrap_or(TensorType::F16)
}

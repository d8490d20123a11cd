//! Which type llama.cpp's quantisations give each tensor.
//!
//! The rules are those of `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp`, for the mixes that most files are
//! made in; none of these depends on an importance matrix.

use std::fmt;

use super::{UnknownName, names};
use crate::spec::{Attention, Family, FeedForward, ModelSpec};
use crate::tensor_type::TensorType;
use crate::tensors::{LayerRole, Role};

/// A mix of types, as llama.cpp's quantisation names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mix {
    /// Half precision.
    F16,
    /// 8 bits.
    Q8_0,
    /// 6 bits.
    Q6K,
    /// 5 bits and 6 for some.
    Q5KM,
    /// 4 bits and 6 for some.
    Q4KM,
    /// 3 bits and more for some.
    Q3KM,
    /// 2 bits and more for some.
    Q2K,
}

/// Layers of the dense models that llama.cpp calls 70B, which get more bits for their values.
const LAYERS_OF_70B: usize = 80;
/// From so many query heads to a key and value head on, values get more bits in the smallest mix.
const SHARED_VALUES: usize = 4;
/// Mixtures of just so many experts get more bits in their attention.
const FEW_EXPERTS: usize = 8;

impl Mix {
    /// Every mix, the largest first.
    pub fn all() -> [Mix; 7] {
        [Mix::F16, Mix::Q8_0, Mix::Q6K, Mix::Q5KM, Mix::Q4KM, Mix::Q3KM, Mix::Q2K]
    }

    /// Its name, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        match self {
            Mix::F16 => "F16",
            Mix::Q8_0 => "Q8_0",
            Mix::Q6K => "Q6_K",
            Mix::Q5KM => "Q5_K_M",
            Mix::Q4KM => "Q4_K_M",
            Mix::Q3KM => "Q3_K_M",
            Mix::Q2K => "Q2_K",
        }
    }

    /// The mix of that name; case and underscores do not count, and `FP16` and `BF16`, of the same size, are F16.
    ///
    /// # Errors
    /// Where there is none, with the nearest ones.
    pub fn named(name: &str) -> Result<Mix, UnknownName> {
        const ALL: [Mix; 7] = [Mix::F16, Mix::Q8_0, Mix::Q6K, Mix::Q5KM, Mix::Q4KM, Mix::Q3KM, Mix::Q2K];
        let called = |mix: &'static Mix| match mix {
            Mix::F16 => vec![mix.name(), "FP16", "BF16"],
            _ => vec![mix.name()],
        };
        names::find("quantisation", name, &ALL, called).copied()
    }

    /// What most of the matrices are.
    fn usual(self) -> TensorType {
        match self {
            Mix::F16 => TensorType::F16,
            Mix::Q8_0 => TensorType::Q8_0,
            Mix::Q6K => TensorType::Q6K,
            Mix::Q5KM => TensorType::Q5K,
            Mix::Q4KM => TensorType::Q4K,
            Mix::Q3KM => TensorType::Q3K,
            Mix::Q2K => TensorType::Q2K,
        }
    }

    /// The type of the tensor that plays `role` in the model `spec` and has rows of `columns` values.
    pub fn tensor_type(self, spec: &ModelSpec, role: Role, columns: u64) -> TensorType {
        let kept = match role {
            Role::OutputNorm | Role::RopeFrequencies | Role::RopeLong | Role::RopeShort => true,
            Role::TokenEmbedding | Role::Output => false,
            Role::Layer(_, role) => role.is_vector() || role == LayerRole::Router,
        };
        if kept {
            return TensorType::F32;
        }
        match self {
            Mix::F16 => TensorType::F16,
            _ => fitting(self.wanted(spec, role, columns), columns),
        }
    }

    /// The type that a matrix gets where its rows allow it.
    fn wanted(self, spec: &ModelSpec, role: Role, columns: u64) -> TensorType {
        use TensorType::*;
        let usual = self.usual();
        let (layer, role) = match role {
            Role::TokenEmbedding if !spec.head.tied => return usual,
            Role::TokenEmbedding | Role::Output => {
                let whole = columns.is_multiple_of(usual.block_values());
                return if !whole || usual == Q8_0 { Q8_0 } else { Q6K };
            }
            Role::Layer(layer, role) => (layer, role),
            _ => return usual,
        };
        let layers = spec.layers.len();
        let few_experts = experts(spec) == FEW_EXPERTS;
        match role {
            LayerRole::Value | LayerRole::KeyValueUp | LayerRole::QueryKeyValue => {
                let values = match self {
                    Mix::Q2K if heads_per_value(spec, layer) >= SHARED_VALUES => Q4K,
                    Mix::Q2K => Q3K,
                    Mix::Q3KM if layer < 2 => Q5K,
                    Mix::Q3KM => Q4K,
                    Mix::Q4KM | Mix::Q5KM if gets_more(layer, layers) => Q6K,
                    _ => usual,
                };
                match values {
                    _ if few_experts => Q8_0,
                    Q3K | Q4K if is_70b(spec) => Q5K,
                    values => values,
                }
            }
            LayerRole::Key if few_experts => Q8_0,
            LayerRole::Down | LayerRole::ExpertDowns | LayerRole::SharedDown => match self {
                Mix::Q2K => Q3K,
                Mix::Q3KM if layer < layers / 16 => Q5K,
                Mix::Q3KM => Q4K,
                Mix::Q4KM | Mix::Q5KM if gets_more(layer, layers) => Q6K,
                _ => usual,
            },
            LayerRole::AttentionOutput => match self {
                Mix::Q2K | Mix::Q3KM | Mix::Q4KM if few_experts => Q5K,
                Mix::Q2K => Q3K,
                Mix::Q3KM => Q4K,
                _ => usual,
            },
            _ => usual,
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a layer's most sensitive matrices get more bits: those of the first and the last eighth of all layers, and of
/// every third between.
fn gets_more(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type itself where rows of `columns` values are whole blocks of it, and otherwise the one with shorter blocks that
/// llama.cpp takes instead.
fn fitting(kind: TensorType, columns: u64) -> TensorType {
    use TensorType::*;
    if columns.is_multiple_of(kind.block_values()) {
        return kind;
    }
    let shorter = match kind {
        Q2K | Q3K => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        other => other,
    };
    if columns.is_multiple_of(shorter.block_values()) { shorter } else { F16 }
}

fn experts(spec: &ModelSpec) -> usize {
    let of_layer = |feed_forward: &FeedForward| match feed_forward {
        FeedForward::Experts(experts) => experts.count,
        FeedForward::Gated { .. } => 0,
    };
    spec.layers.iter().map(|layer| of_layer(&layer.feed_forward)).max().unwrap_or(0)
}

fn heads_per_value(spec: &ModelSpec, layer: usize) -> usize {
    match spec.layers.get(layer).map(|layer| &layer.attention) {
        Some(Attention::Grouped(attention)) => attention.heads / attention.kv_heads.max(1),
        // One matrix that makes the keys and values of every head.
        Some(Attention::Latent(_)) | None => 1,
    }
}

fn is_70b(spec: &ModelSpec) -> bool {
    matches!(spec.family, Family::Llama | Family::Qwen2)
        && spec.layers.len() == LAYERS_OF_70B
        && heads_per_value(spec, 0) > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::model;

    #[test]
    fn mixes_are_found_by_their_names() {
        for mix in Mix::all() {
            assert_eq!(Mix::named(mix.name()), Ok(mix));
            assert_eq!(Mix::named(&mix.name().to_lowercase().replace('_', "-")), Ok(mix));
        }
        assert_eq!(Mix::named("bf16"), Ok(Mix::F16));
        let error = Mix::named("Q4").unwrap_err();
        assert!(error.nearest.contains(&"Q4_K_M".to_owned()), "{error}");
    }

    #[test]
    fn rows_that_are_no_whole_blocks_fall_back() {
        use TensorType::*;
        let fallbacks = [(Q2K, Q4_0), (Q3K, Q4_0), (Q4K, Q5_0), (Q5K, Q5_1), (Q6K, Q8_0), (Q8_0, Q8_0)];
        for (wanted, found) in fallbacks {
            assert_eq!(fitting(wanted, 128), found);
            assert_eq!(fitting(wanted, 512), wanted);
            assert_eq!(fitting(wanted, 100), F16);
        }
    }

    #[test]
    fn types_of_known_files_are_found() {
        use TensorType::*;
        let kind = |name: &str, role| {
            let (model, mix) = model(name).unwrap();
            let header = model.header(mix);
            let name = model.spec().family.tensor_name(role);
            header.tensor(&name).unwrap().kind
        };
        let layer = |layer, role| Role::Layer(layer, role);
        // As in the files of bartowski/Meta-Llama-3.1-8B-Instruct-GGUF and unsloth/DeepSeek-R1-GGUF.
        assert_eq!(kind("Llama 3.1 8B:Q4_K_M", Role::TokenEmbedding), Q4K);
        assert_eq!(kind("Llama 3.1 8B:Q4_K_M", Role::Output), Q6K);
        assert_eq!(kind("Llama 3.1 8B:Q4_K_M", layer(0, LayerRole::Value)), Q6K);
        assert_eq!(kind("Llama 3.1 8B:Q4_K_M", layer(4, LayerRole::Value)), Q4K);
        assert_eq!(kind("Llama 3.1 8B:Q4_K_M", layer(6, LayerRole::Down)), Q6K);
        assert_eq!(kind("Llama 3.1 8B:Q8_0", Role::Output), Q8_0);
        // Values of 70B get more bits, a tied embedding those of an output.
        assert_eq!(kind("Llama 3.3 70B:Q4_K_M", layer(10, LayerRole::Value)), Q5K);
        assert_eq!(kind("Llama 3.2 1B:Q4_K_M", Role::TokenEmbedding), Q6K);
        assert_eq!(kind("SmolLM2 135M:Q4_K_M", Role::TokenEmbedding), Q8_0);
        assert_eq!(kind("DeepSeek R1:Q4_K_M", layer(10, LayerRole::KeyUp)), Q5_0);
        assert_eq!(kind("DeepSeek R1:Q4_K_M", layer(10, LayerRole::Router)), F32);
        assert_eq!(kind("DeepSeek R1:Q2_K", layer(10, LayerRole::ExpertDowns)), Q3K);
    }
}

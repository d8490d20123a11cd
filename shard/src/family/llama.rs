//! The llama family: Llama 2 and 3.x, Mistral, SmolLM (`general.architecture` = `llama`).
//!
//! RMS norms, grouped-query attention with rope on neighbouring channels, a gated feed-forward with SiLU, and an output
//! matrix that is the token embedding where the file has no other.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use crate::gguf::Header;
use crate::spec::{
    Activation, Attention, Family, FeedForward, GroupedAttention, HeadSpec, LayerSpec, ModelSpec, Norm, Rope,
    RopePairing,
};
use crate::tensors::{LayerRole, Role};

/// Base of the rope frequencies where the file states none.
const DEFAULT_ROPE_BASE: f32 = 10_000.0;
/// Bounds on what a file may ask for: a few times the largest public model's.
const MAX_HIDDEN: u64 = 1 << 20;
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HEADS: u64 = 1 << 14;
const MAX_HEAD_WIDTH: u64 = 1 << 14;
const MAX_FEED_FORWARD: u64 = 1 << 22;
const MAX_CONTEXT: u64 = 1 << 30;
const MAX_VOCAB: u64 = 1 << 24;

/// Keys that say nothing about the computation: `vocab_size` repeats the embedding's shape, the scaling's origin
/// matters to YaRN alone, and the layout names that of the published weights, which GGUF files have anyway.
const HARMLESS: [&str; 5] = [
    "vocab_size",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "expert_used_count",
];

/// The tensors of a layer, in the order of computation.
pub(super) const LAYER_ROLES: [LayerRole; 9] = [
    LayerRole::AttentionNorm,
    LayerRole::Query,
    LayerRole::Key,
    LayerRole::Value,
    LayerRole::AttentionOutput,
    LayerRole::FeedForwardNorm,
    LayerRole::Gate,
    LayerRole::Up,
    LayerRole::Down,
];

/// The name of the tensor that plays `role`.
pub(super) fn tensor_name(role: Role) -> String {
    let (layer, name) = match role {
        Role::TokenEmbedding => return "token_embd.weight".to_owned(),
        Role::OutputNorm => return "output_norm.weight".to_owned(),
        Role::Output => return "output.weight".to_owned(),
        Role::RopeFrequencies => return "rope_freqs.weight".to_owned(),
        Role::Layer(layer, LayerRole::AttentionNorm) => (layer, "attn_norm"),
        Role::Layer(layer, LayerRole::Query) => (layer, "attn_q"),
        Role::Layer(layer, LayerRole::Key) => (layer, "attn_k"),
        Role::Layer(layer, LayerRole::Value) => (layer, "attn_v"),
        Role::Layer(layer, LayerRole::AttentionOutput) => (layer, "attn_output"),
        Role::Layer(layer, LayerRole::FeedForwardNorm) => (layer, "ffn_norm"),
        Role::Layer(layer, LayerRole::Gate) => (layer, "ffn_gate"),
        Role::Layer(layer, LayerRole::Up) => (layer, "ffn_up"),
        Role::Layer(layer, LayerRole::Down) => (layer, "ffn_down"),
    };
    format!("blk.{layer}.{name}.weight")
}

/// Reads the spec of a llama model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "llama");
    refuse_variants(&keys)?;
    let hidden = keys.required("embedding_length", 1..=MAX_HIDDEN)?;
    let layer_count = keys.required("block_count", 1..=MAX_LAYERS)?;
    let context_length = keys.required("context_length", 1..=MAX_CONTEXT)?;
    let norm = Norm::Rms { epsilon: epsilon(&keys)? };
    let attention = attention_layers(&keys, hidden, layer_count)?;
    let widths = keys.per_layer("feed_forward_length", 1..=MAX_FEED_FORWARD, layer_count)?;
    let widths = widths.ok_or_else(|| keys.missing("feed_forward_length"))?;
    keys.finish(&HARMLESS)?;
    let layers = attention.into_iter().zip(widths).map(|(attention, width)| LayerSpec {
        attention_norm: norm,
        attention: Attention::Grouped(attention),
        feed_forward_norm: norm,
        feed_forward: FeedForward::Gated { width, activation: Activation::Silu },
    });
    Ok(ModelSpec {
        name: header.str("general.name")?.unwrap_or("llama").to_owned(),
        family: Family::Llama,
        hidden,
        vocab: vocab(header)?,
        context_length,
        layers: layers.collect(),
        head: HeadSpec { norm, tied: header.tensor("output.weight").is_none() },
    })
}

/// Refuses what the architecture can ask for and is not built.
fn refuse_variants(keys: &Hyperparameters<'_>) -> Result<(), SpecError> {
    if let Some(experts @ 1..) = keys.count("expert_count", 0..=u64::MAX)? {
        return Err(keys.unsupported("expert_count", experts, ": mixtures of experts cannot be run"));
    }
    if let Some(window @ 1..) = keys.count("attention.sliding_window", 0..=u64::MAX)? {
        let context = keys.count("context_length", 0..=u64::MAX)?.unwrap_or(0);
        // A window that no context reaches past hides nothing.
        if window < context {
            return Err(keys.unsupported("attention.sliding_window", window, ": only full attention is"));
        }
    }
    if keys.flag("attention.causal")? == Some(false) {
        return Err(keys.unsupported("attention.causal", false, ": the model does not generate text"));
    }
    if keys.flag("use_parallel_residual")? == Some(true) {
        return Err(keys.unsupported("use_parallel_residual", true, ""));
    }
    if let Some(pooling @ 1..) = keys.count("pooling_type", 0..=u64::MAX)? {
        return Err(keys.unsupported("pooling_type", pooling, ": the model does not generate text"));
    }
    Ok(())
}

fn epsilon(keys: &Hyperparameters<'_>) -> Result<f32, SpecError> {
    let name = "attention.layer_norm_rms_epsilon";
    let epsilon = keys.number(name)?.ok_or_else(|| keys.missing(name))?;
    if !(0.0..1.0).contains(&epsilon) {
        return Err(keys.invalid(name, epsilon, "it must be at least 0 and below 1"));
    }
    Ok(epsilon)
}

fn attention_layers(
    keys: &Hyperparameters<'_>,
    hidden: usize,
    layer_count: usize,
) -> Result<Vec<GroupedAttention>, SpecError> {
    let heads = keys.per_layer("attention.head_count", 1..=MAX_HEADS, layer_count)?;
    let heads = heads.ok_or_else(|| keys.missing("attention.head_count"))?;
    let kv_heads = keys.per_layer("attention.head_count_kv", 1..=MAX_HEADS, layer_count)?;
    let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
    let key_width = keys.count("attention.key_length", 1..=MAX_HEAD_WIDTH)?;
    let value_width = keys.count("attention.value_length", 1..=MAX_HEAD_WIDTH)?;
    // Where the file states no width, that of the first layer's heads holds for all.
    let default_width = hidden / heads[0];
    if (key_width.is_none() || value_width.is_none()) && !hidden.is_multiple_of(heads[0]) {
        let wanted = format!("it must divide the hidden width {hidden} where no head width is stated");
        return Err(keys.invalid("attention.head_count", heads[0], &wanted));
    }
    let key_width = key_width.unwrap_or(default_width);
    let value_width = value_width.unwrap_or(default_width);
    let rope = rope(keys, key_width)?;
    let layers = heads.into_iter().zip(kv_heads).map(|(heads, kv_heads)| {
        if !heads.is_multiple_of(kv_heads) {
            let wanted = format!("it must divide the number of query heads, {heads}");
            return Err(keys.invalid("attention.head_count_kv", kv_heads, &wanted));
        }
        let scale = 1.0 / (key_width as f32).sqrt();
        Ok(GroupedAttention { heads, kv_heads, key_width, value_width, scale, rope: rope.clone() })
    });
    layers.collect()
}

fn rope(keys: &Hyperparameters<'_>, key_width: usize) -> Result<Rope, SpecError> {
    let width = keys.count("rope.dimension_count", 1..=MAX_HEAD_WIDTH)?.unwrap_or(key_width);
    if !width.is_multiple_of(2) || width > key_width {
        let wanted = format!("it must be even and at most the width of a key head, {key_width}");
        return Err(keys.invalid("rope.dimension_count", width, &wanted));
    }
    let base = keys.number("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_BASE);
    if base <= 0.0 {
        return Err(keys.invalid("rope.freq_base", base, "it must be above 0"));
    }
    if let Some(factor) = keys.number("rope.scaling.attn_factor")?.filter(|factor| *factor != 1.0) {
        return Err(keys.unsupported("rope.scaling.attn_factor", factor, ""));
    }
    Ok(Rope {
        width,
        pairing: RopePairing::Adjacent,
        base,
        position_scale: position_scale(keys)?,
        frequency_divisors: keys.header.tensor("rope_freqs.weight").is_some(),
    })
}

/// The factor on positions: 1 / `rope.scaling.factor` (older files: `rope.scale_linear`) where the scaling is linear.
fn position_scale(keys: &Hyperparameters<'_>) -> Result<f32, SpecError> {
    let factor = keys.number("rope.scaling.factor")?;
    let old_factor = keys.number("rope.scale_linear")?;
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    match kind {
        "none" => Ok(1.0),
        "linear" => match factor.or(old_factor) {
            // Files write 0 for no scaling.
            None | Some(0.0) => Ok(1.0),
            Some(factor) if factor > 0.0 && (1.0 / factor).is_finite() => Ok(1.0 / factor),
            Some(factor) => Err(keys.invalid("rope.scaling.factor", factor, "it must be above 0")),
        },
        other => Err(keys.unsupported("rope.scaling.type", other, ": only `none` and `linear` are")),
    }
}

/// The number of token ids: the rows of the embedding, which the vocabulary must agree with.
fn vocab(header: &Header) -> Result<usize, SpecError> {
    let name = "token_embd.weight";
    let tensor = header.tensor(name);
    let tensor = tensor.ok_or(SpecError::Tensor { name, problem: "is missing".to_owned() })?;
    let &[_, rows] = tensor.dims.as_slice() else {
        return Err(SpecError::Tensor {
            name,
            problem: format!("has the shape {:?}, wanted a matrix", tensor.dims),
        });
    };
    if rows > MAX_VOCAB {
        let problem = format!("has {rows} rows, at most {MAX_VOCAB} are possible");
        return Err(SpecError::Tensor { name, problem });
    }
    match header.array_len("tokenizer.ggml.tokens")? {
        Some(tokens) if tokens != rows => {
            let problem = format!("has {rows} rows, but the vocabulary has {tokens} tokens");
            Err(SpecError::Tensor { name, problem })
        }
        _ => Ok(rows as usize),
    }
}

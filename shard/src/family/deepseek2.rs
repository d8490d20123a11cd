//! DeepSeek V2, V2-Lite, V3, R1 and Kimi K2 (`general.architecture` = `deepseek2`).
//!
//! Latent attention, whose key and value matrices lie in two tensors in newer files and in one in older ones; after a
//! few dense layers a mixture of experts with a shared one. V2 gates by softmax; V3 by sigmoids, with a selection bias
//! and, in most models, groups. YaRN lets cosine and sine be and raises the scores' factor instead.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use super::routed;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, Family, FeedForward, HeadSpec, LatentAttention, LatentLayout, LatentQuery,
    LayerSpec, ModelSpec, Norm, Residual, Rope, RopeDivisors, RopePairing, RopeScaling,
};

const QUERY_RANK: &str = "attention.q_lora_rank";
const KEY_WIDTH_OF_HEADS: &str = "attention.key_length_mla";
/// Epsilon of the norms within latent attention, where it is not that of the other norms.
const LATENT_EPSILON: &str = "attention.latent_norm_epsilon";
const VALUE_WIDTH_OF_HEADS: &str = "attention.value_length_mla";
/// Files write the multiplier of YaRN's logarithm times this.
const MULTIPLIER_UNIT: f32 = 0.1;

/// Reads the spec of a DeepSeek V2 or V3 model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "deepseek2");
    let sizes = parts::sizes(&keys)?;
    let skipped_layers = parts::skipped_layers(&keys, &sizes)?;
    let run = sizes.layers - skipped_layers;
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    // GGUF files do not say; the reader of safetensors does.
    let latent_norm = match keys.number(LATENT_EPSILON)? {
        Some(_) => Norm::Rms { epsilon: parts::epsilon(&keys, LATENT_EPSILON)? },
        None => norm,
    };
    let attention = attention(&keys, latent_norm)?;
    let dense = keys.required("leading_dense_block_count", 0..=run as u64)?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    let experts = routed::experts(&keys, dense)?;
    keys.finish(&parts::HARMLESS)?;
    let layers = widths.into_iter().take(run).enumerate().map(|(layer, width)| LayerSpec {
        attention_norm: norm,
        attention: Attention::Latent(attention.clone()),
        attention_post_norm: None,
        residual: Residual::Sequential { feed_forward_norm: norm },
        feed_forward: if layer < dense {
            FeedForward::Gated { width, activation: Activation::Silu, fused: false }
        } else {
            FeedForward::Experts(experts)
        },
        feed_forward_post_norm: None,
    });
    Ok(ModelSpec {
        name: parts::name(header, "deepseek2")?,
        family: Family::DeepSeek2,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: 1.0,
        layers: layers.collect(),
        skipped_layers,
        head: HeadSpec { norm, tied: parts::tied(header), logit_scale: 1.0 },
    })
}

fn attention(keys: &Hyperparameters<'_>, norm: Norm) -> Result<LatentAttention, SpecError> {
    let has = |name| keys.header.tensor(name).is_some();
    let heads = keys.required("attention.head_count", 1..=parts::MAX_HEADS)?;
    let rank = keys.required("attention.kv_lora_rank", 1..=parts::MAX_HEAD_WIDTH)?;
    let width = |name| keys.required(name, 1..=parts::MAX_HEAD_WIDTH);
    let (key, value) = (width(parts::KEY_WIDTH)?, width(parts::VALUE_WIDTH)?);
    let of_heads = [KEY_WIDTH_OF_HEADS, VALUE_WIDTH_OF_HEADS]
        .map(|name| keys.count(name, 1..=parts::MAX_HEAD_WIDTH).transpose());
    let layout = match of_heads {
        [None, None] if !has("blk.0.attn_k_b.weight") => LatentLayout::Joined,
        _ => LatentLayout::Split,
    };
    let [key_of_heads, value_of_heads] = of_heads.map(Option::transpose);
    // What the file calls a key is that of a head in older files, and the cached one in newer files.
    let (key_width, value_width) = match layout {
        LatentLayout::Joined => (key, value),
        LatentLayout::Split => (
            key_of_heads?.ok_or_else(|| keys.missing(KEY_WIDTH_OF_HEADS))?,
            value_of_heads?.ok_or_else(|| keys.missing(VALUE_WIDTH_OF_HEADS))?,
        ),
    };
    if keys.count("rope.dimension_count", 0..=parts::MAX_HEAD_WIDTH)?.is_none() {
        return Err(keys.missing("rope.dimension_count"));
    }
    // GGUF files do not say; the reader of safetensors does.
    let pairing = match keys.flag("rope.interleaved")? {
        Some(false) => RopePairing::Halves,
        Some(true) | None => RopePairing::Adjacent,
    };
    let mut rope = parts::rope(keys, key_width, pairing)?;
    parts::stated_rope_base(keys)?;
    rope.divisors = RopeDivisors::None;
    if rope.width >= key_width {
        let wanted = format!("it must be below the width of a key head, {key_width}");
        return Err(keys.invalid("rope.dimension_count", rope.width, &wanted));
    }
    let (cached_heads, cached_key, cached_value) = match layout {
        LatentLayout::Joined => (heads, key_width, value_width),
        LatentLayout::Split => (1, rank + rope.width, rank),
    };
    let kv_heads = keys.required(parts::KV_HEADS, 1..=parts::MAX_HEADS)?;
    for (name, found, wanted) in [
        (parts::KV_HEADS, kv_heads, cached_heads),
        (parts::KEY_WIDTH, key, cached_key),
        (parts::VALUE_WIDTH, value, cached_value),
    ] {
        if found != wanted {
            let wanted = format!("it must be {wanted} by the other widths of latent attention");
            return Err(keys.invalid(name, found, &wanted));
        }
    }
    let query = match keys.count(QUERY_RANK, 0..=parts::MAX_HIDDEN)? {
        Some(rank @ 1..) => LatentQuery::Compressed { rank, norm },
        None if has("blk.0.attn_q_a.weight") => return Err(keys.missing(QUERY_RANK)),
        None | Some(0) => LatentQuery::Direct,
    };
    let scale = match keys.number("attention.scale")? {
        Some(scale) => scale,
        None => {
            let factor = scores_factor(keys, &mut rope)?;
            factor * factor / (key_width as f32).sqrt()
        }
    };
    Ok(LatentAttention {
        heads,
        rank,
        plain_width: key_width - rope.width,
        value_width,
        scale,
        query,
        norm,
        rope,
        layout,
    })
}

/// The factor on queries and on keys in files that state none on the scores. YaRN's is taken off cosine and sine.
fn scores_factor(keys: &Hyperparameters<'_>, rope: &mut Rope) -> Result<f32, SpecError> {
    match rope.scaling {
        RopeScaling::None => Ok(rope.magnitude),
        RopeScaling::Linear { .. } => {
            Err(keys.unsupported("rope.scaling.type", "linear", ": only `none` and `yarn` are"))
        }
        RopeScaling::Yarn { .. } => {
            let name = "rope.scaling.yarn_log_multiplier";
            let multiplier = keys.number(name)?.ok_or_else(|| keys.missing(name))?;
            if multiplier <= 0.0 {
                return Err(keys.invalid(name, multiplier, "it must be above 0"));
            }
            rope.magnitude /= parts::yarn_magnitude(rope.scaling, 1.0);
            Ok(rope.magnitude * parts::yarn_magnitude(rope.scaling, multiplier / MULTIPLIER_UNIT))
        }
    }
}

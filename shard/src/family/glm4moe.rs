//! GLM 4.5 and 4.6 (`general.architecture` = `glm4moe`).
//!
//! Grouped attention with biases, rope on the first part of each head, and in the larger models a norm for every query
//! and key head; after a few dense layers experts that sigmoids gate, beside a shared one. The norm of the feed-forward's
//! input has the name of the norm after attention.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use super::routed;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, Family, FeedForward, GroupedAttention, HeadNorm, HeadSpec, LayerSpec, ModelSpec,
    Norm, Projections, Residual, RopePairing,
};

/// Reads the spec of a GLM 4.5 or 4.6 model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "glm4moe");
    let sizes = parts::sizes(&keys)?;
    let skipped_layers = parts::skipped_layers(&keys, &sizes)?;
    let run = sizes.layers - skipped_layers;
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let heads = parts::heads(&keys, &sizes, &[parts::KV_HEADS, parts::KEY_WIDTH, parts::VALUE_WIDTH])?;
    if keys.count("rope.dimension_count", 0..=parts::MAX_HEAD_WIDTH)?.is_none() {
        return Err(keys.missing("rope.dimension_count"));
    }
    let rope = parts::rope(&keys, heads.key_width, RopePairing::Halves)?;
    parts::stated_rope_base(&keys)?;
    let dense = keys.required("leading_dense_block_count", 0..=run as u64)?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    let experts = routed::experts(&keys, dense)?;
    // GGUF files do not say; the reader of safetensors does.
    let (stated_bias, stated_norm) = (keys.flag("attention.bias")?, keys.flag("attention.head_norm")?);
    keys.finish(&parts::HARMLESS)?;
    // Where no key says which of these parts a model has: if one tensor of a part is there, all must be.
    let any = |names: &[&str]| {
        let mut layers = 0..run;
        layers.any(|layer| names.iter().any(|name| header.tensor(&format!("blk.{layer}.{name}")).is_some()))
    };
    let bias = stated_bias.unwrap_or_else(|| any(&["attn_q.bias", "attn_k.bias", "attn_v.bias"]));
    let head_norm = stated_norm.unwrap_or_else(|| any(&["attn_q_norm.weight", "attn_k_norm.weight"]));
    let layers = heads.counts.iter().zip(widths).take(run).enumerate();
    let layers = layers.map(|(layer, (&counts, width))| LayerSpec {
        attention_norm: norm,
        attention: Attention::Grouped(GroupedAttention {
            projections: Projections::Separate { bias },
            head_norm: head_norm.then_some(HeadNorm::Weighted { norm, per_head: false }),
            rope: Some(rope.clone()),
            ..heads.attention(counts)
        }),
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
        name: parts::name(header, "glm4moe")?,
        family: Family::Glm4Moe,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: 1.0,
        layers: layers.collect(),
        skipped_layers,
        head: HeadSpec { norm, tied: parts::tied(header), logit_scale: 1.0 },
    })
}

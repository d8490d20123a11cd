//! Qwen 1.5 to 2.5 (`general.architecture` = `qwen2`) and Qwen 3 (`qwen3`, with experts `qwen3moe`).
//!
//! As llama, but rope turns the halves of a head, and queries, keys and values have biases (Qwen 2), or queries and keys
//! a norm per head (Qwen 3).

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, Family, FeedForward, GroupedAttention, HeadNorm, HeadSpec, LayerSpec, ModelSpec,
    Norm, Projections, Residual, RopePairing,
};

/// Reads the spec of a Qwen 1.5, 2 or 2.5 model.
pub(super) fn qwen2(header: &Header) -> Result<ModelSpec, SpecError> {
    spec(header, "qwen2", Family::Qwen2)
}

/// Reads the spec of a Qwen 3 model without experts.
pub(super) fn qwen3(header: &Header) -> Result<ModelSpec, SpecError> {
    spec(header, "qwen3", Family::Qwen3)
}

/// Reads the spec of a Qwen 3 model with experts.
pub(super) fn qwen3moe(header: &Header) -> Result<ModelSpec, SpecError> {
    spec(header, "qwen3moe", Family::Qwen3Moe)
}

fn spec(header: &Header, architecture: &str, family: Family) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, architecture);
    if family != Family::Qwen3Moe {
        parts::refuse_experts(&keys)?;
    }
    let sizes = parts::sizes(&keys)?;
    parts::refuse_window(&keys, sizes.context)?;
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let second = family == Family::Qwen2;
    let stated = [parts::KV_HEADS, parts::KEY_WIDTH, parts::VALUE_WIDTH];
    let heads = parts::heads(&keys, &sizes, if second { &stated[..1] } else { &stated })?;
    let rope = parts::rope(&keys, heads.key_width, RopePairing::Halves)?;
    parts::stated_rope_base(&keys)?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    let experts = match family {
        Family::Qwen3Moe => {
            let experts = parts::softmax_experts(&keys, "expert_feed_forward_length")?;
            Some(experts.ok_or_else(|| keys.missing("expert_count"))?)
        }
        _ => None,
    };
    keys.finish(&parts::HARMLESS)?;
    let layers = heads.counts.iter().zip(widths).map(|(&counts, width)| LayerSpec {
        attention_norm: norm,
        attention: Attention::Grouped(GroupedAttention {
            projections: Projections::Separate { bias: second },
            head_norm: (!second).then_some(HeadNorm::Weighted { norm, per_head: false }),
            rope: Some(rope.clone()),
            ..heads.attention(counts)
        }),
        attention_post_norm: None,
        residual: Residual::Sequential { feed_forward_norm: norm },
        feed_forward: match experts {
            Some(experts) => FeedForward::Experts(experts),
            None => FeedForward::Gated { width, activation: Activation::Silu, fused: false },
        },
        feed_forward_post_norm: None,
    });
    Ok(ModelSpec {
        name: parts::name(header, architecture)?,
        family,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: 1.0,
        layers: layers.collect(),
        skipped_layers: 0,
        head: HeadSpec { norm, tied: parts::tied(header), logit_scale: 1.0 },
    })
}

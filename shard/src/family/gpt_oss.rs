//! gpt-oss (`general.architecture` = `gpt-oss`).
//!
//! Experts in every layer, biases everywhere, a clamped activation, and attention whose softmax has a sink per query head.
//! Of two layers, the first sees a window and the second all positions. The norm of the feed-forward's input has the name
//! of the norm after attention.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, Experts, Family, FeedForward, GroupedAttention, HeadSpec, LayerSpec, ModelSpec,
    Norm, Projections, Residual, RopePairing, Visibility,
};

/// One layer of so many sees all positions.
const FULL_ATTENTION_PERIOD: usize = 2;
/// Keys of this family that say nothing about the computation: there is no feed-forward besides the experts, and the
/// width of what there is repeats theirs.
const HARMLESS: [&str; 1] = ["feed_forward_length"];

/// Reads the spec of a gpt-oss model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "gpt-oss");
    let sizes = parts::sizes(&keys)?;
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let heads = parts::heads(&keys, &sizes, &[parts::KV_HEADS, parts::KEY_WIDTH, parts::VALUE_WIDTH])?;
    let rope = parts::rope(&keys, heads.key_width, RopePairing::Halves)?;
    parts::stated_rope_base(&keys)?;
    let window = parts::window(&keys)?;
    let experts = parts::softmax_experts(&keys, "expert_feed_forward_length")?;
    let experts = experts.ok_or_else(|| keys.missing("expert_count"))?;
    let experts = Experts { activation: Activation::ClampedSwish, biases: true, ..experts };
    keys.finish(&[&parts::HARMLESS[..], &HARMLESS].concat())?;
    let layers = heads.counts.iter().enumerate().map(|(layer, &counts)| {
        let full = layer % FULL_ATTENTION_PERIOD == FULL_ATTENTION_PERIOD - 1;
        LayerSpec {
            attention_norm: norm,
            attention: Attention::Grouped(GroupedAttention {
                projections: Projections::Separate { bias: true },
                rope: Some(rope.clone()),
                visibility: if full { Visibility::All } else { Visibility::Window(window) },
                sinks: true,
                output_bias: true,
                ..heads.attention(counts)
            }),
            attention_post_norm: None,
            residual: Residual::Sequential { feed_forward_norm: norm },
            feed_forward: FeedForward::Experts(experts),
            feed_forward_post_norm: None,
        }
    });
    Ok(ModelSpec {
        name: parts::name(header, "gpt-oss")?,
        family: Family::GptOss,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: 1.0,
        layers: layers.collect(),
        skipped_layers: 0,
        head: HeadSpec { norm, tied: false, logit_scale: 1.0 },
    })
}

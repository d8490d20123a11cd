//! The llama family: Llama 2 and 3.x, Mistral, Mixtral, SmolLM (`general.architecture` = `llama`).
//!
//! RMS norms, grouped-query attention with rope, a gated feed-forward with SiLU, and an output
//! matrix that is the token embedding where the file has no other. Mixtral has experts in every layer, as wide as others'
//! feed-forward.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::{Format, Header};
use crate::spec::{
    Activation, Attention, Family, FeedForward, GroupedAttention, HeadSpec, LayerSpec, ModelSpec, Norm,
    Residual, RopePairing, Visibility,
};

/// Keys of this family that say nothing about the computation: the layout names that of the published weights, which
/// GGUF files have anyway.
const HARMLESS: [&str; 1] = ["tensor_data_layout"];

/// Reads the spec of a llama model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "llama");
    if keys.flag("use_parallel_residual")? == Some(true) {
        return Err(keys.unsupported("use_parallel_residual", true, ""));
    }
    let sizes = parts::sizes(&keys)?;
    // Windows are known from safetensors alone: llama.cpp has none in this family.
    let window = match header.format() {
        Format::Gguf => {
            parts::refuse_window(&keys, sizes.context)?;
            None
        }
        Format::Safetensors => parts::optional_window(&keys)?,
    };
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let heads = parts::heads(&keys, &sizes, &[])?;
    // Who converts to GGUF reorders the rows of queries and keys, so that the halves of a head become neighbours.
    let pairing = match header.format() {
        Format::Gguf => RopePairing::Adjacent,
        Format::Safetensors => RopePairing::Halves,
    };
    let rope = parts::rope(&keys, heads.key_width, pairing)?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    let experts = parts::softmax_experts(&keys, "feed_forward_length")?;
    keys.finish(&[&parts::HARMLESS[..], &HARMLESS].concat())?;
    let layers = heads.counts.iter().zip(widths).map(|(&counts, width)| LayerSpec {
        attention_norm: norm,
        attention: Attention::Grouped(GroupedAttention {
            rope: Some(rope.clone()),
            visibility: window.map_or(Visibility::All, Visibility::Window),
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
        name: parts::name(header, "llama")?,
        family: Family::Llama,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: 1.0,
        layers: layers.collect(),
        skipped_layers: 0,
        head: HeadSpec { norm, tied: parts::tied(header), logit_scale: 1.0 },
    })
}

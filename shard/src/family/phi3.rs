//! Phi-3, Phi-3.5 and Phi-4-mini (`general.architecture` = `phi3`).
//!
//! As llama, but rope turns the halves of (part of) a head, with divisors that depend on the context and a factor on
//! cosine and sine; queries, keys and values come from one matrix, and so do gate and up. In GGUF files the key
//! `attention.sliding_window` is not used: llama.cpp gives these models full attention, and transformers the window.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::{Format, Header};
use crate::spec::{
    Activation, Attention, Family, FeedForward, GroupedAttention, HeadSpec, LayerSpec, ModelSpec, Norm,
    Projections, Residual, Rope, RopeDivisors, RopePairing, Visibility,
};

/// Reads the spec of a Phi-3 model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "phi3");
    let sizes = parts::sizes(&keys)?;
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let heads = parts::heads(&keys, &sizes, &[parts::KV_HEADS])?;
    let rope = rope(&keys, heads.key_width, sizes.context)?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    let window = match header.format() {
        Format::Gguf => None,
        Format::Safetensors => parts::optional_window(&keys)?,
    };
    keys.finish(&[&parts::HARMLESS[..], &["attention.sliding_window"]].concat())?;
    let layers = heads.counts.iter().zip(widths).map(|(&counts, width)| LayerSpec {
        attention_norm: norm,
        attention: Attention::Grouped(GroupedAttention {
            projections: Projections::Fused,
            rope: Some(rope.clone()),
            visibility: window.map_or(Visibility::All, Visibility::Window),
            ..heads.attention(counts)
        }),
        attention_post_norm: None,
        residual: Residual::Sequential { feed_forward_norm: norm },
        feed_forward: FeedForward::Gated { width, activation: Activation::Silu, fused: true },
        feed_forward_post_norm: None,
    });
    Ok(ModelSpec {
        name: parts::name(header, "phi3")?,
        family: Family::Phi3,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: 1.0,
        layers: layers.collect(),
        skipped_layers: 0,
        head: HeadSpec { norm, tied: parts::tied(header), logit_scale: 1.0 },
    })
}

fn rope(keys: &Hyperparameters<'_>, key_width: usize, context: usize) -> Result<Rope, SpecError> {
    let plain = parts::rope(keys, key_width, RopePairing::Halves)?;
    parts::refuse_yarn(keys, &plain)?;
    parts::stated_rope_base(keys)?;
    if keys.count("rope.dimension_count", 0..=u64::MAX)?.is_none() {
        return Err(keys.missing("rope.dimension_count"));
    }
    let has = |name| keys.header.tensor(name).is_some();
    let by_context = has("rope_factors_long.weight") || has("rope_factors_short.weight");
    let short_context = keys.count(parts::ORIGINAL_CONTEXT, 1..=u64::from(u32::MAX))?;
    if !by_context {
        if plain.magnitude != 1.0 {
            let hint = ": the file has no `rope_factors_long.weight`";
            return Err(keys.unsupported("rope.scaling.attn_factor", plain.magnitude, hint));
        }
        if let Some(original) = short_context.filter(|original| *original != context) {
            let hint = ": the file has no `rope_factors_long.weight`";
            return Err(keys.unsupported(parts::ORIGINAL_CONTEXT, original, hint));
        }
        return Ok(plain);
    }
    let short_context = short_context.ok_or_else(|| keys.missing(parts::ORIGINAL_CONTEXT))?;
    if keys.number("rope.scaling.attn_factor")?.is_none() {
        return Err(keys.missing("rope.scaling.attn_factor"));
    }
    Ok(Rope { divisors: RopeDivisors::ByContext { short_context }, ..plain })
}

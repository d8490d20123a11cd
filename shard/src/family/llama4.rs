//! Llama 4, text (`general.architecture` = `llama4`).
//!
//! Of four layers, three have rope, see the chunk of positions that their own is in, and norm the turned heads without
//! weights; the fourth knows no positions, sees them all, and sharpens its queries with their distance from the start.
//! Every so many layers has experts, whose sigmoids weigh what goes into them, beside a network that all tokens share.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, Experts, Family, FeedForward, Gating, GroupedAttention, HeadNorm, HeadSpec,
    LayerSpec, ModelSpec, Norm, Residual, RopePairing, Routing, Temperature, Visibility, Weighing,
};

/// One layer of so many sees all positions; no key of GGUF says so.
const FULL_ATTENTION_PERIOD: usize = 4;
/// Positions in a chunk, and positions for which queries stay as sharp; no key of GGUF says so.
const CHUNK: usize = 8192;
/// How queries get sharper; no key of GGUF says so.
const TEMPERATURE: Temperature = Temperature { period: CHUNK, scale: 0.1 };
/// The model with so many experts, Maverick, does not norm heads; no key of GGUF says so.
const EXPERTS_WITHOUT_HEAD_NORM: usize = 128;

/// Reads the spec of a Llama 4 model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "llama4");
    let sizes = parts::sizes(&keys)?;
    if let Some(window) = keys.count("attention.sliding_window", 0..=u64::MAX)?.filter(|n| *n != CHUNK) {
        return Err(keys.unsupported("attention.sliding_window", window, ": only chunks of 8192 are"));
    }
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let heads = parts::heads(&keys, &sizes, &[parts::KV_HEADS])?;
    let rope = parts::rope(&keys, heads.key_width, RopePairing::Adjacent)?;
    parts::stated_rope_base(&keys)?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    let experts = parts::softmax_experts(&keys, "expert_feed_forward_length")?;
    let experts = experts.ok_or_else(|| keys.missing("expert_count"))?;
    let routing = Routing {
        gating: Gating::Sigmoid,
        renormalised: false,
        weighing: Weighing::Inputs,
        ..experts.routing
    };
    let experts = Experts { routing, shared_width: Some(experts.width), ..experts };
    let step = keys.required("interleave_moe_layer_step", 1..=sizes.layers as u64)?;
    let chunk = keys.count("attention.chunk_size", 1..=parts::MAX_CONTEXT)?.unwrap_or(CHUNK);
    let period = keys.count("attention.full_period", 1..=u64::MAX)?.unwrap_or(FULL_ATTENTION_PERIOD);
    let head_norm = keys.flag("attention.head_norm")?.unwrap_or(experts.count != EXPERTS_WITHOUT_HEAD_NORM);
    let temperature = temperature(&keys)?;
    keys.finish(&parts::HARMLESS)?;
    let head_norm = head_norm.then_some(HeadNorm::Plain { norm });
    let layers = heads.counts.iter().zip(widths).enumerate().map(|(layer, (&counts, width))| {
        let usual = heads.attention(counts);
        let attention = match (layer + 1).is_multiple_of(period) {
            true => GroupedAttention { temperature, ..usual },
            false => GroupedAttention {
                head_norm,
                rope: Some(rope.clone()),
                visibility: Visibility::Chunk(chunk),
                ..usual
            },
        };
        LayerSpec {
            attention_norm: norm,
            attention: Attention::Grouped(attention),
            attention_post_norm: None,
            residual: Residual::Sequential { feed_forward_norm: norm },
            feed_forward: match (layer + 1).is_multiple_of(step) {
                true => FeedForward::Experts(experts),
                false => FeedForward::Gated { width, activation: Activation::Silu, fused: false },
            },
            feed_forward_post_norm: None,
        }
    });
    Ok(ModelSpec {
        name: parts::name(header, "llama4")?,
        family: Family::Llama4,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: 1.0,
        layers: layers.collect(),
        skipped_layers: 0,
        head: HeadSpec { norm, tied: parts::tied(header), logit_scale: 1.0 },
    })
}

/// How queries without rope get sharper; `None` where they do not.
fn temperature(keys: &Hyperparameters<'_>) -> Result<Option<Temperature>, SpecError> {
    let period = keys.count("attention.temperature_period", 1..=parts::MAX_CONTEXT)?;
    let scale = keys.number("attention.temperature_scale")?;
    Ok(match keys.flag("attention.temperature")? {
        Some(false) => None,
        Some(true) | None => Some(Temperature {
            period: period.unwrap_or(TEMPERATURE.period),
            scale: scale.unwrap_or(TEMPERATURE.scale),
        }),
    })
}

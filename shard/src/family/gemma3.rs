//! Gemma 3, text (`general.architecture` = `gemma3`).
//!
//! The embedding is scaled by sqrt(hidden); RMS norms stand before and after both halves of a layer and on every query
//! and key head; the gate is GELU. Of six layers, the sixth sees all positions and the others a window, with a rope of
//! their own base that is never scaled.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, Family, FeedForward, GroupedAttention, HeadNorm, HeadSpec, LayerSpec, ModelSpec,
    Norm, Residual, Rope, RopePairing, RopeScaling, Visibility,
};

/// One layer of so many sees all positions.
const FULL_ATTENTION_PERIOD: usize = 6;
/// Base of the windowed layers' rope where the file states none.
const WINDOW_ROPE_BASE: f32 = 10_000.0;
/// The 27B model alone takes the scores' factor from hidden / heads; it is told by its number of layers where no key
/// says so.
const LAYERS_OF_27B: usize = 62;

/// Reads the spec of a Gemma 3 model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "gemma3");
    let sizes = parts::sizes(&keys)?;
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let heads = parts::heads(&keys, &sizes, &[parts::KV_HEADS, parts::KEY_WIDTH, parts::VALUE_WIDTH])?;
    let full_rope = parts::rope(&keys, heads.key_width, RopePairing::Halves)?;
    parts::stated_rope_base(&keys)?;
    parts::refuse_rope_magnitude(&keys, &full_rope)?;
    let base = parts::rope_base(&keys, "rope.freq_base_swa")?.unwrap_or(WINDOW_ROPE_BASE);
    let window_rope = Rope { base, scaling: RopeScaling::None, ..full_rope.clone() };
    let window = parts::window(&keys)?;
    if let Some(cap) = keys.number("final_logit_softcapping")?.filter(|cap| *cap != 0.0) {
        return Err(keys.unsupported("final_logit_softcapping", cap, ""));
    }
    let stated_scale = keys.number("attention.scale")?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    keys.finish(&parts::HARMLESS)?;
    let layers = heads.counts.iter().zip(widths).enumerate().map(|(layer, (&counts, width))| {
        let full = layer % FULL_ATTENTION_PERIOD == FULL_ATTENTION_PERIOD - 1;
        let usual = heads.attention(counts);
        let scale = match (stated_scale, sizes.layers) {
            (Some(scale), _) => scale,
            (None, LAYERS_OF_27B) => 1.0 / ((sizes.hidden / usual.heads) as f32).sqrt(),
            (None, _) => usual.scale,
        };
        LayerSpec {
            attention_norm: norm,
            attention: Attention::Grouped(GroupedAttention {
                scale,
                head_norm: Some(HeadNorm::Weighted { norm, per_head: false }),
                rope: Some(if full { full_rope.clone() } else { window_rope.clone() }),
                visibility: if full { Visibility::All } else { Visibility::Window(window) },
                ..usual
            }),
            attention_post_norm: Some(norm),
            residual: Residual::Sequential { feed_forward_norm: norm },
            feed_forward: FeedForward::Gated { width, activation: Activation::Gelu, fused: false },
            feed_forward_post_norm: Some(norm),
        }
    });
    Ok(ModelSpec {
        name: parts::name(header, "gemma3")?,
        family: Family::Gemma3,
        hidden: sizes.hidden,
        vocab: parts::vocab(header)?,
        context_length: sizes.context,
        embedding_scale: (sizes.hidden as f32).sqrt(),
        layers: layers.collect(),
        skipped_layers: 0,
        head: HeadSpec { norm, tied: parts::tied(header), logit_scale: 1.0 },
    })
}

//! Command R and R+ (`general.architecture` = `command-r`), Command R7B and A (`cohere2`).
//!
//! One LayerNorm without bias feeds attention and feed-forward in parallel, the output matrix is the embedding, and the
//! logits have a factor. Of four layers of the second kind, three see a window and have rope, and the fourth sees all
//! positions and has none. Large models of the first kind have a norm for every query and key head.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, Family, FeedForward, GroupedAttention, HeadNorm, HeadSpec, LayerSpec, ModelSpec,
    Norm, Residual, RopePairing, Visibility,
};

/// One layer of so many sees all positions, in the second kind.
const FULL_ATTENTION_PERIOD: usize = 4;
/// From this number of layers on, models of the first kind have norms per head, unless a key says otherwise.
const LAYERS_WITH_HEAD_NORM: usize = 64;

/// Reads the spec of a Command R or R+ model.
pub(super) fn command_r(header: &Header) -> Result<ModelSpec, SpecError> {
    spec(header, "command-r", Family::CommandR)
}

/// Reads the spec of a Command R7B or A model.
pub(super) fn cohere2(header: &Header) -> Result<ModelSpec, SpecError> {
    spec(header, "cohere2", Family::Cohere2)
}

fn spec(header: &Header, architecture: &str, family: Family) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, architecture);
    let sizes = parts::sizes(&keys)?;
    let norm = Norm::Layer { epsilon: parts::epsilon(&keys, "attention.layer_norm_epsilon")? };
    let second = family == Family::Cohere2;
    let heads = parts::heads(&keys, &sizes, &[parts::KV_HEADS])?;
    let rope = parts::rope(&keys, heads.key_width, RopePairing::Adjacent)?;
    parts::stated_rope_base(&keys)?;
    parts::refuse_rope_magnitude(&keys, &rope)?;
    let window = if second { Some(parts::window(&keys)?) } else { None };
    let logit_scale = keys.number("logit_scale")?.ok_or_else(|| keys.missing("logit_scale"))?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    // GGUF files do not say; the reader of safetensors does.
    let head_norm =
        keys.flag("attention.head_norm")?.unwrap_or(sizes.layers >= LAYERS_WITH_HEAD_NORM) && !second;
    keys.finish(&parts::HARMLESS)?;
    let layers = heads.counts.iter().zip(widths).enumerate().map(|(layer, (&counts, width))| {
        let blind = second && layer % FULL_ATTENTION_PERIOD == FULL_ATTENTION_PERIOD - 1;
        LayerSpec {
            attention_norm: norm,
            attention: Attention::Grouped(GroupedAttention {
                head_norm: head_norm.then_some(HeadNorm::Weighted { norm, per_head: true }),
                rope: (!blind).then(|| rope.clone()),
                visibility: window.filter(|_| !blind).map_or(Visibility::All, Visibility::Window),
                ..heads.attention(counts)
            }),
            attention_post_norm: None,
            residual: Residual::Parallel,
            feed_forward: FeedForward::Gated { width, activation: Activation::Silu, fused: false },
            feed_forward_post_norm: None,
        }
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
        head: HeadSpec { norm, tied: true, logit_scale },
    })
}

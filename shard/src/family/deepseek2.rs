//! DeepSeek V2, V2-Lite, V3, R1 and Kimi K2 (`general.architecture` = `deepseek2`).
//!
//! Latent attention, whose key and value matrices lie in two tensors in newer files and in one in older ones; after a
//! few dense layers a mixture of experts with a shared one. V2 gates by softmax; V3 by sigmoids, with a selection bias
//! and, in most models, groups. YaRN lets cosine and sine be and raises the scores' factor instead.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::model_file::Header;
use crate::spec::{
    Activation, Attention, ExpertGroups, Experts, Family, FeedForward, Gating, HeadSpec, LatentAttention,
    LatentLayout, LatentQuery, LayerSpec, ModelSpec, Norm, Residual, RopeDivisors, RopePairing, RopeScaling,
    Routing, Weighing,
};

const QUERY_RANK: &str = "attention.q_lora_rank";
const KEY_WIDTH_OF_HEADS: &str = "attention.key_length_mla";
const VALUE_WIDTH_OF_HEADS: &str = "attention.value_length_mla";
/// How many layers at the end predict tokens beyond the next.
const FURTHER_LAYERS: &str = "nextn_predict_layers";
const GATING: &str = "expert_gating_func";
/// What files write in that key.
const SOFTMAX: usize = 1;
const SIGMOID: usize = 2;
/// Files write the multiplier of YaRN's logarithm times this.
const MULTIPLIER_UNIT: f32 = 0.1;

/// Reads the spec of a DeepSeek V2 or V3 model.
pub(super) fn spec(header: &Header) -> Result<ModelSpec, SpecError> {
    let keys = Hyperparameters::new(header, "deepseek2");
    let sizes = parts::sizes(&keys)?;
    let skipped_layers = match keys.count(FURTHER_LAYERS, 0..=sizes.layers as u64 - 1)? {
        None if header.tensor(&format!("blk.{}.nextn.eh_proj.weight", sizes.layers - 1)).is_some() => {
            return Err(keys.missing(FURTHER_LAYERS));
        }
        layers => layers.unwrap_or(0),
    };
    let run = sizes.layers - skipped_layers;
    let norm = Norm::Rms { epsilon: parts::epsilon(&keys, "attention.layer_norm_rms_epsilon")? };
    let attention = attention(&keys, norm)?;
    let dense = keys.required("leading_dense_block_count", 0..=run as u64)?;
    let widths = parts::feed_forward_widths(&keys, sizes.layers)?;
    let experts = experts(&keys, dense)?;
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
    let mut rope = parts::rope(keys, key_width, RopePairing::Adjacent)?;
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
    let factor = match rope.scaling {
        RopeScaling::None => rope.magnitude,
        RopeScaling::Linear { .. } => {
            return Err(keys.unsupported("rope.scaling.type", "linear", ": only `none` and `yarn` are"));
        }
        RopeScaling::Yarn { .. } => {
            let name = "rope.scaling.yarn_log_multiplier";
            let multiplier = keys.number(name)?.ok_or_else(|| keys.missing(name))?;
            if multiplier <= 0.0 {
                return Err(keys.invalid(name, multiplier, "it must be above 0"));
            }
            // YaRN's magnitude is not for cosine and sine here.
            rope.magnitude /= parts::yarn_magnitude(rope.scaling, 1.0);
            rope.magnitude * parts::yarn_magnitude(rope.scaling, multiplier / MULTIPLIER_UNIT)
        }
    };
    Ok(LatentAttention {
        heads,
        rank,
        plain_width: key_width - rope.width,
        value_width,
        scale: factor * factor / (key_width as f32).sqrt(),
        query,
        norm,
        rope,
        layout,
    })
}

fn experts(keys: &Hyperparameters<'_>, dense: usize) -> Result<Experts, SpecError> {
    let (count, used) = parts::expert_counts(keys)?.ok_or_else(|| keys.missing("expert_count"))?;
    let width = keys.required("expert_feed_forward_length", 1..=parts::MAX_FEED_FORWARD)?;
    let shared = keys.required("expert_shared_count", 1..=parts::MAX_EXPERTS)?;
    let selection_bias = keys.header.tensor(&format!("blk.{dense}.exp_probs_b.bias")).is_some();
    let gating = match keys.count(GATING, 0..=u64::MAX)? {
        // Files of V2 say nothing, and have no bias.
        None if selection_bias => return Err(keys.missing(GATING)),
        None | Some(SOFTMAX) => Gating::Softmax,
        Some(SIGMOID) => Gating::Sigmoid,
        Some(other) => return Err(keys.unsupported(GATING, other, ": only softmax, 1, and sigmoid, 2, are")),
    };
    let renormalised = keys.flag("expert_weights_norm")?;
    let scale = keys.number("expert_weights_scale")?.ok_or_else(|| keys.missing("expert_weights_scale"))?;
    Ok(Experts {
        count,
        used,
        width,
        activation: Activation::Silu,
        routing: Routing {
            gating,
            selection_bias: selection_bias || gating == Gating::Sigmoid,
            groups: groups(keys, count, used)?,
            renormalised: match (gating, renormalised) {
                (_, Some(renormalised)) => renormalised,
                (Gating::Softmax, None) => false,
                (Gating::Sigmoid, None) => return Err(keys.missing("expert_weights_norm")),
            },
            // Files write 0 for no factor.
            scale: if scale == 0.0 { 1.0 } else { scale },
            weighing: Weighing::Outputs,
        },
        shared_width: Some(shared * width),
        biases: false,
    })
}

/// The groups that a choice of experts is limited to; one group is no limit.
fn groups(
    keys: &Hyperparameters<'_>,
    experts: usize,
    taken: usize,
) -> Result<Option<ExpertGroups>, SpecError> {
    let (count_key, used_key) = ("expert_group_count", "expert_group_used_count");
    let count = keys.count(count_key, 0..=parts::MAX_EXPERTS)?;
    let used = keys.count(used_key, 0..=parts::MAX_EXPERTS)?;
    let (count, used) = match (count, used) {
        (None, None) => return Ok(None),
        (Some(count), Some(used)) => (count, used),
        (None, Some(_)) => return Err(keys.missing(count_key)),
        (Some(_), None) => return Err(keys.missing(used_key)),
    };
    if count <= 1 {
        return Ok(None);
    }
    if !experts.is_multiple_of(count) || experts / count < 2 {
        let wanted =
            format!("it must divide the number of experts, {experts}, with at least two in each group");
        return Err(keys.invalid(count_key, count, &wanted));
    }
    if !(1..=count).contains(&used) || used * (experts / count) < taken {
        let wanted = format!("it must be at most {count}, and hold the {taken} experts that a token takes");
        return Err(keys.invalid(used_key, used, &wanted));
    }
    Ok(Some(ExpertGroups { count, used }))
}

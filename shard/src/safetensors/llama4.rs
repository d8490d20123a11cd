//! Llama 4, by itself or as the text part of a model that sees images, too.

use serde_json::{Value as Json, json};

use super::families::{
    ATTENTION, FEED_FORWARD_NORM, HeadWidth, Names, Nested, Sizes, kv_heads, rms_norm, rope, silu, sizes,
};
use super::fused::{Form, Fused, Order};
use super::translation::{Translation, count_of, missing, unsupported, wrong};
use crate::model_file::{Problem, Value};

/// The tensors of Llama 4 that are as GGUF files have them.
pub(super) const NAMES: &[Names] = &[
    ATTENTION,
    FEED_FORWARD_NORM,
    &[
        ("ffn_gate.weight", "feed_forward.gate_proj.weight"),
        ("ffn_up.weight", "feed_forward.up_proj.weight"),
        ("ffn_down.weight", "feed_forward.down_proj.weight"),
        ("ffn_gate_inp.weight", "feed_forward.router.weight"),
        ("ffn_gate_shexp.weight", "feed_forward.shared_expert.gate_proj.weight"),
        ("ffn_up_shexp.weight", "feed_forward.shared_expert.up_proj.weight"),
        ("ffn_down_shexp.weight", "feed_forward.shared_expert.down_proj.weight"),
    ],
];

/// Those that are not.
pub(super) const FUSED: &[Fused] = &[
    Fused {
        theirs: "feed_forward.experts.gate_up_proj",
        ours: &["ffn_gate_exps.weight", "ffn_up_exps.weight"],
        form: Form::Transposed,
        order: Order::OneByOne,
    },
    Fused {
        theirs: "feed_forward.experts.down_proj",
        ours: &["ffn_down_exps.weight"],
        form: Form::Transposed,
        order: Order::OneByOne,
    },
];

/// Where the text part of a model is that sees images, too.
pub(super) const TEXT_PART: Nested = Nested {
    settings: "text_config",
    prefixes: &[("language_model.", "")],
    other_settings: &["vision_config", "boi_token_index", "eoi_token_index", "image_token_index"],
    other_tensors: &["vision_model.", "multi_modal_projector."],
    fill_in: |_| {},
};

/// Translates the configuration.
pub(super) fn translate(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Stated)?;
    kv_heads(t)?;
    rms_norm(t)?;
    silu(t)?;
    t.allow("attention_bias", &json!(false))?;
    t.allow("for_llm_compressor", &json!(false))?;
    t.pass_count("intermediate_size", "expert_feed_forward_length")?;
    t.pass_count("intermediate_size_mlp", "feed_forward_length")?;
    t.pass_count("num_local_experts", "expert_count")?;
    t.pass_count("num_experts_per_tok", "expert_used_count")?;
    experts_of_layers(t, &sizes)?;
    kinds_of_layers(t, &sizes)?;
    t.pass_count("attention_chunk_size", "attention.chunk_size")?;
    let key = "use_qk_norm";
    let head_norm = t.optional_flag(key)?.ok_or_else(|| missing(key))?;
    t.put(key, "attention.head_norm", Value::Bool(head_norm));
    temperature(t)?;
    rope(t, &sizes, false)
}

/// One layer of so many has experts; a list of them must say the same.
fn experts_of_layers(t: &mut Translation<'_>, sizes: &Sizes) -> Result<(), Problem> {
    let step = t.pass_count("interleave_moe_layer_step", "interleave_moe_layer_step")?;
    let key = "moe_layers";
    let Some(listed) = t.get(key) else {
        return Ok(());
    };
    let layers = (0..sizes.layers).filter(|layer| step > 0 && (layer + 1) % step == 0);
    match *listed == json!(layers.collect::<Vec<_>>()) {
        true => Ok(()),
        false => {
            let hint = format!(": only every layer that `interleave_moe_layer_step`, {step}, names is");
            Err(unsupported(key, listed, &hint))
        }
    }
}

/// One layer of so many has no rope and sees all positions; a list has a 0 for each of those, or is empty.
fn kinds_of_layers(t: &mut Translation<'_>, sizes: &Sizes) -> Result<(), Problem> {
    let (list, interval) = ("no_rope_layers", "no_rope_layer_interval");
    let stated = t.optional_count(interval)?;
    let listed = match t.get(list) {
        Some(value) => Some(value.as_array().ok_or_else(|| wrong(list, value, "an array"))?.as_slice()),
        None => None,
    };
    let period = match listed {
        None | Some([]) => stated.unwrap_or(PERIOD),
        Some(turned) => {
            if turned.len() as u64 != sizes.layers {
                let wanted = format!("one entry for each of the {} layers", sizes.layers);
                return Err(wrong(list, &json!(turned), &wanted));
            }
            let first = turned.iter().position(|turned| *turned == json!(0));
            let period = first.map_or(sizes.layers + 1, |first| first as u64 + 1);
            let wanted = (1..=sizes.layers).map(|layer| u64::from(layer % period != 0));
            if !turned.iter().zip(wanted).all(|(found, wanted)| *found == json!(wanted)) {
                return Err(unsupported(list, json!(turned), ": only a 0 at even distances is"));
            }
            period
        }
    };
    if period == 0 {
        return Err(wrong(interval, &json!(0), "at least 1"));
    }
    t.put(list, "attention.full_period", Value::Unsigned(period));
    t.layer_types(sizes.layers, |layer| match (layer + 1) % period {
        0 => "full_attention",
        _ => "chunked_attention",
    })?;
    Ok(())
}

/// One layer of so many has no rope where the configuration does not say: published files rely on it.
const PERIOD: u64 = 4;

/// How queries without rope get sharper with their position, if they do. Published files may rely on what the class does,
/// which is what GGUF files rely on, too.
fn temperature(t: &mut Translation<'_>) -> Result<(), Problem> {
    let key = "attn_temperature_tuning";
    let tuned = match t.get(key) {
        None => None,
        Some(Json::Bool(tuned)) => Some(*tuned),
        // Older files have a number.
        Some(number) => Some(count_of(key, number)? > 0),
    };
    if let Some(tuned) = tuned {
        t.put(key, "attention.temperature", Value::Bool(tuned));
    }
    if let Some(period) = t.optional_count("floor_scale")? {
        t.put("floor_scale", "attention.temperature_period", Value::Unsigned(period));
    }
    if let Some(scale) = t.optional_number("attn_scale")? {
        t.put("attn_scale", "attention.temperature_scale", Value::Float(scale));
    }
    Ok(())
}

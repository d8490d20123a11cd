//! Gemma 3, by itself or as the text part of a model that sees images, too.

use serde_json::{Map, Value as Json, json};

use super::families::{
    ATTENTION, FEED_FORWARD, HEAD_NORMS, HeadWidth, Names, Nested, PATTERNS, kv_heads, periodic_windows,
    rms_norm, sizes,
};
use super::rope::RopeRules;
use super::translation::{Translation, wrong};
use crate::model_file::{Problem, Value};

/// The tensors of Gemma 3.
pub(super) const NAMES: &[Names] = &[
    ATTENTION,
    HEAD_NORMS,
    &[
        ("post_attention_norm.weight", "post_attention_layernorm.weight"),
        ("ffn_norm.weight", "pre_feedforward_layernorm.weight"),
        ("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
    ],
    FEED_FORWARD,
];

/// Where the text part of a model is that sees images, too, as it is published.
pub(super) const TEXT_PART: Nested = Nested {
    settings: "text_config",
    prefixes: &[("language_model.", "")],
    other_settings: &[
        "vision_config",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "mm_tokens_per_image",
    ],
    other_tensors: &["vision_tower.", "multi_modal_projector."],
    fill_in,
};

/// The same, as newer versions of transformers name the tensors.
pub(super) const NEWER_TEXT_PART: Nested = Nested {
    prefixes: &[("model.language_model.", "model."), ("lm_head.", "lm_head.")],
    other_tensors: &["model.vision_tower.", "model.multi_modal_projector."],
    ..TEXT_PART
};

/// Layers of which the last sees all positions.
const PERIOD: u64 = 6;

/// Puts in what the class has where published settings of a text part say nothing.
fn fill_in(settings: &mut Map<String, Json>) {
    let mut usual = vec![
        ("attention_bias", json!(false)),
        ("head_dim", json!(256)),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("max_position_embeddings", json!(131_072)),
        ("num_attention_heads", json!(8)),
        ("num_key_value_heads", json!(4)),
        ("query_pre_attn_scalar", json!(256)),
        ("rms_norm_eps", json!(1e-6)),
        ("vocab_size", json!(262_208)),
    ];
    if !settings.contains_key("layer_types") && !PATTERNS.iter().any(|key| settings.contains_key(*key)) {
        usual.push((PATTERNS[0], json!(PERIOD)));
    }
    if !settings.contains_key("rope_parameters") {
        usual.extend([("rope_theta", json!(1e6)), ("rope_local_base_freq", json!(1e4))]);
    }
    for (key, value) in usual {
        settings.entry(key).or_insert(value);
    }
}

/// Translates the configuration.
pub(super) fn translate(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Stated)?;
    kv_heads(t)?;
    rms_norm(t)?;
    t.require("hidden_activation", &json!("gelu_pytorch_tanh"))?;
    t.allow("hidden_act", &json!("gelu_pytorch_tanh"))?;
    t.allow("attention_bias", &json!(false))?;
    t.allow("use_bidirectional_attention", &json!(false))?;
    t.allow("attn_logit_softcapping", &Json::Null)?;
    t.allow("final_logit_softcapping", &Json::Null)?;
    let key = "query_pre_attn_scalar";
    let scalar = t.number(key)?;
    if scalar <= 0.0 {
        return Err(wrong(key, &Json::from(scalar), "a number above 0"));
    }
    t.put(key, "attention.scale", Value::Float(1.0 / scalar.sqrt()));
    periodic_windows(t, &sizes, PERIOD, PATTERNS)?;
    let rules = RopeRules { width: sizes.head, base_may_be_missing: false, by_context: false, yarn: false };
    t.pass_two_ropes(&rules, sizes.context)
}

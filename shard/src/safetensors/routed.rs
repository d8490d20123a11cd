//! Classes whose experts are those of DeepSeek: gated one by one or together, chosen with a bias or from groups, beside a
//! shared one, after some layers without experts.

use serde_json::{Value as Json, json};

use super::families::{
    ATTENTION, BIASES, FEED_FORWARD, FEED_FORWARD_NORM, HEAD_NORMS, HeadWidth, Names, QWEN_EXPERTS, Sizes,
    common_sizes, kv_heads, rms_norm, rope, silu, sizes, turned_width,
};
use super::rope::RopeRules;
use super::translation::{Translation, missing, unsupported, wrong};
use crate::model_file::{Problem, Value};

/// Latent attention, whose keys and values are made by one matrix.
const LATENT: Names = &[
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_q_a.weight", "self_attn.q_a_proj.weight"),
    ("attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"),
    ("attn_q_b.weight", "self_attn.q_b_proj.weight"),
    ("attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"),
    ("attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"),
    ("attn_kv_b.weight", "self_attn.kv_b_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
];
const SHARED_EXPERT: Names = &[
    ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"),
    ("ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"),
    ("ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"),
];
/// What layers that predict tokens beyond the next have besides.
const FURTHER_PREDICTION: Names = &[
    ("nextn.eh_proj.weight", "eh_proj.weight"),
    ("nextn.enorm.weight", "enorm.weight"),
    ("nextn.hnorm.weight", "hnorm.weight"),
    ("nextn.embed_tokens.weight", "embed_tokens.weight"),
    ("nextn.shared_head_head.weight", "shared_head.head.weight"),
    ("nextn.shared_head_norm.weight", "shared_head.norm.weight"),
];
/// GLM's norm before the feed-forward has the name of the one after attention in GGUF files, too.
const GLM_FEED_FORWARD_NORM: Names = &[("post_attention_norm.weight", "post_attention_layernorm.weight")];

/// The tensors of DeepSeek's classes.
pub(super) const DEEPSEEK_NAMES: &[Names] =
    &[LATENT, FEED_FORWARD_NORM, FEED_FORWARD, QWEN_EXPERTS, SHARED_EXPERT, FURTHER_PREDICTION];
/// The tensors of GLM's class.
pub(super) const GLM_NAMES: &[Names] = &[
    ATTENTION,
    BIASES,
    HEAD_NORMS,
    GLM_FEED_FORWARD_NORM,
    FEED_FORWARD,
    QWEN_EXPERTS,
    SHARED_EXPERT,
    FURTHER_PREDICTION,
];

/// What GGUF files write for the functions that make gates of scores.
const SOFTMAX: u64 = 1;
const SIGMOID: u64 = 2;
/// The norms within latent attention have this epsilon, whatever the others have.
const LATENT_EPSILON: f64 = 1e-6;

/// Settings of the training that DeepSeek's files keep.
const OF_TRAINING: [&str; 3] = ["aux_loss_alpha", "ep_size", "seq_aux"];

/// DeepSeek V2 and V2-Lite.
pub(super) fn deepseek_v2(t: &mut Translation<'_>) -> Result<(), Problem> {
    deepseek(t)?;
    t.allow("mlp_bias", &json!(false))?;
    t.allow("scoring_func", &json!("softmax"))?;
    t.put("scoring_func", "expert_gating_func", Value::Unsigned(SOFTMAX));
    // The class knows no weights that are made to sum up to 1.
    t.require("norm_topk_prob", &json!(false))?;
    let key = "topk_method";
    match t.get(key).map(|method| (method, method.as_str())) {
        None => Err(missing(key)),
        Some((_, Some("greedy"))) => {
            t.ignore(&["n_group", "topk_group"]);
            Ok(())
        }
        Some((_, Some("group_limited_greedy"))) => {
            t.put(key, "expert_groups_by_best", Value::Bool(true));
            groups(t)
        }
        Some((method, _)) => {
            let hint = ": only \"greedy\" and \"group_limited_greedy\" are";
            Err(unsupported(key, method, hint))
        }
    }
}

/// DeepSeek V3 and R1, Kimi K2, and others of their kind.
pub(super) fn deepseek_v3(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = deepseek(t)?;
    further_prediction(t, &sizes)?;
    if t.optional_flag("rope_interleave")? == Some(false) {
        t.put("rope_interleave", "rope.interleaved", Value::Bool(false));
    }
    sigmoid_experts(t)
}

/// GLM 4.5 and 4.6.
pub(super) fn glm4_moe(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Stated)?;
    kv_heads(t)?;
    rms_norm(t)?;
    silu(t)?;
    for (key, name) in [("attention_bias", "attention.bias"), ("use_qk_norm", "attention.head_norm")] {
        let there = t.optional_flag(key)?.ok_or_else(|| missing(key))?;
        t.put(key, name, Value::Bool(there));
    }
    let key = "partial_rotary_factor";
    let width = turned_width(t, &sizes)?.ok_or_else(|| Problem::MissingEither {
        first: key.to_owned(),
        second: "rope_parameters".to_owned(),
    })?;
    t.put(key, "rope.dimension_count", Value::Unsigned(width));
    further_prediction(t, &sizes)?;
    experts(t)?;
    sigmoid_experts(t)?;
    rope(t, &Sizes { head: width, ..sizes }, true)
}

/// What DeepSeek's classes have in common.
fn deepseek(t: &mut Translation<'_>) -> Result<Sizes, Problem> {
    let sizes = common_sizes(t)?;
    kv_heads(t)?;
    rms_norm(t)?;
    silu(t)?;
    t.ignore(&OF_TRAINING);
    t.allow("attention_bias", &json!(false))?;
    let plain = t.count("qk_nope_head_dim")?;
    let turned = t.pass_count("qk_rope_head_dim", "rope.dimension_count")?;
    let width = plain.saturating_add(turned);
    t.put("qk_nope_head_dim", "attention.key_length", Value::Unsigned(width));
    t.pass_count("v_head_dim", "attention.value_length")?;
    t.pass_count("kv_lora_rank", "attention.kv_lora_rank")?;
    // Null where queries are made by one matrix.
    let key = "q_lora_rank";
    if !t.states(key) {
        return Err(missing(key));
    }
    if let Some(rank) = t.optional_count(key)? {
        t.put(key, "attention.q_lora_rank", Value::Unsigned(rank));
    }
    // Newer files repeat the widths.
    t.allow("qk_head_dim", &json!(width))?;
    t.allow("head_dim", &json!(turned))?;
    t.put("rms_norm_eps", "attention.latent_norm_epsilon", Value::Float(LATENT_EPSILON));
    let scale = t.factor_on_scores()? / (width as f64).sqrt();
    t.put("qk_nope_head_dim", "attention.scale", Value::Float(scale));
    let rules = RopeRules { width: turned, base_may_be_missing: false, by_context: false, yarn: true };
    t.pass_rope(&rules, sizes.context)?;
    t.allow("moe_layer_freq", &json!(1))?;
    experts(t)?;
    Ok(sizes)
}

/// Passes on which layers have experts, how many there are, and their widths.
fn experts(t: &mut Translation<'_>) -> Result<(), Problem> {
    t.pass_count("first_k_dense_replace", "leading_dense_block_count")?;
    t.pass_count("n_routed_experts", "expert_count")?;
    t.pass_count("num_experts_per_tok", "expert_used_count")?;
    t.pass_count("n_shared_experts", "expert_shared_count")?;
    t.pass_count("moe_intermediate_size", "expert_feed_forward_length")?;
    let key = "routed_scaling_factor";
    let factor = t.number(key)?;
    if factor <= 0.0 {
        return Err(wrong(key, &Json::from(factor), "a number above 0"));
    }
    t.put(key, "expert_weights_scale", Value::Float(factor));
    Ok(())
}

/// Passes on how experts are chosen by sigmoids with a bias.
fn sigmoid_experts(t: &mut Translation<'_>) -> Result<(), Problem> {
    t.allow("scoring_func", &json!("sigmoid"))?;
    t.allow("topk_method", &json!("noaux_tc"))?;
    t.put("scoring_func", "expert_gating_func", Value::Unsigned(SIGMOID));
    let key = "norm_topk_prob";
    let renormalised = t.optional_flag(key)?.ok_or_else(|| missing(key))?;
    t.put(key, "expert_weights_norm", Value::Bool(renormalised));
    groups(t)
}

fn groups(t: &mut Translation<'_>) -> Result<(), Problem> {
    t.pass_count("n_group", "expert_group_count")?;
    t.pass_count("topk_group", "expert_group_used_count").map(|_| ())
}

/// Passes on how many layers come after those that the configuration counts, to predict tokens beyond the next.
fn further_prediction(t: &mut Translation<'_>, sizes: &Sizes) -> Result<(), Problem> {
    let key = "num_nextn_predict_layers";
    let further = t.pass_count(key, "nextn_predict_layers")?;
    let layers = sizes.layers.saturating_add(further);
    t.put("num_hidden_layers", "block_count", Value::Unsigned(layers));
    Ok(())
}

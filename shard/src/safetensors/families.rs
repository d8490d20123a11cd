//! The families that can be run from safetensors: which keys of `config.json` are which hyper-parameters, and how the
//! tensors are called. What the keys mean is that of the class of Hugging Face's transformers that they are written for.

use serde_json::{Map, Value as Json, json};

use super::fused::Fused;
use super::gemma3;
use super::gpt_oss;
use super::llama4;
use super::rope::RopeRules;
use super::routed;
use super::translation::{Translation, missing, unsupported, wrong};
use crate::model_file::{Meaning, Problem, Value};

/// Names of tensors: as GGUF files have them, and as safetensors do. In both, those of a layer stand after its number.
pub(super) type Names = &'static [(&'static str, &'static str)];

/// A family, found by the class that `config.json` names.
#[derive(Debug)]
pub(super) struct Family {
    /// `architectures[0]`.
    pub(super) class: &'static str,
    /// What GGUF files call it; its parser reads the hyper-parameters.
    pub(super) architecture: &'static str,
    /// The tensors of its layers.
    pub(super) names: &'static [Names],
    /// The tensors of its layers that hold several, or another order.
    pub(super) fused: &'static [Fused],
    /// Where it is where it is a part of a model.
    pub(super) nested: Option<Nested>,
    /// Whether its experts may be in MXFP4.
    pub(super) mxfp4: bool,
    /// What the weights of its norms are.
    pub(super) norms: Meaning,
    /// Whether the output matrix is the token embedding where the file does not say.
    pub(super) tied: bool,
    /// Translates the configuration.
    pub(super) translate: fn(&mut Translation<'_>) -> Result<(), Problem>,
}

/// A model of text as a part of one that knows other media, too.
#[derive(Debug)]
pub(super) struct Nested {
    /// The object of `config.json` with its settings.
    pub(super) settings: &'static str,
    /// What its tensors' names begin with, and what they would begin with where it is whole.
    pub(super) prefixes: &'static [(&'static str, &'static str)],
    /// Settings of the other parts.
    pub(super) other_settings: &'static [&'static str],
    /// What the names of the other parts' tensors begin with.
    pub(super) other_tensors: &'static [&'static str],
    /// Puts in what the class has where published settings say nothing.
    pub(super) fill_in: fn(&mut Map<String, Json>),
}

/// Tensors outside the layers, in every family.
pub(super) const ENDS: Names = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];
/// Before the number of a layer: in GGUF files, and in safetensors.
pub(super) const LAYER_PREFIXES: (&str, &str) = ("blk.", "model.layers.");

pub(super) const ATTENTION: Names = &[
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
];
pub(super) const BIASES: Names = &[
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
];
pub(super) const HEAD_NORMS: Names =
    &[("attn_q_norm.weight", "self_attn.q_norm.weight"), ("attn_k_norm.weight", "self_attn.k_norm.weight")];
pub(super) const FEED_FORWARD_NORM: Names = &[("ffn_norm.weight", "post_attention_layernorm.weight")];
pub(super) const FEED_FORWARD: Names = &[
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];
const FUSED: Names = &[
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_qkv.weight", "self_attn.qkv_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_up.weight", "mlp.gate_up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];
/// A star stands for the number of an expert.
const MIXTRAL_EXPERTS: Names = &[
    ("ffn_gate_inp.weight", "block_sparse_moe.gate.weight"),
    ("ffn_gate_exps.weight", "block_sparse_moe.experts.*.w1.weight"),
    ("ffn_up_exps.weight", "block_sparse_moe.experts.*.w3.weight"),
    ("ffn_down_exps.weight", "block_sparse_moe.experts.*.w2.weight"),
];
pub(super) const QWEN_EXPERTS: Names = &[
    ("ffn_gate_inp.weight", "mlp.gate.weight"),
    ("ffn_gate_exps.weight", "mlp.experts.*.gate_proj.weight"),
    ("ffn_up_exps.weight", "mlp.experts.*.up_proj.weight"),
    ("ffn_down_exps.weight", "mlp.experts.*.down_proj.weight"),
];

/// A family as most are.
const PLAIN: Family = Family {
    class: "",
    architecture: "llama",
    names: &[ATTENTION, FEED_FORWARD_NORM, FEED_FORWARD],
    fused: &[],
    nested: None,
    mxfp4: false,
    norms: Meaning::Exact,
    tied: false,
    translate: llama,
};

const GEMMA3: Family = Family {
    class: "Gemma3ForCausalLM",
    architecture: "gemma3",
    names: gemma3::NAMES,
    norms: Meaning::LessOne,
    tied: true,
    translate: gemma3::translate,
    ..PLAIN
};

const LLAMA4: Family = Family {
    class: "Llama4ForCausalLM",
    architecture: "llama4",
    names: llama4::NAMES,
    fused: llama4::FUSED,
    translate: llama4::translate,
    ..PLAIN
};

/// All families. Those of one class differ in where their text part is only.
pub(super) const FAMILIES: [Family; 18] = [
    Family { class: "LlamaForCausalLM", ..PLAIN },
    Family { class: "MistralForCausalLM", translate: mistral, ..PLAIN },
    Family {
        class: "MixtralForCausalLM",
        names: &[ATTENTION, FEED_FORWARD_NORM, MIXTRAL_EXPERTS],
        translate: mixtral,
        ..PLAIN
    },
    Family {
        class: "Qwen2ForCausalLM",
        architecture: "qwen2",
        names: &[ATTENTION, BIASES, FEED_FORWARD_NORM, FEED_FORWARD],
        translate: qwen2,
        ..PLAIN
    },
    Family {
        class: "Qwen3ForCausalLM",
        architecture: "qwen3",
        names: &[ATTENTION, HEAD_NORMS, FEED_FORWARD_NORM, FEED_FORWARD],
        translate: qwen3,
        ..PLAIN
    },
    Family {
        class: "Qwen3MoeForCausalLM",
        architecture: "qwen3moe",
        names: &[ATTENTION, HEAD_NORMS, FEED_FORWARD_NORM, QWEN_EXPERTS],
        translate: qwen3_moe,
        ..PLAIN
    },
    Family {
        class: "Phi3ForCausalLM",
        architecture: "phi3",
        names: &[FUSED, FEED_FORWARD_NORM],
        translate: phi3,
        ..PLAIN
    },
    GEMMA3,
    Family { class: "Gemma3ForConditionalGeneration", nested: Some(gemma3::TEXT_PART), ..GEMMA3 },
    Family { class: "Gemma3ForConditionalGeneration", nested: Some(gemma3::NEWER_TEXT_PART), ..GEMMA3 },
    Family {
        class: "CohereForCausalLM",
        architecture: "command-r",
        names: &[ATTENTION, HEAD_NORMS, FEED_FORWARD],
        tied: true,
        translate: cohere,
        ..PLAIN
    },
    Family {
        class: "Cohere2ForCausalLM",
        architecture: "cohere2",
        names: &[ATTENTION, FEED_FORWARD],
        tied: true,
        translate: cohere2,
        ..PLAIN
    },
    Family {
        class: "DeepseekV2ForCausalLM",
        architecture: "deepseek2",
        names: routed::DEEPSEEK_NAMES,
        translate: routed::deepseek_v2,
        ..PLAIN
    },
    Family {
        class: "DeepseekV3ForCausalLM",
        architecture: "deepseek2",
        names: routed::DEEPSEEK_NAMES,
        translate: routed::deepseek_v3,
        ..PLAIN
    },
    Family {
        class: "Glm4MoeForCausalLM",
        architecture: "glm4moe",
        names: routed::GLM_NAMES,
        translate: routed::glm4_moe,
        ..PLAIN
    },
    Family {
        class: "GptOssForCausalLM",
        architecture: "gpt-oss",
        names: gpt_oss::NAMES,
        fused: gpt_oss::FUSED,
        mxfp4: true,
        translate: gpt_oss::translate,
        ..PLAIN
    },
    LLAMA4,
    Family { class: "Llama4ForConditionalGeneration", nested: Some(llama4::TEXT_PART), ..LLAMA4 },
];

/// What every family's parser needs.
pub(super) struct Sizes {
    pub(super) layers: u64,
    pub(super) context: u64,
    /// Width of a query head.
    pub(super) head: u64,
}

/// Whether the width of a head must be stated.
#[derive(PartialEq)]
pub(super) enum HeadWidth {
    Stated,
    /// Where it is not stated, hidden / heads.
    Derived,
}

/// Passes the sizes on that no kind of attention changes; the width of a head is that of hidden / heads.
pub(super) fn common_sizes(t: &mut Translation<'_>) -> Result<Sizes, Problem> {
    let hidden = t.pass_count("hidden_size", "embedding_length")?;
    let layers = t.pass_count("num_hidden_layers", "block_count")?;
    let context = t.pass_count("max_position_embeddings", "context_length")?;
    t.pass_count("intermediate_size", "feed_forward_length")?;
    t.pass_count("vocab_size", "vocab_size")?;
    let heads = t.pass_count("num_attention_heads", "attention.head_count")?;
    t.allow("is_encoder_decoder", &json!(false))?;
    t.allow("add_cross_attention", &json!(false))?;
    t.allow("pruned_heads", &json!({}))?;
    Ok(Sizes { layers, context, head: hidden.checked_div(heads).unwrap_or(0) })
}

pub(super) fn sizes(t: &mut Translation<'_>, width: HeadWidth) -> Result<Sizes, Problem> {
    let sizes = common_sizes(t)?;
    let head = match t.optional_count("head_dim")? {
        Some(head) => {
            t.put("head_dim", "attention.key_length", Value::Unsigned(head));
            t.put("head_dim", "attention.value_length", Value::Unsigned(head));
            head
        }
        None if width == HeadWidth::Stated => return Err(missing("head_dim")),
        None => sizes.head,
    };
    Ok(Sizes { head, ..sizes })
}

pub(super) fn kv_heads(t: &mut Translation<'_>) -> Result<(), Problem> {
    t.pass_count("num_key_value_heads", "attention.head_count_kv").map(|_| ())
}

pub(super) fn rms_norm(t: &mut Translation<'_>) -> Result<(), Problem> {
    t.pass_number("rms_norm_eps", "attention.layer_norm_rms_epsilon")
}

pub(super) fn silu(t: &mut Translation<'_>) -> Result<(), Problem> {
    t.require("hidden_act", &json!("silu"))
}

pub(super) fn rope(t: &mut Translation<'_>, sizes: &Sizes, yarn: bool) -> Result<(), Problem> {
    let rules = RopeRules { width: sizes.head, base_may_be_missing: false, by_context: false, yarn };
    t.pass_rope(&rules, sizes.context)
}

fn all_layers_see_everything(t: &mut Translation<'_>, sizes: &Sizes) -> Result<(), Problem> {
    t.layer_types(sizes.layers, |_| "full_attention").map(|_| ())
}

/// Windows that are there only where a flag asks for them.
fn refuse_used_window(t: &mut Translation<'_>) -> Result<(), Problem> {
    t.allow("use_sliding_window", &json!(false))?;
    t.ignore(&["sliding_window"]);
    Ok(())
}

/// A window on all layers.
fn pass_window(t: &mut Translation<'_>) -> Result<(), Problem> {
    if let Some(window) = t.optional_count("sliding_window")? {
        t.put("sliding_window", "attention.sliding_window", Value::Unsigned(window));
    }
    Ok(())
}

fn llama(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Derived)?;
    // As many as query heads where the file does not say, which is how the first Llamas do it; nor do they state a base.
    if let Some(heads) = t.optional_count("num_key_value_heads")? {
        t.put("num_key_value_heads", "attention.head_count_kv", Value::Unsigned(heads));
    }
    rms_norm(t)?;
    silu(t)?;
    t.allow("attention_bias", &json!(false))?;
    t.allow("mlp_bias", &json!(false))?;
    all_layers_see_everything(t, &sizes)?;
    let rules = RopeRules { width: sizes.head, base_may_be_missing: true, by_context: false, yarn: true };
    t.pass_rope(&rules, sizes.context)
}

fn mistral(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Derived)?;
    kv_heads(t)?;
    rms_norm(t)?;
    silu(t)?;
    pass_window(t)?;
    rope(t, &sizes, true)
}

fn mixtral(t: &mut Translation<'_>) -> Result<(), Problem> {
    mistral(t)?;
    t.pass_count("num_local_experts", "expert_count")?;
    t.pass_count("num_experts_per_tok", "expert_used_count").map(|_| ())
}

fn qwen2(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Derived)?;
    qwen(t, &sizes)
}

fn qwen3(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Stated)?;
    t.allow("attention_bias", &json!(false))?;
    qwen(t, &sizes)
}

fn qwen3_moe(t: &mut Translation<'_>) -> Result<(), Problem> {
    qwen3(t)?;
    t.pass_count("num_experts", "expert_count")?;
    t.pass_count("num_experts_per_tok", "expert_used_count")?;
    t.pass_count("moe_intermediate_size", "expert_feed_forward_length")?;
    t.require("norm_topk_prob", &json!(true))?;
    t.allow("decoder_sparse_step", &json!(1))?;
    t.allow("mlp_only_layers", &json!([]))?;
    t.allow("shared_expert_intermediate_size", &json!(0))?;
    t.allow("use_qk_norm", &json!(true))?;
    t.allow("qkv_bias", &json!(false))
}

fn qwen(t: &mut Translation<'_>, sizes: &Sizes) -> Result<(), Problem> {
    kv_heads(t)?;
    rms_norm(t)?;
    silu(t)?;
    refuse_used_window(t)?;
    all_layers_see_everything(t, sizes)?;
    rope(t, sizes, true)
}

/// Width of the part of a head that is turned; `None` where the configuration does not say.
pub(super) fn turned_width(t: &mut Translation<'_>, sizes: &Sizes) -> Result<Option<u64>, Problem> {
    let name = "partial_rotary_factor";
    let inside = t.get("rope_parameters").and_then(|rope| rope.get(name));
    let share = match inside {
        Some(share) => Some(super::translation::number_of("rope_parameters.partial_rotary_factor", share)?),
        None => t.optional_number(name)?,
    };
    t.ignore(&[name]);
    match share {
        Some(share) if !(share > 0.0 && share <= 1.0) => {
            Err(wrong(name, &Json::from(share), "a number above 0 and up to 1"))
        }
        share => Ok(share.map(|share| (sizes.head as f64 * share) as u64)),
    }
}

fn phi3(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Derived)?;
    kv_heads(t)?;
    rms_norm(t)?;
    silu(t)?;
    pass_window(t)?;
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        t.allow(key, &json!(false))?;
    }
    for key in ["full_attn_mod", "interpolate_factor"] {
        t.allow(key, &json!(1))?;
    }
    let width = turned_width(t, &sizes)?.unwrap_or(sizes.head);
    t.put("partial_rotary_factor", "rope.dimension_count", Value::Unsigned(width));
    t.ignore(&["original_max_position_embeddings"]);
    let rules = RopeRules { width, base_may_be_missing: false, by_context: true, yarn: false };
    t.pass_rope(&rules, sizes.context)
}

/// Layers of Cohere 2 of which the last sees all positions.
const COHERE_PERIOD: u64 = 4;

/// Keys that state a number of layers of which the last sees all positions.
pub(super) const PATTERNS: &[&str] = &["sliding_window_pattern", "_sliding_window_pattern"];

/// Windows on all but the last of `period` layers, which `layer_types` or one of `patterns` must say.
pub(super) fn periodic_windows(
    t: &mut Translation<'_>,
    sizes: &Sizes,
    period: u64,
    patterns: &[&str],
) -> Result<(), Problem> {
    t.pass_count("sliding_window", "attention.sliding_window")?;
    let listed = t.layer_types(sizes.layers, |layer| match layer % period == period - 1 {
        true => "full_attention",
        false => "sliding_attention",
    })?;
    if !listed && !patterns.iter().any(|key| t.states(key)) {
        let (first, second) = ("sliding_window_pattern".to_owned(), "layer_types".to_owned());
        return Err(Problem::MissingEither { first, second });
    }
    patterns.iter().try_for_each(|key| t.allow(key, &json!(period)))
}

fn cohere(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = any_cohere(t)?;
    // The first files are older than the key, and than the norms.
    let norms = t.optional_flag("use_qk_norm")?.unwrap_or(false);
    t.put("use_qk_norm", "attention.head_norm", Value::Bool(norms));
    rope(t, &sizes, false)
}

fn cohere2(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = any_cohere(t)?;
    // The oldest files have a number under a name that the class takes no notice of: what it does is what they say.
    let patterns = [PATTERNS, &["layer_switch"]].concat();
    periodic_windows(t, &sizes, COHERE_PERIOD, &patterns)?;
    for (key, only) in [
        ("order_of_interleaved_layers", json!("local_attn_first")),
        ("position_embedding_type", json!("rope_gptj")),
        ("rotary_pct", json!(1.0)),
        ("use_embedding_sharing", json!(true)),
        ("use_gated_activation", json!(true)),
        ("use_parallel_block", json!(true)),
        ("use_qk_norm", json!(false)),
    ] {
        t.allow(key, &only)?;
    }
    t.ignore(&["use_parallel_embedding"]);
    rope(t, &sizes, false)
}

fn any_cohere(t: &mut Translation<'_>) -> Result<Sizes, Problem> {
    let sizes = sizes(t, HeadWidth::Derived)?;
    kv_heads(t)?;
    t.pass_number("layer_norm_eps", "attention.layer_norm_epsilon")?;
    t.pass_number("logit_scale", "logit_scale")?;
    silu(t)?;
    t.allow("attention_bias", &json!(false))?;
    Ok(sizes)
}

/// Refuses weights that are kept in a form of their own.
pub(super) fn refuse_quantised(t: &mut Translation<'_>, family: &Family) -> Result<(), Problem> {
    let Some(value) = t.get("quantization_config") else {
        return Ok(());
    };
    let method = value.get("quant_method").and_then(Json::as_str).unwrap_or("some method");
    if family.mxfp4 && method == "mxfp4" {
        return Ok(());
    }
    let hint =
        ": weights quantised like this cannot be run; use a GGUF file of the model, or its BF16 weights";
    Err(unsupported("quantization_config", method, hint))
}

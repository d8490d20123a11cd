//! gpt-oss: experts in MXFP4, or transposed, with gates and ups in turn; biases and sinks.

use serde_json::json;

use super::families::{
    ATTENTION, BIASES, HeadWidth, Names, PATTERNS, kv_heads, periodic_windows, rms_norm, rope, silu, sizes,
};
use super::fused::{Form, Fused, Order};
use super::translation::Translation;
use crate::model_file::Problem;

/// The tensors of gpt-oss that are as GGUF files have them.
pub(super) const NAMES: &[Names] = &[
    ATTENTION,
    BIASES,
    &[
        ("attn_output.bias", "self_attn.o_proj.bias"),
        ("attn_sinks.weight", "self_attn.sinks"),
        ("post_attention_norm.weight", "post_attention_layernorm.weight"),
        ("ffn_gate_inp.weight", "mlp.router.weight"),
        ("ffn_gate_inp.bias", "mlp.router.bias"),
        ("ffn_down_exps.bias", "mlp.experts.down_proj_bias"),
    ],
];

const GATES_AND_UPS: &[&str] = &["ffn_gate_exps.weight", "ffn_up_exps.weight"];
const DOWNS: &[&str] = &["ffn_down_exps.weight"];

/// Those that are not.
pub(super) const FUSED: &[Fused] = &[
    Fused {
        theirs: "mlp.experts.gate_up_proj",
        ours: GATES_AND_UPS,
        form: Form::Transposed,
        order: Order::InTurn,
    },
    Fused {
        theirs: "mlp.experts.gate_up_proj_blocks",
        ours: GATES_AND_UPS,
        form: Form::Blocks { scales: "mlp.experts.gate_up_proj_scales" },
        order: Order::InTurn,
    },
    Fused {
        theirs: "mlp.experts.gate_up_proj_bias",
        ours: &["ffn_gate_exps.bias", "ffn_up_exps.bias"],
        form: Form::Vectors,
        order: Order::InTurn,
    },
    Fused { theirs: "mlp.experts.down_proj", ours: DOWNS, form: Form::Transposed, order: Order::OneByOne },
    Fused {
        theirs: "mlp.experts.down_proj_blocks",
        ours: DOWNS,
        form: Form::Blocks { scales: "mlp.experts.down_proj_scales" },
        order: Order::OneByOne,
    },
];

/// Of so many layers, the last sees all positions.
const PERIOD: u64 = 2;

/// Translates the configuration.
pub(super) fn translate(t: &mut Translation<'_>) -> Result<(), Problem> {
    let sizes = sizes(t, HeadWidth::Stated)?;
    kv_heads(t)?;
    rms_norm(t)?;
    silu(t)?;
    t.require("attention_bias", &json!(true))?;
    periodic_windows(t, &sizes, PERIOD, PATTERNS)?;
    t.pass_count("num_local_experts", "expert_count")?;
    let used = t.pass_count("num_experts_per_tok", "expert_used_count")?;
    // Older files repeat it, and the context that YaRN began with.
    t.allow("experts_per_token", &json!(used))?;
    t.ignore(&["initial_context_length"]);
    t.pass_count("intermediate_size", "expert_feed_forward_length")?;
    // The activation's constants, which are those of every published model.
    t.allow("swiglu_limit", &json!(7.0))?;
    t.allow("swiglu_alpha", &json!(1.702))?;
    rope(t, &sizes, true)
}

//! The names of tensors in GGUF files, which families share.

use crate::tensors::{LayerRole, Role};

/// The name of the tensor that plays `role`.
pub(super) fn tensor_name(role: Role) -> String {
    let (layer, role) = match role {
        Role::TokenEmbedding => return "token_embd.weight".to_owned(),
        Role::OutputNorm => return "output_norm.weight".to_owned(),
        Role::Output => return "output.weight".to_owned(),
        Role::RopeFrequencies => return "rope_freqs.weight".to_owned(),
        Role::RopeLong => return "rope_factors_long.weight".to_owned(),
        Role::RopeShort => return "rope_factors_short.weight".to_owned(),
        Role::Layer(layer, role) => (layer, role),
    };
    let name = match role {
        LayerRole::AttentionNorm => "attn_norm.weight",
        LayerRole::Query => "attn_q.weight",
        LayerRole::QueryBias => "attn_q.bias",
        LayerRole::Key => "attn_k.weight",
        LayerRole::KeyBias => "attn_k.bias",
        LayerRole::Value => "attn_v.weight",
        LayerRole::ValueBias => "attn_v.bias",
        LayerRole::QueryDown => "attn_q_a.weight",
        LayerRole::QueryDownNorm => "attn_q_a_norm.weight",
        LayerRole::QueryUp => "attn_q_b.weight",
        LayerRole::LatentDown => "attn_kv_a_mqa.weight",
        LayerRole::LatentNorm => "attn_kv_a_norm.weight",
        LayerRole::KeyUp => "attn_k_b.weight",
        LayerRole::ValueUp => "attn_v_b.weight",
        LayerRole::KeyValueUp => "attn_kv_b.weight",
        LayerRole::QueryKeyValue => "attn_qkv.weight",
        LayerRole::QueryNorm => "attn_q_norm.weight",
        LayerRole::KeyNorm => "attn_k_norm.weight",
        LayerRole::Sinks => "attn_sinks.weight",
        LayerRole::AttentionOutput => "attn_output.weight",
        LayerRole::AttentionOutputBias => "attn_output.bias",
        LayerRole::AttentionPostNorm => "post_attention_norm.weight",
        LayerRole::FeedForwardNorm => "ffn_norm.weight",
        LayerRole::Gate => "ffn_gate.weight",
        // Where both are in one matrix, it has the name of the second.
        LayerRole::Up | LayerRole::GateUp => "ffn_up.weight",
        LayerRole::Down => "ffn_down.weight",
        LayerRole::Router => "ffn_gate_inp.weight",
        LayerRole::RouterBias => "ffn_gate_inp.bias",
        LayerRole::ExpertGates => "ffn_gate_exps.weight",
        LayerRole::ExpertGateBiases => "ffn_gate_exps.bias",
        LayerRole::ExpertUps => "ffn_up_exps.weight",
        LayerRole::ExpertUpBiases => "ffn_up_exps.bias",
        LayerRole::ExpertDowns => "ffn_down_exps.weight",
        LayerRole::ExpertDownBiases => "ffn_down_exps.bias",
        LayerRole::SelectionBias => "exp_probs_b.bias",
        LayerRole::SharedGate => "ffn_gate_shexp.weight",
        LayerRole::SharedUp => "ffn_up_shexp.weight",
        LayerRole::SharedDown => "ffn_down_shexp.weight",
        LayerRole::FeedForwardPostNorm => "post_ffw_norm.weight",
    };
    format!("blk.{layer}.{name}")
}

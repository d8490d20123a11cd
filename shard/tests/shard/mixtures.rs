//! Families whose layers differ: gpt-oss and Llama 4, from metadata to parts and what they take.

use brigade_shard::family::SpecError;
use brigade_shard::spec::{
    Activation, Attention, FeedForward, Gating, GroupedAttention, HeadNorm, ModelSpec, Visibility, Weighing,
};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::{TensorError, TensorTable};
use brigade_shard::units::Bytes;

use crate::gguf_writer::{Gguf, OnDisk};
use crate::tiny_llama;

const HIDDEN: u64 = 64;
const VOCAB: u64 = 40;
const EXPERTS: u64 = 5;
const EXPERT_WIDTH: u64 = 32;
/// 4 query heads and 2 key and value heads of 24.
const QUERY: u64 = 96;
const KV: u64 = 48;

/// What files of both families have in common; a tensor is added with its layer's prefix.
fn common(architecture: &str, layers: u32) -> Gguf {
    let key = |name: &str| format!("{architecture}.{name}");
    let mut file = Gguf::default()
        .key("general.architecture", architecture)
        .key(&key("context_length"), 256)
        .key(&key("embedding_length"), HIDDEN as u32)
        .key(&key("block_count"), layers)
        .key(&key("feed_forward_length"), 96)
        .key(&key("attention.head_count"), 4)
        .key(&key("attention.head_count_kv"), 2)
        .key(&key("attention.key_length"), 24)
        .key(&key("attention.value_length"), 24)
        .key(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .key(&key("rope.freq_base"), 10000.0)
        .key(&key("expert_count"), EXPERTS as u32)
        .key(&key("expert_used_count"), 2)
        .key(&key("expert_feed_forward_length"), EXPERT_WIDTH as u32)
        .tensor("token_embd.weight", &[HIDDEN, VOCAB], TensorType::Q8_0)
        .tensor("output_norm.weight", &[HIDDEN], TensorType::F32)
        .tensor("output.weight", &[HIDDEN, VOCAB], TensorType::Q8_0);
    for layer in 0..layers {
        for (name, dims, kind) in [
            ("attn_norm", vec![HIDDEN], TensorType::F32),
            ("attn_q", vec![HIDDEN, QUERY], TensorType::Q4_0),
            ("attn_k", vec![HIDDEN, KV], TensorType::Q4_0),
            ("attn_v", vec![HIDDEN, KV], TensorType::Q4_0),
            ("attn_output", vec![QUERY, HIDDEN], TensorType::Q4_0),
        ] {
            file = file.tensor(&format!("blk.{layer}.{name}.weight"), &dims, kind);
        }
    }
    file
}

/// Adds the matrices of a layer's experts.
fn with_experts(file: Gguf, layer: u32, kind: TensorType) -> Gguf {
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    file.tensor(&name("ffn_gate_inp"), &[HIDDEN, EXPERTS], TensorType::F32)
        .tensor(&name("ffn_gate_exps"), &[HIDDEN, EXPERT_WIDTH, EXPERTS], kind)
        .tensor(&name("ffn_up_exps"), &[HIDDEN, EXPERT_WIDTH, EXPERTS], kind)
        .tensor(&name("ffn_down_exps"), &[EXPERT_WIDTH, HIDDEN, EXPERTS], kind)
}

fn gpt_oss(layers: u32) -> Gguf {
    let mut file = common("gpt-oss", layers).key("gpt-oss.attention.sliding_window", 24);
    for layer in 0..layers {
        file = with_experts(file, layer, TensorType::MXFP4);
        for (name, dims) in [
            ("attn_q.bias", vec![QUERY]),
            ("attn_k.bias", vec![KV]),
            ("attn_v.bias", vec![KV]),
            ("attn_sinks.weight", vec![4]),
            ("attn_output.bias", vec![HIDDEN]),
            ("post_attention_norm.weight", vec![HIDDEN]),
            ("ffn_gate_inp.bias", vec![EXPERTS]),
            ("ffn_gate_exps.bias", vec![EXPERT_WIDTH, EXPERTS]),
            ("ffn_up_exps.bias", vec![EXPERT_WIDTH, EXPERTS]),
            ("ffn_down_exps.bias", vec![HIDDEN, EXPERTS]),
        ] {
            file = file.tensor(&format!("blk.{layer}.{name}"), &dims, TensorType::F32);
        }
    }
    file
}

fn llama4(layers: u32, step: u32) -> Gguf {
    let mut file = common("llama4", layers).key("llama4.interleave_moe_layer_step", step);
    for layer in 0..layers {
        file = file.tensor(&format!("blk.{layer}.ffn_norm.weight"), &[HIDDEN], TensorType::F32);
        let (part, width) = match (layer + 1).is_multiple_of(step) {
            true => ("_shexp", EXPERT_WIDTH),
            false => ("", 96),
        };
        if !part.is_empty() {
            file = with_experts(file, layer, TensorType::Q4_0);
        }
        for (name, dims) in [("gate", [HIDDEN, width]), ("up", [HIDDEN, width]), ("down", [width, HIDDEN])] {
            file = file.tensor(&format!("blk.{layer}.ffn_{name}{part}.weight"), &dims, TensorType::Q4_0);
        }
    }
    file
}

fn attention(spec: &ModelSpec, layer: usize) -> &GroupedAttention {
    let Attention::Grouped(attention) = &spec.layers[layer].attention else {
        panic!("layer {layer} has latent attention");
    };
    attention
}

fn spec_error(file: &Gguf) -> SpecError {
    ModelSpec::from_header(&OnDisk::new(file).header()).unwrap_err()
}

#[test]
fn gpt_oss_has_windows_on_even_layers_and_sinks_and_biases_on_all() {
    let (_, spec, _, _) = tiny_llama::read(&gpt_oss(3));
    let visible = [0, 1, 2].map(|layer| attention(&spec, layer).visibility);
    assert_eq!(visible, [Visibility::Window(24), Visibility::All, Visibility::Window(24)]);
    assert!((0..3).all(|layer| attention(&spec, layer).sinks && attention(&spec, layer).output_bias));
    let FeedForward::Experts(experts) = spec.layers[2].feed_forward else { panic!("layer 2 has experts") };
    assert_eq!((experts.count, experts.used, experts.width), (5, 2, 32));
    assert_eq!((experts.activation, experts.biases), (Activation::ClampedSwish, true));
    let missing = spec_error(&gpt_oss(1).without("gpt-oss.expert_count"));
    assert!(matches!(&missing, SpecError::Missing { key } if key == "gpt-oss.expert_count"), "{missing}");
}

#[test]
fn a_row_reads_its_own_experts_and_their_biases_alone() {
    let (_, _, table, cost) = tiny_llama::read(&gpt_oss(1));
    let layer = cost.layers()[0];
    let bytes: Bytes = table.layer(0).map(|(_, tensor)| tensor.bytes).sum();
    assert_eq!(layer.weights, bytes);
    // MXFP4 has 17 bytes for 32 weights. Of five experts, two are taken.
    let expert = 3 * HIDDEN * EXPERT_WIDTH / 32 * 17 + (2 * EXPERT_WIDTH + HIDDEN) * 4;
    assert_eq!(layer.active, Bytes(layer.weights.0 - 3 * expert));
    let attention = 2 * HIDDEN * QUERY + 2 * HIDDEN * KV;
    let taken = HIDDEN * EXPERTS + 2 * 3 * HIDDEN * EXPERT_WIDTH;
    assert_eq!(layer.flops, 2 * (attention + taken));
}

#[test]
fn sinks_and_the_biases_of_experts_must_be_f32() {
    for name in ["blk.0.attn_sinks.weight", "blk.0.ffn_down_exps.bias"] {
        let dims: &[u64] = if name.contains("sinks") { &[4] } else { &[HIDDEN, EXPERTS] };
        let file = gpt_oss(1).without_tensor(name).tensor(name, dims, TensorType::F16);
        let header = OnDisk::new(&file).header();
        let error = TensorTable::new(&header, &ModelSpec::from_header(&header).unwrap()).unwrap_err();
        assert!(
            matches!(&error, TensorError::Type { name: of, wanted, .. } if of == name && *wanted == "F32"),
            "{error}"
        );
    }
}

#[test]
fn llama_4_alternates_chunks_with_rope_and_all_positions_without_and_experts_by_their_step() {
    let (_, spec, _, _) = tiny_llama::read(&llama4(5, 2));
    for (layer, parts) in spec.layers.iter().enumerate() {
        let attention = attention(&spec, layer);
        let blind = layer == 3;
        let visibility = if blind { Visibility::All } else { Visibility::Chunk(8192) };
        assert_eq!(attention.visibility, visibility, "layer {layer}");
        assert_eq!((attention.rope.is_none(), attention.temperature.is_some()), (blind, blind));
        assert_eq!(matches!(attention.head_norm, Some(HeadNorm::Plain { .. })), !blind);
        match &parts.feed_forward {
            FeedForward::Gated { width, .. } => assert_eq!((*width, layer % 2), (96, 0)),
            FeedForward::Experts(experts) => {
                assert_eq!((experts.shared_width, layer % 2), (Some(32), 1));
                assert_eq!(experts.routing.gating, Gating::Sigmoid);
                assert_eq!(experts.routing.weighing, Weighing::Inputs);
                assert!(!experts.routing.renormalised);
            }
        }
    }
}

#[test]
fn llama_4_with_128_experts_does_not_norm_heads() {
    let header = OnDisk::new(&llama4(2, 2).key("llama4.expert_count", 128)).header();
    let spec = ModelSpec::from_header(&header).unwrap();
    assert_eq!(attention(&spec, 0).head_norm, None);
}

#[test]
fn a_llama_4_of_other_chunks_or_steps_is_refused_by_name() {
    let window = spec_error(&llama4(2, 1).key("llama4.attention.sliding_window", 0));
    assert!(window.to_string().contains("`llama4.attention.sliding_window` is 0"), "{window}");
    let step = spec_error(&llama4(2, 1).key("llama4.interleave_moe_layer_step", 0));
    assert!(step.to_string().contains("`llama4.interleave_moe_layer_step` is 0"), "{step}");
}

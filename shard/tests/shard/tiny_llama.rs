//! A llama model of a few kilobytes.

use brigade_shard::cost::Cost;
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorTable;

use crate::gguf_writer::{Gguf, OnDisk};

/// Widths of the model: 4 query heads and 2 key and value heads of 16.
pub const HIDDEN: u64 = 64;
pub const KV: u64 = 32;
pub const FEED_FORWARD: u64 = 96;
pub const VOCAB: u64 = 40;

/// A file of `layers` layers with a tied head.
pub fn file(layers: u32) -> Gguf {
    of_widths(layers, HIDDEN, KV, FEED_FORWARD)
}

/// One of 150 KiB a layer: large enough that the blocks of a file that a matrix touches are about as large as it is.
pub fn wide(layers: u32) -> Gguf {
    of_widths(layers, 2 * HIDDEN, 2 * KV, 8 * FEED_FORWARD)
}

fn of_widths(layers: u32, hidden: u64, kv: u64, feed_forward: u64) -> Gguf {
    let mut file = Gguf::default()
        .key("general.architecture", "llama")
        .key("general.name", "tiny")
        .key("llama.context_length", 256)
        .key("llama.embedding_length", hidden as u32)
        .key("llama.block_count", layers)
        .key("llama.feed_forward_length", feed_forward as u32)
        .key("llama.attention.head_count", 4)
        .key("llama.attention.head_count_kv", 2)
        .key("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .key("llama.rope.dimension_count", 16)
        .key("llama.rope.freq_base", 10000.0)
        .tensor("token_embd.weight", &[hidden, VOCAB], TensorType::Q8_0)
        .tensor("output_norm.weight", &[hidden], TensorType::F32);
    for layer in 0..layers {
        for (name, dims, kind) in [
            ("attn_norm", vec![hidden], TensorType::F32),
            ("attn_q", vec![hidden, hidden], TensorType::Q4_0),
            ("attn_k", vec![hidden, kv], TensorType::Q4_0),
            ("attn_v", vec![hidden, kv], TensorType::Q8_0),
            ("attn_output", vec![hidden, hidden], TensorType::Q4_0),
            ("ffn_norm", vec![hidden], TensorType::F32),
            ("ffn_gate", vec![hidden, feed_forward], TensorType::Q4_0),
            ("ffn_up", vec![hidden, feed_forward], TensorType::Q4_0),
            ("ffn_down", vec![feed_forward, hidden], TensorType::Q4_1),
        ] {
            file = file.tensor(&format!("blk.{layer}.{name}.weight"), &dims, kind);
        }
    }
    file
}

/// The same file with an output matrix of its own.
pub fn untied(layers: u32) -> Gguf {
    file(layers).tensor("output.weight", &[HIDDEN, VOCAB], TensorType::Q8_0)
}

/// The wide file with an output matrix of its own.
pub fn wide_untied(layers: u32) -> Gguf {
    wide(layers).tensor("output.weight", &[2 * HIDDEN, VOCAB], TensorType::Q8_0)
}

/// The same file with the layer's widest matrix in another type.
pub fn with_layer_in(file: Gguf, layer: usize, kind: TensorType) -> Gguf {
    let name = format!("blk.{layer}.ffn_up.weight");
    file.without_tensor(&name).tensor(&name, &[HIDDEN, FEED_FORWARD], kind)
}

/// A file of `layers` layers that no card has all kernels for.
pub fn in_codebooks(layers: u32) -> Gguf {
    (0..layers as usize).fold(file(layers), |file, layer| with_layer_in(file, layer, TensorType::IQ4_NL))
}

/// Header, spec, table and cost of a sound file.
pub fn read(file: &Gguf) -> (Header, ModelSpec, TensorTable, Cost) {
    let header = OnDisk::new(file).header();
    let spec = ModelSpec::from_header(&header).unwrap();
    let table = TensorTable::new(&header, &spec).unwrap();
    let cost = Cost::new(&spec, &table);
    (header, spec, table, cost)
}

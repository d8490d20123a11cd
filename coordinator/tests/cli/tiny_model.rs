//! Writes the GGUF file of a small llama: a whole header, and tensors that are a hole in the file.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Where tensor data must begin.
const ALIGNMENT: u64 = 32;
const HIDDEN: u64 = 256;
const HEADS: u64 = 4;
const FEED_FORWARD: u64 = 512;
const VOCAB: u64 = 1000;

/// Writes a model of `layers` layers, each of 2.5 MiB in f32, with a tied head of about 1 MiB, no tokenizer, and a key
/// that means nothing.
pub fn write_model(path: &Path, layers: u64) {
    let tensors = tensors(layers);
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(9u64.to_le_bytes());
    string(&mut header, "maker.mood");
    header.extend(7u32.to_le_bytes());
    header.push(1);
    string(&mut header, "general.architecture");
    header.extend(8u32.to_le_bytes());
    string(&mut header, "llama");
    for (key, value) in [
        ("context_length", 2048),
        ("embedding_length", HIDDEN),
        ("block_count", layers),
        ("feed_forward_length", FEED_FORWARD),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", HEADS),
    ] {
        string(&mut header, &format!("llama.{key}"));
        header.extend(4u32.to_le_bytes());
        header.extend((value as u32).to_le_bytes());
    }
    string(&mut header, "llama.attention.layer_norm_rms_epsilon");
    header.extend(6u32.to_le_bytes());
    header.extend(1e-5f32.to_le_bytes());

    let mut offset = 0u64;
    for (name, dims) in &tensors {
        string(&mut header, name);
        header.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| header.extend(dim.to_le_bytes()));
        header.extend(0u32.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += (dims.iter().product::<u64>() * 4).next_multiple_of(ALIGNMENT);
    }
    let data = (header.len() as u64).next_multiple_of(ALIGNMENT);
    let mut file = File::create(path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(data + offset).unwrap();
}

fn tensors(layers: u64) -> Vec<(String, Vec<u64>)> {
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![HIDDEN, VOCAB]),
        ("output_norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..layers {
        for (name, dims) in [
            ("attn_norm", vec![HIDDEN]),
            ("attn_q", vec![HIDDEN, HIDDEN]),
            ("attn_k", vec![HIDDEN, HIDDEN]),
            ("attn_v", vec![HIDDEN, HIDDEN]),
            ("attn_output", vec![HIDDEN, HIDDEN]),
            ("ffn_norm", vec![HIDDEN]),
            ("ffn_gate", vec![HIDDEN, FEED_FORWARD]),
            ("ffn_up", vec![HIDDEN, FEED_FORWARD]),
            ("ffn_down", vec![FEED_FORWARD, HIDDEN]),
        ] {
            tensors.push((format!("blk.{layer}.{name}.weight"), dims));
        }
    }
    tensors
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

//! Models to pull: whole headers, and data that is different everywhere.

use std::path::Path;

const HIDDEN: u64 = 256;
const HEADS: u64 = 4;
const FEED_FORWARD: u64 = 512;
const VOCAB: u64 = 1000;

/// Where tensor data must begin.
const ALIGNMENT: usize = 32;

enum Meta {
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    Text(&'static str),
}

/// A llama of so many layers of 2.5 MiB; another `seed`, other weights.
pub fn gguf(layers: u64, seed: u64) -> Vec<u8> {
    write(&base_keys(layers), &tensors(layers), seed)
}

/// The same in `count` parts.
pub fn split_gguf(layers: u64, count: u16, seed: u64) -> Vec<Vec<u8>> {
    let tensors = tensors(layers);
    let share = tensors.len().div_ceil(usize::from(count));
    let part = |number: u16| {
        let mut keys = if number == 0 { base_keys(layers) } else { Vec::new() };
        keys.push(("split.no", Meta::U16(number)));
        keys.push(("split.count", Meta::U16(count)));
        keys.push(("split.tensors.count", Meta::I32(i32::try_from(tensors.len()).unwrap())));
        let from = usize::from(number) * share;
        write(&keys, &tensors[from..tensors.len().min(from + share)], seed + u64::from(number))
    };
    (0..count).map(part).collect()
}

fn base_keys(layers: u64) -> Vec<(&'static str, Meta)> {
    let number = |n: u64| Meta::U32(u32::try_from(n).unwrap());
    vec![
        ("general.architecture", Meta::Text("llama")),
        ("llama.context_length", number(2048)),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.block_count", number(layers)),
        ("llama.feed_forward_length", number(FEED_FORWARD)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
    ]
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

fn write(keys: &[(&str, Meta)], tensors: &[(String, Vec<u64>)], seed: u64) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut file, key);
        let (kind, bytes): (u32, Vec<u8>) = match value {
            Meta::U16(n) => (2, n.to_le_bytes().to_vec()),
            Meta::U32(n) => (4, n.to_le_bytes().to_vec()),
            Meta::I32(n) => (5, n.to_le_bytes().to_vec()),
            Meta::F32(x) => (6, x.to_le_bytes().to_vec()),
            Meta::Text(value) => {
                let mut bytes = Vec::new();
                text(&mut bytes, value);
                (8, bytes)
            }
        };
        file.extend(kind.to_le_bytes());
        file.extend(bytes);
    }
    let mut offset = 0u64;
    for (name, dims) in tensors {
        text(&mut file, name);
        file.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(0u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += (dims.iter().product::<u64>() * 4).next_multiple_of(ALIGNMENT as u64);
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    noise(&mut file, usize::try_from(offset).unwrap(), seed);
    file
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Bytes that do not repeat.
fn noise(out: &mut Vec<u8>, bytes: usize, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let end = out.len() + bytes;
    while out.len() < end {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(end);
}

/// The files of a llama of one layer in safetensors, in two files of weights.
pub fn safetensors(class: &str) -> Vec<(&'static str, Vec<u8>)> {
    let config = format!(
        r#"{{"architectures": ["{class}"], "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": true}}"#
    );
    let ends = [("model.embed_tokens.weight", vec![100, 64]), ("model.norm.weight", vec![64])];
    let layer = [
        ("model.layers.0.input_layernorm.weight", vec![64]),
        ("model.layers.0.self_attn.q_proj.weight", vec![64, 64]),
        ("model.layers.0.self_attn.k_proj.weight", vec![64, 64]),
        ("model.layers.0.self_attn.v_proj.weight", vec![64, 64]),
        ("model.layers.0.self_attn.o_proj.weight", vec![64, 64]),
        ("model.layers.0.post_attention_layernorm.weight", vec![64]),
        ("model.layers.0.mlp.gate_proj.weight", vec![128, 64]),
        ("model.layers.0.mlp.up_proj.weight", vec![128, 64]),
        ("model.layers.0.mlp.down_proj.weight", vec![64, 128]),
    ];
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let listed = |tensors: &[(&str, Vec<u64>)], file: &str| -> Vec<String> {
        tensors.iter().map(|(name, _)| format!("\"{name}\": \"{file}\"")).collect()
    };
    let map = [listed(&ends, one), listed(&layer, two)].concat().join(", ");
    vec![
        ("config.json", config.into_bytes()),
        ("tokenizer.json", b"{}".to_vec()),
        ("README.md", b"# A model\n".to_vec()),
        ("model.safetensors.index.json", format!("{{\"weight_map\": {{{map}}}}}").into_bytes()),
        (one, safetensors_file(&ends, 1)),
        (two, safetensors_file(&layer, 2)),
        ("pytorch_model.bin", vec![7; 1000]),
    ]
}

fn safetensors_file(tensors: &[(&str, Vec<u64>)], seed: u64) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dims)| {
            let begin = at;
            at += dims.iter().product::<u64>() * 4;
            format!(r#""{name}": {{"dtype": "F32", "shape": {dims:?}, "data_offsets": [{begin}, {at}]}}"#)
        })
        .collect();
    let mut header = format!("{{{}}}", entries.join(", "));
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    noise(&mut file, usize::try_from(at).unwrap(), seed);
    file
}

/// Writes files into a directory.
pub fn write_all<'f>(folder: &Path, files: impl IntoIterator<Item = (&'f str, &'f Vec<u8>)>) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

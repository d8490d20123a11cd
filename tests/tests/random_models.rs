//! The models of random weights that speed is compared on: they are the models that they should be, and compute numbers
//! that a model would.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

use brigade_proto::control::CacheDtype;
use brigade_shard::model_file::Header;
use brigade_shard::tensor_type::TensorType;
use brigade_tests::chain::Chain;
use brigade_tests::setup;
use serde_json::Value;

/// Writes a model with `tests/bench/make_model.py`.
fn make(folder: &Path, shape: &str, mix: &str, changes: &[&str]) -> std::path::PathBuf {
    let file = folder.join(format!("{shape}-{mix}.gguf"));
    let mut make = Command::new(setup::python());
    make.arg(setup::repository().join("tests/bench/make_model.py")).arg(&file).args([shape, mix]);
    for change in changes {
        make.args(["--set", change]);
    }
    let output = make.output().unwrap();
    assert!(output.status.success(), "{make:?}: {}", String::from_utf8_lossy(&output.stderr));
    file
}

/// Sizes whose rows are whole blocks of 256.
const SMALL: [&str; 3] = ["hidden=256", "ffn=512", "vocab=1024"];

#[test]
fn random_models_of_every_family_give_logits_of_a_spread_of_two() {
    let folder = tempfile::tempdir_in(setup::target_folder()).unwrap();
    let experts = ["expert_ffn=256", "rank=256"];
    // A shape of its true size, made as small as the others.
    let lite = ["expert_ffn=256", "rank=256", "layers=4", "experts=8", "heads=4", "kv_heads=4", "merges=0"];
    for (shape, mix, more) in [
        ("llama", "q4_k_m", &experts[..0]),
        ("mixtral", "q4_k_m", &experts[..0]),
        ("llama4", "q4_k_m", &experts[..1]),
        ("qwen2", "q3_k", &experts[..0]),
        ("qwen3", "q6_k", &experts[..0]),
        ("phi3", "q5_k_m", &experts[..0]),
        ("gemma3", "q4_0", &experts[..0]),
        ("command-r", "iq4_xs", &experts[..0]),
        ("cohere2", "q8_0", &experts[..0]),
        ("qwen3moe", "q4_k_m", &experts[..1]),
        ("gpt-oss", "mxfp4_moe", &experts[..1]),
        ("glm4moe", "q5_k_m", &experts[..1]),
        ("deepseek-v2-lite", "q6_k", &lite[..]),
        ("deepseek-v2", "q5_k_m", &experts[..]),
        ("deepseek-v3", "q4_k_m", &experts[..]),
    ] {
        let file = make(folder.path(), shape, mix, &[&SMALL, more].concat());
        let header = Header::open(&file).unwrap();
        let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 11) % 1000).collect();
        let mut logits: Vec<f64> = Vec::new();
        Chain::load(&header, usize::MAX, 32, CacheDtype::F16)
            .run(&tokens, 24, 0, |_, row| logits.extend(row.iter().map(|&logit| f64::from(logit))));
        let count = logits.len() as f64;
        let mean = logits.iter().sum::<f64>() / count;
        let deviation = (logits.iter().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count).sqrt();
        println!("{shape} {mix}: logits {mean:.2} ± {deviation:.2}");
        assert!((1.5..3.0).contains(&deviation), "{shape} {mix}: logits {mean:.2} ± {deviation:.2}");
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn a_mix_gives_more_bits_to_what_needs_them() {
    let folder = tempfile::tempdir_in(setup::target_folder()).unwrap();
    let file = make(folder.path(), "llama", "q4_k_m", &["hidden=256", "ffn=512", "layers=16", "tied=1"]);
    let header = Header::open(&file).unwrap();
    let kind = |name: &str| header.tensor(name).unwrap().kind;
    assert_eq!(kind("token_embd.weight"), TensorType::Q6K, "it is the head, too");
    assert_eq!(kind("blk.0.attn_norm.weight"), TensorType::F32);
    assert_eq!(kind("blk.3.attn_q.weight"), TensorType::Q4K);
    // The first and last eighth, and every third between.
    let wide = [0, 1, 4, 7, 10, 13, 14, 15];
    for layer in 0..16 {
        let wanted = if wide.contains(&layer) { TensorType::Q6K } else { TensorType::Q4K };
        for part in ["attn_v", "ffn_down"] {
            assert_eq!(kind(&format!("blk.{layer}.{part}.weight")), wanted, "layer {layer}: {part}");
        }
    }
}

#[test]
fn the_program_measures_a_random_model_and_ends_as_it_should() {
    let folder = tempfile::tempdir_in(setup::target_folder()).unwrap();
    let file = make(folder.path(), "llama", "q8_0", &[]);
    let bench = |arguments: &str| {
        let mut command = Command::new(&setup::programs().worker);
        command.arg("bench").arg(&file).args(arguments.split_whitespace());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = bench("-p 16 -n 4 -r 1 -t 1 -o json");
    assert_eq!(code, Some(0), "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report.as_array().unwrap().len(), 2, "{out}");
    assert_eq!(report[0]["model_type"], "random llama Q8_0", "{out}");

    let (code, out, err) = bench("-p 0 -n 0");
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("nothing to measure"), "{err}");
    std::fs::write(&file, "GGUF").unwrap();
    let (code, out, err) = bench("-p 16");
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("llama-q8_0.gguf"), "{err}");
}

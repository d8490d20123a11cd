//! Finding models by their fingerprint, among files and directories that are and are not.

use std::fs;
use std::path::{Path, PathBuf};

use brigade_shard::model_file::Header;
use brigade_worker::models::{ModelError, ModelStore};

/// A GGUF file of version 3 without tensors, whose one entry makes its fingerprint.
fn write_model(path: &Path, name: &str) -> String {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    for (text, kind) in [("general.name", Some(8u32)), (name, None)] {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(kind.iter().flat_map(|kind| kind.to_le_bytes()));
    }
    fs::write(path, bytes).unwrap();
    Header::open(path).unwrap().fingerprint().to_string()
}

/// A directory of safetensors of a Llama with one layer, whose tensors are zero; `rope_theta` makes its fingerprint.
fn write_directory(folder: &Path, rope_theta: u32) -> String {
    fs::create_dir_all(folder).unwrap();
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 32, "vocab_size": 32,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": {rope_theta}, "hidden_act": "silu",
        "tie_word_embeddings": true}}"#
    );
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": 1}"#).unwrap();
    let matrices =
        ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"];
    let mut tensors = vec![("model.embed_tokens".to_owned(), 2), ("model.norm".to_owned(), 1)];
    tensors.extend(matrices.map(|name| (format!("model.layers.0.{name}_proj"), 2)));
    let norms = ["input_layernorm", "post_attention_layernorm"];
    tensors.extend(norms.map(|name| (format!("model.layers.0.{name}"), 1)));
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, dimensions) in tensors {
        let (shape, start) = (["[32]", "[32,32]"][dimensions - 1], end);
        end += 4 * 32usize.pow(dimensions as u32);
        let entry = format!(r#""dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]"#);
        entries.push(format!(r#""{name}.weight":{{{entry}}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
    Header::open(folder).unwrap().fingerprint().to_string()
}

fn found(store: &mut ModelStore, hint: &str, fingerprint: &str) -> Result<PathBuf, ModelError> {
    store.find(hint, fingerprint, &|| false).map(|header| header.parts()[0].clone())
}

#[test]
fn a_model_is_found_by_its_hint_or_under_any_other_name() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (root.path().join("a.gguf"), root.path().join("renamed.gguf"));
    let (first, second) = (write_model(&a, "first"), write_model(&b, "second"));
    let mut store = ModelStore::new(vec![root.path().join("absent"), root.path().to_owned()]);
    assert_eq!(found(&mut store, "a.gguf", &first).unwrap(), a);
    assert_eq!(found(&mut store, "b.gguf", &second).unwrap(), b);
    // What is remembered of them leads to the same files.
    assert_eq!(found(&mut store, "b.gguf", &first).unwrap(), a);
    assert_eq!(found(&mut store, "a.gguf", &second).unwrap(), b);
}

/// The directory that the parts of a model in safetensors lie in.
fn found_in(store: &mut ModelStore, hint: &str, fingerprint: &str) -> Result<PathBuf, ModelError> {
    found(store, hint, fingerprint).map(|part| part.parent().unwrap().to_owned())
}

#[test]
fn a_directory_of_safetensors_is_found_by_its_hint_under_another_name_and_as_a_place() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    let (first, second) = (write_directory(&a, 10_000), write_directory(&b, 20_000));
    assert_ne!(first, second);
    let mut store = ModelStore::new(vec![root.path().to_owned()]);
    assert_eq!(found_in(&mut store, "a", &first).unwrap(), a);
    assert_eq!(found_in(&mut store, "a", &second).unwrap(), b);
    let renamed = root.path().join("renamed");
    fs::rename(&a, &renamed).unwrap();
    assert_eq!(found_in(&mut store, "a", &first).unwrap(), renamed);
    let mut itself = ModelStore::new(vec![renamed.clone()]);
    assert_eq!(found_in(&mut itself, "elsewhere", &first).unwrap(), renamed);
}

#[test]
fn a_directory_with_a_file_that_changed_is_another_model_and_the_error_names_it() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    let fingerprint = write_directory(&folder, 10_000);
    let mut store = ModelStore::new(vec![root.path().to_owned()]);
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    let mut renamed_tensor = weights.clone();
    let at = weights.windows(4).position(|bytes| bytes == b"norm").unwrap();
    renamed_tensor[at] = b'N';
    for (file, bytes, complaint) in [
        ("config.json", None, "is another model or another version of it"),
        ("generation_config.json", Some(br#"{"eos_token_id": 2}"#.to_vec()), "is another model"),
        ("tokenizer.json", Some(b"{}".to_vec()), "is another model"),
        ("config.json", Some(b"{".to_vec()), "cannot be read"),
        ("model.safetensors", Some(weights[..weights.len() - 4].to_vec()), "cut off"),
        ("model.safetensors", Some(renamed_tensor), "is another model"),
    ] {
        match bytes {
            // The same length, so that nothing but the bytes tells.
            None => assert_ne!(write_directory(&folder, 10_001), fingerprint),
            Some(bytes) => fs::write(folder.join(file), bytes).unwrap(),
        }
        let text = found(&mut store, "model", &fingerprint).unwrap_err().to_string();
        let (here, place) = (folder.display().to_string(), root.path().display().to_string());
        for part in [fingerprint.as_str(), complaint, &here, &place, "1 file(s)", "--models"] {
            assert!(text.contains(part), "{file} changed: `{part}` is not in `{text}`");
        }
        if file == "tokenizer.json" {
            fs::remove_file(folder.join(file)).unwrap();
        }
        assert_eq!(write_directory(&folder, 10_000), fingerprint);
        assert_eq!(found_in(&mut store, "model", &fingerprint).unwrap(), folder);
    }
}

#[test]
fn a_place_may_be_a_single_file() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("weights.bin");
    let fingerprint = write_model(&file, "one");
    let mut store = ModelStore::new(vec![file.clone()]);
    assert_eq!(found(&mut store, "model.gguf", &fingerprint).unwrap(), file);
}

#[test]
fn a_file_that_changes_is_read_anew() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.gguf");
    let old = write_model(&file, "old");
    let mut store = ModelStore::new(vec![root.path().to_owned()]);
    assert!(found(&mut store, "a.gguf", &"0".repeat(64)).is_err());
    let new = write_model(&file, "newer and longer");
    assert_eq!(found(&mut store, "a.gguf", &new).unwrap(), file);
    assert!(found(&mut store, "a.gguf", &old).is_err());
}

#[test]
fn what_is_missing_is_named_with_where_it_was_looked_for() {
    let root = tempfile::tempdir().unwrap();
    write_model(&root.path().join("other.gguf"), "other");
    fs::write(root.path().join("notes.txt"), "no model").unwrap();
    fs::write(root.path().join("wanted.gguf"), "GGUF, but cut off").unwrap();
    let mut store = ModelStore::new(vec![root.path().to_owned(), "/nonexistent/models".into()]);
    let fingerprint = "0123".repeat(16);
    let text = found(&mut store, "wanted.gguf", &fingerprint).unwrap_err().to_string();
    let place = root.path().display().to_string();
    for part in [
        fingerprint.as_str(),
        "wanted.gguf",
        &place,
        "/nonexistent/models",
        "2 file(s)",
        "cannot be read",
        "--models",
    ] {
        assert!(text.contains(part), "`{part}` is not in `{text}`");
    }
}

#[test]
fn a_hint_never_leaves_its_directory() {
    let root = tempfile::tempdir().unwrap();
    let fingerprint = write_model(&root.path().join("secret.gguf"), "secret");
    fs::create_dir(root.path().join("models")).unwrap();
    let mut store = ModelStore::new(vec![root.path().join("models")]);
    for hint in ["../secret.gguf", "/etc/passwd", "..", "", "a\\b"] {
        let error = found(&mut store, hint, &fingerprint).unwrap_err();
        assert!(matches!(error, ModelError::HintIsPath(_)), "{hint}: {error}");
    }
}

#[test]
fn a_search_can_be_cancelled() {
    let root = tempfile::tempdir().unwrap();
    let fingerprint = write_model(&root.path().join("a.gguf"), "a");
    let mut store = ModelStore::new(vec![root.path().to_owned()]);
    assert!(matches!(store.find("a.gguf", &fingerprint, &|| true), Err(ModelError::Cancelled)));
}

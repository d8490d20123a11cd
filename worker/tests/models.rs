//! Finding models by their fingerprint, among files that are and are not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

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

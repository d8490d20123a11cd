//! `brigade models show` on files that can be served, and on files that cannot.

use brigade_coordinator::render::ModelCard;

use crate::program::run;

#[test]
fn a_file_that_cannot_be_served_is_shown_with_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    crate::tiny_model::write_model(&home.path().join("tiny.gguf"), 8);
    let outcome = run(home.path(), &["models", "show", "tiny.gguf", "--json"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let card: ModelCard = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!((card.model.as_str(), card.architecture.as_str()), ("tiny", "llama"));
    let spec = card.spec.unwrap();
    assert_eq!((spec.layers, spec.hidden, spec.vocab, spec.context), (8, 256, 1000, 2048));
    assert_eq!(spec.kinds.len(), 1, "{:?}", spec.kinds);
    assert_eq!(spec.kinds[0].layers, (0..8).collect::<Vec<_>>());
    // Keys and values of 256 channels in 8 layers, 2 bytes each.
    assert_eq!(spec.cache_bytes_per_token.0, 2 * 256 * 8 * 2);
    assert_eq!(card.parameters, 256 * 1000 + 256 + 8 * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256));
    assert_eq!(card.types.len(), 1);
    assert_eq!((card.types[0].kind.as_str(), card.types[0].bytes.0), ("F32", card.parameters * 4));
    assert!(card.unusual.iter().any(|part| part.contains("maker.mood")), "{:?}", card.unusual);
    assert!(
        card.problems.iter().any(|problem| problem.contains("tokenizer.ggml.model")),
        "{:?}",
        card.problems
    );

    let outcome = run(home.path(), &["models", "show", "tiny.gguf"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    for words in ["all: 4 heads of 64", "feed-forward of 512", "maker.mood", "problem", "TYPE", "32.00"] {
        assert!(outcome.out.contains(words), "{words} in {}", outcome.out);
    }
}

#[test]
fn a_file_of_an_unknown_architecture_is_shown_with_the_sizes_that_it_states() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("new.gguf");
    crate::tiny_model::write_model(&path, 8);
    let known = std::fs::read(&path).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(text(&known).contains("llama.block_count"));
    // An architecture with as many letters, so that all lengths stay right.
    let mut unknown = known;
    for at in 0..unknown.len() - 5 {
        if &unknown[at..at + 5] == b"llama" {
            unknown[at..at + 5].copy_from_slice(b"gamma");
        }
    }
    std::fs::write(&path, unknown).unwrap();
    let outcome = run(home.path(), &["models", "show", "new.gguf", "--json"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let card: ModelCard = serde_json::from_str(&outcome.out).unwrap();
    assert!(card.spec.is_none());
    let stated = card.stated;
    assert_eq!((stated.layers, stated.hidden, stated.context), (Some(8), Some(256), Some(2048)));
    assert!(card.problems[0].contains("the architecture `gamma` is not supported"), "{:?}", card.problems);
    let outcome = run(home.path(), &["models", "show", "new.gguf"]);
    assert!(outcome.out.contains("layers       8, as the file states"), "{}", outcome.out);
}

#[test]
fn a_file_that_is_no_model_is_refused() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("note.gguf"), "not a model").unwrap();
    for (file, words) in [("note.gguf", "note.gguf"), ("missing.gguf", "missing.gguf"), (".", "directory")] {
        let outcome = run(home.path(), &["models", "show", file]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.err.starts_with("error: failed to ") && outcome.err.contains(words), "{outcome:?}");
        assert_eq!(outcome.out, "");
    }
}

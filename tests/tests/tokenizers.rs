//! Tokenizers of small vocabularies against llama.cpp: every pre-tokenizer by name, the ends of every family, special
//! tokens and SentencePiece.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::process::Command;

use brigade_shard::model_file::Header;
use brigade_shard::tokenizer::{ParseSpecial, Tokenizer, known_pretokenizers};
use brigade_tests::{reference, setup};
use serde::Deserialize;

#[derive(Deserialize)]
struct References {
    texts: Vec<String>,
    words: Vec<Words>,
    special: Vec<Special>,
}

/// What pre-tokenizers that split alike give.
#[derive(Deserialize)]
struct Words {
    /// Their names, with whether a text begins with a token of its own.
    adds_bos: BTreeMap<String, bool>,
    /// For every text.
    ids: Vec<Vec<u32>>,
}

/// A vocabulary with special tokens.
#[derive(Deserialize)]
struct Special {
    name: String,
    ends: Vec<u32>,
    adds_bos: bool,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    plain: Vec<u32>,
    /// Where it differs from `plain`.
    special: Option<Vec<u32>>,
}

/// The vocabularies' files, made by their generator.
fn vocabularies() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(setup::python())
        .arg(setup::repository().join("tests/reference/make_tokenizers.py"))
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

fn open(folder: &tempfile::TempDir, name: &str) -> Tokenizer {
    let header = Header::open(&folder.path().join(format!("{name}.gguf"))).unwrap();
    Tokenizer::from_header(&header).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The first place where ids differ, in words.
fn difference(tokenizer: &Tokenizer, text: &str, special: ParseSpecial, wanted: &[u32]) -> Option<String> {
    let found = tokenizer.encode(text, special).unwrap();
    let at = (0..=found.len().max(wanted.len())).find(|at| found.get(*at) != wanted.get(*at))?;
    let shown = |id: Option<&u32>| id.map(|id| tokenizer.token_text(*id).unwrap_or_default().to_owned());
    let (ours, theirs) = (shown(found.get(at)), shown(wanted.get(at)));
    Some(format!("{text:?} ({special:?}): token {at} is {ours:?}, in llama.cpp {theirs:?}"))
}

#[test]
fn every_pretokenizer_splits_as_llama_cpp_does() {
    let references: References = reference::read("tokenizers.json");
    assert!(references.texts.len() >= 60, "{} texts", references.texts.len());
    let folder = vocabularies();
    let mut wrong = Vec::new();
    for pre in known_pretokenizers() {
        let words = references.words.iter().find(|words| words.adds_bos.contains_key(pre));
        let Some(words) = words else {
            wrong.push(format!("{pre}: no reference"));
            continue;
        };
        let tokenizer = open(&folder, &format!("words-{pre}"));
        if tokenizer.bos_to_add().is_some() != words.adds_bos[pre] {
            wrong.push(format!("{pre}: begins with a token of its own: {}", !words.adds_bos[pre]));
        }
        assert_eq!(words.ids.len(), references.texts.len(), "{pre}");
        let differences = references.texts.iter().zip(&words.ids);
        let differences: Vec<String> = differences
            .filter_map(|(text, ids)| difference(&tokenizer, text, ParseSpecial::No, ids))
            .collect();
        if let Some(first) = differences.first() {
            wrong.push(format!("{pre}: {} texts differ, first {first}", differences.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} names, {} texts each", known_pretokenizers().count(), references.texts.len());
}

#[test]
fn ends_and_special_tokens_are_llama_cpps() {
    let references: References = reference::read("tokenizers.json");
    let folder = vocabularies();
    let mut wrong = Vec::new();
    for special in &references.special {
        let tokenizer = open(&folder, &special.name);
        if tokenizer.end_ids() != special.ends {
            let texts = |ids: &[u32]| {
                ids.iter().map(|id| tokenizer.token_text(*id).unwrap().to_owned()).collect::<Vec<_>>()
            };
            let (ours, theirs) = (texts(tokenizer.end_ids()), texts(&special.ends));
            wrong.push(format!("{}: ends with {ours:?}, in llama.cpp {theirs:?}", special.name));
        }
        if tokenizer.bos_to_add().is_some() != special.adds_bos {
            wrong.push(format!("{}: begins with a token of its own: {}", special.name, !special.adds_bos));
        }
        for text in &special.texts {
            let parsed = text.special.as_ref().unwrap_or(&text.plain);
            let plain = difference(&tokenizer, &text.text, ParseSpecial::No, &text.plain);
            let parsed = difference(&tokenizer, &text.text, ParseSpecial::Yes, parsed);
            wrong.extend(plain.or(parsed).map(|difference| format!("{}: {difference}", special.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} vocabularies", references.special.len());
}

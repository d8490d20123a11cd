//! Tokenizers of `tokenizer.json` against Hugging Face's tokenizers: ids, what stands before a text, and decoded texts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

use brigade_shard::model_file::Header;
use brigade_shard::tokenizer::{ParseSpecial, SpecialText, Tokenizer};
use brigade_tests::{reference, setup};
use serde::Deserialize;

/// What Hugging Face's tokenizers give for one kind of `tokenizer.json`.
#[derive(Deserialize)]
struct Kind {
    kind: String,
    /// What is put before a text.
    before: Vec<u32>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    plain: Vec<u32>,
    /// Where it differs from `plain`.
    special: Option<Vec<u32>>,
    /// What the ids decode to, where it differs from `text`.
    shown: Option<String>,
    /// The same without special tokens, where it differs from `shown`.
    skipped: Option<String>,
}

fn kinds() -> Vec<Kind> {
    #[derive(Deserialize)]
    struct Document {
        kinds: Vec<Kind>,
    }
    reference::read::<Document>("json-tokenizers.json").kinds
}

impl Kind {
    /// The tokenizer of a model's directory, made by its generator.
    fn open(&self, folder: &Path) -> Tokenizer {
        let folder = folder.join(&self.kind);
        let output = Command::new(setup::python())
            .arg(setup::repository().join("tests/reference/make_safetensors.py"))
            .arg(&folder)
            .args(["llama", "--tokenizer", &self.kind])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", self.kind, String::from_utf8_lossy(&output.stderr));
        let header = Header::open(&folder).unwrap();
        Tokenizer::from_header(&header).unwrap_or_else(|error| panic!("{}: {error}", self.kind))
    }
}

impl Text {
    fn parsed(&self) -> &[u32] {
        self.special.as_ref().unwrap_or(&self.plain)
    }

    /// The first place where ids differ, in words.
    fn other_ids(&self, tokenizer: &Tokenizer, special: ParseSpecial) -> Option<String> {
        let wanted = match special {
            ParseSpecial::Yes => self.parsed(),
            ParseSpecial::No => &self.plain,
        };
        let found = tokenizer.encode(&self.text, special).unwrap();
        let at = (0..=found.len().max(wanted.len())).find(|at| found.get(*at) != wanted.get(*at))?;
        let shown = |id: Option<&u32>| id.map(|id| tokenizer.token_text(*id).unwrap_or_default().to_owned());
        let (ours, theirs) = (shown(found.get(at)), shown(wanted.get(at)));
        Some(format!("{:?} ({special:?}): token {at} is {ours:?}, theirs is {theirs:?}", self.text))
    }

    /// How what the ids decode to differs, in words.
    fn other_text(&self, tokenizer: &Tokenizer, special: SpecialText) -> Option<String> {
        let shown = self.shown.as_ref().unwrap_or(&self.text);
        let wanted = match special {
            SpecialText::Show => shown,
            SpecialText::Skip => self.skipped.as_ref().unwrap_or(shown),
        };
        let found = tokenizer.decode(self.parsed(), special);
        (found != *wanted)
            .then(|| format!("{:?} ({special:?}): decodes to {found:?}, theirs to {wanted:?}", self.text))
    }
}

/// Nothing may differ; otherwise says how much does for each kind, and what first.
fn hold(differences: impl Fn(&Text, &Tokenizer) -> Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let kinds = kinds();
    assert_eq!(kinds.len(), 5);
    let mut wrong = Vec::new();
    for kind in &kinds {
        assert!(kind.texts.len() >= 60, "{}: {} texts", kind.kind, kind.texts.len());
        let tokenizer = kind.open(folder.path());
        let before: Vec<u32> = tokenizer.bos_to_add().into_iter().collect();
        assert_eq!(before, kind.before, "{}: before a text", kind.kind);
        let found: Vec<String> = kind.texts.iter().filter_map(|text| differences(text, &tokenizer)).collect();
        println!("{:8} {} texts, {} differ", kind.kind, kind.texts.len(), found.len());
        if let Some(first) = found.first() {
            wrong.push(format!("{}: {} texts differ, first {first}", kind.kind, found.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ids_are_those_of_hugging_faces_tokenizers() {
    hold(|text, tokenizer| {
        let plain = text.other_ids(tokenizer, ParseSpecial::No);
        plain.or_else(|| text.other_ids(tokenizer, ParseSpecial::Yes))
    });
}

#[test]
fn ids_decode_to_the_texts_that_hugging_faces_tokenizers_decode_them_to() {
    hold(|text, tokenizer| {
        let shown = text.other_text(tokenizer, SpecialText::Show);
        shown.or_else(|| text.other_text(tokenizer, SpecialText::Skip))
    });
}

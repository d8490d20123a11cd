//! Tokenizers of `tokenizer.json` against Hugging Face's tokenizers: ids, what stands before a text, and decoded texts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

use brigade_shard::model_file::Header;
use brigade_shard::tokenizer::{ParseSpecial, SpecialText, Tokenizer};
use brigade_tests::{reference, setup};
use serde::Deserialize;

/// The parts of messages in channels: they are shown even where special tokens are not, since nothing else tells thoughts
/// from answers. To Hugging Face's tokenizers they are special tokens like any other.
const CHANNEL_PARTS: [&str; 4] = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"];

/// What Hugging Face's tokenizers give for one kind of `tokenizer.json`.
#[derive(Deserialize)]
struct Kind {
    kind: String,
    /// Tokens of a model with it.
    vocab: u32,
    /// What is put before a text.
    before: Vec<u32>,
    /// Those of the texts that all kinds have come first.
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    /// The kind's own text.
    text: Option<String>,
    plain: Vec<u32>,
    /// Where it differs from `plain`.
    special: Option<Vec<u32>>,
    /// What the ids decode to, where it differs from the text.
    shown: Option<String>,
    /// The same without special tokens, where it differs from `shown`.
    skipped: Option<String>,
}

#[derive(Deserialize)]
struct References {
    /// Those that all kinds have.
    texts: Vec<String>,
    kinds: Vec<Kind>,
}

/// A text with what belongs to it.
struct Text<'a> {
    text: &'a str,
    row: &'a Row,
}

impl Kind {
    /// The tokenizer of a model's directory, made by its generator.
    fn open(&self, folder: &Path) -> Tokenizer {
        let folder = folder.join(&self.kind);
        let output = Command::new(setup::python())
            .arg(setup::repository().join("tests/reference/make_safetensors.py"))
            .arg(&folder)
            .args(["llama", "--tokenizer", &self.kind, "--vocab", &self.vocab.to_string()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", self.kind, String::from_utf8_lossy(&output.stderr));
        let header = Header::open(&folder).unwrap();
        Tokenizer::from_header(&header).unwrap_or_else(|error| panic!("{}: {error}", self.kind))
    }
}

impl Text<'_> {
    fn parsed(&self) -> &[u32] {
        self.row.special.as_ref().unwrap_or(&self.row.plain)
    }

    /// The first place where ids differ, in words.
    fn other_ids(&self, tokenizer: &Tokenizer, special: ParseSpecial) -> Option<String> {
        let wanted = match special {
            ParseSpecial::Yes => self.parsed(),
            ParseSpecial::No => &self.row.plain,
        };
        let found = tokenizer.encode(self.text, special).unwrap();
        let at = (0..=found.len().max(wanted.len())).find(|at| found.get(*at) != wanted.get(*at))?;
        let shown = |id: Option<&u32>| id.map(|id| tokenizer.token_text(*id).unwrap_or_default().to_owned());
        let (ours, theirs) = (shown(found.get(at)), shown(wanted.get(at)));
        Some(format!("{:?} ({special:?}): token {at} is {ours:?}, theirs is {theirs:?}", self.text))
    }

    /// How what the ids decode to differs, in words.
    fn other_text(&self, tokenizer: &Tokenizer, special: SpecialText) -> Option<String> {
        let shown = self.row.shown.as_deref().unwrap_or(self.text);
        let wanted = match special {
            SpecialText::Show => shown,
            SpecialText::Skip => self.row.skipped.as_deref().unwrap_or(shown),
        };
        let mut found = tokenizer.decode(self.parsed(), special);
        if special == SpecialText::Skip {
            for part in CHANNEL_PARTS.into_iter().filter(|part| self.text.contains(part)) {
                assert!(found.contains(part), "{:?}: {part} is not shown in {found:?}", self.text);
                found = found.replace(part, "");
            }
        }
        (found != wanted)
            .then(|| format!("{:?} ({special:?}): decodes to {found:?}, theirs to {wanted:?}", self.text))
    }
}

/// Nothing may differ; otherwise says how much does for each kind, and what first.
fn hold(differences: impl Fn(&Text<'_>, &Tokenizer) -> Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let References { texts, kinds } = reference::read("json-tokenizers.json");
    assert_eq!(kinds.len(), 12);
    assert!(texts.len() >= 180, "{} texts", texts.len());
    let mut wrong = Vec::new();
    for kind in &kinds {
        let tokenizer = kind.open(folder.path());
        let before: Vec<u32> = tokenizer.bos_to_add().into_iter().collect();
        assert_eq!(before, kind.before, "{}: before a text", kind.kind);
        let texts = texts.iter().map(String::as_str);
        let texts = texts.chain(kind.rows.iter().filter_map(|row| row.text.as_deref()));
        let texts: Vec<Text<'_>> = texts.zip(&kind.rows).map(|(text, row)| Text { text, row }).collect();
        assert_eq!(texts.len(), kind.rows.len(), "{}", kind.kind);
        let found: Vec<String> = texts.iter().filter_map(|text| differences(text, &tokenizer)).collect();
        println!("{:13} {} texts, {} differ", kind.kind, texts.len(), found.len());
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

//! The tokens of a model, and cutting special ones out of a text.

use std::collections::HashMap;

use super::{ParseSpecial, TokenizerError};
use crate::model_file::Header;

/// What a token is (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn of(number: i32) -> TokenKind {
        match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            6 => TokenKind::Byte,
            _ => TokenKind::Unused,
        }
    }
}

/// Tokens that end an answer wherever a vocabulary has them, as llama.cpp knows them by their text.
const END_TEXTS: [&str; 22] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
    "<｜end▁of▁sentence｜>",
];

/// A part of fill-in-the-middle prompts, with the keys that may name its token and the texts that it is known by where
/// none does. Such a token never comes from plain text, whatever its type in the file says.
struct MiddlePart {
    keys: &'static [&'static str],
    texts: &'static [&'static str],
    /// Whether it ends an answer, too: a model that writes it has come to another file.
    ends: bool,
}

const MIDDLE_PARTS: [MiddlePart; 6] = [
    MiddlePart {
        keys: &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends: false,
    },
    MiddlePart {
        keys: &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends: false,
    },
    MiddlePart {
        keys: &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends: false,
    },
    MiddlePart {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends: true,
    },
    MiddlePart {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends: true,
    },
    MiddlePart { keys: &["tokenizer.ggml.fim_sep_token_id"], texts: &["<|file_sep|>"], ends: true },
];

/// The parts of messages in channels, which always stand for themselves and are shown.
const CHANNEL_TEXTS: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Phi-3's special tokens that keep the white space after them; all others swallow it.
const PHI3_KEEPS_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// A piece of a text on its way to ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    /// To be split by the model; never empty.
    Text(&'t str),
    /// A special token that stood in the text.
    Token(u32),
}

/// All tokens with their kinds.
pub(super) struct Vocabulary {
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
    ids: HashMap<String, u32>,
    /// The ids of special tokens by the first byte of their text.
    special: HashMap<u8, Vec<u32>>,
    /// Whether most special tokens swallow the white space after them.
    swallows_space: bool,
}

impl Vocabulary {
    /// The first id that stands for another text here than there.
    pub(super) fn difference<'v>(&'v self, other: &'v Vocabulary) -> Option<(u32, &'v str, &'v str)> {
        let pairs = self.texts.iter().zip(&other.texts).enumerate();
        let mut differing = pairs.filter(|(_, (here, there))| here != there);
        differing.next().map(|(id, (here, there))| (id as u32, here.as_str(), there.as_str()))
    }

    pub(super) fn from_header(header: &Header) -> Result<Vocabulary, TokenizerError> {
        let key = "tokenizer.ggml.tokens";
        let texts = header.strings(key)?.ok_or(TokenizerError::Missing { key })?;
        let key = "tokenizer.ggml.token_type";
        let kinds = match header.i32s(key)? {
            None => vec![TokenKind::Normal; texts.len()],
            Some(kinds) if kinds.len() == texts.len() => kinds.into_iter().map(TokenKind::of).collect(),
            Some(kinds) => {
                let problem = format!("has {} entries for {} tokens", kinds.len(), texts.len());
                return Err(TokenizerError::Damaged { key, problem });
            }
        };
        let name = header.str("general.name")?.unwrap_or_default().to_ascii_lowercase();
        let tokens = texts.into_iter().zip(kinds).collect();
        let vocabulary = Vocabulary::new(tokens, "tokenizer.ggml.tokens")?;
        // The files say nothing of it: llama.cpp, too, knows these models by their name.
        Ok(Vocabulary { swallows_space: name.contains("phi-3") || name.contains("phi3"), ..vocabulary })
    }

    /// A vocabulary of these tokens, at most 2^24; `key` says where they come from.
    pub(super) fn new(
        tokens: Vec<(String, TokenKind)>,
        key: &'static str,
    ) -> Result<Vocabulary, TokenizerError> {
        let (mut texts, kinds): (Vec<String>, Vec<TokenKind>) = tokens.into_iter().unzip();
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in texts.iter_mut().enumerate() {
            if text.is_empty() {
                *text = format!("[EMPTY_{id}]");
            }
            if let Some(first) = ids.insert(text.clone(), id as u32) {
                let problem = format!("has `{text}` twice, as {first} and {id}");
                return Err(TokenizerError::Damaged { key, problem });
            }
        }
        Ok(Vocabulary { texts, kinds, ids, special: HashMap::new(), swallows_space: false })
    }

    /// The id under `key`, or else the default; ids past the vocabulary do not count, as in llama.cpp.
    pub(super) fn stated(
        &self,
        header: &Header,
        key: &'static str,
        default: Option<u32>,
    ) -> Result<Option<u32>, TokenizerError> {
        let fits = |id: u64| u32::try_from(id).ok().filter(|id| (*id as usize) < self.len());
        Ok(header.u64(key)?.and_then(fits).or(default.filter(|id| (*id as usize) < self.len())))
    }

    fn make(&mut self, text: &str, kind: TokenKind) -> Option<u32> {
        let id = self.id_of(text)?;
        self.kinds[id as usize] = kind;
        Some(id)
    }

    /// Finds the tokens that end an answer: those in `stated`, and those known by their text, which become control
    /// tokens. In ascending order. Then gets ready to cut special tokens out of texts.
    pub(super) fn mark_ends(
        &mut self,
        header: &Header,
        stated: impl Iterator<Item = u32>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ends: Vec<u32> = stated.collect();
        for part in &MIDDLE_PARTS {
            let mut named = Vec::new();
            for key in part.keys {
                named.extend(self.stated(header, key, None)?);
            }
            if named.is_empty() {
                named.extend(part.texts.iter().filter_map(|text| self.make(text, TokenKind::Control)));
            }
            if part.ends {
                ends.extend(named);
            }
        }
        ends.extend(END_TEXTS.iter().filter_map(|text| self.make(text, TokenKind::Control)));
        for text in CHANNEL_TEXTS {
            self.make(text, TokenKind::UserDefined);
        }
        let has = |text: &str| self.id_of(text).is_some_and(|id| ends.contains(&id));
        // With tool calls in channels `<|end|>` ends a message of several, not the answer.
        let calls = has("<|call|>") || has("<|calls|>");
        let in_channels = calls && (has("<|return|>") || has("<|flush|>"));
        // Where turns have an end of their own `</s>` is a piece of text.
        let in_turns = has("<|tool_response>");
        for (not_an_end, text, kind) in
            [(in_channels, "<|end|>", TokenKind::UserDefined), (in_turns, "</s>", TokenKind::Normal)]
        {
            if let Some(id) = self.id_of(text).filter(|id| not_an_end && ends.contains(id)) {
                ends.retain(|end| *end != id);
                self.kinds[id as usize] = kind;
            }
        }
        ends.sort_unstable();
        ends.dedup();
        for (id, (text, kind)) in self.texts.iter().zip(&self.kinds).enumerate() {
            if matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown) {
                self.special.entry(text.as_bytes()[0]).or_default().push(id as u32);
            }
        }
        Ok(ends)
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = (&str, u32)> {
        self.texts.iter().zip(0..).map(|(text, id)| (text.as_str(), id))
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    /// The token's kind; unused where the id is past the vocabulary.
    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// Cuts special tokens out of a text, the longest first. Tokens that users added to a vocabulary always stand for
    /// themselves; control tokens do where `special` says so.
    pub(super) fn fragments<'t>(&self, text: &'t str, special: ParseSpecial) -> Vec<Fragment<'t>> {
        let mut fragments = if text.is_empty() { Vec::new() } else { vec![Fragment::Text(text)] };
        for id in self.present(text, special) {
            let token = &self.texts[id as usize];
            let mut cut = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                let Fragment::Text(mut rest) = fragment else {
                    cut.push(fragment);
                    continue;
                };
                while let Some(at) = rest.find(token.as_str()) {
                    if at > 0 {
                        cut.push(Fragment::Text(&rest[..at]));
                    }
                    cut.push(Fragment::Token(id));
                    rest = &rest[at + token.len()..];
                    if self.swallows_space && !PHI3_KEEPS_SPACE.contains(&token.as_str()) {
                        rest = rest.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
                    }
                }
                if !rest.is_empty() {
                    cut.push(Fragment::Text(rest));
                }
            }
            fragments = cut;
        }
        fragments
    }

    /// The special tokens whose text occurs in `text`, longest first.
    fn present(&self, text: &str, special: ParseSpecial) -> Vec<u32> {
        let parsed = |id: u32| special == ParseSpecial::Yes || self.kind(id) == TokenKind::UserDefined;
        let mut present: Vec<u32> = Vec::new();
        for (at, byte) in text.bytes().enumerate() {
            let Some(ids) = self.special.get(&byte) else {
                continue;
            };
            for id in ids.iter().copied().filter(|id| parsed(*id)) {
                if text.as_bytes()[at..].starts_with(self.texts[id as usize].as_bytes())
                    && !present.contains(&id)
                {
                    present.push(id);
                }
            }
        }
        present.sort_unstable_by_key(|id| (usize::MAX - self.texts[*id as usize].len(), *id));
        present
    }
}

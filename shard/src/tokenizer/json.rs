//! The tokenizer of a directory of safetensors: `tokenizer.json`, and what the files beside it say of the ends of texts.
//!
//! Ids are those of Hugging Face's `tokenizers`, whose code does the splitting; decoding is our own, since it must work
//! token by token.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::tokenizer::{AddedVocabulary, OffsetReferential, OffsetType, PreTokenizer};
use tokenizers::{Model as _, ModelWrapper};

use super::vocabulary::{TokenKind, Vocabulary};
use super::{ParseSpecial, TokenizerError, bpe, sentencepiece};
use crate::model_file::Header;

const TOKENIZER: &str = "tokenizer.json";
const SETTINGS: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";
const CONFIG: &str = "config.json";

/// Largest number of token ids, in a model whose embedding is not known.
const MAX_VOCAB: u64 = 1 << 24;

/// A text's way to ids as `tokenizer.json` describes it.
pub(super) struct JsonTokenizer {
    /// Cuts special tokens out of texts.
    inner: tokenizers::Tokenizer,
    /// Takes special tokens for text.
    without_special: AddedVocabulary,
    spelling: Spelling,
    vocab: u32,
}

/// How tokens are spelt in the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spelling {
    /// One printable character for every byte.
    Bytes,
    /// As text with a sign for spaces, and single bytes such as `<0x0A>`.
    Spaces {
        /// Whether the space at a text's beginning is not the text's own.
        leading: bool,
    },
}

/// The tokenizer of a directory, with what belongs to it.
pub(super) struct Parts {
    pub(super) model: JsonTokenizer,
    pub(super) vocabulary: Vocabulary,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) end_ids: Vec<u32>,
}

/// Reads the tokenizer in `folder`, of the model with this header.
pub(super) fn read(folder: &Path, header: &Header) -> Result<Parts, TokenizerError> {
    let missing = TokenizerError::Missing { key: TOKENIZER };
    let text = fs::read(folder.join(TOKENIZER)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => missing,
        _ => damaged(TOKENIZER, error),
    })?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&text).map_err(|error| damaged(TOKENIZER, &*error))?;
    inner.with_padding(None).with_truncation(None).map_err(|error| damaged(TOKENIZER, &*error))?;
    let raw = object(folder, TOKENIZER)?;
    let spelling = spelling(raw.get("decoder").unwrap_or(&Json::Null))?;
    let vocab = vocab_size(header, &inner)?;
    let mut vocabulary = vocabulary(&inner, vocab)?;

    let (settings, generation, config) =
        (object(folder, SETTINGS)?, object(folder, GENERATION)?, object(folder, CONFIG)?);
    let token = |name: &str| {
        let token = settings.get(name)?;
        vocabulary.id_of(token.as_str().or_else(|| token.get("content")?.as_str())?)
    };
    let ids = |file: &Map<String, Json>, name: &str| -> Vec<u32> {
        let value = file.get(name).unwrap_or(&Json::Null);
        let one = std::slice::from_ref(value);
        let ids = value.as_array().map_or(one, Vec::as_slice).iter().filter_map(Json::as_u64);
        ids.filter_map(|id| u32::try_from(id).ok()).filter(|id| *id < vocab).collect()
    };
    let stated_ends = match generation.get("eos_token_id") {
        Some(_) => ids(&generation, "eos_token_id"),
        None => ids(&config, "eos_token_id"),
    };
    let eos = token("eos_token").or(stated_ends.first().copied());
    let added = added_before(&inner)?;
    let bos = token("bos_token").or(ids(&config, "bos_token_id").first().copied()).or(added);
    if settings.get("add_eos_token") == Some(&Json::Bool(true)) {
        return Err(damaged(SETTINGS, "has `add_eos_token`, but a text that goes on has no end"));
    }
    let add_bos = match settings.get("add_bos_token").and_then(Json::as_bool) {
        Some(add) => add,
        None => added.is_some(),
    };
    if add_bos && (bos.is_none() || added.is_some_and(|added| Some(added) != bos)) {
        return Err(damaged(TOKENIZER, "begins texts with a token that is not the model's `bos_token`"));
    }
    let end_ids = vocabulary.mark_ends(header, eos.into_iter().chain(stated_ends))?;
    let mut without_special = inner.get_added_vocabulary().clone();
    without_special.set_encode_special_tokens(true);
    let model = JsonTokenizer { inner, without_special, spelling, vocab };
    Ok(Parts { model, vocabulary, bos, eos, add_bos, end_ids })
}

impl JsonTokenizer {
    /// Appends the ids of `text`.
    pub(super) fn encode(
        &self,
        text: &str,
        special: ParseSpecial,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let added = match special {
            ParseSpecial::Yes => self.inner.get_added_vocabulary(),
            ParseSpecial::No => &self.without_special,
        };
        let split = |error: tokenizers::Error| TokenizerError::Text {
            problem: format!("cannot be split into tokens: {error}"),
        };
        let mut words = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(splitter) = self.inner.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut words).map_err(split)?;
        }
        let model = self.inner.get_model();
        words.tokenize(|word| model.tokenize(word.get())).map_err(split)?;
        for (_, _, tokens) in words.get_splits(OffsetReferential::Original, OffsetType::None) {
            ids.extend(tokens.iter().flatten().map(|token| token.id));
        }
        match ids.iter().find(|id| **id >= self.vocab) {
            Some(id) => {
                let problem = format!("has a token, {id}, that the model has no embedding for");
                Err(TokenizerError::Text { problem })
            }
            None => Ok(()),
        }
    }

    /// The bytes of a token that is neither special nor added.
    pub(super) fn bytes_of(&self, text: &str, kind: TokenKind) -> Vec<u8> {
        match self.spelling {
            Spelling::Bytes => bpe::bytes_of(text),
            Spelling::Spaces { .. } => sentencepiece::bytes_of(text, kind),
        }
    }

    /// Whether a text's first space is taken off again.
    pub(super) fn adds_leading_space(&self) -> bool {
        self.spelling == Spelling::Spaces { leading: true }
    }
}

fn damaged(key: &'static str, problem: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::Damaged { key, problem: problem.to_string().chars().take(400).collect() }
}

/// The members of a JSON file of a directory whose header was read, so that its size is known to be bearable; none where
/// it is not there.
fn object(folder: &Path, name: &'static str) -> Result<Map<String, Json>, TokenizerError> {
    match fs::read(folder.join(name)) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| damaged(name, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(damaged(name, error)),
    }
}

/// The number of token ids: the rows of the model's embedding.
fn vocab_size(header: &Header, inner: &tokenizers::Tokenizer) -> Result<u32, TokenizerError> {
    let rows = header.tensor("token_embd.weight").and_then(|embedding| embedding.dims.get(1).copied());
    let vocab = rows.unwrap_or(inner.get_vocab_size(true) as u64);
    if vocab > MAX_VOCAB {
        return Err(damaged(TOKENIZER, format_args!("has {vocab} tokens, at most {MAX_VOCAB} are possible")));
    }
    Ok(vocab as u32)
}

/// All tokens up to `vocab`; ids that no token has are unused.
fn vocabulary(inner: &tokenizers::Tokenizer, vocab: u32) -> Result<Vocabulary, TokenizerError> {
    let mut tokens: Vec<(String, TokenKind)> =
        (0..vocab).map(|id| (format!("[UNUSED_{id}]"), TokenKind::Unused)).collect();
    let (byte_fallback, unknown) = match inner.get_model() {
        ModelWrapper::BPE(model) => (model.byte_fallback, model.unk_token.clone()),
        ModelWrapper::Unigram(model) => (model.byte_fallback(), None),
        ModelWrapper::WordPiece(_) => return Err(not_supported("the model `WordPiece`")),
        ModelWrapper::WordLevel(_) => return Err(not_supported("the model `WordLevel`")),
    };
    let added = inner.get_added_tokens_decoder();
    for (text, id) in inner.get_vocab(true) {
        let kind = match added.get(&id).map(|token| token.special) {
            Some(true) => TokenKind::Control,
            Some(false) => TokenKind::UserDefined,
            None if Some(&text) == unknown.as_ref() => TokenKind::Unknown,
            None if byte_fallback && is_byte(&text) => TokenKind::Byte,
            None => TokenKind::Normal,
        };
        if let Some(token) = tokens.get_mut(id as usize) {
            *token = (text, kind);
        }
    }
    Vocabulary::new(tokens, TOKENIZER)
}

fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

fn not_supported(what: &str) -> TokenizerError {
    damaged(TOKENIZER, format_args!("has {what}, which is not supported: use a GGUF file of the model"))
}

/// How tokens are spelt, as the decoder tells.
fn spelling(decoder: &Json) -> Result<Spelling, TokenizerError> {
    let kind = decoder["type"].as_str().unwrap_or("none");
    let steps = match kind {
        "ByteLevel" => return Ok(Spelling::Bytes),
        "Metaspace" => {
            let never = decoder["prepend_scheme"] == "never" || decoder["add_prefix_space"] == false;
            return Ok(Spelling::Spaces { leading: !never });
        }
        "Sequence" => decoder["decoders"].as_array().map(Vec::as_slice).unwrap_or_default(),
        other => return Err(not_supported(&format!("the decoder `{other}`"))),
    };
    let mut leading = false;
    for step in steps {
        match step["type"].as_str().unwrap_or("none") {
            "Replace" if step["pattern"]["String"] == sentencepiece::SPACE && step["content"] == " " => {}
            "ByteFallback" | "Fuse" => {}
            "Strip" if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => leading = true,
            "ByteLevel" if steps.len() == 1 => return Ok(Spelling::Bytes),
            other => return Err(not_supported(&format!("the step `{other}` in its decoder"))),
        }
    }
    Ok(Spelling::Spaces { leading })
}

/// The token that the post-processor puts before a text.
fn added_before(inner: &tokenizers::Tokenizer) -> Result<Option<u32>, TokenizerError> {
    let ids = |special| match inner.encode("a", special) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(error) => Err(damaged(TOKENIZER, &*error)),
    };
    let (with, without) = (ids(true)?, ids(false)?);
    match with.strip_suffix(without.as_slice()) {
        Some([]) => Ok(None),
        Some([bos]) => Ok(Some(*bos)),
        _ => Err(not_supported(
            "a post-processor that puts more than one token before a text, or one after it",
        )),
    }
}

//! Text to token ids and back, as the model's own file defines it.
//!
//! Ids are the same as llama.cpp's for the same file: special tokens are cut out of the text first, then the text
//! between them is split by byte-level BPE (`tokenizer.ggml.model` = `gpt2`) or SentencePiece (`llama`). A file whose
//! splitting rules are not known is refused, since wrong ids give fluent nonsense. A directory of safetensors has a
//! `tokenizer.json`, whose ids are those of Hugging Face's `tokenizers`.

mod bpe;
mod json;
mod pretokenizer;
mod sentencepiece;
mod stream;
mod vocabulary;

pub use pretokenizer::known_pretokenizers;
pub use stream::{TextStart, TextStream};

use crate::model_file::{FileError, Header};
use bpe::Bpe;
use json::JsonTokenizer;
use sentencepiece::SentencePiece;
use vocabulary::{Fragment, TokenKind, Vocabulary};

/// A text is refused where it has more characters than this without a change between white space and other characters:
/// the pre-tokenizers' patterns try every position of such a run, and give up past a million tries.
pub const MAX_RUN_CHARACTERS: usize = 400_000;

/// Whether the text of special tokens, such as `<|im_end|>`, stands for those tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseSpecial {
    /// It does: for text that a chat template wrote.
    Yes,
    /// It is text like any other: for what users write.
    No,
}

/// Whether special tokens show up in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// As their text.
    Show,
    /// Not at all.
    Skip,
}

/// A tokenizer that cannot be built, or a text that it cannot encode.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TokenizerError {
    /// The metadata could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file lacks a part of its tokenizer.
    #[error("the file has no `{key}`: it holds no complete tokenizer")]
    Missing { key: &'static str },
    /// The kind of tokenizer is not known.
    #[error(
        "the tokenizer `{found}` is not supported, only `gpt2` (byte-level BPE) and `llama` (SentencePiece)"
    )]
    Model { found: String },
    /// The pre-tokenizer is not known.
    #[error(
        "the pre-tokenizer `{found}` is not known, and guessing it would give wrong token ids; these are known: {}",
        known_pretokenizers().collect::<Vec<_>>().join(", ")
    )]
    PreTokenizer { found: String },
    /// The tokenizer's parts contradict each other.
    #[error("`{key}` {problem}")]
    Damaged { key: &'static str, problem: String },
    /// A text that cannot be encoded.
    #[error("the text {problem}")]
    Text { problem: String },
}

enum Model {
    Bpe(Box<Bpe>),
    SentencePiece(SentencePiece),
    Json(Box<JsonTokenizer>),
}

/// Text to token ids and back.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    end_ids: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let model = match &self.model {
            Model::Bpe(_) => "byte-level BPE",
            Model::SentencePiece(_) => "SentencePiece",
            Model::Json(_) => "tokenizer.json",
        };
        f.debug_struct("Tokenizer")
            .field("model", &model)
            .field("vocab", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer that the file describes. Reads the vocabulary from the file.
    ///
    /// # Errors
    /// Where the tokenizer is missing, incomplete, contradicts itself, or of a kind that is not known.
    pub fn from_header(header: &Header) -> Result<Tokenizer, TokenizerError> {
        if let Some(folder) = header.tokenizer_folder() {
            let json::Parts { model, vocabulary, bos, eos, add_bos, end_ids } = json::read(folder, header)?;
            return Ok(Tokenizer {
                vocabulary,
                model: Model::Json(Box::new(model)),
                bos,
                eos,
                add_bos,
                end_ids,
            });
        }
        let model = header.str("tokenizer.ggml.model")?;
        let model = model.ok_or(TokenizerError::Missing { key: "tokenizer.ggml.model" })?;
        let mut vocabulary = Vocabulary::from_header(header)?;
        let id = |key: &'static str, default: Option<u32>| vocabulary.stated(header, key, default);
        // The ids that SentencePiece models have used from the first one on.
        let (bos, eos) = if model == "llama" { (Some(1), Some(2)) } else { (None, None) };
        let bos = id("tokenizer.ggml.bos_token_id", bos)?;
        let eos = id("tokenizer.ggml.eos_token_id", eos)?;
        let others = [id("tokenizer.ggml.eot_token_id", None)?, id("tokenizer.ggml.eom_token_id", None)?];
        let stated = eos.into_iter().chain(others.into_iter().flatten());
        let end_ids = vocabulary.mark_ends(header, stated)?;
        let (model, adds_bos) = match model {
            "gpt2" => {
                let pre = header.str("tokenizer.ggml.pre")?;
                let pre = pre.ok_or(TokenizerError::Missing { key: "tokenizer.ggml.pre" })?;
                let rules = pretokenizer::rules(pre);
                let rules = rules
                    .ok_or_else(|| TokenizerError::PreTokenizer { found: pre.chars().take(80).collect() })?;
                let adds_bos = rules.adds_bos;
                (Model::Bpe(Box::new(Bpe::new(header, &vocabulary, &rules)?)), adds_bos)
            }
            "llama" => (Model::SentencePiece(SentencePiece::new(header, &vocabulary)?), true),
            other => {
                return Err(TokenizerError::Model { found: other.chars().take(80).collect() });
            }
        };
        let add_bos = header.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
        if add_bos && bos.is_none() {
            return Err(TokenizerError::Missing { key: "tokenizer.ggml.bos_token_id" });
        }
        Ok(Tokenizer { vocabulary, model, bos, eos, add_bos, end_ids })
    }

    /// The ids of `text`, without a token before its beginning (see [`bos_to_add`](Tokenizer::bos_to_add)).
    ///
    /// # Errors
    /// Where the text has a run longer than [`MAX_RUN_CHARACTERS`], or characters that the vocabulary cannot express.
    pub fn encode(&self, text: &str, special: ParseSpecial) -> Result<Vec<u32>, TokenizerError> {
        check_runs(text)?;
        let mut ids = Vec::with_capacity(text.len() / 4);
        // SentencePiece puts a space before a text's beginning, and after every special token.
        let mut begins = true;
        let fragments = match self.model {
            // It cuts special tokens out itself, and has rules of its own for the white space around them.
            Model::Json(_) => vec![Fragment::Text(text)],
            _ => self.vocabulary.fragments(text, special),
        };
        for fragment in fragments {
            match (fragment, &self.model) {
                (Fragment::Token(id), _) => ids.push(id),
                (Fragment::Text(text), Model::Bpe(bpe)) => bpe.encode(text, &mut ids)?,
                (Fragment::Text(text), Model::SentencePiece(model)) => {
                    model.encode(text, begins, &self.vocabulary, &mut ids)?;
                }
                (Fragment::Text(text), Model::Json(model)) => model.encode(text, special, &mut ids)?,
            }
            begins = matches!(fragment, Fragment::Token(_));
        }
        Ok(ids)
    }

    /// The token that belongs before a text's first one, where the model wants any.
    pub fn bos_to_add(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The token that belongs before a chat that the model's template has written, where the template did not write it.
    ///
    /// None with `tokenizer.json`: there chats are what their template says, as transformers take them. A GGUF file's
    /// chats begin like its texts, as llama.cpp has them.
    pub fn bos_to_add_to_chat(&self) -> Option<u32> {
        match &self.model {
            Model::Json(_) => None,
            Model::Bpe(_) | Model::SentencePiece(_) => self.bos_to_add(),
        }
    }

    /// The token that begins a text, whether or not it is added.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The tokens that end an answer, in ascending order: end of text, of a turn, and of a message.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// The first token id that stands for another text here than in `other`, with both texts; `None` where all ids that
    /// both have mean the same. One may have more ids than the other: vocabularies are padded to round numbers.
    pub fn difference<'t>(&'t self, other: &'t Tokenizer) -> Option<(u32, &'t str, &'t str)> {
        self.vocabulary.difference(&other.vocabulary)
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token with this text in the vocabulary's own spelling, such as `<|im_end|>`.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.vocabulary.id_of(text)
    }

    /// A token's text in the vocabulary's own spelling; `None` past the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.text(id)
    }

    /// Every control token with its text, in ascending order.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let ids = 0..self.vocab_size() as u32;
        ids.filter(|id| self.vocabulary.kind(*id) == TokenKind::Control)
            .filter_map(|id| Some((id, self.vocabulary.text(id)?)))
    }

    /// The bytes that a token stands for; they need not be whole characters. None for an id past the vocabulary.
    pub fn decode_token_bytes(&self, id: u32, special: SpecialText) -> Vec<u8> {
        let Some(text) = self.vocabulary.text(id) else {
            return Vec::new();
        };
        match self.vocabulary.kind(id) {
            TokenKind::Control | TokenKind::Unknown => match special {
                SpecialText::Show => text.as_bytes().to_vec(),
                SpecialText::Skip => Vec::new(),
            },
            TokenKind::UserDefined => text.as_bytes().to_vec(),
            TokenKind::Unused => Vec::new(),
            TokenKind::Normal | TokenKind::Byte => match &self.model {
                Model::Bpe(_) => bpe::bytes_of(text),
                Model::SentencePiece(_) => sentencepiece::bytes_of(text, self.vocabulary.kind(id)),
                Model::Json(model) => model.bytes_of(text, self.vocabulary.kind(id)),
            },
        }
    }

    /// Whether encoding puts a space before a text's beginning, which decoding has to take off again.
    pub fn adds_leading_space(&self) -> bool {
        match &self.model {
            Model::Bpe(_) => false,
            Model::SentencePiece(model) => model.adds_leading_space(),
            Model::Json(model) => model.adds_leading_space(),
        }
    }

    /// The whole text of `ids`, as from its beginning.
    pub fn decode(&self, ids: &[u32], special: SpecialText) -> String {
        let mut stream = TextStream::new(TextStart::OfText, special);
        let mut text: String = ids.iter().map(|id| stream.push(self, *id)).collect();
        text.push_str(&stream.finish());
        text
    }
}

fn check_runs(text: &str) -> Result<(), TokenizerError> {
    if text.len() <= MAX_RUN_CHARACTERS {
        return Ok(());
    }
    let (mut run, mut white) = (0, false);
    for c in text.chars() {
        if c.is_whitespace() != white {
            (run, white) = (0, !white);
        }
        run += 1;
        if run > MAX_RUN_CHARACTERS {
            let what = if white { "white space" } else { "characters without white space" };
            let problem =
                format!("has more than {MAX_RUN_CHARACTERS} {what} in a row, which cannot be tokenized");
            return Err(TokenizerError::Text { problem });
        }
    }
    Ok(())
}

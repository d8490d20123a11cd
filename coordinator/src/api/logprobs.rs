//! Log-probabilities in the two shapes of OpenAI's API: parallel lists for completions, one object per token for chat.

use std::collections::BTreeMap;

use brigade_shard::tokenizer::{SpecialText, Tokenizer};
use serde::Serialize;

use super::choice::Piece;

/// What stands for minus infinity, which JSON cannot say; as OpenAI does it.
const LEAST_LOGPROB: f32 = -9999.0;

/// Log-probabilities of a completion: lists with one entry per token of the text.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CompletionLogprobs {
    /// Each token's part of the text; joined they are the text.
    tokens: Vec<String>,
    /// Each token's log-probability; none for the first token of an echoed prompt.
    token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens in its place and the token itself, by their text.
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where each token begins, in characters from the beginning of the choice's text.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds the tokens of a delta. `offset` is the length of the text before them in characters, and grows.
    pub(crate) fn extend(&mut self, pieces: &[Piece], offset: &mut usize, tokenizer: &Tokenizer) {
        for piece in pieces {
            self.tokens.push(piece.text.clone());
            self.token_logprobs.push(piece.logprob.map(finite));
            self.top_logprobs.push(piece.logprob.map(|own| by_text(piece, own, tokenizer)));
            self.text_offset.push(*offset);
            *offset += piece.text.chars().count();
        }
    }
}

/// The token itself and the most likely ones; of several with one text, the most likely.
fn by_text(piece: &Piece, own: f32, tokenizer: &Tokenizer) -> BTreeMap<String, f32> {
    let mut best = BTreeMap::from([(key_of(piece.token, tokenizer), finite(own))]);
    for (token, logprob) in piece.top.iter().filter(|(token, _)| *token != piece.token) {
        let seen = best.entry(key_of(*token, tokenizer)).or_insert(LEAST_LOGPROB);
        *seen = seen.max(finite(*logprob));
    }
    best
}

/// A token's own text as a key; bytes that are no text are spelt out, so that different tokens stay apart.
fn key_of(token: u32, tokenizer: &Tokenizer) -> String {
    String::from_utf8(tokenizer.decode_token_bytes(token, SpecialText::Show)).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        bytes.fold("bytes:".to_owned(), |key, byte| key + &byte)
    })
}

/// Log-probabilities of a chat message.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
    /// Refusals are not told apart from other content.
    refusal: Option<()>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    named: NamedToken,
    top_logprobs: Vec<NamedToken>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct NamedToken {
    /// The token's own text, with U+FFFD for bytes that are no text by themselves.
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl NamedToken {
    fn new(token: u32, logprob: f32, tokenizer: &Tokenizer) -> NamedToken {
        let bytes = tokenizer.decode_token_bytes(token, SpecialText::Show);
        NamedToken { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(logprob), bytes }
    }
}

impl ChatLogprobs {
    /// Adds the tokens of a delta.
    pub(crate) fn extend(&mut self, pieces: &[Piece], tokenizer: &Tokenizer) {
        self.content.extend(pieces.iter().map(|piece| {
            ChatToken {
                named: NamedToken::new(piece.token, piece.logprob.unwrap_or(LEAST_LOGPROB), tokenizer),
                top_logprobs: piece
                    .top
                    .iter()
                    .map(|(token, logprob)| NamedToken::new(*token, *logprob, tokenizer))
                    .collect(),
            }
        }));
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST_LOGPROB }
}

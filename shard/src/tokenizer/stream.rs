//! Token ids to text, as they come.

use super::{SpecialText, Tokenizer};

/// Where a stream's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextStart {
    /// At a text's beginning: the space that SentencePiece puts there is taken off.
    OfText,
    /// After other text, such as a prompt that it continues: every space counts.
    Continued,
}

/// Turns token ids into text one at a time, and holds back bytes that are not yet a whole character.
///
/// The pieces joined are the whole text; every piece is valid UTF-8, with U+FFFD for bytes that can never become a
/// character.
#[derive(Clone, Debug)]
pub struct TextStream {
    special: SpecialText,
    at_start: bool,
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
}

impl TextStream {
    /// A stream without text so far.
    pub fn new(start: TextStart, special: SpecialText) -> TextStream {
        TextStream { special, at_start: start == TextStart::OfText, pending: Vec::new() }
    }

    /// The text that one more token brings; often empty, where it ends inside a character.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let bytes = tokenizer.decode_token_bytes(id, self.special);
        let mut bytes = bytes.as_slice();
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            if tokenizer.adds_leading_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    // Without a length the bytes may still become a character.
                    let Some(invalid) = error.error_len() else {
                        self.pending.drain(..valid);
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + invalid);
                }
            }
        }
    }

    /// Whether no bytes are held back: all text so far has been given out.
    pub fn is_whole(&self) -> bool {
        self.pending.is_empty()
    }

    /// Ends the text: U+FFFD where it broke off inside a character, nothing otherwise.
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.pending).is_empty() {
            return String::new();
        }
        char::REPLACEMENT_CHARACTER.to_string()
    }
}

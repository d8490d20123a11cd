//! Prompts that an answer begins with.

use brigade_shard::tokenizer::{SpecialText, TextStart, TextStream, Tokenizer};

/// A prompt that the answer begins with.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    /// Its token ids.
    pub(crate) tokens: Vec<u32>,
    /// Its text as the client wrote it; `None` where it wrote token ids.
    pub(crate) text: Option<String>,
    /// Whether the first token was put before the client's text, and has no text of its own.
    pub(crate) bos_added: bool,
    /// Whether the answer waits for the log-probabilities of the prompt's tokens.
    pub(crate) scored: bool,
}

impl Echo {
    /// The text of each token. Special tokens are shown, since the client wrote them.
    pub(crate) fn pieces(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let mut stream = TextStream::new(TextStart::OfText, SpecialText::Show);
        let piece = |(at, token): (usize, &u32)| match at {
            0 if self.bos_added => String::new(),
            _ => stream.push(tokenizer, *token),
        };
        let mut pieces: Vec<String> = self.tokens.iter().enumerate().map(piece).collect();
        if let Some(last) = pieces.last_mut() {
            last.push_str(&stream.finish());
        }
        pieces
    }
}

//! Byte-level BPE: words whose bytes are written as printable characters, merged pair by pair.

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
};
use tokenizers::{Model, PreTokenizerWrapper};

use super::TokenizerError;
use super::pretokenizer::Rules;
use super::vocabulary::Vocabulary;
use crate::model_file::Header;

/// Key of the merges, best first, each two tokens with a space between.
const MERGES: &str = "tokenizer.ggml.merges";

/// The splitting of texts without special tokens.
pub(super) struct Bpe {
    words: Sequence,
    model: BPE,
}

impl Bpe {
    pub(super) fn new(
        header: &Header,
        vocabulary: &Vocabulary,
        rules: &Rules,
    ) -> Result<Bpe, TokenizerError> {
        let merges = header.strings(MERGES)?.ok_or(TokenizerError::Missing { key: MERGES })?;
        let merges = merges.iter().enumerate().map(|(index, merge)| {
            // A token may itself begin with a space, so that the first character never separates.
            let space = merge.char_indices().skip(1).find(|(_, c)| *c == ' ');
            let pair = space.map(|(at, _)| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
            pair.ok_or_else(|| {
                damaged(format!("entry {index} is `{merge}`, not two tokens with a space between"))
            })
        });
        let merges: Vec<(String, String)> = merges.collect::<Result<_, _>>()?;
        let vocab: tokenizers::models::bpe::Vocab =
            vocabulary.ids().map(|(text, id)| (text.to_owned(), id)).collect();
        let model =
            BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(rules.ignores_merges).build();
        let model = model.map_err(|error| damaged(format!("do not fit the vocabulary: {error}")))?;
        let mut words = Vec::new();
        for pattern in rules.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            words.push(PreTokenizerWrapper::Split(split.map_err(|error| text_error(&*error))?));
        }
        words.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
        Ok(Bpe { words: Sequence::new(words), model })
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut words = PreTokenizedString::from(text);
        self.words.pre_tokenize(&mut words).map_err(|error| text_error(&*error))?;
        for (word, _, _) in words.get_splits(OffsetReferential::Original, OffsetType::None) {
            let tokens = self.model.tokenize(word).map_err(|error| text_error(&*error))?;
            ids.extend(tokens.into_iter().map(|token| token.id));
        }
        Ok(())
    }
}

fn damaged(problem: String) -> TokenizerError {
    TokenizerError::Damaged { key: MERGES, problem }
}

fn text_error(error: &(dyn std::error::Error + Send + Sync)) -> TokenizerError {
    TokenizerError::Text { problem: format!("cannot be split into words: {error}") }
}

/// The bytes that a token's printable characters stand for. A character that stands for no byte is kept as it is.
pub(super) fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes
}

/// GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the others are numbered from U+0100 in order.
fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => {
            (0..=255).filter(|byte| !printable(*byte)).nth(usize::try_from(code).ok()?.checked_sub(256)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_printable_character() {
        let characters = (0u32..0x200).filter_map(char::from_u32);
        let mut bytes: Vec<u8> = characters.filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        bytes.dedup();
        assert_eq!(bytes.len(), 256);
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of('a'), byte_of('世')),
            (Some(b' '), Some(b'\n'), Some(b'a'), None)
        );
    }
}

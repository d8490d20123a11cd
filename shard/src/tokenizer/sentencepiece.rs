//! SentencePiece as llama models use it: the neighbours that make the best-scored token are merged first, and what is
//! in no token becomes its bytes.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::TokenizerError;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::model_file::Header;

/// How a space is written in the vocabulary.
pub(super) const SPACE: &str = "\u{2581}";
/// Key of the tokens' scores.
const SCORES: &str = "tokenizer.ggml.scores";
/// No neighbour.
const NONE: usize = usize::MAX;

/// The splitting of texts without special tokens.
pub(super) struct SentencePiece {
    scores: Vec<f32>,
    /// The token of every byte; `None` where the vocabulary has none for it.
    bytes: Vec<Option<u32>>,
    leading_space: bool,
}

/// A piece of the text, linked to its neighbours; a piece that was merged into its left neighbour is empty.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
    left: usize,
    right: usize,
}

/// Two neighbours that make a token.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Merge {
    /// The best score first, of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Merge {}

impl SentencePiece {
    pub(super) fn new(header: &Header, vocabulary: &Vocabulary) -> Result<SentencePiece, TokenizerError> {
        let scores = header.f32s(SCORES)?.ok_or(TokenizerError::Missing { key: SCORES })?;
        if scores.len() != vocabulary.len() {
            let problem = format!("has {} entries for {} tokens", scores.len(), vocabulary.len());
            return Err(TokenizerError::Damaged { key: SCORES, problem });
        }
        if let Some(index) = scores.iter().position(|score| score.is_nan()) {
            let problem = format!("entry {index} is not a number");
            return Err(TokenizerError::Damaged { key: SCORES, problem });
        }
        let byte_token = |byte: u8| {
            let hexadecimal = vocabulary.id_of(&format!("<0x{byte:02X}>"));
            hexadecimal.or_else(|| vocabulary.id_of(std::str::from_utf8(&[byte]).ok()?))
        };
        let bytes = (0..=255).map(byte_token).collect();
        let leading_space = header.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        // Adding 0 makes a negative zero equal to a positive one in the order of scores.
        Ok(SentencePiece { scores: scores.iter().map(|score| score + 0.0).collect(), bytes, leading_space })
    }

    pub(super) fn adds_leading_space(&self) -> bool {
        self.leading_space
    }

    /// Appends the ids of `text`, which is the beginning of a text or stands after a special token where `begins`.
    pub(super) fn encode(
        &self,
        text: &str,
        begins: bool,
        vocabulary: &Vocabulary,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut escaped = text.replace(' ', SPACE);
        if begins && self.leading_space {
            escaped.insert_str(0, SPACE);
        }
        let pieces = self.merge(&escaped, vocabulary);
        let mut at = if pieces.is_empty() { NONE } else { 0 };
        while at != NONE {
            let piece = pieces[at];
            let text = &escaped[piece.start..piece.start + piece.len];
            match vocabulary.id_of(text) {
                Some(id) => ids.push(id),
                None => self.encode_bytes(text, ids)?,
            }
            at = piece.right;
        }
        Ok(())
    }

    fn encode_bytes(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        for byte in text.bytes() {
            let id = self.bytes[usize::from(byte)];
            ids.push(id.ok_or_else(|| TokenizerError::Text {
                problem: format!("has `{text}`, which the model's vocabulary cannot express"),
            })?);
        }
        Ok(())
    }

    /// Splits a text into its characters and merges neighbours while they make tokens.
    fn merge(&self, text: &str, vocabulary: &Vocabulary) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Piece {
                start,
                len: c.len_utf8(),
                left: index.checked_sub(1).unwrap_or(NONE),
                right: index + 1,
            })
            .collect();
        if let Some(last) = pieces.last_mut() {
            last.right = NONE;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..pieces.len() {
            queue.extend(self.candidate(text, &pieces, right - 1, right, vocabulary));
        }
        while let Some(merge) = queue.pop() {
            let (left, right) = (pieces[merge.left], pieces[merge.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
                continue;
            }
            pieces[merge.left].len = merge.len;
            pieces[merge.left].right = right.right;
            pieces[merge.right].len = 0;
            if right.right != NONE {
                pieces[right.right].left = merge.left;
            }
            queue.extend(self.candidate(text, &pieces, left.left, merge.left, vocabulary));
            queue.extend(self.candidate(text, &pieces, merge.left, right.right, vocabulary));
        }
        pieces
    }

    fn candidate(
        &self,
        text: &str,
        pieces: &[Piece],
        left: usize,
        right: usize,
        vocabulary: &Vocabulary,
    ) -> Option<Merge> {
        if left == NONE || right == NONE {
            return None;
        }
        let (start, len) = (pieces[left].start, pieces[left].len + pieces[right].len);
        let id = vocabulary.id_of(&text[start..start + len])?;
        Some(Merge { score: self.scores[id as usize], left, right, len })
    }
}

/// The bytes of a normal token or a byte token such as `<0x0A>`.
pub(super) fn bytes_of(text: &str, kind: TokenKind) -> Vec<u8> {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match digits.filter(|_| kind == TokenKind::Byte).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(byte) => vec![byte],
        None => text.replace(SPACE, " ").into_bytes(),
    }
}

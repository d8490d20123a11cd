//! Prompts of about so many tokens for a server whose vocabulary is not known: short words that most vocabularies hold
//! whole, and how many tokens they turned out to be.

use super::form::Endpoint;
use crate::bench::Prompts;

/// Words that are one token, with the space before them, in the vocabularies of most models.
const WORDS: [&str; 64] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];

/// What a chat is asked at the end, so that its answer is long.
const CHAT_END: &str = ". Write a very long story with all of these words, and do not stop.";

/// Prompts of words. No two of 64 in a row begin alike, so that none finds another's beginning in a cache.
#[derive(Clone, Debug)]
pub(super) struct TextPrompts {
    indexes: Prompts,
    scale: Scale,
}

/// How many tokens words come to: so many each, and so many that a server puts around them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    tokens_per_word: f64,
    around: f64,
}

impl Default for Scale {
    fn default() -> Scale {
        Scale { tokens_per_word: 1.0, around: 0.0 }
    }
}

impl Scale {
    /// From two prompts, each by its words and the tokens that the server counted; `None` where these make no sense.
    pub(super) fn of(shorter: (u32, u64), longer: (u32, u64)) -> Option<Scale> {
        let words = f64::from(longer.0.checked_sub(shorter.0).filter(|words| *words > 0)?);
        let tokens_per_word = (longer.1 as f64 - shorter.1 as f64) / words;
        let around = shorter.1 as f64 - tokens_per_word * f64::from(shorter.0);
        // A word of our list is at least a token, and no vocabulary cuts it into more than its letters.
        (0.5..8.0).contains(&tokens_per_word).then_some(Scale { tokens_per_word, around })
    }

    /// Words for a prompt of about so many tokens; at least one.
    pub(super) fn words(self, tokens: u32) -> u32 {
        (((f64::from(tokens) - self.around) / self.tokens_per_word).round() as u32).max(1)
    }
}

impl TextPrompts {
    /// Prompts in which a word counts as a token; equal seeds give equal prompts.
    pub(super) fn new(seed: u64) -> TextPrompts {
        TextPrompts { indexes: Prompts::new(seed, WORDS.len() as u32), scale: Scale::default() }
    }

    /// From now on, words come to so many tokens.
    pub(super) fn calibrate(&mut self, scale: Scale) {
        self.scale = scale;
    }

    /// The next prompt, of about so many tokens.
    pub(super) fn next(&mut self, tokens: u32, endpoint: Endpoint) -> String {
        self.of_words(self.scale.words(tokens), endpoint)
    }

    /// The next prompt, of so many words.
    pub(super) fn of_words(&mut self, words: u32, endpoint: Endpoint) -> String {
        let words = self.indexes.next(words);
        let words: Vec<&str> = words.iter().filter_map(|index| WORDS.get(*index as usize).copied()).collect();
        let end = if endpoint == Endpoint::Chat { CHAT_END } else { "" };
        words.join(" ") + end
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn prompts_begin_differently_and_have_their_words() {
        let mut prompts = TextPrompts::new(5);
        let all: Vec<String> = (0..64).map(|_| prompts.of_words(20, Endpoint::Completions)).collect();
        let firsts: BTreeSet<&str> = all.iter().filter_map(|prompt| prompt.split(' ').next()).collect();
        assert_eq!(firsts.len(), 64);
        assert!(all.iter().all(|prompt| prompt.split(' ').count() == 20));
        assert!(prompts.next(1, Endpoint::Chat).ends_with("do not stop."));
    }

    #[test]
    fn words_follow_from_what_was_counted() {
        // 1.25 tokens a word, and 24 of a template.
        let scale = Scale::of((16, 44), (80, 124)).unwrap();
        assert_eq!((scale.words(512), scale.words(1), scale.words(24)), (390, 1, 1));
        assert_eq!(Scale::of((16, 44), (80, 44)), None, "nobody counts like that");
        assert_eq!(Scale::of((16, 44), (16, 44)), None);
        assert_eq!(Scale::default().words(512), 512);
    }
}

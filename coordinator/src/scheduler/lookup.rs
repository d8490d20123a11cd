//! Drafts by prompt lookup: what followed the last time that the sequence went as it goes now.
//!
//! Answers repeat their prompt (edits of code, summaries, quotations) and themselves. Of the places where the last two
//! tokens stood before, the one with the longest text in common before it is taken, the newest of equals, and what
//! follows it there is the guess. Places are found as compressors do (LZ77): the newest for each pair of tokens, and from
//! each to the one before it, of which a bounded number is looked at.

use std::collections::HashMap;

/// Most places that are compared: enough that one of a common pair's is likely to be a good one.
const MOST_PLACES: usize = 16;
/// Most tokens in common that are counted; beyond it the next token is as certain as it gets.
pub(super) const LONGEST_MATCH: usize = 32;
/// Most tokens that are taken up at a time, so that a prompt found in the cache holds nothing up.
const MOST_NEW: usize = 4096;
/// Stands for no place.
const NOWHERE: u32 = u32::MAX;

/// What is likely to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Guess {
    /// How many of the newest tokens stand before the place that it was taken from; none without a guess.
    pub(super) matched: usize,
    /// The tokens, in order.
    pub(super) tokens: Vec<u32>,
}

/// Where a sequence's tokens stood before. Of constant cost per token, and linear in memory.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// Tokens taken up.
    taken: usize,
    /// The newest place of each token.
    tokens: HashMap<u32, u32>,
    /// The newest place of each pair, which is that of its second token.
    pairs: HashMap<(u32, u32), u32>,
    /// For each place, the one before it where the same pair ends.
    before: Vec<u32>,
    /// Where the newest token stood before.
    token_before: Option<u32>,
    /// How many tokens there were at the last guess, and the place that it was taken from.
    last: Option<(usize, usize)>,
}

impl Lookup {
    /// Guesses up to `most` tokens after `tokens`, which begin with those of the time before.
    pub(super) fn guess(&mut self, tokens: &[u32], most: usize) -> Guess {
        self.take_up(tokens);
        let found = if self.taken < tokens.len() || most == 0 { None } else { self.best_place(tokens) };
        let Some((place, matched)) = found else {
            return Guess::default();
        };
        self.last = Some((tokens.len(), place));
        let period = tokens.len() - 1 - place;
        let mut guess = Vec::with_capacity(most);
        // What follows may run into the guess itself: something that repeats goes on repeating.
        for at in 0..most {
            guess.push(if at < period { tokens[place + 1 + at] } else { guess[at - period] });
        }
        Guess { matched, tokens: guess }
    }

    fn take_up(&mut self, tokens: &[u32]) {
        let end = tokens.len().min(self.taken + MOST_NEW);
        for place in self.taken..end {
            let token = tokens[place];
            self.token_before = self.tokens.insert(token, place as u32);
            let pair = place.checked_sub(1).map(|first| (tokens[first], token));
            let before = pair.and_then(|pair| self.pairs.insert(pair, place as u32));
            self.before.push(before.unwrap_or(NOWHERE));
        }
        self.taken = end;
    }

    /// The place to go on from, and how many tokens before it are those at the end.
    fn best_place(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        let newest = tokens.len().checked_sub(1)?;
        let next = |place: &u32| Some(self.before[*place as usize]).filter(|place| *place != NOWHERE);
        let pairs = std::iter::successors(next(&(newest as u32)), next).take(MOST_PLACES);
        // Where the last guess was right, what follows it may be, too, however many places are newer.
        let further = self.last.map(|(length, place)| (place + tokens.len() - length) as u32);
        let places = pairs.chain(further).chain(self.token_before).map(|place| place as usize);
        let matched = |place: usize| {
            let same = tokens[..=place].iter().rev().zip(tokens.iter().rev()).take(LONGEST_MATCH);
            same.take_while(|(a, b)| a == b).count()
        };
        let places = places.filter(|place| *place < newest).map(|place| (place, matched(place)));
        places.filter(|(_, matched)| *matched > 0).max_by_key(|(place, matched)| (*matched, *place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(text: &str, most: usize) -> (usize, String) {
        let tokens: Vec<u32> = text.chars().map(u32::from).collect();
        let found = Lookup::default().guess(&tokens, most);
        (found.matched, found.tokens.into_iter().filter_map(char::from_u32).collect())
    }

    #[test]
    fn what_followed_the_longest_text_in_common_follows_again() {
        assert_eq!(guess("the cat sat. the cow ran. the c", 5), (7, "ow ra".into()), "the newest of equals");
        assert_eq!(guess("a cat sat. the cow ran. a c", 3), (3, "at ".into()), "the longest of all");
        assert_eq!(guess("xyz-x", 3), (1, "yz-".into()), "a single token is better than none");
        assert_eq!(guess("abc", 3), (0, String::new()));
        assert_eq!(guess("", 3), (0, String::new()));
        assert_eq!(guess("abab", 0), (0, String::new()));
    }

    #[test]
    fn what_repeats_goes_on_repeating() {
        assert_eq!(guess("no no no ", 7), (6, "no no n".into()));
        assert_eq!(guess("aa", 4), (1, "aaaa".into()));
    }

    #[test]
    fn a_place_is_followed_although_many_newer_ones_look_alike() {
        // The passage to be copied has a common pair in it, which stands in many places after it.
        let passage = "q, r, s, t, u, v";
        let decoys = "w, ".repeat(3 * MOST_PLACES);
        let mut lookup = Lookup::default();
        let mut tokens: Vec<u32> = format!("{passage}{decoys}q, r").chars().map(u32::from).collect();
        for (at, wanted) in passage.chars().enumerate().skip(4) {
            let found = lookup.guess(&tokens, 1);
            assert_eq!(found.tokens, [u32::from(wanted)], "at {at}");
            tokens.push(u32::from(wanted));
        }
    }

    #[test]
    fn a_guess_does_not_depend_on_when_tokens_are_taken_up() {
        let mut random = crate::test_random::Random::new(3);
        let tokens: Vec<u32> = (0..3000).map(|_| random.below(6) as u32).collect();
        let mut lookup = Lookup::default();
        let (mut right, mut guesses) = (0, 0);
        for length in 1..tokens.len() {
            let found = lookup.guess(&tokens[..length], 2);
            let fresh = Lookup::default().guess(&tokens[..length], 2);
            // What was followed may be longer than anything that a fresh look finds.
            assert!(found.matched >= fresh.matched, "after {length}: {found:?} {fresh:?}");
            let end = &tokens[length - found.matched..length];
            let stood = tokens[..length].windows(end.len().max(1)).filter(|part| *part == end).count();
            assert!(found.matched == 0 || stood > 1, "after {length}: {found:?}");
            guesses += usize::from(!found.tokens.is_empty());
            right += usize::from(found.tokens.first() == Some(&tokens[length]));
        }
        assert!(guesses > 2900 && right > 300, "{right} of {guesses}");
    }

    #[test]
    fn a_long_prompt_is_taken_up_in_parts() {
        let tokens: Vec<u32> = (0..3 * MOST_NEW as u32).chain([7, 8]).collect();
        let mut lookup = Lookup::default();
        let found: Vec<Guess> = (0..4).map(|_| lookup.guess(&tokens, 2)).collect();
        assert_eq!(found[..3], [(); 3].map(|()| Guess::default()));
        assert_eq!(found[3], Guess { matched: 2, tokens: vec![9, 10] });
    }
}

//! Stop strings: found in text that arrives piece by piece, with no more held back than could still become one.

/// Looks for stop strings in a growing text.
#[derive(Clone, Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text that could be the beginning of a stop string.
    held: String,
}

/// What a piece of text has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Matched {
    /// No stop string yet: this much more text is certain.
    No(String),
    /// A stop string stands right after this text.
    Yes(String),
}

impl StopMatcher {
    /// A matcher for `stops`, none of which is empty.
    pub(crate) fn new(stops: Vec<String>) -> StopMatcher {
        StopMatcher { stops, held: String::new() }
    }

    /// Adds a piece of text. The stop string that begins first wins.
    pub(crate) fn push(&mut self, piece: &str) -> Matched {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
            text.truncate(at);
            return Matched::Yes(text);
        }
        self.held = text.split_off(text.len() - self.longest_beginning(&text));
        Matched::No(text)
    }

    /// The text held back, at the end of everything.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of `text` that are the beginning of a stop string; always whole characters.
    fn longest_beginning(&self, text: &str) -> usize {
        let beginning_of = |stop: &String| {
            let longest = text.len().min(stop.len() - 1);
            (1..=longest).rev().find(|len| {
                stop.is_char_boundary(*len) && text.as_bytes().ends_with(&stop.as_bytes()[..*len])
            })
        };
        self.stops.iter().filter_map(beginning_of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut seen = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Matched::No(text) => seen.push_str(&text),
                Matched::Yes(text) => return (seen + &text, true),
            }
        }
        (seen + &matcher.finish(), false)
    }

    #[test]
    fn a_stop_string_is_found_however_the_text_is_cut() {
        let text = "ab\n\nÄöü end of it";
        for stop in ["\n\n", "Ä", "öü e", "end of it", "b\n"] {
            let expected = (text[..text.find(stop).unwrap()].to_owned(), true);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(run(&[stop], &chars), expected, "{stop:?} char by char");
            for (cut, _) in text.char_indices() {
                let (left, right) = text.split_at(cut);
                assert_eq!(run(&[stop], &[left, "", right]), expected, "{stop:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn text_that_only_begins_like_a_stop_string_comes_out_whole() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "c", "a", "a"]), ("aaacaa".to_owned(), false));
        assert_eq!(run(&["€uro"], &["1 €", " and"]), ("1 € and".to_owned(), false));
    }

    #[test]
    fn no_more_is_held_back_than_could_still_match() {
        let mut matcher = StopMatcher::new(vec!["xyz".to_owned(), "yq".to_owned()]);
        assert_eq!(matcher.push("abc x"), Matched::No("abc ".to_owned()));
        assert_eq!(matcher.push("y"), Matched::No(String::new()));
        assert_eq!(matcher.push("!"), Matched::No("xy!".to_owned()));
    }

    #[test]
    fn the_first_of_several_stop_strings_wins() {
        assert_eq!(run(&["later", "so", "sooner"], &["and sooner or later"]), ("and ".to_owned(), true));
    }
}

//! The tag `generation`, with which templates for training mark what the assistant says. It writes nothing.

use std::borrow::Cow;

/// A template whose `generation` tags are conditions that always hold, which swallow the same white space.
pub(super) fn without_tags(source: &str) -> Cow<'_, str> {
    let mut plain = String::new();
    let mut copied = 0;
    for (at, _) in source.match_indices("{%") {
        let Some((word, length)) = tag(&source[at..]) else {
            continue;
        };
        plain.push_str(&source[copied..at]);
        plain.push_str(&source[at..at + length].replacen(
            word,
            if word == "generation" { "if true" } else { "endif" },
            1,
        ));
        copied = at + length;
    }
    if copied == 0 {
        return Cow::Borrowed(source);
    }
    plain.push_str(&source[copied..]);
    Cow::Owned(plain)
}

/// The word of a `generation` or `endgeneration` tag that the text begins with, and the tag's bytes.
fn tag(text: &str) -> Option<(&'static str, usize)> {
    let mark = |text: &str| usize::from(text.starts_with(['-', '+']));
    let mut at = "{%".len();
    at += mark(&text[at..]);
    at += text[at..].len() - text[at..].trim_start().len();
    let word = ["generation", "endgeneration"].into_iter().find(|word| text[at..].starts_with(word))?;
    at += word.len();
    at += text[at..].len() - text[at..].trim_start().len();
    at += mark(&text[at..]);
    text[at..].starts_with("%}").then_some((word, at + "%}".len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tag_is_replaced() {
        let source =
            "a {%- generation -%} b {% endgeneration %}{%+generation%}{{ 'generation' }}{% generations %}";
        let plain = "a {%- if true -%} b {% endif %}{%+if true%}{{ 'generation' }}{% generations %}";
        assert_eq!(without_tags(source), plain);
        for source in ["", "{%", "{% generation", "{% if generation %}{% endif %}", "{%- "] {
            assert!(matches!(without_tags(source), Cow::Borrowed(same) if same == source), "{source}");
        }
    }
}

//! Finding things by names as people write them.

use super::UnknownName;

/// How many near names an error tells.
const NEAREST: usize = 3;

/// What of a name counts: its letters and digits, in lower case, and a plus. An organisation before a slash does not, nor
/// what repositories add to say that a model follows instructions or lies in GGUF files.
pub(super) fn key(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name);
    let lower = name.to_lowercase().replace('+', "plus");
    let mut key: String = lower.chars().filter(|c| c.is_alphanumeric()).collect();
    for suffix in ["gguf", "instruct"] {
        if let Some(shorter) = key.strip_suffix(suffix).filter(|shorter| !shorter.is_empty()) {
            key = shorter.to_owned();
        }
    }
    key
}

/// The one of `all` that has the name; `names` gives what each is called.
///
/// # Errors
/// Where none has it, with the nearest names of all: the first that each of them has.
pub(super) fn find<'a, T>(
    what: &'static str,
    name: &str,
    all: &'a [T],
    names: impl Fn(&'a T) -> Vec<&'a str>,
) -> Result<&'a T, UnknownName> {
    let wanted = key(name);
    let has = |one: &&'a T| names(one).iter().any(|other| key(other) == wanted);
    all.iter().find(has).ok_or_else(|| {
        let called = all.iter().filter_map(|one| {
            let names = names(one);
            let distance = names.iter().map(|other| distance(&wanted, &key(other))).min()?;
            Some((distance, names.first().map(|first| (*first).to_owned())?))
        });
        let mut called: Vec<(usize, String)> = called.collect();
        called.sort();
        // What shares less than half of its letters is no near name.
        let near = called.into_iter().filter(|(distance, _)| distance * 2 <= wanted.len().max(4));
        let nearest = near.take(NEAREST).map(|(_, name)| name).collect();
        UnknownName { what, name: name.chars().take(80).collect(), nearest }
    })
}

/// How many letters must be put in, taken out or changed to make one text of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, wanted) in other.iter().enumerate() {
            let change = diagonal + usize::from(letter != *wanted);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (one, other, wanted) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
        {
            assert_eq!(distance(one, other), wanted, "{one} {other}");
            assert_eq!(distance(other, one), wanted, "{other} {one}");
        }
    }

    #[test]
    fn only_letters_and_digits_count() {
        assert_eq!(key("meta-llama/Llama-3.1-405B-Instruct"), key("llama 3_1 405b"));
        assert_eq!(key("bartowski/Llama-3.1-8B-Instruct-GGUF"), key("Llama 3.1 8B"));
        assert_ne!(key("Command R"), key("Command R+"));
    }
}

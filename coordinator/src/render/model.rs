//! A model's files in words: what they hold, what it computes, and what is unusual about it.

use std::fmt::Write as _;
use std::path::PathBuf;

use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

use super::table::{Align, Table};

/// What `brigade models show` says of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The id that requests would give.
    pub model: String,
    /// The model's own name; empty where the file has none.
    pub name: String,
    /// `general.architecture`; empty where the file has none.
    pub architecture: String,
    /// Its files, in order.
    pub files: Vec<PathBuf>,
    /// Size of all files together.
    pub file_bytes: Bytes,
    /// The model's identity, in hexadecimal.
    pub fingerprint: String,
    /// Weights, each counted once.
    pub parameters: u64,
    /// Weights that one token is multiplied with: of the experts, those that it takes; without the embedding. 0 where
    /// the model cannot be run.
    pub active_parameters: u64,
    /// Sizes that the file states, whether it can be run or not.
    pub stated: StatedCard,
    /// What it computes; `None` where it cannot be run.
    pub spec: Option<SpecCard>,
    /// The types of its tensors, the one with the most bytes first.
    pub types: Vec<TypeCard>,
    /// How text becomes tokens; `None` where the tokenizer cannot be used.
    pub tokenizer: Option<TokenizerCard>,
    /// The chat template; `None` where there is none, or it cannot be used.
    pub template: Option<TemplateCard>,
    /// What differs from most models.
    pub unusual: Vec<String>,
    /// Why it cannot be served; empty where it can.
    pub problems: Vec<String>,
}

/// Sizes as a file states them; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatedCard {
    /// Number of layers, with those that predict tokens beyond the next.
    pub layers: Option<u64>,
    /// Width of the hidden state.
    pub hidden: Option<u64>,
    /// Longest context that it was trained for, in tokens.
    pub context: Option<u64>,
}

/// What a model computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpecCard {
    /// Width of the hidden state.
    pub hidden: usize,
    /// Token ids.
    pub vocab: usize,
    /// Longest context that it was trained for, in tokens.
    pub context: usize,
    /// Number of layers.
    pub layers: usize,
    /// The kinds of layers, in the order in which they first occur.
    pub kinds: Vec<LayerKind>,
    /// Bytes of cache that a token takes in all layers together, with 2 bytes a value.
    pub cache_bytes_per_token: Bytes,
    /// Bytes of weights.
    pub weight_bytes: Bytes,
    /// Bytes of weights that are read for one token.
    pub active_bytes: Bytes,
    /// Floating-point operations of one token, without attention over the cache.
    pub flops_per_token: u64,
}

/// Layers that compute the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerKind {
    /// Which layers.
    pub layers: Vec<usize>,
    /// Their attention, in words.
    pub attention: String,
    /// Their feed-forward, in words.
    pub feed_forward: String,
}

/// Tensors of one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TypeCard {
    /// The type's name, such as `Q4_K`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many tensors.
    pub tensors: usize,
    /// Their values.
    pub values: u64,
    /// Their size.
    pub bytes: Bytes,
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizerCard {
    /// The kind, in words.
    pub kind: String,
    /// Token ids.
    pub tokens: usize,
    /// The token that is put before a text, where one is.
    pub begins_with: Option<EndToken>,
    /// The tokens that end an answer.
    pub ends_at: Vec<EndToken>,
}

/// A token with its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndToken {
    /// The id.
    pub id: u32,
    /// The text in the vocabulary's own spelling.
    pub text: String,
}

/// A chat template.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TemplateCard {
    /// Size of its source.
    pub bytes: usize,
}

/// The card as lines with a word before each, and a table of the tensors' types.
pub fn render_model(card: &ModelCard) -> String {
    let mut text = String::new();
    let mut line = |word: &str, what: &str| {
        // Names come from the file, which may hold anything. Writing to a String cannot fail.
        let clean: String = what.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let _ = writeln!(text, "{word:<13}{clean}");
    };
    line("model", &named(&card.model, &card.name));
    let files = match card.files.len() {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    };
    line(
        "size",
        &format!("{} in {files}, {} parameters{}", card.file_bytes, count(card.parameters), active(card)),
    );
    line("fingerprint", &card.fingerprint);
    line("architecture", if card.architecture.is_empty() { "not stated" } else { &card.architecture });
    if let Some(spec) = &card.spec {
        line(
            "layers",
            &format!("{}, hidden state of {}, {} token ids", spec.layers, spec.hidden, spec.vocab),
        );
        for kind in &spec.kinds {
            let which =
                if kind.layers.len() == spec.layers { "all".to_owned() } else { ranges(&kind.layers) };
            line("", &format!("{which}: {}", kind.attention));
            line("", &format!("{:width$}  {}", "", kind.feed_forward, width = which.chars().count()));
        }
        let cache = Bytes(spec.cache_bytes_per_token.0 * spec.context as u64);
        line(
            "context",
            &format!(
                "{} tokens; {} of cache a token in 16 bits, {cache} for all of it",
                spec.context, spec.cache_bytes_per_token
            ),
        );
        line(
            "a token",
            &format!(
                "reads {} of {} of weights, {} FLOP",
                spec.active_bytes,
                spec.weight_bytes,
                count(spec.flops_per_token)
            ),
        );
    }
    if card.spec.is_none() {
        let StatedCard { layers, hidden, context } = card.stated;
        let sizes = [("layers", layers), ("hidden state", hidden), ("context", context)];
        for (word, size) in sizes {
            line(word, &size.map_or("not stated".to_owned(), |size| format!("{size}, as the file states")));
        }
    }
    if let Some(tokenizer) = &card.tokenizer {
        line("tokenizer", &format!("{}, {} tokens", tokenizer.kind, tokenizer.tokens));
        if let Some(token) = &tokenizer.begins_with {
            line("", &format!("begins a text with {}", quoted(token)));
        }
        let ends: Vec<String> = tokenizer.ends_at.iter().map(quoted).collect();
        line(
            "",
            &format!("ends at {}", if ends.is_empty() { "nothing".to_owned() } else { ends.join(", ") }),
        );
    }
    let template = card.template.map_or("none that can be used: chats are refused".to_owned(), |template| {
        format!("{} of Jinja", Bytes(template.bytes as u64))
    });
    line("template", &template);
    for unusual in &card.unusual {
        line("unusual", unusual);
    }
    for problem in &card.problems {
        line("problem", problem);
    }
    let mut table = Table::new(&[
        ("TYPE", Align::Left),
        ("TENSORS", Align::Right),
        ("VALUES", Align::Right),
        ("BYTES", Align::Right),
        ("BITS A VALUE", Align::Right),
    ]);
    for kind in &card.types {
        table.row([
            kind.kind.clone(),
            kind.tensors.to_string(),
            count(kind.values),
            kind.bytes.to_string(),
            format!("{:.2}", kind.bytes.0 as f64 * 8.0 / kind.values.max(1) as f64),
        ]);
    }
    if !table.is_empty() {
        let _ = write!(text, "\n{table}");
    }
    text
}

fn named(id: &str, name: &str) -> String {
    if name.is_empty() || name == id { id.to_owned() } else { format!("{id} ({name})") }
}

fn active(card: &ModelCard) -> String {
    // The embedding is never multiplied with, so that dense models have somewhat fewer active parameters too.
    let dense = card.active_parameters == 0 || card.active_parameters * 2 > card.parameters;
    if dense { String::new() } else { format!(", {} of them for a token", count(card.active_parameters)) }
}

fn quoted(token: &EndToken) -> String {
    format!("`{}` ({})", token.text, token.id)
}

/// A large number with three digits and its unit: `135 M`, `671 G`.
pub(crate) fn count(n: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)];
    let Some((unit, size)) = UNITS.iter().find(|(_, size)| n >= *size) else {
        return n.to_string();
    };
    let value = n as f64 / *size as f64;
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

/// Most ranges of layers that are written out.
const MAX_RANGES: usize = 4;

/// Layers as ranges with both ends, such as `0-2, 4`; many are cut short.
fn ranges(layers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == layer => *end = layer,
            _ => ranges.push((layer, layer)),
        }
    }
    let words = ranges
        .iter()
        .take(MAX_RANGES)
        .map(|(start, end)| if start == end { start.to_string() } else { format!("{start}-{end}") });
    let words: Vec<String> = words.collect();
    let word = if layers.len() == 1 { "layer" } else { "layers" };
    let rest =
        if ranges.len() > MAX_RANGES { format!(", ... ({} of them)", layers.len()) } else { String::new() };
    format!("{word} {}{rest}", words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.00 k"),
            (134_515_008, "135 M"),
            (9_996_000, "10.0 M"),
            (671_026_419_200, "671 G"),
            (1_040_000_000_000, "1.04 T"),
        ] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn layers_are_told_in_ranges() {
        assert_eq!(ranges(&[3]), "layer 3");
        assert_eq!(ranges(&[0, 1, 2, 4]), "layers 0-2, 4");
        assert_eq!(ranges(&[0, 2, 4, 6, 8, 10]), "layers 0, 2, 4, 6, ... (6 of them)");
    }
}

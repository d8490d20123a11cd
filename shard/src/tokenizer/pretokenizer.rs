//! The patterns that split a text into words before byte-level BPE (`tokenizer.ggml.pre`).

/// How a pre-tokenizer works.
pub(super) struct Rules {
    /// Applied one after another, each to what the ones before left apart; what matches stands alone, and so does
    /// what lies between two matches.
    pub(super) patterns: &'static [&'static str],
    /// Whether a word that is a token is taken whole before any merge.
    pub(super) ignores_merges: bool,
    /// Whether texts begin with a token of their own where the file does not say.
    pub(super) adds_bos: bool,
}

/// The names of the pre-tokenizers that are known.
pub const KNOWN_PRETOKENIZERS: [&str; 13] = [
    "default",
    "gpt-2",
    "smollm",
    "starcoder",
    "refact",
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "pixtral",
    "tekken",
    "smaug-bpe",
    "dbrx",
];

/// GPT-2's words: contractions, letters, digits and other signs, each with a space before it, and white space.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// Llama 3's: contractions in any case, one sign before a word, at most three digits, line ends apart.
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's: words end where lower case meets upper case, digits stand alone.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The rules of the pre-tokenizer `name`; `None` where it is not known.
pub(super) fn rules(name: &str) -> Option<Rules> {
    let rules = |patterns, ignores_merges, adds_bos| Some(Rules { patterns, ignores_merges, adds_bos });
    match name {
        "default" => rules(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], false, false),
        "gpt-2" => rules(&[GPT2], false, false),
        "smollm" | "starcoder" | "refact" => rules(&[r"\p{N}", GPT2], false, false),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => rules(&[LLAMA3], true, true),
        "smaug-bpe" | "dbrx" => rules(&[LLAMA3], false, false),
        "tekken" => rules(&[TEKKEN], true, true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_named_pretokenizers_are_known() {
        for name in KNOWN_PRETOKENIZERS {
            assert!(rules(name).is_some(), "{name}");
        }
        for name in ["", "llama-spm", "qwen2", "SMOLLM"] {
            assert!(rules(name).is_none(), "{name}");
        }
    }
}

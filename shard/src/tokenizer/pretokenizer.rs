//! The patterns that split a text into words before byte-level BPE (`tokenizer.ggml.pre`).
//!
//! They follow what llama.cpp does with a name, which is not always what the model's own tokenizer does: letters are
//! upper or lower case by ASCII alone, Kimi's words do not end where the case changes, and DeepSeek's ranges of CJK
//! leave out the white space that lies within them. Which characters are letters is a matter of this program's Unicode
//! tables, which are newer than llama.cpp's: a letter that Unicode has gained since 15.1 may be split in another way.

/// How a pre-tokenizer works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Applied one after another, each to what the ones before left apart; what matches stands alone, and so does
    /// what lies between two matches.
    pub(super) patterns: &'static [&'static str],
    /// Whether a word that is a token is taken whole before any merge.
    pub(super) ignores_merges: bool,
    /// Whether texts begin with a token of their own where the file does not say.
    pub(super) adds_bos: bool,
}

impl Rules {
    const fn of(patterns: &'static [&'static str]) -> Rules {
        Rules { patterns, ignores_merges: false, adds_bos: false }
    }

    const fn ignoring_merges(self) -> Rules {
        Rules { ignores_merges: true, ..self }
    }

    const fn adding_bos(self) -> Rules {
        Rules { adds_bos: true, ..self }
    }
}

/// GPT-2's words: contractions, letters, digits and other signs, each with a space before it, and white space.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// Llama 3's: contractions in any case, one sign before a word, at most three digits, line ends apart.
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen's: Llama 3's with digits alone.
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's: combining marks belong to words.
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's: words end where lower case meets upper case, digits stand alone.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// OpenAI's o200k: Mistral's with contractions at the end of words, and at most three digits.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Kimi's: Chinese characters apart, words with a contraction at their end, at most three digits.
const KIMI_K2: &str = r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek's first models: line ends, letters of alphabets with two cases, signs, white space at the end, CJK, digits.
const DEEPSEEK_LLM: [&str; 6] = [
    r"[\r\n]",
    CASED,
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}\x{3002}]+",
    r"\s+$",
    CJK,
    r"\p{N}+",
];
/// DeepSeek Coder's: line ends, words, signs, CJK, digits alone.
const DEEPSEEK_CODER: [&str; 5] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"];
/// Runs of letters of the alphabets with two cases, with one white space before them.
const CASED: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
/// The scripts from U+0800 to Han, and Hangul, without the white space among them.
const CJK: &str = r"[[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&[^\s]]+";
/// DeepSeek V3's: at most three digits, Han and kana, then words with their marks, signs and white space.
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// Every pre-tokenizer that is known: the names that files have for it, and how it works.
const KNOWN: [(&[&str], Rules); 15] = [
    (&["default"], Rules::of(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"])),
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "gigachat",
            "trillion",
            "granite-docling",
            "exaone4",
            "mellum",
            "a.x-4.0",
        ],
        Rules::of(&[GPT2]),
    ),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        Rules::of(&[r"\p{N}", GPT2]),
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0"],
        Rules::of(&[LLAMA3]).ignoring_merges().adding_bos(),
    ),
    (&["glm4", "glm5"], Rules::of(&[LLAMA3]).ignoring_merges()),
    (&["minicpm5"], Rules::of(&[r"\p{N}{1,3}", LLAMA3]).ignoring_merges()),
    (&["smaug-bpe", "dbrx", "chatglm-bpe"], Rules::of(&[LLAMA3])),
    (&["tekken"], Rules::of(&[TEKKEN]).ignoring_merges().adding_bos()),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], Rules::of(&[GPT4O])),
    (
        &["qwen2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "stablelm2", "grok-2", "kormo"],
        Rules::of(&[QWEN2]),
    ),
    (&["qwen35"], Rules::of(&[QWEN35])),
    (&["deepseek-llm"], Rules::of(&DEEPSEEK_LLM)),
    (&["deepseek-coder"], Rules::of(&DEEPSEEK_CODER)),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], Rules::of(&DEEPSEEK_V3)),
    (&["kimi-k2"], Rules::of(&[KIMI_K2])),
];

/// The names of the pre-tokenizers that are known.
pub fn known_pretokenizers() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().flat_map(|(names, _)| names.iter().copied())
}

/// The rules of the pre-tokenizer `name`; `None` where it is not known.
pub(super) fn rules(name: &str) -> Option<Rules> {
    KNOWN.iter().find(|(names, _)| names.contains(&name)).map(|(_, rules)| *rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_named_pretokenizers_are_known() {
        let mut names: Vec<&str> = known_pretokenizers().collect();
        for name in &names {
            assert!(rules(name).is_some(), "{name}");
        }
        for name in ["", "llama-spm", "qwen", "SMOLLM"] {
            assert!(rules(name).is_none(), "{name}");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "no name stands twice");
    }
}

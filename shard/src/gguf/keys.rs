//! Which metadata keys mean something, outside those of an architecture.

use crate::model_file::Header;

/// Beginnings of keys that describe a file and change nothing that is computed.
const DESCRIPTIONS: [&str; 2] = ["general.", "split."];

/// The keys of tokenizers and templates that files are known to have.
const TOKENIZER: [&str; 27] = [
    "tokenizer.chat_template",
    "tokenizer.chat_templates",
    "tokenizer.huggingface.json",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.fim_mid_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
    "tokenizer.ggml.fim_suf_token_id",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.model",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.scores",
    // Spelt like this in every file.
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.unknown_token_id",
];

impl Header {
    /// The keys that nobody reads and that are not known to be mere descriptions, in order. Those of the file's own
    /// architecture are not among them: a [`ModelSpec`](crate::spec::ModelSpec) is refused where one is not known.
    pub fn unknown_keys(&self) -> Vec<&str> {
        let architecture = match self.str("general.architecture") {
            Ok(Some(architecture)) => format!("{architecture}."),
            _ => String::new(),
        };
        let is_known = |key: &str| {
            DESCRIPTIONS.iter().any(|start| key.starts_with(start))
                || TOKENIZER.contains(&key)
                || key.starts_with("tokenizer.chat_template.")
                || (!architecture.is_empty() && key.starts_with(&architecture))
        };
        self.metadata().map(|(key, _)| key).filter(|key| !is_known(key)).collect()
    }
}

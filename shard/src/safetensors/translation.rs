//! From the keys of `config.json` to the hyper-parameters that a family's parser reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde_json::{Map, Value as Json};

use super::json::describe;
use crate::model_file::{Place, Problem, TensorInfo, Value};
use crate::tensor_type::TensorType;
use crate::units::Bytes;

/// Keys that say nothing about what is computed: they concern training, generation, or how the weights are kept.
const HARMLESS: [&str; 33] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "max_window_layers",
    "model_max_length",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Keys that older transformers write into every object, for generation, for training, and for models of other kinds.
const OF_ANY_MODEL: [&str; 36] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "typical_p",
    "use_bfloat16",
];

/// What follows from `config.json`, as far as it has been read.
pub(super) struct Translation<'c> {
    config: &'c Map<String, Json>,
    read: BTreeSet<String>,
    architecture: &'static str,
    pub(super) metadata: BTreeMap<String, Value>,
    /// The key of `config.json` that each hyper-parameter comes from.
    pub(super) spellings: BTreeMap<String, String>,
    /// Tensors whose values follow from the configuration.
    pub(super) stated: Vec<TensorInfo>,
}

impl<'c> Translation<'c> {
    /// Begins the translation for a family that is called `architecture` in GGUF files.
    pub(super) fn new(config: &'c Map<String, Json>, architecture: &'static str) -> Translation<'c> {
        let harmless = HARMLESS.iter().chain(&OF_ANY_MODEL);
        let read = harmless.map(|key| (*key).to_owned()).collect();
        let metadata =
            BTreeMap::from([("general.architecture".to_owned(), Value::Str(architecture.to_owned()))]);
        let (spellings, stated) = (BTreeMap::new(), Vec::new());
        Translation { config, read, architecture, metadata, spellings, stated }
    }

    /// The value of `key`, which counts as read from now on; `None` where it is absent or null.
    pub(super) fn get(&mut self, key: &str) -> Option<&'c Json> {
        self.read.insert(key.to_owned());
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// Whether the configuration states `key`, be it as null.
    pub(super) fn states(&self, key: &str) -> bool {
        self.config.contains_key(key)
    }

    /// States the hyper-parameter `name`, which comes from `key`.
    pub(super) fn put(&mut self, key: &str, name: &str, value: Value) {
        let name = format!("{}.{name}", self.architecture);
        self.spellings.insert(name.clone(), key.to_owned());
        self.metadata.insert(name, value);
    }

    /// States a tensor with these values.
    pub(super) fn put_tensor(&mut self, name: &str, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let size = Bytes(bytes.len() as u64);
        let place = Place::Stated(bytes.into());
        let dims = vec![values.len() as u64];
        self.stated.push(TensorInfo::whole(name.to_owned(), dims, TensorType::F32, size, place));
    }

    /// A count that may be absent.
    pub(super) fn optional_count(&mut self, key: &str) -> Result<Option<u64>, Problem> {
        self.get(key).map(|value| count_of(key, value)).transpose()
    }

    /// A count.
    pub(super) fn count(&mut self, key: &str) -> Result<u64, Problem> {
        self.optional_count(key)?.ok_or_else(|| missing(key))
    }

    /// A number that may be absent.
    pub(super) fn optional_number(&mut self, key: &str) -> Result<Option<f64>, Problem> {
        self.get(key).map(|value| number_of(key, value)).transpose()
    }

    /// A number.
    pub(super) fn number(&mut self, key: &str) -> Result<f64, Problem> {
        self.optional_number(key)?.ok_or_else(|| missing(key))
    }

    /// A bool that may be absent.
    pub(super) fn optional_flag(&mut self, key: &str) -> Result<Option<bool>, Problem> {
        let value = self.get(key);
        value.map(|value| value.as_bool().ok_or_else(|| wrong(key, value, "true or false"))).transpose()
    }

    /// Passes a count on as the hyper-parameter `name`.
    pub(super) fn pass_count(&mut self, key: &str, name: &str) -> Result<u64, Problem> {
        let value = self.count(key)?;
        self.put(key, name, Value::Unsigned(value));
        Ok(value)
    }

    /// Passes a number on as the hyper-parameter `name`.
    pub(super) fn pass_number(&mut self, key: &str, name: &str) -> Result<(), Problem> {
        let value = self.number(key)?;
        self.put(key, name, Value::Float(value));
        Ok(())
    }

    /// Refuses every value of `key` but `only`, and its absence.
    pub(super) fn require(&mut self, key: &str, only: &Json) -> Result<(), Problem> {
        if !self.states(key) {
            return Err(missing(key));
        }
        self.allow(key, only)
    }

    /// Refuses every value of `key` but `only`; it may be absent or null.
    pub(super) fn allow(&mut self, key: &str, only: &Json) -> Result<(), Problem> {
        match self.get(key) {
            Some(value) if !equal(value, only) => {
                Err(unsupported(key, describe(value), &format!(": only {only} is")))
            }
            _ => Ok(()),
        }
    }

    /// Takes any value of keys that change nothing in this family.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        self.read.extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Refuses `layer_types` that are not `wanted` of each layer; they may be absent.
    pub(super) fn layer_types(
        &mut self,
        layers: u64,
        wanted: impl Fn(u64) -> &'static str,
    ) -> Result<bool, Problem> {
        let key = "layer_types";
        let Some(value) = self.get(key) else {
            return Ok(false);
        };
        let types = value.as_array().ok_or_else(|| wrong(key, value, "an array"))?;
        if types.len() as u64 != layers {
            return Err(wrong(key, value, &format!("one entry for each of the {layers} layers")));
        }
        for (layer, found) in (0..).zip(types) {
            if found.as_str() != Some(wanted(layer)) {
                let found = format!("{} for layer {layer}", describe(found));
                return Err(unsupported(key, found, &format!(": only \"{}\" is there", wanted(layer))));
            }
        }
        Ok(true)
    }

    /// Ends the reading: every key must have been read.
    pub(super) fn finish(&self) -> Result<(), Problem> {
        let unread = self.config.keys().filter(|key| !self.read.contains(*key));
        let keys: Vec<String> = unread.take(8).map(|key| key.chars().take(80).collect()).collect();
        if keys.is_empty() { Ok(()) } else { Err(Problem::UnreadSettings { keys }) }
    }
}

/// Whether two values are the same, whichever way numbers are written.
fn equal(a: &Json, b: &Json) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The value of `key` as a count.
pub(super) fn count_of(key: &str, value: &Json) -> Result<u64, Problem> {
    value.as_u64().ok_or_else(|| wrong(key, value, "an integer that is not negative"))
}

/// The value of `key` as a number.
pub(super) fn number_of(key: &str, value: &Json) -> Result<f64, Problem> {
    value.as_f64().ok_or_else(|| wrong(key, value, "a number"))
}

/// A key without which nothing can be computed.
pub(super) fn missing(key: &str) -> Problem {
    Problem::MissingSetting { key: key.to_owned() }
}

/// A key with a value that none can have.
pub(super) fn wrong(key: &str, value: &Json, wanted: &str) -> Problem {
    Problem::WrongSetting { key: key.into(), found: describe(value), wanted: wanted.into() }
}

/// A key that asks for something that is not built.
pub(super) fn unsupported(key: &str, found: impl Display, hint: &str) -> Problem {
    Problem::UnsupportedSetting { key: key.into(), found: found.to_string(), hint: hint.into() }
}

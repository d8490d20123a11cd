//! Models by their hyper-parameters.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Mix, UnknownName, names};
use crate::cost::Cost;
use crate::model_file::{Contents, Fingerprint, Header, Place, Source, TensorInfo, Value};
use crate::spec::{FeedForward, ModelSpec};
use crate::tensor_type::TensorType;
use crate::tensors::{Role, TensorTable, shapes};
use crate::units::Bytes;

/// A model as it was published.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogueModel {
    /// Such as `Llama 3.1 405B`.
    pub name: String,
    /// Other names that it is found by, among them those of Hugging Face repositories.
    pub also: Vec<String>,
    /// Weights, each counted once.
    pub parameters: u64,
    /// Weights that one token is multiplied with: of the experts, those that it takes; the embedding only where it is the
    /// output matrix, too.
    pub active_parameters: u64,
    /// The longest context that it was trained for, in tokens.
    pub context_length: u32,
    /// Where its hyper-parameters are from.
    pub source: String,
    /// How its publisher states the number of its parameters.
    published_parameters: String,
    /// What a GGUF file of it says of itself.
    metadata: BTreeMap<String, Value>,
    spec: ModelSpec,
    /// Its tensors' roles and dimensions, in the order of computation.
    shapes: Vec<(Role, Vec<u64>)>,
}

impl CatalogueModel {
    /// What its parts cost in a mix.
    pub fn cost(&self, mix: Mix) -> Cost {
        let table = TensorTable::new(&self.header(mix), &self.spec)
            .expect("a header made of a spec has the tensors of that spec, and a test makes every one");
        Cost::new(&self.spec, &table)
    }

    /// What it computes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// How many parameters its publisher says that it has, such as `405B`.
    pub fn published_parameters(&self) -> &str {
        &self.published_parameters
    }

    /// What the header of a file in that mix says, but for tokenizer and template. There is no such file: nothing can be
    /// read by it.
    pub fn header(&self, mix: Mix) -> Header {
        let mut offset = 0;
        let tensors = self.shapes.iter().map(|(role, dims)| {
            let kind = mix.tensor_type(&self.spec, *role, dims[0]);
            let tensor = tensor(self.spec.family.tensor_name(*role), dims, kind, offset);
            offset += tensor.bytes.0;
            tensor
        });
        let tensors = tensors.collect();
        header(&format!("{}:{mix}", self.name), self.metadata.clone(), tensors)
            .expect("every role has a name of its own, and a test makes every header")
    }
}

fn tensor(name: String, dims: &[u64], kind: TensorType, offset: u64) -> TensorInfo {
    let values = dims.iter().product();
    // A type is only given to rows that are whole blocks of it.
    let bytes = kind.bytes_of(values).unwrap_or(Bytes::ZERO);
    TensorInfo::whole(name, dims.to_vec(), kind, bytes, Place::File { part: 0, offset })
}

fn header(
    name: &str,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
) -> Result<Header, crate::model_file::FileError> {
    Header::new(Contents {
        source: Source::Gguf { first_len: 0 },
        parts: vec![PathBuf::from(name)],
        file_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        metadata,
        fingerprint: Fingerprint::new(Sha256::digest(name.as_bytes()).into()),
        tensors,
    })
}

/// The file's rows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    also: Vec<String>,
    architecture: String,
    vocab: u64,
    tied: bool,
    divisors: bool,
    parameters: String,
    source: String,
    keys: BTreeMap<String, toml::Value>,
}

impl Row {
    /// The model whose tensors follow from the keys.
    ///
    /// # Errors
    /// Where a key is missing, unknown or impossible, in words.
    fn into_model(self) -> Result<CatalogueModel, String> {
        let wrong = |problem: &dyn std::fmt::Display| format!("{}: {problem}", self.name);
        let text = |text: &str| Value::Str(text.to_owned());
        let mut metadata = BTreeMap::from([
            ("general.architecture".to_owned(), text(&self.architecture)),
            ("general.name".to_owned(), text(&self.name)),
        ]);
        for (key, value) in &self.keys {
            let value = match value {
                toml::Value::Integer(n) => u64::try_from(*n).map(Value::Unsigned).map_err(|e| wrong(&e))?,
                toml::Value::Float(x) => Value::Float(*x),
                toml::Value::Boolean(flag) => Value::Bool(*flag),
                toml::Value::String(words) => text(words),
                other => return Err(wrong(&format!("`{key}` is {other}"))),
            };
            metadata.insert(format!("{}.{key}", self.architecture), value);
        }
        // What families look at besides the keys: the vocabulary's size, whether there is an output matrix, and whether
        // rope has divisors. All other tensors follow.
        let hidden = metadata.get(&format!("{}.embedding_length", self.architecture)).and_then(Value::as_u64);
        let hidden = hidden.ok_or_else(|| wrong(&"it has no `embedding_length`"))?;
        let seed = |name: &str, dims: &[u64]| tensor(name.to_owned(), dims, TensorType::F32, 0);
        let mut seeds = vec![seed("token_embd.weight", &[hidden, self.vocab])];
        if !self.tied {
            seeds.push(seed("output.weight", &[hidden, self.vocab]));
        }
        if self.divisors {
            seeds.push(seed("rope_freqs.weight", &[1]));
        }
        let seeds = header(&self.name, metadata.clone(), seeds).map_err(|e| wrong(&e))?;
        let spec = ModelSpec::from_header(&seeds).map_err(|e| wrong(&e))?;
        let shapes = shapes(&spec);
        let context_length = u32::try_from(spec.context_length).map_err(|e| wrong(&e))?;
        Ok(CatalogueModel {
            parameters: parameters(&shapes),
            active_parameters: active_parameters(&spec, &shapes),
            context_length,
            name: self.name,
            also: self.also,
            source: self.source,
            published_parameters: self.parameters,
            metadata,
            spec,
            shapes,
        })
    }
}

/// Values of all tensors but the divisors of the rope, which are no weights.
fn parameters(shapes: &[(Role, Vec<u64>)]) -> u64 {
    let weights = shapes.iter().filter(|(role, _)| !is_rope(*role));
    weights.map(|(_, dims)| dims.iter().product::<u64>()).sum()
}

fn active_parameters(spec: &ModelSpec, shapes: &[(Role, Vec<u64>)]) -> u64 {
    let active = |(role, dims): &(Role, Vec<u64>)| {
        let values: u64 = dims.iter().product();
        match *role {
            Role::TokenEmbedding if !spec.head.tied => 0,
            Role::Layer(layer, role) => match spec.layers[layer].feed_forward {
                FeedForward::Experts(experts) if role.is_per_expert() => {
                    values / experts.count as u64 * experts.used as u64
                }
                _ => values,
            },
            role if is_rope(role) => 0,
            _ => values,
        }
    };
    shapes.iter().map(active).sum()
}

fn is_rope(role: Role) -> bool {
    matches!(role, Role::RopeFrequencies | Role::RopeLong | Role::RopeShort)
}

static MODELS: LazyLock<Vec<CatalogueModel>> = LazyLock::new(|| {
    let file: File = toml::from_str(include_str!("../../catalogue/models.toml"))
        .expect("the catalogue of models is part of the program, and a test reads it");
    let models: Result<_, String> = file.model.into_iter().map(Row::into_model).collect();
    models.expect("every model of the catalogue can be run, which a test checks")
});

/// All of them.
pub fn models() -> &'static [CatalogueModel] {
    &MODELS
}

/// A model and a mix by a name such as `Llama 3.1 405B:Q4_K_M`; without a mix it is Q4_K_M. Case, blanks and dashes do not
/// count, and the names of the Hugging Face repositories are known, too.
///
/// # Errors
/// Where there is none, with the nearest ones.
pub fn model(name: &str) -> Result<(&'static CatalogueModel, Mix), UnknownName> {
    let (name, mix) = match name.rsplit_once(':') {
        Some((name, mix)) => (name, Mix::named(mix)?),
        None => (name, Mix::Q4KM),
    };
    let called = |model: &'static CatalogueModel| -> Vec<&str> {
        std::iter::once(&model.name).chain(&model.also).map(String::as_str).collect()
    };
    Ok((names::find("model", name, models(), called)?, mix))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A count such as `405.9B` and the half of its last digit.
    fn count(text: &str) -> (f64, f64) {
        let unit = match text.chars().last() {
            Some('B') => 1e9,
            Some('M') => 1e6,
            _ => panic!("{text}"),
        };
        let digits = &text[..text.len() - 1];
        let places = digits.split_once('.').map_or(0, |(_, places)| places.len());
        (digits.parse::<f64>().unwrap() * unit, 0.5 * unit * 0.1f64.powi(places as i32))
    }

    #[test]
    fn models_have_as_many_parameters_as_their_publishers_say() {
        assert!(models().len() >= 15, "{}", models().len());
        for model in models() {
            let (published, half) = count(model.published_parameters());
            let found = model.parameters as f64;
            println!("{:20} {:>15} {:>15} active", model.name, model.parameters, model.active_parameters);
            assert!((found - published).abs() <= half * 1.001, "{}: {found} and {published}", model.name);
            assert!(!model.source.is_empty(), "{}", model.name);
        }
    }

    #[test]
    fn mixtures_take_as_many_parameters_for_a_token_as_their_names_say() {
        // In billions. Names count the embedding, too, which is looked up and not multiplied with.
        for (name, active) in [
            ("DeepSeek R1", 37.0),
            ("Qwen3 30B-A3B", 3.3),
            ("Qwen3 235B-A22B", 22.0),
            ("Llama 4 Scout", 17.0),
            ("Llama 4 Maverick", 17.0),
        ] {
            let (model, _) = model(name).unwrap();
            let embedding = model.spec.hidden as f64 * model.spec.vocab as f64;
            let found = (model.active_parameters as f64 + embedding) / 1e9;
            assert!((found - active).abs() < 0.05 * active, "{name}: {found}");
        }
        let (dense, _) = model("Llama 3.1 8B").unwrap();
        assert_eq!(dense.active_parameters, dense.parameters - 4096 * 128_256);
    }

    #[test]
    fn every_model_is_read_from_its_own_header_as_from_a_file() {
        for model in models() {
            for mix in Mix::all() {
                let header = model.header(mix);
                let spec = ModelSpec::from_header(&header).unwrap();
                assert_eq!(spec, model.spec, "{}", model.name);
                assert!(header.tensors().iter().all(|tensor| tensor.bytes > Bytes::ZERO), "{}", model.name);
                let cost = model.cost(mix);
                let vectors_in_f32 = cost.weights(&cost.whole());
                assert_eq!(vectors_in_f32, header.file_bytes(), "{} {mix}", model.name);
            }
        }
    }

    #[test]
    fn larger_mixes_take_more() {
        for model in models() {
            let sizes = Mix::all().map(|mix| model.header(mix).file_bytes());
            assert!(sizes.windows(2).all(|pair| pair[0] > pair[1]), "{}: {sizes:?}", model.name);
        }
    }

    #[test]
    fn models_are_found_as_people_write_them() {
        for (name, found, mix) in [
            ("Llama 3.1 405B:Q4_K_M", "Llama 3.1 405B", Mix::Q4KM),
            ("llama-3.1-405b", "Llama 3.1 405B", Mix::Q4KM),
            ("llama3.1_405b:q8_0", "Llama 3.1 405B", Mix::Q8_0),
            ("meta-llama/Llama-3.1-405B-Instruct", "Llama 3.1 405B", Mix::Q4KM),
            ("meta-llama/Llama-3.1-405B-Instruct:Q2_K", "Llama 3.1 405B", Mix::Q2K),
            ("unsloth/DeepSeek-R1-GGUF:q3-k-m", "DeepSeek R1", Mix::Q3KM),
            ("deepseek-ai/DeepSeek-V3-0324", "DeepSeek V3", Mix::Q4KM),
            ("Llama 3.1 70B", "Llama 3.3 70B", Mix::Q4KM),
            ("Qwen3-30B-A3B:fp16", "Qwen3 30B-A3B", Mix::F16),
            ("google/gemma-3-27b-it", "Gemma 3 27B", Mix::Q4KM),
            ("c4ai-command-r-plus", "Command R+ 104B", Mix::Q4KM),
            ("SmolLM2 135M", "SmolLM2 135M", Mix::Q4KM),
        ] {
            let (model, found_mix) = model(name).unwrap();
            assert_eq!((model.name.as_str(), found_mix), (found, mix), "{name}");
        }
    }

    #[test]
    fn an_unknown_model_is_told_with_the_nearest() {
        let error = model("Lama 3.1 405B").unwrap_err();
        assert_eq!((error.what, error.nearest[0].as_str()), ("model", "Llama 3.1 405B"));
        assert!(
            error.to_string().starts_with("unknown model `Lama 3.1 405B`: did you mean `Llama 3.1 405B`")
        );
        let error = model("Llama 3.1 8B:Q4_K_X").unwrap_err();
        assert_eq!((error.what, error.nearest[0].as_str()), ("quantisation", "Q4_K_M"));
    }

    #[test]
    fn no_name_means_two_models() {
        let names = |model: &'static CatalogueModel| std::iter::once(&model.name).chain(&model.also);
        let mut keys: Vec<(String, &str)> = models()
            .iter()
            .flat_map(|model| names(model).map(|name| (names::key(name), model.name.as_str())))
            .collect();
        keys.sort();
        keys.dedup();
        let twice: Vec<_> = keys.windows(2).filter(|pair| pair[0].0 == pair[1].0).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
}

//! Families of models: from a file's metadata to a [`ModelSpec`].
//!
//! A family is a parser of its hyper-parameters and a table of its tensors' names. Nothing is guessed: an architecture
//! that no family claims, and a hyper-parameter that its family does not read, are errors, since a model that is run
//! without one of its parts answers fluently and wrongly.

mod cohere;
mod deepseek2;
mod gemma3;
mod glm4moe;
mod gpt_oss;
mod hyperparameters;
mod llama;
mod llama4;
mod names;
mod parts;
mod phi3;
mod qwen;
mod routed;

use crate::model_file::{FileError, Header};
use crate::spec::{Family, ModelSpec};
use crate::tensors::{LayerRole, Role};

/// The architectures (`general.architecture`) that can be run.
pub const SUPPORTED_ARCHITECTURES: [&str; 12] = [
    "llama",
    "llama4",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "phi3",
    "gemma3",
    "command-r",
    "cohere2",
    "gpt-oss",
    "deepseek2",
    "glm4moe",
];

/// A model that cannot be run, and why.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum SpecError {
    /// The metadata could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file does not say what it is.
    #[error("the file has no `general.architecture`: it is not a model, or its conversion failed")]
    NoArchitecture,
    /// No family claims the architecture.
    #[error("the architecture `{found}` is not supported; these are: {}", SUPPORTED_ARCHITECTURES.join(", "))]
    Architecture { found: String },
    /// A hyper-parameter without which nothing can be computed is absent.
    #[error("the file has no `{key}`, which a model of its architecture must have")]
    Missing { key: String },
    /// A hyper-parameter has a value that no such model can have.
    #[error("`{key}` is {found}: {wanted}")]
    Value { key: String, found: String, wanted: String },
    /// A hyper-parameter asks for something that is not built.
    #[error("`{key}` is {found}, which is not supported{hint}")]
    Unsupported { key: String, found: String, hint: String },
    /// The file has hyper-parameters that its family does not know.
    #[error("the file has hyper-parameters that are not known for its architecture: {}", keys.join(", "))]
    Unread { keys: Vec<String> },
    /// A tensor that the spec is read from is absent or of another shape.
    #[error("tensor `{name}` {problem}")]
    Tensor { name: String, problem: String },
}

impl ModelSpec {
    /// Reads what the model computes from its file's metadata.
    ///
    /// # Errors
    /// Where the architecture is unknown, a hyper-parameter is missing, impossible, not supported, or not known.
    pub fn from_header(header: &Header) -> Result<ModelSpec, SpecError> {
        let architecture = header.str("general.architecture")?.ok_or(SpecError::NoArchitecture)?;
        match architecture {
            "llama" => llama::spec(header),
            "llama4" => llama4::spec(header),
            "qwen2" => qwen::qwen2(header),
            "qwen3" => qwen::qwen3(header),
            "qwen3moe" => qwen::qwen3moe(header),
            "phi3" => phi3::spec(header),
            "gemma3" => gemma3::spec(header),
            "command-r" => cohere::command_r(header),
            "cohere2" => cohere::cohere2(header),
            "gpt-oss" => gpt_oss::spec(header),
            "deepseek2" => deepseek2::spec(header),
            "glm4moe" => glm4moe::spec(header),
            other => Err(SpecError::Architecture { found: other.chars().take(80).collect() }),
        }
    }
}

impl Family {
    /// The name of the tensor that plays `role` in a file of this family. Most names are the same in all families.
    pub fn tensor_name(self, role: Role) -> String {
        match (self, role) {
            (Family::GptOss | Family::Glm4Moe, Role::Layer(layer, LayerRole::FeedForwardNorm)) => {
                names::tensor_name(Role::Layer(layer, LayerRole::AttentionPostNorm))
            }
            _ => names::tensor_name(role),
        }
    }
}

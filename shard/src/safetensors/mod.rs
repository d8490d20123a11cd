//! Directories of safetensors, as Hugging Face's transformers read them: `config.json`, `model.safetensors` (or several
//! such files with an index), `tokenizer.json` and what belongs to them.
//!
//! They are presented as the same [`Header`](crate::model_file::Header) that GGUF files give, under the names that those
//! use: a table per family says which key and which tensor is which, so that one parser and one generic block serve both
//! formats. Errors speak of the files' own names. Nothing that a file says is believed before it is checked against the
//! file's size and the limits in [`limits`].

mod directory;
mod families;
mod fused;
mod gemma3;
mod gpt_oss;
mod json;
pub mod limits;
mod llama4;
mod names;
mod part;
mod rope;
mod routed;
mod translation;

pub use directory::is_model;
pub(crate) use directory::{Checkpoint, open};

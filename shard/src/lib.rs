//! What a model is and how it is cut into shards.
//!
//! Everything here is pure: headers are read from files, but nothing else touches the outside; there is no clock, no
//! async code and no compute device. The main types are [`model_file::Header`] (what a file says), [`spec::ModelSpec`]
//! (what the model computes), [`layers::Shard`] (a part of it) and [`plan::Plan`] (who holds which part).

pub mod catalogue;
pub mod chunks;
pub mod cost;
pub mod family;
pub mod gguf;
pub mod kernels;
pub mod layers;
pub mod model_file;
pub mod plan;
pub mod safetensors;
pub mod spec;
pub mod staging;
pub mod template;
pub mod tensor_type;
pub mod tensors;
pub mod tokenizer;
pub mod units;

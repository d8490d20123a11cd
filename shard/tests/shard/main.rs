//! Tests of the crate through its public surface: every file here is about one module.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod cost;
mod family;
mod forecast;
mod gguf_writer;
mod header;
mod hostile_header;
mod latent;
mod mixtures;
mod plan;
mod random;
mod splits;
mod template;
mod tiny_llama;
mod tokenizer;

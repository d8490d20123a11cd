//! Tests of the crate through its public surface: every file here is about one module.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod clock;
mod cost;
mod family;
mod forecast;
mod gguf_writer;
mod header;
mod hostile_header;
mod latent;
mod mixtures;
mod plan;
mod plan_choices;
mod plan_large;
mod plan_offload;
mod plan_orders;
mod random;
mod splits;
mod template;
mod tiny_llama;
mod tokenizer;

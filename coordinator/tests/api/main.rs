//! The HTTP API over real connections on loopback, before a small deterministic engine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod chat;
mod client;
mod completions;
mod engine;
mod errors;
mod kept;
mod lifecycle;
mod model;
mod stops;
mod streaming;
mod tools;

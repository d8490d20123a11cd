//! The model store against a server that stands in for a hub and its mirrors, faults included.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod commands;
mod damage;
mod models;
#[expect(
    dead_code,
    reason = "these tests run other commands beside a server, and do not wait where they begin"
)]
#[path = "../cli/program.rs"]
mod program;
mod pulling;
mod resuming;
mod rules;
mod server;
mod sources;
#[cfg(target_os = "linux")]
mod tls;

//! The coordinator: who is in the cluster, what runs where, and every command a user types.
//!
//! Decisions live in pure state machines that take the time from outside; sockets, clocks and tasks live in thin shells
//! around them. The coordinator runs no model: workers do, and it never imports their crate.

pub mod api;
pub mod bench;
pub mod caches;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod compare;
pub mod config;
pub mod deployment;
pub mod discovery;
pub mod events;
pub mod generation;
pub mod health;
pub mod local;
pub mod membership;
pub mod metrics;
pub mod outgoing;
pub mod planning;
pub mod progress;
mod recent;
pub mod render;
pub mod scheduler;
mod shelf;
pub mod signals;
pub mod state_dir;
pub mod status;
pub mod store;
pub mod template;
pub mod tokens;
pub mod top;
pub mod traces;

#[cfg(test)]
mod test_random;

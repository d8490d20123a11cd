//! The commands of `brigade`, run as the built program, and the workers that it starts.

#![expect(clippy::unwrap_used, reason = "a test ends where its setup fails")]

mod bench;
mod client;
mod commands;
#[cfg(unix)]
mod doctor;
#[cfg(unix)]
mod local;
mod models;
mod plan;
mod planning;
mod program;
mod tiny_model;
mod top;

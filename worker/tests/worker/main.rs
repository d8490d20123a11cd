//! Tests of the crate through its public surface: one program, since each would link everything anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod attention;
mod bench;
mod blocks;
mod candle;
mod delivery;
mod delivery_speed;
mod desk;
#[cfg(target_os = "linux")]
mod each;
mod engine;
mod frame_limits;
mod join;
mod kernels;
mod latent;
mod lifecycle;
mod links;
mod models;
mod page_tables;
mod pipeline;
mod rig;
mod sampler;
mod selftest;
mod settings;
mod stage;
mod state_dir;
mod streaming;
mod tiny_model;

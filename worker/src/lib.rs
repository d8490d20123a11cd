//! `brigade-worker`: holds a shard of a model and computes its part of every step.
//!
//! One loop ([`worker`]) carries out what the pure stage machine ([`lifecycle`]) decides: it loads stages ([`loads`]),
//! links them to their neighbours ([`data`]) and hands them to the thread that computes ([`engine`]). What a stage
//! computes is in [`stage`], and [`mod@bench`] measures it alone; nothing outside the compute half knows of kernels, and
//! nothing in it of sockets.

pub mod addresses;
mod ahead;
pub mod backend;
pub mod backoff;
pub mod bench;
pub mod cache;
pub mod calibrate;
pub mod candle_backend;
pub mod cli;
pub mod cpu;
pub mod data;
pub mod delivery;
pub mod device;
pub mod doctor;
pub mod driver;
pub mod engine;
pub mod exponential;
pub mod lifecycle;
pub mod loads;
pub mod model;
pub mod models;
pub mod offload;
pub mod rope;
pub mod sampler;
pub mod selftest;
pub mod session;
pub mod settings;
pub mod shutdown;
pub mod simd;
pub mod stage;
pub mod state_dir;
pub mod stretch;
pub mod team;
pub mod telemetry;
pub mod tiny;
pub mod weights;
pub mod worker;

//! The harness of the tests that need more than one crate: it builds both programs, fetches the real model, and starts
//! real clusters of real processes on loopback, or simulates one of the real state machines.
//!
//! Whatever a test starts ends with it: [`process::Process`] kills what it started, by id, when it is dropped.

pub mod browser;
pub mod chain;
pub mod cluster;
pub mod comparisons;
pub mod http;
pub mod network;
pub mod pages;
pub mod picture;
pub mod process;
pub mod reference;
pub mod serve;
pub mod setup;
pub mod simulation;
pub mod small_disk;
pub mod stream;
pub mod terminal;
pub mod three;
pub mod wires;

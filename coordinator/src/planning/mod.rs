//! Planning before anything runs, and beside what runs: devices that are there, or only written down.

pub mod claims;
mod live;

pub use live::LiveDevices;

//! Planning before anything runs, and beside what runs: devices that are there, or only written down.

pub mod claims;
pub mod cluster_file;
pub mod economics;
pub mod listing;
pub mod report;
pub mod what_if;

mod cluster;
mod live;

pub use cluster::{Cluster, DeviceFacts, HostFacts, LOOPBACK, plan_device};
pub use live::LiveDevices;

//! Planning before anything runs, and beside what runs: devices that are there, or only written down.

mod live;

pub use live::LiveDevices;

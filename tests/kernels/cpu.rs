//! Products of panels.

mod bits;
#[path = "../../worker/src/cpu/grids.rs"]
mod grids;
#[path = "../../worker/src/cpu/panels/mod.rs"]
mod panels;

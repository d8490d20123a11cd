//! Products of panels and of rows.

mod bits;
#[path = "../../worker/src/cpu/blocks.rs"]
mod blocks;
#[path = "../../worker/src/cpu/codebooks.rs"]
mod codebooks;
#[path = "../../worker/src/cpu/grids.rs"]
mod grids;
#[path = "../../worker/src/cpu/panels/mod.rs"]
mod panels;
#[path = "../../worker/src/cpu/super_blocks.rs"]
mod super_blocks;

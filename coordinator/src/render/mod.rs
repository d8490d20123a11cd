//! Text for people: aligned tables, memory bars, and the views of a plan and of a cluster that are made of them.
//!
//! Nothing here prints; each function gives lines that end in a newline.

mod plan;
mod status;
mod table;

pub use plan::{PlanStage, PlanView, render_plan};
pub use status::render_status;
pub(crate) use status::stage_shard;
pub use table::{Align, Table, memory_bar};

//! Text for people: aligned tables, memory bars, and the views of a model, a plan and a cluster.
//!
//! Nothing here prints; each function gives lines that end in a newline.

mod catalogue;
pub mod claims;
mod events;
mod model;
mod plan;
mod plan_report;
mod status;
mod table;
mod times;

pub use catalogue::render_listing;
pub use events::EventColumns;
pub use model::{
    EndToken, LayerKind, ModelCard, SpecCard, StatedCard, TemplateCard, TokenizerCard, TypeCard, render_model,
};
pub use plan::{PlanStage, PlanView, render_plan};
pub use plan_report::render_report;
pub(crate) use status::stage_shard;
pub use status::{drain_progress, render_status, render_status_wide};
pub use table::{Align, Table, memory_bar};
pub(crate) use times::{age, microseconds};

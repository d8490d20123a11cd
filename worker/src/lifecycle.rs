//! The life of the stages that a worker holds: events go in, commands come out.
//!
//! A stage is loaded, connected to its neighbours, activated, and in the end retired. [`StageMachine`] decides what
//! happens next and keeps the sum of all stages within the worker's budget. It is pure: reading files, dialling and
//! computing are done elsewhere, and what comes of it arrives here as another [`StageEvent`].
//!
//! Beside a stage that computes, the weights of the one that takes its place may be read ahead.

mod machine;
mod messages;
mod phase;
mod preparing;

pub use machine::{KEPT_FOR, MAX_STAGES, PROGRESS_INTERVAL, StageMachine};
pub use messages::{ConnectId, LoadId, Progress, StageCommand, StageEvent};

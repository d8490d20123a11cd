//! The running cluster: the shell around the state machines, with the sockets, the clock and the tasks.
//!
//! One task owns [`Membership`](crate::membership::Membership), [`Deployment`](crate::deployment::Deployment) and
//! [`Scheduler`](crate::scheduler::Scheduler) (`core`); everything else holds a [`ClusterHandle`] or sends it events.

mod clients;
mod control;
mod core;
mod forecast;
mod handle;
mod links;
mod model;
mod overview;
mod pulls;
mod recovery;
mod settings;
mod start;
mod statistics;
mod timeline;
mod traffic;

pub use handle::{
    ClusterHandle, DrainError, Drained, ModelInfo, PinError, PinOrder, Pinned, Renewal, Stopping,
};
pub use model::{DraftError, ModelError, ModelProblem};
pub use settings::{ClusterSettings, DEFAULT_PREFILL_CHUNK};
pub use start::{Cluster, CreateTokenError, StartError};

//! One box, a cluster, one box that reads some of the model anew for every step, or not at all.

use serde::Serialize;

use super::{Plan, PlanError, PlanInput};
use crate::cost::Cost;
use crate::units::Bytes;

/// What should be done with these devices and this model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// One device alone is at least as fast as all of them: do not split.
    OneBox,
    /// Several devices together are faster, or the only way.
    Cluster,
    /// One device that reads for every step what it cannot hold is faster than all of them, or the only way.
    OneBoxWithOffload,
    /// Nothing holds it: so much memory is missing.
    NotAtAll {
        /// Bytes that the devices lack together.
        missing: Bytes,
    },
}

/// The ways to run a model on some devices, each the best of its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// The fastest device that holds all of it; `None` where none does.
    pub one_box: Option<Plan>,
    /// The fastest device of those that may read for every step what they cannot hold; `None` where none may, or where
    /// one holds all of it.
    pub offload: Option<Plan>,
    /// The best partition into two stages or more.
    pub cluster: Result<Plan, PlanError>,
    /// Which of them it should be.
    pub verdict: Verdict,
}

/// Looks at all ways to run the model that `cost` describes on the input's devices, for the input's objective.
///
/// # Errors
/// Where the input contradicts itself or the model. That nothing holds the model is a [`Verdict`].
pub fn choices(cost: &Cost, input: &PlanInput) -> Result<Choices, PlanError> {
    let _ = (cost, input);
    todo!("helper b")
}

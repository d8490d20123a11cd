//! The devices of a running cluster, as its planner sees them.

use brigade_shard::plan::{Links, PlanDevice, SharedHost};
use serde::{Deserialize, Serialize};

/// What `GET /api/devices` tells: all that a plan's input takes of the machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveDevices {
    /// The devices of attached workers, with their names, and nothing held.
    pub devices: Vec<PlanDevice>,
    /// Machines that hold several of them.
    pub hosts: Vec<SharedHost>,
    /// Round trips as they were measured on the data plane's links; a rate only where one was.
    pub links: Links,
}

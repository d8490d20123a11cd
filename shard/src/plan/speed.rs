//! How fast devices compute.

use serde::{Deserialize, Serialize};

use crate::tensor_type::TensorType;

/// The speed of one kernel of a device, as calibrated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSpeed {
    /// The type of the matrix.
    pub kind: TensorType,
    /// Rows that are multiplied with it at a time.
    pub rows: u32,
    /// Weights that are multiplied per second, each with one value of every row.
    pub weights_per_s: f64,
}

/// A machine that holds several devices, which share its memory and processors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SharedHost {
    /// Weight bytes per second that all its processors read together.
    pub bandwidth_bytes_per_s: f64,
    /// Processors that its devices share, each busy with one compute thread at a time.
    pub processors: u32,
    /// How many times as fast as one thread all processors are together: from 1 to their number, less than which it is where
    /// they share cores.
    pub speedup: f64,
}

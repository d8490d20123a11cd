//! How fast devices compute.

use serde::{Deserialize, Serialize};

use crate::tensor_type::TensorType;

/// What a device computes a step with, and what its speed counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// Multiplies rows with a matrix of this type: weights, each with one value of every row.
    Product(TensorType),
    /// Lets queries look at a cache: its values, each for as many query heads of as many rows as `rows` says.
    Attention,
    /// Begins to let queries look at a cache, however many positions it has: the values that it keeps for one, each for as
    /// many query heads of as many rows as `rows` says.
    Opening,
    /// Norms, rope, gates and additions: the values of a row that these read and write, in every row.
    Passing,
    /// Takes rows into products and out of them: the values of a row that go in and come out, in every row.
    Framing,
    /// Hands a layer's operations to the device: layers, without what they compute, of a single row of each of `rows`
    /// sequences.
    Handing,
    /// Draws a token: logits.
    Drawing,
}

/// The speed of one kernel of a device, as calibrated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSpeed {
    /// The kernel.
    pub kernel: Kernel,
    /// Rows that it computes at a time.
    pub rows: u32,
    /// What [`Kernel`] says, per second.
    pub per_s: f64,
}

/// Of several measurements one is taken to have been disturbed where it is slower than the fastest by more than this factor.
const DISTURBED: f64 = 1.3;

/// What several measurements of a speed come to: the mean of those that nothing disturbed; 0 of none.
pub fn usual_speed(measured: impl Iterator<Item = f64> + Clone) -> f64 {
    let fastest = measured.clone().fold(0.0, f64::max);
    let (sum, count) = measured
        .filter(|speed| speed * DISTURBED >= fastest)
        .fold((0.0, 0u32), |(sum, count), speed| (sum + speed, count + 1));
    sum / f64::from(count.max(1))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_measurements_the_mean_counts_without_the_disturbed_ones() {
        assert_eq!(usual_speed([2.0, 1.8, 1.0].into_iter()), 1.9);
        assert_eq!(usual_speed([1.0, 2.0].into_iter()), 2.0);
        assert_eq!(usual_speed([3.0].into_iter()), 3.0);
        assert_eq!(usual_speed([].into_iter()), 0.0);
    }
}

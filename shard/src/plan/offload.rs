//! Layers that a device reads again for every step, since its budget does not hold them.
//!
//! Reading overlaps computing, so that a step takes as long as the longer of both:
//!
//! `stage = max(computing, weight bytes of the streamed layers / offload_bytes_per_s)`
//!
//! Every decode step and every chunk of a prompt reads them once, however many rows it has.

use super::search::{Bound, Search};
use crate::cost::{Cost, STAGED_LAYERS};
use crate::layers::{LayerRange, Shard};
use crate::units::Bytes;

/// Seconds to read the last `streamed_layers` of a shard once, at `bytes_per_s`; nothing where none are streamed.
pub fn streaming_s(cost: &Cost, shard: &Shard, streamed_layers: usize, bytes_per_s: f64) -> f64 {
    let range = shard.layers;
    let layers = &cost.layers()[range.end.saturating_sub(streamed_layers).max(range.start)..range.end];
    let bytes: Bytes = layers.iter().map(|layer| layer.weights).sum();
    if bytes == Bytes::ZERO { 0.0 } else { bytes.0 as f64 / bytes_per_s }
}

impl Search<'_> {
    /// The fewest of the last layers of `range` that a device must read again for every step to hold it, where it may;
    /// `None` where it does not hold it even so.
    pub(super) fn least_streamed(
        &self,
        device: usize,
        range: LayerRange,
        bound: &Bound<'_>,
    ) -> Option<usize> {
        let (all, budget) = (self.bytes_within(range, bound), self.budgets()[device]);
        if all <= budget {
            return Some(0);
        }
        self.offload_bytes_per_s(device)?;
        let (mut streamed, mut largest) = (Bytes::ZERO, Bytes::ZERO);
        let layers = self.layer_weights(range).rev().enumerate();
        for (index, weights) in layers {
            streamed += weights;
            largest = largest.max(weights);
            // What `Cost::memory_streaming` says, which adds up whole shards.
            if all.saturating_sub(streamed) + (largest * STAGED_LAYERS).min(streamed) <= budget {
                return Some(index + 1);
            }
        }
        None
    }
}

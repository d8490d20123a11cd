//! Layers that a device reads again for every step, since its budget does not hold them.
//!
//! Reading overlaps computing, so that a step takes as long as the longer of both, and its fixed cost:
//!
//! `stage = max(computing, matrix bytes of the streamed layers / offload_bytes_per_s) + STAGE_OVERHEAD_S`
//!
//! Every decode step and every chunk of a prompt reads them once, however many rows it has.

use super::STAGE_OVERHEAD_S;
use super::search::{Bound, Search};
use crate::cost::{Cost, STAGED_LAYERS};
use crate::layers::{LayerRange, Shard};
use crate::units::Bytes;

/// Seconds to read the last `streamed_layers` of a shard once, at `bytes_per_s`; nothing where none are streamed.
pub fn streaming_s(cost: &Cost, shard: &Shard, streamed_layers: usize, bytes_per_s: f64) -> f64 {
    let layers = &cost.layers()[cost.streamed(shard, streamed_layers).iter()];
    let bytes: Bytes = layers.iter().map(|layer| layer.matrices).sum();
    if bytes == Bytes::ZERO { 0.0 } else { bytes.0 as f64 / bytes_per_s }
}

/// Seconds of a stage that takes `stage_s` when all of its layers are resident, where it reads for `streaming_s` meanwhile.
pub(super) fn overlapped_s(stage_s: f64, streaming_s: f64) -> f64 {
    stage_s.max(streaming_s + STAGE_OVERHEAD_S)
}

/// The last layers of ranges that all have the same end.
pub(super) struct Suffix {
    end: usize,
    layers: usize,
    /// Bytes of their matrices.
    matrices: Bytes,
    /// What one of them takes of memory at the most while it is read.
    staged: Bytes,
}

impl Suffix {
    /// No layers before `end`.
    pub(super) fn before(end: usize) -> Suffix {
        Suffix { end, layers: 0, matrices: Bytes::ZERO, staged: Bytes::ZERO }
    }

    /// What streaming these layers saves, by what `Cost::memory_streaming` says.
    fn saved(&self) -> Bytes {
        self.matrices.saturating_sub(self.staged * STAGED_LAYERS)
    }
}

impl Search<'_> {
    /// The fewest of the last layers from `start` that a device must read again for every step to hold them, where it
    /// may; `None` where it does not hold them even so. `suffix` are those that were enough from a later start, or fewer:
    /// the more layers there are, the more must be streamed.
    pub(super) fn least_streamed(
        &self,
        device: usize,
        start: usize,
        suffix: &mut Suffix,
        bound: &Bound<'_>,
    ) -> Option<usize> {
        let range = LayerRange { start, end: suffix.end };
        let excess = self.bytes_within(range, bound).saturating_sub(self.budgets()[device]);
        if excess > Bytes::ZERO {
            self.offload_bytes_per_s(device)?;
        }
        while suffix.saved() < excess {
            if suffix.layers == range.len() {
                return None;
            }
            let layer = self.layer(suffix.end - suffix.layers - 1);
            suffix.layers += 1;
            suffix.matrices += layer.matrices;
            suffix.staged = suffix.staged.max(layer.staged);
        }
        Some(suffix.layers)
    }
}

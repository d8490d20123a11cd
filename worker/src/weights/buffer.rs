//! Memory that weights are read into.

use std::ops::Range;
use std::sync::Arc;

use brigade_shard::units::Bytes;
use memmap2::{Mmap, MmapMut};

use crate::backend::BackendError;

#[cfg(target_endian = "big")]
compile_error!("weights are read as they stand in the file, which is little-endian");

/// A tensor's bytes, aligned to a page of memory.
pub struct WeightBuffer {
    map: MmapMut,
    len: usize,
}

impl WeightBuffer {
    /// `len` zero bytes; pages that are never written take no memory. Huge pages are not asked for
    /// yet: see [`HugePages`](super::HugePages).
    ///
    /// Fails where the system gives no memory.
    pub(crate) fn zeroed(len: usize) -> Result<WeightBuffer, BackendError> {
        // An empty map is none.
        let map = MmapMut::map_anon(len.max(1)).map_err(|e| BackendError {
            operation: "make room for weights",
            reason: format!("{} were asked for: {e}", Bytes(len as u64)),
        })?;
        Ok(WeightBuffer { map, len })
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[..self.len]
    }

    /// All bytes, to be filled.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}

/// Bytes of a file that the system reads when they are looked at, and may forget again.
pub struct MappedBytes {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl MappedBytes {
    /// Part of a mapped file; `None` where it is not in the file.
    pub(crate) fn new(map: Arc<Mmap>, range: Range<usize>) -> Option<MappedBytes> {
        (range.start <= range.end && range.end <= map.len()).then_some(MappedBytes { map, range })
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

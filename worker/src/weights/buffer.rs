//! Memory that weights are read into.

use brigade_shard::units::Bytes;
use memmap2::MmapMut;

use crate::backend::BackendError;

#[cfg(target_endian = "big")]
compile_error!("weights are read as they stand in the file, which is little-endian");

/// Size of a page that one entry of the processor's address cache serves, where the system gives such pages. Weights are
/// walked over once for each step: with pages of 4 KiB, looking up addresses takes as long as the walk.
const HUGE_PAGE: usize = 2 << 20;

/// A tensor's bytes, aligned to a page of memory.
pub struct WeightBuffer {
    map: MmapMut,
    /// Bytes before the first that is used.
    start: usize,
    len: usize,
}

impl WeightBuffer {
    /// `len` zero bytes; pages that are never written take no memory.
    ///
    /// Fails where the system gives no memory.
    pub(crate) fn zeroed(len: usize) -> Result<WeightBuffer, BackendError> {
        // Small ones stay on small pages: rounded up to huge ones, many of them would take much more than they hold.
        let huge = len >= HUGE_PAGE;
        let room = len.max(1) + if huge { HUGE_PAGE } else { 0 };
        let map = MmapMut::map_anon(room).map_err(|e| BackendError {
            operation: "make room for weights",
            reason: format!("{} were asked for: {e}", Bytes(room as u64)),
        })?;
        let start = if huge { map.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if huge {
            // The rest, less than a huge page, stays on small ones. A system without huge pages only is slower.
            let whole = len / HUGE_PAGE * HUGE_PAGE;
            let _ = map.advise_range(memmap2::Advice::HugePage, start, whole);
        }
        Ok(WeightBuffer { map, start, len })
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.start..][..self.len]
    }

    /// All bytes, to be filled.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..][..self.len]
    }
}

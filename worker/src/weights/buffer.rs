//! Memory that weights are read into, and whatever else is large: a system that gives none is an error, not an end.

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
        WeightBuffer::zeroed_to("make room for weights", len)
    }

    /// The same for something else than weights, which an error names.
    pub(crate) fn zeroed_to(operation: &'static str, len: usize) -> Result<WeightBuffer, BackendError> {
        // An empty map is none.
        let map = MmapMut::map_anon(len.max(1)).map_err(|e| refused(operation, len, e))?;
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

/// Makes `values` at least `len` long.
///
/// Fails where the system gives no memory.
pub(crate) fn lengthen<T: Clone + Default>(
    operation: &'static str,
    values: &mut Vec<T>,
    len: usize,
) -> Result<(), BackendError> {
    if len > values.len() {
        let more = len - values.len();
        values.try_reserve_exact(more).map_err(|e| refused(operation, more * size_of::<T>(), e))?;
        values.resize(len, T::default());
    }
    Ok(())
}

fn refused(operation: &'static str, bytes: usize, why: impl std::fmt::Display) -> BackendError {
    BackendError { operation, reason: format!("{} were asked for: {why}", Bytes(bytes as u64)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_no_system_has_is_refused() {
        let most = isize::MAX as usize;
        let told = [
            WeightBuffer::zeroed_to("make room", most).err(),
            lengthen("make room", &mut Vec::<u8>::new(), most).err(),
            lengthen("make room", &mut vec![1.0f32], most / 4).err(),
        ];
        for error in told {
            let error = error.expect("it is refused").to_string();
            assert!(
                error.starts_with("device failed to make room: ") && error.contains("asked for"),
                "{error}"
            );
        }
        let mut values = vec![7u8];
        lengthen("make room", &mut values, 3).expect("three bytes");
        assert_eq!(values, [7, 0, 0]);
    }
}

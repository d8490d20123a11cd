//! Memory that weights are read into.

use candle_core::quantized::k_quants::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K};

/// A type that any bytes are a valid value of, and whose layout in memory is the file's.
///
/// # Safety
/// Implementors have no padding, no invalid bit patterns, and an alignment of at most 8.
pub(crate) unsafe trait Plain {}

// SAFETY: `repr(C)` structs of half-precision numbers and bytes, without padding (candle asserts their sizes).
unsafe impl Plain for BlockQ2K {}
// SAFETY: as above.
unsafe impl Plain for BlockQ3K {}
// SAFETY: as above.
unsafe impl Plain for BlockQ4K {}
// SAFETY: as above.
unsafe impl Plain for BlockQ5K {}
// SAFETY: as above.
unsafe impl Plain for BlockQ6K {}
// SAFETY: a number.
unsafe impl Plain for f32 {}

#[cfg(target_endian = "big")]
compile_error!("weights are read as they stand in the file, which is little-endian");

/// A tensor's bytes as in its file, aligned to 8.
pub struct WeightBuffer {
    words: Vec<u64>,
    len: usize,
}

impl WeightBuffer {
    /// `len` zero bytes; pages that are never written take no memory.
    pub(crate) fn zeroed(len: usize) -> WeightBuffer {
        WeightBuffer { words: vec![0; len.div_ceil(8)], len }
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `words` owns at least `len` initialised bytes, and any byte is a valid `u8`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }

    /// All bytes, to be filled.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; any byte is a valid part of a `u64`.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.len) }
    }

    /// The bytes as whole `T`s; a rest that is no whole one is left out.
    pub(crate) fn values<T: Plain>(&self) -> &[T] {
        const { assert!(align_of::<T>() <= align_of::<u64>()) };
        // SAFETY: the memory is initialised, aligned to 8, long enough, and every bit pattern is a `T`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len / size_of::<T>()) }
    }
}

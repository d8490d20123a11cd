//! Memory that weights are read into.

#[cfg(target_endian = "big")]
compile_error!("weights are read as they stand in the file, which is little-endian");

/// Bytes of a cache line, and of the widest register.
const ALIGNMENT: usize = 64;

/// A tensor's bytes, aligned to 64.
pub struct WeightBuffer {
    words: Vec<u64>,
    /// Words before the first that is aligned.
    start: usize,
    len: usize,
}

impl WeightBuffer {
    /// `len` zero bytes; pages that are never written take no memory.
    pub(crate) fn zeroed(len: usize) -> WeightBuffer {
        let words = vec![0u64; (len + ALIGNMENT).div_ceil(size_of::<u64>())];
        let start = words.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT / size_of::<u64>());
        WeightBuffer { words, start, len }
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let words = &self.words[self.start..];
        // SAFETY: fewer than 64 bytes were left out, so that at least `len` initialised bytes are there, and any byte is
        // a valid `u8`.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), self.len) }
    }

    /// All bytes, to be filled.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let words = &mut self.words[self.start..];
        // SAFETY: as in `bytes`; any byte is a valid part of a `u64`.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), self.len) }
    }
}

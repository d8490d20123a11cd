//! What a header may at most contain.
//!
//! The largest public models stay below a hundredth of each bound; a file past one is damaged or hostile.

/// Metadata pairs in one part; real files have 20 to 80.
pub const MAX_KEYS: u64 = 1 << 16;
/// Bytes of a metadata key: the format's own limit.
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Bytes of a string value that stands by itself; the longest in use are chat templates of some 20 KiB.
pub const MAX_STRING_BYTES: u64 = 4 << 20;
/// Bytes of one string in an array; the longest vocabulary entries have a few hundred.
pub const MAX_ELEMENT_BYTES: u64 = 1 << 20;
/// Bytes of all string values of a header together, since they stay resident.
pub const MAX_RESIDENT_BYTES: u64 = 32 << 20;
/// Elements of an array; the largest in use are lists of some 500,000 merges.
pub const MAX_ARRAY_ELEMENTS: u64 = 1 << 24;
/// Bytes of one part's header; the largest in use are near 16 MiB.
pub const MAX_HEADER_BYTES: u64 = 512 << 20;
/// Tensors over all parts; the largest models have a few thousand.
pub const MAX_TENSORS: u64 = 1 << 16;
/// Bytes of a tensor's name; ggml allows 63.
pub const MAX_TENSOR_NAME_BYTES: u64 = 255;
/// Dimensions of a tensor; ggml's limit.
pub const MAX_DIMENSIONS: u32 = 4;
/// The largest alignment of tensor data; 32 is usual.
pub const MAX_ALIGNMENT: u64 = 1 << 20;
/// Parts of a split file; the largest models come in some 50.
pub const MAX_PARTS: u64 = 4096;

//! What a directory of safetensors may at most contain.

/// Bytes of a file's header: the format's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Tensors over all files; the largest models have some 100,000, one for every expert's matrix.
pub const MAX_TENSORS: u64 = 1 << 20;
/// Bytes of a tensor's name; the longest in use have some 80.
pub const MAX_NAME_BYTES: usize = 255;
/// Dimensions of a tensor.
pub const MAX_DIMENSIONS: usize = 4;
/// Files with tensors; the largest models come in some 200.
pub const MAX_PARTS: usize = 4096;
/// Bytes of `config.json`, `generation_config.json` or a chat template; they have a few KiB.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Bytes of `tokenizer.json`, of `tokenizer_config.json` and of the index; the largest in use have some 35 MiB.
pub const MAX_LIST_BYTES: u64 = 256 << 20;

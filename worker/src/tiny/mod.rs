//! Small models with random weights, of every family and in every type: what a device is tested with.
//!
//! They compute numbers that a model would: hidden states stay near 1, and logits spread by about 2. They are the same at
//! every run and on every machine.

mod blocks;
mod families;
mod file;
mod random;

pub use blocks::{KINDS, encode, random_blocks, set_scales};
pub use families::{FAMILIES, TinyError, TinyFamily, TinyTypes};
pub use file::{GgufFile, GgufTensor, GgufValue};
pub use random::Random;

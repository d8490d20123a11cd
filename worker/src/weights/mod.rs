//! Reading a shard's tensors to where they stay.
//!
//! Files are read with positioned reads, several at a time, straight into the memory that keeps the weights: nothing is
//! mapped and nothing is held twice.

mod buffer;
mod error;
mod file;
mod progress;

use brigade_shard::tensor_type::TensorType;
use rayon::ThreadPool;

pub(crate) use buffer::{Plain, WeightBuffer};
pub use error::{LoadError, ReadProblem};
pub use file::{FileTensor, ModelFiles};
pub use progress::LoadProgress;

/// Where a backend gets the bytes of a tensor from.
pub trait TensorSource {
    /// Fills `out`, as long as the tensor, with its bytes; may use the threads of `pool`.
    fn read(&mut self, out: &mut [u8], pool: &ThreadPool) -> Result<(), LoadError>;

    /// The error of a backend that has no kernel for the tensor's type.
    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError;
}

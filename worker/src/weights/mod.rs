//! Reading a shard's tensors to where they stay.
//!
//! Files are read with positioned reads, several at a time, straight into the memory that keeps the weights, or in small
//! pieces that are put in another order there: nothing is held twice. Only where it is asked for, files are mapped, and the
//! system reads what is looked at; or layers are read again for every step.

mod buffer;
mod direct;
mod error;
mod file;
mod held;
mod huge_pages;
mod parts;
mod picked;
mod priority;
mod progress;
mod stream;

use brigade_shard::tensor_type::TensorType;

pub use buffer::MappedBytes;
pub(crate) use buffer::{WeightBuffer, lengthen};
pub(crate) use direct::{DISK_READ_BYTES, drop_cached, open_direct, read_blocks};
pub use error::{LoadError, ReadProblem};
pub use file::{FileTensor, ModelFiles};
pub use held::HeldWeights;
pub(crate) use huge_pages::HugePages;
pub(crate) use priority::give_way;
pub use progress::LoadProgress;
pub use stream::StagedBytes;
pub(crate) use stream::{LayerStream, StagedGuard};

use crate::team::Team;

/// Bytes of one read: large enough for full speed, small enough that several threads share a tensor, that progress
/// moves and that cancelling is quick.
pub(crate) const READ_BYTES: usize = 512 * 1024;

/// What memory is asked for that bytes of a file only pass through.
pub(crate) const READING: &str = "make room to read weights";

/// Where a backend gets the bytes of a tensor from.
pub trait TensorSource: Sync {
    /// Fills `out` with the tensor's bytes from byte `at` on.
    fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), LoadError>;

    /// The tensor's bytes where they lie in its file, if it is mapped and they lie there in one piece as they are.
    fn mapped(&self) -> Option<MappedBytes> {
        None
    }

    /// Where the tensor's bytes are whenever its layer is computed, if that is read again for every step.
    fn staged(&self) -> Option<StagedBytes> {
        None
    }

    /// The error of a backend that has no kernel for the tensor's type.
    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError;

    /// Fills `out`, as long as the tensor, with the threads of `team`.
    fn read(&self, out: &mut [u8], team: &Team) -> Result<(), LoadError> {
        team.try_each_chunk(out, READ_BYTES, |_, i, piece| self.read_at((i * READ_BYTES) as u64, piece))
    }
}

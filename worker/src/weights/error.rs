//! Why a shard could not be loaded.

use std::path::PathBuf;

use brigade_shard::family::SpecError;
use brigade_shard::model_file::FileError;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorError;
use brigade_shard::units::Bytes;

use crate::backend::BackendError;

/// Why a shard could not be loaded; nothing of it stays in memory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum LoadError {
    /// Somebody asked for it to end.
    #[error("loading was cancelled")]
    Cancelled,
    /// The stage would not fit.
    #[error(
        "the stage needs {:.1} MiB ({:.1} weights, {:.1} cache, {:.1} workspace) and the budget is {:.1} MiB: raise --memory, \
         use a smaller context, or add a worker",
        (*weights + *cache + *workspace).as_mib(), weights.as_mib(), cache.as_mib(), workspace.as_mib(), budget.as_mib()
    )]
    TooLittleMemory { weights: Bytes, cache: Bytes, workspace: Bytes, budget: Bytes },
    /// The device has no kernels for a tensor's type.
    #[error(
        "tensor `{tensor}` is {kind}, which {device} cannot compute with: use a file in another quantisation"
    )]
    Unsupported { tensor: String, kind: TensorType, device: &'static str },
    /// The device has no kernels for a tensor's type, and for another that it could be turned into.
    #[error("{0}, or let --convert turn it into another while it is loaded")]
    Convertible(Box<LoadError>),
    /// The program was built without support for the device.
    #[error(
        "this brigade-worker was built without the feature `{feature}`, which the device {device} needs: use --device cpu, or build with --features {feature}"
    )]
    DeviceNotBuilt { device: &'static str, feature: &'static str },
    /// The shard is not a part of the model.
    #[error("the shard {shard} is not a part of a model of {layers} layers")]
    NoSuchShard { shard: String, layers: usize },
    /// What the stage must hold makes no sense.
    #[error("the room asked for a stage has {field} = {value}, {wanted}")]
    Room { field: &'static str, value: u64, wanted: &'static str },
    /// A file could not be read.
    #[error("failed to read {bytes} at byte {offset} of {}, for tensor `{tensor}`: {problem}", path.display())]
    Read { path: PathBuf, tensor: String, offset: u64, bytes: Bytes, problem: ReadProblem },
    /// The file is not the one whose header was read.
    #[error("{} has changed since its header was read: it had {was} bytes and has {is}", path.display())]
    Changed { path: PathBuf, was: u64, is: u64 },
    /// The file was written to, or replaced, while it is in use.
    #[error("{} is not the file any more that it was when its header was read: load the model again", path.display())]
    Written { path: PathBuf },
    /// Weights that are fetched have not come.
    #[error("{reason}")]
    Undelivered { reason: String },
    /// Layers cannot be read for every step on this device.
    #[error(
        "{device} cannot read {layers} layers of its shard again for every step, which only the processor can: use --device \
         cpu for this worker, or leave its --offload out"
    )]
    StreamedOn { device: String, layers: usize },
    /// A tensor's values are of no use.
    #[error("tensor `{tensor}` holds {value} at {index}, which no model has: fetch the file again")]
    Value { tensor: String, index: usize, value: f32 },
    /// The header does not describe a model that can be run.
    #[error(transparent)]
    Header(#[from] FileError),
    /// The header does not describe a model that can be run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The file's tensors are not those of its model.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] BackendError),
}

/// What went wrong with a read.
#[derive(Debug, thiserror::Error)]
pub enum ReadProblem {
    /// The file is shorter than its header says.
    #[error("the file ends before it: fetch it again")]
    Truncated,
    /// The operating system's error.
    #[error(transparent)]
    Io(std::io::Error),
}

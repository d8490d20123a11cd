//! What a model's files say of themselves, whatever their format: metadata and tensors, never tensor data.
//!
//! [`Header`] is read from a GGUF file ([`crate::gguf`]) or from a directory of safetensors ([`crate::safetensors`]). The rest of the program sees nothing else of a file, but for
//! the tensors' data.

mod error;
mod fingerprint;
mod header;
mod outline;
mod tensor;
mod value;

pub use error::{FileError, Problem};
pub use fingerprint::{Fingerprint, ParseFingerprintError};
pub(crate) use header::{Contents, Source};
pub use header::{Format, Header};
pub use outline::{MAX_OUTLINE_BYTES, Outline, OutlineError};
pub use tensor::{Layout, Meaning, Piece, Place, Steps, TensorInfo};
pub use value::{Kind, Value};

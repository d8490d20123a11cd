//! GGUF files: their metadata and tensor table, never their tensor data.
//!
//! [`Header`] reads versions 2 and 3, little-endian, in one file or split into parts. Nothing that a file says is
//! believed before it is checked against the file's size and the limits in [`limits`]. Large arrays, such as a
//! vocabulary, stay in the file and are decoded when asked for, so that a process that needs none of them holds none.

mod error;
mod fingerprint;
mod header;
mod keys;
pub mod limits;
mod part;
mod reader;
mod split;
mod value;

pub use error::{GgufError, Problem};
pub use fingerprint::{Fingerprint, ParseFingerprintError};
pub use header::Header;
pub use part::TensorInfo;
pub use value::{Kind, Value};

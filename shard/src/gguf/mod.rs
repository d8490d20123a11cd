//! GGUF files: their metadata and tensor table, never their tensor data.
//!
//! Versions 2 and 3 are read, little-endian, in one file or split into parts. Nothing that a file says is believed before
//! it is checked against the file's size and the limits in [`limits`]. Large arrays, such as a vocabulary, stay in the
//! file and are decoded when asked for, so that a process that needs none of them holds none.

mod keys;
pub mod limits;
mod model;
mod part;
mod reader;
mod split;

pub(crate) use model::open;
pub(crate) use reader::Reader;

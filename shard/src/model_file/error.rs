//! Why a file cannot be used.

use std::path::{Path, PathBuf};

/// A GGUF file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    /// The file, or the part of it.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

impl FileError {
    pub(crate) fn new(path: &Path, problem: Problem) -> FileError {
        FileError { path: path.to_owned(), problem }
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum Problem {
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
    #[error("not a file that can be read from a chosen place: give the path of a .gguf file")]
    NotAFile,
    #[error("not a GGUF file: it begins with {found:02x?} instead of `GGUF`")]
    Magic { found: [u8; 4] },
    #[error(
        "GGUF version {version} is not supported, only 2 and 3: convert the model again with a current tool"
    )]
    Version { version: u32 },
    #[error("a big-endian GGUF file: only little-endian files are supported, convert it")]
    BigEndian,
    #[error(
        "file ends at byte {end} inside {inside}, which reaches to byte {wanted}: it is cut off, fetch it again"
    )]
    Truncated { end: u64, wanted: u64, inside: String },
    #[error("{what} is {found}, past the limit of {limit}: the file is damaged")]
    Limit { what: String, found: u64, limit: u64 },
    #[error("{what} {problem}: the file is damaged")]
    Damaged { what: String, problem: String },
    #[error("metadata key `{key}` appears twice")]
    DuplicateKey { key: String },
    #[error("tensor `{name}` appears twice")]
    DuplicateTensor { name: String },
    #[error("tensor `{name}` has ggml type {number}, which is not known")]
    UnknownType { name: String, number: u32 },
    #[error("`general.alignment` is {found}: it must be a power of two up to {limit}")]
    Alignment { found: u64, limit: u64 },
    #[error("tensors `{first}` and `{second}` overlap: the file is damaged")]
    Overlap { first: String, second: String },
    #[error("metadata key `{key}` holds {found}, wanted {wanted}")]
    WrongType { key: String, wanted: &'static str, found: String },
    #[error("metadata key `{key}`: entry {index} {problem}")]
    BadEntry { key: String, index: u64, problem: &'static str },
    #[error("the file has changed since it was opened")]
    Changed,
    #[error("part {part} of {count} of a split model: give its first part, {}", first.display())]
    NotFirstPart { part: u64, count: u64, first: PathBuf },
    #[error("part {part} of {count} is missing: put it beside the first one")]
    MissingPart { part: u64, count: u64 },
    #[error(
        "split model of {count} parts, but its name does not end in `-00001-of-{count:05}.gguf`: restore the name"
    )]
    SplitName { count: u64 },
    #[error("says it is part {found} of {found_count} where part {wanted} of {wanted_count} was expected")]
    WrongPart { found: u64, found_count: u64, wanted: u64, wanted_count: u64 },
    #[error("the parts hold {found} tensors together, but `split.tensors.count` says {wanted}")]
    SplitTensors { found: u64, wanted: u64 },
}

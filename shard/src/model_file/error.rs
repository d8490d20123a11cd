//! Why a model's files cannot be used.

use std::path::{Path, PathBuf};

/// A file, or a directory, that cannot be used, and why.
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
    #[error(
        "a directory without `config.json`: give the path of a GGUF file, or of a directory with a model in safetensors"
    )]
    NoConfig,
    #[error("a directory with GGUF files: give the path of one of them, such as {}", first.display())]
    HoldsGguf { first: PathBuf },
    #[error("holds neither `model.safetensors` nor `model.safetensors.index.json`: fetch the weights, too")]
    NoWeights,
    #[error(
        "holds both `model.safetensors` and `model.safetensors.index.json`, and either may be the model: take one of them away"
    )]
    TwoWeights,
    #[error("lists the file `{file}`, which is not there: fetch it, too")]
    MissingFile { file: String },
    #[error("says that tensor `{name}` is in `{file}`, where it is not: fetch both again")]
    NotInFile { name: String, file: String },
    #[error("{problem}")]
    Json { problem: String },
    #[error(
        "tensor `{name}` is {dtype}, which cannot be computed with: use a GGUF file of the model, or its BF16 weights"
    )]
    Dtype { name: String, dtype: String },
    #[error("tensors `{first}` and `{second}` should be alike, but differ in shape or type")]
    Unlike { first: String, second: String },
    #[error("there is no tensor `{name}`, which the model needs: fetch the model again")]
    MissingTensor { name: String },
    #[error("the architecture `{found}` is not supported in safetensors; these are: {}", known.join(", "))]
    UnknownClass { found: String, known: Vec<&'static str> },
    #[error("there is no `{key}`, which a model of its architecture must have")]
    MissingSetting { key: String },
    #[error("there is neither `{first}` nor `{second}`, of which a model of its architecture must have one")]
    MissingEither { first: String, second: String },
    #[error("`{key}` is {found}, wanted {wanted}")]
    WrongSetting { key: Box<str>, found: String, wanted: Box<str> },
    #[error("`{key}` is {found}, which is not supported{hint}")]
    UnsupportedSetting { key: Box<str>, found: String, hint: Box<str> },
    #[error("there are settings that are not known for its architecture: {}", keys.join(", "))]
    UnreadSettings { keys: Vec<String> },
}

//! A model's whole header: the metadata of its first part and the tensors of all parts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{FileError, Problem};
use super::fingerprint::Fingerprint;
use super::tensor::TensorInfo;
use super::value::{Kind, Value};
use crate::gguf::{self, Reader, limits};
use crate::safetensors::{self, Checkpoint};
use crate::units::Bytes;

/// What a model's files say of themselves, checked: every tensor lies inside its file, apart from the others, and every
/// name is there once.
///
/// It stays small: arrays are read from the file again when they are asked for.
#[derive(Clone, Debug)]
pub struct Header {
    contents: Contents,
    by_name: HashMap<String, usize>,
}

/// What a format's reader has found and checked, but for tensors of one name.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    pub(crate) source: Source,
    pub(crate) parts: Vec<PathBuf>,
    pub(crate) file_bytes: Bytes,
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) fingerprint: Fingerprint,
}

/// How a model is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// One GGUF file, or several parts.
    Gguf,
    /// A directory of safetensors.
    Safetensors,
}

/// What is known of one format only.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Arrays are in the first part, which is so many bytes long.
    Gguf { first_len: u64 },
    /// There are no arrays.
    Safetensors(Checkpoint),
    /// It came from another machine, with the arrays that stages need.
    Outline { format: Format, arrays: HashMap<String, Vec<Value>> },
}

impl Header {
    /// Reads the header of the model at `path`: a GGUF file, the first part of a split one, or a directory of safetensors.
    ///
    /// # Errors
    /// Where a file cannot be read, is damaged, cut off or of an unsupported version, or where `path` is not the first
    /// part, or another part is missing; for a directory also where its configuration cannot be run. No tensor data is
    /// read, and no more memory is used than [`gguf::limits`] and [`safetensors::limits`] allow, whatever the files say.
    pub fn open(path: &Path) -> Result<Header, FileError> {
        if path.is_dir() { safetensors::open(path) } else { gguf::open(path) }
    }

    /// A header whose tensors are called in the file as families call them.
    ///
    /// # Errors
    /// Where two tensors have one name.
    pub(crate) fn new(contents: Contents) -> Result<Header, FileError> {
        let mut header = Header { contents, by_name: HashMap::new() };
        for (index, tensor) in header.contents.tensors.iter().enumerate() {
            if header.by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(header.error(Problem::DuplicateTensor { name: tensor.name.clone() }));
            }
        }
        Ok(header)
    }

    /// A header with the places of its tensors by the names that families have for them; all are within the list.
    pub(crate) fn with_names(contents: Contents, by_name: HashMap<String, usize>) -> Header {
        Header { contents, by_name }
    }

    fn error(&self, problem: Problem) -> FileError {
        FileError::new(&self.contents.parts[0], problem)
    }

    /// How the model is written down.
    pub fn format(&self) -> Format {
        match self.contents.source {
            Source::Gguf { .. } => Format::Gguf,
            Source::Safetensors(_) => Format::Safetensors,
            Source::Outline { format, .. } => format,
        }
    }

    /// The directory that holds `tokenizer.json`; `None` where the tokenizer is in the metadata.
    pub fn tokenizer_folder(&self) -> Option<&Path> {
        match &self.contents.source {
            Source::Gguf { .. } | Source::Outline { .. } => None,
            Source::Safetensors(checkpoint) => Some(&checkpoint.folder),
        }
    }

    /// How the files call the tensor that families call `name`, be it there or not.
    pub fn tensor_name(&self, name: &str) -> String {
        match &self.contents.source {
            Source::Gguf { .. } => name.to_owned(),
            Source::Safetensors(checkpoint) => checkpoint.tensor_name(name),
            Source::Outline { .. } => {
                self.tensor(name).map_or(name, |tensor| tensor.name.as_str()).to_owned()
            }
        }
    }

    /// How the files call what families call `key`.
    pub fn key_name<'h>(&'h self, key: &'h str) -> &'h str {
        match &self.contents.source {
            Source::Gguf { .. } | Source::Outline { .. } => key,
            Source::Safetensors(checkpoint) => checkpoint.spelling(key).unwrap_or(key),
        }
    }

    /// The model's files with tensors, in order.
    pub fn parts(&self) -> &[PathBuf] {
        &self.contents.parts
    }

    /// Size of all files together.
    pub fn file_bytes(&self) -> Bytes {
        self.contents.file_bytes
    }

    /// The model's identity.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.contents.fingerprint
    }

    /// All tensors, in the files' order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.contents.tensors
    }

    /// The tensor that families call `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|index| &self.contents.tensors[*index])
    }

    /// Places in [`Header::tensors`] by the names that families have for them.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, usize)> {
        self.by_name.iter().map(|(name, index)| (name.as_str(), *index))
    }

    /// All metadata, in the order of the keys.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.contents.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.contents.metadata.get(key)
    }

    fn wrong(&self, key: &str, wanted: &'static str, value: &Value) -> FileError {
        self.error(Problem::WrongType { key: key.to_owned(), wanted, found: value.describe() })
    }

    fn scalar<'h, T>(
        &'h self,
        key: &str,
        wanted: &'static str,
        read: impl FnOnce(&'h Value) -> Option<T>,
    ) -> Result<Option<T>, FileError> {
        let Some(value) = self.contents.metadata.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.wrong(key, wanted, value))
    }

    /// The count under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an integer or is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, FileError> {
        self.scalar(key, "an integer that is not negative", Value::as_u64)
    }

    /// The number under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not a floating-point number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, FileError> {
        self.scalar(key, "a floating-point number", |value| match value {
            Value::Float(x) => Some(*x as f32),
            _ => None,
        })
    }

    /// The bool under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not a bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, FileError> {
        self.scalar(key, "a bool", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// The text under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, FileError> {
        self.scalar(key, "a string", |value| match value {
            Value::Str(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// How many elements the array under `key` has; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array.
    pub fn array_len(&self, key: &str) -> Result<Option<u64>, FileError> {
        self.scalar(key, "an array", |value| match value {
            Value::Array { count, .. } => Some(*count),
            _ => None,
        })
    }

    /// The strings of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of UTF-8 strings, or the file has changed or cannot be read.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, FileError> {
        let read_text = |reader: &mut Reader<'_>, index: u64| {
            let text = reader.string(limits::MAX_ELEMENT_BYTES, format_args!("entry {index} of `{key}`"))?;
            let problem = "is not UTF-8";
            text.map(Value::Str)
                .ok_or_else(|| reader.error(Problem::BadEntry { key: key.to_owned(), index, problem }))
        };
        self.array(
            key,
            "an array of strings",
            |kind| kind == Kind::Str,
            |reader, _, index| read_text(reader, index),
            |value| match value {
                Value::Str(text) => Ok(text),
                _ => Err("is not a string"),
            },
        )
    }

    /// The floating-point numbers of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of such numbers, or the file has changed or cannot be read.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, FileError> {
        let is_float = |kind| matches!(kind, Kind::F32 | Kind::F64);
        let read = |reader: &mut Reader<'_>, kind, index| number(reader, key, kind, index);
        self.array(key, "an array of floating-point numbers", is_float, read, |value| match value {
            Value::Float(x) => Ok(x as f32),
            _ => Err("is not a floating-point number"),
        })
    }

    /// The integers of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of integers that fit into an i32, or the file has changed or cannot be read.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, FileError> {
        let read = |reader: &mut Reader<'_>, kind, index| number(reader, key, kind, index);
        self.array(key, "an array of integers", is_integer, read, |value| {
            let fitting = match value {
                Value::Unsigned(n) => i32::try_from(n).ok(),
                Value::Signed(n) => i32::try_from(n).ok(),
                _ => None,
            };
            fitting.ok_or("does not fit into 32 bits")
        })
    }

    /// The counts of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of integers, one is negative, or the file has changed or cannot be read.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>, FileError> {
        let read = |reader: &mut Reader<'_>, kind, index| number(reader, key, kind, index);
        self.array(key, "an array of integers", is_integer, read, |value| value.as_u64().ok_or("is negative"))
    }

    fn array<T>(
        &self,
        key: &str,
        wanted: &'static str,
        fits: impl FnOnce(Kind) -> bool,
        mut read: impl FnMut(&mut Reader<'_>, Kind, u64) -> Result<Value, FileError>,
        convert: impl Fn(Value) -> Result<T, &'static str>,
    ) -> Result<Option<Vec<T>>, FileError> {
        let Some(value) = self.contents.metadata.get(key) else {
            return Ok(None);
        };
        let Value::Array { kind, count, at, .. } = *value else {
            return Err(self.wrong(key, wanted, value));
        };
        if !fits(kind) {
            return Err(self.wrong(key, wanted, value));
        }
        let bad = |index, problem| self.error(Problem::BadEntry { key: key.to_owned(), index, problem });
        let first_len = match &self.contents.source {
            Source::Gguf { first_len } => *first_len,
            Source::Safetensors(_) => return Err(self.wrong(key, wanted, value)),
            Source::Outline { arrays, .. } => {
                let elements = arrays.get(key).ok_or_else(|| self.wrong(key, wanted, value))?;
                let converted = elements
                    .iter()
                    .zip(0..)
                    .map(|(element, index)| convert(element.clone()).map_err(|problem| bad(index, problem)));
                return converted.collect::<Result<_, _>>().map(Some);
            }
        };
        let mut reader = Reader::open_at(&self.contents.parts[0], at, first_len)?;
        // The count was checked against the file and the limits when the header was read.
        let mut values = Vec::with_capacity(count as usize);
        for index in 0..count {
            let value = read(&mut reader, kind, index)?;
            values.push(convert(value).map_err(|problem| bad(index, problem))?);
        }
        Ok(Some(values))
    }
}

fn is_integer(kind: Kind) -> bool {
    use Kind::*;
    matches!(kind, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

fn number(reader: &mut Reader<'_>, key: &str, kind: Kind, index: u64) -> Result<Value, FileError> {
    let value = reader.number(kind, format_args!("entry {index} of `{key}`"))?;
    let problem = "is not a number";
    value.ok_or_else(|| reader.error(Problem::BadEntry { key: key.to_owned(), index, problem }))
}

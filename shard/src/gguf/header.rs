//! A model's whole header: the metadata of its first part and the tensors of all parts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::{GgufError, Problem};
use super::fingerprint::Fingerprint;
use super::limits;
use super::part::{Part, TensorInfo};
use super::reader::Reader;
use super::split::SplitName;
use super::value::{Kind, Value};
use crate::units::Bytes;

/// What a model's files say of themselves, checked: every tensor lies inside its file, aligned and apart from the
/// others, and every name is there once.
///
/// It stays small: arrays are read from the file again when they are asked for.
#[derive(Clone, Debug)]
pub struct Header {
    parts: Vec<PathBuf>,
    first_len: u64,
    file_bytes: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    fingerprint: Fingerprint,
}

impl Header {
    /// Reads the header of the model at `path`: a GGUF file, or the first part of a split one.
    ///
    /// # Errors
    /// Where a file cannot be read, is damaged, cut off or of an unsupported version, or where `path` is not the first
    /// part, or another part is missing. No tensor data is read, and no more memory is used than
    /// [`limits`] allow, whatever the file says.
    pub fn open(path: &Path) -> Result<Header, GgufError> {
        let name = SplitName::of(path);
        let first = Part::read(path, 0)?;
        let count = first.metadata.get("split.count").map_or(Some(1), Value::as_u64).unwrap_or(u64::MAX);
        let number = first.metadata.get("split.no").map_or(Some(0), Value::as_u64).unwrap_or(u64::MAX);
        let mut header = Header {
            parts: vec![path.to_owned()],
            first_len: first.len,
            file_bytes: Bytes(first.len),
            metadata: first.metadata,
            tensors: first.tensors,
            by_name: HashMap::new(),
            fingerprint: Fingerprint::new(first.digest),
        };
        if count > 1 {
            let problem = |problem| GgufError::new(path, problem);
            if count > limits::MAX_PARTS {
                let what = "`split.count`".to_owned();
                return Err(problem(Problem::Limit { what, found: count, limit: limits::MAX_PARTS }));
            }
            let name =
                name.filter(|name| name.count == count).ok_or(problem(Problem::SplitName { count }))?;
            if number != 0 || name.part != 1 {
                let part = number.saturating_add(1);
                return Err(problem(Problem::NotFirstPart { part, count, first: name.path_of(1) }));
            }
            header.add_parts(&name, first.digest)?;
        }
        header.index()?;
        Ok(header)
    }

    fn add_parts(&mut self, name: &SplitName, first: [u8; 32]) -> Result<(), GgufError> {
        let mut hash = Sha256::new();
        hash.update(first);
        for number in 2..=name.count {
            let path = name.path_of(number);
            if !path.exists() {
                let problem = Problem::MissingPart { part: number, count: name.count };
                return Err(GgufError::new(&path, problem));
            }
            let part = Part::read(&path, self.parts.len())?;
            let said = |key| part.metadata.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (found, found_count) = (said("split.no").saturating_add(1), said("split.count"));
            if (found, found_count) != (number, name.count) {
                let (wanted, wanted_count) = (number, name.count);
                let problem = Problem::WrongPart { found, found_count, wanted, wanted_count };
                return Err(GgufError::new(&path, problem));
            }
            hash.update(part.digest);
            self.file_bytes += Bytes(part.len);
            self.tensors.extend(part.tensors);
            self.parts.push(path);
            let found = self.tensors.len() as u64;
            if found > limits::MAX_TENSORS {
                let what = "the number of tensors of all parts".to_owned();
                let problem = Problem::Limit { what, found, limit: limits::MAX_TENSORS };
                return Err(GgufError::new(&self.parts[0], problem));
            }
        }
        self.fingerprint = Fingerprint::new(hash.finalize().into());
        let found = self.tensors.len() as u64;
        match self.u64("split.tensors.count")? {
            Some(wanted) if wanted != found => Err(self.error(Problem::SplitTensors { found, wanted })),
            _ => Ok(()),
        }
    }

    fn index(&mut self) -> Result<(), GgufError> {
        for (index, tensor) in self.tensors.iter().enumerate() {
            if self.by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(self.error(Problem::DuplicateTensor { name: tensor.name.clone() }));
            }
        }
        Ok(())
    }

    fn error(&self, problem: Problem) -> GgufError {
        GgufError::new(&self.parts[0], problem)
    }

    /// The model's files, in order; one unless it is split.
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }

    /// Size of all files together.
    pub fn file_bytes(&self) -> Bytes {
        self.file_bytes
    }

    /// The model's identity.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// All tensors, in the files' order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    /// All metadata, in the order of the keys.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn wrong(&self, key: &str, wanted: &'static str, value: &Value) -> GgufError {
        self.error(Problem::WrongType { key: key.to_owned(), wanted, found: value.describe() })
    }

    fn scalar<'h, T>(
        &'h self,
        key: &str,
        wanted: &'static str,
        read: impl FnOnce(&'h Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.wrong(key, wanted, value))
    }

    /// The count under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an integer or is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.scalar(key, "an integer that is not negative", Value::as_u64)
    }

    /// The number under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not a floating-point number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.scalar(key, "a floating-point number", |value| match value {
            Value::Float(x) => Some(*x as f32),
            _ => None,
        })
    }

    /// The bool under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not a bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.scalar(key, "a bool", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// The text under `key`; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.scalar(key, "a string", |value| match value {
            Value::Str(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// How many elements the array under `key` has; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array.
    pub fn array_len(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.scalar(key, "an array", |value| match value {
            Value::Array { count, .. } => Some(*count),
            _ => None,
        })
    }

    /// The strings of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of UTF-8 strings, or the file has changed or cannot be read.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, GgufError> {
        let read_text = |reader: &mut Reader<'_>, index: u64| {
            let text = reader.string(limits::MAX_ELEMENT_BYTES, format_args!("entry {index} of `{key}`"))?;
            let problem = "is not UTF-8";
            text.ok_or_else(|| reader.error(Problem::BadEntry { key: key.to_owned(), index, problem }))
        };
        self.array(
            key,
            "an array of strings",
            |kind| kind == Kind::Str,
            |reader, _, index| read_text(reader, index),
        )
    }

    /// The floating-point numbers of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of such numbers, or the file has changed or cannot be read.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.array(key, "an array of floating-point numbers", |kind| matches!(kind, Kind::F32 | Kind::F64), {
            |reader, kind, index| match number(reader, key, kind, index)? {
                Value::Float(x) => Ok(x as f32),
                _ => Err(bad_entry(reader, key, index, "is not a floating-point number")),
            }
        })
    }

    /// The integers of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of integers that fit into an i32, or the file has changed or cannot be read.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.array(key, "an array of integers", is_integer, |reader, kind, index| {
            let fitting = match number(reader, key, kind, index)? {
                Value::Unsigned(n) => i32::try_from(n).ok(),
                Value::Signed(n) => i32::try_from(n).ok(),
                _ => None,
            };
            fitting.ok_or_else(|| bad_entry(reader, key, index, "does not fit into 32 bits"))
        })
    }

    /// The counts of the array under `key`, read from the file; `None` where the key is absent.
    ///
    /// # Errors
    /// Where the value is not an array of integers, one is negative, or the file has changed or cannot be read.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        self.array(key, "an array of integers", is_integer, |reader, kind, index| {
            let value = number(reader, key, kind, index)?;
            value.as_u64().ok_or_else(|| bad_entry(reader, key, index, "is negative"))
        })
    }

    fn array<T>(
        &self,
        key: &str,
        wanted: &'static str,
        fits: impl FnOnce(Kind) -> bool,
        mut read: impl FnMut(&mut Reader<'_>, Kind, u64) -> Result<T, GgufError>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let Value::Array { kind, count, at, .. } = *value else {
            return Err(self.wrong(key, wanted, value));
        };
        if !fits(kind) {
            return Err(self.wrong(key, wanted, value));
        }
        let mut reader = Reader::open_at(&self.parts[0], at, self.first_len)?;
        // The count was checked against the file and the limits when the header was read.
        let mut values = Vec::with_capacity(count as usize);
        for index in 0..count {
            values.push(read(&mut reader, kind, index)?);
        }
        Ok(Some(values))
    }
}

fn is_integer(kind: Kind) -> bool {
    use Kind::*;
    matches!(kind, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

fn bad_entry(reader: &Reader<'_>, key: &str, index: u64, problem: &'static str) -> GgufError {
    reader.error(Problem::BadEntry { key: key.to_owned(), index, problem })
}

fn number(reader: &mut Reader<'_>, key: &str, kind: Kind, index: u64) -> Result<Value, GgufError> {
    let value = reader.number(kind, format_args!("entry {index} of `{key}`"))?;
    value.ok_or_else(|| bad_entry(reader, key, index, "is not a number"))
}

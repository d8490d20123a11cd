//! One safetensors file: eight bytes with the header's length, the header (JSON), and the tensors' data.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use super::limits;
use crate::model_file::{FileError, Place, Problem, TensorInfo};
use crate::tensor_type::TensorType;

/// What one file says.
pub(super) struct Part {
    /// In the header's order.
    pub(super) tensors: Vec<TensorInfo>,
    /// Size of the file in bytes.
    pub(super) len: u64,
    /// SHA-256 over the header and the size.
    pub(super) digest: [u8; 32],
}

/// A tensor as the header has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

impl Part {
    /// Reads the header of the file at `path`, which is part `part` of a model.
    pub(super) fn read(path: &Path, part: usize) -> Result<Part, FileError> {
        let error = |problem| FileError::new(path, problem);
        let (header, len) = read_header(path).map_err(error)?;
        let entries: Entries = serde_json::from_slice(&header).map_err(|problem| {
            let problem = format!("is not a table of tensors: {problem}");
            error(Problem::Damaged { what: "the header".to_owned(), problem })
        })?;
        let data = 8 + header.len() as u64;
        let tensors: Result<Vec<TensorInfo>, Problem> =
            entries.0.into_iter().map(|(name, entry)| place(name, entry, part, data, len)).collect();
        let tensors = tensors.map_err(error)?;
        let mut names = HashSet::new();
        if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
            return Err(error(Problem::DuplicateTensor { name: twice.name.clone() }));
        }
        check_overlaps(&tensors).map_err(error)?;
        let mut hash = Sha256::new();
        hash.update((header.len() as u64).to_le_bytes());
        hash.update(&header);
        hash.update(len.to_le_bytes());
        Ok(Part { tensors, len, digest: hash.finalize().into() })
    }
}

/// The header's bytes and the file's length.
fn read_header(path: &Path) -> Result<(Vec<u8>, u64), Problem> {
    // Asked before opening, which would wait for a writer where the path is a pipe.
    if !std::fs::metadata(path).map_err(Problem::Io)?.is_file() {
        return Err(Problem::NotAFile);
    }
    let mut file = File::open(path).map_err(Problem::Io)?;
    let len = file.metadata().map_err(Problem::Io)?.len();
    let truncated = |wanted, inside: &str| Problem::Truncated { end: len, wanted, inside: inside.to_owned() };
    if len < 8 {
        return Err(truncated(8, "the header's length"));
    }
    let mut count = [0; 8];
    file.read_exact(&mut count).map_err(Problem::Io)?;
    let count = u64::from_le_bytes(count);
    if count > limits::MAX_HEADER_BYTES {
        let what = "the header's length".to_owned();
        return Err(Problem::Limit { what, found: count, limit: limits::MAX_HEADER_BYTES });
    }
    if 8 + count > len {
        return Err(truncated(8 + count, "the header"));
    }
    let mut header = vec![0; count as usize];
    file.read_exact(&mut header).map_err(Problem::Io)?;
    Ok((header, len))
}

/// Checks an entry against a file of `len` bytes, whose data begins at byte `data`.
fn place(name: String, entry: Entry, part: usize, data: u64, len: u64) -> Result<TensorInfo, Problem> {
    let damaged = |problem: String| Problem::Damaged { what: format!("tensor `{name}`"), problem };
    let kind = kind_of(&entry.dtype).ok_or_else(|| Problem::Dtype {
        name: name.clone(),
        dtype: entry.dtype.chars().take(40).collect(),
    })?;
    let mut dims = entry.shape.0;
    dims.reverse();
    if dims.is_empty() {
        dims.push(1);
    }
    if dims.contains(&0) {
        return Err(damaged(format!("has the dimensions {dims:?}, of which none may be 0")));
    }
    let values = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let bytes = values.and_then(|values| kind.bytes_of(values));
    let bytes =
        bytes.ok_or_else(|| damaged(format!("has the dimensions {dims:?}, whose product overflows")))?;
    let [start, end] = entry.data_offsets;
    if end.checked_sub(start) != Some(bytes.0) {
        let problem = format!("stands from byte {start} to {end} of the data, but its values take {bytes}");
        return Err(damaged(problem));
    }
    let wanted = data.saturating_add(end);
    if wanted > len {
        return Err(Problem::Truncated { end: len, wanted, inside: format!("tensor `{name}`") });
    }
    Ok(TensorInfo::whole(name, dims, kind, bytes, Place::File { part, offset: data + start }))
}

/// The type with this name in a header; `None` where it has no counterpart here.
fn kind_of(dtype: &str) -> Option<TensorType> {
    Some(match dtype {
        "F64" => TensorType::F64,
        "F32" => TensorType::F32,
        "F16" => TensorType::F16,
        "BF16" => TensorType::BF16,
        "I64" => TensorType::I64,
        "I32" => TensorType::I32,
        "I16" => TensorType::I16,
        // Bytes that stand for themselves, such as codes and scales.
        "I8" | "U8" => TensorType::I8,
        _ => return None,
    })
}

fn check_overlaps(tensors: &[TensorInfo]) -> Result<(), Problem> {
    let start = |tensor: &TensorInfo| match tensor.pieces.first().map(|piece| &piece.place) {
        Some(Place::File { offset, .. }) => *offset,
        _ => 0,
    };
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| start(tensor));
    match order.windows(2).find(|pair| start(pair[0]) + pair[0].bytes.0 > start(pair[1])) {
        Some(pair) => Err(Problem::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() }),
        None => Ok(()),
    }
}

/// All tensors of a header.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one member per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            if name == "__metadata__" {
                members.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.is_empty() || name.len() > limits::MAX_NAME_BYTES {
                let limit = limits::MAX_NAME_BYTES;
                return Err(A::Error::custom(format!(
                    "a tensor's name has {} bytes, wanted 1 to {limit}",
                    name.len()
                )));
            }
            entries.push((name, members.next_value()?));
            if entries.len() as u64 > limits::MAX_TENSORS {
                return Err(A::Error::custom(format!("there are more than {} tensors", limits::MAX_TENSORS)));
            }
        }
        Ok(Entries(entries))
    }
}

/// A tensor's dimensions, the last of which are neighbours.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {} dimensions", limits::MAX_DIMENSIONS)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut dims: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(dim) = dims.next_element()? {
            if shape.len() == limits::MAX_DIMENSIONS {
                return Err(A::Error::invalid_length(shape.len() + 1, &self));
            }
            shape.push(dim);
        }
        Ok(Shape(shape))
    }
}

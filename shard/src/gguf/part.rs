//! One GGUF file: metadata, tensor table, and the checks on both.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::limits;
use super::reader::Reader;
use crate::model_file::{FileError, Kind, Place, Problem, TensorInfo, Value};
use crate::tensor_type::TensorType;
use crate::units::Bytes;

/// Alignment of tensor data where the file states none.
const DEFAULT_ALIGNMENT: u64 = 32;

/// What one file says.
pub(super) struct Part {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
    /// SHA-256 over the header and the sizes.
    pub(super) digest: [u8; 32],
    /// Size of the file in bytes.
    pub(super) len: u64,
}

impl Part {
    /// Reads the header of the file at `path`, which is part `part` of a model.
    pub(super) fn read(path: &Path, part: usize) -> Result<Part, FileError> {
        let mut reader = Reader::open(path)?;
        check_preamble(&mut reader)?;
        let tensor_count = reader.count(limits::MAX_TENSORS, format_args!("the number of tensors"))?;
        let key_count = reader.count(limits::MAX_KEYS, format_args!("the number of metadata keys"))?;
        let metadata = read_metadata(&mut reader, key_count)?;
        let alignment = alignment_of(&reader, &metadata)?;
        let stated = read_tensors(&mut reader, tensor_count)?;
        let tensors = place_tensors(&reader, stated, part, alignment)?;
        let len = reader.len();
        Ok(Part { metadata, tensors, digest: reader.finish(), len })
    }
}

fn check_preamble(reader: &mut Reader<'_>) -> Result<(), FileError> {
    let found: [u8; 4] = reader.bytes(format_args!("the magic number"))?;
    if &found != b"GGUF" {
        return Err(reader.error(Problem::Magic { found }));
    }
    let version = reader.u32(format_args!("the version"))?;
    match version {
        2 | 3 => Ok(()),
        v if (1..=3).contains(&v.swap_bytes()) => Err(reader.error(Problem::BigEndian)),
        _ => Err(reader.error(Problem::Version { version })),
    }
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, Value>, FileError> {
    let mut metadata = BTreeMap::new();
    let mut resident = 0u64;
    for index in 1..=count {
        let what = format!("metadata key {index} of {count}");
        let key = reader.string(limits::MAX_KEY_BYTES, format_args!("{what}"))?;
        let Some(key) = key.filter(|key| !key.is_empty()) else {
            let problem = "is empty or not UTF-8".to_owned();
            return Err(reader.error(Problem::Damaged { what, problem }));
        };
        let number = reader.u32(format_args!("the type of `{key}`"))?;
        let value = read_value(reader, &key, number)?;
        resident += key.len() as u64 + if let Value::Str(text) = &value { text.len() as u64 } else { 0 };
        if resident > limits::MAX_RESIDENT_BYTES {
            let what = "the size of all metadata strings".to_owned();
            let limit = limits::MAX_RESIDENT_BYTES;
            return Err(reader.error(Problem::Limit { what, found: resident, limit }));
        }
        if metadata.contains_key(&key) {
            return Err(reader.error(Problem::DuplicateKey { key }));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn kind_of(reader: &Reader<'_>, number: u32, what: String) -> Result<Kind, FileError> {
    let problem = format!("is {number}, which is not known");
    Kind::from_number(number).ok_or_else(|| reader.error(Problem::Damaged { what, problem }))
}

fn read_value(reader: &mut Reader<'_>, key: &str, number: u32) -> Result<Value, FileError> {
    let kind = kind_of(reader, number, format!("the type of `{key}`"))?;
    match kind {
        Kind::Array => read_array(reader, key),
        Kind::Str => {
            let text = reader.string(limits::MAX_STRING_BYTES, format_args!("the value of `{key}`"))?;
            let damaged =
                || Problem::Damaged { what: format!("the value of `{key}`"), problem: "is not UTF-8".into() };
            text.map(Value::Str).ok_or_else(|| reader.error(damaged()))
        }
        _ => {
            let value = reader.number(kind, format_args!("the value of `{key}`"))?;
            value.ok_or_else(|| {
                let problem = "is a bool that is neither 0 nor 1".to_owned();
                reader.error(Problem::Damaged { what: format!("the value of `{key}`"), problem })
            })
        }
    }
}

/// Passes over an array and remembers where it is.
fn read_array(reader: &mut Reader<'_>, key: &str) -> Result<Value, FileError> {
    let number = reader.u32(format_args!("the element type of `{key}`"))?;
    let kind = kind_of(reader, number, format!("the element type of `{key}`"))?;
    let count =
        reader.count(limits::MAX_ARRAY_ELEMENTS, format_args!("the number of elements of `{key}`"))?;
    let at = reader.position();
    match kind {
        Kind::Array => {
            let what = format!("the value of `{key}`");
            let problem = "is an array of arrays, which no model has".to_owned();
            return Err(reader.error(Problem::Damaged { what, problem }));
        }
        Kind::Str => {
            for index in 0..count {
                let what = format_args!("the length of entry {index} of `{key}`");
                let len = reader.count(limits::MAX_ELEMENT_BYTES, what)?;
                reader.skip(len, format_args!("entry {index} of `{key}`"))?;
            }
        }
        // At most 2^24 elements of at most 8 bytes: no overflow.
        _ => reader.skip(count * kind.size().unwrap_or(0), format_args!("the elements of `{key}`"))?,
    }
    Ok(Value::Array { kind, count, at, bytes: reader.position() - at })
}

fn alignment_of(reader: &Reader<'_>, metadata: &BTreeMap<String, Value>) -> Result<u64, FileError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let found = value.as_u64().ok_or_else(|| {
        let key = "general.alignment".to_owned();
        reader.error(Problem::WrongType { key, wanted: "an integer", found: value.describe() })
    })?;
    if !found.is_power_of_two() || found > limits::MAX_ALIGNMENT {
        return Err(reader.error(Problem::Alignment { found, limit: limits::MAX_ALIGNMENT }));
    }
    Ok(found)
}

/// A line of the tensor table; the offset counts from the start of the data.
struct StatedTensor {
    name: String,
    dims: Vec<u64>,
    kind: TensorType,
    offset: u64,
    bytes: Bytes,
}

/// Reads the tensor table.
fn read_tensors(reader: &mut Reader<'_>, count: u64) -> Result<Vec<StatedTensor>, FileError> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for index in 1..=count {
        let what = format!("the name of tensor {index} of {count}");
        let name = reader.string(limits::MAX_TENSOR_NAME_BYTES, format_args!("{what}"))?;
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            let problem = "is empty or not UTF-8".to_owned();
            return Err(reader.error(Problem::Damaged { what, problem }));
        };
        let tensor = read_tensor(reader, name)?;
        if !names.insert(tensor.name.clone()) {
            return Err(reader.error(Problem::DuplicateTensor { name: tensor.name }));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor(reader: &mut Reader<'_>, name: String) -> Result<StatedTensor, FileError> {
    let damaged =
        |name: &str, problem: String| Problem::Damaged { what: format!("tensor `{name}`"), problem };
    let dimensions = reader.u32(format_args!("the number of dimensions of tensor `{name}`"))?;
    if !(1..=limits::MAX_DIMENSIONS).contains(&dimensions) {
        let problem = format!("has {dimensions} dimensions instead of 1 to {}", limits::MAX_DIMENSIONS);
        return Err(reader.error(damaged(&name, problem)));
    }
    let mut dims = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        dims.push(reader.u64(format_args!("the dimensions of tensor `{name}`"))?);
    }
    let number = reader.u32(format_args!("the type of tensor `{name}`"))?;
    let offset = reader.u64(format_args!("the offset of tensor `{name}`"))?;
    let Some(kind) = TensorType::from_ggml(number) else {
        return Err(reader.error(Problem::UnknownType { name, number }));
    };
    let bytes = size_of(&dims, kind).map_err(|problem| reader.error(damaged(&name, problem)))?;
    Ok(StatedTensor { name, dims, kind, offset, bytes })
}

fn size_of(dims: &[u64], kind: TensorType) -> Result<Bytes, String> {
    if dims.contains(&0) {
        return Err(format!("has the dimensions {dims:?}, of which none may be 0"));
    }
    if !dims[0].is_multiple_of(kind.block_values()) {
        return Err(format!(
            "has rows of {} values, but {kind} stores blocks of {}",
            dims[0],
            kind.block_values()
        ));
    }
    let values = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let bytes = values.and_then(|values| kind.bytes_of(values));
    bytes.ok_or_else(|| format!("has the dimensions {dims:?}, whose product overflows"))
}

/// Makes offsets absolute, after checking that every tensor stands aligned, inside the file, and apart from the others.
fn place_tensors(
    reader: &Reader<'_>,
    stated: Vec<StatedTensor>,
    part: usize,
    alignment: u64,
) -> Result<Vec<TensorInfo>, FileError> {
    // The position is at most the file's size, which is far below the largest u64.
    let data = reader.position().next_multiple_of(alignment);
    let mut spans = Vec::with_capacity(stated.len());
    for (index, tensor) in stated.iter().enumerate() {
        let name = &tensor.name;
        let what = || format!("tensor `{name}`");
        if !tensor.offset.is_multiple_of(alignment) {
            let problem = format!("has the offset {}, which is not a multiple of {alignment}", tensor.offset);
            return Err(reader.error(Problem::Damaged { what: what(), problem }));
        }
        let start = data.checked_add(tensor.offset);
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(tensor.bytes.0)?)))
        else {
            let problem = format!("has the offset {}, which overflows", tensor.offset);
            return Err(reader.error(Problem::Damaged { what: what(), problem }));
        };
        if end > reader.len() {
            return Err(reader.error(Problem::Truncated { end: reader.len(), wanted: end, inside: what() }));
        }
        spans.push((start, end, index));
    }
    let placed = stated.iter().zip(&spans).map(|(tensor, &(offset, ..))| {
        let place = Place::File { part, offset };
        TensorInfo::whole(tensor.name.clone(), tensor.dims.clone(), tensor.kind, tensor.bytes, place)
    });
    let placed = placed.collect();
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if pair[0].1 > pair[1].0 {
            let (first, second) = (stated[pair[0].2].name.clone(), stated[pair[1].2].name.clone());
            return Err(reader.error(Problem::Overlap { first, second }));
        }
    }
    Ok(placed)
}

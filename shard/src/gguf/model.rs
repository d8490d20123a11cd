//! A whole model: one file, or all parts of a split one.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::limits;
use super::part::Part;
use super::split::SplitName;
use crate::model_file::{Contents, FileError, Fingerprint, Header, Problem, Source, Value};
use crate::units::Bytes;

/// Reads the header of the GGUF file at `path`, with those of the other parts where it is the first of several.
///
/// # Errors
/// See [`Header::open`].
pub(crate) fn open(path: &Path) -> Result<Header, FileError> {
    let name = SplitName::of(path);
    let first = Part::read(path, 0)?;
    let count = first.metadata.get("split.count").map_or(Some(1), Value::as_u64).unwrap_or(u64::MAX);
    let number = first.metadata.get("split.no").map_or(Some(0), Value::as_u64).unwrap_or(u64::MAX);
    let mut contents = Contents {
        source: Source::Gguf { first_len: first.len },
        parts: vec![path.to_owned()],
        file_bytes: Bytes(first.len),
        metadata: first.metadata,
        tensors: first.tensors,
        fingerprint: Fingerprint::new(first.digest),
    };
    if count > 1 {
        let problem = |problem| FileError::new(path, problem);
        if count > limits::MAX_PARTS {
            let what = "`split.count`".to_owned();
            return Err(problem(Problem::Limit { what, found: count, limit: limits::MAX_PARTS }));
        }
        let name = name.filter(|name| name.count == count).ok_or(problem(Problem::SplitName { count }))?;
        if number != 0 || name.part != 1 {
            let part = number.saturating_add(1);
            return Err(problem(Problem::NotFirstPart { part, count, first: name.path_of(1) }));
        }
        add_parts(&mut contents, &name, first.digest)?;
    }
    let header = Header::new(contents)?;
    let found = header.tensors().len() as u64;
    match header.u64("split.tensors.count")? {
        Some(wanted) if count > 1 && wanted != found => {
            Err(FileError::new(path, Problem::SplitTensors { found, wanted }))
        }
        _ => Ok(header),
    }
}

fn add_parts(contents: &mut Contents, name: &SplitName, first: [u8; 32]) -> Result<(), FileError> {
    let mut hash = Sha256::new();
    hash.update(first);
    for number in 2..=name.count {
        let path = name.path_of(number);
        if !path.exists() {
            let problem = Problem::MissingPart { part: number, count: name.count };
            return Err(FileError::new(&path, problem));
        }
        let part = Part::read(&path, contents.parts.len())?;
        let said = |key| part.metadata.get(key).and_then(Value::as_u64).unwrap_or(0);
        let (found, found_count) = (said("split.no").saturating_add(1), said("split.count"));
        if (found, found_count) != (number, name.count) {
            let (wanted, wanted_count) = (number, name.count);
            let problem = Problem::WrongPart { found, found_count, wanted, wanted_count };
            return Err(FileError::new(&path, problem));
        }
        hash.update(part.digest);
        contents.file_bytes += Bytes(part.len);
        contents.tensors.extend(part.tensors);
        contents.parts.push(path);
        let found = contents.tensors.len() as u64;
        if found > limits::MAX_TENSORS {
            let what = "the number of tensors of all parts".to_owned();
            let problem = Problem::Limit { what, found, limit: limits::MAX_TENSORS };
            return Err(FileError::new(&contents.parts[0], problem));
        }
    }
    contents.fingerprint = Fingerprint::new(hash.finalize().into());
    Ok(())
}

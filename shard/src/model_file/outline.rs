//! A header as it goes to machines that do not have the model's files: without the tokenizer, with files by number.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{FileError, Problem};
use super::fingerprint::Fingerprint;
use super::header::{Contents, Format, Header, Source};
use super::tensor::TensorInfo;
use super::value::{Kind, Value};
use crate::units::Bytes;

/// Most bytes of an outline as JSON: DeepSeek-R1 in safetensors, with a tensor for every expert, has a fifth of that.
pub const MAX_OUTLINE_BYTES: usize = 64 << 20;
/// Most files of a model.
const MAX_PARTS: usize = 4096;
/// Keys that begin so are the tokenizer's, which stages do not need: most of a small model's header.
const TOKENIZER: &str = "tokenizer.";

/// What a stage must know of a model's files to read its tensors out of them, whatever they are called and wherever they
/// lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outline {
    format: Format,
    fingerprint: Fingerprint,
    /// Bytes of every file with tensors.
    parts: Vec<u64>,
    /// Bytes of all files together.
    file_bytes: Bytes,
    metadata: BTreeMap<String, Stated>,
    tensors: Vec<TensorInfo>,
    /// Places in the list by the names that families have for them.
    names: BTreeMap<String, usize>,
}

/// A metadata value with all that is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Stated {
    Unsigned(u64),
    Signed(i64),
    /// As its bits, since JSON has no infinity.
    Float(u64),
    Bool(bool),
    Str(String),
    Strings(Vec<String>),
    Floats(Kind, Vec<u32>),
    Integers(Kind, Vec<i32>),
    Counts(Kind, Vec<u64>),
    /// Of another kind, which nothing asks for.
    Other(Kind, u64),
}

/// An outline that is none of a model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OutlineError {
    /// It is not JSON of an outline.
    #[error("not an outline of a model: {0}")]
    Json(String),
    /// It is of another model.
    #[error("it is of the model {found} and not of {wanted}")]
    OfAnother {
        /// Whose it is.
        found: Fingerprint,
        /// Whose was wanted.
        wanted: Fingerprint,
    },
    /// What it says cannot be.
    #[error("{what} {problem}")]
    Impossible {
        /// Of what it says so.
        what: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Outline {
    /// What `header` says, but for the tokenizer. Arrays are read from the file, and the files' sizes are asked for.
    ///
    /// # Errors
    /// Where the files have changed or cannot be read.
    pub fn of(header: &Header) -> Result<Outline, FileError> {
        let size = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).map_err(|error| FileError::new(path, Problem::Io(error)));
            metadata.map(|metadata| metadata.len())
        };
        let kept = header.metadata().filter(|(key, _)| !key.starts_with(TOKENIZER));
        let metadata = kept.map(|(key, value)| Ok((key.to_owned(), stated(header, key, value)?)));
        Ok(Outline {
            format: header.format(),
            fingerprint: *header.fingerprint(),
            parts: header.parts().iter().map(size).collect::<Result<_, _>>()?,
            file_bytes: header.file_bytes(),
            metadata: metadata.collect::<Result<_, FileError>>()?,
            tensors: header.tensors().to_vec(),
            names: header.names().map(|(name, index)| (name.to_owned(), index)).collect(),
        })
    }

    /// It as JSON.
    pub fn to_json(&self) -> String {
        // Maps have texts for keys, and nothing else can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The outline of the model with this fingerprint, out of its JSON.
    ///
    /// # Errors
    /// Where it is not one, of another model, or what it says of tensors cannot be.
    pub fn from_json(json: &[u8], wanted: &Fingerprint) -> Result<Outline, OutlineError> {
        let outline: Outline =
            serde_json::from_slice(json).map_err(|error| OutlineError::Json(error.to_string()))?;
        if outline.fingerprint != *wanted {
            return Err(OutlineError::OfAnother { found: outline.fingerprint, wanted: *wanted });
        }
        let impossible = |what: &str, problem| OutlineError::Impossible { what: what.to_owned(), problem };
        let sum = outline.parts.iter().try_fold(0u64, |sum, bytes| sum.checked_add(*bytes));
        if outline.parts.is_empty() || outline.parts.len() > MAX_PARTS || sum.is_none() {
            return Err(impossible("its list of files", "is empty, too long, or too large"));
        }
        for tensor in &outline.tensors {
            if let Some(problem) = tensor.problem(&outline.parts) {
                return Err(impossible(&format!("tensor `{}`", tensor.name), problem));
            }
        }
        if outline.names.values().any(|index| *index >= outline.tensors.len()) {
            return Err(impossible("its list of names", "names a tensor that is not there"));
        }
        Ok(outline)
    }

    /// The model's identity.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Bytes of every file with tensors.
    pub fn parts(&self) -> &[u64] {
        &self.parts
    }

    /// All tensors, in the files' order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The header of the same model where its files are at `paths`, as many as it has parts. It has no tokenizer.
    pub fn header(self, paths: Vec<PathBuf>) -> Header {
        let mut arrays = HashMap::new();
        let metadata = self.metadata.into_iter().map(|(key, stated)| {
            let value = match &stated {
                Stated::Unsigned(value) => Value::Unsigned(*value),
                Stated::Signed(value) => Value::Signed(*value),
                Stated::Float(bits) => Value::Float(f64::from_bits(*bits)),
                Stated::Bool(value) => Value::Bool(*value),
                Stated::Str(text) => Value::Str(text.clone()),
                Stated::Strings(all) => array(Kind::Str, all.len() as u64),
                Stated::Floats(kind, all) => array(*kind, all.len() as u64),
                Stated::Integers(kind, all) => array(*kind, all.len() as u64),
                Stated::Counts(kind, all) => array(*kind, all.len() as u64),
                Stated::Other(kind, count) => array(*kind, *count),
            };
            let elements = match stated {
                Stated::Strings(all) => Some(all.into_iter().map(Value::Str).collect()),
                Stated::Floats(_, all) => {
                    Some(all.into_iter().map(|bits| Value::Float(f32::from_bits(bits).into())).collect())
                }
                Stated::Integers(_, all) => {
                    Some(all.into_iter().map(|value| Value::Signed(value.into())).collect())
                }
                Stated::Counts(_, all) => Some(all.into_iter().map(Value::Unsigned).collect()),
                _ => None,
            };
            if let Some(elements) = elements {
                arrays.insert(key.clone(), elements);
            }
            (key, value)
        });
        let metadata = metadata.collect();
        let contents = Contents {
            source: Source::Outline { format: self.format, arrays },
            parts: paths,
            file_bytes: self.file_bytes,
            metadata,
            tensors: self.tensors,
            fingerprint: self.fingerprint,
        };
        Header::with_names(contents, self.names.into_iter().collect())
    }
}

fn array(kind: Kind, count: u64) -> Value {
    Value::Array { kind, count, at: 0, bytes: 0 }
}

/// A value with all that is in it.
fn stated(header: &Header, key: &str, value: &Value) -> Result<Stated, FileError> {
    use Kind::{F32, F64, I8, I16, I32, I64, Str, U8, U16, U32, U64};
    Ok(match value {
        Value::Unsigned(value) => Stated::Unsigned(*value),
        Value::Signed(value) => Stated::Signed(*value),
        Value::Float(value) => Stated::Float(value.to_bits()),
        Value::Bool(value) => Stated::Bool(*value),
        Value::Str(text) => Stated::Str(text.clone()),
        Value::Array { kind, count, .. } => match kind {
            Str => Stated::Strings(header.strings(key)?.unwrap_or_default()),
            F32 | F64 => {
                let all = header.f32s(key)?.unwrap_or_default();
                Stated::Floats(*kind, all.into_iter().map(f32::to_bits).collect())
            }
            U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64 => {
                match header.i32s(key) {
                    Ok(all) => Stated::Integers(*kind, all.unwrap_or_default()),
                    // Larger ones, or else the file has changed, which this finds, too.
                    Err(_) => Stated::Counts(*kind, header.u64s(key)?.unwrap_or_default()),
                }
            }
            _ => Stated::Other(*kind, *count),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_file::{Layout, Piece, Place, Steps};
    use crate::tensor_type::TensorType;

    fn outline() -> Outline {
        let place = Place::File { part: 0, offset: 100 };
        let tensor = TensorInfo::whole("a".to_owned(), vec![32, 2], TensorType::Q8_0, Bytes(68), place);
        Outline {
            format: Format::Gguf,
            fingerprint: Fingerprint::new([7; 32]),
            parts: vec![168],
            file_bytes: Bytes(168),
            metadata: BTreeMap::from([
                ("x.rope".to_owned(), Stated::Float(f64::INFINITY.to_bits())),
                ("x.heads".to_owned(), Stated::Integers(Kind::U32, vec![3, 0, 5])),
                ("x.factors".to_owned(), Stated::Floats(Kind::F32, vec![1.5f32.to_bits()])),
                ("x.tags".to_owned(), Stated::Strings(vec!["one".to_owned()])),
            ]),
            names: BTreeMap::from([("b".to_owned(), 0)]),
            tensors: vec![tensor],
        }
    }

    #[test]
    fn a_header_comes_back_with_arrays_and_names() {
        let outline = Outline::from_json(outline().to_json().as_bytes(), &Fingerprint::new([7; 32])).unwrap();
        let header = outline.header(vec!["/cache/0".into()]);
        assert_eq!(header.u64s("x.heads").unwrap(), Some(vec![3, 0, 5]));
        assert_eq!(header.f32s("x.factors").unwrap(), Some(vec![1.5]));
        assert_eq!(header.strings("x.tags").unwrap(), Some(vec!["one".to_owned()]));
        assert_eq!(header.f32("x.rope").unwrap(), Some(f32::INFINITY));
        assert_eq!(header.tensor("b").unwrap().name, "a");
        assert_eq!(header.tensor_name("b"), "a");
        assert_eq!(header.tensor_name("c"), "c");
        assert_eq!(header.format(), Format::Gguf);
        assert!(header.strings("x.heads").is_err());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut Outline)| {
            let mut outline = outline();
            change(&mut outline);
            let read = Outline::from_json(outline.to_json().as_bytes(), &Fingerprint::new([7; 32]));
            read.expect_err("it is refused").to_string()
        };
        let told = |change: &dyn Fn(&mut Outline), words: &str| {
            let error = refused(change);
            assert!(error.contains(words), "{error}");
        };
        told(&|outline| outline.fingerprint = Fingerprint::new([8; 32]), "and not of");
        told(&|outline| outline.parts.clear(), "list of files");
        told(&|outline| outline.parts = vec![u64::MAX, 2], "list of files");
        told(&|outline| outline.parts = vec![167], "past the end");
        told(&|outline| outline.tensors[0].dims = vec![32, 3], "dimensions say");
        told(&|outline| outline.tensors[0].dims = vec![u64::MAX, 3], "dimensions say");
        told(&|outline| outline.tensors[0].dims.clear(), "no dimensions");
        told(&|outline| outline.tensors[0].pieces.clear(), "its pieces");
        told(
            &|outline| {
                let place = Place::File { part: 0, offset: u64::MAX };
                outline.tensors[0].pieces = vec![Piece { place, bytes: Bytes(68) }];
            },
            "past the end",
        );
        told(
            &|outline| {
                let steps = Steps { first: 1, column: 1, row: 1, matrix: 0 };
                outline.tensors[0].layout = Layout::Picked(steps);
            },
            "its pieces",
        );
        told(
            &|outline| {
                let steps = Steps { first: 0, column: 1, row: u64::MAX, matrix: 0 };
                outline.tensors[0].layout = Layout::Picked(steps);
            },
            "its pieces",
        );
        told(&|outline| _ = outline.names.insert("z".to_owned(), 9), "not there");
        let error = Outline::from_json(b"{}", &Fingerprint::new([7; 32])).expect_err("it is refused");
        assert!(matches!(error, OutlineError::Json(_)));
    }
}

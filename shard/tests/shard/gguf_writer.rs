//! Writes GGUF files, sound ones and broken ones.

use std::path::{Path, PathBuf};

use brigade_shard::model_file::{FileError, Header};
use brigade_shard::tensor_type::TensorType;

/// A metadata value to write.
#[derive(Clone, Debug)]
pub enum Meta {
    U32(u32),
    U64(u64),
    I32(i32),
    U16(u16),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// A type number and whatever bytes follow it.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Meta {
    fn from(text: &str) -> Meta {
        Meta::Str(text.to_owned())
    }
}

impl From<u32> for Meta {
    fn from(n: u32) -> Meta {
        Meta::U32(n)
    }
}

impl From<f32> for Meta {
    fn from(x: f32) -> Meta {
        Meta::F32(x)
    }
}

impl From<bool> for Meta {
    fn from(b: bool) -> Meta {
        Meta::Bool(b)
    }
}

impl From<Vec<&str>> for Meta {
    fn from(texts: Vec<&str>) -> Meta {
        Meta::Strs(texts.into_iter().map(str::to_owned).collect())
    }
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array<T>(kind: u32, items: &[T], write: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((items.len() as u64).to_le_bytes());
    bytes.extend(items.iter().flat_map(write));
    bytes
}

impl Meta {
    fn encode(&self) -> (u32, Vec<u8>) {
        match self {
            Meta::U16(n) => (2, n.to_le_bytes().to_vec()),
            Meta::U32(n) => (4, n.to_le_bytes().to_vec()),
            Meta::I32(n) => (5, n.to_le_bytes().to_vec()),
            Meta::F32(x) => (6, x.to_le_bytes().to_vec()),
            Meta::Bool(b) => (7, vec![u8::from(*b)]),
            Meta::Str(text) => (8, string(text)),
            Meta::Strs(texts) => (9, array(8, texts, |text| string(text))),
            Meta::F32s(values) => (9, array(6, values, |x| x.to_le_bytes().to_vec())),
            Meta::I32s(values) => (9, array(5, values, |n| n.to_le_bytes().to_vec())),
            Meta::U64(n) => (10, n.to_le_bytes().to_vec()),
            Meta::F64(x) => (12, x.to_le_bytes().to_vec()),
            Meta::Raw(kind, bytes) => (*kind, bytes.clone()),
        }
    }
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    /// Where its data stands; `None` for the next free place.
    pub offset: Option<u64>,
}

/// A file to write.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    pub keys: Vec<(String, Meta)>,
    pub tensors: Vec<Tensor>,
    /// Bytes of tensor data; `None` for what the tensors take.
    pub data: Option<u64>,
}

impl Default for Gguf {
    fn default() -> Self {
        Gguf { version: 3, keys: Vec::new(), tensors: Vec::new(), data: None }
    }
}

impl Gguf {
    pub fn key(mut self, key: &str, value: impl Into<Meta>) -> Gguf {
        self.set(key, value);
        self
    }

    /// Sets a key, in its old place where it is there already.
    pub fn set(&mut self, key: &str, value: impl Into<Meta>) {
        let value = value.into();
        match self.keys.iter_mut().find(|(name, _)| name == key) {
            Some(entry) => entry.1 = value,
            None => self.keys.push((key.to_owned(), value)),
        }
    }

    pub fn without(mut self, key: &str) -> Gguf {
        self.keys.retain(|(name, _)| name != key);
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], kind: TensorType) -> Gguf {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind: kind.to_ggml(),
            offset: None,
        });
        self
    }

    pub fn without_tensor(mut self, name: &str) -> Gguf {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// The header alone, padded to where the data begins, and the size of the data.
    pub fn header(&self) -> (Vec<u8>, u64) {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            let (kind, value) = value.encode();
            bytes.extend(string(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut end = 0u64;
        for tensor in &self.tensors {
            let offset = tensor.offset.unwrap_or(end.next_multiple_of(32));
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            bytes.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            let values: u64 = tensor.dims.iter().fold(1u64, |product, dim| product.wrapping_mul(*dim));
            let size = TensorType::from_ggml(tensor.kind).and_then(|kind| kind.bytes_of(values));
            end = end.max(offset.wrapping_add(size.map_or(0, |size| size.0)));
        }
        if !self.tensors.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
        }
        (bytes, self.data.unwrap_or(end))
    }

    /// The whole file; the data is zeros.
    pub fn bytes(&self) -> Vec<u8> {
        let (mut bytes, data) = self.header();
        bytes.resize(bytes.len() + data as usize, 0);
        bytes
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }

    /// Writes the file, and reads its header.
    pub fn open(&self) -> Result<Header, FileError> {
        open_bytes(&self.bytes())
    }
}

/// Reads the header of a file of these bytes. The file is gone afterwards, unless something still has to be read.
pub fn open_bytes(bytes: &[u8]) -> Result<Header, FileError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Header::open(&path)
}

/// A file that is there as long as this lives.
pub struct OnDisk {
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

impl OnDisk {
    pub fn new(file: &Gguf) -> OnDisk {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        file.write(&path);
        OnDisk { path, _folder: folder }
    }

    pub fn header(&self) -> Header {
        Header::open(&self.path).unwrap()
    }
}

//! A model's files, open for reading tensors.

use std::any::Any;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use brigade_shard::layers::LayerRange;
use brigade_shard::model_file::{Header, Layout, Meaning, Place, TensorInfo};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorTable;
use brigade_shard::units::Bytes;
use half::{bf16, f16};
use memmap2::Mmap;

use super::parts::Parts;
use super::stream::{LayerStream, Streamed};
use super::{
    HeldWeights, LoadError, LoadProgress, MappedBytes, READING, ReadProblem, StagedBytes, TensorSource,
    lengthen,
};
use crate::delivery::Delivered;

/// All parts of a model, open.
pub struct ModelFiles<'a> {
    header: &'a Header,
    parts: Parts,
    /// The same files, where they are mapped.
    maps: Option<Vec<Arc<Mmap>>>,
    /// Layers that are read again for every step.
    streamed: Option<Streamed>,
    /// What is resident already.
    held: HeldWeights,
    progress: &'a LoadProgress,
}

impl<'a> ModelFiles<'a> {
    /// Opens every part; fails where one is gone, or their size is not the header's.
    pub fn open(header: &'a Header, progress: &'a LoadProgress) -> Result<ModelFiles<'a>, LoadError> {
        let parts = Parts::open(header.parts())?;
        let bytes = parts.bytes();
        if bytes != header.file_bytes().0 {
            let path = header.parts().first().cloned().unwrap_or_default();
            return Err(LoadError::Changed { path, was: header.file_bytes().0, is: bytes });
        }
        Ok(ModelFiles { header, parts, maps: None, streamed: None, held: HeldWeights::default(), progress })
    }

    /// The same files, which are the cache's where `delivered` brings them.
    #[must_use]
    pub fn of_cache(mut self, delivered: Option<Arc<Delivered>>) -> ModelFiles<'a> {
        self.parts = self.parts.of_cache(delivered);
        self
    }

    /// The same files, where what `held` knows need not be read.
    #[must_use]
    pub fn sharing(self, held: &HeldWeights) -> ModelFiles<'a> {
        ModelFiles { held: held.clone(), ..self }
    }

    /// The matrix with the values of `info`: one that is resident, which is taken with `adopt`, or what `read` reads.
    pub(crate) fn matrix<M: Any + Send + Sync>(
        &self,
        info: &TensorInfo,
        adopt: impl FnOnce(&M),
        read: impl FnOnce() -> Result<M, LoadError>,
    ) -> Result<Arc<M>, LoadError> {
        if self.streamed.as_ref().is_some_and(|streamed| streamed.has(&info.name)) {
            // It belongs to one stage, and is nowhere for good.
            return Ok(Arc::new(read()?));
        }
        let model = *self.header.fingerprint();
        if let Some(matrix) = self.held.get(model, info) {
            adopt(&matrix);
            self.progress.add(info.bytes.0 as usize);
            return Ok(matrix);
        }
        let matrix = Arc::new(read()?);
        self.held.note(model, info, &matrix);
        Ok(matrix)
    }

    /// Maps the files: what can stay in them is not read, but looked at there. Nobody may shorten them meanwhile: the
    /// process would be ended by the system (`SIGBUS`).
    ///
    /// # Errors
    /// Where the system cannot map them.
    pub fn mapped(mut self) -> Result<ModelFiles<'a>, LoadError> {
        let map = |(file, path): (&File, &PathBuf)| {
            // SAFETY: the file is opened for reading only; that nobody shortens or changes it is what the user who asks
            // for this is told to see to.
            let map = unsafe { Mmap::map(file) };
            map.map(Arc::new).map_err(|e| LoadError::Read {
                path: path.clone(),
                tensor: "all of them".to_owned(),
                offset: 0,
                bytes: Bytes::ZERO,
                problem: ReadProblem::Io(e),
            })
        };
        let maps = self.parts.files().iter().zip(self.header.parts()).map(map).collect::<Result<_, _>>()?;
        self.maps = Some(maps);
        Ok(self)
    }

    /// The same files, where the matrices of `layers` stay in them and are read again for every step.
    ///
    /// # Errors
    /// Where a file is not the one any more that was opened before.
    pub fn streaming(self, table: &TensorTable, layers: LayerRange) -> Result<ModelFiles<'a>, LoadError> {
        let streamed = match layers.is_empty() {
            true => None,
            false => Some(Streamed::new(&self.parts, table, layers)?),
        };
        Ok(ModelFiles { streamed, ..self })
    }

    /// What reads the streamed layers for a stage's steps; `None` where there are none.
    ///
    /// # Errors
    /// Where the system gives no memory for two layers, or no thread.
    pub(crate) fn stream(&self) -> Result<Option<LayerStream>, LoadError> {
        self.streamed.as_ref().map(Streamed::start).transpose()
    }

    /// One tensor of them.
    pub fn tensor<'b>(&'b self, info: &'b TensorInfo) -> FileTensor<'b> {
        self.rows(info, info, 0)
    }

    /// Some rows of the tensor `of`, which `info` describes; they begin `from` bytes behind the tensor's first.
    pub(crate) fn rows<'b>(&'b self, info: &'b TensorInfo, of: &'b TensorInfo, from: u64) -> FileTensor<'b> {
        FileTensor { files: self, info, of, from }
    }
}

/// One tensor in its file.
pub struct FileTensor<'a> {
    files: &'a ModelFiles<'a>,
    info: &'a TensorInfo,
    /// The whole tensor.
    of: &'a TensorInfo,
    /// Bytes of it before those that are meant.
    from: u64,
}

impl FileTensor<'_> {
    /// The values of a small tensor (F32, F16 or BF16) as f32.
    ///
    /// Fails where a value is not finite: such a file is damaged.
    pub fn floats(&self) -> Result<Vec<f32>, LoadError> {
        let mut bytes = Vec::new();
        lengthen(READING, &mut bytes, self.info.bytes.0 as usize)?;
        self.read_at(0, &mut bytes)?;
        let mut values: Vec<f32> = match self.info.kind {
            TensorType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            TensorType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            TensorType::BF16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            kind => return Err(self.unsupported(kind, "a norm or rope")),
        };
        if self.info.meaning == Meaning::LessOne {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => {
                Err(LoadError::Value { tensor: self.info.name.clone(), index, value: values[index] })
            }
            None => Ok(values),
        }
    }
}

impl TensorSource for FileTensor<'_> {
    fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        if self.files.progress.is_cancelled() {
            return Err(LoadError::Cancelled);
        }
        self.files.parts.read(self.info, at, out)?;
        self.files.progress.add(out.len());
        Ok(())
    }

    fn mapped(&self) -> Option<MappedBytes> {
        let (maps, [piece]) = (self.files.maps.as_ref()?, &self.info.pieces[..]) else {
            return None;
        };
        let (Layout::Whole, Place::File { part, offset }) = (&self.info.layout, &piece.place) else {
            return None;
        };
        let start = usize::try_from(*offset).ok()?;
        let end = start.checked_add(usize::try_from(piece.bytes.0).ok()?)?;
        let bytes = MappedBytes::new(maps[*part].clone(), start..end)?;
        self.files.progress.add(piece.bytes.0 as usize);
        Some(bytes)
    }

    fn staged(&self) -> Option<StagedBytes> {
        let streamed = self.files.streamed.as_ref()?;
        let bytes = streamed.bytes(self.of, self.from, self.info.bytes.0)?;
        self.files.progress.add(self.info.bytes.0 as usize);
        Some(bytes)
    }

    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError {
        LoadError::Unsupported { tensor: self.info.name.clone(), kind, device }
    }
}

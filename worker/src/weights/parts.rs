//! The open files of a model, and the bytes of its tensors in them.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use brigade_shard::model_file::{Layout, Piece, Place, TensorInfo};
use brigade_shard::units::Bytes;

use super::{LoadError, ReadProblem};
use crate::delivery::Delivered;

/// All files of a model, open for reading.
pub(super) struct Parts {
    paths: Vec<PathBuf>,
    files: Vec<File>,
    stamps: Vec<Stamp>,
    /// Where they are the cache's: what is read is waited for and checked, and others write to them meanwhile.
    delivered: Option<Arc<Delivered>>,
}

/// Which file one is, and when it was written to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds since 1970.
    written: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Stamp {
        Stamp {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            written: (file.mtime(), file.mtime_nsec()),
        }
    }
}

impl Parts {
    /// Opens every file of `paths`.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Parts, LoadError> {
        let (mut files, mut stamps) = (Vec::new(), Vec::new());
        for path in paths {
            let open = || {
                let file = File::open(path)?;
                let stamp = Stamp::of(&file.metadata()?);
                Ok((file, stamp))
            };
            let (file, stamp) = open().map_err(|e| unopened(path, e))?;
            files.push(file);
            stamps.push(stamp);
        }
        Ok(Parts { paths: paths.to_vec(), files, stamps, delivered: None })
    }

    /// The same files, which `delivered` brings.
    pub(super) fn of_cache(mut self, delivered: Option<Arc<Delivered>>) -> Parts {
        if delivered.is_some() {
            // The cache writes what comes later to the same files.
            self.stamps.iter_mut().for_each(|stamp| stamp.written = (0, 0));
        }
        Parts { delivered, ..self }
    }

    fn stamp(&self, file: &Metadata) -> Stamp {
        let stamp = Stamp::of(file);
        if self.delivered.is_some() { Stamp { written: (0, 0), ..stamp } } else { stamp }
    }

    /// The same files, opened anew.
    ///
    /// Fails where one is another file by now, or has been written to.
    pub(super) fn open_again(&self) -> Result<Parts, LoadError> {
        let again = Parts::open(&self.paths)?.of_cache(self.delivered.clone());
        for ((path, was), is) in self.paths.iter().zip(&self.stamps).zip(&again.stamps) {
            unchanged(path, was, is)?;
        }
        Ok(again)
    }

    /// Bytes of all files together.
    pub(super) fn bytes(&self) -> u64 {
        self.stamps.iter().map(|stamp| stamp.bytes).sum()
    }

    pub(super) fn files(&self) -> &[File] {
        &self.files
    }

    pub(super) fn path(&self, part: usize) -> &Path {
        &self.paths[part]
    }

    /// `other`, if it is the same file.
    pub(super) fn same(&self, part: usize, other: Option<File>) -> Option<File> {
        other.filter(|other| other.metadata().is_ok_and(|other| self.stamp(&other) == self.stamps[part]))
    }

    /// Fails where a file has been written to since it was opened.
    pub(super) fn check(&self, part: usize) -> Result<(), LoadError> {
        let path = self.path(part);
        let is = self.files[part].metadata().map_err(|e| unopened(path, e))?;
        unchanged(path, &self.stamps[part], &self.stamp(&is))
    }

    /// Fills `out` with the tensor's bytes from byte `at` on.
    pub(super) fn read(&self, info: &TensorInfo, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        match info.layout {
            Layout::Whole => self.read_pieces(info, at, out),
            Layout::Picked(steps) | Layout::CodesAndScales(steps) => self.pick(info, steps, at, out),
        }
    }

    fn read_pieces(&self, info: &TensorInfo, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        let (mut skipped, mut rest) = (at, out);
        for piece in &info.pieces {
            if skipped >= piece.bytes.0 {
                skipped -= piece.bytes.0;
                continue;
            }
            let len = (piece.bytes.0 - skipped).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(len);
            self.read_piece(info, piece, skipped, now)?;
            (skipped, rest) = (0, later);
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Fills `out` with the bytes of a piece of the tensor from byte `at` on.
    pub(super) fn read_piece(
        &self,
        info: &TensorInfo,
        piece: &Piece,
        at: u64,
        out: &mut [u8],
    ) -> Result<(), LoadError> {
        match &piece.place {
            Place::File { part, offset } => {
                let offset = offset + at;
                if let Some(delivered) = &self.delivered {
                    return delivered.read(*part, offset, out);
                }
                self.files[*part].read_exact_at(out, offset).map_err(|e| {
                    let problem = match e.kind() {
                        ErrorKind::UnexpectedEof => ReadProblem::Truncated,
                        _ => ReadProblem::Io(e),
                    };
                    self.failed(*part, info, offset, out.len(), problem)
                })?;
            }
            Place::Stated(bytes) => out.copy_from_slice(&bytes[at as usize..][..out.len()]),
        }
        Ok(())
    }

    /// The error of a read of `len` bytes at `offset`.
    pub(super) fn failed(
        &self,
        part: usize,
        info: &TensorInfo,
        offset: u64,
        len: usize,
        problem: ReadProblem,
    ) -> LoadError {
        LoadError::Read {
            path: self.paths[part].clone(),
            tensor: info.name.clone(),
            offset,
            bytes: Bytes(len as u64),
            problem,
        }
    }
}

fn unopened(path: &Path, error: std::io::Error) -> LoadError {
    LoadError::Read {
        path: path.to_owned(),
        tensor: "header".to_owned(),
        offset: 0,
        bytes: Bytes::ZERO,
        problem: ReadProblem::Io(error),
    }
}

fn unchanged(path: &Path, was: &Stamp, is: &Stamp) -> Result<(), LoadError> {
    if was.bytes != is.bytes {
        return Err(LoadError::Changed { path: path.to_owned(), was: was.bytes, is: is.bytes });
    }
    if was != is { Err(LoadError::Written { path: path.to_owned() }) } else { Ok(()) }
}

//! Compares the store's files with their checksums.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use brigade_shard::units::Bytes;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::digest::{Expected, Hashes};
use super::disk;
use super::error::{StoreError, io_error};
use super::names::{FileName, ModelName};
use super::record::Record;
use super::shelf::Store;
use super::watch::{Phase, Watch};

/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// What came of checking a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checkup {
    /// Which model.
    pub name: ModelName,
    /// Where it can be pulled from again.
    pub source: String,
    /// Its files.
    pub files: Vec<FileCheckup>,
}

impl Checkup {
    /// Whether every file is as it was pulled.
    pub fn is_sound(&self) -> bool {
        self.files.iter().all(|file| file.state == FileState::Sound)
    }
}

/// What came of checking a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileCheckup {
    /// Which file.
    pub path: PathBuf,
    /// How it is.
    #[serde(flatten)]
    pub state: FileState,
}

/// How a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum FileState {
    /// As it was pulled.
    Sound,
    /// Not there.
    Missing,
    /// Of another size.
    Size {
        /// What it should be.
        wanted: Bytes,
        /// What it is.
        found: Bytes,
    },
    /// Of the same size, but other bytes.
    Contents {
        /// The SHA-256 that it should be of.
        wanted: String,
        /// What it is of.
        found: String,
    },
    /// It cannot be read.
    Unreadable {
        /// Why not.
        problem: String,
    },
}

impl Store {
    /// Reads all files of a model that was pulled, and compares them with what was written down.
    ///
    /// # Errors
    /// Where `cancel` ends it. What is wrong with a file is in the checkup.
    pub async fn check(
        &self,
        record: &Record,
        watch: &dyn Watch,
        cancel: &CancellationToken,
    ) -> Result<Checkup, StoreError> {
        watch.begin(Phase::Checking, 0, Some(record.bytes().0));
        let (mut files, mut before) = (Vec::new(), 0);
        for file in &record.files {
            let path = self.place(&record.name, record.format, &file.name);
            let state = match self.compare(&path, record, &file.name, before, watch, cancel).await {
                Err(StoreError::Cancelled) => return Err(StoreError::Cancelled),
                Err(error) => FileState::Unreadable { problem: error.to_string() },
                Ok(None) => FileState::Missing,
                Ok(Some(hashes)) if hashes.bytes != file.bytes.0 => {
                    FileState::Size { wanted: file.bytes, found: Bytes(hashes.bytes) }
                }
                Ok(Some(hashes)) if hashes.sha256 != file.sha256 => {
                    FileState::Contents { wanted: file.sha256.to_string(), found: hashes.sha256.to_string() }
                }
                Ok(Some(_)) => FileState::Sound,
            };
            before += file.bytes.0;
            files.push(FileCheckup { path, state });
        }
        Ok(Checkup { name: record.name.clone(), source: record.source.clone(), files })
    }

    async fn compare(
        &self,
        path: &Path,
        record: &Record,
        file: &FileName,
        before: u64,
        watch: &dyn Watch,
        cancel: &CancellationToken,
    ) -> Result<Option<Hashes>, StoreError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        if folder != self.root() && !disk::is_plain_folder(folder)? {
            return Ok(None);
        }
        let total = record.bytes().0;
        let named = record.files.iter().find(|stored| stored.name == *file);
        let hashes = hash(path, named.map(|file| file.bytes.0), &Expected::Unknown, cancel, |done| {
            watch.at(before + done, Some(total))
        });
        hashes.await
    }
}

/// The hashes of a file; `None` where there is none. A file of another size than `bytes` is not read: its hashes are of
/// nothing but its size.
///
/// # Errors
/// Where it is a link, cannot be read, or `cancel` ends it.
pub(super) async fn hash(
    path: &Path,
    bytes: Option<u64>,
    expected: &Expected,
    cancel: &CancellationToken,
    on_bytes: impl Fn(u64),
) -> Result<Option<Hashes>, StoreError> {
    let Some(mut file) = disk::open_to_read(path)? else { return Ok(None) };
    let size = file.metadata().map_err(io_error("look at", path))?.len();
    if bytes.is_some_and(|bytes| bytes != size) {
        let mut unread = super::digest::Hasher::new(None).finish();
        unread.bytes = size;
        return Ok(Some(unread));
    }
    let done = Arc::new(AtomicU64::new(0));
    let with_git = matches!(expected, Expected::GitBlob(_));
    let mut hashing = tokio::task::spawn_blocking({
        let (done, cancel) = (Arc::clone(&done), cancel.clone());
        move || {
            Hashes::of(&mut file, size, with_git, |read| {
                done.fetch_add(read, Ordering::Relaxed);
                !cancel.is_cancelled()
            })
        }
    });
    let mut tick = tokio::time::interval(PROGRESS_PERIOD);
    let hashes = loop {
        tokio::select! {
            hashes = &mut hashing => break hashes,
            _ = tick.tick() => on_bytes(done.load(Ordering::Relaxed)),
        }
    };
    on_bytes(done.load(Ordering::Relaxed));
    match hashes {
        Ok(Ok(hashes)) => Ok(Some(hashes)),
        Ok(Err(_)) if cancel.is_cancelled() => Err(StoreError::Cancelled),
        Ok(Err(source)) => Err(io_error("read", path)(source)),
        Err(error) => Err(io_error("read", path)(std::io::Error::other(error))),
    }
}

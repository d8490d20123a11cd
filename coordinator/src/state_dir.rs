//! The coordinator's state directory: who may use it, and the numbers that must only ever grow.
//!
//! `coordinator.json` holds the incarnation (counts the starts) and the epoch (counts the plans). Both are written, and
//! the write is made durable, before a number is used: workers drop frames whose numbers are not the newest.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use brigade_proto::ids::{Epoch, Incarnation};
use serde::{Deserialize, Serialize};

/// Held locked for as long as a coordinator runs on the directory.
const LOCK_FILE: &str = "coordinator.lock";
/// The numbers.
const NUMBERS_FILE: &str = "coordinator.json";

/// A state directory that this process alone coordinates from, until it is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    numbers: Numbers,
    /// The lock goes with the file handle.
    _lock: File,
}

/// What `coordinator.json` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Numbers {
    incarnation: Incarnation,
    epoch: Epoch,
}

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another coordinator runs on it.
    #[error(
        "another coordinator is running on the state directory {}; stop it, or give this one a directory of its own with --state",
        .0.display()
    )]
    InUse(PathBuf),
    /// A file or directory could not be read or written.
    #[error("failed to {action} {}: {source}; check its permissions and the free space, or choose another directory with --state", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {source}; restore it from a backup, or remove the directory and let every worker join again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl StateDir {
    /// Takes the directory, making it (only its owner may look inside) where it is missing.
    ///
    /// # Errors
    /// [`StateDirError::InUse`] where another process has it, otherwise what could not be read or written.
    pub fn open(path: &Path) -> Result<StateDir, StateDirError> {
        create_private_dir(path)?;
        let lock_path = path.join(LOCK_FILE);
        let lock = private_options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
        }
        let numbers = read_json(&path.join(NUMBERS_FILE))?.unwrap_or_default();
        Ok(StateDir { path: path.to_owned(), numbers, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest epoch ever used here; 0 before the first.
    pub fn epoch(&self) -> Epoch {
        self.numbers.epoch
    }

    /// Counts this start: the number is on disk when it is returned.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn next_incarnation(&mut self) -> Result<Incarnation, StateDirError> {
        let next = Incarnation(self.numbers.incarnation.0 + 1);
        self.store(Numbers { incarnation: next, ..self.numbers })?;
        Ok(next)
    }

    /// Makes `epoch` durable, so that it can be used.
    ///
    /// # Errors
    /// Where the file cannot be written; the epoch must not be used then.
    pub fn persist_epoch(&mut self, epoch: Epoch) -> Result<(), StateDirError> {
        self.store(Numbers { epoch: epoch.max(self.numbers.epoch), ..self.numbers })
    }

    fn store(&mut self, numbers: Numbers) -> Result<(), StateDirError> {
        write_json(&self.path.join(NUMBERS_FILE), &numbers)?;
        self.numbers = numbers;
        Ok(())
    }
}

/// Makes `path` a directory that only its owner may look into; one that exists keeps its permissions.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), StateDirError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(io_error("create the directory", path))
}

/// Options for opening a file that only its owner may read.
pub(crate) fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.read(true);
    options
}

/// What the JSON file holds; `None` where there is none.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StateDirError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("read", path)(source)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| StateDirError::Damaged { path: path.to_owned(), source })
}

/// Replaces the JSON file as a whole: a reader, or a start after a power cut, sees the old or the new contents.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StateDirError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| StateDirError::Damaged { path: path.to_owned(), source })?;
    replace_file(path, &text).map_err(io_error("write", path))
}

fn replace_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    // A temporary file is created readable by its owner only.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    // The rename itself is durable only once the directory is.
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// Wraps an operating system's error with what was tried on which path.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateDirError {
    let path = path.to_owned();
    move |source| StateDirError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nested/state");
        for start in 1..=3u64 {
            let mut state = StateDir::open(&path).unwrap();
            assert_eq!(state.epoch(), Epoch((start - 1) * 10));
            assert_eq!(state.next_incarnation().unwrap(), Incarnation(start));
            state.persist_epoch(Epoch(start * 10)).unwrap();
            state.persist_epoch(Epoch(1)).unwrap();
        }
    }

    #[test]
    fn a_second_coordinator_on_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err();
        assert!(matches!(error, StateDirError::InUse(_)), "{error}");
        assert!(error.to_string().contains("--state"), "{error}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NUMBERS_FILE), "{").unwrap();
        let error = StateDir::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("coordinator.json is damaged"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_the_state() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut state = StateDir::open(&path).unwrap();
        state.next_incarnation().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(LOCK_FILE)), 0o600);
        assert_eq!(mode(&path.join(NUMBERS_FILE)), 0o600);
    }
}

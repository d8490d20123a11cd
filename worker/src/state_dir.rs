//! The directory that keeps a worker's identity between its starts, held by one process at a time.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// File whose lock says that a process uses the directory; it holds that process's id, for people.
const LOCK_FILE: &str = "lock";

/// A worker's state directory, locked for as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process has it.
    #[error(
        "the state directory {} is in use by another worker{holder}: end that one, or give this one its own with \
         --name or --state", path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Which process, where it is known.
        holder: String,
    },
    /// It cannot be made or written.
    #[error("failed to use the state directory {}: {source}; name a writable one with --state", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl StateDir {
    /// Makes `path` where it is missing (readable by its owner only) and locks it.
    ///
    /// # Errors
    /// Where it cannot be written, or another process has locked it.
    pub fn open(path: &Path) -> Result<StateDir, StateDirError> {
        let io = |source| StateDirError::Io { path: path.to_owned(), source };
        create_private(path).map_err(io)?;
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK_FILE))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Naming the holder is a courtesy: without a readable id the message goes without it.
                let known = lock.read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
                let holder = if known { format!(" (process {})", pid.trim()) } else { String::new() };
                return Err(StateDirError::InUse { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        lock.set_len(0).map_err(io)?;
        lock.rewind().map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;
        Ok(StateDir { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

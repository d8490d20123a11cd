//! Why a model could not be pulled, found, checked or removed.

use std::io;
use std::path::{Path, PathBuf};

use brigade_shard::model_file::FileError;
use brigade_shard::units::Bytes;

use super::choice::ChoiceError;
use super::names::{FileName, ModelName, NameError};
use super::web::WebError;

/// Why the store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A name leads out of the store.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file or directory cannot be read or written.
    #[error("failed to {action} {}: {source}; check its permissions and the disk", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is not enough room, and nothing was fetched.
    #[error(
        "{} has {free} left, but {needed} are still to be written: make room, or choose another place with --store", path.display()
    )]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// What is free there.
        free: Bytes,
        /// What is needed.
        needed: Bytes,
    },
    /// The disk became full.
    #[error(
        "failed to write {}: {source}; {missing} more are to come. What has been fetched is kept: make room, and give the same command again", path.display()
    )]
    Full {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
        /// What is missing.
        missing: Bytes,
    },
    /// Another process pulls or removes the same model.
    #[error("another process is pulling or removing {name}: wait until it has ended")]
    InUse {
        /// Which model.
        name: ModelName,
    },
    /// Something in the store is a link, or no file or directory where it should be one.
    #[error("{} is {found}, which the store neither reads nor writes through: take it away", path.display())]
    NotOurs {
        /// What.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A model of the name comes from elsewhere.
    #[error(
        "the store has a model {name} from {source_of_it}: give this one another name with --name, or remove that one with `brigade models rm {name}`"
    )]
    Taken {
        /// The name.
        name: ModelName,
        /// Where the other one comes from.
        source_of_it: String,
    },
    /// A file of the name was put there by somebody else.
    #[error(
        "{} is there already, was not put there by `brigade models pull`, and differs: move it away, or give the new model another name with --name", path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// What was written down cannot be read.
    #[error("{} is damaged: {problem}; remove it, and pull the model again", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such model.
    #[error("there is no model {name} in the store {}{nearest}", store.display())]
    NoSuch {
        /// What was asked for.
        name: String,
        /// Where.
        store: PathBuf,
        /// What it may be meant to be, as the end of the sentence.
        nearest: String,
    },
    /// A server could not be asked.
    #[error("failed to fetch {what}: {source}{after}")]
    Web {
        /// What was to be fetched.
        what: String,
        /// Why it could not be.
        source: WebError,
        /// What to do, as the end of the sentence.
        after: &'static str,
    },
    /// A hub refuses a repository.
    #[error("{repository} cannot be had from {endpoint} (status {status}): {remedy}")]
    Hub {
        /// Which.
        repository: String,
        /// From where.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        remedy: String,
    },
    /// A repository has no such model.
    #[error("{repository} {problem}")]
    Choice {
        /// Which.
        repository: String,
        /// Why.
        problem: ChoiceError,
    },
    /// A server's file is not what was said of it.
    #[error("{file} on the server {problem}")]
    Server {
        /// Which file.
        file: FileName,
        /// What is wrong.
        problem: String,
    },
    /// What was fetched twice was damaged twice.
    #[error(
        "{file} is damaged: it should be of {wanted}, but is of {found}, also after it was fetched a second time. Nothing of it is kept; the server or the way to it changes it"
    )]
    Damaged {
        /// Which file.
        file: FileName,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// What was fetched is no model.
    #[error("{source_of_it} is no model that can be read: {problem}; nothing of it is kept")]
    NoModel {
        /// Where it comes from.
        source_of_it: String,
        /// Why not.
        problem: FileError,
    },
    /// A file to copy is no model.
    #[error(transparent)]
    File(#[from] FileError),
    /// A source or a setting that cannot be.
    #[error("{0}")]
    Setting(String),
    /// It was ended on the way.
    #[error("ended before everything was there. What has been fetched is kept: the same command goes on")]
    Cancelled,
}

/// Wraps what the system says with what was tried on which path.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

/// Whether a write failed for want of room: on the disk, of a quota, or of what the process may write.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

//! What the store does to the disk: it follows no links, and replaces files as a whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use brigade_shard::units::Bytes;

use super::error::{StoreError, io_error};
use super::names::ModelName;

/// What must stay free beside what is fetched: records, and whatever else the system writes meanwhile.
pub(super) const SPARE: Bytes = Bytes::mib(16);

/// What a path leads to, without following a link; `None` where there is nothing.
fn kind(path: &Path) -> Result<Option<fs::FileType>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error("look at", path)(source)),
    }
}

fn not_ours(path: &Path, kind: fs::FileType) -> StoreError {
    let found = if kind.is_symlink() {
        "a link"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "no directory"
    };
    StoreError::NotOurs { path: path.to_owned(), found }
}

/// Whether there is a file, and not something else.
///
/// # Errors
/// Where there is a link or a directory.
pub(super) fn is_plain_file(path: &Path) -> Result<bool, StoreError> {
    match kind(path)? {
        None => Ok(false),
        Some(kind) if kind.is_file() => Ok(true),
        Some(kind) => Err(not_ours(path, kind)),
    }
}

/// Whether there is a directory, and not something else.
///
/// # Errors
/// Where there is a link or a file.
pub(super) fn is_plain_folder(path: &Path) -> Result<bool, StoreError> {
    match kind(path)? {
        None => Ok(false),
        Some(kind) if kind.is_dir() => Ok(true),
        Some(kind) => Err(not_ours(path, kind)),
    }
}

/// Makes a directory within the store where there is none.
///
/// # Errors
/// Where something else has its place, or it cannot be made.
pub(super) fn make_folder(path: &Path) -> Result<(), StoreError> {
    if is_plain_folder(path)? {
        return Ok(());
    }
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => is_plain_folder(path).map(drop),
        Err(source) => Err(io_error("make the directory", path)(source)),
    }
}

/// Opens a file of the store, never through a link.
///
/// # Errors
/// Where it is none, or the system refuses.
pub(super) fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let mut options = options.clone();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits();
        options.custom_flags(i32::try_from(no_follow).unwrap_or_default());
    }
    options.open(path)
}

/// Opens a file of the store for reading; `None` where there is none.
///
/// # Errors
/// Where it is a link or a directory, or the system refuses.
pub(super) fn open_to_read(path: &Path) -> Result<Option<File>, StoreError> {
    if !is_plain_file(path)? {
        return Ok(None);
    }
    open(path, OpenOptions::new().read(true)).map(Some).map_err(io_error("open", path))
}

/// Writes all of `bytes` at a place of the file.
pub(super) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, at);
    #[cfg(windows)]
    {
        let (mut bytes, mut at) = (bytes, at);
        while !bytes.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
            bytes = &bytes[written..];
            at += written as u64;
        }
        Ok(())
    }
}

/// Makes what a directory lists durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("make durable", path))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Moves a file or a directory to where another one may be, and makes that durable.
pub(super) fn put(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(io_error("put in its place", to))?;
    sync_folder(to.parent().unwrap_or(Path::new(".")))
}

/// Replaces a small file as a whole: a reader, or a start after a power cut, sees the old or the new contents.
pub(super) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// What is free on the disk of `path` for this user; `None` where the system does not say.
pub(super) fn free(path: &Path) -> Option<Bytes> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(path).ok()?;
        Some(Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Sees to it that `needed` bytes fit on the disk of `path`.
///
/// # Errors
/// [`StoreError::NoRoom`] where they do not, as far as that is known.
pub(super) fn check_room(path: &Path, needed: Bytes) -> Result<(), StoreError> {
    match free(path) {
        Some(free) if free < needed + SPARE && needed > Bytes::ZERO => {
            Err(StoreError::NoRoom { path: path.to_owned(), free, needed })
        }
        _ => Ok(()),
    }
}

/// The right to change a model, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// The lock goes with the file handle. Its file stays: who removed it would let two others have a lock each.
    _file: File,
}

/// Takes the lock in the file `path`.
///
/// # Errors
/// Where another process has it.
pub(super) fn lock(path: PathBuf, name: &ModelName) -> Result<Lock, StoreError> {
    is_plain_file(&path)?;
    let file = open(&path, OpenOptions::new().create(true).truncate(false).write(true));
    let file = file.map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { name: name.clone() }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn links_are_neither_read_nor_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "secret").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert!(matches!(open_to_read(&link), Err(StoreError::NotOurs { .. })));
        assert!(open(&link, OpenOptions::new().read(true)).is_err());
        assert!(open(&link, OpenOptions::new().write(true).create(true)).is_err());
        let name = ModelName::new("m").unwrap();
        assert!(matches!(lock(link.clone(), &name), Err(StoreError::NotOurs { .. })));
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "secret");
        assert_eq!(fs::read_to_string(&link).unwrap(), "new");

        let folder = dir.path().join("folder");
        std::os::unix::fs::symlink(dir.path(), &folder).unwrap();
        assert!(matches!(make_folder(&folder), Err(StoreError::NotOurs { found: "a link", .. })));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let dir = tempfile::tempdir().unwrap();
        check_room(dir.path(), Bytes::ZERO).unwrap();
        let error = check_room(dir.path(), Bytes(1 << 62)).unwrap_err().to_string();
        assert!(error.contains("4194304.0 TiB are still to be written"), "{error}");
    }

    #[test]
    fn a_lock_is_had_once() {
        let dir = tempfile::tempdir().unwrap();
        let name = ModelName::new("m").unwrap();
        let first = lock(dir.path().join("m"), &name).unwrap();
        let error = lock(dir.path().join("m"), &name).unwrap_err().to_string();
        assert!(error.contains("another process is pulling or removing m"), "{error}");
        drop(first);
        lock(dir.path().join("m"), &name).unwrap();
    }
}

//! Reading a model's files past the system's cache.
//!
//! What is read again for every step is of no use in that cache: before it comes round again, as much has been read as does
//! not fit the memory. It would only push out what others need, and take memory that nobody has counted. So blocks are read
//! from the disk to where they are wanted, or, where a file system or a tensor's layout allows no such reads, through the
//! cache, which is told at once to drop them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use brigade_shard::model_file::{Layout, Place, TensorInfo};
use brigade_shard::staging::{DIRECT_BLOCK, in_one_piece, staged_lead};

use super::parts::Parts;
use super::{LoadError, ReadProblem, WeightBuffer};

/// Bytes of one read: enough to keep a disk with many channels busy, and so few that ending does not wait for them.
pub(crate) const DISK_READ_BYTES: usize = 4 << 20;

/// The same of tensors that are put together from rows here and there: of a transposed one, many rows at a time are read in
/// long runs.
const PICKED_READ_BYTES: usize = 16 << 20;

const BLOCK: usize = DIRECT_BLOCK as usize;

/// Bytes that the system's cache keeps or drops together at the most: a huge page.
#[cfg(target_os = "linux")]
const KEPT_TOGETHER: u64 = 2 << 20;

/// The files of a model, read past the cache.
pub(super) struct PastCache {
    parts: Parts,
    /// For each, the way that takes no room in the cache, where there is one.
    direct: Vec<Option<File>>,
}

impl PastCache {
    /// The files of `parts`.
    pub(super) fn new(parts: Parts) -> PastCache {
        let direct =
            (0..parts.files().len()).map(|part| parts.same(part, open_direct(parts.path(part)).ok()));
        PastCache { direct: direct.collect(), parts }
    }

    /// Whether a tensor is read without passing through the cache.
    pub(super) fn is_direct(&self, info: &TensorInfo) -> bool {
        in_one_piece(info).is_some_and(|(part, _)| self.direct[part].is_some())
    }

    /// Fills the blocks of a buffer that a matrix has with those of its file; its bytes begin [`staged_lead`] behind the
    /// first.
    ///
    /// Fails where a file cannot be read, has become shorter, or is written to; and where `ended` is set meanwhile.
    pub(super) fn read(
        &self,
        info: &TensorInfo,
        blocks: &mut [u8],
        ended: &AtomicBool,
    ) -> Result<(), LoadError> {
        let lead = staged_lead(info) as usize;
        let end = lead + info.bytes.0 as usize;
        match in_one_piece(info) {
            Some((part, offset)) => match &self.direct[part] {
                Some(file) => {
                    let begin = offset - lead as u64;
                    read_blocks(file, begin, blocks, end, ended).map_err(|(at, problem)| {
                        let len = (end - at).min(DISK_READ_BYTES);
                        let at = (begin + at as u64).max(offset);
                        problem
                            .map_or(LoadError::Cancelled, |why| self.parts.failed(part, info, at, len, why))
                    })?;
                }
                None => self.read_and_drop(info, &mut blocks[lead..end], ended)?,
            },
            None => self.read_and_drop(info, &mut blocks[lead..end], ended)?,
        }
        info.pieces.iter().try_for_each(|piece| match piece.place {
            Place::File { part, .. } => self.parts.check(part),
            Place::Stated(_) => Ok(()),
        })
    }

    fn read_and_drop(&self, info: &TensorInfo, out: &mut [u8], ended: &AtomicBool) -> Result<(), LoadError> {
        let rows: u64 = info.dims.iter().skip(1).product();
        let row = out.len() / (rows as usize).max(1);
        let together = match info.layout {
            Layout::Whole => DISK_READ_BYTES,
            Layout::Picked(_) | Layout::CodesAndScales(_) => (PICKED_READ_BYTES / row.max(1)).max(1) * row,
        };
        let mut at = 0;
        let mut read = Ok(());
        for out in out.chunks_mut(together.max(1)) {
            read = match ended.load(Ordering::Relaxed) {
                true => Err(LoadError::Cancelled),
                false => self.parts.read(info, at, out),
            };
            if read.is_err() {
                break;
            }
            at += out.len() as u64;
        }
        self.drop_cached(info);
        read
    }

    /// Tells the system that what it keeps of a tensor is of no use.
    pub(super) fn drop_cached(&self, info: &TensorInfo) {
        for piece in &info.pieces {
            if let Place::File { part, offset } = piece.place {
                drop_cached(&self.parts.files()[part], offset, piece.bytes.0);
            }
        }
    }
}

/// Fills `blocks`, at least up to byte `end`, from byte `begin` of a file on, which a block begins at. Where it fails, how far
/// it has come, and why; no reason where `ended` was set.
pub(crate) fn read_blocks(
    file: &File,
    begin: u64,
    blocks: &mut [u8],
    end: usize,
    ended: &AtomicBool,
) -> Result<(), (usize, Option<ReadProblem>)> {
    let mut at = 0;
    while at < end {
        if ended.load(Ordering::Relaxed) {
            return Err((at, None));
        }
        let to = blocks.len().min(at + DISK_READ_BYTES);
        match file.read_at(&mut blocks[at..to], begin + at as u64) {
            Ok(read) if at + read >= end => break,
            // A file ends amid a block; whatever else is cut short goes on where a block begins.
            Ok(read) if read < BLOCK => return Err((at, Some(ReadProblem::Truncated))),
            Ok(read) => at += read / BLOCK * BLOCK,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err((at, Some(ReadProblem::Io(error)))),
        }
    }
    Ok(())
}

/// Opens a file so that whole blocks of it are read past the cache, and tries that.
///
/// # Errors
/// Where the system or the file's own cannot do that.
pub(crate) fn open_direct(path: &Path) -> io::Result<File> {
    let file = open_past_cache(path)?;
    let mut block = WeightBuffer::zeroed(BLOCK).map_err(io::Error::other)?;
    file.read_at(block.bytes_mut(), 0)?;
    Ok(file)
}

#[cfg(target_os = "linux")]
fn open_past_cache(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path)
}

#[cfg(target_os = "macos")]
fn open_past_cache(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // SAFETY: the call takes numbers alone, and the descriptor is the file's own.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_NOCACHE, 1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(file),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn open_past_cache(_path: &Path) -> io::Result<File> {
    Err(ErrorKind::Unsupported.into())
}

/// Tells the system to drop what it keeps of a file that ends within `bytes` from `offset` on. Some of what stands before
/// them goes as well: pages that are kept together are only dropped where all of them are named.
#[cfg(target_os = "linux")]
pub(crate) fn drop_cached(file: &File, offset: u64, bytes: u64) {
    let begin = offset.saturating_sub(KEPT_TOGETHER) / DIRECT_BLOCK * DIRECT_BLOCK;
    let end = (offset + bytes).next_multiple_of(DIRECT_BLOCK);
    // SAFETY: the call takes numbers alone, and the descriptor is the file's own. Where it fails, the pages merely stay.
    unsafe {
        libc::posix_fadvise(
            file.as_raw_fd(),
            begin as libc::off_t,
            (end - begin) as libc::off_t,
            libc::POSIX_FADV_DONTNEED,
        )
    };
}

/// Elsewhere there is no such call.
#[cfg(not(target_os = "linux"))]
pub(crate) fn drop_cached(_file: &File, _offset: u64, _bytes: u64) {}

//! Copies files from other places on this machine, and makes their checksums on the way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use brigade_shard::units::Bytes;
use tokio_util::sync::CancellationToken;

use super::digest::{Hasher, Hashes};
use super::disk;
use super::error::{StoreError, io_error, is_full};

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// Copies a file, and gives the hashes of what was read; the copy is durable then.
///
/// # Errors
/// Where it cannot be read or written, changes meanwhile, or `cancel` ends it.
pub(super) async fn copy(
    from: &Path,
    to: &Path,
    cancel: &CancellationToken,
    on_bytes: impl Fn(u64),
) -> Result<Hashes, StoreError> {
    let done = Arc::new(AtomicU64::new(0));
    let mut copying = tokio::task::spawn_blocking({
        let (from, to, done, cancel) = (from.to_owned(), to.to_owned(), Arc::clone(&done), cancel.clone());
        move || copy_now(&from, &to, &done, &cancel)
    });
    let mut tick = tokio::time::interval(PROGRESS_PERIOD);
    let copied = loop {
        tokio::select! {
            copied = &mut copying => break copied,
            _ = tick.tick() => on_bytes(done.load(Ordering::Relaxed)),
        }
    };
    on_bytes(done.load(Ordering::Relaxed));
    copied.unwrap_or_else(|error| Err(io_error("copy", from)(io::Error::other(error))))
}

fn copy_now(
    from: &Path,
    to: &Path,
    done: &AtomicU64,
    cancel: &CancellationToken,
) -> Result<Hashes, StoreError> {
    let mut source = File::open(from).map_err(io_error("open", from))?;
    let size = source.metadata().map_err(io_error("look at", from))?.len();
    super::fetch::remove_partial(to)?;
    let target =
        disk::open(to, OpenOptions::new().create_new(true).write(true)).map_err(io_error("make", to))?;
    let mut hasher = Hasher::new(None);
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        let read = source.read(&mut buffer).map_err(io_error("read", from))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        disk::write_at(&target, &buffer[..read], at)
            .map_err(|error| full_or_other(error, to, size - at.min(size)))?;
        at += read as u64;
        done.store(at, Ordering::Relaxed);
    }
    target.sync_all().map_err(|error| full_or_other(error, to, 0))?;
    let is_unchanged = at == size && fs::metadata(from).is_ok_and(|file| file.len() == size);
    if !is_unchanged {
        return Err(io_error("copy", from)(io::Error::other("it changes while it is copied")));
    }
    Ok(hasher.finish())
}

/// Half of a copy is not kept: what it lacks is that there was no room.
fn full_or_other(source: io::Error, path: &Path, missing: u64) -> StoreError {
    match disk::free(path.parent().unwrap_or(path)) {
        Some(free) if is_full(&source) => {
            StoreError::NoRoom { path: path.to_owned(), free, needed: Bytes(missing) }
        }
        _ => io_error("write", path)(source),
    }
}

//! The directory of models that have come from elsewhere.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use brigade_proto::delivery::{Authority, Document};
use brigade_shard::model_file::Fingerprint;
use brigade_shard::units::Bytes;

use super::kept::{KeepError, KeptModel};

/// Held locked for as long as a worker uses the directory.
const LOCK_FILE: &str = "lock";
/// Its time says when a model was last used.
const USED_FILE: &str = "used";
/// The share of the file system that stays free, whatever the limit: a full disk harms others.
const STAYS_FREE: f64 = 0.02;

/// All models of a worker's cache.
#[derive(Debug)]
pub struct Cache {
    place: PathBuf,
    limit: Option<Bytes>,
    authority: Authority,
    open: Mutex<HashMap<Fingerprint, Weak<KeptModel>>>,
    _lock: File,
}

/// A cache that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process has it.
    #[error("the cache {} is in use by another worker: give this one its own with --cache", .0.display())]
    InUse(PathBuf),
    /// It cannot be made or written.
    #[error("failed to use the cache {}: {source}; name a directory that can be written to with --cache", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A model in the cache, for lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Which.
    pub model: Fingerprint,
    /// What of it is here.
    pub bytes: Bytes,
    /// When it was last used.
    pub used: Option<SystemTime>,
    /// Whether some stage is loaded from it, or being loaded.
    pub in_use: bool,
}

impl Cache {
    /// Takes the directory, making it where it is missing; `limit` is what all models may take together.
    ///
    /// # Errors
    /// Where another process has it, or it cannot be written.
    pub fn open(place: PathBuf, limit: Option<Bytes>, authority: Authority) -> Result<Cache, CacheError> {
        let io = |source| CacheError::Io { path: place.clone(), source };
        fs::create_dir_all(&place).map_err(io)?;
        let lock = File::options().write(true).create(true).truncate(false).open(place.join(LOCK_FILE));
        let lock = lock.map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CacheError::InUse(place)),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        Ok(Cache { place, limit, authority, open: Mutex::default(), _lock: lock })
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// What is here of a model, if anything is.
    ///
    /// # Errors
    /// Where its files cannot be opened.
    pub fn get(&self, model: &Fingerprint) -> Result<Option<Arc<KeptModel>>, KeepError> {
        let mut open = self.known();
        if let Some(kept) = open.get(model).and_then(Weak::upgrade) {
            return Ok(Some(kept));
        }
        let Some(kept) = KeptModel::open(&self.folder(model), model, &self.authority)? else {
            return Ok(None);
        };
        let kept = Arc::new(kept);
        open.insert(*model, Arc::downgrade(&kept));
        Ok(Some(kept))
    }

    /// The model of a document that has come, of which there is nothing here.
    ///
    /// # Errors
    /// Where the document is not the coordinator's, or its files cannot be made.
    pub fn add(&self, model: &Fingerprint, outline: &Document) -> Result<Arc<KeptModel>, KeepError> {
        let mut open = self.known();
        if let Some(kept) = open.get(model).and_then(Weak::upgrade) {
            return Ok(kept);
        }
        let kept = Arc::new(KeptModel::create(&self.folder(model), model, outline, &self.authority)?);
        open.insert(*model, Arc::downgrade(&kept));
        Ok(kept)
    }

    /// Notes that a model is used now.
    pub fn used(&self, model: &Fingerprint) {
        let path = self.folder(model).join(USED_FILE);
        if let Err(error) =
            fs::write(&path, []).and_then(|()| File::open(&path)?.set_modified(SystemTime::now()))
        {
            tracing::debug!(%error, "failed to note that a model is used");
        }
    }

    /// All models that are here, the one used the longest ago first.
    pub fn list(&self) -> Vec<Listed> {
        let entries = fs::read_dir(&self.place).into_iter().flatten().flatten();
        let models = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut listed: Vec<Listed> = models.filter_map(|model| self.listed(model)).collect();
        listed.sort_by_key(|listed| listed.used);
        listed
    }

    fn listed(&self, model: Fingerprint) -> Option<Listed> {
        let in_use = self.is_in_use(&model);
        let bytes = self.get(&model).ok().flatten().map_or(Bytes::ZERO, |kept| kept.bytes());
        let used = fs::metadata(self.folder(&model).join(USED_FILE)).and_then(|used| used.modified()).ok();
        Some(Listed { model, bytes, used, in_use })
    }

    fn is_in_use(&self, model: &Fingerprint) -> bool {
        self.known().get(model).is_some_and(|kept| kept.strong_count() > 0)
    }

    /// Removes a model; what was freed, or `None` where there was none.
    ///
    /// # Errors
    /// Where it is in use, or cannot be removed.
    pub fn remove(&self, model: &Fingerprint) -> Result<Option<Bytes>, String> {
        let folder = self.folder(model);
        // A link is not followed: what it leads to is not the cache's.
        if fs::symlink_metadata(&folder).map_or(true, |found| !found.is_dir()) {
            return Ok(None);
        }
        let mut open = self.known();
        if open.get(model).is_some_and(|kept| kept.strong_count() > 0) {
            return Err(format!("{model} is in use here"));
        }
        let kept = KeptModel::open(&folder, model, &self.authority).ok().flatten();
        let bytes = kept.map_or(Bytes::ZERO, |kept| kept.bytes());
        open.remove(model);
        fs::remove_dir_all(&folder)
            .map_err(|error| format!("failed to remove {}: {error}", folder.display()))?;
        Ok(Some(bytes))
    }

    /// Makes room for so many more bytes of a model, whose chunks `wanted` are: models that are not in use go, the one
    /// used the longest ago first, and then other chunks of this one, where nobody else uses it.
    ///
    /// # Errors
    /// Where there is not enough; nothing has gone then.
    pub fn make_room(&self, kept: &Arc<KeptModel>, wanted: &[u32], more: Bytes) -> Result<(), String> {
        if more == Bytes::ZERO {
            return Ok(());
        }
        let listed = self.list();
        let held: Bytes = listed.iter().map(|listed| listed.bytes).sum();
        let disk = Disk::of(&self.place).map_err(|error| {
            format!("failed to find out how much space is left in {}: {error}", self.place.display())
        })?;
        let left = self.limit.map_or(u64::MAX, |limit| limit.0.saturating_sub(held.0));
        let free = left.min(disk.free.saturating_sub(disk.stays_free()));
        let mut missing = more.0.saturating_sub(free);
        if missing == 0 {
            return Ok(());
        }
        let mut going = Vec::new();
        for other in listed.iter().filter(|listed| !listed.in_use) {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(other.bytes.0);
            going.push(other.model);
        }
        // The caller has it, and nobody else.
        let own = Arc::strong_count(kept) == 1 && missing > 0;
        let needless = if own {
            let needed = kept.chunks().bytes(wanted.iter().copied().filter(|chunk| kept.has(*chunk)));
            kept.bytes().saturating_sub(needed)
        } else {
            Bytes::ZERO
        };
        missing = missing.saturating_sub(needless.0);
        if missing > 0 {
            let limit = self.limit.map_or(String::new(), |limit| format!("may hold {limit}, "));
            return Err(format!(
                "{more} of weights are to be fetched, and the cache {} has room for {} ({limit}{} of its disk are free, of \
                 which {} stay so): {} are missing; free some space, or name a directory on a larger disk with --cache",
                self.place.display(),
                Bytes(more.0 - missing),
                Bytes(disk.free),
                Bytes(disk.stays_free()),
                Bytes(missing),
            ));
        }
        for model in going {
            match self.remove(&model) {
                Ok(freed) => tracing::info!(
                    "removed {model} from the cache: {} are free again",
                    freed.unwrap_or_default()
                ),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        if needless > Bytes::ZERO {
            tracing::info!(
                "removed {needless} of {} from the cache, which are not needed here any more",
                kept.fingerprint()
            );
            kept.forget_all_but(wanted);
        }
        Ok(())
    }

    fn folder(&self, model: &Fingerprint) -> PathBuf {
        self.place.join(model.to_string())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Fingerprint, Weak<KeptModel>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file system of a directory.
struct Disk {
    size: u64,
    free: u64,
}

impl Disk {
    fn of(place: &Path) -> io::Result<Disk> {
        let found = rustix::fs::statvfs(place)?;
        Ok(Disk { size: found.f_blocks * found.f_frsize, free: found.f_bavail * found.f_frsize })
    }

    fn stays_free(&self) -> u64 {
        (self.size as f64 * STAYS_FREE) as u64
    }
}

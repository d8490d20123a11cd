//! How far a load has come, and the wish that it should end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use brigade_shard::units::Bytes;

use crate::delivery::FetchProgress;

/// Shared between who loads and who watches.
#[derive(Debug, Default)]
pub struct LoadProgress {
    loaded: AtomicU64,
    total: AtomicU64,
    cancelled: Arc<AtomicBool>,
    fetch: Mutex<Option<Arc<FetchProgress>>>,
}

impl LoadProgress {
    /// Nothing read yet, of an unknown total.
    pub fn new() -> LoadProgress {
        LoadProgress::default()
    }

    /// Bytes of weights read so far.
    pub fn loaded(&self) -> Bytes {
        Bytes(self.loaded.load(Ordering::Relaxed))
    }

    /// Bytes of weights to be read; zero before that is known.
    pub fn total(&self) -> Bytes {
        Bytes(self.total.load(Ordering::Relaxed))
    }

    /// Asks the load to end; it does within a read of a few hundred KiB.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the load was asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What is true once the load was asked to end.
    pub(crate) fn cancelled(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// How far fetching is, where weights come from elsewhere.
    pub fn fetch(&self) -> Option<Arc<FetchProgress>> {
        self.fetch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_fetch(&self, fetch: Arc<FetchProgress>) {
        *self.fetch.lock().unwrap_or_else(PoisonError::into_inner) = Some(fetch);
    }

    pub(crate) fn set_total(&self, bytes: Bytes) {
        self.total.store(bytes.0, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.loaded.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

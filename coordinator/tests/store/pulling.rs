//! A store in a directory of its own, and pulls into it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use brigade_coordinator::store::{
    HubSettings, Patience, Phase, PullOptions, Pulled, Source, Store, StoreError, Watch,
};
use tokio_util::sync::CancellationToken;

use crate::server::Server;

/// A store to try things on.
pub struct Trial {
    _dir: tempfile::TempDir,
    pub root: PathBuf,
    pub options: PullOptions,
    pub notes: Notes,
}

/// What was told.
#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    pub fn all(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

impl Watch for Notes {
    fn begin(&self, _: Phase, _: u64, _: Option<u64>) {}
    fn at(&self, done: u64, total: Option<u64>) {
        assert!(total.is_none_or(|total| done <= total), "{done} of {total:?}");
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

impl Trial {
    /// An empty store whose hub is `server`.
    pub fn new(server: &Server) -> Trial {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("models");
        let patience = Patience {
            connect: Duration::from_secs(2),
            silence: Duration::from_secs(10),
            trickle: Duration::from_secs(10),
            least_bytes: 4096,
            backoff: Duration::from_millis(2),
        };
        let hub = HubSettings::new(Some(&server.url()), None).unwrap();
        let options = PullOptions { name: None, sha256: None, hub, patience };
        Trial { _dir: dir, root, options, notes: Notes::default() }
    }

    /// The same, which waits for no server.
    pub fn in_a_hurry(server: &Server) -> Trial {
        let mut trial = Trial::new(server);
        trial.options.patience.silence = Duration::from_millis(400);
        trial.options.patience.trickle = Duration::from_millis(400);
        trial
    }

    pub fn store(&self) -> Store {
        Store::new(&self.root)
    }

    pub async fn pull(&self, source: &str) -> Result<Pulled, StoreError> {
        self.pull_until(source, &CancellationToken::new()).await
    }

    pub async fn pull_until(&self, source: &str, cancel: &CancellationToken) -> Result<Pulled, StoreError> {
        let source: Source = source.parse().unwrap();
        let pull = self.store().pull(&source, &self.options, &self.notes, cancel).await;
        assert!(!self.root.join(".brigade/partial/reserve").exists());
        pull
    }

    /// Why a pull failed, as a user reads it.
    pub async fn refused(&self, source: &str) -> String {
        self.pull(source).await.map(|pulled| pulled.path).unwrap_err().to_string()
    }

    /// What lies openly in the store.
    pub fn visible(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name != ".brigade")
            .collect();
        names.sort();
        names
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.root.join(file)).unwrap()
    }

    /// Bytes that are there of the only unfinished pull.
    pub fn unfinished(&self) -> u64 {
        let unfinished = self.store().unfinished().unwrap();
        assert_eq!(unfinished.len(), 1, "{unfinished:?}");
        unfinished[0].done.0
    }
}

/// Flips one byte of a file.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

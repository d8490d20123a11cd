//! What a pull tells other processes of itself: a small file beside what has come, written anew every second. It is no record:
//! it is not made durable, and what cannot be written or read is not missed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::names::ModelName;
use super::watch::{Phase, Watch};

/// How often the file is written.
const WRITING: Duration = Duration::from_secs(1);
/// A pull whose file is older does not run any more, or hangs.
const FRESH: Duration = Duration::from_secs(10);
/// Over how long a rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(3);
const FILE: &str = "progress.json";

/// How far a pull is that runs in some process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What the model will be called.
    pub name: ModelName,
    /// Where it comes from.
    pub source: String,
    /// What is being done.
    pub phase: Phase,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
    /// Bytes per second, lately.
    pub bytes_per_s: f64,
}

impl Progress {
    /// What the pull with this folder has told lately; `None` where none runs.
    pub(super) fn read(folder: &Path) -> Option<Progress> {
        let path = folder.join(FILE);
        let found = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let age = SystemTime::now().duration_since(found.modified().ok()?).unwrap_or_default();
        (age < FRESH).then(|| serde_json::from_slice(&fs::read(&path).ok()?).ok())?
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, self)?;
        file.persist(folder.join(FILE))?;
        Ok(())
    }
}

/// Passes on what it is told, and writes it down for others until it is dropped.
pub(super) struct Told<'a> {
    inner: &'a dyn Watch,
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    progress: Progress,
    written: Option<Instant>,
    /// Where the rate is taken from.
    since: (Instant, u64),
}

impl<'a> Told<'a> {
    pub(super) fn new(inner: &'a dyn Watch, folder: PathBuf, name: &ModelName, source: &str) -> Told<'a> {
        let (name, source) = (name.clone(), source.to_owned());
        let progress =
            Progress { name, source, phase: Phase::Checking, done: 0, total: None, bytes_per_s: 0.0 };
        let state = State { progress, written: None, since: (Instant::now(), 0) };
        Told { inner, folder, state: Mutex::new(state) }
    }

    fn take_in(&self, change: impl FnOnce(&mut State, Instant)) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state, now);
        if state.written.is_none_or(|written| now - written >= WRITING) {
            state.written = Some(now);
            // The folder may not be there yet, or the disk full: whoever pulls hears of that otherwise.
            let _ = state.progress.write(&self.folder);
        }
    }
}

impl State {
    fn begin(&mut self, phase: Phase, done: u64, total: Option<u64>, now: Instant) {
        let Progress { name, source, .. } = self.progress.clone();
        self.progress = Progress { name, source, phase, done, total, bytes_per_s: 0.0 };
        self.since = (now, done);
        self.written = None;
    }

    fn at(&mut self, done: u64, total: Option<u64>, now: Instant) {
        self.progress.done = done;
        self.progress.total = total;
        let (since, before) = self.since;
        let passed = now - since;
        if passed >= RATE_WINDOW {
            self.progress.bytes_per_s = done.saturating_sub(before) as f64 / passed.as_secs_f64();
            self.since = (now, done);
        } else if self.progress.bytes_per_s == 0.0 && !passed.is_zero() {
            // The first window's, as far as it is known.
            self.progress.bytes_per_s = done.saturating_sub(before) as f64 / passed.as_secs_f64();
        }
    }
}

impl Watch for Told<'_> {
    fn begin(&self, phase: Phase, done: u64, total: Option<u64>) {
        self.take_in(|state, now| state.begin(phase, done, total, now));
        self.inner.begin(phase, done, total);
    }

    fn at(&self, done: u64, total: Option<u64>) {
        self.take_in(|state, now| state.at(done, total, now));
        self.inner.at(done, total);
    }

    fn note(&self, text: &str) {
        self.inner.note(text);
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        // It is gone already where the pull ended well.
        let _ = fs::remove_file(self.folder.join(FILE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Unwatched;

    #[test]
    fn others_read_how_far_a_pull_is_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let name = ModelName::new("m").unwrap();
        let told = Told::new(&Unwatched, folder.path().to_owned(), &name, "hf:org/m");
        assert_eq!(Progress::read(folder.path()), None, "nothing was begun");
        told.begin(Phase::Fetching, 100, Some(1000));
        let read = Progress::read(folder.path()).unwrap();
        assert_eq!((read.name, read.source.as_str()), (name, "hf:org/m"));
        assert_eq!((read.phase, read.done, read.total), (Phase::Fetching, 100, Some(1000)));
        // What a process left behind that was killed.
        let path = folder.path().join(FILE);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - FRESH).unwrap();
        assert_eq!(Progress::read(folder.path()), None);
        drop(told);
        assert!(!path.exists());
    }

    #[test]
    fn the_rate_is_what_came_lately() {
        let name = ModelName::new("m").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let told = Told::new(&Unwatched, folder.path().to_owned(), &name, "x");
        let mut state = told.state.lock().unwrap();
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        state.begin(Phase::Fetching, 1000, Some(9000), start);
        assert_eq!(state.progress.bytes_per_s, 0.0, "what was there is no speed");
        state.at(1200, Some(9000), at(2.0));
        assert_eq!(state.progress.bytes_per_s, 100.0);
        state.at(1600, Some(9000), at(3.0));
        assert_eq!(state.progress.bytes_per_s, 200.0);
        state.at(1600, Some(9000), at(6.0));
        assert_eq!(state.progress.bytes_per_s, 0.0, "it has stopped");
    }
}

//! One model's chunks in the cache.
//!
//! A folder holds sparse files as long as the model's, in which chunks stand where they stand there, so that whoever reads
//! or maps a model's file can do so with these. Beside them are the coordinator's documents, and a journal of the chunks that
//! are here: a number is added once its chunk is written, so that a crash loses chunks and never makes any up. What is here
//! is believed only as far as its hash agrees, each time that it is read.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use brigade_proto::delivery::{About, Authority, ChunkHash, Document, Edition, chunks_of_page, page_of};
use brigade_shard::chunks::Chunks;
use brigade_shard::model_file::{Fingerprint, Header, Outline};
use brigade_shard::units::Bytes;

/// The coordinator's outline of the model.
const OUTLINE_FILE: &str = "outline";
/// Numbers of chunks, four bytes each, little-endian: of those that have come, and with [`GONE`] of those that have gone.
const JOURNAL_FILE: &str = "journal";
/// The bit of a number in the journal that says that the chunk is not here any more.
const GONE: u32 = 1 << 31;
/// How often whoever waits for a chunk looks whether it still should.
const LOOK: Duration = Duration::from_millis(50);

/// A model of which parts are here.
pub struct KeptModel {
    folder: PathBuf,
    /// Whose documents count.
    authority: Authority,
    outline: Outline,
    chunks: Chunks,
    files: Vec<File>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    edition: Edition,
    /// A bit for every chunk.
    here: Vec<u64>,
    journal: File,
    pages: HashMap<u32, Arc<Vec<ChunkHash>>>,
    /// Jobs that bring chunks.
    jobs: usize,
    /// Why the last one has ended without all of them.
    failure: Option<String>,
}

/// What cannot be kept, or is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file system says no.
    #[error("failed to {action} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A document is not the coordinator's, or makes no sense.
    #[error("{what} {problem}")]
    Document {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A chunk is not what the coordinator says that it is.
    #[error("{0} is not what the coordinator has signed")]
    Damaged(String),
    /// Nobody has said yet what a chunk must be.
    #[error("the hash of {0} is not known")]
    Unknown(String),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "; free some space, or name a directory on a larger disk with --cache"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; name a directory that can be written to with --cache"
        }
        _ => "",
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeepError {
    let path = path.to_owned();
    move |source| KeepError::Io { action, path, source }
}

impl KeptModel {
    /// What `folder` has of a model; `None` where there is nothing, or nothing of use.
    ///
    /// # Errors
    /// Where the files cannot be opened.
    pub fn open(
        folder: &Path,
        model: &Fingerprint,
        authority: &Authority,
    ) -> Result<Option<KeptModel>, KeepError> {
        let path = folder.join(OUTLINE_FILE);
        own_folder(folder)?;
        let document = match fs::read(&path) {
            Ok(bytes) => Document::from_bytes(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let read =
            document.and_then(|document| read_outline(&document, model, authority).ok().zip(Some(document)));
        let Some((outline, document)) = read else {
            tracing::warn!(
                "{} is not this cluster's coordinator's, or is damaged: it is fetched again",
                path.display()
            );
            return Ok(None);
        };
        KeptModel::with(folder, authority, outline, document.edition).map(Some)
    }

    /// Makes the folder of a model of which nothing is here yet.
    ///
    /// # Errors
    /// Where the outline is not the coordinator's, or the folder cannot be made.
    pub fn create(
        folder: &Path,
        model: &Fingerprint,
        document: &Document,
        authority: &Authority,
    ) -> Result<KeptModel, KeepError> {
        let outline = read_outline(document, model, authority)?;
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
        own_folder(folder)?;
        let journal = folder.join(JOURNAL_FILE);
        File::create(&journal).map_err(failed("make", &journal))?;
        replace(folder, OUTLINE_FILE, &document.to_bytes())?;
        KeptModel::with(folder, authority, outline, document.edition)
    }

    fn with(
        folder: &Path,
        authority: &Authority,
        outline: Outline,
        edition: Edition,
    ) -> Result<KeptModel, KeepError> {
        let chunks =
            Chunks::of(&outline).filter(|chunks| chunks.count() < GONE).ok_or(KeepError::Document {
                what: "the outline",
                problem: "has more chunks than can be numbered".to_owned(),
            })?;
        let mut files = Vec::with_capacity(outline.parts().len());
        for (number, bytes) in outline.parts().iter().enumerate() {
            let path = part_path(folder, number);
            let open = || {
                let mut options = OpenOptions::new();
                // No link is followed out of the cache.
                std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
                let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
                if file.metadata()?.len() != *bytes {
                    file.set_len(*bytes)?;
                }
                Ok(file)
            };
            files.push(open().map_err(failed("open", &path))?);
        }
        let path = folder.join(JOURNAL_FILE);
        let mut here = vec![0; chunks.count().div_ceil(64) as usize];
        let told = fs::read(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        });
        let told = told.map_err(failed("read", &path))?;
        // A crash may have left a part of a number at the end.
        let (numbers, rest) = told.as_chunks();
        for number in numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)) {
            let (chunk, gone) = (number & !GONE, number & GONE != 0);
            if chunk < chunks.count() {
                set(&mut here, chunk, !gone);
            }
        }
        let journal = OpenOptions::new().append(true).create(true).open(&path);
        let journal = journal.map_err(failed("open", &path))?;
        if !rest.is_empty() {
            journal.set_len((told.len() - rest.len()) as u64).map_err(failed("mend", &path))?;
        }
        let state = State { edition, here, journal, pages: HashMap::new(), jobs: 0, failure: None };
        let (folder, authority) = (folder.to_owned(), authority.clone());
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Ok(KeptModel { folder, authority, outline, chunks, files, state, changed })
    }

    /// The model's identity.
    pub fn fingerprint(&self) -> &Fingerprint {
        self.outline.fingerprint()
    }

    /// What its header calls it.
    pub fn name(&self) -> String {
        self.header().str("general.name").ok().flatten().unwrap_or_default().to_owned()
    }

    /// Of which contents the hashes are.
    pub fn edition(&self) -> Edition {
        self.state().edition
    }

    /// All chunks of the model.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// The model's header, with the files of the cache.
    pub fn header(&self) -> Header {
        let paths = (0..self.files.len()).map(|number| part_path(&self.folder, number)).collect();
        self.outline.clone().header(paths)
    }

    /// Notes that the coordinator's file has other contents now. Chunks stay, as far as they are the same.
    ///
    /// # Errors
    /// Where the document is not the coordinator's, or of a model with other chunks.
    pub fn renew(&self, document: &Document) -> Result<(), KeepError> {
        let outline = read_outline(document, self.fingerprint(), &self.authority)?;
        if Chunks::of(&outline).as_ref() != Some(&self.chunks) {
            let problem = "has other tensors under the same fingerprint".to_owned();
            return Err(KeepError::Document { what: "the outline", problem });
        }
        replace(&self.folder, OUTLINE_FILE, &document.to_bytes())?;
        let mut state = self.state();
        (state.edition, state.pages) = (document.edition, HashMap::new());
        Ok(())
    }

    /// The coordinator's outline, as it was signed.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn outline_document(&self) -> Result<Option<Document>, KeepError> {
        self.document(OUTLINE_FILE)
    }

    /// A page of hashes, as it was signed, if it is here.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn hashes_document(&self, page: u32) -> Result<Option<Document>, KeepError> {
        self.document(&page_file(self.edition(), page))
    }

    fn document(&self, name: &str) -> Result<Option<Document>, KeepError> {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Document::from_bytes(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Takes in a page of hashes.
    ///
    /// # Errors
    /// Where it is not the coordinator's, or cannot be kept.
    pub fn keep_page(&self, page: u32, document: &Document) -> Result<(), KeepError> {
        let edition = self.edition();
        let wrong =
            |problem: &str| KeepError::Document { what: "a page of hashes", problem: problem.to_owned() };
        if document.edition != edition {
            return Err(wrong("is of other contents of the file"));
        }
        let checked = document.check(&self.authority, self.fingerprint(), About::Hashes { page });
        checked.map_err(|error| wrong(&error.to_string()))?;
        let hashes = self.page_hashes(page, &document.content).ok_or_else(|| wrong("has too few"))?;
        replace(&self.folder, &page_file(edition, page), &document.to_bytes())?;
        self.state().pages.insert(page, Arc::new(hashes));
        Ok(())
    }

    fn page_hashes(&self, page: u32, content: &[u8]) -> Option<Vec<ChunkHash>> {
        let hashes = ChunkHash::page(content)?;
        (hashes.len() == chunks_of_page(&self.chunks, page).len()).then_some(hashes)
    }

    /// Whether the hashes of a page are known.
    pub fn knows_page(&self, page: u32) -> bool {
        self.page(page).is_some()
    }

    fn page(&self, page: u32) -> Option<Arc<Vec<ChunkHash>>> {
        if let Some(known) = self.state().pages.get(&page) {
            return Some(known.clone());
        }
        let document = self.hashes_document(page).ok().flatten()?;
        document.check(&self.authority, self.fingerprint(), About::Hashes { page }).ok()?;
        let mut state = self.state();
        if document.edition != state.edition {
            return None;
        }
        let hashes = Arc::new(self.page_hashes(page, &document.content)?);
        state.pages.insert(page, hashes.clone());
        Some(hashes)
    }

    /// Whether a chunk is here.
    pub fn has(&self, chunk: u32) -> bool {
        is_set(&self.state().here, chunk)
    }

    /// Those of some chunks that are not here, in the same order.
    pub fn missing(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let state = self.state();
        numbers.into_iter().filter(|number| !is_set(&state.here, *number)).collect()
    }

    /// All chunks that are here.
    pub fn holdings(&self) -> Vec<Range<u32>> {
        let state = self.state();
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for chunk in (0..self.chunks.count()).filter(|chunk| is_set(&state.here, *chunk)) {
            match ranges.last_mut() {
                Some(last) if last.end == chunk => last.end += 1,
                _ => ranges.push(chunk..chunk + 1),
            }
        }
        ranges
    }

    /// Bytes of the chunks that are here.
    pub fn bytes(&self) -> Bytes {
        self.chunks.bytes(self.holdings().into_iter().flatten())
    }

    /// Keeps a chunk that has come.
    ///
    /// # Errors
    /// Where it is not what the coordinator has signed, or cannot be written.
    pub fn keep(&self, number: u32, bytes: &[u8]) -> Result<(), KeepError> {
        self.check(number, bytes)?;
        let chunk = self.chunks.get(number).ok_or_else(|| KeepError::Unknown(self.describe(number)))?;
        let written = self.files[chunk.part].write_all_at(bytes, chunk.offset);
        written.map_err(failed("write", &part_path(&self.folder, chunk.part)))?;
        self.note(number, true)
    }

    fn check(&self, number: u32, bytes: &[u8]) -> Result<(), KeepError> {
        let page = page_of(number);
        let hashes = self.page(page).ok_or_else(|| KeepError::Unknown(self.describe(number)))?;
        let wanted = (number - chunks_of_page(&self.chunks, page).start) as usize;
        if hashes.get(wanted) == Some(&ChunkHash::of(bytes)) {
            Ok(())
        } else {
            Err(KeepError::Damaged(self.describe(number)))
        }
    }

    /// Reads a chunk that is here into `out`, and checks it. One that is not what it was is let go of.
    ///
    /// # Errors
    /// Where it cannot be read, or is not what the coordinator has signed.
    pub fn read(&self, number: u32, out: &mut Vec<u8>) -> Result<(), KeepError> {
        let chunk = self.chunks.get(number).ok_or_else(|| KeepError::Unknown(self.describe(number)))?;
        out.resize(chunk.bytes as usize, 0);
        let read = self.files[chunk.part].read_exact_at(out, chunk.offset);
        read.map_err(failed("read", &part_path(&self.folder, chunk.part)))?;
        self.check(number, out).inspect_err(|error| {
            if matches!(error, KeepError::Damaged(_)) {
                self.forget(number);
            }
        })
    }

    /// Lets go of a chunk.
    pub fn forget(&self, number: u32) {
        if let Err(error) = self.note(number, false) {
            tracing::warn!("{error}");
        }
    }

    /// Lets go of all chunks but some, and gives their room back to the file system, as far as it takes it.
    pub fn forget_all_but(&self, kept: &[u32]) {
        let mut wanted = vec![0; self.chunks.count().div_ceil(64) as usize];
        kept.iter().for_each(|chunk| set(&mut wanted, *chunk, true));
        for number in self.holdings().into_iter().flatten().filter(|chunk| !is_set(&wanted, *chunk)) {
            self.forget(number);
            if let Some(chunk) = self.chunks.get(number) {
                give_back(&self.files[chunk.part], chunk.offset, chunk.bytes);
            }
        }
    }

    fn note(&self, number: u32, here: bool) -> Result<(), KeepError> {
        let mut state = self.state();
        // What has gone is gone at once, whatever becomes of the journal: who reads it checks hashes.
        if !here {
            set(&mut state.here, number, false);
        }
        let entry = if here { number } else { number | GONE };
        let noted = state.journal.write_all(&entry.to_le_bytes());
        noted.map_err(failed("write", &self.folder.join(JOURNAL_FILE)))?;
        if here {
            set(&mut state.here, number, true);
            drop(state);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// A job begins that brings chunks.
    pub fn job_begins(&self) {
        let mut state = self.state();
        state.jobs += 1;
        state.failure = None;
    }

    /// It has ended, and why if not all of them are here.
    pub fn job_ended(&self, failure: Option<String>) {
        let mut state = self.state();
        state.jobs -= 1;
        state.failure = failure.or_else(|| state.failure.take());
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until a chunk is here.
    ///
    /// # Errors
    /// Why nobody brings it; empty where `given_up` says so.
    pub fn wait(&self, chunk: u32, given_up: &dyn Fn() -> bool) -> Result<(), String> {
        let mut state = self.state();
        while !is_set(&state.here, chunk) {
            if given_up() {
                return Err(String::new());
            }
            if state.jobs == 0 {
                let nobody = || format!("{} is not here, and nobody was asked for it", self.describe(chunk));
                return Err(state.failure.clone().unwrap_or_else(nobody));
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Where a chunk is, for people.
    pub fn describe(&self, number: u32) -> String {
        let Some(chunk) = self.chunks.get(number) else {
            return format!("chunk {number}, which there is not,");
        };
        let has = |range: Range<u32>| range.contains(&number);
        let mut tensors = self.outline.tensors().iter();
        let tensor = tensors.find(|tensor| self.chunks.of_tensor(tensor).any(has));
        let tensor = tensor.map_or("", |tensor| &tensor.name);
        let (from, to) = (chunk.offset, chunk.offset + chunk.bytes);
        format!(
            "chunk {number} of {} (bytes {from} to {to} of part {}, of tensor `{tensor}`)",
            self.chunks.count(),
            chunk.part
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for KeptModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeptModel({})", self.folder.display())
    }
}

/// Refuses a link in the place of a model's folder, which would lead out of the cache.
fn own_folder(folder: &Path) -> Result<(), KeepError> {
    match fs::symlink_metadata(folder) {
        Ok(found) if !found.is_dir() => {
            let source = io::Error::other("it is not a directory of the cache: remove it");
            Err(failed("use", folder)(source))
        }
        _ => Ok(()),
    }
}

fn part_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("part-{number}"))
}

fn page_file(edition: Edition, page: u32) -> String {
    format!("hashes-{edition}-{page}")
}

fn read_outline(
    document: &Document,
    model: &Fingerprint,
    authority: &Authority,
) -> Result<Outline, KeepError> {
    let wrong = |problem: String| KeepError::Document { what: "the outline", problem };
    document.check(authority, model, About::Outline).map_err(|error| wrong(error.to_string()))?;
    Outline::from_json(&document.content, model).map_err(|error| wrong(error.to_string()))
}

/// Writes a file as a whole, or not at all.
fn replace(folder: &Path, name: &str, content: &[u8]) -> Result<(), KeepError> {
    let (path, beside) = (folder.join(name), folder.join(format!(".{name}.new")));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        file.sync_data()?;
        fs::rename(&beside, &path)
    };
    write().map_err(failed("write", &path))
}

fn is_set(bits: &[u64], number: u32) -> bool {
    bits.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
}

fn set(bits: &mut [u64], number: u32, to: bool) {
    if let Some(word) = bits.get_mut(number as usize / 64) {
        let bit = 1 << (number % 64);
        if to { *word |= bit } else { *word &= !bit }
    }
}

/// Has the file system take back the room of bytes that nobody wants any more; some cannot.
#[cfg(target_os = "linux")]
fn give_back(file: &File, offset: u64, bytes: u64) {
    use rustix::fs::{FallocateFlags, fallocate};
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = fallocate(file, hole, offset, bytes) {
        tracing::debug!(%error, "the file system does not take room back");
    }
}

#[cfg(not(target_os = "linux"))]
fn give_back(_: &File, _: u64, _: u64) {}

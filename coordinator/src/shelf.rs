//! What the coordinator gives to workers that lack a model: its own files' chunks, and its word on what they must be.
//!
//! It reads a page's chunks when their hashes are asked for the first time, signs them, and keeps the page in its state
//! directory, so that a file which changes by itself later is found out. A file that somebody has written to has another
//! edition, and other pages.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use brigade_proto::delivery::{
    About, Authority, ChunkHash, ChunkReader, Document, Edition, FileReader, Holder, Shelf, chunks_of_page,
};
use brigade_proto::identity::{CoordinatorIdentity, TransportIdentity};
use brigade_shard::chunks::Chunks;
use brigade_shard::model_file::{Fingerprint, Header, Outline};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::status::ClusterStatus;

/// The folder of the state directory that keeps pages of hashes.
const FOLDER: &str = "manifests";

/// Workers that may have chunks.
pub(crate) type Holders = Arc<Mutex<Vec<Holder>>>;

/// The models that are served, with what is needed to vouch for them.
pub(crate) struct CoordinatorShelf {
    identity: CoordinatorIdentity,
    authority: Authority,
    folder: PathBuf,
    models: Vec<Arc<Served>>,
    holders: Holders,
    status: watch::Receiver<Arc<ClusterStatus>>,
}

/// A model whose files are here.
struct Served {
    header: Header,
    edition: Edition,
    described: OnceLock<Result<(Document, Chunks), String>>,
    /// Held while a page is made, so that it is made once.
    making: Mutex<()>,
}

impl CoordinatorShelf {
    /// A shelf with models that are served; pages are kept in `state_dir`.
    ///
    /// # Errors
    /// Where a file cannot be looked at any more.
    pub(crate) fn new(
        identity: CoordinatorIdentity,
        state_dir: &Path,
        headers: Vec<Header>,
        holders: Holders,
        status: watch::Receiver<Arc<ClusterStatus>>,
    ) -> io::Result<CoordinatorShelf> {
        let served = |header: Header| {
            let edition = edition(header.parts())?;
            Ok(Arc::new(Served { header, edition, described: OnceLock::new(), making: Mutex::default() }))
        };
        Ok(CoordinatorShelf {
            authority: Authority::of(TransportIdentity::from(&identity)),
            identity,
            folder: state_dir.join(FOLDER),
            models: headers.into_iter().map(served).collect::<io::Result<_>>()?,
            holders,
            status,
        })
    }

    /// Of which contents the file of a model is that is served.
    pub(crate) fn edition(&self, model: &Fingerprint) -> Option<Edition> {
        self.opened(model).map(|served| served.edition)
    }

    fn opened(&self, model: &Fingerprint) -> Option<&Arc<Served>> {
        self.models.iter().find(|served| served.header.fingerprint() == model)
    }

    /// The model, if its files are still those that were opened.
    fn served(&self, model: &Fingerprint) -> Result<Option<Arc<Served>>, String> {
        let Some(served) = self.opened(model) else { return Ok(None) };
        let parts = served.header.parts();
        let first = parts.first().map(|path| path.display().to_string()).unwrap_or_default();
        match edition(parts) {
            Ok(edition) if edition == served.edition => Ok(Some(served.clone())),
            Ok(_) => Err(format!(
                "{first} was written to since the coordinator read it: start the coordinator again"
            )),
            Err(error) => Err(format!("{first} cannot be looked at any more: {error}")),
        }
    }

    fn described<'s>(&self, served: &'s Served) -> Result<&'s (Document, Chunks), String> {
        let describe = || {
            let outline = Outline::of(&served.header).map_err(|error| error.to_string())?;
            let chunks = Chunks::of(&outline).ok_or("the model has more chunks than can be numbered")?;
            let model = served.header.fingerprint();
            let json = Bytes::from(outline.to_json());
            let document = Document::signed(&self.identity, model, served.edition, About::Outline, json)
                .map_err(|error| error.to_string())?;
            Ok((document, chunks))
        };
        served.described.get_or_init(describe).as_ref().map_err(Clone::clone)
    }

    fn page(&self, served: &Arc<Served>, page: u32) -> Result<Option<Document>, String> {
        let (_, chunks) = self.described(served)?;
        let numbers = chunks_of_page(chunks, page);
        if numbers.is_empty() {
            return Ok(None);
        }
        let model = served.header.fingerprint();
        let folder = self.folder.join(model.to_string());
        let path = folder.join(format!("{}-{page}", served.edition));
        let _one_at_a_time = served.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = self.known_page(&path, model, served.edition, page) {
            return Ok(Some(document));
        }
        let mut reader = FileReader::open(served.header.parts(), chunks)?;
        let mut content = Vec::with_capacity(numbers.len() * ChunkHash::BYTES);
        for number in numbers {
            let chunk = reader.read(number)?.ok_or("a chunk of the model is not in its files")?;
            content.extend_from_slice(ChunkHash::of(&chunk).as_bytes());
        }
        let about = About::Hashes { page };
        let document = Document::signed(&self.identity, model, served.edition, about, content.into())
            .map_err(|error| error.to_string())?;
        if let Err(error) = keep(&folder, &path, &document) {
            // It is made again the next time, and only damage in between is not found.
            tracing::warn!("failed to write {}: {error}", path.display());
        }
        Ok(Some(document))
    }

    fn known_page(&self, path: &Path, model: &Fingerprint, edition: Edition, page: u32) -> Option<Document> {
        let document = Document::from_bytes(&fs::read(path).ok()?)?;
        document.check(&self.authority, model, About::Hashes { page }).ok()?;
        (document.edition == edition).then_some(document)
    }
}

/// Writes a page as a whole.
fn keep(folder: &Path, path: &Path, document: &Document) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let beside = path.with_extension("new");
    fs::write(&beside, document.to_bytes())?;
    fs::rename(&beside, path)
}

/// Changes when one of the files is replaced or written to.
fn edition(parts: &[PathBuf]) -> io::Result<Edition> {
    let mut digest = Sha256::new();
    for path in parts {
        let found = fs::metadata(path)?;
        let written = found.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        digest.update(found.len().to_le_bytes());
        digest.update(written.as_nanos().to_le_bytes());
    }
    let digest: [u8; 32] = digest.finalize().into();
    let (first, _) = digest.split_first_chunk().unwrap_or((&[0; 8], &[]));
    Ok(Edition(u64::from_le_bytes(*first)))
}

impl Shelf for CoordinatorShelf {
    fn outline(&self, model: &Fingerprint) -> Result<Option<Document>, String> {
        let Some(served) = self.served(model)? else { return Ok(None) };
        self.described(&served).map(|(document, _)| Some(document.clone()))
    }

    fn hashes(&self, model: &Fingerprint, edition: Edition, page: u32) -> Result<Option<Document>, String> {
        match self.served(model)? {
            Some(served) if served.edition == edition => self.page(&served, page),
            _ => Ok(None),
        }
    }

    fn holdings(&self, model: &Fingerprint) -> Result<Vec<Range<u32>>, String> {
        let Some(served) = self.served(model)? else { return Ok(Vec::new()) };
        self.described(&served).map(|(_, chunks)| std::iter::once(0..chunks.count()).collect())
    }

    fn holders(&self, _: &Fingerprint) -> Vec<Holder> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reader(&self, model: &Fingerprint) -> Result<Option<Box<dyn ChunkReader>>, String> {
        let Some(served) = self.served(model)? else { return Ok(None) };
        let (_, chunks) = self.described(&served)?;
        Ok(Some(Box::new(FileReader::open(served.header.parts(), chunks)?)))
    }

    fn is_busy(&self) -> bool {
        self.status.borrow().requests.running > 0
    }
}

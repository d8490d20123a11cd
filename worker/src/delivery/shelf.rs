//! What this worker gives to others: chunks of its cache, and of model files that it has found beside.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use brigade_proto::delivery::{
    CachedModel, Checked, ChunkReader, Document, Edition, FileReader, Holder, Shelf,
};
use brigade_shard::chunks::Chunks;
use brigade_shard::model_file::{Fingerprint, Header, Outline};
use brigade_shard::units::Bytes as Size;
use bytes::Bytes;

use super::activity::Activity;
use super::cache::{Cache, Listed};
use super::kept::{KeepError, KeptModel};

/// Most models beside the cache that are given from; a worker serves a handful.
const MAX_FILES: usize = 16;

/// All that this worker has of models.
#[derive(Debug)]
pub struct WorkerShelf {
    cache: Arc<Cache>,
    activity: Activity,
    /// Models whose files are here as a whole.
    files: Mutex<HashMap<Fingerprint, Arc<Whole>>>,
}

/// A model whose files are here.
#[derive(Debug)]
struct Whole {
    header: Header,
    chunks: Chunks,
}

impl WorkerShelf {
    /// The shelf of a worker with this cache.
    pub fn new(cache: Arc<Cache>, activity: Activity) -> WorkerShelf {
        WorkerShelf { cache, activity, files: Mutex::default() }
    }

    /// Notes that a model's files are here, so that others may have them.
    pub fn found(&self, header: &Header) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= MAX_FILES || files.contains_key(header.fingerprint()) {
            return;
        }
        // What cannot be read is not given.
        let chunks = Outline::of(header).ok().and_then(|outline| Chunks::of(&outline));
        if let Some(chunks) = chunks {
            files.insert(*header.fingerprint(), Arc::new(Whole { header: header.clone(), chunks }));
        }
    }

    fn whole(&self, model: &Fingerprint) -> Option<Arc<Whole>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned()
    }

    fn of_cache(&self, model: &Fingerprint) -> Result<Option<Arc<KeptModel>>, String> {
        self.cache.get(model).map_err(|error| error.to_string())
    }
}

impl Shelf for WorkerShelf {
    fn outline(&self, model: &Fingerprint) -> Result<Option<Document>, String> {
        let Some(kept) = self.of_cache(model)? else { return Ok(None) };
        kept.outline_document().map_err(|error| error.to_string())
    }

    fn hashes(&self, model: &Fingerprint, edition: Edition, page: u32) -> Result<Option<Document>, String> {
        let Some(kept) = self.of_cache(model)? else { return Ok(None) };
        let document = kept.hashes_document(page).map_err(|error| error.to_string())?;
        Ok(document.filter(|document| document.edition == edition))
    }

    fn holdings(&self, model: &Fingerprint) -> Result<Vec<Range<u32>>, String> {
        if let Some(whole) = self.whole(model) {
            return Ok(std::iter::once(0..whole.chunks.count()).collect());
        }
        Ok(self.of_cache(model)?.map_or_else(Vec::new, |kept| kept.holdings()))
    }

    fn holders(&self, _: &Fingerprint) -> Vec<Holder> {
        Vec::new()
    }

    fn reader(&self, model: &Fingerprint) -> Result<Option<Box<dyn ChunkReader>>, String> {
        if let Some(whole) = self.whole(model) {
            let reader = FileReader::open(whole.header.parts(), &whole.chunks)?;
            return Ok(Some(Box::new(reader)));
        }
        Ok(self.of_cache(model)?.map(|kept| Box::new(FromCache(kept)) as Box<dyn ChunkReader>))
    }

    fn kept(&self) -> Vec<CachedModel> {
        let model = |listed: Listed| {
            let kept = self.cache.get(&listed.model).ok().flatten()?;
            let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok();
            Some(CachedModel {
                model: listed.model,
                name: kept.name(),
                bytes: listed.bytes,
                model_bytes: kept.chunks().bytes(0..kept.chunks().count()),
                used_at: listed.used.and_then(since).map(|since| since.as_secs()),
                in_use: listed.in_use,
            })
        };
        self.cache.list().into_iter().filter_map(model).collect()
    }

    fn remove(&self, model: &Fingerprint) -> Result<Option<Size>, String> {
        self.cache.remove(model)
    }

    fn verify(&self, model: &Fingerprint) -> Result<Option<Checked>, String> {
        let Some(kept) = self.of_cache(model)? else { return Ok(None) };
        let (mut checked, mut buffer) = (Checked { chunks: 0, damaged: Vec::new() }, Vec::new());
        for number in kept.holdings().into_iter().flatten() {
            match kept.read(number, &mut buffer) {
                Ok(()) => checked.chunks += 1,
                Err(error @ (KeepError::Damaged(_) | KeepError::Unknown(_))) => {
                    checked.damaged.push(error.to_string());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(Some(checked))
    }

    fn is_busy(&self) -> bool {
        self.activity.is_busy()
    }
}

/// Reads chunks out of the cache. One that is damaged is not here any more.
struct FromCache(Arc<KeptModel>);

impl ChunkReader for FromCache {
    fn read(&mut self, number: u32) -> Result<Option<Bytes>, String> {
        if !self.0.has(number) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        match self.0.read(number, &mut bytes) {
            Ok(()) => Ok(Some(bytes.into())),
            Err(error) => {
                tracing::warn!("{error}: others get it elsewhere");
                Ok(None)
            }
        }
    }
}

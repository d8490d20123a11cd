//! A coordinator's machine that has a model and fails as it is told, and workers that fetch from it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use brigade_proto::control::Enrolment;
use brigade_proto::delivery::{
    About, Authority, ChunkHash, ChunkReader, Document, Edition, Holder, PAGE_CHUNKS, Shelf,
};
use brigade_proto::identity::{CoordinatorIdentity, TransportIdentity, WorkerIdentity, WorkerKey};
use brigade_proto::ids::{Peer, WorkerId};
use brigade_proto::link::Transport;
use brigade_shard::chunks::Chunks;
use brigade_shard::model_file::{Fingerprint, Header, Outline};
use brigade_worker::delivery::{
    Activity, Cache, Delivery, Home, KeptModel, Manners, Service, Ticket, WorkerShelf,
};
use brigade_worker::telemetry::EngineCounters;
use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::tiny_model::TinyModel;

pub const ANY: &str = "127.0.0.1:0";
/// Longest time that a fetch on loopback may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What goes wrong at a source.
#[derive(Default)]
pub struct Faults {
    /// Chunks that are sent otherwise, so many times.
    pub flipped: BTreeMap<u32, u32>,
    /// After so many chunks nothing is given any more.
    pub ends_after: Option<u32>,
    /// What each chunk takes.
    pub delay: Duration,
}

/// A shelf with a model, as the coordinator has one.
pub struct Desk {
    pub outline: Document,
    pub chunks: Chunks,
    pub file: Vec<u8>,
    pub model: Fingerprint,
    pub identity: CoordinatorIdentity,
    pub faults: Mutex<Faults>,
    pub given: Arc<AtomicU32>,
    pub holders: Mutex<Vec<Holder>>,
}

pub const EDITION: Edition = Edition(9);

impl Desk {
    pub fn new(identity: &CoordinatorIdentity, header: &Header, path: &Path) -> Arc<Desk> {
        let outline = Outline::of(header).unwrap();
        let model = *header.fingerprint();
        let json = outline.to_json().into();
        let document = Document::signed(identity, &model, EDITION, About::Outline, json).unwrap();
        Arc::new(Desk {
            outline: document,
            chunks: Chunks::of(&outline).unwrap(),
            file: fs::read(path).unwrap(),
            model,
            identity: identity.clone(),
            faults: Mutex::default(),
            given: Arc::default(),
            holders: Mutex::default(),
        })
    }

    pub fn chunk(&self, number: u32) -> &[u8] {
        let chunk = self.chunks.get(number).unwrap();
        &self.file[chunk.offset as usize..][..chunk.bytes as usize]
    }

    pub fn given(&self) -> u32 {
        self.given.load(Ordering::Relaxed)
    }

    pub fn all(&self) -> Vec<u32> {
        (0..self.chunks.count()).collect()
    }
}

/// The desk, in many hands.
pub struct AtDesk(pub Arc<Desk>);

impl Shelf for AtDesk {
    fn outline(&self, _: &Fingerprint) -> Result<Option<Document>, String> {
        Ok(Some(self.0.outline.clone()))
    }

    fn hashes(&self, model: &Fingerprint, edition: Edition, page: u32) -> Result<Option<Document>, String> {
        let desk = &self.0;
        let numbers = page * PAGE_CHUNKS..((page + 1) * PAGE_CHUNKS).min(desk.chunks.count());
        let content: Vec<u8> =
            numbers.flat_map(|number| *ChunkHash::of(desk.chunk(number)).as_bytes()).collect();
        let about = About::Hashes { page };
        Ok(Some(Document::signed(&desk.identity, model, edition, about, content.into()).unwrap()))
    }

    fn holdings(&self, _: &Fingerprint) -> Result<Vec<Range<u32>>, String> {
        Ok(std::iter::once(0..self.0.chunks.count()).collect())
    }

    fn holders(&self, _: &Fingerprint) -> Vec<Holder> {
        self.0.holders.lock().unwrap().clone()
    }

    fn reader(&self, _: &Fingerprint) -> Result<Option<Box<dyn ChunkReader>>, String> {
        Ok(Some(Box::new(AtDesk(self.0.clone()))))
    }

    fn is_busy(&self) -> bool {
        false
    }
}

impl ChunkReader for AtDesk {
    fn read(&mut self, number: u32) -> Result<Option<Bytes>, String> {
        let mut faults = self.0.faults.lock().unwrap();
        std::thread::sleep(faults.delay);
        if faults.ends_after.is_some_and(|most| self.0.given() >= most) {
            return Err("the test has cut it off".to_owned());
        }
        let mut bytes = self.0.chunk(number).to_vec();
        if let Some(times) = faults.flipped.get_mut(&number).filter(|times| **times > 0) {
            *times -= 1;
            bytes[0] ^= 0x40;
        }
        self.0.given.fetch_add(1, Ordering::Relaxed);
        Ok(Some(bytes.into()))
    }
}

/// A coordinator's machine with a model, and the means to make workers.
pub struct World {
    pub runtime: Runtime,
    pub identity: CoordinatorIdentity,
    pub header: Header,
    pub desk: Arc<Desk>,
    pub home: Transport,
    pub folder: TempDir,
}

impl World {
    pub fn new() -> World {
        World::with(TinyModel { layers: 12, ..TinyModel::q4_1() })
    }

    pub fn with(model: TinyModel) -> World {
        let folder = tempfile::tempdir().unwrap();
        let identity = CoordinatorIdentity::load_or_create(&folder.path().join("state")).unwrap();
        let path = folder.path().join("model.gguf");
        let header = model.write(&path);
        let desk = Desk::new(&identity, &header, &path);
        let runtime = Runtime::new().unwrap();
        let home = {
            let _within = runtime.enter();
            let shelf = Arc::new(AtDesk(desk.clone()));
            Transport::bind_shelf(ANY.parse().unwrap(), (&identity).into(), shelf).unwrap()
        };
        World { runtime, identity, header, desk, home, folder }
    }

    pub fn enrolled(&self, name: &str) -> WorkerIdentity {
        let key = WorkerKey::generate().unwrap();
        let worker = WorkerId::try_from(name.to_owned()).unwrap();
        let certificate_der = self.identity.sign_worker(&key.request().unwrap(), &worker).unwrap();
        let ca_der = self.identity.ca_der().to_vec();
        let enrolment = Enrolment { worker, certificate_der, ca_der };
        key.enrolled(enrolment, &self.identity.ca_spki_sha256()).unwrap()
    }

    /// A worker whose cache, in a folder of this name, may hold so much.
    pub fn worker(&self, name: &str, limit: Option<u64>) -> Worker {
        let place = self.folder.path().join(name);
        let identity = TransportIdentity::from(&self.enrolled(name));
        let limit = limit.map(brigade_shard::units::Bytes);
        let cache = Cache::open(place, limit, Authority::of(identity.clone())).unwrap();
        let activity = Activity::of(Arc::new(EngineCounters::default()));
        let cache = Arc::new(cache);
        let shelf = Arc::new(WorkerShelf::new(cache.clone(), activity.clone()));
        let home: Home = Arc::new(Mutex::new(Some(self.home.local_addr())));
        let at = ANY.parse().unwrap();
        let manners = Manners { share: 0.5 };
        let started = Service::start(at, identity, cache, home, shelf.clone(), activity, manners);
        let (service, delivery) = started.unwrap();
        Worker { name: name.to_owned(), service, delivery, shelf }
    }

    pub fn stop(&self, worker: Worker) {
        let Worker { service, delivery, shelf, .. } = worker;
        drop((delivery, shelf));
        assert!(self.runtime.block_on(service.stop(PATIENCE)), "it ends");
    }

    /// What a worker has by now equals the file.
    pub fn assert_same(&self, kept: &KeptModel, numbers: &[u32]) {
        let mut bytes = Vec::new();
        for number in numbers {
            kept.read(*number, &mut bytes).unwrap();
            assert!(bytes == self.desk.chunk(*number), "chunk {number} differs");
        }
    }
}

pub struct Worker {
    pub name: String,
    pub service: Service,
    pub delivery: Delivery,
    pub shelf: Arc<WorkerShelf>,
}

impl Worker {
    pub fn holder(&self) -> Holder {
        let peer = Peer::Worker(WorkerId::try_from(self.name.clone()).unwrap());
        Holder { peer, addresses: vec![self.service.local_addr()] }
    }

    pub fn obtain(&self, world: &World) -> Arc<KeptModel> {
        self.delivery.obtain(world.header.fingerprint(), EDITION, &|| false).unwrap()
    }

    pub fn begin(&self, kept: &Arc<KeptModel>, numbers: Vec<u32>) -> Ticket {
        self.delivery.fetch(kept, numbers, false).unwrap()
    }

    /// Fetches chunks; why it could not.
    pub fn fetch(&self, kept: &Arc<KeptModel>, numbers: Vec<u32>) -> Result<(), String> {
        let _ticket = self.begin(kept, numbers.clone());
        let deadline = Instant::now() + PATIENCE;
        numbers.into_iter().try_for_each(|number| kept.wait(number, &|| Instant::now() > deadline))
    }
}

//! Loads under way: threads that find a model's file, work out what a stage takes, and read its weights.
//!
//! A load has two halves, so that what a stage takes is known before anything of it is allocated: [`Loads::find`]
//! ends with [`LoadEvent::Found`], and [`Loads::read`] goes on from there. Each half is a thread of its own, ended
//! early by [`Loads::cancel`] and joined when its event is taken up. Weights may also be read ahead of the stage that will
//! hold them, with [`Loads::find_missing`] and [`Loads::read_missing`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use brigade_proto::control::{DeliveryProgress, DeviceKind, LoadStage, StageMemory};
use brigade_proto::frame::FrameLimits;
use brigade_proto::step::{StepFrame, WireDtype};
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::{Role, TensorTable};
use brigade_shard::units::Bytes;
use tokio::sync::mpsc;

use crate::data::frame_limits;
use crate::delivery::{Delivered, Delivery, KeptModel, Ticket, WorkerShelf};
use crate::device::free_now;
use crate::engine::{Compute, Output, words};
use crate::lifecycle::{LoadId, MAX_STAGES, Progress};
use crate::model::Converted;
use crate::models::{ModelError, ModelStore};
use crate::stage::{
    HeldWeights, LoadProgress, PreparedWeights, Stage, StageOutput, StageRequest, missing_weights, plan_check,
};
use crate::weights::LoadError;

/// Time between two log lines about a load.
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// The time over which it is counted how fast weights come.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// What comes of loads.
pub enum LoadEvent {
    /// The file is there.
    Found {
        /// Which load.
        load: LoadId,
        /// What was found.
        found: Box<Found>,
    },
    /// The load is over.
    Ended {
        /// Which load.
        load: LoadId,
        /// The stage with the largest frames it takes, or why there is none.
        result: Result<(Box<Stage>, FrameLimits), String>,
    },
    /// Weights are resident ahead of their stage.
    Prepared {
        /// Which load.
        load: LoadId,
        /// They stay so for as long as this lives.
        weights: PreparedWeights,
    },
}

/// A model's file and what a stage of it takes.
pub struct Found {
    order: LoadStage,
    header: Header,
    /// Where it is the cache's.
    kept: Option<Arc<KeptModel>>,
    model: String,
    /// What the stage takes once loaded.
    pub memory: StageMemory,
    /// How much of its weights is not resident yet, where they are to be read ahead.
    pub missing: Option<Bytes>,
    limits: FrameLimits,
}

/// All loads of a worker.
pub struct Loads {
    store: Arc<Mutex<ModelStore>>,
    way: Way,
    held: HeldWeights,
    elsewhere: Option<Elsewhere>,
    running: BTreeMap<LoadId, Running>,
    events: mpsc::Sender<LoadEvent>,
}

/// What brings models that are not on this machine, and is told of those that are.
#[derive(Clone)]
pub struct Elsewhere {
    /// Fetches.
    pub delivery: Delivery,
    /// Gives others what is here.
    pub shelf: Arc<WorkerShelf>,
}

/// How stages are loaded and computed.
#[derive(Clone, Copy)]
struct Way {
    device: DeviceKind,
    threads: usize,
    mapped: bool,
    offload: bool,
    converted: Converted,
}

struct Running {
    progress: Arc<LoadProgress>,
    thread: JoinHandle<()>,
    /// What is read, for log lines; nothing while it is looked for.
    label: String,
    logged: Instant,
    rate: Rate,
}

/// How fast something comes.
struct Rate {
    at: Instant,
    fetched: Bytes,
    bytes_per_s: f64,
}

impl Rate {
    /// Takes in how much has come by now.
    fn seen(&mut self, fetched: Bytes, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at);
        if passed >= RATE_WINDOW {
            let bytes = fetched.saturating_sub(self.fetched).0 as f64;
            *self = Rate { at: now, fetched, bytes_per_s: bytes / passed.as_secs_f64() };
        }
        self.bytes_per_s
    }
}

impl Loads {
    /// No loads yet, of models in `places`, for `device` with `threads` compute threads; `mapped` where weights are to
    /// stay in their files, `offload` where a stage's last layers may be read again for every step, `convert` where matrices of
    /// types that the device has no kernels for are turned into others.
    pub fn new(
        places: Vec<PathBuf>,
        device: DeviceKind,
        threads: usize,
        mapped: bool,
        offload: bool,
        convert: bool,
        elsewhere: Option<Elsewhere>,
    ) -> (Loads, mpsc::Receiver<LoadEvent>) {
        // Every load has one event under way at a time.
        let (events, receiver) = mpsc::channel(MAX_STAGES);
        let store = Arc::new(Mutex::new(ModelStore::new(places)));
        let converted = Converted::on(device, convert);
        let way = Way { device, threads, mapped, offload, converted };
        let held = HeldWeights::default();
        (Loads { store, way, held, elsewhere, running: BTreeMap::new(), events }, receiver)
    }

    /// Begins to look for the model of `order`.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn find(&mut self, load: LoadId, order: LoadStage) -> io::Result<()> {
        let (store, way, elsewhere) = (self.store.clone(), self.way, self.elsewhere.clone());
        self.spawn(load, String::new(), move |progress| {
            match find(&store, &elsewhere, order, None, way, progress) {
                Ok(found) => LoadEvent::Found { load, found: Box::new(found) },
                Err(reason) => LoadEvent::Ended { load, result: Err(reason) },
            }
        })
    }

    /// The same, and counts what of the weights is missing.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn find_missing(&mut self, load: LoadId, order: LoadStage) -> io::Result<()> {
        let (store, way) = (self.store.clone(), self.way);
        let held = self.held.of_edition(order.edition);
        let elsewhere = self.elsewhere.clone();
        self.spawn(load, String::new(), move |progress| {
            match find(&store, &elsewhere, order, Some(&held), way, progress) {
                Ok(found) => LoadEvent::Found { load, found: Box::new(found) },
                Err(reason) => LoadEvent::Ended { load, result: Err(reason) },
            }
        })
    }

    /// Begins to read what of the weights is missing, so that the steps of other stages are not disturbed.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn read_missing(&mut self, load: LoadId, found: Found) -> io::Result<()> {
        let (way, elsewhere) = (self.way, self.elsewhere.clone());
        let held = self.held.of_edition(found.order.edition);
        let label = format!("{} of {} for the next plan", found.order.shard, found.model);
        tracing::info!("loading {label}: {} of weights are missing", found.missing.unwrap_or_default());
        self.spawn(load, label, move |progress| match read_missing(found, way, &held, &elsewhere, progress) {
            Ok(weights) => LoadEvent::Prepared { load, weights },
            Err(reason) => LoadEvent::Ended { load, result: Err(reason) },
        })
    }

    /// Begins to read the weights of what was found; the stage may take `budget`.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn read(&mut self, load: LoadId, found: Found, budget: Bytes) -> io::Result<()> {
        let (way, elsewhere) = (self.way, self.elsewhere.clone());
        let held = self.held.of_edition(found.order.edition);
        let label = format!("{} of {}", found.order.shard, found.model);
        tracing::info!("loading {label}: {} of weights", found.memory.weights);
        self.spawn(load, label, move |progress| {
            let result = read(found, way, &held, &elsewhere, budget, progress);
            LoadEvent::Ended { load, result }
        })
    }

    /// Gives a load up; its event still comes.
    pub fn cancel(&self, load: LoadId) {
        if let Some(running) = self.running.get(&load) {
            running.progress.cancel();
        }
    }

    /// Gives all loads up.
    pub fn cancel_all(&self) {
        for load in self.running.keys() {
            self.cancel(*load);
        }
    }

    /// How far the loads are. Logs a line for each of them now and then.
    pub fn progress(&mut self, now: Instant) -> Vec<(LoadId, Progress)> {
        let mut all = Vec::new();
        for (load, running) in &mut self.running {
            let (loaded, total) = (running.progress.loaded(), running.progress.total());
            let fetch = running.progress.fetch().filter(|fetch| fetch.wanted() > Bytes::ZERO);
            let delivery = fetch.map(|fetch| DeliveryProgress {
                fetched: fetch.fetched(),
                wanted: fetch.wanted(),
                bytes_per_s: running.rate.seen(fetch.fetched(), now),
                sources: fetch.sources().into_iter().map(|(peer, _)| peer).collect(),
            });
            if now.saturating_duration_since(running.logged) >= LOG_INTERVAL && !running.label.is_empty() {
                running.logged = now;
                let fetched = delivery.as_ref().map_or(String::new(), |delivery| {
                    let DeliveryProgress { fetched, wanted, bytes_per_s, .. } = delivery;
                    format!(", {fetched} of {wanted} fetched at {:.1} MB/s", bytes_per_s / 1e6)
                });
                tracing::info!(
                    "loading {}: {:.1} / {:.1} MiB{fetched}",
                    running.label,
                    loaded.as_mib(),
                    total.as_mib()
                );
            }
            all.push((*load, Progress { loaded, total, delivery }));
        }
        all
    }

    /// Joins the thread whose event this is: it has ended, or is about to.
    pub fn joined(&mut self, event: &LoadEvent) {
        let load = match event {
            LoadEvent::Found { load, .. }
            | LoadEvent::Ended { load, .. }
            | LoadEvent::Prepared { load, .. } => load,
        };
        if let Some(running) = self.running.remove(load)
            && running.thread.join().is_err()
        {
            tracing::error!(load = load.0, "a load's thread ended with a defect");
        }
    }

    /// Whether no thread runs.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    fn spawn(
        &mut self,
        load: LoadId,
        label: String,
        work: impl FnOnce(&LoadProgress) -> LoadEvent + Send + 'static,
    ) -> io::Result<()> {
        let progress = Arc::new(LoadProgress::new());
        let events = self.events.clone();
        let counts = progress.clone();
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            let event = catch_unwind(AssertUnwindSafe(|| work(&counts))).unwrap_or_else(|panic| {
                let reason = format!("loading stopped at a defect: {}", words(&*panic));
                LoadEvent::Ended { load, result: Err(reason) }
            });
            // The receiver is gone only while the worker ends.
            let _ = events.blocking_send(event);
        })?;
        let now = Instant::now();
        let rate = Rate { at: now, fetched: Bytes::ZERO, bytes_per_s: 0.0 };
        self.running.insert(load, Running { progress, thread, label, logged: now, rate });
        Ok(())
    }
}

fn find(
    store: &Mutex<ModelStore>,
    elsewhere: &Option<Elsewhere>,
    order: LoadStage,
    held: Option<&HeldWeights>,
    way: Way,
    progress: &LoadProgress,
) -> Result<Found, String> {
    let streamed = order.streamed_layers as usize;
    if streamed > 0 && !way.offload {
        return Err(format!(
            "the plan has this worker read {streamed} layers of {} for every step, which it was not started for: start it \
             with --offload",
            order.shard
        ));
    }
    let given_up = || progress.is_cancelled();
    let here = store.lock().unwrap_or_else(PoisonError::into_inner).find(
        &order.file_hint,
        &order.fingerprint,
        &given_up,
    );
    let (header, kept) = match (here, elsewhere) {
        (Ok(header), elsewhere) => {
            if let Some(Elsewhere { shelf, .. }) = elsewhere {
                shelf.found(&header);
            }
            (header, None)
        }
        (Err(ref error @ ModelError::NotFound { ref unread, .. }), Some(Elsewhere { delivery, .. })) => {
            let model = order.fingerprint.parse().map_err(|_| error.to_string())?;
            let kept = delivery.obtain(&model, order.edition, &given_up).map_err(|reason| {
                match reason.as_str() {
                    "" => LoadError::Cancelled.to_string(),
                    _ => format!("{error}; it cannot be fetched either: {reason}"),
                }
            })?;
            if !unread.is_empty() {
                tracing::warn!("the model's file here is of no use{unread}: its tensors are fetched instead");
            }
            (kept.header(), Some(kept))
        }
        (Err(error), _) => return Err(error.to_string()),
    };
    let failed = |error: &dyn std::fmt::Display| format!("failed to use {}: {error}", order.file_hint);
    let spec = ModelSpec::from_header(&header).map_err(|error| failed(&error))?;
    let memory = plan_check(&header, &order.shard, streamed, &order.room, way.converted)
        .map_err(|error| failed(&error))?;
    let missing = match held {
        Some(held) => {
            let missing = missing_weights(&header, &order.shard, streamed, &order.room, way.converted, held);
            Some(missing.map_err(|error| failed(&error))?)
        }
        None => None,
    };
    let limits = frame_limits(&order.room, spec.hidden);
    Ok(Found { model: spec.name, header, kept, memory, missing, limits, order })
}

/// Begins to fetch what a shard lacks of a model of the cache, in the order in which it is read; nothing where the model is no
/// such one. The ticket is to be kept for as long as it is read.
fn begin_fetch(
    kept: Option<Arc<KeptModel>>,
    order: &LoadStage,
    header: &Header,
    held: &HeldWeights,
    elsewhere: &Option<Elsewhere>,
    gently: bool,
    progress: &LoadProgress,
) -> Result<Option<(Arc<Delivered>, Ticket)>, String> {
    let (Some(kept), Some(Elsewhere { delivery, .. })) = (kept, elsewhere) else {
        return Ok(None);
    };
    let spec = ModelSpec::from_header(header).map_err(|error| error.to_string())?;
    let table = TensorTable::new(header, &spec).map_err(|error| error.to_string())?;
    let mut tensors = table.of(&order.shard);
    // The head is read last; where it is tied, it is the embedding of a shard that does not begin with one.
    let is_head = |role: Role| match role {
        Role::OutputNorm | Role::Output => true,
        Role::TokenEmbedding => !order.shard.embedding,
        _ => false,
    };
    tensors.sort_by_key(|(role, _)| is_head(*role));
    let model = *header.fingerprint();
    let lacking = tensors.into_iter().filter(|(_, tensor)| !held.has(model, &tensor.name));
    let mut seen = BTreeSet::new();
    let numbers = lacking.flat_map(|(_, tensor)| kept.chunks().of_tensor(tensor)).flatten();
    let numbers: Vec<u32> = numbers.filter(|number| seen.insert(*number)).collect();
    let missing = kept.missing(numbers.iter().copied());
    let more = kept.chunks().bytes(missing);
    delivery.cache().make_room(&kept, &numbers, more)?;
    let ticket = delivery.fetch(&kept, numbers, gently)?;
    progress.set_fetch(ticket.progress().clone());
    Ok(Some((Arc::new(Delivered::new(kept, delivery.clone(), progress.cancelled())), ticket)))
}

/// What is asked of a stage.
fn request(
    order: &LoadStage,
    Way { device, threads, mapped, converted, .. }: Way,
    header: Header,
    delivered: Option<Arc<Delivered>>,
    budget: Bytes,
) -> StageRequest {
    let (shard, room, streamed_layers) = (order.shard, order.room, order.streamed_layers as usize);
    StageRequest {
        header,
        delivered,
        shard,
        room,
        device,
        threads,
        mapped,
        converted,
        streamed_layers,
        budget,
    }
}

fn read_missing(
    found: Found,
    way: Way,
    held: &HeldWeights,
    elsewhere: &Option<Elsewhere>,
    progress: &LoadProgress,
) -> Result<PreparedWeights, String> {
    let Found { order, header, kept, model, missing, .. } = found;
    let fetching = begin_fetch(kept, &order, &header, held, elsewhere, true, progress)
        .map_err(|reason| format!("failed to load {} of {model} for the next plan: {reason}", order.shard))?;
    let delivered = fetching.as_ref().map(|(delivered, _)| delivered.clone());
    let (shard, missing) = (order.shard, missing.unwrap_or_default());
    let start = Instant::now();
    let request = request(&order, way, header, delivered, missing);
    let weights = PreparedWeights::read(request, held, progress)
        .map_err(|error| format!("failed to load {shard} of {model} for the next plan: {error}"))?;
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!("loaded {shard} of {model} for the next plan: {missing} in {seconds:.1} s");
    Ok(weights)
}

fn read(
    found: Found,
    way: Way,
    held: &HeldWeights,
    elsewhere: &Option<Elsewhere>,
    budget: Bytes,
    progress: &LoadProgress,
) -> Result<(Box<Stage>, FrameLimits), String> {
    let Found { order, header, kept, model, memory, limits, .. } = found;
    let fetching = begin_fetch(kept, &order, &header, held, elsewhere, false, progress)
        .map_err(|reason| format!("failed to load {} of {model}: {reason}", order.shard))?;
    let delivered = fetching.as_ref().map(|(delivered, _)| delivered.clone());
    let (shard, weights) = (order.shard, memory.weights);
    let start = Instant::now();
    let request = request(&order, way, header, delivered, budget);
    let stage = Stage::load_sharing(request, held, progress).map_err(|error| {
        let how_far = match &error {
            // A device fails for lack of memory, if at all: what was wanted and what there is tell why.
            LoadError::Device(_) => format!(
                "; {} of {weights} of weights were read, and the stage needs {:.1} MiB, of {:.1} MiB that its budget \
                 leaves{}: lower --memory to what this {} gives, or free some",
                progress.loaded(),
                memory.total().as_mib(),
                budget.as_mib(),
                // What was taken for it is free again by now.
                free_now(way.device),
                if way.device == DeviceKind::Cpu { "machine" } else { "device" },
            ),
            _ => String::new(),
        };
        format!("failed to load {shard} of {model}: {error}{how_far}")
    })?;
    tracing::info!("loaded {shard} of {model}: {weights} in {:.1} s", start.elapsed().as_secs_f64());
    Ok((Box::new(stage), limits))
}

impl Compute for Stage {
    fn run(&mut self, frame: StepFrame) -> Result<Output, String> {
        match Stage::run(self, frame) {
            Ok(StageOutput::Pass(frame)) => Ok(Output::Pass(frame)),
            Ok(StageOutput::Finish(result)) => Ok(Output::Finish(result)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn clear(&mut self) {
        Stage::clear(self);
    }

    fn usage(&self) -> (u32, u32) {
        let usage = Stage::usage(self);
        (usage.tokens, usage.sequences)
    }

    fn memory(&self) -> StageMemory {
        Stage::memory(self)
    }

    fn set_wire(&mut self, wire: WireDtype) {
        Stage::set_wire(self, wire);
    }
}

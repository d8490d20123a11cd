//! The thread that fetches what is missing and gives others what is here: apart from the one that drives steps, so that
//! neither waits for the other.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use brigade_proto::delivery::{Delivered, DeliveryError, Document, Edition};
use brigade_proto::identity::TransportIdentity;
use brigade_proto::ids::Peer;
use brigade_proto::link::{LinkError, Transport};
use brigade_shard::model_file::Fingerprint;
use brigade_shard::units::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::Activity;
use super::cache::Cache;
use super::fetch::{Job, fetch};
use super::kept::KeptModel;
use super::shelf::WorkerShelf;

/// Orders that wait: loads give one each, and what they find damaged.
const ORDER_QUEUE: usize = 64;
/// Threads that read and write chunks, and hash them: one for what comes, one for what goes.
const DISK_THREADS: usize = 2;
/// How long the coordinator may take to say what its file is.
const ASKING: Duration = Duration::from_secs(90);
/// How often whoever waits for that looks whether it still should.
const LOOK: Duration = Duration::from_millis(50);

/// How weights are fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manners {
    /// The share of the time that is spent on weights while answers are computed, here or where they come from: more than 0,
    /// and at most 1.
    pub share: f64,
}

/// Where the coordinator's data plane is; known once the worker is attached.
pub type Home = Arc<Mutex<Option<SocketAddr>>>;

/// What all that fetches has a hand on.
pub(super) struct Shared {
    /// Who this worker is.
    pub(super) own: Peer,
    pub(super) transport: Transport,
    pub(super) home: Home,
    pub(super) activity: Activity,
    pub(super) manners: Manners,
    /// Held while something is fetched gently: one thing at a time.
    pub(super) gently: Semaphore,
}

/// What is to be done.
enum Order {
    /// Ask the coordinator what is in its file.
    Ask { model: Fingerprint, answer: blocking::Sender<Result<Document, DeliveryError>> },
    /// Fetch chunks.
    Fetch(Job),
}

/// A hand on the thread. Clones share it; once the last is gone, it ends.
#[derive(Clone)]
pub struct Delivery {
    orders: mpsc::Sender<Order>,
    cache: Arc<Cache>,
}

/// Ends a fetch that is not wanted any more when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    given_up: CancellationToken,
    progress: Arc<FetchProgress>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.given_up.cancel();
    }
}

impl Ticket {
    /// How far it is.
    pub fn progress(&self) -> &Arc<FetchProgress> {
        &self.progress
    }
}

/// How far a fetch is.
#[derive(Debug, Default)]
pub struct FetchProgress {
    pub(super) fetched: AtomicU64,
    pub(super) wanted: AtomicU64,
    /// What has come from each source.
    pub(super) sources: Mutex<HashMap<Peer, u64>>,
}

impl FetchProgress {
    /// Bytes that have come.
    pub fn fetched(&self) -> Bytes {
        Bytes(self.fetched.load(Ordering::Relaxed))
    }

    /// Bytes that were missing.
    pub fn wanted(&self) -> Bytes {
        Bytes(self.wanted.load(Ordering::Relaxed))
    }

    /// Where they have come from, most first.
    pub fn sources(&self) -> Vec<(Peer, Bytes)> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sources: Vec<(Peer, Bytes)> =
            sources.iter().map(|(peer, bytes)| (peer.clone(), Bytes(*bytes))).collect();
        sources.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.to_string().cmp(&other.0.to_string())));
        sources
    }

    pub(super) fn came(&self, peer: &Peer, bytes: usize) {
        self.fetched.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        *sources.entry(peer.clone()).or_default() += bytes as u64;
    }
}

/// The thread itself.
#[derive(Debug)]
pub struct Service {
    thread: JoinHandle<()>,
    ending: CancellationToken,
    addr: SocketAddr,
    delivered: Arc<Delivered>,
}

impl Service {
    /// Starts the thread, with a socket at `addr`; `home` says where the coordinator is, once that is known.
    ///
    /// # Errors
    /// Where the socket cannot be opened, or the system gives no thread.
    pub fn start(
        addr: SocketAddr,
        identity: TransportIdentity,
        cache: Arc<Cache>,
        home: Home,
        shelf: Arc<WorkerShelf>,
        activity: Activity,
        manners: Manners,
    ) -> Result<(Service, Delivery), ServiceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(DISK_THREADS)
            .build()
            .map_err(ServiceError::Thread)?;
        let own = identity.peer().clone();
        let transport = {
            let _within = runtime.enter();
            Transport::bind_shelf(addr, identity, shelf)?
        };
        let (addr, delivered) = (transport.local_addr(), transport.delivered());
        let (orders, queue) = mpsc::channel(ORDER_QUEUE);
        let ending = CancellationToken::new();
        let gently = Semaphore::new(1);
        let shared = Arc::new(Shared { own, transport, home, activity, manners, gently });
        let stop = ending.clone();
        let thread = std::thread::Builder::new().name("delivery".to_owned()).spawn(move || {
            runtime.block_on(run(shared, queue, stop));
            // A read of a disk that hangs must not keep the worker.
            runtime.shutdown_background();
        });
        let thread = thread.map_err(ServiceError::Thread)?;
        Ok((Service { thread, ending, addr, delivered }, Delivery { orders, cache }))
    }

    /// Where others may ask for what is here.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What has come and gone.
    pub fn delivered(&self) -> &Delivered {
        &self.delivered
    }

    /// Ends it, within `patience`; whether it has.
    pub async fn stop(self, patience: Duration) -> bool {
        self.ending.cancel();
        let joined = tokio::task::spawn_blocking(move || self.thread.join().is_ok());
        matches!(tokio::time::timeout(patience, joined).await, Ok(Ok(true)))
    }
}

/// Why the thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The socket could not be opened.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The operating system gives no thread.
    #[error("failed to start the thread that fetches weights: {0}")]
    Thread(#[from] io::Error),
}

impl Delivery {
    /// The cache that what is fetched is kept in.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The model with this fingerprint in this edition, with whatever of it is here. Where nothing is, or of another
    /// edition, it waits for the coordinator's answer, until `given_up` says so.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    pub fn obtain(
        &self,
        model: &Fingerprint,
        edition: Edition,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Arc<KeptModel>, String> {
        let kept = self.cache.get(model).map_err(|error| error.to_string())?;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.edition() == edition) {
            return Ok(kept.clone());
        }
        let (answer, answered) = blocking::channel();
        let order = Order::Ask { model: *model, answer };
        self.orders.try_send(order).map_err(|_| "the thread that fetches weights has ended".to_owned())?;
        let asked = Instant::now();
        let outline = loop {
            match answered.recv_timeout(LOOK) {
                Ok(answer) => break answer.map_err(|error| error.to_string())?,
                Err(blocking::RecvTimeoutError::Timeout) if given_up() => return Err(String::new()),
                Err(blocking::RecvTimeoutError::Timeout) if asked.elapsed() < ASKING => {}
                Err(_) => return Err("the coordinator does not answer".to_owned()),
            }
        };
        if outline.edition != edition {
            return Err("the coordinator has it in another edition by now".to_owned());
        }
        match kept {
            Some(kept) => kept.renew(&outline).map(|()| kept).map_err(|error| error.to_string()),
            None => self.cache.add(model, &outline).map_err(|error| error.to_string()),
        }
    }

    /// Begins to fetch those of some chunks that are not here, in their order; `gently` where answers are computed meanwhile.
    /// It goes on for as long as the ticket lives.
    ///
    /// # Errors
    /// Why it cannot, for people.
    pub fn fetch(&self, kept: &Arc<KeptModel>, numbers: Vec<u32>, gently: bool) -> Result<Ticket, String> {
        let missing = kept.missing(numbers.iter().copied());
        let given_up = CancellationToken::new();
        let progress = Arc::new(FetchProgress::default());
        let bytes = kept.chunks().bytes(missing.iter().copied());
        progress.wanted.store(bytes.0, Ordering::Relaxed);
        self.cache.used(kept.fingerprint());
        if missing.is_empty() {
            return Ok(Ticket { given_up, progress });
        }
        let job = Job::new(kept.clone(), missing, gently, progress.clone(), given_up.clone());
        // A job that ends tells whoever waits for its chunks, also where it is never begun.
        self.orders
            .try_send(Order::Fetch(job))
            .map_err(|_| "the thread that fetches weights takes no more orders".to_owned())?;
        Ok(Ticket { given_up, progress })
    }
}

async fn run(shared: Arc<Shared>, mut orders: mpsc::Receiver<Order>, ending: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let order = tokio::select! {
            () = ending.cancelled() => break,
            order = orders.recv() => order,
        };
        let shared = shared.clone();
        match order {
            None => break,
            Some(Order::Ask { model, answer }) => {
                let ending = ending.clone();
                tasks.spawn(async move {
                    let outline = async { shared.coordinator().await?.outline(&model).await };
                    if let Some(outline) = ending.run_until_cancelled(outline).await {
                        // Who has given up does not listen.
                        let _ = answer.send(outline);
                    }
                });
            }
            Some(Order::Fetch(job)) => {
                let ending = ending.clone();
                tasks.spawn(async move {
                    let given_up = job.given_up.clone();
                    let fetching = fetch(&shared, &job);
                    let failure = tokio::select! {
                        () = ending.cancelled() => Some("the worker ends".to_owned()),
                        () = given_up.cancelled() => Some("it was given up".to_owned()),
                        fetched = fetching => fetched.err(),
                    };
                    job.end(failure);
                });
            }
        }
    }
    drop(orders);
    tasks.close();
    tasks.wait().await;
    shared.transport.close().await;
}

impl Shared {
    /// A connection to the coordinator.
    pub(super) async fn coordinator(&self) -> Result<brigade_proto::delivery::Source, DeliveryError> {
        let home = *self.home.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses: Vec<SocketAddr> = home.into_iter().collect();
        Ok(self.transport.dial_source(&Peer::Coordinator, &addresses).await?)
    }
}

//! What the rest of the program knows of a running cluster.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use brigade_proto::ids::WorkerId;
use brigade_shard::model_file::Fingerprint;
use brigade_shard::plan::{Forecast, Load};
use brigade_shard::tokenizer::Tokenizer;
use brigade_shard::units::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::forecast::{Basis, Forecaster};
use super::timeline::Timeline;
use crate::caches::Caches;
use crate::compare::choices::{ChoiceLoads, SideChoices};
use crate::events::EventLog;
use crate::generation::{Generation, GenerationError, GenerationRequest};
use crate::metrics::Metrics;
use crate::planning::LiveDevices;
use crate::status::{ClusterStatus, EventRecord, StepTrace};
use crate::template::ChatRenderer;

/// The model that a cluster serves, as far as text and limits go.
#[derive(Debug)]
pub struct ModelInfo {
    /// The name that requests give.
    pub id: String,
    /// The model's own name.
    pub name: String,
    /// The model's identity.
    pub fingerprint: Fingerprint,
    /// Number of layers.
    pub layers: usize,
    /// Number of token ids; ids of requests must be below it.
    pub vocab: usize,
    /// Bytes of all tensors.
    pub weights: Bytes,
    /// Longest context that the model was trained for, in tokens. What fits here is in [`ClusterStatus::context`].
    pub context_length: u32,
    /// Text to token ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text; `None` where the file has no template.
    pub template: Option<ChatRenderer>,
    /// When the cluster was started.
    pub created: SystemTime,
}

/// Which workers are to hold the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinOrder {
    /// Their names or ids, one stage each; not empty.
    pub workers: Vec<String>,
    /// How many layers each stage holds, in the order of the pipeline; empty where that is planned.
    pub split: Vec<usize>,
    /// How long the pin holds unless it is renewed; `None` for as long as it is not taken back.
    pub ttl: Option<Duration>,
    /// Whether it must hold already.
    pub renewal: Renewal,
    /// Who wants that, for people.
    pub by: Option<String>,
}

/// Whether a pin is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It is, in place of any other.
    New,
    /// Only its time begins anew; where it does not hold any more, that is an error.
    Only,
}

/// The workers that plans are pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Their ids.
    pub workers: Vec<WorkerId>,
    /// Their names, in the same order.
    pub names: Vec<String>,
}

/// Why the plan could not be pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There is no such worker, or there are several.
    #[error(transparent)]
    Worker(#[from] DrainError),
    /// A worker was named twice.
    #[error("{worker} was named twice, and a worker holds one stage")]
    Twice {
        /// Its name.
        worker: String,
    },
    /// These workers cannot hold the model.
    #[error("the plan cannot be pinned to {workers}: {reason}")]
    NoPlan {
        /// Their names, for people.
        workers: String,
        /// What is missing, for people.
        reason: String,
    },
    /// There is nothing to renew.
    #[error("there is no such pin to renew{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NotPinned {
        /// Why it ended, for people, where that is known.
        why: Option<String>,
    },
    /// The coordinator is shutting down.
    #[error("the coordinator is shutting down")]
    Stopping,
}

/// The coordinator is shutting down, and answers no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct Stopping;

/// What somebody wants of where the model lies, or wants to know of where it could, on its way to the task that owns the deployment.
#[derive(Debug)]
pub(super) enum PinWish {
    /// See [`ClusterHandle::pin`].
    Pin { order: PinOrder, reply: oneshot::Sender<Result<Pinned, PinError>> },
    /// See [`ClusterHandle::unpin`].
    Unpin { reply: oneshot::Sender<()> },
    /// To know what plans are made with.
    Basis { reply: oneshot::Sender<Basis> },
}

/// Why a worker could not be drained, or taken back into use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    /// There is no such worker.
    #[error("there is no worker `{wanted}` here; there is {known}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// The names that there are, for people.
        known: String,
    },
    /// Several have the name.
    #[error("several workers are called `{wanted}`; name one by its id: {ids}")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Their ids, for people.
        ids: String,
    },
    /// The model, or what runs, could not be held without it.
    #[error("{worker} cannot be drained, and stays in use: {reason}")]
    NoRoom {
        /// The worker's name.
        worker: String,
        /// What is missing.
        reason: String,
    },
    /// There is nobody to ask.
    #[error("the coordinator is shutting down")]
    Stopping,
}

/// The wish that a worker be drained, or be used again, on its way to the task that owns the members.
#[derive(Debug)]
pub(super) struct Drain {
    /// Its name or id.
    pub(super) worker: String,
    /// Whether it is to be drained.
    pub(super) drain: bool,
    /// For its name and id.
    pub(super) reply: oneshot::Sender<Result<Drained, DrainError>>,
}

/// A worker that is being drained, or was taken back into use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Its lasting id.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
}

/// A handle on a running cluster; cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    model: ModelInfo,
    metrics: Metrics,
    submissions: mpsc::Sender<Submission>,
    drains: mpsc::Sender<Drain>,
    pins: mpsc::Sender<PinWish>,
    status: watch::Receiver<Arc<ClusterStatus>>,
    forecaster: Forecaster,
    timeline: Timeline,
    events: EventLog,
    caches: Caches,
}

/// A request on its way to the task that owns the scheduler.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: GenerationRequest,
    pub(super) reply: oneshot::Sender<Result<Generation, GenerationError>>,
}

impl ClusterHandle {
    pub(super) fn new(
        (model, forecaster): (ModelInfo, Forecaster),
        metrics: Metrics,
        submissions: mpsc::Sender<Submission>,
        (drains, pins): (mpsc::Sender<Drain>, mpsc::Sender<PinWish>),
        status: watch::Receiver<Arc<ClusterStatus>>,
        (timeline, events): (Timeline, EventLog),
        caches: Caches,
    ) -> ClusterHandle {
        let shared = Shared {
            model,
            metrics,
            submissions,
            drains,
            pins,
            status,
            forecaster,
            timeline,
            events,
            caches,
        };
        ClusterHandle { shared: Arc::new(shared) }
    }

    /// Begins to empty a worker, by its name or id: the plan moves away from it, and no other one uses it. Or, not to
    /// `drain`, lets plans use it again. How far it is, the status says.
    ///
    /// # Errors
    /// Where there is no such worker, or the others have no room for what it holds.
    pub async fn drain(&self, worker: &str, drain: bool) -> Result<Drained, DrainError> {
        let (reply, answer) = oneshot::channel();
        let wish = Drain { worker: worker.to_owned(), drain, reply };
        self.shared.drains.send(wish).await.map_err(|_| DrainError::Stopping)?;
        answer.await.map_err(|_| DrainError::Stopping)?
    }

    /// What workers keep of models that came from other machines.
    pub fn caches(&self) -> Caches {
        self.shared.caches.clone()
    }

    /// Has plans made over certain workers alone, one stage each, until that is taken back or was not renewed in time.
    ///
    /// # Errors
    /// Where there is no such worker, or these workers cannot hold the model as wished.
    pub async fn pin(&self, order: PinOrder) -> Result<Pinned, PinError> {
        let (reply, answer) = oneshot::channel();
        self.shared.pins.send(PinWish::Pin { order, reply }).await.map_err(|_| PinError::Stopping)?;
        answer.await.map_err(|_| PinError::Stopping)?
    }

    /// Lets the planner choose again.
    ///
    /// # Errors
    /// Where the coordinator is shutting down.
    pub async fn unpin(&self) -> Result<(), PinError> {
        let (reply, answer) = oneshot::channel();
        self.shared.pins.send(PinWish::Unpin { reply }).await.map_err(|_| PinError::Stopping)?;
        answer.await.map_err(|_| PinError::Stopping)
    }

    /// What a comparison could measure on the workers that are there, with what is predicted of it.
    ///
    /// # Errors
    /// Where the coordinator is shutting down.
    pub async fn choices(&self, loads: ChoiceLoads) -> Result<SideChoices, Stopping> {
        let basis = self.basis().await?;
        let shared = self.shared.clone();
        let found = tokio::task::spawn_blocking(move || shared.forecaster.choices(&basis, &loads));
        found.await.map_err(|_| Stopping)
    }

    /// The attached workers' devices as the planner sees them.
    ///
    /// # Errors
    /// Where the coordinator is shutting down.
    pub async fn devices(&self) -> Result<LiveDevices, Stopping> {
        Ok(self.basis().await?.attached)
    }

    /// What to expect of the plan that is served under a load; `None` while none is.
    ///
    /// # Errors
    /// Where the coordinator is shutting down.
    pub async fn forecast(&self, load: &Load) -> Result<Option<Forecast>, Stopping> {
        Ok(self.shared.forecaster.served(&self.basis().await?, load))
    }

    async fn basis(&self) -> Result<Basis, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.shared.pins.send(PinWish::Basis { reply }).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Starts a generation, or puts it into the bounded queue of those that wait for cache.
    ///
    /// # Errors
    /// [`GenerationError::NotReady`] where no plan is served, [`GenerationError::ContextExceeded`] where prompt and
    /// answer do not fit, [`GenerationError::Overloaded`] where the queue is full.
    pub async fn generate(&self, request: GenerationRequest) -> Result<Generation, GenerationError> {
        let stopped = || GenerationError::NotReady { reason: "the coordinator is shutting down".into() };
        let (reply, answer) = oneshot::channel();
        let submission = Submission { request, reply };
        self.shared.submissions.send(submission).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// The newest steps that have come home with a larger number than `after`, oldest first.
    pub fn timeline(&self, after: u64) -> Vec<StepTrace> {
        self.shared.timeline.after(after)
    }

    /// Events with a larger number than `after`, oldest first; of more than `most` the newest.
    pub async fn events(&self, after: u64, most: usize) -> Vec<EventRecord> {
        self.shared.events.read(after, most).await
    }

    /// The cluster's state, at most a quarter of a second old.
    pub fn status(&self) -> Arc<ClusterStatus> {
        self.shared.status.borrow().clone()
    }

    /// Tells of every change of the state.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ClusterStatus>> {
        self.shared.status.clone()
    }

    /// The model served.
    pub fn model(&self) -> &ModelInfo {
        &self.shared.model
    }

    /// The cluster's counters and histograms.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }
}

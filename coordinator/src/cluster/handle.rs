//! What the rest of the program knows of a running cluster.

use std::sync::Arc;
use std::time::SystemTime;

use brigade_shard::model_file::Fingerprint;
use brigade_shard::tokenizer::Tokenizer;
use brigade_shard::units::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::generation::{Generation, GenerationError, GenerationRequest};
use crate::metrics::Metrics;
use crate::status::ClusterStatus;
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
    status: watch::Receiver<Arc<ClusterStatus>>,
}

/// A request on its way to the task that owns the scheduler.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: GenerationRequest,
    pub(super) reply: oneshot::Sender<Result<Generation, GenerationError>>,
}

impl ClusterHandle {
    pub(super) fn new(
        model: ModelInfo,
        metrics: Metrics,
        submissions: mpsc::Sender<Submission>,
        status: watch::Receiver<Arc<ClusterStatus>>,
    ) -> ClusterHandle {
        ClusterHandle { shared: Arc::new(Shared { model, metrics, submissions, status }) }
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

//! All that the HTTP API sees of a cluster.

use std::future::Future;
use std::sync::Arc;

use brigade_shard::plan::{Forecast, Load};

use crate::caches::Caches;
use crate::cluster::{ClusterHandle, DrainError, Drained, ModelInfo, PinError, PinOrder, Pinned, Stopping};
use crate::compare::choices::{ChoiceLoads, SideChoices};
use crate::generation::{Generation, GenerationError, GenerationRequest};
use crate::planning::LiveDevices;
use crate::status::{ClusterStatus, EventRecord, StepTrace};

/// What the API needs of the cluster behind it, and nothing more. [`ClusterHandle`] is the one that serves; a test can
/// stand in another.
pub trait Engine: Clone + Send + Sync + 'static {
    /// Starts a generation, or queues it.
    ///
    /// # Errors
    /// [`GenerationError::NotReady`], [`GenerationError::ContextExceeded`] or [`GenerationError::Overloaded`].
    fn generate(
        &self,
        request: GenerationRequest,
    ) -> impl Future<Output = Result<Generation, GenerationError>> + Send;

    /// Begins to empty a worker, by its name or id; or, not to `drain`, lets it be used again.
    ///
    /// # Errors
    /// Where there is no such worker, or the others have no room for what it holds.
    fn drain(&self, worker: &str, drain: bool) -> impl Future<Output = Result<Drained, DrainError>> + Send;

    /// Has plans made over certain workers alone, one stage each.
    ///
    /// # Errors
    /// Where there is no such worker, or these workers cannot hold the model as wished.
    fn pin(&self, order: PinOrder) -> impl Future<Output = Result<Pinned, PinError>> + Send;

    /// Lets the planner choose again.
    ///
    /// # Errors
    /// [`PinError::Stopping`].
    fn unpin(&self) -> impl Future<Output = Result<(), PinError>> + Send;

    /// What a comparison could measure on the workers that are there.
    ///
    /// # Errors
    /// Where the cluster is being ended.
    fn choices(&self, loads: ChoiceLoads) -> impl Future<Output = Result<SideChoices, Stopping>> + Send;

    /// The cluster's state as of now.
    fn status(&self) -> Arc<ClusterStatus>;

    /// The attached workers' devices as the planner sees them.
    ///
    /// # Errors
    /// Where the cluster is being ended.
    fn devices(&self) -> impl Future<Output = Result<LiveDevices, Stopping>> + Send;

    /// What to expect of the plan that is served under a load; `None` while none is.
    ///
    /// # Errors
    /// Where the cluster is being ended.
    fn forecast(&self, load: &Load) -> impl Future<Output = Result<Option<Forecast>, Stopping>> + Send;

    /// The newest steps that have come home with a larger number than `after`, oldest first.
    fn timeline(&self, after: u64) -> Vec<StepTrace>;

    /// Events with a larger number than `after`, oldest first; of more than `most` the newest.
    fn events(&self, after: u64, most: usize) -> impl Future<Output = Vec<EventRecord>> + Send;

    /// What workers keep of models that came from other machines, where there are real ones.
    fn caches(&self) -> Option<Caches> {
        None
    }

    /// The model served.
    fn model(&self) -> &ModelInfo;

    /// All metrics in the OpenMetrics text format, with its end marker.
    fn metrics(&self) -> String;
}

impl Engine for ClusterHandle {
    fn generate(
        &self,
        request: GenerationRequest,
    ) -> impl Future<Output = Result<Generation, GenerationError>> + Send {
        ClusterHandle::generate(self, request)
    }

    fn drain(&self, worker: &str, drain: bool) -> impl Future<Output = Result<Drained, DrainError>> + Send {
        ClusterHandle::drain(self, worker, drain)
    }

    fn pin(&self, order: PinOrder) -> impl Future<Output = Result<Pinned, PinError>> + Send {
        ClusterHandle::pin(self, order)
    }

    fn unpin(&self) -> impl Future<Output = Result<(), PinError>> + Send {
        ClusterHandle::unpin(self)
    }

    fn choices(&self, loads: ChoiceLoads) -> impl Future<Output = Result<SideChoices, Stopping>> + Send {
        ClusterHandle::choices(self, loads)
    }

    fn status(&self) -> Arc<ClusterStatus> {
        ClusterHandle::status(self)
    }

    fn devices(&self) -> impl Future<Output = Result<LiveDevices, Stopping>> + Send {
        ClusterHandle::devices(self)
    }

    fn forecast(&self, load: &Load) -> impl Future<Output = Result<Option<Forecast>, Stopping>> + Send {
        ClusterHandle::forecast(self, load)
    }

    fn timeline(&self, after: u64) -> Vec<StepTrace> {
        ClusterHandle::timeline(self, after)
    }

    fn events(&self, after: u64, most: usize) -> impl Future<Output = Vec<EventRecord>> + Send {
        ClusterHandle::events(self, after, most)
    }

    fn caches(&self) -> Option<Caches> {
        Some(ClusterHandle::caches(self))
    }

    fn model(&self) -> &ModelInfo {
        ClusterHandle::model(self)
    }

    fn metrics(&self) -> String {
        ClusterHandle::metrics(self).encode()
    }
}

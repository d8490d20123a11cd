//! What workers keep of models that came from other machines: listed, removed and checked from here.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use brigade_proto::delivery::{CachedModel, DeliveryError, Holder, Source};
use brigade_proto::ids::Peer;
use brigade_proto::link::Transport;
use brigade_shard::model_file::Fingerprint;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::shelf::Holders;
use crate::status::ClusterStatus;

/// How long a worker may take to be reached.
const REACHED: Duration = Duration::from_secs(5);

/// The caches of all workers that are attached.
#[derive(Clone, Debug)]
pub struct Caches {
    transport: Arc<Transport>,
    holders: Holders,
}

/// What is to be done with a model in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Remove it.
    Remove,
    /// Check it.
    Verify,
}

/// What a worker says of its cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerCache {
    /// The worker.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Why it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The models that are there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<CachedStatus>,
    /// What removing one has freed, in bytes; `None` where it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freed_bytes: Option<u64>,
    /// Chunks that were found to be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<u32>,
    /// Chunks that were not, in words. They have been let go of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}

/// A model in a cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CachedStatus {
    /// Its identity, in hexadecimal.
    pub fingerprint: String,
    /// What its header calls it.
    pub name: String,
    /// What of it is there, in bytes.
    pub bytes: u64,
    /// All of its tensors, in bytes.
    pub model_bytes: u64,
    /// When it was last used, in seconds since 1970, where that is known.
    pub used_at: Option<u64>,
    /// Whether a stage is loaded from it.
    pub in_use: bool,
}

impl From<CachedModel> for CachedStatus {
    fn from(kept: CachedModel) -> CachedStatus {
        CachedStatus {
            fingerprint: kept.model.to_string(),
            name: kept.name,
            bytes: kept.bytes.0,
            model_bytes: kept.model_bytes.0,
            used_at: kept.used_at,
            in_use: kept.in_use,
        }
    }
}

impl Caches {
    pub(crate) fn new(transport: Arc<Transport>, holders: Holders) -> Caches {
        Caches { transport, holders }
    }

    /// What is in the caches of all workers, or of one, by its name or id.
    pub async fn list(&self, status: &ClusterStatus, worker: Option<&str>) -> Vec<WorkerCache> {
        let ask = |source: Source| async move {
            let models = source.kept().await?;
            let models = models.into_iter().map(CachedStatus::from).collect();
            Ok(WorkerCache { models, ..WorkerCache::default() })
        };
        self.each(status, worker, ask).await
    }

    /// Does something with a model in all caches, or in one.
    pub async fn act(
        &self,
        deed: Deed,
        model: Fingerprint,
        status: &ClusterStatus,
        worker: Option<&str>,
    ) -> Vec<WorkerCache> {
        let ask = |source: Source| async move {
            let done = match deed {
                Deed::Remove => source
                    .remove(&model)
                    .await
                    .map(|freed| WorkerCache { freed_bytes: Some(freed.0), ..WorkerCache::default() }),
                Deed::Verify => source.verify(&model).await.map(|checked| WorkerCache {
                    chunks: Some(checked.chunks),
                    damaged: checked.damaged,
                    ..WorkerCache::default()
                }),
            };
            match done {
                Err(DeliveryError::NotHere { .. }) => Ok(WorkerCache::default()),
                done => done,
            }
        };
        self.each(status, worker, ask).await
    }

    async fn each<F>(
        &self,
        status: &ClusterStatus,
        worker: Option<&str>,
        ask: impl Fn(Source) -> F,
    ) -> Vec<WorkerCache>
    where
        F: Future<Output = Result<WorkerCache, DeliveryError>>,
    {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let named = holders.into_iter().filter_map(|holder| {
            let Peer::Worker(id) = &holder.peer else { return None };
            let id = id.to_string();
            let known = status.workers.iter().find(|worker| worker.id == id);
            let name = known.map_or_else(|| id.clone(), |worker| worker.name.clone());
            worker.is_none_or(|wanted| wanted == id || wanted == name).then_some((id, name, holder))
        });
        let asked = named.map(|(id, name, holder)| {
            let ask = &ask;
            async move {
                let told = match self.reach(&holder).await {
                    Ok(source) => ask(source).await.map_err(|error| error.to_string()),
                    Err(error) => Err(error),
                };
                match told {
                    Ok(told) => WorkerCache { id, name, ..told },
                    Err(error) => WorkerCache { id, name, error: Some(error), ..WorkerCache::default() },
                }
            }
        });
        join_all(asked).await
    }

    async fn reach(&self, holder: &Holder) -> Result<Source, String> {
        let dialling = self.transport.dial_source(&holder.peer, &holder.addresses);
        match timeout(REACHED, dialling).await {
            Ok(source) => source.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it cannot be reached within {} s", REACHED.as_secs())),
        }
    }
}

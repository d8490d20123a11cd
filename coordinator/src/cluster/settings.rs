//! What a cluster is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use brigade_proto::control::CacheDtype;
use brigade_proto::step::WireDtype;

use crate::scheduler::Speculation;
use crate::store::Store;
use crate::traces::TraceSettings;

/// Rows of a prompt chunk unless told otherwise: long enough that weights are read once for many rows, short enough
/// that running streams wait little for one.
pub const DEFAULT_PREFILL_CHUNK: u32 = 128;

/// What to serve, where, and for whom.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The model's file, or the first part of a split one. Only headers are read.
    pub model: PathBuf,
    /// The name that requests give.
    pub model_id: String,
    /// The file of a model that drafts answers, and its name.
    pub draft: Option<(PathBuf, String)>,
    /// This program, which renders chat templates in processes of its own.
    pub program: PathBuf,
    /// The store whose pulls the status tells of.
    pub store: Option<Store>,
    /// Where identity, tokens and numbers are kept.
    pub state_dir: PathBuf,
    /// TCP address of the control plane; port 0 takes any free one.
    pub control: SocketAddr,
    /// UDP address of the data plane; `None` for the address and port that the control plane got.
    pub data: Option<SocketAddr>,
    /// How many workers must be attached before the first plan is made; they all get a stage.
    pub min_workers: usize,
    /// How many layers each stage holds, in order, while there are as many workers; empty where the planner decides.
    pub split: Vec<usize>,
    /// Longest sequence, in tokens; `None` for what fits.
    pub context: Option<u32>,
    /// How many sequences of that length must fit at a time; at least 1.
    pub parallel: u32,
    /// Most rows of a prompt chunk, and of any step; at least 1.
    pub prefill_chunk: u32,
    /// How stages keep keys and values.
    pub cache_dtype: CacheDtype,
    /// How hidden states cross links.
    pub wire: WireDtype,
    /// Where drafts of answers come from.
    pub speculation: Speculation,
    /// Whether steps may be sent ahead of their tokens, which then go from the last stage straight to the first.
    pub short_way: bool,
    /// Most requests that wait for cache before further ones are refused.
    pub max_waiting: usize,
    /// How long requests are kept while no plan can be made.
    pub park: Duration,
    /// Where traces go; `None` where requests are not traced.
    pub traces: Option<TraceSettings>,
}

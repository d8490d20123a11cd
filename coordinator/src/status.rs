//! The cluster's state as `/api/status` gives it and `brigade status` shows it.

use std::fmt;

use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

/// All of it, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Version of the coordinator.
    pub version: String,
    /// The coordinator's start on its state directory.
    pub incarnation: u64,
    /// What the cluster is doing.
    pub phase: Phase,
    /// What it is waiting for, or why it cannot serve.
    pub reason: Option<String>,
    /// Whether the next plan is on its way, after one was lost or given up for it: requests wait for it.
    pub recovering: bool,
    /// The model.
    pub model: ModelStatus,
    /// The plan's number; 0 before the first plan.
    pub epoch: u64,
    /// Longest sequence, in tokens; the last plan's while there is none.
    pub context: u32,
    /// Cache tokens of the whole pipeline.
    pub cache_tokens: u32,
    /// Cache tokens reserved for running sequences.
    pub cache_tokens_reserved: u32,
    /// How hidden states cross links: `f32`, `f16` or `bf16`.
    pub wire: String,
    /// Cache tokens kept for prompts that begin with them, as long as nobody needs their place.
    pub cache_tokens_kept: u32,
    /// The pipeline, from first to last.
    pub stages: Vec<StageStatus>,
    /// Every worker attached or lost lately.
    pub workers: Vec<WorkerStatus>,
    /// The models that are being pulled into the store of the coordinator's machine.
    #[serde(default)]
    pub pulls: Vec<PullStatus>,
    /// The model that drafts answers; `None` where there is none.
    #[serde(default)]
    pub draft: Option<DraftStatus>,
    /// What the planner predicts.
    pub predicted: PredictionStatus,
    /// Requests.
    pub requests: RequestStatus,
    /// The last steps, together.
    pub steps: StepStatus,
    /// The last recovery.
    pub recovery: RecoveryStatus,
    /// The last change of plan by choice.
    #[serde(default)]
    pub moves: MoveStatus,
    /// The last plan that failed.
    #[serde(default)]
    pub failure: FailureStatus,
    /// What becomes of a better plan, or of one that empties a worker, while one serves; for people.
    #[serde(default)]
    pub note: Option<String>,
    /// The names of the workers that plans are pinned to, one stage each; empty where the planner chooses.
    #[serde(default)]
    pub pinned: Vec<String>,
    /// For how many seconds they have been; 0 where they are not.
    #[serde(default)]
    pub pinned_s: f64,
    /// Who wanted that, in their own words; `None` where nobody said.
    #[serde(default)]
    pub pinned_by: Option<String>,
    /// Why the last pin ended, for people, for a minute; `None` where it was taken back.
    #[serde(default)]
    pub pin_ended: Option<String>,
    /// How the cluster is as a whole: as bad as the worst of its stages, and `loading` or `unreachable` while it cannot
    /// serve.
    #[serde(default)]
    pub health: Health,
    /// What is done at the moment.
    #[serde(default)]
    pub rates: RateStatus,
    /// Requests that run or wait, oldest first; at most [`MOST_ACTIVE`].
    #[serde(default)]
    pub active: Vec<ActiveRequest>,
}

/// Most requests that the status lists one by one.
pub const MOST_ACTIVE: usize = 64;

/// Something that happened, as `/api/events` and `brigade events` list it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Its number; later events have larger ones, also after a restart.
    pub id: u64,
    /// When it happened, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about, such as `worker`, `plan`, `health`, `link` or `coordinator`.
    pub kind: String,
    /// The worker that it concerns, by its name, if one.
    pub worker: Option<String>,
    /// What happened, for people; never a prompt or an answer.
    pub text: String,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    #[default]
    Info,
    /// Something is not as it should be; answers go on.
    Warning,
    /// Answers have stopped, or wait.
    Error,
}

impl Severity {
    /// All of them, from the least.
    pub const ALL: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Error];

    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }

    /// The one with this word.
    pub fn parse(word: &str) -> Option<Severity> {
        Severity::ALL.into_iter().find(|severity| severity.as_str() == word)
    }
}

/// How something is, why, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How it is.
    pub state: HealthState,
    /// Why it is not `ok`, for people; or what might soon be.
    pub reason: Option<String>,
    /// What to do about it, for people.
    pub advice: Option<String>,
}

/// How something is, from best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// As it should be.
    #[default]
    Ok,
    /// Reading weights.
    Loading,
    /// Being emptied, or empty because that was wished.
    Draining,
    /// Slower than was predicted of it.
    Slow,
    /// Held back by heat.
    Hot,
    /// Without memory: its cache is used up and requests wait for it, or its machine has none left.
    Full,
    /// Its memory is swapped out: everything becomes slow.
    Swapping,
    /// It answers, and does not get done with a step.
    Hung,
    /// It does not answer.
    Unreachable,
}

impl HealthState {
    /// All of them, from best to worst.
    pub const ALL: [HealthState; 9] = [
        HealthState::Ok,
        HealthState::Loading,
        HealthState::Draining,
        HealthState::Slow,
        HealthState::Hot,
        HealthState::Full,
        HealthState::Swapping,
        HealthState::Hung,
        HealthState::Unreachable,
    ];

    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            HealthState::Ok => "ok",
            HealthState::Loading => "loading",
            HealthState::Draining => "draining",
            HealthState::Slow => "slow",
            HealthState::Hot => "hot",
            HealthState::Full => "full",
            HealthState::Swapping => "swapping",
            HealthState::Hung => "hung",
            HealthState::Unreachable => "unreachable",
        }
    }
}

/// What the cluster does each second, over the last ten or so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RateStatus {
    /// Prompt tokens computed.
    pub prompt_tokens_per_s: f64,
    /// Tokens generated.
    pub generated_tokens_per_s: f64,
    /// Requests that ended.
    pub requests_per_s: f64,
    /// Median time to the first token lately, in milliseconds; 0 where none was measured.
    pub ttft_ms_p50: f64,
    /// Median time between two tokens of a request lately that did not come together, in milliseconds; 0 where none was
    /// measured.
    pub itl_ms_p50: f64,
}

/// A request that runs or waits. Its prompt and answer are not told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActiveRequest {
    /// Its number since the coordinator's start.
    pub id: u64,
    /// `waiting`, `prefill`, `decode` or `recovering`.
    pub state: String,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Those of them that are computed, or were found in the cache.
    pub prompt_tokens_done: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// The most that it may generate.
    pub max_tokens: u32,
    /// Seconds since it came.
    pub age_s: f64,
}

/// A step that has come home, for a picture of what ran where. Times count from [`StepTrace::sent_ms`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTrace {
    /// Its number, counted as steps come home.
    pub step: u64,
    /// `prefill` or `decode`.
    pub kind: String,
    /// Rows.
    pub rows: u32,
    /// When it was sent, in milliseconds since the coordinator's start.
    pub sent_ms: f64,
    /// From sending it to its result, in microseconds.
    pub took_us: u32,
    /// What its stages did, in their order.
    pub stages: Vec<StageTrace>,
}

/// What a stage did for a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTrace {
    /// When it came, in microseconds since it was sent: the time on links is taken to be the same for every hop.
    pub came_us: u32,
    /// How long it waited, in microseconds.
    pub queued_us: u32,
    /// How long it was computed, in microseconds.
    pub computed_us: u32,
}

/// A machine. What is `None` its system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// All of its memory, in bytes; 0 where it has not been told yet.
    pub memory_bytes: u64,
    /// What a program could get without anything being swapped out, in bytes.
    pub memory_available_bytes: u64,
    /// What is swapped out, in bytes.
    pub swap_used_bytes: u64,
    /// Bytes per second read back from swap, and from files that had been dropped.
    pub paged_in_bytes_per_s: Option<f64>,
    /// How busy its processors are together, from 0 to 1.
    pub processors_busy: Option<f32>,
    /// Its processors' temperature.
    pub temperature_celsius: Option<f32>,
    /// What its processors draw.
    pub power_watts: Option<f32>,
    /// Whether its processors are held back.
    pub throttle: Option<Throttling>,
}

/// Whether a processor or card is held back below its usual clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttling {
    /// It is not.
    #[default]
    None,
    /// By heat.
    Heat,
    /// By what it may draw.
    Power,
}

/// A worker's process. What is `None` its system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// How many processors it keeps busy.
    pub processors: Option<f32>,
    /// Bytes per second that it reads from disks.
    pub read_bytes_per_s: Option<f64>,
    /// Bytes per second that it writes to disks.
    pub written_bytes_per_s: Option<f64>,
}

/// A worker's card. What is `None` its driver does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CardStatus {
    /// All of its memory, in bytes.
    pub memory_bytes: u64,
    /// What is free of it, in bytes.
    pub memory_free_bytes: u64,
    /// How busy it is, from 0 to 1.
    pub busy: Option<f32>,
    /// Its temperature.
    pub temperature_celsius: Option<f32>,
    /// What it draws.
    pub power_watts: Option<f32>,
    /// Whether it is held back.
    pub throttle: Option<Throttling>,
}

/// A link of the data plane, seen from a worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The other end's worker id; `coordinator` for the coordinator.
    pub peer: String,
    /// The other end's name, for people.
    pub peer_name: String,
    /// Where it is reached.
    pub address: String,
    /// Why this address and no other, for people; empty at the end that was dialled.
    pub choice: String,
    /// Round trip, in microseconds.
    pub rtt_us: u32,
    /// Bytes sent each second lately.
    pub sent_bytes_per_s: f64,
    /// Bytes received each second lately.
    pub received_bytes_per_s: f64,
    /// Share of the packets sent lately that were lost, from 0 to 1.
    pub loss: f64,
    /// Packets lost since the link stands.
    pub lost_packets: u64,
}

/// How long the last change of plan by choice kept answers waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveStatus {
    /// Changes since the start.
    pub count: u64,
    /// From the end of the old plan until the new one served, in milliseconds.
    pub load_ms: u64,
    /// From then until what ran was where it had been, in milliseconds.
    pub replay_ms: u64,
}

/// The last plan that failed, while it was brought up or while it served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureStatus {
    /// Failures since the start.
    pub count: u64,
    /// Why, for people.
    pub reason: String,
}

/// How long the last recovery took, from the loss of a plan until what ran went on, in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// Recoveries since the start.
    pub count: u64,
    /// From the last sign of life until the plan was given up, in milliseconds.
    pub detect_ms: u64,
    /// From then until stages of the next plan were being loaded, in milliseconds.
    pub plan_ms: u64,
    /// From then until it served, in milliseconds.
    pub load_ms: u64,
    /// From then until what ran was where it had been, in milliseconds.
    pub replay_ms: u64,
}

/// What the cluster is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Too few workers, or too little memory among them.
    #[default]
    Waiting,
    /// Stages are being loaded.
    Loading,
    /// Links are being made.
    Connecting,
    /// Requests are served.
    Serving,
    /// The coordinator is shutting down.
    Stopping,
}

impl Phase {
    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Loading => "loading",
            Phase::Connecting => "connecting",
            Phase::Serving => "serving",
            Phase::Stopping => "stopping",
        }
    }
}

/// The model served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// The name that requests give.
    pub id: String,
    /// The model's identity, in hexadecimal.
    pub fingerprint: String,
    /// Number of layers.
    pub layers: u32,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Number of token ids: those of a prompt are below it.
    pub vocabulary: u32,
}

/// A model that drafts answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DraftStatus {
    /// Its name.
    pub id: String,
    /// What it is doing; requests are served all the same.
    pub phase: Phase,
    /// Why it does not draft; `None` while it can.
    pub reason: Option<String>,
    /// The name of the worker that holds it, or is to hold it.
    pub worker: Option<String>,
    /// What it takes of that worker's budget, in bytes.
    pub memory_bytes: u64,
    /// Share of its weights read, from 0 to 1.
    pub loaded: f64,
    /// Tokens that its cache holds.
    pub cache_tokens: u32,
    /// Those reserved for running sequences.
    pub cache_tokens_reserved: u32,
    /// Whether it is not asked at the moment, since answers would be no faster with it.
    pub rests: bool,
}

/// One stage of the pipeline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageStatus {
    /// Place in the pipeline, from 0.
    pub stage: u32,
    /// The worker that holds it.
    pub worker: String,
    /// That worker's name.
    pub name: String,
    /// First layer.
    pub layer_start: u32,
    /// One past the last layer.
    pub layer_end: u32,
    /// Whether it holds the embedding.
    pub embedding: bool,
    /// Whether it holds the head.
    pub head: bool,
    /// `loading`, `loaded`, `connected`, `active` or `failed`.
    pub state: String,
    /// Share of the weights read, from 0 to 1.
    pub loaded: f64,
    /// What of its weights comes from other machines; `None` where all of them are there, or it is loaded.
    #[serde(default)]
    pub delivery: Option<DeliveryStatus>,
    /// How many of its layers, the last of them, are read again for every step.
    #[serde(default)]
    pub streamed_layers: u32,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Bytes of KV cache.
    pub cache_bytes: u64,
    /// Bytes of activations and workspace.
    pub workspace_bytes: u64,
    /// The address that the next stage was reached at.
    pub next_address: Option<String>,
    /// Round trip to the next stage, in microseconds.
    pub next_rtt_us: Option<u32>,
    /// Median time a step waited here lately, in microseconds.
    pub queued_us_p50: u32,
    /// Median time a decode step was computed here lately, in microseconds.
    pub decode_us_p50: u32,
    /// Median time a prefill step was computed here lately, in microseconds.
    pub prefill_us_p50: u32,
    /// Where its time has gone since the plan began to serve.
    pub totals: StageTotals,
    /// How it is.
    #[serde(default)]
    pub health: Health,
    /// 99th percentile of the time a step waited here lately, in microseconds.
    #[serde(default)]
    pub queued_us_p99: u32,
    /// 99th percentile of the time a decode step was computed here lately, in microseconds.
    #[serde(default)]
    pub decode_us_p99: u32,
    /// Median time that sending a step on took here lately, in microseconds.
    #[serde(default)]
    pub sent_us_p50: u32,
    /// What was predicted of a decode step of one row, in microseconds.
    #[serde(default)]
    pub predicted_decode_us: u32,
    /// Its share of what a decode step is computed for on all stages together, from 0 to 1; 0 where none was measured.
    #[serde(default)]
    pub step_share: f64,
    /// How much of the last seconds it computed, from 0 to 1.
    #[serde(default)]
    pub busy: f64,
}

/// Where a stage's time has gone since its plan began to serve, over all steps that have come home. The values only
/// grow, so that two readings tell what lies between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTotals {
    /// Decode steps.
    pub decode_steps: u64,
    /// Time that they were computed, in microseconds.
    pub decode_us: u64,
    /// Prefill steps.
    pub prefill_steps: u64,
    /// Time that they were computed, in microseconds.
    pub prefill_us: u64,
    /// Time that steps of both kinds waited before they were computed, in microseconds; several may wait at once.
    pub queued_us: u64,
    /// Time that sending took, in microseconds. It goes on beside computing.
    pub sent_us: u64,
    /// Hidden states that were sent on, in bytes.
    pub sent_bytes: u64,
}

/// How weights come from other machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeliveryStatus {
    /// Bytes that have come.
    pub fetched_bytes: u64,
    /// Bytes that were missing.
    pub wanted_bytes: u64,
    /// Bytes per second, lately.
    pub bytes_per_s: f64,
    /// How long the rest takes at that, in seconds; `None` while nothing comes.
    pub eta_s: Option<f64>,
    /// Where they come from, whoever gave most first.
    pub sources: Vec<String>,
}

impl fmt::Display for DeliveryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} fetched", Bytes(self.fetched_bytes), Bytes(self.wanted_bytes))?;
        if let Some(source) = self.sources.first() {
            write!(f, " from {source}")?;
        }
        if self.sources.len() > 1 {
            write!(f, " and {} more", self.sources.len() - 1)?;
        }
        self.write_pace(f)
    }
}

impl DeliveryStatus {
    /// How fast, and for how long yet.
    fn write_pace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes_per_s > 0.0 {
            write!(f, " at {:.0} MB/s", self.bytes_per_s / 1e6)?;
        }
        match self.eta_s {
            Some(left) if left >= 120.0 => write!(f, ", {:.0} min left", left / 60.0),
            Some(left) if left >= 1.0 => write!(f, ", {left:.0} s left"),
            _ => Ok(()),
        }
    }
}

/// A model that is being pulled into the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullStatus {
    /// What it will be called.
    pub name: String,
    /// What is being done: `fetching`, `copying` or `checking`.
    pub phase: String,
    /// How far that is; it wants 0 bytes where nobody has said how many there are.
    pub delivery: DeliveryStatus,
}

impl fmt::Display for PullStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PullStatus { name, phase, delivery } = self;
        write!(f, "{name}: {phase} {}", Bytes(delivery.fetched_bytes))?;
        if delivery.wanted_bytes > 0 {
            write!(f, " of {}", Bytes(delivery.wanted_bytes))?;
        }
        if let Some(source) = delivery.sources.first() {
            write!(f, " from {source}")?;
        }
        delivery.write_pace(f)
    }
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its lasting id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its machine's name.
    pub host: String,
    /// `attached` or `lost`; `draining` while it is being emptied, and `drained` once it holds nothing.
    pub state: String,
    /// Where its control connection comes from.
    pub address: String,
    /// `cpu`, `cuda:0` or `metal`.
    pub device: String,
    /// The device in words.
    pub device_name: String,
    /// What it may use, in bytes.
    pub budget_bytes: u64,
    /// Resident memory of its process, in bytes.
    pub resident_bytes: u64,
    /// Highest resident memory of its process, in bytes.
    pub peak_resident_bytes: u64,
    /// Compute threads.
    pub threads: u32,
    /// How many times as long as needed its steps take: 1, but for measurements.
    pub stretch: f64,
    /// Calibrated bytes per second of its matrix-vector product.
    pub bandwidth_bytes_per_s: f64,
    /// Calibrated floating-point operations per second of its matrix-matrix product.
    pub flops_per_s: f64,
    /// Seconds since its last message.
    pub last_seen_s: f64,
    /// Sequences that hold cache on it.
    pub sequences: u32,
    /// Cache tokens in use on it.
    pub cache_tokens_used: u32,
    /// Bytes of weights that it has got from other machines since it started.
    #[serde(default)]
    pub fetched_bytes: u64,
    /// Bytes of weights that it has given to others.
    #[serde(default)]
    pub given_bytes: u64,
    /// Frames it dropped because their fence was not the active one.
    pub frames_fenced: u64,
    /// How it is.
    #[serde(default)]
    pub health: Health,
    /// Its machine.
    #[serde(default)]
    pub machine: MachineStatus,
    /// Its process.
    #[serde(default)]
    pub process: ProcessStatus,
    /// Its card; `None` where it computes on the machine's processors.
    #[serde(default)]
    pub card: Option<CardStatus>,
    /// Its links of the data plane.
    #[serde(default)]
    pub links: Vec<LinkStatus>,
}

/// What the planner predicts of the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PredictionStatus {
    /// One stream's decode speed.
    pub decode_tokens_per_s: f64,
    /// Time to the first token of a prompt of 512 tokens, in milliseconds.
    pub ttft_ms: f64,
    /// What limits the plan, in words.
    pub bottleneck: String,
}

/// Counts of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestStatus {
    /// Generations that hold cache.
    pub running: u32,
    /// Generations that wait for cache.
    pub waiting: u32,
    /// Ended by themselves, since the start.
    pub finished: u64,
    /// Ended by their client, since the start.
    pub cancelled: u64,
    /// Ended by a failure, since the start.
    pub failed: u64,
    /// Prompt tokens computed, since the start.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the cache, since the start.
    pub prompt_tokens_reused: u64,
    /// Requests whose prompt began with tokens in the cache, since the start.
    pub prefix_hits: u64,
    /// Cache pages kept for prompts to come and given up for others, since the start.
    pub pages_evicted: u64,
    /// Tokens generated, since the start.
    pub generated_tokens: u64,
    /// Tokens guessed and computed ahead, since the start.
    pub draft_tokens: u64,
    /// Those of them that a draft model guessed.
    #[serde(default)]
    pub draft_model_tokens: u64,
    /// Those of these that became part of an answer.
    #[serde(default)]
    pub draft_model_tokens_accepted: u64,
    /// Those of them that became part of an answer, since the start.
    pub draft_tokens_accepted: u64,
    /// Steps sent before their tokens were known, since the start.
    pub steps_ahead: u64,
    /// Requests that went on after the loss of a plan, since the start.
    pub recovered: u64,
    /// Those of them whose tokens may be others than without the loss, since the start.
    pub recovered_inexact: u64,
    /// Times that a request went over to another plan by choice, since the start.
    #[serde(default)]
    pub moved: u64,
}

/// The last steps of the pipeline, from sending to the result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepStatus {
    /// Steps since the start.
    pub count: u64,
    /// Median time of a decode step lately, in microseconds.
    pub decode_us_p50: u32,
    /// 99th percentile of it.
    pub decode_us_p99: u32,
    /// Median time of a prefill step lately, in microseconds.
    pub prefill_us_p50: u32,
    /// Median share of a decode step that no stage accounts for (links and coordinator), in microseconds.
    pub wire_us_p50: u32,
    /// Time from sending to the result of all steps since the plan began to serve, in microseconds.
    pub took_us: u64,
    /// The share of it that no stage accounts for, in microseconds.
    pub wire_us: u64,
}

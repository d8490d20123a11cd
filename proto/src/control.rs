//! What coordinator and worker say to each other on the control plane.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use brigade_shard::kernels::Kernels;
use brigade_shard::layers::Shard;
use brigade_shard::plan::{KernelSpeed, SharedHost};
use brigade_shard::units::Bytes;

use crate::delivery::Edition;
use crate::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, StepId, WorkerId};
use crate::step::WireDtype;

/// Version of both planes; the two ends must have the same.
pub const PROTOCOL_VERSION: u32 = 12;

/// What a worker is and can do: the first message of an `Attach` stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// The worker's name, chosen by its owner; for people.
    pub name: String,
    /// The machine's name.
    pub host: String,
    /// Version of the program.
    pub version: String,
    /// Where it computes.
    pub device: DeviceKind,
    /// The device in words, such as the processor's name.
    pub device_name: String,
    /// What it may use for weights, cache, activations and workspace.
    pub budget: Bytes,
    /// Compute threads.
    pub threads: u32,
    /// Weight bytes per second that its matrix-vector product reads, as calibrated.
    pub bandwidth_bytes_per_s: f64,
    /// Floating-point operations per second of its matrix-matrix product, as calibrated.
    pub flops_per_s: f64,
    /// Where its data plane can be reached.
    pub data_addresses: Vec<SocketAddr>,
    /// The UDP port at the same addresses that gives weights to others; 0 where none does.
    pub delivery_port: u16,
    /// How many times as long as its device needs it takes for every step: 1, but for measurements.
    pub stretch: f64,
    /// How fast its kernels are by type of matrix and rows at a time, as calibrated.
    pub kernel_speeds: Vec<KernelSpeed>,
    /// What all processors of its machine do together; `None` where it computes elsewhere.
    pub shared_host: Option<SharedHost>,
    /// Bytes per second at which it reads weights for every step that do not fit its budget; `None` where it may not.
    pub offload_bytes_per_s: Option<f64>,
    /// Whether it turns weights of types that its device has no kernels for into others.
    pub converts: bool,
}

impl Capabilities {
    /// What it has kernels for, with those types that it turns into others.
    pub fn kernels(&self) -> Kernels {
        let own = self.device.kernels();
        if self.converts { own.converting() } else { own }
    }
}

/// The kind of device a worker computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA card, by its index.
    Cuda(u32),
    /// An Apple GPU.
    Metal,
}

impl DeviceKind {
    /// What workers on such devices have kernels for.
    pub fn kernels(self) -> Kernels {
        match self {
            DeviceKind::Cpu => Kernels::CPU,
            DeviceKind::Cuda(_) | DeviceKind::Metal => Kernels::CANDLE,
        }
    }
}

/// As `--device` takes it: `cpu`, `cuda:0` or `metal`.
impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKind::Cpu => f.pad("cpu"),
            DeviceKind::Cuda(number) => f.pad(&format!("cuda:{number}")),
            DeviceKind::Metal => f.pad("metal"),
        }
    }
}

/// A text that names no device.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a device: write cpu, cuda:N (N is the card's number, from 0) or metal")]
pub struct UnknownDevice(pub String);

impl FromStr for DeviceKind {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        match text.split_once(':') {
            None if text == "cpu" => Ok(DeviceKind::Cpu),
            None if text == "metal" => Ok(DeviceKind::Metal),
            None if text == "cuda" => Ok(DeviceKind::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(DeviceKind::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

/// From the coordinator to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// The answer to the capabilities: the worker is attached.
    Welcome(Welcome),
    /// Read a shard into memory.
    Load(LoadStage),
    /// Open the links of a loaded stage.
    Connect(ConnectStage),
    /// Accept frames of this fence from now on.
    Activate {
        /// The deployment whose stage is meant.
        deployment: DeploymentId,
        /// What frames must carry.
        fence: Fence,
    },
    /// Drop a stage, its cache and its links; also ends a load under way.
    Retire {
        /// The deployment whose stage is meant.
        deployment: DeploymentId,
    },
    /// Have a shard's weights resident before it is to be loaded, without disturbing the deployment's stage: what that
    /// holds is shared, and the rest read beside it.
    Prepare(LoadStage),
    /// Let go of weights that were prepared.
    Unprepare {
        /// The deployment whose stage is meant.
        deployment: DeploymentId,
    },
    /// Answer with the same number.
    Probe {
        /// Any number.
        nonce: u64,
    },
    /// Find out whether another worker can be reached, and answer with the same number.
    ProbeLink {
        /// Any number.
        nonce: u64,
        /// Who.
        peer: Peer,
        /// Where it may be.
        addresses: Vec<SocketAddr>,
    },
    /// End: the coordinator will not use this worker again.
    Shutdown {
        /// Why, for the worker's log.
        reason: String,
    },
}

/// What a worker must know of its coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// The coordinator's start.
    pub incarnation: Incarnation,
    /// UDP port of its data plane, at the host the worker dialled.
    pub data_port: u16,
    /// How often the worker reports, in milliseconds.
    pub heartbeat_ms: u32,
}

/// A shard to load.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadStage {
    /// The deployment that the stage belongs to.
    pub deployment: DeploymentId,
    /// The plan.
    pub epoch: Epoch,
    /// The model's identity ([`brigade_shard::model_file::Header::fingerprint`]), in hexadecimal.
    pub fingerprint: String,
    /// Of which contents the coordinator's file is: what a stage holds of another edition is of no use.
    pub edition: Edition,
    /// The file's base name on the coordinator's machine: where to look first, never a path.
    pub file_hint: String,
    /// Which part of the model.
    pub shard: Shard,
    /// Place in the pipeline, from 0.
    pub stage: u32,
    /// Number of stages.
    pub stages: u32,
    /// What the stage must be able to hold.
    pub room: StageRoom,
    /// The last so many layers of the shard are read again for every step instead of being resident.
    pub streamed_layers: u32,
}

/// What a stage makes room for besides its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageRoom {
    /// Tokens that the cache holds, over all sequences together; a multiple of the page size.
    pub cache_tokens: u32,
    /// Longest sequence, in tokens.
    pub context: u32,
    /// Most rows in one step.
    pub step_rows: u32,
    /// Most sequences at a time.
    pub sequences: u32,
    /// How keys and values are kept.
    pub cache_dtype: CacheDtype,
}

/// How the KV cache stores a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheDtype {
    /// 2 bytes.
    F16,
    /// 4 bytes.
    F32,
}

/// The neighbours of a stage.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectStage {
    /// The deployment that the stage belongs to.
    pub deployment: DeploymentId,
    /// The plan.
    pub epoch: Epoch,
    /// Who sends steps to this stage. The worker dials it only where it is the coordinator.
    pub previous: Peer,
    /// Who gets what this stage makes: the next stage, or the coordinator after the last one. The worker dials it.
    pub next: Peer,
    /// Where `next` can be reached, where it is a worker.
    pub next_addresses: Vec<SocketAddr>,
    /// How hidden states cross the link to `next`.
    pub wire: WireDtype,
    /// The short way round; `None` where the deployment has a single stage, or this one is neither end of it.
    pub short_way: Option<ShortWayEnd>,
}

/// A stage's end of the way of drawn tokens from the last stage to the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShortWayEnd {
    /// The last stage: whom it tells, and where that can be reached. A first stage that cannot be reached is not told.
    To(Peer, Vec<SocketAddr>),
    /// The first stage: who may tell it, besides the coordinator.
    From(Peer),
}

/// From a worker to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum ToCoordinator {
    /// Who attaches; comes first and once.
    Hello(Capabilities),
    /// A stage has changed its state.
    Stage(StageReport),
    /// Still here.
    Heartbeat(Telemetry),
    /// The answer to a probe.
    Probed {
        /// The number asked with.
        nonce: u64,
    },
    /// The answer to a probe of a link.
    LinkProbed {
        /// The number asked with.
        nonce: u64,
        /// Whether the other worker has answered.
        reached: bool,
    },
    /// A step could not be computed; it will bring no result.
    StepFailed {
        /// The deployment.
        deployment: DeploymentId,
        /// The step.
        step: StepId,
        /// The stage's place in the pipeline.
        stage: u32,
        /// What went wrong.
        reason: String,
    },
    /// A link has broken.
    LinkLost {
        /// The deployment.
        deployment: DeploymentId,
        /// The other end.
        peer: Peer,
        /// What went wrong.
        reason: String,
    },
    /// The worker ends of its own will.
    Leaving,
}

/// A stage's state.
#[derive(Clone, Debug, PartialEq)]
pub struct StageReport {
    /// The deployment that the stage belongs to.
    pub deployment: DeploymentId,
    /// The plan that the report is about.
    pub epoch: Epoch,
    /// What it is.
    pub state: StageState,
}

/// The life of a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum StageState {
    /// Weights are being read.
    Loading {
        /// Read so far.
        loaded: Bytes,
        /// To be read.
        total: Bytes,
        /// What comes from other machines; `None` where all of it is here.
        delivery: Option<DeliveryProgress>,
    },
    /// Weights are resident and the cache is allocated.
    Loaded(StageMemory),
    /// The links to its neighbours stand.
    Connected {
        /// The address that `next` was reached at.
        next_address: SocketAddr,
        /// Round trip to `next`, in microseconds.
        rtt_us: u32,
    },
    /// Frames of the fence are accepted.
    Active,
    /// It cannot be: the reason is for people.
    Failed {
        /// What went wrong, where, and what to do.
        reason: String,
    },
    /// It is gone, and its memory free.
    Retired,
    /// Its weights are resident, for when it is to be loaded.
    Prepared,
    /// They cannot be before the deployment's stage goes: the worker's budget does not hold both.
    Crowded {
        /// What is missing.
        reason: String,
    },
}

/// How weights come from other machines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeliveryProgress {
    /// Come so far.
    pub fetched: Bytes,
    /// All that were missing.
    pub wanted: Bytes,
    /// Bytes that come per second, lately.
    pub bytes_per_s: f64,
    /// Where they come from, whoever gave most first.
    pub sources: Vec<Peer>,
}

/// What a stage takes of its worker's budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageMemory {
    /// Tensors, in their file's blocks.
    pub weights: Bytes,
    /// KV cache.
    pub cache: Bytes,
    /// Activations and workspace.
    pub workspace: Bytes,
}

impl StageMemory {
    /// All of it.
    pub fn total(&self) -> Bytes {
        self.weights + self.cache + self.workspace
    }
}

/// How a worker is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// Resident memory of the process.
    pub resident: Bytes,
    /// Highest resident memory of the process so far.
    pub peak_resident: Bytes,
    /// Cache tokens in use.
    pub cache_tokens_used: u32,
    /// Sequences that hold cache.
    pub sequences: u32,
    /// Bytes of weights that have come from other machines since it started.
    pub fetched: Bytes,
    /// Bytes of weights that it has given to others.
    pub given: Bytes,
    /// Steps computed.
    pub steps: u64,
    /// Frames dropped because their fence was not the active one.
    pub frames_fenced: u64,
    /// For how long the step under way has been computed, in milliseconds; 0 where there is none.
    pub computing_ms: u32,
    /// Its machine.
    pub machine: MachineTelemetry,
    /// Its process.
    pub process: ProcessTelemetry,
    /// Its card; `None` where it computes on the machine's processors.
    pub card: Option<CardTelemetry>,
    /// Its links of the data plane, one for every neighbour.
    pub links: Vec<LinkTelemetry>,
}

/// How a machine is doing. What is `None` its system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MachineTelemetry {
    /// All of its memory.
    pub memory: Bytes,
    /// What a program could get without anything being swapped out.
    pub memory_available: Bytes,
    /// What is swapped out.
    pub swap_used: Bytes,
    /// Bytes per second that were lately read back from swap, and from files that had been dropped.
    pub paged_in_bytes_per_s: Option<f64>,
    /// How busy its processors are together, from 0 to 1.
    pub processors_busy: Option<f32>,
    /// Its processors' temperature.
    pub temperature_celsius: Option<f32>,
    /// What its processors, and the memory where that is counted, draw.
    pub power_watts: Option<f32>,
    /// Whether its processors are held back.
    pub throttle: Throttle,
}

/// How a worker's process is doing. What is `None` its system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessTelemetry {
    /// How many processors it keeps busy.
    pub processors: Option<f32>,
    /// Bytes per second that it reads from disks.
    pub read_bytes_per_s: Option<f64>,
    /// Bytes per second that it writes to disks.
    pub written_bytes_per_s: Option<f64>,
}

/// How a card is doing. What is `None` its driver does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CardTelemetry {
    /// All of its memory.
    pub memory: Bytes,
    /// What is free of it.
    pub memory_free: Bytes,
    /// How busy it is, from 0 to 1.
    pub busy: Option<f32>,
    /// Its temperature.
    pub temperature_celsius: Option<f32>,
    /// What it draws.
    pub power_watts: Option<f32>,
    /// Whether it is held back.
    pub throttle: Throttle,
}

/// Whether a processor or card is held back below its usual clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Throttle {
    /// Its system does not tell.
    #[default]
    Unknown,
    /// It is not.
    None,
    /// By heat.
    Heat,
    /// By what it may draw.
    Power,
}

/// How a link of the data plane is doing, seen from one end.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkTelemetry {
    /// The other end.
    pub peer: Peer,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Why this address and no other, for people; empty at the end that was dialled.
    pub choice: String,
    /// Smoothed round trip, in microseconds.
    pub rtt_us: u32,
    /// Bytes sent in datagrams since it stands.
    pub sent_bytes: u64,
    /// Bytes received in datagrams since it stands.
    pub received_bytes: u64,
    /// Packets sent since it stands.
    pub sent_packets: u64,
    /// Those of them that were lost.
    pub lost_packets: u64,
    /// What may be under way, in bytes.
    pub congestion_window: u64,
}

/// A worker's certificate request, sent once with a join token.
#[derive(Clone, Debug, PartialEq)]
pub struct EnrolRequest {
    /// The token's secret part.
    pub secret: String,
    /// Name wanted.
    pub name: String,
    /// PKCS#10 request for the worker's own key, DER.
    pub csr_der: Vec<u8>,
}

/// What enrolling yields.
#[derive(Clone, Debug, PartialEq)]
pub struct Enrolment {
    /// The worker's id, also in its certificate.
    pub worker: WorkerId,
    /// The worker's certificate, DER.
    pub certificate_der: Vec<u8>,
    /// The coordinator's CA, DER.
    pub ca_der: Vec<u8>,
}

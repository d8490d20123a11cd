//! What a worker runs with: its arguments, completed by what the machine is.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use brigade_proto::control::DeviceKind;
use brigade_proto::device_choice::DeviceChoice;
use brigade_proto::identity::JoinToken;
use brigade_shard::units::Bytes;

use crate::cli::{CoordinatorAddress, JoinArgs, WorkerName};
use crate::device::{BudgetError, Devices, Found, Presence, budget};
use crate::offload::Offload;
use crate::stretch::Stretch;

/// Share of the machine's memory that a worker takes where it was not told: the rest is the owner's.
const DEFAULT_MEMORY_PERCENT: u64 = 80;

/// Longest token file that is read: a token has about a hundred bytes.
const MAX_TOKEN_FILE_BYTES: u64 = 4096;

/// Everything that a worker is told, complete and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the coordinator is.
    pub coordinator: CoordinatorAddress,
    /// For a worker that has no certificate yet.
    pub token: Option<JoinToken>,
    /// Where it computes.
    pub device: DeviceKind,
    /// What its stages may take together.
    pub budget: Bytes,
    /// Compute threads, at least 1.
    pub threads: usize,
    /// Whether weights stay in their files.
    pub mmap: bool,
    /// Whether layers may be read again for every step.
    pub offload: Offload,
    /// Whether matrices of types that the device has no kernels for are turned into others.
    pub convert: bool,
    /// How much longer than needed steps take.
    pub stretch: Stretch,
    /// Where models are.
    pub models: Vec<PathBuf>,
    /// Where weights are kept that come from other machines; in the state directory where this is `None`.
    pub cache: Option<PathBuf>,
    /// What these may take together.
    pub cache_limit: Option<Bytes>,
    /// The share of the time that is spent on fetching while answers are computed.
    pub fetch_share: f64,
    /// Where its certificate is kept.
    pub state: PathBuf,
    /// Its name, for people.
    pub name: WorkerName,
    /// The machine's name.
    pub host: String,
    /// Where its data plane listens; `None` for any free port on all interfaces.
    pub data: Option<SocketAddr>,
    /// Where it answers health checks; `None` where it does not.
    pub health: Option<SocketAddr>,
}

/// Facts about the machine and its user that fill in what was not said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The machine's name.
    pub host: String,
    /// Its memory, or this process's limit where that is lower.
    pub memory: Bytes,
    /// How many threads run at a time.
    pub parallelism: usize,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Machine {
        let memory = sysinfo::System::new().map_or(0, |mut system| {
            system.refresh_memory();
            let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
            system.total_memory().min(limit)
        });
        let directory = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Machine {
            host: sysinfo::System::host_name().unwrap_or_default(),
            memory: Bytes(memory),
            parallelism: std::thread::available_parallelism().map_or(1, usize::from),
            home: directory("HOME"),
            state_home: directory("XDG_STATE_HOME"),
        }
    }

    /// What a worker on the processor takes where it was not told.
    pub fn default_budget(&self) -> Bytes {
        Bytes(self.memory.0 / 100 * DEFAULT_MEMORY_PERCENT)
    }
}

/// Arguments that cannot be completed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The token is not one.
    #[error("the join token cannot be used: {0}")]
    Token(String),
    /// The token's file cannot be read.
    #[error("failed to read the join token from {}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no home directory to put defaults in.
    #[error("there is no home directory for the default of {0}: set HOME, or give {0}")]
    NoHome(&'static str),
    /// No memory to work with.
    #[error("there is no memory for a model: give --memory a size such as 24GiB")]
    NoMemory,
    /// A device has no memory as was asked for.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The program was built without the device.
    #[error("this build cannot use {device}: take --device cpu, or build with --features {feature}")]
    NotBuilt {
        /// Which, as `--device` takes it.
        device: String,
        /// What it must be built with.
        feature: &'static str,
    },
    /// A device cannot be used.
    #[error("{device} cannot be used: {reason}; brigade-worker doctor says more")]
    Device {
        /// Which, as `--device` takes it.
        device: String,
        /// What its driver says.
        reason: String,
    },
    /// Several workers were asked for, and this is one.
    #[error("--device all starts a worker for each card: a single one needs --device auto, or a card's name")]
    SeveralDevices,
    /// Only the processor reads layers again for every step.
    #[error("--offload is for --device cpu: no other device can read layers again for every step")]
    OffloadDevice,
}

impl SettingsError {
    /// Whether the arguments are to blame, and not what a device is like just now.
    pub fn is_usage(&self) -> bool {
        !matches!(self, SettingsError::Device { .. } | SettingsError::Budget(BudgetError::Nothing { .. }))
    }
}

impl Settings {
    /// Completes `args` with what `machine` is and what drivers tell of its `devices`.
    ///
    /// # Errors
    /// Where the token is malformed or its file cannot be read, the budget is nothing, the device cannot do what is asked for,
    /// or a default needs a home directory and there is none.
    pub fn new(args: JoinArgs, machine: &Machine, devices: &dyn Devices) -> Result<Settings, SettingsError> {
        let name = args.name.unwrap_or_else(|| WorkerName::from_host(&machine.host));
        let token = match (&args.token, &args.token_file) {
            (Some(token), _) => Some(parse_token(token)?),
            (None, Some(path)) => Some(parse_token(&read_token(path)?)?),
            (None, None) => None,
        };
        let state = match args.state {
            Some(state) => state,
            None => default_state(machine, &name).ok_or(SettingsError::NoHome("--state"))?,
        };
        let models = match args.models {
            models if models.is_empty() => {
                vec![default_models(machine).ok_or(SettingsError::NoHome("--models"))?]
            }
            models => models,
        };
        let device = match args.device {
            DeviceChoice::One(device) => device,
            DeviceChoice::Auto => choose(devices),
            DeviceChoice::All => return Err(SettingsError::SeveralDevices),
        };
        let budget = room(device, args.memory, machine, devices)?;
        if budget == Bytes::ZERO {
            return Err(SettingsError::NoMemory);
        }
        let offload = match (args.offload, args.offload_rate) {
            (false, _) => Offload::No,
            (true, _) if device != DeviceKind::Cpu => return Err(SettingsError::OffloadDevice),
            (true, None) => Offload::Measured,
            (true, Some(rate)) => Offload::Stated(rate),
        };
        Ok(Settings {
            coordinator: args.coordinator,
            token,
            device,
            budget,
            threads: args.threads.map_or(machine.parallelism, |threads| usize::from(threads.get())),
            mmap: args.mmap,
            offload,
            convert: args.convert,
            stretch: args.stretch,
            models,
            cache: args.cache,
            cache_limit: args.cache_limit,
            fetch_share: f64::from(args.fetch_share.get().min(100)) / 100.0,
            state,
            name,
            host: machine.host.clone(),
            data: args.data,
            health: args.health,
        })
    }
}

/// The best device, said in the log with what there is.
fn choose(devices: &dyn Devices) -> DeviceKind {
    let found = devices.found();
    let best = found.best();
    tracing::info!("computing on {best}: {found}");
    best
}

/// What a worker may take: what was said, or else its share of the machine's memory, or what its device can give.
fn room(
    device: DeviceKind,
    wanted: Option<Bytes>,
    machine: &Machine,
    devices: &dyn Devices,
) -> Result<Bytes, SettingsError> {
    let memory = devices.memory(device).map_err(|reason| unusable(device, reason, &devices.found()))?;
    let Some(memory) = memory else {
        return Ok(wanted.unwrap_or_else(|| machine.default_budget()));
    };
    let (budget, warning) = budget(device, memory, wanted)?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(budget)
}

/// Why a device cannot be used whose driver says `reason`.
fn unusable(device: DeviceKind, reason: String, found: &Found) -> SettingsError {
    let (presence, feature) = match device {
        DeviceKind::Cpu | DeviceKind::Cuda(_) => (&found.cuda, "cuda"),
        DeviceKind::Metal => (&found.metal, "metal"),
    };
    let is_there = found.cards().contains(&device);
    let device = device.to_string();
    match presence {
        Presence::NotBuilt => SettingsError::NotBuilt { device, feature },
        Presence::Absent(why) => SettingsError::Device { device, reason: why.clone() },
        Presence::Present(_) if is_there => SettingsError::Device { device, reason },
        Presence::Present(_) => SettingsError::Device { device, reason: found.to_string() },
    }
}

/// Where a worker of this name keeps its certificate unless told otherwise; `None` without a home directory.
pub(crate) fn default_state(machine: &Machine, name: &WorkerName) -> Option<PathBuf> {
    let in_home = || Some(machine.home.as_ref()?.join(".local/state"));
    Some(machine.state_home.clone().or_else(in_home)?.join("brigade-worker").join(name.as_str()))
}

/// Where models are unless told otherwise; `None` without a home directory.
pub(crate) fn default_models(machine: &Machine) -> Option<PathBuf> {
    Some(machine.home.as_ref()?.join(".local/share/brigade/models"))
}

fn parse_token(text: &str) -> Result<JoinToken, SettingsError> {
    text.trim().parse().map_err(|error| SettingsError::Token(format!("{error}")))
}

fn read_token(path: &Path) -> Result<String, SettingsError> {
    use io::Read;
    let mut token = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut token))
        .map_err(|source| SettingsError::TokenFile { path: path.to_owned(), source })?;
    Ok(token)
}

//! The workers on this machine that belong to a coordinator: what they are told, and where their program is.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use brigade_proto::control::DeviceKind;
use brigade_proto::worker_processes::{WorkerEvent, WorkerProcess, WorkerProcesses};
use brigade_shard::units::{ByteRate, Bytes};
use tokio::sync::mpsc;

/// The worker's program.
const PROGRAM: &str = "brigade-worker";

/// Why local workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The worker's program is nowhere.
    #[error(
        "`{PROGRAM}` was found neither in {} nor in PATH; build or install it beside `brigade` (cargo build --release --workspace)",
        beside.display()
    )]
    ProgramMissing {
        /// The directory of our own program.
        beside: PathBuf,
    },
    /// A directory for a worker's state could not be made.
    #[error("failed to make {}: {error}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

/// What the local workers need to know.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// The worker's program.
    pub program: PathBuf,
    /// Where the coordinator listens for workers.
    pub control: SocketAddr,
    /// A join token, good for all of them; it travels in the environment, never on a command line.
    pub token: String,
    /// The directories in which they find models.
    pub models: Vec<PathBuf>,
    /// Where each computes and what it may use, in their order.
    pub workers: Vec<LocalWorker>,
    /// Compute threads of each.
    pub threads: usize,
    /// Whether they leave weights in their files.
    pub mmap: bool,
    /// Whether they may read layers again for every step; and how fast, where that is not to be measured.
    pub offload: Option<Option<ByteRate>>,
    /// The directory that gets one state directory per worker.
    pub state: PathBuf,
}

/// One of the local workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalWorker {
    /// Its name.
    pub name: String,
    /// Where it computes.
    pub device: DeviceKind,
    /// What it may use there.
    pub memory: Bytes,
}

/// The worker's program: the one beside our own, else the first in `PATH`.
///
/// # Errors
/// Where there is none.
pub fn find_program() -> Result<PathBuf, LocalError> {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.parent().unwrap_or(Path::new(".")).to_owned();
    find_program_in(&beside, std::env::var_os("PATH").as_deref())
}

/// As [`find_program`], with our program's directory and the value of `PATH` given.
///
/// # Errors
/// As [`find_program`].
pub fn find_program_in(beside: &Path, path: Option<&OsStr>) -> Result<PathBuf, LocalError> {
    let name = format!("{PROGRAM}{}", std::env::consts::EXE_SUFFIX);
    std::iter::once(beside.to_owned())
        .chain(path.into_iter().flat_map(std::env::split_paths))
        .map(|directory| directory.join(&name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| LocalError::ProgramMissing { beside: beside.to_owned() })
}

/// The name of the local worker at `index`, from 0.
pub fn worker_name(index: usize) -> String {
    format!("w{}", index + 1)
}

/// Starts the workers. What happens to them comes through the receiver.
///
/// # Errors
/// Where a state directory cannot be made. A program that does not start is a [`WorkerEvent::Fatal`].
pub fn start(settings: &LocalSettings) -> Result<(WorkerProcesses, mpsc::Receiver<WorkerEvent>), LocalError> {
    let mut processes = Vec::with_capacity(settings.workers.len());
    for worker in &settings.workers {
        let state = settings.state.join(&worker.name);
        std::fs::create_dir_all(&state)
            .map_err(|error| LocalError::Directory { path: state.clone(), error })?;
        processes.push(WorkerProcess {
            name: worker.name.clone(),
            program: settings.program.clone(),
            arguments: arguments(settings, worker, &state),
            environment: vec![("BRIGADE_TOKEN".into(), settings.token.clone().into())],
        });
    }
    Ok(WorkerProcesses::start(processes))
}

fn arguments(settings: &LocalSettings, worker: &LocalWorker, state: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["join".into(), settings.control.to_string().into()];
    let mut add = |words: &[&OsStr]| arguments.extend(words.iter().map(|word| word.to_os_string()));
    add(&["--name".as_ref(), worker.name.as_ref()]);
    add(&["--state".as_ref(), state.as_os_str()]);
    for folder in &settings.models {
        add(&["--models".as_ref(), folder.as_os_str()]);
    }
    add(&["--device".as_ref(), worker.device.to_string().as_ref()]);
    add(&["--memory".as_ref(), worker.memory.0.to_string().as_ref()]);
    add(&["--threads".as_ref(), settings.threads.to_string().as_ref()]);
    if settings.mmap {
        add(&["--mmap".as_ref()]);
    }
    if let Some(rate) = settings.offload {
        add(&["--offload".as_ref()]);
        if let Some(rate) = rate {
            add(&[format!("--offload-rate={}B/s", rate.0).as_ref()]);
        }
    }
    arguments
}

//! Workers as child processes on this machine, supervised: one that dies is started again, and none outlives us.
//!
//! Each child holds the read end of a pipe from us and ends when the pipe does, so that it ends even where this process
//! is killed. Children stand in process groups of their own: a Ctrl-C in the terminal reaches only us, and we end them in
//! order.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use brigade_shard::units::{ByteRate, Bytes};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The worker's program.
const PROGRAM: &str = "brigade-worker";

/// How long a child may take to end after its standard input has ended, before it is killed: it answers within 1 s.
const GRACE: Duration = Duration::from_millis(1500);

/// The first pause before a child that died is started again; it doubles with every death.
const FIRST_PAUSE: Duration = Duration::from_millis(300);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A child that lived this long did not die of its start: the pause begins anew.
const SETTLED: Duration = Duration::from_secs(30);

/// Events waiting to be shown; lines of a child past it are dropped, so that no child ever waits for a terminal.
const EVENT_QUEUE: usize = 256;

/// The longest line taken from a child, in bytes; the rest of a longer one comes as further lines.
const MAX_LINE_BYTES: u64 = 4096;

/// Lines of a child kept to explain its death.
const LAST_LINES: usize = 5;

/// The exit code of a program that was used wrongly: starting it again would not help.
const USED_WRONGLY: i32 = 2;

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
    /// How many to start.
    pub count: usize,
    /// What each may use.
    pub memory: Bytes,
    /// Compute threads of each.
    pub threads: usize,
    /// Whether they leave weights in their files.
    pub mmap: bool,
    /// Whether they may read layers again for every step; and how fast, where that is not to be measured.
    pub offload: Option<Option<ByteRate>>,
    /// The directory that gets one state directory per worker.
    pub state: PathBuf,
}

/// Something that happened to a local worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalEvent {
    /// It wrote a line to its standard error.
    Line {
        /// Its name.
        worker: String,
        /// The line.
        text: String,
    },
    /// It died and is started again.
    Restarting {
        /// Its name.
        worker: String,
        /// How it ended, in words.
        ended: String,
        /// The pause before its next start.
        pause: Duration,
    },
    /// It cannot be run at all.
    Fatal {
        /// Its name.
        worker: String,
        /// Why.
        reason: String,
    },
}

/// The local workers. Dropping it kills them.
#[derive(Debug)]
pub struct LocalWorkers {
    tasks: TaskTracker,
    ending: CancellationToken,
    stop: CancellationToken,
    kill: CancellationToken,
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

impl LocalWorkers {
    /// Starts the workers, and the tasks that look after them. Their events come through the receiver.
    ///
    /// # Errors
    /// Where a state directory cannot be made. A program that does not start is a [`LocalEvent::Fatal`].
    pub fn start(settings: &LocalSettings) -> Result<(LocalWorkers, mpsc::Receiver<LocalEvent>), LocalError> {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        let workers = LocalWorkers {
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        };
        for index in 0..settings.count {
            let name = worker_name(index);
            let state = settings.state.join(&name);
            std::fs::create_dir_all(&state)
                .map_err(|error| LocalError::Directory { path: state.clone(), error })?;
            let supervisor = Supervisor {
                name,
                state,
                settings: settings.clone(),
                events: sender.clone(),
                ending: workers.ending.clone(),
                stop: workers.stop.clone(),
                kill: workers.kill.clone(),
            };
            workers.tasks.spawn(supervisor.run());
        }
        workers.tasks.close();
        Ok((workers, receiver))
    }

    /// From now on a worker that ends is not started again.
    pub fn expect_end(&self) {
        self.ending.cancel();
    }

    /// Ends all workers: their standard inputs end, and what is still there after 1.5 s is killed.
    pub async fn stop(&self) {
        self.ending.cancel();
        self.stop.cancel();
        self.tasks.wait().await;
    }

    /// Kills all workers at once.
    pub async fn kill(&self) {
        self.ending.cancel();
        self.kill.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for LocalWorkers {
    fn drop(&mut self) {
        self.ending.cancel();
        self.kill.cancel();
    }
}

/// Looks after one worker.
struct Supervisor {
    name: String,
    state: PathBuf,
    settings: LocalSettings,
    events: mpsc::Sender<LocalEvent>,
    ending: CancellationToken,
    stop: CancellationToken,
    kill: CancellationToken,
}

/// How one life of a child ended.
enum Life {
    /// By itself, with the last lines that it wrote.
    Ended(ExitStatus, VecDeque<String>),
    /// Because we wanted it to.
    Wanted,
    /// It did not start, or could not be waited for.
    Failed(String),
}

impl Supervisor {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let born = Instant::now();
            let (status, lines) = match self.live().await {
                Life::Ended(status, lines) => (status, lines),
                Life::Wanted => return,
                Life::Failed(reason) => {
                    return self.tell(LocalEvent::Fatal { worker: self.name.clone(), reason }).await;
                }
            };
            if self.ending.is_cancelled() {
                return;
            }
            if status.code() == Some(USED_WRONGLY) {
                let reason = match lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ") {
                    said if said.is_empty() => status.to_string(),
                    said => said,
                };
                return self.tell(LocalEvent::Fatal { worker: self.name.clone(), reason }).await;
            }
            if born.elapsed() >= SETTLED {
                pause = FIRST_PAUSE;
            }
            let ended = match lines.back() {
                Some(last) => format!("{status}; it last said: {last}"),
                None => status.to_string(),
            };
            self.tell(LocalEvent::Restarting { worker: self.name.clone(), ended, pause }).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ending.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One life of the child, from its start to its end.
    async fn live(&self) -> Life {
        let mut child = match self.command().spawn() {
            Ok(child) => child,
            Err(error) => {
                return Life::Failed(format!("failed to start {}: {error}", self.settings.program.display()));
            }
        };
        // The child ends when this pipe does: when it is dropped here, or when this process is gone.
        let stdin = child.stdin.take();
        let stderr = child.stderr.take();
        let read = self.read_lines(stderr);
        tokio::pin!(read);
        let mut lines = None;
        loop {
            tokio::select! {
                biased;
                () = self.kill.cancelled() => {
                    end_at_once(&mut child).await;
                    return Life::Wanted;
                }
                () = self.stop.cancelled() => {
                    drop(stdin);
                    self.end_in_grace(&mut child).await;
                    return Life::Wanted;
                }
                // Its lines first: at its end they tell why.
                read = &mut read, if lines.is_none() => lines = Some(read),
                status = child.wait() => {
                    let lines = match lines {
                        Some(lines) => lines,
                        // Only a descendant of the child could hold its pipe open now.
                        None => timeout(GRACE, read).await.unwrap_or_default(),
                    };
                    return match status {
                        Ok(status) => Life::Ended(status, lines),
                        Err(error) => Life::Failed(format!("failed to wait for it: {error}")),
                    };
                }
            }
        }
    }

    async fn end_in_grace(&self, child: &mut Child) {
        tokio::select! {
            _ = child.wait() => {}
            () = tokio::time::sleep(GRACE) => end_at_once(child).await,
            () = self.kill.cancelled() => end_at_once(child).await,
        }
    }

    fn command(&self) -> Command {
        let settings = &self.settings;
        let rate = settings.offload.flatten();
        let mut command = Command::new(&settings.program);
        // Settings meant for us must not reach the child, which has flags of the same names.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("BRIGADE_") && name != "BRIGADE_LOG") {
                command.env_remove(name);
            }
        }
        command
            .env("BRIGADE_TOKEN", &settings.token)
            .arg("join")
            .arg(settings.control.to_string())
            .args(["--name", &self.name])
            .arg("--state")
            .arg(&self.state)
            .args(settings.models.iter().flat_map(|folder| [OsStr::new("--models"), folder.as_os_str()]))
            .args(["--memory", &settings.memory.0.to_string()])
            .args(["--threads", &settings.threads.to_string()])
            .args(settings.mmap.then_some("--mmap"))
            .args(settings.offload.is_some().then_some("--offload"))
            .args(rate.map(|rate| format!("--offload-rate={}B/s", rate.0)))
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        command
    }

    /// Passes the child's lines on until its standard error ends, and returns the last of them.
    async fn read_lines(&self, stderr: Option<impl AsyncRead + Unpin>) -> VecDeque<String> {
        let mut last = VecDeque::new();
        let Some(stderr) = stderr else { return last };
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return last,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if text.is_empty() {
                continue;
            }
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(text.clone());
            // A full queue means that nobody looks: the line is dropped rather than the child held up.
            let _ = self.events.try_send(LocalEvent::Line { worker: self.name.clone(), text });
        }
    }

    /// Reports an event that must not be dropped, unless everything is ending.
    async fn tell(&self, event: LocalEvent) {
        tokio::select! {
            _ = self.events.send(event) => {}
            () = self.ending.cancelled() => {}
        }
    }
}

/// Kills the child and waits for it, so that it is gone and not a zombie.
async fn end_at_once(child: &mut Child) {
    // An error means that it has ended already.
    let _ = child.start_kill();
    let _ = child.wait().await;
}

//! Workers as child processes on this machine, supervised: one that dies is started again, and none outlives us.
//!
//! Each child holds the read end of a pipe from us and ends when the pipe does, so that it ends even where this process
//! is killed. Children stand in process groups of their own: a Ctrl-C in the terminal reaches only us, and we end them in
//! order. Both programs start workers: `brigade` its local ones, and `brigade-worker` one for each card.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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

/// The setting of what is logged, which children take from our environment where their order says nothing else.
const LOG_VARIABLE: &str = "BRIGADE_LOG";

/// How a worker is started, every time. Without `Debug`, because its environment may hold a token.
#[derive(Clone)]
pub struct WorkerProcess {
    /// Its name, for people.
    pub name: String,
    /// The worker's program.
    pub program: PathBuf,
    /// Its arguments; `--exit-with-stdin` is added to them.
    pub arguments: Vec<OsString>,
    /// What it finds in its environment beside ours, of which it gets no setting but the log's.
    pub environment: Vec<(OsString, OsString)>,
}

/// Something that happened to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
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
    /// It ended well by itself, as it does where its coordinator says so; it is not started again.
    Ended {
        /// Its name.
        worker: String,
    },
    /// It cannot be run at all.
    Fatal {
        /// Its name.
        worker: String,
        /// Why.
        reason: String,
    },
}

/// Workers that run. Dropping it kills them.
#[derive(Debug)]
pub struct WorkerProcesses {
    tasks: TaskTracker,
    ending: CancellationToken,
    stop: CancellationToken,
    kill: CancellationToken,
}

impl WorkerProcesses {
    /// Starts the workers, and the tasks that look after them. Their events come through the receiver, which ends when none of
    /// them runs any more. A program that does not start is a [`WorkerEvent::Fatal`].
    pub fn start(workers: Vec<WorkerProcess>) -> (WorkerProcesses, mpsc::Receiver<WorkerEvent>) {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        let all = WorkerProcesses {
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        };
        for process in workers {
            let supervisor = Supervisor {
                process,
                events: sender.clone(),
                ending: all.ending.clone(),
                stop: all.stop.clone(),
                kill: all.kill.clone(),
            };
            all.tasks.spawn(supervisor.run());
        }
        all.tasks.close();
        (all, receiver)
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

impl Drop for WorkerProcesses {
    fn drop(&mut self) {
        self.ending.cancel();
        self.kill.cancel();
    }
}

/// Looks after one worker.
struct Supervisor {
    process: WorkerProcess,
    events: mpsc::Sender<WorkerEvent>,
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
                    return self.tell(WorkerEvent::Fatal { worker: self.process.name.clone(), reason }).await;
                }
            };
            if self.ending.is_cancelled() {
                return;
            }
            if status.success() {
                return self.tell(WorkerEvent::Ended { worker: self.process.name.clone() }).await;
            }
            if status.code() == Some(USED_WRONGLY) {
                let reason = match lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ") {
                    said if said.is_empty() => status.to_string(),
                    said => said,
                };
                return self.tell(WorkerEvent::Fatal { worker: self.process.name.clone(), reason }).await;
            }
            if born.elapsed() >= SETTLED {
                pause = FIRST_PAUSE;
            }
            let ended = match lines.back() {
                Some(last) => format!("{status}; it last said: {last}"),
                None => status.to_string(),
            };
            self.tell(WorkerEvent::Restarting { worker: self.process.name.clone(), ended, pause }).await;
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
                return Life::Failed(format!("failed to start {}: {error}", self.process.program.display()));
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
        let WorkerProcess { program, arguments, environment, .. } = &self.process;
        let mut command = Command::new(program);
        // Settings meant for us must not reach the child, which has flags of the same names.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("BRIGADE_") && name != LOG_VARIABLE) {
                command.env_remove(name);
            }
        }
        command
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .args(arguments)
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
            let _ = self.events.try_send(WorkerEvent::Line { worker: self.process.name.clone(), text });
        }
    }

    /// Reports an event that must not be dropped, unless everything is ending.
    async fn tell(&self, event: WorkerEvent) {
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

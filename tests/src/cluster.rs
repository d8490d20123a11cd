//! Clusters of real processes on loopback.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::http::Client;
use crate::process::{Process, children, program_name};
use crate::setup::programs;

/// How long a cluster may take to serve. Generous: a 30-worker cluster calibrates on as few as two cores.
pub const START: Duration = Duration::from_secs(120);

/// How long a cluster may take to end after it was told to.
pub const STOP: Duration = Duration::from_secs(5);

/// A coordinator and its workers, started by `brigade up`.
#[derive(Debug)]
pub struct Cluster {
    /// The coordinator; the workers are its children.
    pub process: Process,
    /// Its HTTP API.
    pub client: Client,
    // Where the coordinator says that it runs: each cluster of the tests has its own place for that.
    _runtime: TempDir,
}

/// What a cluster is started with.
#[derive(Debug)]
pub struct Up {
    command: Command,
    threads: usize,
    runtime: TempDir,
}

impl Up {
    /// `brigade up MODEL` on an ephemeral port, with one thread per worker.
    pub fn new(model: &Path) -> Up {
        let runtime = tempfile::tempdir().expect("the temporary folder is writable");
        let mut command = brigade(&runtime);
        command.arg("up").arg(model).args(["--http", "127.0.0.1:0"]);
        Up { command, threads: 1, runtime }
    }

    /// How many workers.
    pub fn workers(self, count: usize) -> Up {
        self.args(["--workers", &count.to_string()])
    }

    /// How many compute threads each worker has.
    pub fn threads(self, threads: usize) -> Up {
        Up { threads, ..self }
    }

    /// Each worker's budget.
    pub fn memory(self, size: &str) -> Up {
        self.args(["--memory", size])
    }

    /// Lets the workers measure their device themselves, whatever others of this machine found.
    pub fn measured_anew(mut self) -> Up {
        self.command.env("TMPDIR", self.runtime.path());
        self
    }

    /// Further arguments.
    pub fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Up {
        self.command.args(arguments);
        self
    }

    /// Starts it, without waiting for anything.
    pub fn spawn(mut self) -> (Process, TempDir) {
        self.command.args(["--threads", &self.threads.to_string()]);
        (Process::start(&mut self.command), self.runtime)
    }

    /// Starts it, and waits until it serves.
    pub fn start(self) -> Cluster {
        let (mut process, runtime) = self.spawn();
        let url = process.wait_for("address", START, served_url);
        Cluster { process, client: Client::new(&url), _runtime: runtime }
    }
}

impl Cluster {
    /// The process ids of the workers.
    pub fn workers(&self) -> Vec<u32> {
        children(self.process.id()).into_iter().filter(|id| program_name(*id) == "brigade-worker").collect()
    }

    /// Ends it as Ctrl-C does, and checks that it ended well.
    pub fn stop(mut self) {
        self.process.signal(libc::SIGINT);
        let (status, output) = self.process.wait(STOP);
        assert_eq!(status.code(), Some(0), "brigade up ended badly; it said:\n{output}");
    }
}

/// The `brigade` program, with every place it keeps things in a folder of the test's own.
pub fn brigade(home: &TempDir) -> Command {
    let mut command = Command::new(&programs().brigade);
    isolate(&mut command, home.path());
    command
}

/// The `brigade-worker` program, likewise.
pub fn worker(home: &TempDir) -> Command {
    let mut command = Command::new(&programs().worker);
    isolate(&mut command, home.path());
    command
}

/// Finds `http://ADDRESS` in the line that says where a cluster is served.
pub fn served_url(line: &str) -> Option<String> {
    let start = line.contains("serving").then(|| line.find("http://"))??;
    let url = line[start..].split_whitespace().next()?;
    Some(url.trim_end_matches(['.', ',', '/']).to_owned())
}

fn isolate(command: &mut Command, home: &Path) {
    command
        .env("HOME", home)
        .env("XDG_STATE_HOME", home.join("state"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_RUNTIME_DIR", home)
        .env("NO_COLOR", "1")
        .current_dir(home);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BRIGADE_") {
            command.env_remove(name);
        }
    }
}

//! A started program: its output line by line, its memory, its children and its end.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// A program under test; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` with its standard output and error captured together.
    pub fn start(command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            collect(child.stdout.take().expect("standard output was piped"), lines.clone()),
            collect(child.stderr.take().expect("standard error was piped"), lines.clone()),
        ];
        Process { child, lines, readers }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All lines so far, standard output and error in the order they came.
    pub fn output(&self) -> String {
        self.lines.lock().expect("a reader never panics").join("\n")
    }

    /// Waits for a line for which `pick` finds something.
    pub fn wait_for<T>(&mut self, what: &str, limit: Duration, pick: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let found = self.lines.lock().expect("a reader never panics").iter().find_map(|line| pick(line));
            if let Some(found) = found {
                return found;
            }
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                self.join_readers();
                let found =
                    self.lines.lock().expect("a reader never panics").iter().find_map(|line| pick(line));
                return found.unwrap_or_else(|| {
                    panic!("the program ended with {status} before {what}; it said:\n{}", self.output())
                });
            }
            assert!(
                Instant::now() < deadline,
                "no {what} within {limit:?}; the program said:\n{}",
                self.output()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal, such as `libc::SIGINT`.
    pub fn signal(&self, signal: i32) {
        send_signal(self.id(), signal);
    }

    /// Waits for the end, and gives the status and everything that was said.
    pub fn wait(&mut self, limit: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                self.join_readers();
                return (status, self.output());
            }
            assert!(
                Instant::now() < deadline,
                "still running after {limit:?}; the program said:\n{}",
                self.output()
            );
            std::thread::sleep(POLL);
        }
    }

    fn join_readers(&mut self) {
        // A grandchild that outlives the program may hold the pipe: its output is no reason to wait.
        let deadline = Instant::now() + Duration::from_millis(500);
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        for reader in self.readers.drain(..).filter(JoinHandle::is_finished) {
            reader.join().expect("a reader never panics");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(pipe: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            lines
                .lock()
                .expect("a test never panics while it holds the lines")
                .push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}

/// Sends a signal to a process that a test started.
pub fn send_signal(process: u32, signal: i32) {
    // SAFETY: kill takes plain numbers and has no memory effects.
    let result = unsafe { libc::kill(process as i32, signal) };
    assert_eq!(result, 0, "failed to signal process {process}: {}", std::io::Error::last_os_error());
}

/// Whether a process is there and not yet ended.
pub fn is_running(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    matches!(state_and_parent(&stat), Some((state, _)) if state != 'Z')
}

/// The processes whose parent is `process`.
pub fn children(process: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is there on Linux");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        state_and_parent(&stat).is_some_and(|(_, parent)| parent == process)
    })
    .collect()
}

/// The name of a process's program; empty where there is no such process.
pub fn program_name(process: u32) -> String {
    std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The highest resident memory of a process so far, in bytes (`VmHWM`).
pub fn peak_resident_bytes(process: u32) -> u64 {
    let peak = status_field(process, "VmHWM");
    let kib: u64 = peak.trim_end_matches(" kB").parse().expect("VmHWM is a number of kB");
    kib * 1024
}

/// What the system says of a running process under this name in `/proc/PROCESS/status`.
pub fn status_field(process: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))
        .unwrap_or_else(|error| panic!("failed to read the status of process {process}: {error}"));
    let field = status.lines().filter_map(|line| line.split_once(':')).find(|(field, _)| *field == name);
    field.unwrap_or_else(|| panic!("process {process} has no {name}")).1.trim().to_owned()
}

/// The names of a process's threads.
pub fn thread_names(process: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task"))
        .unwrap_or_else(|error| panic!("failed to list the threads of process {process}: {error}"));
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).ok();
    threads.flatten().filter_map(name).map(|name| name.trim_end().to_owned()).collect()
}

/// The processor time that a process has taken, in hundredths of a second.
pub fn cpu_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))
        .unwrap_or_else(|error| panic!("failed to read the times of process {process}: {error}"));
    // After the name, which may hold spaces: the state, and as the 12th and 13th the user's and the system's time.
    let (_, fields) = stat.rsplit_once(')').expect("the name stands in brackets");
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|t| t.parse::<u64>().expect("times are numbers"))
        .sum();
    // SAFETY: a question without memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// What a short run of a program came to.
#[derive(Debug)]
pub struct Run {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub output: String,
    /// From its start to its end.
    pub time: Duration,
    /// The most memory that was resident, in bytes, this process's own at the time of the start included.
    pub peak_resident_bytes: u64,
}

/// Runs `command` to its end; its standard error goes where this process's does.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it, and says what memory it took")]
pub fn run_measured(command: &mut Command) -> Run {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
    let mut output = String::new();
    let mut pipe = child.stdout.take().expect("standard output was piped");
    pipe.read_to_string(&mut output).expect("the program writes text");
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid for the call, and zeroes are a valid `rusage`; the child is ours and nobody else
    // has waited for it.
    let (waited, usage) = unsafe {
        let waited = libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr());
        (waited, usage.assume_init())
    };
    assert_eq!(waited, child.id() as i32, "failed to wait: {}", std::io::Error::last_os_error());
    Run {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        output,
        time: start.elapsed(),
        // Linux counts in KiB.
        peak_resident_bytes: usage.ru_maxrss as u64 * 1024,
    }
}

/// Waits until `done` holds.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
}

// The program's name stands in parentheses and may itself hold spaces and parentheses.
fn state_and_parent(stat: &str) -> Option<(char, u32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

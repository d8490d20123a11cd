//! One process that renders, seen from the coordinator.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::wire::{self, MAX_REPLY_BYTES, Reply};
use super::{ADDRESS_SPACE_BYTES, CPU_SECONDS, SUBCOMMAND};

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
}

impl Process {
    /// Starts `program`.
    pub(super) fn start(program: &Path) -> io::Result<Process> {
        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal is the coordinator's to handle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(replies)) => Ok(Process { child, requests, replies }),
            _ => Err(io::Error::other("the process has no pipes")),
        }
    }

    /// Sends a frame and waits for its reply.
    ///
    /// # Errors
    /// Where the process has ended; it is of no use after any error.
    pub(super) async fn ask(&mut self, frame: &[u8]) -> io::Result<Reply> {
        self.requests.write_all(frame).await?;
        self.requests.flush().await?;
        wire::receive(&mut self.replies, MAX_REPLY_BYTES).await
    }

    /// How a process ended that gave no reply, in words.
    pub(super) async fn ended(mut self, error: &io::Error) -> String {
        drop((self.requests, self.replies));
        match self.child.wait().await {
            Ok(status) => in_words(status),
            Err(_) => error.to_string(),
        }
    }
}

fn in_words(status: ExitStatus) -> String {
    let is = |signal: Signal| status.signal() == Some(signal.as_raw());
    if is(Signal::XCPU) {
        format!("it took {CPU_SECONDS} s of processor time")
    } else if is(Signal::ABORT) || is(Signal::SEGV) || is(Signal::BUS) {
        format!("it took more than {} MiB of memory, or nests too deep", ADDRESS_SPACE_BYTES >> 20)
    } else {
        format!("its process ended with {status}")
    }
}

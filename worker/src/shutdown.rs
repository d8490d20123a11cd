//! What makes a worker end: signals, and a supervisor that is gone.

use std::io::{self, Read};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process that a second signal has ended: 128 + SIGINT, as shells count it.
const INTERRUPTED: i32 = 130;

/// Cancels `ending` at the first SIGINT or SIGTERM, and ends the process at the second without waiting for anything.
///
/// # Errors
/// Where the operating system does not let signals be caught.
pub fn on_signals(ending: CancellationToken) -> io::Result<tokio::task::JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if ending.is_cancelled() {
                std::process::exit(INTERRUPTED);
            }
            ending.cancel();
        }
    }))
}

/// Cancels `ending` once standard input ends: a supervisor holds its other end, also when it is killed.
///
/// # Errors
/// Where the operating system gives no thread.
pub fn on_end_of_stdin(ending: CancellationToken) -> io::Result<()> {
    // A blocked read cannot be called off, so nobody waits for this thread: it ends with the process.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut ignored = [0; 256];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut ignored) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        ending.cancel();
    })?;
    Ok(())
}

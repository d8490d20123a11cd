//! Who drives the runtime: its sockets, its timers and its tasks.
//!
//! The engine's thread does while it waits for a step and when it has computed one, so that a frame that comes to an
//! idle stage, or leaves it, wakes no other thread: that takes longer than all else that a small frame needs (50 to
//! 100 us where processors sleep). While the engine computes, the main thread drives. In a decode step it only looks
//! in now and then, so as not to be in the engine's way when that is done; nothing that comes meanwhile is wanted sooner.
//!
//! A runtime of one thread may be driven by any thread that waits in it, by one at a time.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::{JoinError, yield_now};

/// How often the main thread looks in while a short step is computed: far more often than peers wait for an answer (their
/// acknowledgements may take 5 ms), and too seldom to cost 1% of a processor.
const LOOK_IN: Duration = Duration::from_millis(1);
/// How long the main thread keeps asking whose turn it is before it waits to be told: a stream's steps come sooner, and
/// telling it would cost the engine as much as a frame does.
const WATCHFUL: Duration = Duration::from_millis(500);

/// The runtime of a worker, driven by two threads in turn.
#[derive(Debug)]
pub struct Driver {
    runtime: Runtime,
    state: Mutex<State>,
    changed: Condvar,
    /// Asks the main thread to let go of the runtime.
    wanted: Notify,
}

#[derive(Debug)]
struct State {
    turn: Turn,
    /// Whether the main thread waits to be told of another turn.
    asleep: bool,
    ended: bool,
}

/// Who drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The engine's thread.
    Engine,
    /// Nobody, but that the main thread looks in.
    Nobody,
    /// The main thread.
    Main,
}

impl Driver {
    /// A runtime that nobody drives yet.
    ///
    /// # Errors
    /// Where the operating system does not give what it needs.
    pub fn new() -> io::Result<Arc<Driver>> {
        // The compute threads are the user's to number; files are read by one at a time.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
        let state = Mutex::new(State { turn: Turn::Main, asleep: false, ended: false });
        Ok(Arc::new(Driver { runtime, state, changed: Condvar::new(), wanted: Notify::new() }))
    }

    /// Runs `future` to its end; to be called by the main thread, once.
    ///
    /// # Errors
    /// Where it panics.
    pub fn run<F>(self: &Arc<Self>, future: F) -> Result<F::Output, JoinError>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let ending = Ending(self.clone());
        let mut task = self.runtime.spawn(async move {
            let _ending = ending;
            future.await
        });
        loop {
            let ended = match self.main_threads_turn() {
                Turn::Engine | Turn::Nobody => {
                    self.runtime.block_on(yield_now());
                    None
                }
                Turn::Main => self.runtime.block_on(async {
                    tokio::select! {
                        biased;
                        ended = &mut task => Some(ended),
                        () = self.wanted.notified() => None,
                    }
                }),
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Waits for `future` and drives the runtime meanwhile; to be called by the engine's thread.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.hand_over(Turn::Engine);
        self.runtime.block_on(future)
    }

    /// To be called by the engine's thread before it computes: where that is `short` nobody is in its way afterwards.
    pub(crate) fn computing(&self, short: bool) {
        self.hand_over(if short { Turn::Nobody } else { Turn::Main });
    }

    /// Ends what still runs without waiting for it, such as a computation that hangs.
    pub fn shut_down(self: Arc<Self>) {
        match Arc::try_unwrap(self) {
            Ok(driver) => driver.runtime.shutdown_background(),
            // The engine hangs, with its hand on the runtime: the process ends without either.
            Err(held) => std::mem::forget(held),
        }
    }

    /// Waits until the main thread is to drive, or to look in.
    fn main_threads_turn(&self) -> Turn {
        let asked = Instant::now();
        let mut state = self.state();
        loop {
            if state.ended {
                return Turn::Main;
            }
            let turn = state.turn;
            match turn {
                Turn::Main => return turn,
                Turn::Engine if asked.elapsed() > WATCHFUL => {
                    state.asleep = true;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.asleep = false;
                }
                Turn::Engine | Turn::Nobody => {
                    let waited = self.changed.wait_timeout(state, LOOK_IN);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    if turn == Turn::Nobody && state.turn == turn {
                        return turn;
                    }
                }
            }
        }
    }

    fn hand_over(&self, turn: Turn) {
        let mut state = self.state();
        let (before, tell) = (state.turn, state.asleep || turn == Turn::Main);
        state.turn = turn;
        drop(state);
        if turn == before {
            return;
        }
        if before == Turn::Main {
            self.wanted.notify_one();
        } else if tell && turn != Turn::Engine {
            self.changed.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped at the end of the main thread's future, whoever drives it then.
struct Ending(Arc<Driver>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_one();
    }
}

/// Held by the engine's thread: once it has ended, the main thread drives.
#[derive(Debug)]
pub(crate) struct EngineThread(pub(crate) Arc<Driver>);

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.0.hand_over(Turn::Main);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle, ThreadId};

    use tokio::sync::oneshot;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A driver with its main thread, which ends when told.
    fn started() -> (Arc<Driver>, JoinHandle<()>, oneshot::Sender<()>) {
        let driver = Driver::new().unwrap();
        let (end, ended) = oneshot::channel();
        let main = thread::spawn({
            let driver = driver.clone();
            move || driver.run(ended).unwrap().unwrap()
        });
        (driver, main, end)
    }

    /// Has a task of the runtime say which thread runs it.
    fn driving(driver: &Driver) -> ThreadId {
        let (found, driving) = mpsc::channel();
        driver.runtime.spawn(async move { found.send(thread::current().id()) });
        driving.recv_timeout(PATIENCE).unwrap()
    }

    /// Asks which thread drives until it is `wanted`: handing over takes a moment.
    fn await_driver(driver: &Driver, wanted: ThreadId) {
        let deadline = Instant::now() + PATIENCE;
        while driving(driver) != wanted {
            assert!(Instant::now() < deadline, "the other thread goes on driving");
        }
    }

    #[test]
    fn the_engine_drives_while_it_waits_and_the_main_thread_while_it_computes() {
        let (driver, main, end) = started();
        let engine = thread::current().id();
        for round in 0..100 {
            driver.computing(round % 3 != 0);
            await_driver(&driver, main.thread().id());
            let (work, came) = oneshot::channel();
            let sender = thread::spawn({
                let driver = driver.clone();
                move || {
                    await_driver(&driver, engine);
                    work.send(()).unwrap();
                }
            });
            driver.wait(came).unwrap();
            sender.join().unwrap();
        }
        drop(EngineThread(driver.clone()));
        await_driver(&driver, main.thread().id());
        end.send(()).unwrap();
        main.join().unwrap();
        driver.shut_down();
    }

    #[test]
    fn a_main_thread_that_fell_asleep_looks_in_again() {
        let (driver, main, end) = started();
        driver.wait(async { tokio::time::sleep(WATCHFUL * 2).await });
        assert!(driver.state().asleep);
        driver.computing(true);
        await_driver(&driver, main.thread().id());
        end.send(()).unwrap();
        main.join().unwrap();
    }

    #[test]
    fn the_main_thread_learns_of_its_end_while_the_engine_drives() {
        let (driver, main, end) = started();
        let (stop, stopped) = oneshot::channel::<()>();
        let engine = thread::spawn({
            let driver = driver.clone();
            move || driver.wait(stopped).unwrap()
        });
        await_driver(&driver, engine.thread().id());
        end.send(()).unwrap();
        main.join().unwrap();
        stop.send(()).unwrap();
        engine.join().unwrap();
    }

    #[test]
    fn a_panic_of_the_future_is_an_error() {
        let ended: Result<(), _> = Driver::new().unwrap().run(async { panic!("a defect") });
        assert!(ended.unwrap_err().is_panic());
    }
}

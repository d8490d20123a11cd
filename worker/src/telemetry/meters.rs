//! The thread that looks at the system once a second.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use brigade_proto::control::{CardTelemetry, DeviceKind, MachineTelemetry, ProcessTelemetry};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

#[cfg(not(target_os = "linux"))]
use super::elsewhere::System;
#[cfg(target_os = "linux")]
use super::linux::System;
use super::rates::{Look, between};

/// How often the system is looked at: as often as workers report.
const EVERY: Duration = Duration::from_secs(1);

/// How a machine, this process and its card are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vitals {
    /// The machine.
    pub machine: MachineTelemetry,
    /// This process.
    pub process: ProcessTelemetry,
    /// The card, where the device is one whose driver tells.
    pub card: Option<CardTelemetry>,
}

/// Looks at the system from time to time, on a thread of its own: a driver or a system without memory may keep whoever
/// asks waiting.
#[derive(Debug)]
pub struct Meters {
    latest: Arc<Mutex<Vitals>>,
    /// Dropped, it ends the thread.
    going: SyncSender<()>,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

impl Meters {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn start(device: DeviceKind) -> std::io::Result<Meters> {
        let latest = Arc::new(Mutex::new(Vitals::default()));
        // Nothing is ever sent.
        let (going, ending) = sync_channel(1);
        let (end, ended) = oneshot::channel();
        let told = latest.clone();
        let thread = std::thread::Builder::new().name("telemetry".to_owned()).spawn(move || {
            let mut reader = Reader::new(device);
            loop {
                let vitals = reader.read();
                *told.lock().unwrap_or_else(PoisonError::into_inner) = vitals;
                if ending.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            // Nobody waits any more where the receiver is gone.
            let _ = end.send(());
        })?;
        Ok(Meters { latest, going, ended, thread })
    }

    /// What was seen last; nothing before the first look, which takes a moment.
    pub fn latest(&self) -> Vitals {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the thread; `false` where that takes longer than `patience`, and the thread is left behind.
    pub async fn stop(self, patience: Duration) -> bool {
        let Meters { going, ended, thread, .. } = self;
        drop(going);
        match tokio::time::timeout(patience, ended).await {
            // The thread ends with its last message, so joining it does not wait.
            Ok(_) => thread.join().is_ok(),
            Err(_) => false,
        }
    }
}

/// What the thread owns.
struct Reader {
    began: Instant,
    system: System,
    before: Option<Look>,
}

impl Reader {
    fn new(device: DeviceKind) -> Reader {
        Reader { began: Instant::now(), system: System::here(device), before: None }
    }

    fn read(&mut self) -> Vitals {
        let (at, process_time) = (self.began.elapsed(), process_time());
        let now = Look { at, process_time, ..self.system.look() };
        let (machine, process) = between(self.before.as_ref(), &now);
        let card = now.card;
        self.before = Some(now);
        Vitals { machine, process, card }
    }
}

/// Processor time that this process has had, of all its threads.
fn process_time() -> Option<Duration> {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(test)]
mod tests {
    use brigade_shard::units::Bytes;

    use super::*;

    /// Processor time that this thread has had: other tests run beside it.
    fn spent() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[test]
    fn a_look_takes_less_than_a_two_hundredth_of_a_second_of_a_processor() {
        const LOOKS: u32 = 200;
        let mut reader = Reader::new(DeviceKind::Cpu);
        let before = spent();
        for _ in 0..LOOKS {
            reader.read();
        }
        let each = (spent() - before) / LOOKS;
        println!("a look takes {} us of a processor", each.as_micros());
        assert!(each < Duration::from_millis(5), "{each:?}");
    }

    #[test]
    fn a_process_that_computes_keeps_a_processor_busy() {
        let mut reader = Reader::new(DeviceKind::Cpu);
        reader.read();
        let (before, mut number) = (spent(), 1u64);
        while spent() - before < Duration::from_millis(100) {
            number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        let Vitals { machine, process, card } = reader.read();
        println!("{machine:?} {process:?}");
        assert!(process.processors.expect("a process knows its own time") > 0.0, "{process:?}");
        assert!(machine.processors_busy.expect("told everywhere") > 0.0, "{machine:?}");
        assert_eq!(card, None);
    }

    #[tokio::test]
    async fn the_thread_looks_at_once_and_ends_when_it_is_told() {
        let meters = Meters::start(DeviceKind::Cpu).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while meters.latest().machine.memory == Bytes::ZERO {
            assert!(Instant::now() < deadline, "nothing was seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        assert!(meters.stop(Duration::from_secs(5)).await);
        assert!(began.elapsed() < EVERY, "it ended after {:?}", began.elapsed());
    }
}

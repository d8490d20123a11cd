//! Whose turn it is to measure, among the workers of one machine, and what those before have found.
//!
//! A file in the temporary folder is locked by the worker that measures. In it stands what the last ones found, for others
//! like them that start within some minutes: two measure, so that a short disturbance of one of them does not count, and
//! the rest take what both come to.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant, SystemTime};

use brigade_proto::control::DeviceKind;
use serde::{Deserialize, Serialize};

use super::Calibration;

/// Locked in the temporary folder by the worker that measures.
const TURN_FILE: &str = "brigade-calibration.lock";
/// How long a worker waits for its turn: several others that measure.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// For how long a measurement counts: a worker that was ended and starts again need not measure, and gets the same shard; one
/// that starts much later may find its machine changed.
const FRESH: Duration = Duration::from_secs(600);
/// As many measure before others take what they found.
const ENOUGH: u32 = 2;
/// Longest file that is read: some kinds of workers with a hundred speeds each.
const LONGEST_FILE: u64 = 1 << 20;

/// Workers that compute with as much of this machine, and with the same kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Twins {
    version: String,
    device: String,
    threads: usize,
}

impl Twins {
    /// Those on a device of the same name: cards of a kind are alike whatever their numbers, and with `CUDA_VISIBLE_DEVICES`
    /// several have the same number.
    pub(super) fn of(device: DeviceKind, name: Option<String>, threads: usize) -> Twins {
        let device = name.unwrap_or_else(|| format!("{device:?}"));
        Twins { version: env!("CARGO_PKG_VERSION").to_owned(), device, threads }
    }
}

/// What some twins have found.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Found {
    twins: Twins,
    /// The first of them measured at so many seconds since 1970.
    unix_s: u64,
    /// How many have measured.
    times: u32,
    /// What all come to.
    calibration: Calibration,
}

/// The right to measure, held until it is dropped.
pub(super) struct Turn {
    file: File,
    found: Vec<Found>,
}

impl Turn {
    /// Waits for it; `None` where it cannot be had, because another user owns the file or a worker is stuck in its
    /// measurement. The measurement is merely less exact then.
    pub(super) fn wait() -> Option<Turn> {
        let at = std::env::temp_dir().join(TURN_FILE);
        let mut file = File::options().create(true).append(true).read(true).open(at).ok()?;
        let asked = Instant::now();
        while file.try_lock().is_err() {
            if asked.elapsed() > LONGEST_WAIT {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let found = if is_ours(&file) { read(&mut file) } else { Vec::new() };
        Some(Turn { file, found })
    }

    /// What enough twins have found just now.
    pub(super) fn known(&self, twins: &Twins) -> Option<Calibration> {
        let of = self.found.iter().find(|found| found.twins == *twins && found.times >= ENOUGH);
        of.map(|found| found.calibration.clone())
    }

    /// Tells others what was found; what counts is what it comes to together with what twins found before.
    pub(super) fn tell(mut self, twins: &Twins, calibration: Calibration) -> Calibration {
        let place = self.found.iter().position(|found| found.twins == *twins);
        let now_s = unix_s();
        let found = match place.map(|place| self.found.swap_remove(place)) {
            None => Found { twins: twins.clone(), unix_s: now_s, times: 1, calibration },
            Some(before) => Found {
                times: before.times.saturating_add(1),
                calibration: calibration.both(&before.calibration),
                ..before
            },
        };
        let calibration = found.calibration.clone();
        self.found.push(found);
        if is_ours(&self.file)
            && let Err(error) = self.write()
        {
            tracing::debug!(%error, "other workers of this machine measure anew: this one could not tell them");
        }
        calibration
    }

    fn write(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(&serde_json::to_vec(&self.found)?)
    }
}

/// What stands in the file and is fresh; nothing where it makes no sense, as after a worker was killed in the middle.
fn read(file: &mut File) -> Vec<Found> {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(LONGEST_FILE).read_to_string(&mut text));
    let found: Vec<Found> = read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default();
    let now_s = unix_s();
    let fresh = |found: &Found| (found.unix_s..=found.unix_s + FRESH.as_secs()).contains(&now_s);
    found.into_iter().filter(|found| fresh(found) && found.calibration.is_sound()).collect()
}

/// Whether nobody else has written to the file.
fn is_ours(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let ours = |metadata: std::fs::Metadata| {
        metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
    };
    file.metadata().is_ok_and(ours)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

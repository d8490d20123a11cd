//! How fast this machine reads weights from its disk, for layers that are read again for every step.
//!
//! It is measured as these layers are read: past the system's cache, some MiB at a time, by one thread.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use brigade_shard::units::{ByteRate, Bytes};

use crate::weights::{DISK_READ_BYTES, ReadProblem, WeightBuffer, drop_cached, open_direct, read_blocks};

/// Most that is read to measure a disk.
const MOST_BYTES: u64 = 256 << 20;

/// Longest time for that, but for the last read.
const LONGEST: Duration = Duration::from_millis(300);

/// Most files that are looked at for the largest.
const MOST_FILES: usize = 4096;

/// Whether a worker may read layers again for every step, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// It may not.
    No,
    /// At the rate that is measured.
    Measured,
    /// At this rate.
    Stated(ByteRate),
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskRate {
    /// Weight bytes per second.
    pub bytes_per_s: f64,
    /// The file that was read.
    pub path: PathBuf,
    /// How much of it.
    pub bytes: Bytes,
    /// Whether it was read past the system's cache, or through it.
    pub direct: bool,
}

/// Why a disk could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum DiskRateError {
    /// There is nothing to read.
    #[error("there is no model of at least {} in {places} to measure the disk with", Bytes(DISK_READ_BYTES as u64))]
    NoModel {
        /// Where one was looked for.
        places: String,
    },
    /// A file cannot be read.
    #[error("failed to read {}: {problem}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        problem: ReadProblem,
    },
}

/// Measures the disk of the largest model in `places`, each a directory of models, or a model. Takes about
/// a third of a second and some MiB, which are freed.
///
/// # Errors
/// Where there is no model, or it cannot be read.
pub fn measure(places: &[PathBuf]) -> Result<DiskRate, DiskRateError> {
    let Some((path, bytes)) = largest(places).filter(|(_, bytes)| *bytes >= DISK_READ_BYTES as u64) else {
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        return Err(DiskRateError::NoModel { places: places.join(", ") });
    };
    measure_file(&path, bytes.min(MOST_BYTES))
}

/// Measures the disk with the first `most` bytes of a file.
///
/// # Errors
/// Where it cannot be read.
pub fn measure_file(path: &Path, most: u64) -> Result<DiskRate, DiskRateError> {
    let failed = |problem| DiskRateError::Read { path: path.to_owned(), problem };
    let io = |error| failed(ReadProblem::Io(error));
    let (file, direct) = match open_direct(path) {
        Ok(file) => (file, true),
        Err(_) => (File::open(path).map_err(io)?, false),
    };
    let mut buffer = WeightBuffer::zeroed(DISK_READ_BYTES).map_err(|error| io(io::Error::other(error)))?;
    // Memory that has never been written to would be found while the disk is timed.
    buffer.bytes_mut().fill(1);
    if !direct {
        drop_cached(&file, 0, most);
    }
    let (began, goes_on) = (Instant::now(), AtomicBool::new(false));
    let mut at = 0;
    while at + (DISK_READ_BYTES as u64) <= most && (at == 0 || began.elapsed() < LONGEST) {
        read_blocks(&file, at, buffer.bytes_mut(), DISK_READ_BYTES, &goes_on)
            .map_err(|(_, problem)| failed(problem.unwrap_or(ReadProblem::Truncated)))?;
        if !direct {
            drop_cached(&file, at, DISK_READ_BYTES as u64);
        }
        at += DISK_READ_BYTES as u64;
    }
    let bytes_per_s = at as f64 / began.elapsed().as_secs_f64();
    Ok(DiskRate { bytes_per_s, path: path.to_owned(), bytes: Bytes(at), direct })
}

/// The largest file of a model in `places`, and in the directories there, with its size.
fn largest(places: &[PathBuf]) -> Option<(PathBuf, u64)> {
    let entries = |place: &PathBuf| std::fs::read_dir(place).into_iter().flatten().flatten();
    let paths = |place: &PathBuf| -> Vec<PathBuf> { entries(place).map(|entry| entry.path()).collect() };
    let near: Vec<PathBuf> = places
        .iter()
        .flat_map(|place| if place.is_dir() { paths(place) } else { vec![place.clone()] })
        .collect();
    let within = near.iter().filter(|path| path.is_dir()).flat_map(paths);
    let is_weights = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "gguf" || extension == "safetensors")
    };
    let files = near.iter().cloned().chain(within).filter(is_weights).take(MOST_FILES);
    let sized = files.filter_map(|path| {
        let file = std::fs::metadata(&path).ok().filter(|file| file.is_file())?;
        Some((path, file.len()))
    });
    sized.max_by_key(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_the_largest_model_is_measured() {
        let directory = tempfile::tempdir().expect("a directory");
        let places = [directory.path().to_owned(), directory.path().join("none")];
        let error = measure(&places).expect_err("there is none").to_string();
        assert!(error.starts_with("there is no model of at least 4.0 MiB in "), "{error}");
        let write = |name: &str, mib: usize| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            std::fs::write(&path, vec![7; mib << 20]).expect("a file");
            path
        };
        write("small.gguf", 5);
        write("notes.txt", 20);
        write("deep/er/far.gguf", 20);
        let large = write("sharded/model-00001-of-00002.safetensors", 12);
        let rate = measure(&places).expect("a rate");
        assert_eq!(rate.path, large);
        assert!(rate.bytes_per_s > 0.0 && rate.bytes.0.is_multiple_of(4 << 20), "{rate:?}");
        assert!(rate.bytes >= Bytes::mib(4) && rate.bytes <= Bytes::mib(12), "{rate:?}");
    }
}

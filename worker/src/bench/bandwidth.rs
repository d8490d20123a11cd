//! How fast this machine's memory can be read, and how fast a file that is in memory already.
//!
//! Decoding reads every weight once per token, so that the first is what its speed is compared with; loading is
//! compared with the second.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::simd::{Simd, kernel};
use crate::weights::{READ_BYTES, WeightBuffer};

/// Bytes that are read in a pass: several times what the caches of a large server's processor hold.
const PASS_BYTES: usize = 512 << 20;

/// Time for each way of reading; its fastest pass counts.
const MEASURE: Duration = Duration::from_millis(300);

/// Fewest passes for each way of reading, where they take longer than [`MEASURE`].
const LEAST_PASSES: usize = 4;

/// Words of a cache line.
const LINE_WORDS: usize = 8;

/// In how many streams a thread reads its part, each way being tried: which is the fastest depends on the processor's
/// prefetchers.
const STREAMS: [usize; 3] = [1, 2, 4];

kernel! {
    /// Reads all words, in `streams` places at a time, and adds them up.
    fn read_words(words: &[u64], streams: usize) -> u64 {
        let mut parts = words.chunks(words.len().div_ceil(streams).max(1));
        let mut next = || parts.next().unwrap_or(&[]);
        match streams {
            1 => add_lines([next()]),
            2 => add_lines([next(), next()]),
            _ => add_lines([next(), next(), next(), next()]),
        }
    }
}

/// Adds up parts, line by line in turn; what is longer than the shortest of them by less than a line is left out.
#[inline(always)]
fn add_lines<const N: usize>(parts: [&[u64]; N]) -> u64 {
    let mut sums = [[0u64; LINE_WORDS]; N];
    let lines = parts.map(|part| part.as_chunks::<LINE_WORDS>().0);
    let least = lines.iter().map(|lines| lines.len()).min().unwrap_or(0);
    let lines = lines.map(|lines| &lines[..least]);
    for i in 0..least {
        for (sum, lines) in sums.iter_mut().zip(lines) {
            for (sum, word) in sum.iter_mut().zip(lines[i]) {
                *sum = sum.wrapping_add(word);
            }
        }
    }
    sums.iter().flatten().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Bytes per second that `threads` threads read from memory together: the fastest pass over 512 MiB, of several passes in
/// several ways.
pub fn memory_bytes_per_s(threads: usize) -> f64 {
    let threads = threads.max(1);
    let words: Vec<u64> = vec![0x0101_0101_0101_0101; PASS_BYTES / size_of::<u64>()];
    let parts: Vec<&[u64]> = words.chunks(words.len().div_ceil(threads)).collect();
    let passes = STREAMS.iter().map(|&streams| fastest_pass(&parts, streams));
    PASS_BYTES as f64 / passes.fold(f64::INFINITY, f64::min)
}

/// Seconds of the fastest pass in which every thread reads its part once. A pass begins for all together, and ends with
/// the last.
fn fastest_pass(parts: &[&[u64]], streams: usize) -> f64 {
    let simd = Simd::detect();
    let (begin, end) = (Barrier::new(parts.len()), Barrier::new(parts.len()));
    let over = std::sync::atomic::AtomicBool::new(false);
    let read = |part: &[u64], leads: bool| {
        let (began, mut passes, mut best) = (Instant::now(), 0, f64::INFINITY);
        loop {
            begin.wait();
            if over.load(std::sync::atomic::Ordering::Acquire) {
                return best;
            }
            let pass = Instant::now();
            std::hint::black_box(read_words(simd, std::hint::black_box(part), streams));
            end.wait();
            best = best.min(pass.elapsed().as_secs_f64());
            passes += 1;
            if leads && passes >= LEAST_PASSES && began.elapsed() > MEASURE {
                over.store(true, std::sync::atomic::Ordering::Release);
            }
        }
    };
    std::thread::scope(|scope| {
        for part in &parts[1..] {
            scope.spawn(|| read(part, false));
        }
        read(parts[0], true)
    })
}

/// Seconds that `threads` threads take to read all `files`.
///
/// # Errors
/// Where a file cannot be read, or the operating system gives no thread.
pub fn read_s(files: &[PathBuf], threads: usize, kept: Kept) -> io::Result<f64> {
    let began = Instant::now();
    for path in files {
        let file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        match kept {
            Kept::All => {
                let mut memory = WeightBuffer::zeroed(bytes).map_err(io::Error::other)?;
                read_file(&file, memory.bytes_mut(), threads)?;
                std::hint::black_box(memory.bytes());
            }
            Kept::Nothing => {
                let mut piece = vec![0; READ_BYTES];
                for at in (0..bytes).step_by(READ_BYTES) {
                    file.read_exact_at(&mut piece[..READ_BYTES.min(bytes - at)], at as u64)?;
                }
            }
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

/// What becomes of the bytes of a file that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// They go to memory of their own, as a model's weights do.
    All,
    /// They are overwritten by the next; one thread reads, and the file is in the system's cache afterwards.
    Nothing,
}

fn read_file(file: &File, out: &mut [u8], threads: usize) -> io::Result<()> {
    let part_bytes = out.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = out
            .chunks_mut(part_bytes)
            .enumerate()
            .map(|(i, part)| {
                let read = move || {
                    part.chunks_mut(READ_BYTES).enumerate().try_for_each(|(j, piece)| {
                        file.read_exact_at(piece, (i * part_bytes + j * READ_BYTES) as u64)
                    })
                };
                std::thread::Builder::new().name(format!("read-{i}")).spawn_scoped(scope, read)
            })
            .collect();
        readers.into_iter().try_for_each(|reader| {
            reader?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a reading thread has ended with a defect")))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_in_whichever_way() {
        let words: Vec<u64> = (0..4 * LINE_WORDS as u64 * 25).collect();
        let sum: u64 = words.iter().sum();
        for simd in Simd::available() {
            for streams in STREAMS {
                assert_eq!(read_words(simd, &words, streams), sum, "{simd:?}, {streams} streams");
            }
        }
    }
}

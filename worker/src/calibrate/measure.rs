//! One kernel's speed on memory that is in no cache.

use std::time::{Duration, Instant};

use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::backend::{Backend, BackendError, MatrixShape};
use crate::bench::read_once;
use crate::weights::{LoadError, TensorSource};

/// What all types of a device may take together: those that come later are not measured where time is out.
const ALL: Duration = Duration::from_millis(900);
/// Time for each number of rows; the fastest run of those that fit counts.
const MEASURE: Duration = Duration::from_millis(8);
/// Fewest runs for each number of rows, while time is left.
const LEAST_RUNS: usize = 2;
/// Bytes that are read to drive out what caches hold, where it is not known how large they are.
const USUAL_CACHE: usize = 64 << 20;
/// Most bytes that are read for that.
const LARGEST_CACHE: usize = 512 << 20;

/// The time that all types share.
pub(super) struct Budget {
    began: Instant,
}

impl Budget {
    pub(super) fn begin() -> Budget {
        Budget { began: Instant::now() }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.began.elapsed() > ALL
    }
}

/// What a product is measured with.
pub(super) struct Bench {
    /// Inputs and outputs of the matrix.
    width: usize,
    outputs: usize,
    /// Products of a run: more than one where handing one out takes long beside it.
    products: usize,
    /// What is read before every run, by so many threads.
    others: Vec<u64>,
    threads: usize,
}

impl Bench {
    /// For a processor. The matrix takes 9 MiB in Q8_0, and 16 MiB in F16.
    pub(super) fn of_processor(threads: usize, room: Bytes) -> Bench {
        let bytes = last_level_cache().map_or(USUAL_CACHE, |bytes| 2 * bytes).min(LARGEST_CACHE);
        let bytes = bytes.min(usize::try_from(room.0 / 2).unwrap_or(usize::MAX));
        Bench { width: 2048, outputs: 4096, products: 1, others: vec![1; bytes / size_of::<u64>()], threads }
    }

    /// For a card: a matrix that is larger than its caches, and a wait that is short beside the products.
    pub(super) fn of_card() -> Bench {
        Bench { width: 4096, outputs: 16384, products: 8, others: Vec::new(), threads: 1 }
    }

    /// Weights per second of a type's products with these numbers of rows, as far as there is time; of the first in any
    /// case.
    pub(super) fn speeds<B: Backend>(
        &mut self,
        mut backend: B,
        kind: TensorType,
        rows: &[usize],
        budget: &Budget,
    ) -> Result<Vec<(usize, f64)>, LoadError> {
        let most = rows.iter().copied().max().unwrap_or(1);
        backend.reserve(most, self.width);
        let shape = MatrixShape { kind, rows: self.outputs, width: self.width };
        let matrix = backend.matrix(shape, &mut Pattern)?;
        backend.loaded();
        backend.settle();
        let weights = (self.outputs * self.width) as f64;
        let mut found = Vec::with_capacity(rows.len());
        for rows in rows {
            if !found.is_empty() && budget.is_spent() {
                break;
            }
            let run_s = self.fastest_run(&mut backend, &matrix, *rows, budget)?;
            found.push((*rows, weights / run_s));
        }
        // A backend moves and counts the memory of its matrices: it goes first.
        drop(backend);
        drop(matrix);
        Ok(found)
    }

    /// Seconds of the fastest product with `rows` rows.
    fn fastest_run<B: Backend>(
        &mut self,
        backend: &mut B,
        matrix: &B::Matrix,
        rows: usize,
        budget: &Budget,
    ) -> Result<f64, BackendError> {
        let values: Vec<f32> = (0..rows * self.width).map(|i| (i % 17) as f32 - 8.0).collect();
        let (mut input, mut output) = (backend.rows(rows, self.width)?, backend.rows(rows, self.outputs)?);
        let (mut first, mut scratch) = (backend.rows(1, self.outputs)?, Vec::new());
        backend.upload(&values, self.width, &mut input)?;
        let (products, others, threads) = (self.products, &self.others, self.threads);
        backend.enter(|backend| {
            let mut run = |products: usize| -> Result<f64, BackendError> {
                let began = Instant::now();
                for _ in 0..products {
                    backend.linear(&input, &mut [(matrix, &mut output)])?;
                }
                // Reading one row back waits for a device that computes behind our back.
                backend.select(&output, &[0], &mut first)?;
                backend.host(&first, &mut scratch)?;
                Ok(began.elapsed().as_secs_f64())
            };
            // Threads and scratch memory that are used for the first time.
            run(1)?;
            let (began, mut runs, mut best) = (Instant::now(), 0, f64::INFINITY);
            while runs == 0 || !budget.is_spent() && (runs < LEAST_RUNS || began.elapsed() < MEASURE) {
                read_once(others, threads);
                best = best.min(run(products)? / products as f64);
                runs += 1;
            }
            Ok(best)
        })
    }
}

/// Bytes of the processor's last-level cache; `None` where the system does not tell.
fn last_level_cache() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok()?;
    let (number, unit) = text.trim().split_at(text.trim().len().checked_sub(1)?);
    let unit = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

/// Weights of no meaning: every scale a small number.
struct Pattern;

impl TensorSource for Pattern {
    fn read_at(&self, _at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        out.fill(0x11);
        Ok(())
    }

    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError {
        LoadError::Unsupported { tensor: "calibration".to_owned(), kind, device }
    }
}

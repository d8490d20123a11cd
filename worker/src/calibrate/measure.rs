//! One kernel's speed on memory that is in no cache.

use std::time::{Duration, Instant};

use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::backend::{Backend, BackendError, MatrixShape};
use crate::bench::read_once;
use crate::weights::{LoadError, TensorSource};

/// What a type may take, which is enough for several runs of each size where nothing else keeps the device busy; where it
/// is spent, the remaining sizes are run once.
const KIND: Duration = Duration::from_millis(100);
/// Sizes that would take longer than this are left out, on devices that are slow.
const LONGEST_RUN_S: f64 = 0.1;
/// Time for each number of rows; the median of the runs that fit counts: what is usual, and not what is best.
const MEASURE: Duration = Duration::from_millis(4);
/// Fewest runs for each number of rows, while the type's time is not spent.
const LEAST_RUNS: usize = 4;
/// Bytes that are read to drive out what caches hold, where it is not known how large they are.
const USUAL_CACHE: usize = 64 << 20;
/// Most bytes that are read for that.
const LARGEST_CACHE: usize = 512 << 20;

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

    /// Weights per second of a type's products with these numbers of rows, ever more of them; of the first in any case.
    pub(super) fn speeds<B: Backend>(
        &mut self,
        mut backend: B,
        kind: TensorType,
        rows: &[usize],
    ) -> Result<Vec<(usize, f64)>, LoadError> {
        let began = Instant::now();
        let most = rows.iter().copied().max().unwrap_or(1);
        backend.reserve(most, self.width);
        let shape = MatrixShape { kind, rows: self.outputs, width: self.width };
        let matrix = backend.matrix(shape, &mut Pattern)?;
        backend.loaded();
        backend.settle();
        let weights = (self.outputs * self.width) as f64;
        let mut found = Vec::with_capacity(rows.len());
        for rows in rows {
            let like_the_last = found.last().map_or(0.0, |(last, weights_per_s): &(usize, f64)| {
                weights / weights_per_s * *rows as f64 / *last as f64
            });
            if like_the_last > LONGEST_RUN_S {
                break;
            }
            let run_s = self.usual_run(&mut backend, &matrix, *rows, began)?;
            found.push((*rows, weights / run_s));
        }
        // A backend moves and counts the memory of its matrices: it goes first.
        drop(backend);
        drop(matrix);
        Ok(found)
    }

    /// Seconds of the usual product with `rows` rows, of a type whose turn began at `kind_began`.
    fn usual_run<B: Backend>(
        &mut self,
        backend: &mut B,
        matrix: &B::Matrix,
        rows: usize,
        kind_began: Instant,
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
            // The first run uses threads and scratch memory for the first time: it counts where it is the only one.
            let (began, mut runs) = (Instant::now(), Vec::new());
            let is_spent = || kind_began.elapsed() > KIND;
            while runs.is_empty() || !is_spent() && (runs.len() < LEAST_RUNS || began.elapsed() < MEASURE) {
                read_once(others, threads);
                runs.push(run(products)? / products as f64);
            }
            if runs.len() > 1 {
                runs.remove(0);
            }
            let middle = (runs.len() - 1) / 2;
            Ok(*runs.select_nth_unstable_by(middle, f64::total_cmp).1)
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

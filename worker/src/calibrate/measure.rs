//! How fast matrices of a type are multiplied, with weights that are in no cache.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::backend::{Backend, BackendError, MatrixShape};
use crate::weights::{LoadError, TensorSource};

/// What a type may take, which is enough for several runs of each size where nothing else keeps the device busy; where it
/// is spent, the remaining sizes are run once.
const KIND: Duration = Duration::from_millis(150);
/// Sizes that would take longer than this are left out, on devices that are slow.
const LONGEST_RUN_S: f64 = 0.1;
/// Up to so many rows reading the weights decides, and every run needs some that are in no cache.
const READING_ROWS: usize = 8;
/// Runs of larger products, while the type's time is not spent.
const COMPUTING_RUNS: usize = 3;
/// Bytes of matrices that are more than caches hold, where it is not known how large these are.
const USUAL_RING: usize = 48 << 20;
/// Fewest and most bytes of matrices, whatever the caches are: one of more than that is shared by many, and no faster for
/// one of them than memory is.
const RING: RangeInclusive<usize> = 32 << 20..=64 << 20;

/// Bytes of matrices on a card: twice what the largest caches of cards hold, some 128 MiB of a datacentre's and 72 MiB of a
/// desktop's.
const CARD_RING: usize = 256 << 20;

/// What products are measured with: matrices in turn, as the layers of a model are, so that each is in no cache when its
/// turn comes again.
pub(super) struct Bench {
    /// Inputs and outputs of a matrix.
    width: usize,
    outputs: usize,
    /// Products of a run: more than one where handing one out takes long beside it.
    products: usize,
    /// Bytes of all matrices together.
    ring: usize,
}

impl Bench {
    /// For a processor: matrices of 9 MiB in Q8_0, and of 16 MiB in F16, that take half of `room`.
    pub(super) fn of_processor(room: Bytes) -> Bench {
        let ring = last_level_cache().map_or(USUAL_RING, |bytes| bytes + bytes / 4);
        let ring = ring.clamp(*RING.start(), *RING.end());
        let ring = ring.min(usize::try_from(room.0 / 2).unwrap_or(usize::MAX));
        Bench { width: 2048, outputs: 4096, products: 1, ring }
    }

    /// For a card, where waiting is short beside the products: matrices of 68 MiB in Q8_0, and of 128 MiB in F16, as many as
    /// are more than its caches hold, that take a quarter of `room`.
    pub(super) fn of_card(room: Bytes) -> Bench {
        let ring = CARD_RING.min(usize::try_from(room.0 / 4).unwrap_or(usize::MAX));
        Bench { width: 4096, outputs: 16384, products: 8, ring }
    }

    /// Weights per second of a type's products with these numbers of rows, ever more of them; of the first in any case.
    pub(super) fn speeds<B: Backend>(
        &self,
        mut backend: B,
        kind: TensorType,
        rows: &[usize],
    ) -> Result<Vec<(usize, f64)>, LoadError> {
        let began = Instant::now();
        let most = rows.iter().copied().max().unwrap_or(1);
        backend.reserve(most, self.width);
        let shape = MatrixShape { kind, rows: self.outputs, width: self.width };
        let weights = self.outputs * self.width;
        let bytes = weights / kind.block_values() as usize * kind.block_bytes() as usize;
        let matrices = (0..(self.ring / bytes).max(1)).map(|_| backend.matrix(shape, &mut Pattern));
        let matrices: Vec<B::Matrix> = matrices.collect::<Result<_, LoadError>>()?;
        backend.loaded();
        backend.settle();
        let weights = weights as f64;
        let mut found = Vec::with_capacity(rows.len());
        for rows in rows {
            let like_the_last = found.last().map_or(0.0, |(last, weights_per_s): &(usize, f64)| {
                weights / weights_per_s * *rows as f64 / *last as f64
            });
            if like_the_last > LONGEST_RUN_S {
                break;
            }
            let run_s = self.usual_run(&mut backend, &matrices, *rows, began + KIND)?;
            found.push((*rows, weights / run_s));
        }
        // A backend moves and counts the memory of its matrices: it goes first.
        drop(backend);
        drop(matrices);
        Ok(found)
    }

    /// Seconds of the usual product with `rows` rows.
    fn usual_run<B: Backend>(
        &self,
        backend: &mut B,
        matrices: &[B::Matrix],
        rows: usize,
        until: Instant,
    ) -> Result<f64, BackendError> {
        let values: Vec<f32> = (0..rows * self.width).map(|i| (i % 17) as f32 - 8.0).collect();
        let (mut input, mut output) = (backend.rows(rows, self.width)?, backend.rows(rows, self.outputs)?);
        let (mut first, mut scratch) = (backend.rows(1, self.outputs)?, Vec::new());
        backend.upload(&values, self.width, &mut input)?;
        let runs = if rows <= READING_ROWS { matrices.len().max(COMPUTING_RUNS) } else { COMPUTING_RUNS };
        let (products, mut ring) = (self.products, matrices.iter().cycle());
        backend.enter(|backend| {
            usual_s(runs, until, || {
                let began = Instant::now();
                for matrix in ring.by_ref().take(products) {
                    backend.linear(&input, &mut [(matrix, &mut output)])?;
                }
                // Reading one row back waits for a device that computes behind our back.
                backend.select(&output, &[0], &mut first)?;
                backend.host(&first, &mut scratch)?;
                Ok(began.elapsed().as_secs_f64() / products as f64)
            })
        })
    }
}

/// The median of what `runs` runs say, or of as many as begin before `until`: what is usual, and not what is best.
///
/// The first uses threads and memory for the first time: it counts where it is the only one.
pub(super) fn usual_s(
    runs: usize,
    until: Instant,
    mut run: impl FnMut() -> Result<f64, BackendError>,
) -> Result<f64, BackendError> {
    let first = run()?;
    let mut all = Vec::with_capacity(runs);
    while all.len() < runs && Instant::now() < until {
        all.push(run()?);
    }
    if all.is_empty() {
        return Ok(first);
    }
    let middle = (all.len() - 1) / 2;
    Ok(*all.select_nth_unstable_by(middle, f64::total_cmp).1)
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
pub(super) struct Pattern;

impl TensorSource for Pattern {
    fn read_at(&self, _at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        out.fill(0x11);
        Ok(())
    }

    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError {
        LoadError::Unsupported { tensor: "calibration".to_owned(), kind, device }
    }
}

//! How fast this device really is, measured with the kernels that steps run on.

use std::fs::File;
use std::time::{Duration, Instant};

use brigade_proto::control::DeviceKind;
use brigade_shard::tensor_type::TensorType;

use crate::backend::{Backend, BackendError, MatrixShape};
use crate::candle_backend::{self, CandleBackend};
use crate::cpu::CpuBackend;
use crate::weights::{LoadError, TensorSource};

/// Inputs of the matrix that is multiplied.
const WIDTH: usize = 2048;

/// Outputs of it: with 34 bytes for 32 weights it takes 17 MiB, more than a core's own caches.
const OUTPUTS: usize = 8192;

/// Rows of the matrix-matrix product, about those of a prompt's chunk; its output takes 2 MiB.
const ROWS: usize = 64;

/// Time for each of the two measurements; the best run of those that fit counts.
const MEASURE: Duration = Duration::from_millis(60);

/// Locked in the temporary folder by the worker that measures.
const TURN_FILE: &str = "brigade-calibration.lock";

/// How long a worker waits for its turn: some dozens of others on the same machine.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What a device does per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Weight bytes read by a matrix-vector product.
    pub bandwidth_bytes_per_s: f64,
    /// Floating-point operations of a matrix-matrix product: two per weight and row.
    pub flops_per_s: f64,
}

/// Measures the device with products of a Q8_0 matrix. Takes about a fifth of a second and below 24 MiB, all of it
/// freed. Workers of one machine measure one after the other, since each would make the others look slow.
///
/// # Errors
/// Where the device was not built in, or fails.
pub fn calibrate(device: DeviceKind, threads: usize) -> Result<Calibration, LoadError> {
    let _turn = turn();
    match device {
        DeviceKind::Cpu => measure(CpuBackend::new(threads)?),
        DeviceKind::Cuda(_) | DeviceKind::Metal => {
            measure(CandleBackend::new(candle_backend::device(device)?)?)
        }
    }
}

/// The right to measure, held until it is dropped; `None` where it cannot be had, because another user owns the file or
/// a worker is stuck in its measurement. The measurement is merely less exact then.
fn turn() -> Option<File> {
    let file = File::options().create(true).append(true).open(std::env::temp_dir().join(TURN_FILE)).ok()?;
    let asked = Instant::now();
    while file.try_lock().is_err() {
        if asked.elapsed() > LONGEST_WAIT {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(file)
}

fn measure<B: Backend>(mut backend: B) -> Result<Calibration, LoadError> {
    let kind = TensorType::Q8_0;
    let weights = (OUTPUTS * WIDTH) as u64;
    let bytes = kind.bytes_of(weights).map_or(0, |bytes| bytes.0);
    backend.reserve(ROWS, WIDTH);
    let matrix = backend.matrix(MatrixShape { kind, rows: OUTPUTS, width: WIDTH }, &mut Pattern)?;
    let vector_s = best_run(&mut backend, &matrix, 1)?;
    let matrix_s = best_run(&mut backend, &matrix, ROWS)?;
    Ok(Calibration {
        bandwidth_bytes_per_s: bytes as f64 / vector_s,
        flops_per_s: 2.0 * weights as f64 * ROWS as f64 / matrix_s,
    })
}

/// Seconds of the fastest product with `rows` rows.
fn best_run<B: Backend>(backend: &mut B, matrix: &B::Matrix, rows: usize) -> Result<f64, BackendError> {
    let values: Vec<f32> = (0..rows * WIDTH).map(|i| (i % 17) as f32 - 8.0).collect();
    let (mut input, mut output) = (backend.rows(rows, WIDTH)?, backend.rows(rows, OUTPUTS)?);
    let (mut first, mut scratch) = (backend.rows(1, OUTPUTS)?, Vec::new());
    backend.upload(&values, WIDTH, &mut input)?;
    backend.enter(|backend| {
        let began = Instant::now();
        let mut best = f64::INFINITY;
        while began.elapsed() < MEASURE || best.is_infinite() {
            let run = Instant::now();
            backend.linear(&input, &mut [(matrix, &mut output)])?;
            // Reading one row back waits for a device that computes behind our back.
            backend.select(&output, &[0], &mut first)?;
            backend.host(&first, &mut scratch)?;
            best = best.min(run.elapsed().as_secs_f64());
        }
        Ok(best)
    })
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

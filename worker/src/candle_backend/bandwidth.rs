//! What a card's memory gives.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::failed;
use crate::backend::BackendError;

/// Values that pass: 256 MiB, more than the caches of any card hold.
const VALUES: usize = 64 << 20;
/// Passes of a run, so that waiting for the device is short beside them.
const PASSES: usize = 8;
/// Runs, of which the fastest counts; the first compiles kernels on some devices.
const RUNS: usize = 5;

/// Bytes per second that the device reads and writes together where it does little else.
///
/// # Errors
/// Where the device fails, or has no 768 MiB.
pub fn memory_bytes_per_s(device: &Device) -> Result<f64, BackendError> {
    let measure = || {
        let values = Tensor::ones(VALUES, DType::F32, device)?;
        let mut fastest_s = f64::INFINITY;
        for _ in 0..RUNS {
            device.synchronize()?;
            let began = Instant::now();
            for _ in 0..PASSES {
                values.affine(1.0, 1.0)?;
            }
            device.synchronize()?;
            fastest_s = fastest_s.min(began.elapsed().as_secs_f64());
        }
        Ok((2 * PASSES * VALUES * size_of::<f32>()) as f64 / fastest_s)
    };
    measure().map_err(failed("measure its memory"))
}

//! How fast a device's own memory is, told by copying.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

use super::failed;
use crate::backend::BackendError;

/// Bytes that are copied at a time: more than any device's caches hold.
const COPIED: usize = 256 << 20;

/// Copies that are waited for together, so that waiting counts little.
const COPIES: usize = 8;

/// Time for all; the fastest counts.
const MEASURE: Duration = Duration::from_millis(300);

/// Bytes per second that a device reads and writes while it copies; takes 512 MiB of its memory meanwhile.
///
/// # Errors
/// Where the device fails, or has no memory for it.
pub fn copied_bytes_per_s(device: &Device) -> Result<f64, BackendError> {
    let measure = || {
        let from = Tensor::zeros(COPIED, DType::U8, device)?;
        let mut fastest_s = f64::INFINITY;
        let began = Instant::now();
        loop {
            device.synchronize()?;
            let run = Instant::now();
            for _ in 0..COPIES {
                drop(from.copy()?);
            }
            device.synchronize()?;
            fastest_s = fastest_s.min(run.elapsed().as_secs_f64());
            if began.elapsed() > MEASURE {
                // Each byte is read once and written once.
                return Ok((2 * COPIED * COPIES) as f64 / fastest_s);
            }
        }
    };
    measure().map_err(failed("copy within its memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_tells_its_memorys_speed() {
        let per_s = copied_bytes_per_s(&Device::Cpu).expect("a processor copies");
        println!("{:.1} GB/s", per_s / 1e9);
        assert!((1e8..1e14).contains(&per_s), "{per_s}");
    }
}

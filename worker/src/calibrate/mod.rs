//! How fast this device really is, measured with the kernels that steps run on.
//!
//! Steps read weights that were last read a step ago: they come from memory, not from a cache. So what lies in the
//! processor's caches is driven out before every run, by reading something else. Memory of the weights' kind is also
//! moved to huge pages first, as loaded weights are.
//!
//! Workers of one machine measure one after another, since each would make the others look slow, and those that are alike
//! and start together share what the first of them found.

mod measure;
mod turns;

use std::time::{Duration, Instant};

use brigade_proto::control::DeviceKind;
use brigade_shard::plan::{KernelSpeed, SharedHost};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

use self::measure::Bench;
use self::turns::{Turn, Twins};
use crate::backend::Backend;
use crate::candle_backend::{self, CandleBackend};
use crate::cpu::CpuBackend;
use crate::weights::LoadError;

/// What all types may take together: those that come later are not measured where time is out.
const ALL: Duration = Duration::from_millis(600);

/// So many of the types are measured in any case.
const CERTAIN_KINDS: usize = 4;

/// The types that models have most, in the order in which they are measured while there is time. The first is what
/// bandwidth and arithmetic are told by; the fourth is that of keys and values, too.
const KINDS: [TensorType; 9] = [
    TensorType::Q8_0,
    TensorType::Q4K,
    TensorType::Q6K,
    TensorType::F16,
    TensorType::Q5K,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::MXFP4,
    TensorType::IQ4_XS,
];

/// Rows of the products that are measured: those of decoding, one sequence and several, and those of prompts' chunks. What
/// lies between follows; kernels for many rows take over at some 24 of them.
const ROWS: [usize; 7] = [1, 4, 8, 16, 32, 64, 128];

/// Rows of the product that tells the arithmetic.
const ARITHMETIC_ROWS: u32 = 64;

/// Rows of the product by which all processors are compared with one: more than of decoding, and fewer than of a prompt's
/// chunk.
const SPEEDUP_ROWS: usize = 16;

/// Of two measurements one is taken to have been disturbed where it is slower by more than this factor.
const DISTURBED: f64 = 1.3;

/// What a device does per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Weight bytes read by a matrix-vector product.
    pub bandwidth_bytes_per_s: f64,
    /// Floating-point operations of a matrix-matrix product: two per weight and row.
    pub flops_per_s: f64,
    /// Products by type and rows.
    pub kernel_speeds: Vec<KernelSpeed>,
    /// What all processors of this machine do together; `None` where the device is none of them.
    pub shared_host: Option<SharedHost>,
}

impl Calibration {
    /// What two of the same device come to, in everything.
    #[must_use]
    fn both(mut self, other: &Calibration) -> Calibration {
        self.bandwidth_bytes_per_s = usual(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s);
        self.flops_per_s = usual(self.flops_per_s, other.flops_per_s);
        for speed in &other.kernel_speeds {
            let same = |own: &&mut KernelSpeed| (own.kind, own.rows) == (speed.kind, speed.rows);
            match self.kernel_speeds.iter_mut().find(same) {
                Some(own) => own.weights_per_s = usual(own.weights_per_s, speed.weights_per_s),
                None => self.kernel_speeds.push(*speed),
            }
        }
        if let (Some(own), Some(host)) = (&mut self.shared_host, other.shared_host) {
            own.bandwidth_bytes_per_s = usual(own.bandwidth_bytes_per_s, host.bandwidth_bytes_per_s);
            own.speedup = usual(own.speedup, host.speedup);
        }
        self
    }

    /// Whether all of it can be speeds.
    fn is_sound(&self) -> bool {
        let speeds = self.kernel_speeds.iter().map(|speed| speed.weights_per_s);
        let host = self.shared_host.map(|host| [host.bandwidth_bytes_per_s, host.speedup]);
        let mut all =
            speeds.chain([self.bandwidth_bytes_per_s, self.flops_per_s]).chain(host.into_iter().flatten());
        all.all(|value| value.is_finite() && value > 0.0)
    }
}

/// Measures the device with products of matrices of the types that models have most; takes two thirds of a second, and no more
/// memory than 24 MiB and `room`, all of it freed. A worker that starts beside others like it takes what two of them have
/// measured.
///
/// # Errors
/// Where the device was not built in, or fails.
pub fn calibrate(device: DeviceKind, threads: usize, room: Bytes) -> Result<Calibration, LoadError> {
    let turn = Turn::wait();
    let twins = Twins::of(device, threads);
    if let Some(known) = turn.as_ref().and_then(|turn| turn.known(&twins)) {
        return Ok(known);
    }
    let kernels = device.kernels();
    let kinds: Vec<TensorType> = KINDS
        .into_iter()
        .filter(|kind| kernels.can(brigade_shard::kernels::Kernels::NONE.with(*kind)))
        .collect();
    let calibration = match device {
        DeviceKind::Cpu => {
            let mut bench = Bench::of_processor(threads, room);
            let measured = of_kinds(&kinds, &mut bench, || Ok(CpuBackend::new(threads)?))?;
            Calibration { shared_host: Some(host(threads, room, &measured)?), ..measured }
        }
        DeviceKind::Cuda(_) | DeviceKind::Metal => {
            let mut bench = Bench::of_card();
            of_kinds(&kinds, &mut bench, || Ok(CandleBackend::new(candle_backend::device(device)?)?))?
        }
    };
    Ok(match turn {
        Some(turn) => turn.tell(&twins, calibration),
        None => calibration,
    })
}

/// The speeds of these types, as many as there is time for.
fn of_kinds<B: Backend>(
    kinds: &[TensorType],
    bench: &mut Bench,
    backend: impl Fn() -> Result<B, LoadError>,
) -> Result<Calibration, LoadError> {
    let began = Instant::now();
    let mut kernel_speeds = Vec::new();
    for (place, kind) in kinds.iter().enumerate() {
        if place >= CERTAIN_KINDS && began.elapsed() > ALL {
            break;
        }
        // Each has a backend of its own, since matrices may not be freed before it.
        for (rows, weights_per_s) in bench.speeds(backend()?, *kind, &ROWS)? {
            kernel_speeds.push(KernelSpeed { kind: *kind, rows: rows as u32, weights_per_s });
        }
    }
    let first = kinds.first().copied();
    let told = |rows: u32| {
        let measured = kernel_speeds.iter().filter(|speed| Some(speed.kind) == first && speed.rows <= rows);
        measured.max_by_key(|speed| speed.rows).copied()
    };
    let bytes = first.map_or(0.0, |kind| kind.block_bytes() as f64 / kind.block_values() as f64);
    let nothing = KernelSpeed { kind: TensorType::Q8_0, rows: 1, weights_per_s: 0.0 };
    let (one, many) = (told(1).unwrap_or(nothing), told(ARITHMETIC_ROWS).unwrap_or(nothing));
    Ok(Calibration {
        bandwidth_bytes_per_s: one.weights_per_s * bytes,
        flops_per_s: 2.0 * many.weights_per_s * f64::from(many.rows),
        kernel_speeds,
        shared_host: None,
    })
}

/// What two measurements of a speed come to: their mean, or the faster one where the other was disturbed.
fn usual(one: f64, other: f64) -> f64 {
    let (slower, faster) = (one.min(other), one.max(other));
    if faster > slower * DISTURBED { faster } else { (one + other) / 2.0 }
}

/// What all processors do together: the same products as on the device's threads, with a thread for each, and with one.
fn host(threads: usize, room: Bytes, own: &Calibration) -> Result<SharedHost, LoadError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kind = KINDS[0];
    let bytes_per_weight = kind.block_bytes() as f64 / kind.block_values() as f64;
    let rows = [1, SPEEDUP_ROWS];
    let with = |threads: usize, rows: &[usize]| -> Result<Vec<f64>, LoadError> {
        let found = Bench::of_processor(threads, room).speeds(CpuBackend::new(threads)?, kind, rows)?;
        Ok(found.into_iter().map(|(_, weights_per_s)| weights_per_s).collect())
    };
    let known = |rows: usize| {
        let mut all = own.kernel_speeds.iter();
        let found = all.find(|speed| speed.kind == kind && speed.rows as usize == rows);
        found.map_or(0.0, |speed| speed.weights_per_s)
    };
    let all = if processors == threads { rows.map(known).to_vec() } else { with(processors, &rows)? };
    let one = match threads {
        1 => known(SPEEDUP_ROWS),
        _ => with(1, &rows[1..])?.first().copied().unwrap_or(0.0),
    };
    let together = all.get(1).copied().unwrap_or(0.0);
    let speedup = if one > 0.0 && together > 0.0 { together / one } else { 1.0 };
    let bandwidth = all.first().copied().unwrap_or(0.0) * bytes_per_weight;
    Ok(SharedHost {
        // All of them read no less than some.
        bandwidth_bytes_per_s: bandwidth.max(own.bandwidth_bytes_per_s),
        processors: u32::try_from(processors).unwrap_or(u32::MAX),
        speedup: speedup.clamp(1.0, processors as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_tells_its_speed_by_type_and_rows_and_what_its_machine_does() {
        let measured = calibrate(DeviceKind::Cpu, 1, Bytes::mib(64)).expect("a processor can be measured");
        assert!(measured.is_sound(), "{measured:?}");
        let of = |kind, rows| {
            let mut all = measured.kernel_speeds.iter();
            all.find(|speed| (speed.kind, speed.rows) == (kind, rows)).map(|speed| speed.weights_per_s)
        };
        for kind in &KINDS[..CERTAIN_KINDS] {
            assert!(of(*kind, 1).is_some() && of(*kind, 8).is_some(), "{kind}: {measured:?}");
        }
        let host = measured.shared_host.expect("a processor is part of its machine");
        assert!(host.processors >= 1 && host.bandwidth_bytes_per_s >= measured.bandwidth_bytes_per_s);
        assert!((1.0..=f64::from(host.processors)).contains(&host.speedup), "{host:?}");
    }

    #[test]
    fn of_two_measurements_the_mean_counts_unless_one_was_disturbed() {
        let of = |speed: f64, kind| Calibration {
            bandwidth_bytes_per_s: speed,
            flops_per_s: 10.0 - speed,
            kernel_speeds: vec![KernelSpeed { kind, rows: 1, weights_per_s: speed }],
            shared_host: Some(SharedHost { bandwidth_bytes_per_s: speed, processors: 2, speedup: 1.5 }),
        };
        let both = of(1.0, TensorType::Q4K).both(&of(2.0, TensorType::Q4K));
        assert_eq!((both.bandwidth_bytes_per_s, both.flops_per_s), (2.0, 8.5));
        assert_eq!(both.kernel_speeds, of(2.0, TensorType::Q4K).kernel_speeds);
        assert_eq!(
            both.shared_host,
            Some(SharedHost { bandwidth_bytes_per_s: 2.0, processors: 2, speedup: 1.5 })
        );
        let near = of(1.0, TensorType::Q4K).both(&of(1.2, TensorType::Q4K));
        assert!((near.bandwidth_bytes_per_s - 1.1).abs() < 1e-9 && (near.flops_per_s - 8.9).abs() < 1e-9);
        assert_eq!(of(1.0, TensorType::Q4K).both(&of(1.0, TensorType::F16)).kernel_speeds.len(), 2);
        assert!(!of(0.0, TensorType::Q4K).is_sound() && !of(f64::NAN, TensorType::Q4K).is_sound());
    }
}

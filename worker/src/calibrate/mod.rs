//! How fast this device really is, measured with the kernels that steps run on.
//!
//! Steps read weights that were last read a step ago: they come from memory, not from a cache. So several matrices that
//! are more than the processor's caches hold are multiplied in turn. Memory of the weights' kind is also moved to huge
//! pages first, as loaded weights are.
//!
//! Workers of one machine measure one after another, since each would make the others look slow, and those that are alike
//! and start within some minutes share what the first of them found.

mod between;
mod measure;
mod turns;

use std::time::{Duration, Instant};

use brigade_proto::control::DeviceKind;
use brigade_shard::kernels::Kernels;
use brigade_shard::plan::{Kernel, KernelSpeed, SharedHost, usual_speed};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

use self::measure::Bench;
use self::turns::{Turn, Twins};
use crate::backend::Backend;
use crate::candle_backend::{self, CandleBackend};
use crate::cpu::CpuBackend;
use crate::device::{Devices, Here};
use crate::weights::LoadError;

/// What all types may take together: those that come later are not measured where time is out.
const ALL: Duration = Duration::from_millis(1000);

/// So many of the types are measured in any case.
const CERTAIN_KINDS: usize = 4;

/// The types that models have most, in the order in which they are measured while there is time. The first is what
/// bandwidth and arithmetic are told by.
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
const ROWS: [usize; 6] = [1, 4, 8, 16, 32, 128];

/// Rows with which small products are compared with large ones.
const FRAMED_ROWS: [usize; 2] = [16, 128];

/// Rows of the product that tells the arithmetic.
const ARITHMETIC_ROWS: u32 = 128;

/// Rows of the product by which all processors are compared with one: more than of decoding, and fewer than of a prompt's
/// chunk.
const SPEEDUP_ROWS: usize = 16;

/// What a device does per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Weight bytes read by a matrix-vector product.
    pub bandwidth_bytes_per_s: f64,
    /// Floating-point operations of a matrix-matrix product: two per weight and row.
    pub flops_per_s: f64,
    /// Kernels by rows.
    pub kernel_speeds: Vec<KernelSpeed>,
    /// What all processors of this machine do together; `None` where the device is none of them.
    pub shared_host: Option<SharedHost>,
}

impl Calibration {
    /// With how many rows small products are compared with large ones, and how many weights of the first type these multiply
    /// per second: with so many that reading weights does not decide.
    fn framed_rows(&self) -> Vec<(usize, f64)> {
        let of_first = |speed: &&KernelSpeed| speed.kernel == Kernel::Product(KINDS[0]);
        let speeds = self.kernel_speeds.iter().filter(of_first);
        let framed = speeds.filter(|speed| FRAMED_ROWS.contains(&(speed.rows as usize)));
        framed.map(|speed| (speed.rows as usize, speed.per_s)).collect()
    }

    /// What two of the same device come to, in everything.
    #[must_use]
    fn both(mut self, other: &Calibration) -> Calibration {
        let usual = |one: f64, other: f64| usual_speed([one, other].into_iter());
        self.bandwidth_bytes_per_s = usual(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s);
        self.flops_per_s = usual(self.flops_per_s, other.flops_per_s);
        for speed in &other.kernel_speeds {
            let same = |own: &&mut KernelSpeed| (own.kernel, own.rows) == (speed.kernel, speed.rows);
            match self.kernel_speeds.iter_mut().find(same) {
                Some(own) => own.per_s = usual(own.per_s, speed.per_s),
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
        let speeds = self.kernel_speeds.iter().map(|speed| speed.per_s);
        let host = self.shared_host.map(|host| [host.bandwidth_bytes_per_s, host.speedup]);
        let mut all =
            speeds.chain([self.bandwidth_bytes_per_s, self.flops_per_s]).chain(host.into_iter().flatten());
        all.all(|value| value.is_finite() && value > 0.0)
    }
}

/// Measures the device with matrices of the types that models have most, and with what steps compute beside their products;
/// takes a second, and no more memory than 32 MiB and `room`, all of it freed; on a card, a quarter of `room` and a matrix. A
/// worker that starts some minutes after others like it takes what two of them have measured.
///
/// # Errors
/// Where the device was not built in, or fails.
pub fn calibrate(device: DeviceKind, threads: usize, room: Bytes) -> Result<Calibration, LoadError> {
    let turn = Turn::wait();
    let twins = Twins::of(device, Here.name(device), threads);
    if let Some(known) = turn.as_ref().and_then(|turn| turn.known(&twins)) {
        return Ok(known);
    }
    let calibration = match device {
        DeviceKind::Cpu => {
            let known = |kind: &TensorType| Kernels::CPU.can(Kernels::NONE.with(*kind));
            let kinds: Vec<TensorType> = KINDS.into_iter().filter(known).collect();
            let bench = Bench::of_processor(room);
            let mut measured = of_kinds(&kinds, &bench, || Ok(CpuBackend::new(threads)?))?;
            let framing = between::framing(CpuBackend::new(threads)?, KINDS[0], &measured.framed_rows())?;
            measured.kernel_speeds.extend(framing);
            Calibration { shared_host: Some(host(threads, room, &measured)?), ..measured }
        }
        DeviceKind::Cuda(_) | DeviceKind::Metal => {
            let opened = candle_backend::device(device)?;
            calibrate_with(|| Ok(CandleBackend::new(opened.clone())?), room)?
        }
    };
    Ok(match turn {
        Some(turn) => turn.tell(&twins, calibration),
        None => calibration,
    })
}

/// Measures a device that is not the processor, through a backend that computes on it. Each product is waited for, by reading
/// a row of it back.
///
/// # Errors
/// Where the device fails, or has no memory for what is multiplied.
pub fn calibrate_with<B: Backend>(
    backend: impl Fn() -> Result<B, LoadError>,
    room: Bytes,
) -> Result<Calibration, LoadError> {
    let known = |kind: &TensorType| Kernels::CANDLE.can(Kernels::NONE.with(*kind));
    let kinds: Vec<TensorType> = KINDS.into_iter().filter(known).collect();
    of_kinds(&kinds, &Bench::of_card(room), backend)
}

/// The speeds of these types, as many as there is time for.
fn of_kinds<B: Backend>(
    kinds: &[TensorType],
    bench: &Bench,
    backend: impl Fn() -> Result<B, LoadError>,
) -> Result<Calibration, LoadError> {
    let began = Instant::now();
    let mut kernel_speeds = between::speeds(backend()?)?;
    kernel_speeds.push(between::drawing());
    for (place, kind) in kinds.iter().enumerate() {
        if place >= CERTAIN_KINDS && began.elapsed() > ALL {
            break;
        }
        // Each has a backend of its own, since matrices may not be freed before it.
        for (rows, per_s) in bench.speeds(backend()?, *kind, &ROWS)? {
            kernel_speeds.push(KernelSpeed { kernel: Kernel::Product(*kind), rows: rows as u32, per_s });
        }
    }
    let first = kinds.first().copied().unwrap_or(TensorType::F32);
    let told = |rows: u32| {
        let of_first = |speed: &&KernelSpeed| speed.kernel == Kernel::Product(first) && speed.rows <= rows;
        kernel_speeds.iter().filter(of_first).max_by_key(|speed| speed.rows).copied()
    };
    let bytes = first.block_bytes() as f64 / first.block_values() as f64;
    let nothing = KernelSpeed { kernel: Kernel::Product(first), rows: 1, per_s: 0.0 };
    let (one, many) = (told(1).unwrap_or(nothing), told(ARITHMETIC_ROWS).unwrap_or(nothing));
    Ok(Calibration {
        bandwidth_bytes_per_s: one.per_s * bytes,
        flops_per_s: 2.0 * many.per_s * f64::from(many.rows),
        kernel_speeds,
        shared_host: None,
    })
}

/// Weight bytes of a type that a product with one row reads per second on a device, with no more memory than 32 MiB and
/// `room`; on a card, a quarter of `room` and a matrix.
///
/// # Errors
/// Where the device has no kernel for the type, or fails.
pub(crate) fn reading_bytes_per_s<B: Backend>(
    device: DeviceKind,
    room: Bytes,
    backend: B,
    kind: TensorType,
) -> Result<f64, LoadError> {
    let bench = match device {
        DeviceKind::Cpu => Bench::of_processor(room),
        DeviceKind::Cuda(_) | DeviceKind::Metal => Bench::of_card(room),
    };
    let found = bench.speeds(backend, kind, &[1])?;
    let bytes = kind.block_bytes() as f64 / kind.block_values() as f64;
    Ok(found.first().map_or(0.0, |(_, weights_per_s)| weights_per_s * bytes))
}

/// What all processors do together: the same products as on the device's threads, with a thread for each, and with one.
fn host(threads: usize, room: Bytes, own: &Calibration) -> Result<SharedHost, LoadError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kind = KINDS[0];
    let bytes_per_weight = kind.block_bytes() as f64 / kind.block_values() as f64;
    let rows = [1, SPEEDUP_ROWS];
    let with = |threads: usize, rows: &[usize]| -> Result<Vec<f64>, LoadError> {
        let found = Bench::of_processor(room).speeds(CpuBackend::new(threads)?, kind, rows)?;
        Ok(found.into_iter().map(|(_, weights_per_s)| weights_per_s).collect())
    };
    let known = |rows: usize| {
        let mut all = own.kernel_speeds.iter();
        let found = all.find(|speed| speed.kernel == Kernel::Product(kind) && speed.rows as usize == rows);
        found.map_or(0.0, |speed| speed.per_s)
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
        let of = |kernel, rows| {
            let mut all = measured.kernel_speeds.iter();
            all.find(|speed| (speed.kernel, speed.rows) == (kernel, rows)).map(|speed| speed.per_s)
        };
        for kernel in KINDS[..CERTAIN_KINDS].iter().map(|kind| Kernel::Product(*kind)) {
            assert!(of(kernel, 1).is_some() && of(kernel, 8).is_some(), "{kernel:?}: {measured:?}");
        }
        for (kernel, rows) in [
            (Kernel::Attention, 4),
            (Kernel::Passing, 64),
            (Kernel::Handing, 8),
            (Kernel::Opening, 4),
            (Kernel::Drawing, 1),
        ] {
            assert!(of(kernel, rows).is_some(), "{kernel:?}: {measured:?}");
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
            kernel_speeds: vec![KernelSpeed { kernel: Kernel::Product(kind), rows: 1, per_s: speed }],
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

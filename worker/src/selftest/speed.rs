//! How fast a device reads weights of each type beside what its memory gives, and how long a hop takes.

use brigade_proto::control::DeviceKind;
use brigade_shard::tensor_type::TensorType;
use candle_core::Device;
use serde::Serialize;

use super::{SelftestError, hop};
use crate::backend::BackendError;
use crate::bench::memory_bytes_per_s;
use crate::calibrate::reading_bytes_per_s;
use crate::candle_backend::{self, CandleBackend};
use crate::cpu::CpuBackend;
use crate::device::{Devices, Here};
use crate::settings::Machine;
use crate::tiny::KINDS;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speeds {
    /// What the device's memory gives; on a card, read and written together.
    pub memory_bytes_per_s: f64,
    /// Weight bytes that a product with one row reads, by the types that the device has kernels for.
    pub reading: Vec<(TensorType, f64)>,
    /// How long a row of hidden states is under way between two ends on this machine, in microseconds.
    pub hop_us: f64,
    /// Bytes of that row.
    pub hop_bytes: usize,
}

/// Measures a device.
///
/// # Errors
/// Where the device fails, or two ends on this machine cannot reach each other.
pub(super) fn measure(
    kind: DeviceKind,
    device: &Device,
    threads: usize,
    machine: &Machine,
) -> Result<Speeds, SelftestError> {
    let types = KINDS.into_iter().map(|(tensor_type, _)| tensor_type);
    // A card's own, where it has some.
    let memory = Here.memory(kind).map_err(|reason| BackendError { operation: "tell its memory", reason })?;
    let room = memory.map_or(machine.memory, |memory| memory.usable());
    let mut reading = Vec::new();
    for tensor_type in types.filter(|tensor_type| kind.kernels().has(*tensor_type)) {
        let bytes_per_s = match kind {
            DeviceKind::Cpu => reading_bytes_per_s(kind, room, CpuBackend::new(threads)?, tensor_type)?,
            DeviceKind::Cuda(_) | DeviceKind::Metal => {
                reading_bytes_per_s(kind, room, CandleBackend::new(device.clone())?, tensor_type)?
            }
        };
        reading.push((tensor_type, bytes_per_s));
    }
    let memory_bytes_per_s = match kind {
        DeviceKind::Cpu => memory_bytes_per_s(threads),
        DeviceKind::Cuda(_) | DeviceKind::Metal => candle_backend::copied_bytes_per_s(device)?,
    };
    let (hop_us, hop_bytes) = hop::measure()?;
    Ok(Speeds { memory_bytes_per_s, reading, hop_us, hop_bytes })
}

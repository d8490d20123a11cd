//! What the drivers of cards say: the one place, apart from candle's backend, that depends on what was built in.

use brigade_proto::control::DeviceKind;

use super::{DeviceMemory, Devices, Found, Presence};

/// This machine, as its drivers tell of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here;

impl Devices for Here {
    fn found(&self) -> Found {
        Found { cuda: cuda::presence(), metal: metal::presence() }
    }

    fn memory(&self, device: DeviceKind) -> Result<Option<DeviceMemory>, String> {
        match device {
            DeviceKind::Cpu => Ok(None),
            DeviceKind::Cuda(number) => cuda::memory(number).map(Some),
            DeviceKind::Metal => metal::memory().map(Some),
        }
    }

    fn name(&self, device: DeviceKind) -> Option<String> {
        match device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda(number) => cuda::name(number),
            DeviceKind::Metal => metal::name(),
        }
    }
}

/// NVIDIA's driver, through the library that candle uses.
#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::Arc;

    use brigade_shard::units::Bytes;
    use candle_core::cuda::cudarc::driver::sys::CUresult;
    use candle_core::cuda::cudarc::driver::{CudaContext, DriverError, result};

    use super::{DeviceMemory, Presence};

    pub(super) fn presence() -> Presence {
        match CudaContext::device_count().map(u32::try_from) {
            Ok(Ok(0) | Err(_)) => Presence::Absent("NVIDIA's driver shows no card".to_owned()),
            Ok(Ok(count)) => Presence::Present(count),
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
                Presence::Absent("NVIDIA's driver finds no card".to_owned())
            }
            Err(error) => Presence::Absent(format!("NVIDIA's driver fails: {error}")),
        }
    }

    pub(super) fn memory(number: u32) -> Result<DeviceMemory, String> {
        // The card's one context of this process, which a backend that computes on it has, too.
        let context = context(number)?;
        // What was freed goes back to the driver only once all work on it is done.
        context.synchronize().map_err(|error| error.to_string())?;
        let (free, total) = context.mem_get_info().map_err(|error| error.to_string())?;
        Ok(DeviceMemory { free: Bytes(free as u64), total: Bytes(total as u64) })
    }

    pub(super) fn name(number: u32) -> Option<String> {
        // Needs no context, which takes a while to be made.
        result::init().ok()?;
        let device = result::device::get(i32::try_from(number).ok()?).ok()?;
        result::device::get_name(device).ok()
    }

    fn context(number: u32) -> Result<Arc<CudaContext>, String> {
        CudaContext::new(number as usize).map_err(|error| error.to_string())
    }
}

/// NVIDIA's driver, in a build that does not know of it.
#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{DeviceMemory, Presence};

    pub(super) fn presence() -> Presence {
        Presence::NotBuilt
    }

    pub(super) fn memory(_: u32) -> Result<DeviceMemory, String> {
        Err("this build has no CUDA".to_owned())
    }

    pub(super) fn name(_: u32) -> Option<String> {
        None
    }
}

/// Apple's, through the library that candle uses.
#[cfg(feature = "metal")]
mod metal {
    use brigade_shard::units::Bytes;
    use candle_metal_kernels::metal::Device;

    use super::{DeviceMemory, Presence};

    /// The GPU that candle computes on.
    fn gpu() -> Option<Device> {
        Device::all().into_iter().next()
    }

    pub(super) fn presence() -> Presence {
        match gpu() {
            Some(_) => Presence::Present(1),
            None => Presence::Absent("macOS shows no GPU that Metal could use".to_owned()),
        }
    }

    pub(super) fn memory() -> Result<DeviceMemory, String> {
        let gpu = gpu().ok_or("macOS shows no GPU that Metal could use")?;
        // Others have the same memory, and are not told of: what they take lowers what the system lets this one hold.
        let total = gpu.recommended_max_working_set_size() as u64;
        let taken = gpu.current_allocated_size() as u64;
        Ok(DeviceMemory { free: Bytes(total.saturating_sub(taken)), total: Bytes(total) })
    }

    pub(super) fn name() -> Option<String> {
        gpu().map(|gpu| format!("Apple GPU ({})", gpu.architecture_name()))
    }
}

/// Apple's, in a build that does not know of it.
#[cfg(not(feature = "metal"))]
mod metal {
    use super::{DeviceMemory, Presence};

    pub(super) fn presence() -> Presence {
        Presence::NotBuilt
    }

    pub(super) fn memory() -> Result<DeviceMemory, String> {
        Err("this build has no Metal".to_owned())
    }

    pub(super) fn name() -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever was built in, and whatever is there: the processor has no memory of its own, and each card that is found can
    /// be asked for its memory.
    #[test]
    fn what_is_found_can_be_asked() {
        let found = Here.found();
        println!("{found}");
        assert_eq!(Here.memory(DeviceKind::Cpu), Ok(None));
        for card in found.cards() {
            let memory = Here.memory(card).expect("its driver tells").expect("it has memory of its own");
            println!("{card:?}: {memory:?}, {:?}", Here.name(card));
            assert!(memory.free <= memory.total && memory.total.0 > 0, "{memory:?}");
        }
    }
}

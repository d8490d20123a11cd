//! What there is to compute with: which devices this build and this machine have, and how much of their memory is free.
//!
//! What depends on the features `cuda` and `metal`, apart from candle's backend, is in the one private part that asks
//! drivers. Everything else sees [`Devices`], so that each decision can be tried on machines that are only written down.

mod driver;
mod each;
mod findings;
mod found;
mod list;
mod memory;
mod room;

use brigade_proto::control::DeviceKind;

pub use driver::Here;
pub use each::{EachError, run as run_each, worker_processes};
pub use findings::findings;
pub use found::{Found, Presence};
pub use list::{DevicesArgs, Listed, list, run as list_devices};
pub use memory::{BudgetError, DeviceMemory, budget};
pub use room::Room;
pub(crate) use room::free_now;

/// What drivers tell of this machine's devices.
pub trait Devices {
    /// Which devices other than the processor there are.
    fn found(&self) -> Found;
    /// A device's memory as it is now; `None` where it is the machine's own, as a processor's is.
    ///
    /// # Errors
    /// Where the driver fails, in its words.
    fn memory(&self, device: DeviceKind) -> Result<Option<DeviceMemory>, String>;
    /// What the driver calls a device, such as `NVIDIA GeForce RTX 4090`; `None` for a processor, and where it does not tell.
    fn name(&self, device: DeviceKind) -> Option<String>;
}

//! How much of a device's memory a worker may take.

use brigade_proto::control::DeviceKind;
use brigade_shard::units::Bytes;

/// What stays free of a device's memory where nobody says otherwise, in hundredths of all of it: for the driver, for the
/// libraries' workspaces, and for what fragments leave.
const RESERVE_PERCENT: u64 = 5;

/// The least that stays free: a context with its kernels and cuBLAS's workspace take some hundred MiB however small the
/// device is.
const LEAST_RESERVE: Bytes = Bytes::mib(512);

/// A device's memory, as its driver tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What is free, for everybody who uses the device.
    pub free: Bytes,
    /// All that programs may use: of an Apple GPU, what the system lets it hold.
    pub total: Bytes,
}

impl DeviceMemory {
    /// What stays free.
    pub fn reserve(&self) -> Bytes {
        Bytes(self.total.0 / 100 * RESERVE_PERCENT).max(LEAST_RESERVE)
    }

    /// What a worker may take now.
    pub fn usable(&self) -> Bytes {
        self.free.saturating_sub(self.reserve())
    }
}

/// A budget that a device cannot give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BudgetError {
    /// More than there is at all.
    #[error(
        "--memory {wanted} is more than {device} has: {total}, of which {free} are free; give {usable} at most, or leave \
         --memory out{more}"
    )]
    TooMuch { device: String, wanted: Bytes, total: Bytes, free: Bytes, usable: Bytes, more: &'static str },
    /// Nothing is left.
    #[error(
        "{device} has no memory left for a model: {free} of {total} are free, and {reserve} are kept for its driver; end what \
         uses it{more}"
    )]
    Nothing { device: String, total: Bytes, free: Bytes, reserve: Bytes, more: &'static str },
}

/// What a worker on `device` may take: `wanted`, or else what is usable; and a warning where that is more than is usable now.
///
/// # Errors
/// Where the device does not have as much, or nothing is left.
pub fn budget(
    device: DeviceKind,
    memory: DeviceMemory,
    wanted: Option<Bytes>,
) -> Result<(Bytes, Option<String>), BudgetError> {
    let DeviceMemory { free, total } = memory;
    let (usable, reserve, more) = (memory.usable(), memory.reserve(), how_to_raise(device));
    let device = device.to_string();
    match wanted {
        None if usable == Bytes::ZERO => Err(BudgetError::Nothing { device, total, free, reserve, more }),
        None => Ok((usable, None)),
        Some(wanted) if wanted > total => {
            Err(BudgetError::TooMuch { device, wanted, total, free, usable, more })
        }
        Some(wanted) if wanted > usable => {
            let warning = format!(
                "--memory {wanted} is more than {device} can give now: {free} of {total} are free, and {reserve} should stay \
                 so; loading may fail until others let go of it"
            );
            Ok((wanted, Some(warning)))
        }
        Some(wanted) => Ok((wanted, None)),
    }
}

/// How a device gets more, where it can.
pub(super) fn how_to_raise(device: DeviceKind) -> &'static str {
    match device {
        DeviceKind::Cpu | DeviceKind::Cuda(_) => "",
        DeviceKind::Metal => {
            "; the system lets the GPU hold more after sudo sysctl iogpu.wired_limit_mb=N, where N is a number of MiB"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA: DeviceKind = DeviceKind::Cuda(1);

    fn gib(free: u64, total: u64) -> DeviceMemory {
        DeviceMemory { free: Bytes::mib(free << 10), total: Bytes::mib(total << 10) }
    }

    #[test]
    fn a_twentieth_stays_free_and_never_less_than_half_a_gib() {
        assert_eq!(gib(80, 80).reserve(), Bytes((80 << 30) / 100 * 5));
        assert_eq!(gib(4, 4).reserve(), Bytes::mib(512));
        assert_eq!(gib(4, 4).usable(), Bytes::mib(4096 - 512));
        assert_eq!(DeviceMemory { free: Bytes::mib(100), total: Bytes::mib(4096) }.usable(), Bytes::ZERO);
    }

    #[test]
    fn what_is_not_said_is_what_the_device_can_give() {
        assert_eq!(budget(CUDA, gib(20, 24), None), Ok((gib(20, 24).usable(), None)));
        let told = Some(Bytes::mib(1024));
        assert_eq!(budget(CUDA, gib(20, 24), told), Ok((Bytes::mib(1024), None)));
    }

    #[test]
    fn more_than_is_free_is_warned_of_with_figures() {
        let (given, warning) =
            budget(CUDA, gib(10, 24), Some(Bytes::mib(12 << 10))).expect("it may fit later");
        assert_eq!(given, Bytes::mib(12 << 10));
        let warning = warning.expect("it does not fit now");
        for part in ["12.0 GiB", "cuda:1", "10.0 GiB of 24.0 GiB are free"] {
            assert!(warning.contains(part), "`{part}` is not in `{warning}`");
        }
    }

    #[test]
    fn more_than_there_is_and_a_full_device_are_refused_with_figures() {
        let error = budget(CUDA, gib(10, 24), Some(Bytes::mib(25 << 10))).expect_err("it has less");
        let error = error.to_string();
        for part in ["25.0 GiB", "cuda:1 has: 24.0 GiB", "10.0 GiB are free", "leave --memory out"] {
            assert!(error.contains(part), "`{part}` is not in `{error}`");
        }
        assert!(!error.contains("sysctl"), "{error}");
        let full = DeviceMemory { free: Bytes::mib(300), total: Bytes::mib(24 << 10) };
        let error = budget(CUDA, full, None).expect_err("it is full").to_string();
        assert!(error.contains("300.0 MiB of 24.0 GiB are free"), "{error}");
    }

    #[test]
    fn an_apple_gpu_is_told_how_to_get_more() {
        let error = budget(DeviceKind::Metal, gib(12, 12), Some(Bytes::mib(14 << 10))).expect_err("too much");
        assert!(error.to_string().contains("sudo sysctl iogpu.wired_limit_mb="), "{error}");
    }
}

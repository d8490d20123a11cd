//! What is said, and done, where a device gives no memory.

use std::sync::atomic::{AtomicU64, Ordering};

use brigade_proto::control::DeviceKind;
use brigade_shard::units::Bytes;

use super::memory::how_to_raise;
use super::{DeviceMemory, Devices, Here};

/// A device's memory, asked before much of it is taken, so that an error can say what there was.
#[derive(Debug)]
pub struct Room(Source);

#[derive(Debug)]
enum Source {
    /// The machine's own memory: the system refuses by itself what it does not have.
    Machine,
    /// A driver's.
    Device(DeviceKind),
    /// What is left of a stated amount.
    Stated { left: AtomicU64, total: Bytes },
}

impl Room {
    /// That of a device.
    pub fn of(device: DeviceKind) -> Room {
        Room(match device {
            DeviceKind::Cpu => Source::Machine,
            DeviceKind::Cuda(_) | DeviceKind::Metal => Source::Device(device),
        })
    }

    /// A device that gives so much and nothing beyond, whatever is freed meanwhile: it fails on purpose, to see what comes of
    /// that.
    pub fn stated(total: Bytes) -> Room {
        Room(Source::Stated { left: AtomicU64::new(total.0), total })
    }

    /// Refuses `wanted` where the device would give it and come to harm. Only an Apple GPU does: it goes on beyond what it may
    /// hold, and the system swaps or ends the process; a card's driver refuses by itself.
    ///
    /// # Errors
    /// Why, with what was wanted and what is free.
    pub(crate) fn check(&self, wanted: Bytes) -> Result<(), String> {
        let lacking = match &self.0 {
            Source::Machine | Source::Device(DeviceKind::Cpu | DeviceKind::Cuda(_)) => false,
            Source::Device(DeviceKind::Metal) => {
                // A driver that does not tell is asked for the memory itself.
                self.now().is_some_and(|(memory, _)| memory.free < wanted)
            }
            Source::Stated { left, .. } => {
                let take = |left: u64| left.checked_sub(wanted.0);
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err()
            }
        };
        if lacking { Err(self.refused(wanted, "it gives no more")) } else { Ok(()) }
    }

    /// Why `wanted` was not given, as `said` by the device, with what is free.
    pub(crate) fn refused(&self, wanted: Bytes, said: &str) -> String {
        match self.now() {
            Some((DeviceMemory { free, total }, device)) => {
                let more = if free < wanted { how_to_raise(self.kind()) } else { "" };
                format!("{wanted} were asked for, and {free} of {total} are free on {device}: {said}{more}")
            }
            None => format!("{wanted} were asked for: {said}"),
        }
    }

    fn now(&self) -> Option<(DeviceMemory, String)> {
        match &self.0 {
            Source::Machine => None,
            Source::Device(device) => Some((Here.memory(*device).ok()??, device.to_string())),
            Source::Stated { left, total } => {
                let free = Bytes(left.load(Ordering::Relaxed));
                Some((DeviceMemory { free, total: *total }, "this device".to_owned()))
            }
        }
    }

    fn kind(&self) -> DeviceKind {
        match self.0 {
            Source::Device(device) => device,
            Source::Machine | Source::Stated { .. } => DeviceKind::Cpu,
        }
    }
}

/// How much of a device's memory is free now, for a message; nothing where that is the machine's own, or the driver fails.
pub(crate) fn free_now(device: DeviceKind) -> String {
    match Here.memory(device) {
        Ok(Some(DeviceMemory { free, total })) => {
            format!("; {free} of {total} are free on {device} now")
        }
        Ok(None) | Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stated_room_gives_what_it_has_and_names_what_is_left() {
        let room = Room::stated(Bytes::mib(100));
        room.check(Bytes::mib(60)).expect("it has as much");
        let refused = room.check(Bytes::mib(41)).expect_err("it has less");
        for part in ["41.0", "were asked for", "40.0", "100.0", "are free"] {
            assert!(refused.contains(part), "`{part}` is not in `{refused}`");
        }
        room.check(Bytes::mib(40)).expect("what was refused was not taken");
    }

    #[test]
    fn the_machines_own_memory_is_the_systems_affair() {
        let room = Room::of(DeviceKind::Cpu);
        room.check(Bytes(u64::MAX)).expect("nothing is foretold");
        assert!(!room.refused(Bytes::mib(1), "no").contains("free"));
        assert_eq!(free_now(DeviceKind::Cpu), "");
    }
}

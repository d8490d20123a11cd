//! What `doctor` tells of devices: what this build can use, what is there, and what is missing between the two.

use brigade_proto::control::DeviceKind;
use brigade_proto::doctor::{Finding, Level, Surroundings, System, nvidia_cards, nvidia_driver};
use brigade_shard::units::Bytes;

use super::memory::how_to_raise;
use super::{DeviceMemory, Devices, Presence};

const CHECK: &str = "build";

/// Looks at what this build can use of what the machine has.
pub fn findings(machine: &dyn Surroundings, devices: &dyn Devices) -> Vec<Finding> {
    let found = devices.found();
    let mut all: Vec<Finding> =
        found.cards().into_iter().map(|card| of_card(card, devices, machine.system())).collect();
    all.extend(match machine.system() {
        System::Linux => of_cuda(&found.cuda, machine),
        System::MacOs => of_metal(&found.metal),
    });
    all
}

fn ok(found: impl Into<String>) -> Finding {
    Finding { check: CHECK, level: Level::Ok, found: found.into(), remedy: None }
}

fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check: CHECK, level: Level::Warn, found: found.into(), remedy: Some(remedy.into()) }
}

/// A device that workers can compute on.
fn of_card(card: DeviceKind, devices: &dyn Devices, system: System) -> Finding {
    let name = devices.name(card).unwrap_or_else(|| "a device without a name".to_owned());
    let who = match system {
        System::Linux => "see what uses it: nvidia-smi",
        System::MacOs => "quit what uses the GPU",
    };
    match devices.memory(card) {
        Ok(Some(memory)) => {
            let (DeviceMemory { free, total }, usable) = (memory, memory.usable());
            let found = format!("{card} is {name}: {free} of {total} are free");
            match usable {
                Bytes::ZERO => warn(format!("{found}, and too little is for a model"), who),
                _ => ok(format!("{found}, and a worker takes {usable}{}", how_to_raise(card))),
            }
        }
        Ok(None) => ok(format!("{card} is {name}")),
        Err(reason) => warn(format!("{card} is there, and its driver fails: {reason}"), who),
    }
}

/// Why there is no card to compute on.
fn of_cuda(cuda: &Presence, machine: &dyn Surroundings) -> Option<Finding> {
    let (driver, cards) = (nvidia_driver(machine), nvidia_cards(machine));
    let is_there = driver.is_some() || cards > 0;
    match cuda {
        Presence::Present(_) => None,
        Presence::NotBuilt if is_there => Some(warn(
            "this build has no CUDA, and computes on the processors although there is an NVIDIA card",
            "build with it: deploy/cuda/build.sh, or cargo build --release -p brigade-worker --features cuda",
        )),
        Presence::NotBuilt => Some(ok("this build has no CUDA, and there is no NVIDIA card to miss it")),
        Presence::Absent(why) => {
            let remedy = match (driver, has_library(machine)) {
                (None, _) => {
                    "install NVIDIA's driver (580 or newer, for CUDA 13); a container needs --gpus all, too"
                }
                (Some(_), Some(false)) => {
                    "libcuda.so.1 is not there: install the driver's libraries, such as libnvidia-compute-580; a container needs \
                     --gpus all"
                }
                (Some(_), _) => "see whether CUDA_VISIBLE_DEVICES hides it, and what nvidia-smi says",
            };
            Some(warn(format!("this build has CUDA, and no card to compute on: {why}"), remedy))
        }
    }
}

/// Whether the system finds the driver's library; `None` where it does not tell.
fn has_library(machine: &dyn Surroundings) -> Option<bool> {
    let ran = machine.run("ldconfig", &["-p"]).filter(|ran| ran.success)?;
    Some(ran.output.contains("libcuda.so.1"))
}

fn of_metal(metal: &Presence) -> Option<Finding> {
    match metal {
        Presence::Present(_) => None,
        Presence::NotBuilt => Some(warn(
            "this build has no Metal, and computes on the processors",
            "build with it: cargo build --release -p brigade-worker --features metal",
        )),
        Presence::Absent(why) => Some(warn(
            format!("this build has Metal, and no GPU to compute on: {why}"),
            "virtual machines show none: run it on the Mac itself, or with --device cpu",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{IpAddr, SocketAddr};
    use std::path::{Path, PathBuf};

    use brigade_proto::doctor::{Protocol, Ran, Reach};

    use super::super::Found;
    use super::*;

    /// A machine with a card and a driver, or without, and what `ldconfig -p` says.
    struct Machine {
        system: System,
        driver: bool,
        libraries: &'static str,
    }

    impl Surroundings for Machine {
        fn system(&self) -> System {
            self.system
        }

        fn read(&self, path: &Path) -> io::Result<String> {
            match path.to_str() {
                Some("/proc/driver/nvidia/version") if self.driver => {
                    Ok("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun\n".to_owned())
                }
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn list(&self, _: &Path) -> Vec<String> {
            Vec::new()
        }

        fn link(&self, _: &Path) -> Option<PathBuf> {
            None
        }

        fn mode(&self, _: &Path) -> Option<u32> {
            None
        }

        fn run(&self, program: &str, _: &[&str]) -> Option<Ran> {
            (program == "ldconfig").then(|| Ran { success: true, output: self.libraries.to_owned() })
        }

        fn listen(&self, _: Protocol, _: SocketAddr) -> io::Result<()> {
            Ok(())
        }

        fn reach(&self, to: &str) -> Reach {
            panic!("nothing asks for the way to {to}")
        }

        fn http_headers(&self, _: &str) -> io::Result<String> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn addresses(&self) -> Vec<(String, IpAddr)> {
            Vec::new()
        }

        fn now(&self) -> f64 {
            0.0
        }
    }

    /// Devices of which each has so much memory free.
    struct Drivers(Found, Result<u64, &'static str>);

    impl Devices for Drivers {
        fn found(&self) -> Found {
            self.0.clone()
        }

        fn memory(&self, _: DeviceKind) -> Result<Option<DeviceMemory>, String> {
            let memory = |free| DeviceMemory { free: Bytes::mib(free), total: Bytes::mib(24 << 10) };
            self.1.map(|free| Some(memory(free))).map_err(str::to_owned)
        }

        fn name(&self, _: DeviceKind) -> Option<String> {
            Some("NVIDIA L4".to_owned())
        }
    }

    fn found(machine: Machine, cuda: Presence, metal: Presence, free: Result<u64, &'static str>) -> Finding {
        let mut all = findings(&machine, &Drivers(Found { cuda, metal }, free));
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn linux(driver: bool, libraries: &'static str) -> Machine {
        Machine { system: System::Linux, driver, libraries }
    }

    fn check(finding: Finding, level: Level, said: &str, remedy: &str) {
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.found.contains(said), "`{said}` is not in {finding:?}");
        assert!(
            finding.remedy.as_deref().unwrap_or_default().contains(remedy),
            "`{remedy}` is not in {finding:?}"
        );
    }

    #[test]
    fn a_build_without_what_the_machine_has_is_told_how_to_get_it() {
        use Presence::NotBuilt;
        check(found(linux(true, ""), NotBuilt, NotBuilt, Ok(0)), Level::Warn, "no CUDA", "--features cuda");
        check(found(linux(false, ""), NotBuilt, NotBuilt, Ok(0)), Level::Ok, "no NVIDIA card", "");
        let mac = Machine { system: System::MacOs, driver: false, libraries: "" };
        check(found(mac, NotBuilt, NotBuilt, Ok(0)), Level::Warn, "no Metal", "--features metal");
    }

    #[test]
    fn a_build_with_cuda_and_no_card_is_told_what_is_missing() {
        let absent = || Presence::Absent("the driver finds no card".to_owned());
        let of = |driver, libraries| found(linux(driver, libraries), absent(), Presence::NotBuilt, Ok(0));
        check(of(false, ""), Level::Warn, "finds no card", "install NVIDIA's driver");
        check(of(true, "libc.so.6"), Level::Warn, "no card to compute on", "libcuda.so.1 is not there");
        check(of(true, "libcuda.so.1 (libc6)"), Level::Warn, "no card to compute on", "CUDA_VISIBLE_DEVICES");
    }

    #[test]
    fn cards_are_told_with_their_memory() {
        let of = |free| found(linux(true, ""), Presence::Present(1), Presence::NotBuilt, free);
        let said = "cuda:0 is NVIDIA L4: 20.0 GiB of 24.0 GiB are free, and a worker takes 18.8 GiB";
        check(of(Ok(20 << 10)), Level::Ok, said, "");
        check(of(Ok(1 << 10)), Level::Warn, "too little is for a model", "nvidia-smi");
        check(of(Err("it is lost")), Level::Warn, "its driver fails: it is lost", "nvidia-smi");
        let mac = Machine { system: System::MacOs, driver: false, libraries: "" };
        let metal = found(mac, Presence::NotBuilt, Presence::Present(1), Ok(20 << 10));
        check(metal, Level::Ok, "sudo sysctl iogpu.wired_limit_mb=", "");
    }
}

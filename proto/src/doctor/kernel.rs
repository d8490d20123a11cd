//! Settings of the kernel: socket buffers, how memory is given out, huge pages, and limits of a process.

use std::path::Path;

use super::{Bytes, Finding, Surroundings, System};
use crate::link::SOCKET_BUFFER_BYTES;

const CHECK: &str = "kernel";

/// Fewer open files than this are too few for many clients at once.
const OPEN_FILES: u64 = 1024;

pub(super) fn check(machine: &dyn Surroundings) -> Vec<Finding> {
    match machine.system() {
        System::Linux => [buffers(machine), overcommit(machine), huge_pages(machine), limits(machine)]
            .into_iter()
            .flatten()
            .collect(),
        System::MacOs => mac_buffers(machine).into_iter().collect(),
    }
}

fn buffers(machine: &dyn Surroundings) -> Option<Finding> {
    let wanted = SOCKET_BUFFER_BYTES as u64;
    let most = |name: &str| machine.number(&format!("/proc/sys/net/core/{name}"));
    // A network namespace of its own, as containers have, may not show them.
    let (receive, send) = (most("rmem_max")?, most("wmem_max")?);
    let least = receive.min(send);
    Some(if least < wanted {
        Finding::warn(
            CHECK,
            format!(
                "socket buffers end at {}, and links ask for {}: bursts are dropped",
                Bytes(least),
                Bytes(wanted)
            ),
            format!(
                "sudo sysctl net.core.rmem_max={0} net.core.wmem_max={0} (and for the next start: a file in /etc/sysctl.d)",
                wanted
            ),
        )
    } else {
        Finding::ok(CHECK, format!("socket buffers may have {}", Bytes(least)))
    })
}

fn mac_buffers(machine: &dyn Surroundings) -> Option<Finding> {
    let ran = machine.run("sysctl", &["-n", "kern.ipc.maxsockbuf"]).filter(|ran| ran.success)?;
    let most: u64 = ran.output.trim().parse().ok()?;
    // One socket has both buffers.
    let wanted = 2 * SOCKET_BUFFER_BYTES as u64;
    Some(if most < wanted {
        let found = format!("socket buffers end at {}, and links ask for {}", Bytes(most), Bytes(wanted));
        Finding::warn(CHECK, found, format!("sudo sysctl kern.ipc.maxsockbuf={wanted}"))
    } else {
        Finding::ok(CHECK, format!("socket buffers may have {}", Bytes(most)))
    })
}

fn overcommit(machine: &dyn Surroundings) -> Option<Finding> {
    // 2: memory that is asked for counts as taken, so that mapping a model's file may be refused.
    (machine.number("/proc/sys/vm/overcommit_memory")? == 2).then(|| {
        Finding::warn(
            CHECK,
            "memory that is only asked for counts as taken (vm.overcommit_memory is 2): large models may be refused",
            "sudo sysctl vm.overcommit_memory=0",
        )
    })
}

fn huge_pages(machine: &dyn Surroundings) -> Option<Finding> {
    let setting = machine.line("/sys/kernel/mm/transparent_hugepage/enabled")?;
    Some(if setting.contains("[never]") {
        Finding::warn(
            CHECK,
            "huge pages are off: reading weights takes longer",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )
    } else {
        Finding::ok(CHECK, "huge pages can be had")
    })
}

fn limits(machine: &dyn Surroundings) -> Option<Finding> {
    let table = machine.read(Path::new("/proc/self/limits")).ok()?;
    let soft = |name: &str| {
        let rest = table.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let files = soft("Max open files")?;
    let locked = soft("Max locked memory").map_or_else(String::new, |bytes| match bytes.parse() {
        Ok(bytes) => format!("; {} of memory may be locked, of which nothing is needed", Bytes(bytes)),
        Err(_) => String::new(),
    });
    Some(match files.parse::<u64>() {
        Ok(most) if most < OPEN_FILES => Finding::warn(
            CHECK,
            format!("a process may open {most} files only: clients beyond that are refused"),
            "ulimit -n 65536",
        ),
        _ => Finding::ok(CHECK, format!("a process may open {files} files{locked}")),
    })
}

//! Workers as the planner sees them.

use std::time::Instant;

use brigade_proto::control::{Capabilities, DeviceKind, Telemetry};
use brigade_proto::ids::WorkerId;
use brigade_shard::units::Bytes;

use crate::deployment::devices::devices;
use crate::membership::{Member, Presence, SessionId};

fn member(name: &str, host: &str, threads: u32, speeds: (f64, f64)) -> Member {
    let capabilities = Capabilities {
        name: name.to_owned(),
        host: host.to_owned(),
        version: "1".to_owned(),
        device: DeviceKind::Cpu,
        device_name: "a processor".to_owned(),
        budget: Bytes::mib(u64::from(threads)),
        threads,
        bandwidth_bytes_per_s: speeds.0,
        flops_per_s: speeds.1,
        data_addresses: Vec::new(),
        stretch: 1.0,
        kernel_speeds: Vec::new(),
        shared_host: None,
        offload_bytes_per_s: None,
    };
    let presence = Presence::Attached { session: SessionId(1), heard: Instant::now() };
    let remote = "10.0.0.1:1".parse().unwrap();
    let id = WorkerId::try_from(name.replace(' ', "-")).unwrap();
    Member { id, capabilities, remote, presence, telemetry: Telemetry::default() }
}

#[test]
fn workers_of_one_machine_that_are_alike_are_as_fast_as_the_fastest() {
    let members = [
        member("a", "box", 1, (16.0, 240.0)),
        member("b", "box", 1, (20.0, 160.0)),
        member("two threads", "box", 2, (30.0, 400.0)),
        member("elsewhere", "other", 1, (50.0, 10.0)),
    ];
    let found = devices(&members.iter().collect::<Vec<_>>(), |_| None, |member| member.capabilities.budget);
    let speeds: Vec<(f64, f64)> =
        found.iter().map(|device| (device.bandwidth_bytes_per_s, device.flops_per_s)).collect();
    assert_eq!(speeds, [(20.0, 240.0), (20.0, 240.0), (30.0, 400.0), (50.0, 10.0)]);
    assert_eq!(found[2].budget, Bytes::mib(2));
    assert_eq!(found[1].name, "b");
}

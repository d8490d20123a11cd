//! Workers as the planner sees them.

use std::time::Instant;

use brigade_proto::control::{Capabilities, DeviceKind, LinkTelemetry, Telemetry};
use brigade_proto::ids::{Peer, WorkerId};
use brigade_shard::plan::{HopCost, Kernel, KernelSpeed, SharedHost};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::deployment::devices::devices;
use crate::membership::{Member, Presence, SessionId};
use crate::planning::LiveDevices;

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
        delivery_port: 0,
        stretch: 1.0,
        kernel_speeds: Vec::new(),
        shared_host: None,
        offload_bytes_per_s: None,
        converts: false,
    };
    let presence = Presence::Attached { session: SessionId(1), heard: Instant::now() };
    let remote = "10.0.0.1:1".parse().unwrap();
    let id = WorkerId::try_from(name.replace(' ', "-")).unwrap();
    Member { id, capabilities, remote, presence, telemetry: Telemetry::default() }
}

fn of(members: &[Member]) -> LiveDevices {
    devices(&members.iter().collect::<Vec<_>>(), |_| None, |member| member.capabilities.budget)
}

#[test]
fn workers_of_one_machine_that_are_alike_are_as_fast_as_they_usually_found_to_be() {
    let members = [
        member("a", "box", 1, (16.0, 240.0)),
        member("b", "box", 1, (20.0, 160.0)),
        member("two threads", "box", 2, (30.0, 400.0)),
        member("elsewhere", "other", 1, (50.0, 10.0)),
    ];
    let found = of(&members).devices;
    let speeds: Vec<(f64, f64)> =
        found.iter().map(|device| (device.bandwidth_bytes_per_s, device.flops_per_s)).collect();
    assert_eq!(speeds, [(18.0, 240.0), (18.0, 240.0), (30.0, 400.0), (50.0, 10.0)]);
    assert_eq!(found[2].budget, Bytes::mib(2));
    assert_eq!(found[1].name, "b");
}

#[test]
fn each_kernel_is_as_fast_as_twins_usually_found_and_machines_that_are_shared_are_found() {
    let speed = |rows, per_s| KernelSpeed { kernel: Kernel::Product(TensorType::Q4K), rows, per_s };
    let mut members = [
        member("a", "box", 1, (16.0, 240.0)),
        member("b", "box", 1, (20.0, 160.0)),
        member("alone", "other", 1, (50.0, 10.0)),
        member("stretched", "box", 1, (5.0, 60.0)),
    ];
    let host =
        |bandwidth_bytes_per_s| Some(SharedHost { bandwidth_bytes_per_s, processors: 2, speedup: 2.0 });
    members[0].capabilities.kernel_speeds = vec![speed(1, 5.0), speed(8, 2.0)];
    members[0].capabilities.shared_host = host(30.0);
    members[1].capabilities.kernel_speeds = vec![speed(8, 3.0), speed(1, 4.0)];
    members[1].capabilities.shared_host = host(40.0);
    members[2].capabilities.shared_host = host(50.0);
    members[3].capabilities.stretch = 4.0;
    let found = of(&members);
    for twin in &found.devices[..2] {
        assert_eq!(twin.kernel_speeds, [speed(1, 4.5), speed(8, 3.0)]);
        assert_eq!((twin.host, twin.threads), (Some(0), Some(1)));
    }
    assert_eq!(found.hosts, [host(40.0).unwrap()]);
    assert_eq!((found.devices[2].host, found.devices[3].host), (None, None));
}

#[test]
fn links_are_as_both_ends_measured_them_and_others_like_them() {
    let link = |peer: Peer, rtt_us| LinkTelemetry {
        peer,
        address: "10.0.0.1:1".parse().unwrap(),
        choice: String::new(),
        rtt_us,
        sent_bytes: 0,
        received_bytes: 0,
        sent_packets: 0,
        lost_packets: 0,
        congestion_window: 0,
    };
    let mut members =
        ["a", "b", "c", "d"].map(|name| member(name, if name < "c" { "box" } else { name }, 1, (1.0, 1.0)));
    let id = |members: &[Member], at: usize| Peer::Worker(members[at].id.clone());
    members[1].telemetry.links = vec![link(id(&members, 2), 2_200), link(Peer::Coordinator, 400)];
    members[2].telemetry.links = vec![link(id(&members, 1), 2_000)];
    let found = of(&members).links;
    let gigabit = HopCost::default().bytes_per_s;
    assert_eq!(found.between(1, 2), HopCost { rtt_us: 2_000.0, bytes_per_s: gigabit });
    // Not measured, and like the other one between machines.
    assert_eq!(found.between(0, 3), HopCost { rtt_us: 2_000.0, bytes_per_s: gigabit });
    // Within a machine.
    assert!(found.between(0, 1).rtt_us < 500.0 && found.between(0, 1).bytes_per_s > gigabit);
    assert_eq!(found.to_coordinator(1).rtt_us, 400.0);
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<brigade_shard::plan::Links>(&json).unwrap(), found);
}

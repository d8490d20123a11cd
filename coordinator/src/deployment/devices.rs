//! Workers as the planner sees them.

use std::collections::BTreeMap;

use brigade_proto::control::{Capabilities, DeviceKind};
use brigade_proto::ids::Peer;
use brigade_shard::layers::LayerRange;
use brigade_shard::plan::{HopCost, Kernel, KernelSpeed, Links, PlanDevice, SharedHost, usual_speed};
use brigade_shard::units::Bytes;

use crate::membership::Member;
use crate::planning::LiveDevices;

/// Between two workers of one machine, where no link between such was measured: a round trip through QUIC, and what two
/// processors encrypt and copy.
const WITHIN_MACHINE: HopCost = HopCost { rtt_us: 150.0, bytes_per_s: 1e9 };
/// A longer round trip than this, in microseconds, is none within a machine, whatever the workers are called: such a link
/// is taken to have the rate of any other one.
const LONGEST_WITHIN_US: f64 = 700.0;

/// The devices of these workers, in their order, each with what it has `held` of the model and the memory that `budget`
/// leaves it; the machines that several of them share, and the links between them as far as they were measured.
///
/// What a worker measures when it starts is what its machine gave it just then. So workers of one machine that are alike
/// are all taken to be as fast as they usually found to be; otherwise a short disturbance would cut a model unevenly for as
/// long as it is served.
pub(crate) fn devices(
    members: &[&Member],
    held: impl Fn(&Member) -> Option<LayerRange>,
    budget: impl Fn(&Member) -> Bytes,
) -> LiveDevices {
    let machines = machines(members);
    let names: Vec<&str> = machines.keys().copied().collect();
    let device = |member: &&Member| {
        let own = &member.capabilities;
        let twins: Vec<&Capabilities> =
            members.iter().map(|other| &other.capabilities).filter(|other| alike(own, other)).collect();
        let usual = |speed: fn(&Capabilities) -> f64| usual_speed(twins.iter().map(|twin| speed(twin)));
        PlanDevice {
            name: own.name.clone(),
            budget: budget(member),
            bandwidth_bytes_per_s: usual(|twin| twin.bandwidth_bytes_per_s),
            flops_per_s: usual(|twin| twin.flops_per_s),
            threads: (own.device == DeviceKind::Cpu).then_some(own.threads),
            kernels: own.kernels(),
            held: held(member),
            kernel_speeds: usual_kernels(&twins),
            host: own.shared_host.and_then(|_| names.iter().position(|name| *name == own.host)),
            offload_bytes_per_s: own.offload_bytes_per_s,
        }
    };
    LiveDevices {
        devices: members.iter().map(device).collect(),
        hosts: machines.into_values().collect(),
        links: links(members),
    }
}

/// Whether two workers compute with as much of one machine.
fn alike(one: &Capabilities, other: &Capabilities) -> bool {
    let what = |worker: &Capabilities| (worker.host.clone(), worker.device_name.clone(), worker.threads);
    let kind = |worker: &Capabilities| std::mem::discriminant(&worker.device);
    what(one) == what(other) && kind(one) == kind(other) && one.stretch == other.stretch
}

/// Every kernel's usual speed on workers that are alike.
fn usual_kernels(twins: &[&Capabilities]) -> Vec<KernelSpeed> {
    let mut speeds: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for speed in twins.iter().flat_map(|twin| &twin.kernel_speeds) {
        speeds.entry((speed.kernel, speed.rows)).or_default().push(speed.per_s);
    }
    let usual = |((kernel, rows), measured): ((Kernel, u32), Vec<f64>)| KernelSpeed {
        kernel,
        rows,
        per_s: usual_speed(measured.into_iter()),
    };
    speeds.into_iter().map(usual).collect()
}

/// The machines that several workers compute on, by their names, each as its fastest worker saw it.
fn machines<'a>(members: &[&'a Member]) -> BTreeMap<&'a str, SharedHost> {
    let mut machines: BTreeMap<&str, (usize, SharedHost)> = BTreeMap::new();
    for own in members.iter().map(|member| &member.capabilities) {
        let Some(host) = own.shared_host else { continue };
        let (workers, known) = machines.entry(&own.host).or_insert((0, host));
        *workers += 1;
        known.bandwidth_bytes_per_s = known.bandwidth_bytes_per_s.max(host.bandwidth_bytes_per_s);
        known.processors = known.processors.max(host.processors);
        known.speedup = known.speedup.max(host.speedup);
    }
    let shared = machines.into_iter().filter(|(_, (workers, _))| *workers > 1);
    shared.map(|(name, (_, host))| (name, host)).collect()
}

/// The links as their ends measured them. Where two workers have none yet, it is taken to be like the ones that are: of
/// one machine like those within machines, and otherwise like the others.
fn links(members: &[&Member]) -> Links {
    let place = |peer: &Peer| match peer {
        Peer::Worker(id) => members.iter().position(|member| member.id == *id),
        Peer::Coordinator => None,
    };
    let within =
        |one: usize, other: usize| members[one].capabilities.host == members[other].capabilities.host;
    let (mut pairs, mut coordinator) = (BTreeMap::<(usize, usize), f64>::new(), BTreeMap::new());
    for (at, member) in members.iter().enumerate() {
        for link in member.telemetry.links.iter().filter(|link| link.rtt_us > 0) {
            let rtt_us = f64::from(link.rtt_us);
            if link.peer == Peer::Coordinator {
                coordinator.insert(at, HopCost { rtt_us, bytes_per_s: rate(rtt_us, false) });
            } else if let Some(other) = place(&link.peer).filter(|other| *other != at) {
                // Both ends measure; the one that was disturbed less is right.
                let pair = pairs.entry((at.min(other), at.max(other))).or_insert(rtt_us);
                *pair = pair.min(rtt_us);
            }
        }
    }
    let usual = |inside: bool| {
        let mut all: Vec<f64> = pairs
            .iter()
            .filter(|((one, other), _)| within(*one, *other) == inside)
            .map(|(_, rtt_us)| *rtt_us)
            .collect();
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).map(|rtt_us| HopCost { rtt_us: *rtt_us, bytes_per_s: rate(*rtt_us, inside) })
    };
    let (inside, outside) = (usual(true).unwrap_or(WITHIN_MACHINE), usual(false).unwrap_or_default());
    let unknown = (0..members.len()).flat_map(|other| (0..other).map(move |one| (one, other)));
    let unknown = unknown.filter(|pair| within(pair.0, pair.1) && !pairs.contains_key(pair));
    let unknown: Vec<_> = unknown.map(|pair| (pair, inside)).collect();
    let known = pairs.iter().map(|(pair, rtt_us)| {
        (*pair, HopCost { rtt_us: *rtt_us, bytes_per_s: rate(*rtt_us, within(pair.0, pair.1)) })
    });
    Links { default: outside, pairs: known.chain(unknown).collect(), coordinator }
}

/// What a link carries that takes so long: nobody measures that, so it is what links of its kind usually do.
fn rate(rtt_us: f64, within_machine: bool) -> f64 {
    if within_machine && rtt_us <= LONGEST_WITHIN_US {
        WITHIN_MACHINE.bytes_per_s
    } else {
        HopCost::default().bytes_per_s
    }
}

//! Workers as the planner sees them.

use brigade_proto::control::Capabilities;
use brigade_shard::layers::LayerRange;
use brigade_shard::plan::PlanDevice;
use brigade_shard::units::Bytes;

use crate::membership::Member;

/// The devices of these workers, in their order, each with what it has `held` of the model and the memory that `budget`
/// leaves it.
///
/// What a worker measures when it starts is what its machine gave it just then: less where others were busy, never more.
/// So workers of one machine that are alike are all taken to be as fast as the fastest of them; otherwise a short
/// disturbance would cut a model unevenly for as long as it is served.
pub(super) fn devices(
    members: &[&Member],
    held: impl Fn(&Member) -> Option<LayerRange>,
    budget: impl Fn(&Member) -> Bytes,
) -> Vec<PlanDevice> {
    let device = |member: &&Member| {
        let own = &member.capabilities;
        let twins = members.iter().map(|other| &other.capabilities).filter(|other| alike(own, other));
        let fastest = |speed: fn(&Capabilities) -> f64| twins.clone().map(speed).fold(0.0, f64::max);
        PlanDevice {
            name: own.name.clone(),
            budget: budget(member),
            bandwidth_bytes_per_s: fastest(|twin| twin.bandwidth_bytes_per_s),
            flops_per_s: fastest(|twin| twin.flops_per_s),
            kernels: own.device.kernels(),
            held: held(member),
            kernel_speeds: own.kernel_speeds.clone(),
            host: None,
            offload_bytes_per_s: own.offload_bytes_per_s,
        }
    };
    members.iter().map(device).collect()
}

/// Whether two workers compute with as much of one machine.
fn alike(one: &Capabilities, other: &Capabilities) -> bool {
    let what = |worker: &Capabilities| (worker.host.clone(), worker.device_name.clone(), worker.threads);
    let kind = |worker: &Capabilities| std::mem::discriminant(&worker.device);
    what(one) == what(other) && kind(one) == kind(other) && one.stretch == other.stretch
}

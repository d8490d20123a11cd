//! Messages from a worker to the coordinator.

use brigade_shard::plan::{Kernel, KernelSpeed, SharedHost};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::control::{
    Capabilities, DeliveryProgress, DeviceKind, PROTOCOL_VERSION, StageMemory, StageReport, StageState,
    ToCoordinator,
};
use crate::convert::InvalidMessage;
use crate::convert::fields::{
    MAX_NAME_BYTES, address, addresses, peer, positive, rate, reason, required, shortened, text,
};
use crate::ids::{DeploymentId, Epoch, StepId};
use crate::pb;

use pb::to_coordinator::Message;

/// Most sources that a load's weights are said to come from.
const MAX_SOURCES: usize = 16;
/// Most kernels whose speeds are told: some sizes of steps for every type there is.
const MAX_KERNEL_SPEEDS: usize = 512;

impl From<ToCoordinator> for pb::ToCoordinator {
    fn from(message: ToCoordinator) -> pb::ToCoordinator {
        let message = match message {
            ToCoordinator::Hello(capabilities) => Message::Hello(pb::Hello {
                protocol_version: PROTOCOL_VERSION,
                capabilities: Some(capabilities.into()),
            }),
            ToCoordinator::Stage(report) => Message::Stage(report.into()),
            ToCoordinator::Heartbeat(telemetry) => Message::Heartbeat(telemetry.into()),
            ToCoordinator::Probed { nonce } => Message::Probed(pb::Probed { nonce }),
            ToCoordinator::LinkProbed { nonce, reached } => {
                Message::LinkProbed(pb::LinkProbed { nonce, reached })
            }
            ToCoordinator::StepFailed { deployment, step, stage, reason } => {
                Message::StepFailed(pb::StepFailed {
                    deployment: deployment.0,
                    step: step.0,
                    stage,
                    reason: shortened(reason),
                })
            }
            ToCoordinator::LinkLost { deployment, peer, reason } => Message::LinkLost(pb::LinkLost {
                deployment: deployment.0,
                peer: Some(peer.into()),
                reason: shortened(reason),
            }),
            ToCoordinator::Leaving => Message::Leaving(pb::Leaving {}),
        };
        pb::ToCoordinator { message: Some(message) }
    }
}

impl TryFrom<pb::ToCoordinator> for ToCoordinator {
    type Error = InvalidMessage;

    fn try_from(message: pb::ToCoordinator) -> Result<ToCoordinator, InvalidMessage> {
        Ok(match required("message", message.message)? {
            Message::Hello(hello) => {
                let capabilities = required("hello.capabilities", hello.capabilities)?;
                ToCoordinator::Hello(capabilities.try_into()?)
            }
            Message::Stage(report) => ToCoordinator::Stage(report.try_into()?),
            Message::Heartbeat(telemetry) => ToCoordinator::Heartbeat(telemetry.try_into()?),
            Message::Probed(pb::Probed { nonce }) => ToCoordinator::Probed { nonce },
            Message::LinkProbed(pb::LinkProbed { nonce, reached }) => {
                ToCoordinator::LinkProbed { nonce, reached }
            }
            Message::StepFailed(failed) => ToCoordinator::StepFailed {
                deployment: DeploymentId(failed.deployment),
                step: StepId(failed.step),
                stage: failed.stage,
                reason: reason("step_failed.reason", failed.reason)?,
            },
            Message::LinkLost(lost) => ToCoordinator::LinkLost {
                deployment: DeploymentId(lost.deployment),
                peer: peer("link_lost.peer", lost.peer)?,
                reason: reason("link_lost.reason", lost.reason)?,
            },
            Message::Leaving(pb::Leaving {}) => ToCoordinator::Leaving,
        })
    }
}

impl From<Capabilities> for pb::Capabilities {
    fn from(capabilities: Capabilities) -> pb::Capabilities {
        let device = match capabilities.device {
            DeviceKind::Cpu => pb::device::Kind::Cpu(true),
            DeviceKind::Cuda(index) => pb::device::Kind::Cuda(index),
            DeviceKind::Metal => pb::device::Kind::Metal(true),
        };
        pb::Capabilities {
            name: capabilities.name,
            host: capabilities.host,
            version: capabilities.version,
            device: Some(pb::Device { kind: Some(device) }),
            device_name: capabilities.device_name,
            budget_bytes: capabilities.budget.0,
            threads: capabilities.threads,
            bandwidth_bytes_per_s: capabilities.bandwidth_bytes_per_s,
            flops_per_s: capabilities.flops_per_s,
            data_addresses: capabilities.data_addresses.iter().map(ToString::to_string).collect(),
            delivery_port: capabilities.delivery_port.into(),
            stretch: capabilities.stretch,
            kernel_speeds: capabilities.kernel_speeds.iter().map(kernel_speed).collect(),
            host_bandwidth_bytes_per_s: capabilities
                .shared_host
                .map_or(0.0, |host| host.bandwidth_bytes_per_s),
            host_processors: capabilities.shared_host.map_or(0, |host| host.processors),
            host_speedup: capabilities.shared_host.map_or(0.0, |host| host.speedup),
            offload_bytes_per_s: capabilities.offload_bytes_per_s,
            converts: capabilities.converts,
        }
    }
}

impl TryFrom<pb::Capabilities> for Capabilities {
    type Error = InvalidMessage;

    fn try_from(capabilities: pb::Capabilities) -> Result<Capabilities, InvalidMessage> {
        let device = capabilities.device.and_then(|device| device.kind);
        let device = match required("capabilities.device", device)? {
            pb::device::Kind::Cpu(_) => DeviceKind::Cpu,
            pb::device::Kind::Cuda(index) => DeviceKind::Cuda(index),
            pb::device::Kind::Metal(_) => DeviceKind::Metal,
        };
        Ok(Capabilities {
            name: text("capabilities.name", capabilities.name, MAX_NAME_BYTES)?,
            host: text("capabilities.host", capabilities.host, MAX_NAME_BYTES)?,
            version: text("capabilities.version", capabilities.version, MAX_NAME_BYTES)?,
            device,
            device_name: text("capabilities.device_name", capabilities.device_name, MAX_NAME_BYTES)?,
            budget: Bytes(capabilities.budget_bytes),
            threads: positive("capabilities.threads", capabilities.threads)?,
            bandwidth_bytes_per_s: rate(
                "capabilities.bandwidth_bytes_per_s",
                capabilities.bandwidth_bytes_per_s,
            )?,
            flops_per_s: rate("capabilities.flops_per_s", capabilities.flops_per_s)?,
            data_addresses: addresses("capabilities.data_addresses", capabilities.data_addresses)?,
            delivery_port: u16::try_from(capabilities.delivery_port)
                .map_err(|_| InvalidMessage::new("capabilities.delivery_port", "is no port"))?,
            stretch: rate("capabilities.stretch", capabilities.stretch)?,
            kernel_speeds: kernel_speeds(capabilities.kernel_speeds)?,
            shared_host: shared_host(
                capabilities.host_bandwidth_bytes_per_s,
                capabilities.host_processors,
                capabilities.host_speedup,
            )?,
            offload_bytes_per_s: capabilities
                .offload_bytes_per_s
                .map(|value| rate("capabilities.offload_bytes_per_s", value))
                .transpose()?,
            converts: capabilities.converts,
        })
    }
}

fn delivery_progress(delivery: pb::DeliveryProgress) -> Result<DeliveryProgress, InvalidMessage> {
    if delivery.sources.len() > MAX_SOURCES {
        return Err(InvalidMessage::new("stage.loading.delivery.sources", "are too many"));
    }
    let source = |source| peer("stage.loading.delivery.sources", Some(source));
    Ok(DeliveryProgress {
        fetched: Bytes(delivery.fetched_bytes),
        wanted: Bytes(delivery.wanted_bytes),
        bytes_per_s: rate("stage.loading.delivery.bytes_per_s", delivery.bytes_per_s)?,
        sources: delivery.sources.into_iter().map(source).collect::<Result<_, _>>()?,
    })
}

fn kernel_speed(speed: &KernelSpeed) -> pb::KernelSpeed {
    use pb::kernel_speed::{Attention, Drawing, Framing, Handing, Kernel as Of, Opening, Passing};
    let kernel = match speed.kernel {
        Kernel::Product(kind) => Of::Product(kind.to_ggml()),
        Kernel::Attention => Of::Attention(Attention {}),
        Kernel::Opening => Of::Opening(Opening {}),
        Kernel::Passing => Of::Passing(Passing {}),
        Kernel::Framing => Of::Framing(Framing {}),
        Kernel::Handing => Of::Handing(Handing {}),
        Kernel::Drawing => Of::Drawing(Drawing {}),
    };
    pb::KernelSpeed { kernel: Some(kernel), rows: speed.rows, per_s: speed.per_s }
}

fn kernel_speeds(speeds: Vec<pb::KernelSpeed>) -> Result<Vec<KernelSpeed>, InvalidMessage> {
    const FIELD: &str = "capabilities.kernel_speeds";
    if speeds.len() > MAX_KERNEL_SPEEDS {
        return Err(InvalidMessage::new(FIELD, format!("has {} entries", speeds.len())));
    }
    let speed = |speed: pb::KernelSpeed| {
        use pb::kernel_speed::Kernel as Of;
        let kernel = match required("capabilities.kernel_speeds.kernel", speed.kernel)? {
            Of::Product(kind) => Kernel::Product(
                TensorType::from_ggml(kind)
                    .ok_or_else(|| InvalidMessage::new(FIELD, format!("names the type {kind}")))?,
            ),
            Of::Attention(_) => Kernel::Attention,
            Of::Opening(_) => Kernel::Opening,
            Of::Passing(_) => Kernel::Passing,
            Of::Framing(_) => Kernel::Framing,
            Of::Handing(_) => Kernel::Handing,
            Of::Drawing(_) => Kernel::Drawing,
        };
        let rows = positive("capabilities.kernel_speeds.rows", speed.rows)?;
        let per_s = rate("capabilities.kernel_speeds.per_s", speed.per_s)?;
        Ok(KernelSpeed { kernel, rows, per_s })
    };
    speeds.into_iter().map(speed).collect()
}

fn shared_host(bandwidth: f64, processors: u32, speedup: f64) -> Result<Option<SharedHost>, InvalidMessage> {
    if processors == 0 {
        return Ok(None);
    }
    let bandwidth_bytes_per_s = rate("capabilities.host_bandwidth_bytes_per_s", bandwidth)?;
    let speedup = rate("capabilities.host_speedup", speedup)?;
    Ok(Some(SharedHost { bandwidth_bytes_per_s, processors, speedup }))
}

impl From<StageReport> for pb::StageReport {
    fn from(report: StageReport) -> pb::StageReport {
        use pb::stage_report::{Active, Connected, Crowded, Failed, Loading, Prepared, Retired, State};
        let state = match report.state {
            StageState::Loading { loaded, total, delivery } => State::Loading(Loading {
                loaded_bytes: loaded.0,
                total_bytes: total.0,
                delivery: delivery.map(|delivery| pb::DeliveryProgress {
                    fetched_bytes: delivery.fetched.0,
                    wanted_bytes: delivery.wanted.0,
                    bytes_per_s: delivery.bytes_per_s,
                    sources: delivery.sources.into_iter().take(MAX_SOURCES).map(Into::into).collect(),
                }),
            }),
            StageState::Loaded(memory) => State::Loaded(pb::StageMemory {
                weights_bytes: memory.weights.0,
                cache_bytes: memory.cache.0,
                workspace_bytes: memory.workspace.0,
            }),
            StageState::Connected { next_address, rtt_us } => {
                State::Connected(Connected { next_address: next_address.to_string(), rtt_us })
            }
            StageState::Active => State::Active(Active {}),
            StageState::Failed { reason } => State::Failed(Failed { reason: shortened(reason) }),
            StageState::Retired => State::Retired(Retired {}),
            StageState::Prepared => State::Prepared(Prepared {}),
            StageState::Crowded { reason } => State::Crowded(Crowded { reason: shortened(reason) }),
        };
        pb::StageReport { deployment: report.deployment.0, epoch: report.epoch.0, state: Some(state) }
    }
}

impl TryFrom<pb::StageReport> for StageReport {
    type Error = InvalidMessage;

    fn try_from(report: pb::StageReport) -> Result<StageReport, InvalidMessage> {
        use pb::stage_report::State;
        let state = match required("stage.state", report.state)? {
            State::Loading(loading) => {
                let delivery = loading.delivery.map(delivery_progress).transpose()?;
                let (loaded, total) = (Bytes(loading.loaded_bytes), Bytes(loading.total_bytes));
                StageState::Loading { loaded, total, delivery }
            }
            State::Loaded(memory) => StageState::Loaded(StageMemory {
                weights: Bytes(memory.weights_bytes),
                cache: Bytes(memory.cache_bytes),
                workspace: Bytes(memory.workspace_bytes),
            }),
            State::Connected(connected) => StageState::Connected {
                next_address: address("stage.connected.next_address", &connected.next_address)?,
                rtt_us: connected.rtt_us,
            },
            State::Active(_) => StageState::Active,
            State::Failed(failed) => {
                StageState::Failed { reason: reason("stage.failed.reason", failed.reason)? }
            }
            State::Retired(_) => StageState::Retired,
            State::Prepared(_) => StageState::Prepared,
            State::Crowded(crowded) => {
                StageState::Crowded { reason: reason("stage.crowded.reason", crowded.reason)? }
            }
        };
        Ok(StageReport { deployment: DeploymentId(report.deployment), epoch: Epoch(report.epoch), state })
    }
}

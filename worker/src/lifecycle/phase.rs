//! Where a stage stands, and how the coordinator is told.

use std::net::SocketAddr;
use std::time::Instant;

use brigade_proto::control::{LoadStage, StageMemory, StageReport, StageState};
use brigade_proto::ids::{DeploymentId, Epoch, Fence};
use brigade_shard::units::Bytes;

use super::messages::{ConnectId, LoadId, Progress, StageCommand};

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) order: LoadStage,
    pub(super) phase: Phase,
    /// Since when it is kept for a coordinator that has started anew, which may want it again; `None` for the stages of
    /// the start that last welcomed this worker.
    pub(super) kept: Option<Instant>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Finding {
        load: LoadId,
    },
    /// It is found, and waits for memory that is on its way out.
    Waiting {
        load: LoadId,
        memory: StageMemory,
    },
    Reading {
        load: LoadId,
        memory: StageMemory,
        progress: Progress,
        reported: Instant,
    },
    Loaded {
        memory: StageMemory,
    },
    Connecting {
        memory: StageMemory,
        attempt: ConnectId,
    },
    Connected {
        memory: StageMemory,
        next_address: SocketAddr,
        rtt_us: u32,
    },
    Active {
        memory: StageMemory,
        fence: Fence,
    },
    Failed {
        reason: String,
    },
    Ending {
        memory: StageMemory,
        wait: Wait,
        report: Option<Epoch>,
        then: Option<Box<LoadStage>>,
    },
}

/// What must happen before a stage's memory is free.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Load(LoadId),
    Engine,
}

impl Phase {
    /// What counts against the budget.
    pub(super) fn memory(&self) -> StageMemory {
        match self {
            Phase::Finding { .. } | Phase::Waiting { .. } | Phase::Failed { .. } => StageMemory::default(),
            Phase::Reading { memory, .. }
            | Phase::Loaded { memory }
            | Phase::Connecting { memory, .. }
            | Phase::Connected { memory, .. }
            | Phase::Active { memory, .. }
            | Phase::Ending { memory, .. } => *memory,
        }
    }

    /// What a stage takes that is in the engine with all of its weights, and is to stay.
    pub(super) fn resident(&self) -> Option<StageMemory> {
        match self {
            Phase::Loaded { memory }
            | Phase::Connecting { memory, .. }
            | Phase::Connected { memory, .. }
            | Phase::Active { memory, .. } => Some(*memory),
            Phase::Finding { .. }
            | Phase::Waiting { .. }
            | Phase::Reading { .. }
            | Phase::Failed { .. }
            | Phase::Ending { .. } => None,
        }
    }

    pub(super) fn load(&self) -> Option<LoadId> {
        match self {
            Phase::Finding { load } | Phase::Waiting { load, .. } | Phase::Reading { load, .. } => {
                Some(*load)
            }
            Phase::Ending { wait: Wait::Load(load), .. } => Some(*load),
            _ => None,
        }
    }

    /// For refusals: "it is ...".
    pub(super) fn words(&self) -> &'static str {
        match self {
            Phase::Finding { .. } => "looking for its file",
            Phase::Waiting { .. } => "waiting for memory that is being freed",
            Phase::Reading { .. } => "loading",
            Phase::Loaded { .. } => "loaded but not connected",
            Phase::Connecting { .. } => "connecting",
            Phase::Connected { .. } => "connected",
            Phase::Active { .. } => "active",
            Phase::Failed { .. } => "failed",
            Phase::Ending { .. } => "being retired",
        }
    }

    /// What the coordinator is told of it; nothing of a stage on its way out.
    pub(super) fn state(&self) -> Option<StageState> {
        Some(match self {
            Phase::Finding { .. } | Phase::Waiting { .. } => Progress::default().state(),
            Phase::Reading { progress, .. } => progress.state(),
            Phase::Loaded { memory } | Phase::Connecting { memory, .. } => StageState::Loaded(*memory),
            Phase::Connected { next_address, rtt_us, .. } => {
                StageState::Connected { next_address: *next_address, rtt_us: *rtt_us }
            }
            Phase::Active { .. } => StageState::Active,
            Phase::Failed { reason } => StageState::Failed { reason: reason.clone() },
            Phase::Ending { .. } => return None,
        })
    }
}

pub(super) fn report(deployment: DeploymentId, epoch: Epoch, state: StageState) -> StageCommand {
    StageCommand::Report(StageReport { deployment, epoch, state })
}

pub(super) fn report_of(slot: &Slot) -> Option<StageCommand> {
    Some(report(slot.order.deployment, slot.order.epoch, slot.phase.state()?))
}

pub(super) fn failed(deployment: DeploymentId, epoch: Epoch, reason: String) -> StageCommand {
    report(deployment, epoch, StageState::Failed { reason })
}

pub(super) fn older(deployment: DeploymentId, epoch: Epoch, current: Epoch) -> StageCommand {
    let reason =
        format!("epoch {epoch} of deployment {deployment} is older than {current}, which this worker has");
    failed(deployment, epoch, reason)
}

pub(super) fn out_of_order(
    deployment: DeploymentId,
    epoch: Epoch,
    wanted: &str,
    phase: &Phase,
) -> StageCommand {
    let reason = format!("cannot {wanted} the stage of deployment {deployment}: it is {}", phase.words());
    failed(deployment, epoch, reason)
}

pub(super) fn too_little(memory: &StageMemory, budget: Bytes, held: Bytes, stages: usize) -> String {
    let mib = |bytes: Bytes| bytes.as_mib();
    let missing = memory.total().saturating_sub(budget.saturating_sub(held));
    let others = match stages {
        0 => String::new(),
        n => format!(", of which {n} other stage(s) hold {:.1} MiB", mib(held)),
    };
    format!(
        "the stage needs {:.1} MiB (weights {:.1} + cache {:.1} + workspace {:.1}) but this worker's budget is {:.1} \
         MiB{others}: {:.1} MiB are missing; raise --memory, or cut the model into more stages",
        mib(memory.total()),
        mib(memory.weights),
        mib(memory.cache),
        mib(memory.workspace),
        mib(budget),
        mib(missing),
    )
}

//! What the stage machine is told, and what it wants done.

use std::net::SocketAddr;

use brigade_proto::control::{
    ConnectStage, DeliveryProgress, LoadStage, StageMemory, StageReport, StageState,
};
use brigade_proto::ids::{DeploymentId, Fence, Incarnation};
use brigade_shard::units::Bytes;

/// Names one attempt at loading a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// Names one attempt at opening the links of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectId(pub u64);

/// How far weights are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Read so far.
    pub loaded: Bytes,
    /// To be read.
    pub total: Bytes,
    /// What comes from other machines, where any does.
    pub delivery: Option<DeliveryProgress>,
}

impl Progress {
    pub(super) fn state(&self) -> StageState {
        let Progress { loaded, total, delivery } = self.clone();
        StageState::Loading { loaded, total, delivery }
    }
}

/// What the machine is told.
#[derive(Clone, Debug, PartialEq)]
pub enum StageEvent {
    /// The coordinator has welcomed this worker.
    Welcomed(Incarnation),
    /// The coordinator wants a shard loaded.
    Load(LoadStage),
    /// The coordinator wants a stage connected.
    Connect(ConnectStage),
    /// The coordinator wants a stage to accept frames.
    Activate {
        /// Which stage.
        deployment: DeploymentId,
        /// What its frames will carry.
        fence: Fence,
    },
    /// The coordinator wants a stage gone.
    Retire {
        /// Which stage.
        deployment: DeploymentId,
    },
    /// The coordinator wants a shard's weights to be resident before it wants the shard loaded.
    Prepare(LoadStage),
    /// The coordinator does not want them any more.
    Unprepare {
        /// Of which stage.
        deployment: DeploymentId,
    },
    /// The file is there, and so much of the weights must be read ahead.
    FoundMissing {
        /// Which load.
        load: LoadId,
        /// All of the shard's weights.
        weights: Bytes,
        /// Those that are not resident.
        missing: Bytes,
    },
    /// Weights are resident ahead of their stage.
    Prepared {
        /// Which load.
        load: LoadId,
    },
    /// The file is there, and this is what the stage will take.
    Found {
        /// Which load.
        load: LoadId,
        /// What it takes once loaded.
        memory: StageMemory,
    },
    /// Weights are being read.
    Progress {
        /// Which load.
        load: LoadId,
        /// How far it is.
        progress: Progress,
    },
    /// A load is over: with a stage ready to be installed, or with the reason why not.
    LoadEnded {
        /// Which load.
        load: LoadId,
        /// What the stage takes, or why there is none.
        result: Result<StageMemory, String>,
    },
    /// The links of a stage stand.
    LinksOpened {
        /// Which attempt.
        attempt: ConnectId,
        /// Where the next neighbour was reached.
        next_address: SocketAddr,
        /// Round trip to it, in microseconds.
        rtt_us: u32,
    },
    /// The links of a stage could not be opened.
    LinksFailed {
        /// Which attempt.
        attempt: ConnectId,
        /// Why.
        reason: String,
    },
    /// The engine has let go of a stage; its memory is free.
    Dropped {
        /// Which stage.
        deployment: DeploymentId,
    },
    /// The engine has lost a stage to a defect while computing; its memory is free.
    Panicked {
        /// Which stage.
        deployment: DeploymentId,
        /// What the defect said.
        reason: String,
    },
    /// Time has passed while the worker is attached.
    Beat,
    /// The worker ends: every stage goes.
    RetireAll,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum StageCommand {
    /// Look for the model's file and work out what the stage takes; ends with `Found` or `LoadEnded`.
    Find {
        /// Name of the attempt.
        load: LoadId,
        /// What to look for.
        order: LoadStage,
    },
    /// Read the weights of what was found; ends with `LoadEnded`.
    Read {
        /// Which load.
        load: LoadId,
        /// What it may take.
        budget: Bytes,
    },
    /// Look for the model's file and count what of the shard's weights is missing; ends with `FoundMissing` or `LoadEnded`.
    FindMissing {
        /// Name of the attempt.
        load: LoadId,
        /// What to look for.
        order: LoadStage,
    },
    /// Read what is missing; ends with `Prepared` or `LoadEnded`.
    ReadMissing {
        /// Which load.
        load: LoadId,
    },
    /// Give a load up; it still ends as it would have, or with `LoadEnded`.
    Cancel {
        /// Which load.
        load: LoadId,
    },
    /// Forget what a load has found or made.
    Discard {
        /// Which load.
        load: LoadId,
    },
    /// Hand a loaded stage to the engine.
    Install {
        /// Which load made it.
        load: LoadId,
        /// What it is called from now on.
        deployment: DeploymentId,
        /// Its place in the pipeline, from 0.
        stage: u32,
    },
    /// Open the links of a stage; ends with `LinksOpened` or `LinksFailed`.
    Open {
        /// Name of the attempt.
        attempt: ConnectId,
        /// The neighbours.
        order: ConnectStage,
    },
    /// Let go of a stage's links; an attempt to open them is given up.
    Unbind {
        /// Which stage.
        deployment: DeploymentId,
    },
    /// Accept frames of this fence.
    Activate {
        /// Which stage.
        deployment: DeploymentId,
        /// What its frames carry.
        fence: Fence,
    },
    /// Forget all sequences of a stage and accept no frames; weights stay.
    Clear {
        /// Which stage.
        deployment: DeploymentId,
        /// Its place in the pipeline from now on.
        stage: u32,
    },
    /// Take a stage out of the engine; ends with `Dropped`.
    Drop {
        /// Which stage.
        deployment: DeploymentId,
    },
    /// Tell the coordinator.
    Report(StageReport),
}

//! One life of a worker's process: the real stage machine, and an engine that computes the simulated model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use brigade_proto::control::{ConnectStage, LoadStage, StageMemory, Telemetry, ToCoordinator};
use brigade_proto::ids::{DeploymentId, Fence, Incarnation, Peer, StepId};
use brigade_proto::step::{StageTiming, StepFrame, StepKind};
use brigade_shard::layers::LayerRange;
use brigade_shard::units::Bytes;
use brigade_worker::lifecycle::{ConnectId, LoadId, StageCommand, StageEvent, StageMachine};

use super::model;
use super::stage::{Output, SimulatedStage};
use super::world::LinkId;

/// Failures and losses kept for a coordinator that cannot be told, as in a real worker.
const BACKLOG: usize = 64;

/// Something that the world around the process has to do.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Look for the model's file, or read weights; tell when that is done.
    Find(LoadId),
    Read(LoadId, usize),
    /// Open links.
    Dial(ConnectId, ConnectStage),
    /// Tell the coordinator.
    Tell(ToCoordinator),
}

/// A process.
pub(super) struct Process {
    pub(super) machine: StageMachine,
    stages: BTreeMap<DeploymentId, Slot>,
    loads: BTreeMap<LoadId, LoadStage>,
    /// Loads of weights alone, with how many layers they read.
    ahead: BTreeMap<LoadId, usize>,
    /// Layers that are resident without a stage.
    kept: BTreeMap<LoadId, LayerRange>,
    cancelled: BTreeSet<LoadId>,
    decode: VecDeque<Arrival>,
    prefill: VecDeque<Arrival>,
    /// The step being computed, and since when, in microseconds.
    busy: Option<(Arrival, u64)>,
    steps: u64,
    fenced: u64,
    backlog: VecDeque<(Incarnation, ToCoordinator)>,
}

struct Slot {
    stage: u32,
    sim: SimulatedStage,
    fence: Option<Fence>,
    neighbours: Option<Neighbours>,
}

struct Neighbours {
    previous: Peer,
    next: LinkId,
}

struct Arrival {
    from: Peer,
    frame: StepFrame,
}

/// What came of a step.
pub(super) enum Computed {
    /// Something to send.
    Sends(LinkId, Output),
    /// Nothing, for this reason.
    Failed { deployment: DeploymentId, step: StepId, stage: u32, reason: String },
    /// Nothing: its stage is not what it was.
    Nothing,
}

impl Process {
    pub(super) fn new(budget: Bytes) -> Process {
        Process {
            machine: StageMachine::new(budget),
            stages: BTreeMap::new(),
            loads: BTreeMap::new(),
            ahead: BTreeMap::new(),
            kept: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            decode: VecDeque::new(),
            prefill: VecDeque::new(),
            busy: None,
            steps: 0,
            fenced: 0,
            backlog: VecDeque::new(),
        }
    }

    /// Tells the machine; what is wanted of the world.
    pub(super) fn apply(&mut self, event: StageEvent, now: Instant) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for command in self.machine.handle(event, now) {
                events.extend(self.carry_out(command, &mut wanted));
            }
        }
        wanted
    }

    fn carry_out(&mut self, command: StageCommand, wanted: &mut Vec<Wanted>) -> Option<StageEvent> {
        match command {
            StageCommand::Find { load, order } => {
                self.loads.insert(load, order);
                wanted.push(Wanted::Find(load));
            }
            StageCommand::Read { load, .. } => {
                wanted.push(Wanted::Read(load, self.missing(load)));
            }
            StageCommand::FindMissing { load, order } => {
                self.loads.insert(load, order);
                self.ahead.insert(load, self.missing(load));
                wanted.push(Wanted::Find(load));
            }
            StageCommand::ReadMissing { load } => wanted.push(Wanted::Read(load, self.ahead[&load])),
            StageCommand::Cancel { load } => {
                self.cancelled.insert(load);
            }
            StageCommand::Discard { load } => {
                self.loads.remove(&load);
                self.ahead.remove(&load);
                self.kept.remove(&load);
            }
            StageCommand::Install { load, deployment, stage } => {
                let order = self.loads.remove(&load)?;
                let sim = SimulatedStage::new(order.shard, order.room);
                self.stages.insert(deployment, Slot { stage, sim, fence: None, neighbours: None });
            }
            StageCommand::Open { attempt, order } => wanted.push(Wanted::Dial(attempt, order)),
            StageCommand::Unbind { deployment } => {
                self.stages.entry(deployment).and_modify(|slot| slot.neighbours = None);
            }
            StageCommand::Activate { deployment, fence } => {
                self.stages.entry(deployment).and_modify(|slot| slot.fence = Some(fence));
            }
            StageCommand::Clear { deployment, stage } => {
                if let Some(slot) = self.stages.get_mut(&deployment) {
                    (slot.stage, slot.fence, slot.neighbours) = (stage, None, None);
                    slot.sim.clear();
                }
            }
            StageCommand::Drop { deployment } => {
                self.stages.remove(&deployment);
                return Some(StageEvent::Dropped { deployment });
            }
            StageCommand::Report(report) => wanted.push(Wanted::Tell(ToCoordinator::Stage(report))),
        }
        None
    }

    /// The model's file is found.
    pub(super) fn found(&mut self, load: LoadId, now: Instant) -> Vec<Wanted> {
        let Some(order) = self.loads.get(&load) else {
            return Vec::new();
        };
        let (memory, layers) = (memory(order), order.shard.layers.len());
        let event = match self.ahead.contains_key(&load) {
            true => {
                let missing = self.missing(load);
                self.ahead.insert(load, missing);
                let missing = Bytes(memory.weights.0 * missing as u64 / layers as u64);
                StageEvent::FoundMissing { load, weights: memory.weights, missing }
            }
            false => StageEvent::Found { load, memory },
        };
        self.apply(event, now)
    }

    /// How many of a load's layers are not resident.
    fn missing(&self, load: LoadId) -> usize {
        let held: Vec<LayerRange> =
            self.stages.values().map(|slot| slot.sim.layers()).chain(self.kept.values().copied()).collect();
        let missing = |layer: &usize| !held.iter().any(|range| range.iter().any(|held| held == *layer));
        self.loads[&load].shard.layers.iter().filter(missing).count()
    }

    /// Weights are read, or not.
    pub(super) fn read(&mut self, load: LoadId, failed: bool, now: Instant) -> Vec<Wanted> {
        let Some(order) = self.loads.get(&load) else {
            return Vec::new();
        };
        let result = if self.cancelled.remove(&load) {
            Err("it was cancelled".to_owned())
        } else if failed {
            Err("the disk failed".to_owned())
        } else if self.ahead.contains_key(&load) {
            self.kept.insert(load, order.shard.layers);
            return self.apply(StageEvent::Prepared { load }, now);
        } else {
            Ok(memory(order))
        };
        self.apply(StageEvent::LoadEnded { load, result }, now)
    }

    /// Links of a stage stand.
    pub(super) fn bind(&mut self, order: &ConnectStage, next: LinkId) {
        if let Some(slot) = self.stages.get_mut(&order.deployment) {
            slot.neighbours = Some(Neighbours { previous: order.previous.clone(), next });
        }
    }

    /// Stages that rely on a link that has ended; `another` link to the peer may stand.
    pub(super) fn lost(&self, link: LinkId, peer: &Peer, another: bool) -> Vec<DeploymentId> {
        let relies = |slot: &Slot| {
            let relies = |n: &Neighbours| n.next == link || (n.previous == *peer && !another);
            slot.neighbours.as_ref().is_some_and(relies)
        };
        self.stages.iter().filter(|(_, slot)| relies(slot)).map(|(deployment, _)| *deployment).collect()
    }

    /// Queues a frame.
    pub(super) fn arrive(&mut self, from: Peer, frame: StepFrame) {
        match frame.kind {
            StepKind::Decode => self.decode.push_back(Arrival { from, frame }),
            StepKind::Prefill => self.prefill.push_back(Arrival { from, frame }),
        }
    }

    /// Begins to compute the next step, where the engine is idle; its rows.
    pub(super) fn begin(&mut self, now_us: u64) -> Option<usize> {
        if self.busy.is_some() {
            return None;
        }
        loop {
            let arrival = self.decode.pop_front().or_else(|| self.prefill.pop_front())?;
            if self.expects(&arrival) {
                let rows = arrival.frame.segments.iter().map(|segment| segment.tokens.len()).sum();
                self.busy = Some((arrival, now_us));
                return Some(rows);
            }
            self.fenced += 1;
        }
    }

    fn expects(&self, arrival: &Arrival) -> bool {
        let slot = self.stages.get(&arrival.frame.deployment);
        slot.is_some_and(|slot| {
            slot.fence == Some(arrival.frame.fence)
                && slot.neighbours.as_ref().is_some_and(|n| n.previous == arrival.from)
        })
    }

    /// The step under way is computed.
    pub(super) fn finish(&mut self, now_us: u64) -> Computed {
        let Some((arrival, since)) = self.busy.take() else {
            return Computed::Nothing;
        };
        // An order that came meanwhile would have waited; what it leaves of the stage decides.
        if !self.expects(&arrival) {
            return Computed::Nothing;
        }
        let mut frame = arrival.frame;
        let (deployment, step) = (frame.deployment, frame.step);
        let Some(slot) = self.stages.get_mut(&deployment) else {
            return Computed::Nothing;
        };
        let timing =
            StageTiming { stage: slot.stage, computed_us: (now_us - since) as u32, ..StageTiming::default() };
        frame.timings.push(timing);
        let (stage, next) = (slot.stage, slot.neighbours.as_ref().map(|n| n.next));
        self.steps += 1;
        match (slot.sim.run(frame), next) {
            (Ok(output), Some(next)) => Computed::Sends(next, output),
            (Ok(_), None) => Computed::Nothing,
            (Err(reason), _) => Computed::Failed { deployment, step, stage, reason },
        }
    }

    /// What a heartbeat says.
    pub(super) fn telemetry(&self, now_us: u64) -> Telemetry {
        let computing_us = self.busy.as_ref().map_or(0, |(_, since)| now_us - since);
        Telemetry {
            steps: self.steps,
            frames_fenced: self.fenced,
            computing_ms: (computing_us / 1000) as u32,
            ..Telemetry::default()
        }
    }

    /// Keeps what a coordinator must hear that cannot be told now.
    pub(super) fn keep(&mut self, message: ToCoordinator) {
        let must = matches!(message, ToCoordinator::StepFailed { .. } | ToCoordinator::LinkLost { .. });
        if let Some(incarnation) = self.machine.incarnation().filter(|_| must) {
            if self.backlog.len() >= BACKLOG {
                self.backlog.pop_front();
            }
            self.backlog.push_back((incarnation, message));
        }
    }

    /// What was kept for this start of the coordinator.
    pub(super) fn kept(&mut self, incarnation: Incarnation) -> Vec<ToCoordinator> {
        let kept = std::mem::take(&mut self.backlog).into_iter();
        kept.filter(|(then, _)| *then == incarnation).map(|(_, message)| message).collect()
    }

    /// Whether weights are kept, or read, for a plan to come.
    pub(super) fn keeps_ahead(&self) -> bool {
        !self.ahead.is_empty() || !self.kept.is_empty()
    }

    /// Sequences that stages still hold.
    pub(super) fn held(&self) -> usize {
        self.stages.values().map(|slot| slot.sim.held()).sum()
    }
}

fn memory(order: &LoadStage) -> StageMemory {
    let bytes = model::memory(&order.shard);
    StageMemory { weights: bytes.weights, cache: bytes.cache, workspace: bytes.workspace }
}

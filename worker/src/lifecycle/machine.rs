//! The machine itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use brigade_proto::control::{ConnectStage, LoadStage, StageMemory, StageState};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation};
use brigade_shard::units::Bytes;

use super::messages::{ConnectId, LoadId, Progress, StageCommand, StageEvent};
use super::phase::{Phase, Slot, Wait, failed, older, out_of_order, report, report_of, too_little};
use super::preparing::Preparing;

/// Most stages that a worker holds or loads at a time: a handful of deployments share a worker (the live plan, the
/// next one, a draft model, a baseline), and a bound keeps a confused coordinator from starting loads without end.
pub const MAX_STAGES: usize = 16;

/// Least time between two progress reports of one load.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How long weights are kept for a coordinator that has started anew and does not ask for them: it may still wait for
/// other workers to come back.
pub const KEPT_FOR: Duration = Duration::from_secs(300);

/// Everything a worker knows of its stages.
///
/// Invariants: the memory of all stages, including those being read and those not yet let go of, stays within the
/// budget; a deployment has at most one load under way or one stage in the engine, never both; every load that was
/// started is either installed or discarded.
#[derive(Debug)]
pub struct StageMachine {
    pub(super) budget: Bytes,
    incarnation: Option<Incarnation>,
    slots: BTreeMap<DeploymentId, Slot>,
    /// What is read ahead for the deployments' next stages.
    pub(super) preparing: BTreeMap<DeploymentId, Preparing>,
    /// What is being read ahead and not wanted any more, until its thread has ended.
    pub(super) cancelled: BTreeMap<LoadId, Bytes>,
    last_id: u64,
}

impl StageMachine {
    /// A machine without stages, for a worker that may use `budget`.
    pub fn new(budget: Bytes) -> StageMachine {
        StageMachine {
            budget,
            incarnation: None,
            slots: BTreeMap::new(),
            preparing: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            last_id: 0,
        }
    }

    /// The coordinator's start that last welcomed this worker.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.incarnation
    }

    /// Whether nothing is held, loading or on its way out.
    pub fn is_empty(&self) -> bool {
        self.slots.values().all(|slot| matches!(slot.phase, Phase::Failed { .. }))
            && self.preparing.is_empty()
            && self.cancelled.is_empty()
    }

    /// Whether weights are being read or looked for.
    pub fn is_loading(&self) -> bool {
        let loads = |phase: &Phase| {
            matches!(phase, Phase::Finding { .. } | Phase::Waiting { .. } | Phase::Reading { .. })
        };
        self.slots.values().any(|slot| loads(&slot.phase))
            || self.preparing.values().any(Preparing::is_loading)
    }

    /// What all stages take of the budget, including those being read and those not yet let go of, and what is read ahead.
    pub fn held(&self) -> Bytes {
        let stages: Bytes = self.slots.values().map(|slot| slot.phase.memory().total()).sum();
        let ahead = self.preparing.iter();
        let ahead: Bytes =
            ahead.map(|(deployment, preparing)| preparing.bytes(self.has_stage(*deployment))).sum();
        stages + ahead + self.cancelled.values().copied().sum()
    }

    /// What of that is on its way out.
    fn leaving(&self) -> Bytes {
        let ending = self.slots.values().filter(|slot| matches!(slot.phase, Phase::Ending { .. }));
        let ending: Bytes = ending.map(|slot| slot.phase.memory().total()).sum();
        ending + self.cancelled.values().copied().sum()
    }

    /// Whether a deployment has a stage in the engine, whose weights count there.
    pub(super) fn has_stage(&self, deployment: DeploymentId) -> bool {
        self.slots.get(&deployment).is_some_and(|slot| slot.phase.memory().total() > Bytes::ZERO)
    }

    /// The order that a deployment's stage was last loaded by.
    pub fn order(&self, deployment: DeploymentId) -> Option<&LoadStage> {
        self.slots.get(&deployment).map(|slot| &slot.order)
    }

    /// What to do about `event`, in order.
    pub fn handle(&mut self, event: StageEvent, now: Instant) -> Vec<StageCommand> {
        let mut out = Vec::new();
        match event {
            StageEvent::Welcomed(incarnation) => self.welcomed(incarnation, now, &mut out),
            StageEvent::Load(order) => self.load(order, &mut out),
            StageEvent::Prepare(order) => self.prepare(order, &mut out),
            StageEvent::Unprepare { deployment } => self.unprepare(deployment, &mut out),
            StageEvent::FoundMissing { load, weights, missing } => {
                self.found_missing(load, weights, missing, now, &mut out);
            }
            StageEvent::Prepared { load } => self.prepared(load, &mut out),
            StageEvent::Connect(order) => self.connect(order, &mut out),
            StageEvent::Activate { deployment, fence } => self.activate(deployment, fence, &mut out),
            StageEvent::Retire { deployment } => self.retire(deployment, &mut out),
            StageEvent::Found { load, memory } => self.found(load, memory, now, &mut out),
            StageEvent::Progress { load, progress } => self.progress(load, progress, now, &mut out),
            StageEvent::LoadEnded { load, result } => self.load_ended(load, result, &mut out),
            StageEvent::LinksOpened { attempt, next_address, rtt_us } => {
                self.links_opened(attempt, next_address, rtt_us, &mut out);
            }
            StageEvent::LinksFailed { attempt, reason } => self.links_failed(attempt, reason, &mut out),
            StageEvent::Dropped { deployment } => {
                let ending = self.slots.get(&deployment).is_some_and(
                    |slot| matches!(&slot.phase, Phase::Ending { wait, .. } if *wait == Wait::Engine),
                );
                if ending {
                    self.ended(deployment, &mut out);
                }
            }
            StageEvent::Panicked { deployment, reason } => self.panicked(deployment, reason, &mut out),
            StageEvent::Beat => {
                let late = |slot: &Slot| slot.kept.is_some_and(|since| now >= since + KEPT_FOR);
                for deployment in self.that(late) {
                    self.end(deployment, None, None, &mut out);
                }
            }
            StageEvent::RetireAll => {
                self.unprepare_all(&mut out);
                for deployment in self.that(|_| true) {
                    self.end(deployment, None, None, &mut out);
                }
            }
        }
        for deployment in self.that(|slot| matches!(slot.phase, Phase::Waiting { .. })) {
            self.admit(deployment, now, &mut out);
        }
        out
    }

    /// A coordinator that has started anew knows of no stage: their weights are kept for its first plan, which will likely
    /// be the last one again.
    fn welcomed(&mut self, incarnation: Incarnation, now: Instant, out: &mut Vec<StageCommand>) {
        if self.incarnation.replace(incarnation) == Some(incarnation) {
            out.extend(self.slots.values().filter(|slot| slot.kept.is_none()).filter_map(report_of));
            out.extend(self.preparing.values().map(Preparing::report));
            return;
        }
        self.unprepare_all(out);
        for deployment in self.that(|_| true) {
            let Some(slot) = self.slots.get_mut(&deployment) else { continue };
            match slot.phase.resident() {
                Some(memory) => {
                    out.push(StageCommand::Unbind { deployment });
                    slot.phase = Phase::Loaded { memory };
                    slot.kept = Some(now);
                }
                None => self.end(deployment, None, None, out),
            }
        }
    }

    fn unprepare_all(&mut self, out: &mut Vec<StageCommand>) {
        let ahead: Vec<DeploymentId> = self.preparing.keys().copied().collect();
        for deployment in ahead {
            self.unprepare(deployment, out);
        }
    }

    /// The deployments of some stages.
    fn that(&self, matches: impl Fn(&Slot) -> bool) -> Vec<DeploymentId> {
        self.slots.iter().filter(|(_, slot)| matches(slot)).map(|(deployment, _)| *deployment).collect()
    }

    fn load(&mut self, order: LoadStage, out: &mut Vec<StageCommand>) {
        let deployment = order.deployment;
        self.unprepare_others(&order, out);
        let own = self.slots.get(&deployment);
        if own.is_none_or(|slot| slot.kept.is_some() && !same_weights(&order, &slot.order)) {
            // The new plan is another one: what is kept for the last one makes room first.
            let mut kept = self.that(|slot| slot.kept.is_some());
            kept.sort_by_key(|of| *of == deployment);
            if let Some(last) = kept.pop() {
                for other in kept {
                    self.end(other, None, None, out);
                }
                self.end(last, None, Some(order), out);
                return;
            }
        }
        let Some(slot) = self.slots.get_mut(&deployment) else {
            if self.slots.len() >= MAX_STAGES {
                let reason = format!("this worker holds {MAX_STAGES} stages already, and takes no more");
                out.push(failed(deployment, order.epoch, reason));
                return;
            }
            self.start(order, out);
            return;
        };
        if let Phase::Ending { then, .. } = &mut slot.phase {
            match then {
                Some(waiting) if order.epoch < waiting.epoch => {
                    let current = waiting.epoch;
                    out.push(older(deployment, order.epoch, current));
                }
                _ => *then = Some(Box::new(order)),
            }
            return;
        }
        let kept = slot.kept.take().is_some();
        if !kept && order.epoch < slot.order.epoch {
            let current = slot.order.epoch;
            out.push(older(deployment, order.epoch, current));
            return;
        }
        if let Phase::Failed { .. } = slot.phase {
            self.start(order, out);
            return;
        }
        let same_weights = same_weights(&order, &slot.order);
        if !kept && order.epoch == slot.order.epoch {
            if same_weights {
                out.extend(report_of(slot));
            } else {
                let reason = format!(
                    "epoch {} was loaded with another shard: give the new plan a new epoch",
                    order.epoch
                );
                out.push(failed(deployment, order.epoch, reason));
            }
            return;
        }
        if !same_weights {
            self.end(deployment, None, Some(order), out);
            return;
        }
        let stage = order.stage;
        slot.order = order;
        let Some(memory) = slot.phase.resident() else {
            out.extend(report_of(slot));
            return;
        };
        out.push(StageCommand::Unbind { deployment });
        out.push(StageCommand::Clear { deployment, stage });
        slot.phase = Phase::Loaded { memory };
        out.extend(report_of(slot));
        // It has all of its weights.
        self.unprepare(deployment, out);
    }

    fn start(&mut self, order: LoadStage, out: &mut Vec<StageCommand>) {
        let load = LoadId(self.next_id());
        out.push(StageCommand::Find { load, order: order.clone() });
        let slot = Slot { order, phase: Phase::Finding { load }, kept: None };
        out.extend(report_of(&slot));
        self.slots.insert(slot.order.deployment, slot);
    }

    fn found(&mut self, load: LoadId, memory: StageMemory, now: Instant, out: &mut Vec<StageCommand>) {
        let Some((deployment, slot)) =
            self.slots.iter_mut().find(|(_, slot)| slot.phase.load() == Some(load))
        else {
            out.push(StageCommand::Discard { load });
            return;
        };
        let deployment = *deployment;
        if let Phase::Ending { .. } = slot.phase {
            out.push(StageCommand::Discard { load });
            self.ended(deployment, out);
            return;
        }
        slot.phase = Phase::Waiting { load, memory };
        self.admit(deployment, now, out);
    }

    /// Begins to read a stage that was found, if there is room. Where there will be once what is on its way out has gone,
    /// it waits for that.
    fn admit(&mut self, deployment: DeploymentId, now: Instant, out: &mut Vec<StageCommand>) {
        let stages = self.slots.values().filter(|slot| slot.phase.memory().total() > Bytes::ZERO).count();
        // What was read ahead becomes a part of it.
        let ahead = self.preparing.get(&deployment).map_or(Bytes::ZERO, |ahead| ahead.bytes(false));
        let held = self.held().saturating_sub(ahead);
        let (budget, leaving) = (self.budget, self.leaving());
        let Some(slot) = self.slots.get_mut(&deployment) else { return };
        let Phase::Waiting { load, memory } = slot.phase else { return };
        let free = budget.saturating_sub(held);
        if memory.total() > free {
            let kept = held.saturating_sub(leaving);
            if memory.total() <= budget.saturating_sub(kept) {
                return;
            }
            out.push(StageCommand::Discard { load });
            slot.phase = Phase::Failed { reason: too_little(&memory, budget, held, stages) };
            out.extend(report_of(slot));
            self.unprepare(deployment, out);
            return;
        }
        if let Some(ahead) = self.preparing.get_mut(&deployment) {
            ahead.take();
        }
        out.push(StageCommand::Read { load, budget: free });
        let progress = Progress { total: memory.weights, ..Progress::default() };
        slot.phase = Phase::Reading { load, memory, progress, reported: now };
        out.extend(report_of(slot));
    }

    fn progress(&mut self, load: LoadId, read: Progress, now: Instant, out: &mut Vec<StageCommand>) {
        if self.preparing_progress(load, &read, now, out) {
            return;
        }
        let Some(slot) = self.slots.values_mut().find(|slot| slot.phase.load() == Some(load)) else {
            return;
        };
        let Phase::Reading { progress, reported, .. } = &mut slot.phase else {
            return;
        };
        if *progress != read && now.saturating_duration_since(*reported) >= PROGRESS_INTERVAL {
            (*progress, *reported) = (read, now);
            out.extend(report_of(slot));
        }
    }

    fn load_ended(&mut self, load: LoadId, result: Result<StageMemory, String>, out: &mut Vec<StageCommand>) {
        if let Err(reason) = &result
            && self.preparing_ended(load, reason, out)
        {
            return;
        }
        let Some((deployment, slot)) =
            self.slots.iter_mut().find(|(_, slot)| slot.phase.load() == Some(load))
        else {
            out.push(StageCommand::Discard { load });
            return;
        };
        let deployment = *deployment;
        match (&slot.phase, result) {
            (Phase::Ending { .. }, _) => {
                out.push(StageCommand::Discard { load });
                return self.ended(deployment, out);
            }
            (Phase::Reading { .. }, Ok(memory)) => {
                out.push(StageCommand::Install { load, deployment, stage: slot.order.stage });
                slot.phase = Phase::Loaded { memory };
                out.extend(report_of(slot));
            }
            (_, result) => {
                out.push(StageCommand::Discard { load });
                let reason = result.err().unwrap_or_else(|| "the load ended before it was begun".to_owned());
                slot.phase = Phase::Failed { reason };
                out.extend(report_of(slot));
            }
        }
        // The stage itself keeps them resident now, or they are not wanted.
        self.unprepare(deployment, out);
    }

    fn connect(&mut self, order: ConnectStage, out: &mut Vec<StageCommand>) {
        let (deployment, epoch) = (order.deployment, order.epoch);
        let attempt = ConnectId(self.next_id());
        let Some(slot) = self.current(deployment, epoch, "connect", out) else {
            return;
        };
        match slot.phase {
            Phase::Loaded { memory } => {
                slot.phase = Phase::Connecting { memory, attempt };
                out.push(StageCommand::Open { attempt, order });
            }
            Phase::Connecting { .. } => {}
            Phase::Connected { .. } | Phase::Active { .. } | Phase::Failed { .. } => {
                out.extend(report_of(slot))
            }
            Phase::Finding { .. } | Phase::Waiting { .. } | Phase::Reading { .. } | Phase::Ending { .. } => {
                out.push(out_of_order(deployment, epoch, "connect", &slot.phase));
            }
        }
    }

    fn links_opened(
        &mut self,
        attempt: ConnectId,
        next_address: SocketAddr,
        rtt_us: u32,
        out: &mut Vec<StageCommand>,
    ) {
        if let Some((slot, memory)) = self.connecting(attempt) {
            slot.phase = Phase::Connected { memory, next_address, rtt_us };
            out.extend(report_of(slot));
        }
    }

    /// The weights stay, so that another plan can use them; the coordinator hears of the failure once.
    fn links_failed(&mut self, attempt: ConnectId, reason: String, out: &mut Vec<StageCommand>) {
        if let Some((slot, memory)) = self.connecting(attempt) {
            slot.phase = Phase::Loaded { memory };
            let (deployment, epoch) = (slot.order.deployment, slot.order.epoch);
            out.push(StageCommand::Unbind { deployment });
            out.push(failed(deployment, epoch, reason));
        }
    }

    fn connecting(&mut self, wanted: ConnectId) -> Option<(&mut Slot, StageMemory)> {
        self.slots.values_mut().find_map(|slot| match slot.phase {
            Phase::Connecting { memory, attempt } if attempt == wanted => Some((slot, memory)),
            _ => None,
        })
    }

    fn activate(&mut self, deployment: DeploymentId, fence: Fence, out: &mut Vec<StageCommand>) {
        let incarnation = self.incarnation;
        let Some(slot) = self.current(deployment, fence.epoch, "activate", out) else {
            return;
        };
        match slot.phase {
            Phase::Connected { memory, .. } if incarnation == Some(fence.incarnation) => {
                slot.phase = Phase::Active { memory, fence };
                out.push(StageCommand::Activate { deployment, fence });
                out.extend(report_of(slot));
            }
            Phase::Active { fence: active, .. } if active == fence => out.extend(report_of(slot)),
            Phase::Connected { .. } | Phase::Active { .. } => {
                let reason = format!("fence {fence} is not of the incarnation that welcomed this worker");
                out.push(failed(deployment, fence.epoch, reason));
            }
            Phase::Failed { .. } => out.extend(report_of(slot)),
            _ => out.push(out_of_order(deployment, fence.epoch, "activate", &slot.phase)),
        }
    }

    fn retire(&mut self, deployment: DeploymentId, out: &mut Vec<StageCommand>) {
        self.unprepare(deployment, out);
        match self.slots.get(&deployment) {
            Some(slot) => {
                let epoch = slot.order.epoch;
                self.end(deployment, Some(epoch), None, out);
            }
            None => {
                // It may still wait for what another one takes.
                for slot in self.slots.values_mut() {
                    if let Phase::Ending { then, .. } = &mut slot.phase {
                        then.take_if(|order| order.deployment == deployment);
                    }
                }
                out.push(report(deployment, Epoch::default(), StageState::Retired));
            }
        }
    }

    fn panicked(&mut self, deployment: DeploymentId, reason: String, out: &mut Vec<StageCommand>) {
        let Some(slot) = self.slots.get_mut(&deployment) else {
            return;
        };
        if slot.phase.resident().is_some() {
            out.push(StageCommand::Unbind { deployment });
            slot.phase = Phase::Failed { reason };
            out.extend(report_of(slot));
        }
    }

    /// Begins to end a stage: `report` is the epoch that its end is told of, `then` what to load afterwards.
    fn end(
        &mut self,
        deployment: DeploymentId,
        report: Option<Epoch>,
        then: Option<LoadStage>,
        out: &mut Vec<StageCommand>,
    ) {
        let Some(slot) = self.slots.get_mut(&deployment) else {
            return;
        };
        let memory = slot.phase.memory();
        let wait = match &mut slot.phase {
            Phase::Finding { load } | Phase::Reading { load, .. } => {
                out.push(StageCommand::Cancel { load: *load });
                Wait::Load(*load)
            }
            Phase::Loaded { .. }
            | Phase::Connecting { .. }
            | Phase::Connected { .. }
            | Phase::Active { .. } => {
                out.push(StageCommand::Unbind { deployment });
                out.push(StageCommand::Drop { deployment });
                Wait::Engine
            }
            Phase::Waiting { .. } | Phase::Failed { .. } => {
                if let Phase::Waiting { load, .. } = slot.phase {
                    out.push(StageCommand::Discard { load });
                }
                let then = then.map(Box::new);
                slot.phase = Phase::Ending { memory, wait: Wait::Engine, report, then };
                self.ended(deployment, out);
                return;
            }
            Phase::Ending { report: told, then: next, .. } => {
                let retired = next.take().map(|order| order.epoch);
                *told = report.map(|epoch| retired.unwrap_or(epoch).max(told.unwrap_or_default()));
                *next = then.map(Box::new);
                return;
            }
        };
        slot.phase = Phase::Ending { memory, wait, report, then: then.map(Box::new) };
    }

    /// A stage's memory is free.
    fn ended(&mut self, deployment: DeploymentId, out: &mut Vec<StageCommand>) {
        let Some(Slot { phase: Phase::Ending { report: told, then, .. }, .. }) =
            self.slots.remove(&deployment)
        else {
            return;
        };
        if let Some(epoch) = told {
            out.push(report(deployment, epoch, StageState::Retired));
        }
        // It may be of another deployment, which has been loaded meanwhile.
        if let Some(order) = then.filter(|order| !self.slots.contains_key(&order.deployment)) {
            self.start(*order, out);
        }
    }

    /// The stage that a command is for, or a report of why it is refused.
    fn current(
        &mut self,
        deployment: DeploymentId,
        epoch: Epoch,
        wanted: &str,
        out: &mut Vec<StageCommand>,
    ) -> Option<&mut Slot> {
        let Some(slot) = self.slots.get_mut(&deployment).filter(|slot| slot.kept.is_none()) else {
            let reason = format!("cannot {wanted} deployment {deployment}: no stage of it was loaded here");
            out.push(failed(deployment, epoch, reason));
            return None;
        };
        if slot.order.epoch != epoch {
            let reason = format!(
                "cannot {wanted} epoch {epoch} of deployment {deployment}: the stage here is of epoch {}",
                slot.order.epoch
            );
            out.push(failed(deployment, epoch, reason));
            return None;
        }
        Some(slot)
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// Whether a stage that was loaded by one order is what another one wants.
fn same_weights(one: &LoadStage, other: &LoadStage) -> bool {
    one.fingerprint == other.fingerprint
        && one.edition == other.edition
        && one.shard == other.shard
        && one.streamed_layers == other.streamed_layers
        && one.room == other.room
}

//! Weights read ahead of their stage, while another stage of the deployment computes.

use std::time::Instant;

use brigade_proto::control::{LoadStage, StageState};
use brigade_proto::ids::DeploymentId;
use brigade_shard::units::Bytes;

use super::machine::{MAX_STAGES, PROGRESS_INTERVAL, StageMachine};
use super::messages::{LoadId, Progress, StageCommand};
use super::phase::report;

/// Weights that a deployment's next stage will have.
#[derive(Debug)]
pub(super) struct Preparing {
    order: LoadStage,
    load: LoadId,
    phase: Phase,
    /// Whether the stage that they were read for counts them by now.
    taken: bool,
}

#[derive(Debug)]
enum Phase {
    Finding,
    Reading { weights: Bytes, missing: Bytes, progress: Progress, reported: Instant },
    Prepared { weights: Bytes, missing: Bytes },
}

impl Preparing {
    /// What they take of the budget, beside a stage that holds the rest or alone.
    pub(super) fn bytes(&self, beside: bool) -> Bytes {
        match self.phase {
            Phase::Finding => Bytes::ZERO,
            _ if self.taken => Bytes::ZERO,
            Phase::Reading { weights, missing, .. } | Phase::Prepared { weights, missing } => {
                if beside {
                    missing
                } else {
                    weights
                }
            }
        }
    }

    pub(super) fn is_loading(&self) -> bool {
        !matches!(self.phase, Phase::Prepared { .. })
    }

    pub(super) fn report(&self) -> StageCommand {
        let state = match &self.phase {
            Phase::Finding => Progress::default().state(),
            Phase::Reading { progress, .. } => progress.state(),
            Phase::Prepared { .. } => StageState::Prepared,
        };
        report(self.order.deployment, self.order.epoch, state)
    }

    /// It is part of the stage that is being loaded now.
    pub(super) fn take(&mut self) {
        self.taken = true;
    }

    fn failed(&self, reason: String) -> StageCommand {
        report(self.order.deployment, self.order.epoch, StageState::Failed { reason })
    }
}

impl StageMachine {
    /// Begins to read weights ahead; what was read ahead for another plan goes.
    pub(super) fn prepare(&mut self, order: LoadStage, out: &mut Vec<StageCommand>) {
        let deployment = order.deployment;
        if let Some(preparing) = self.preparing.get(&deployment)
            && preparing.order == order
        {
            out.push(preparing.report());
            return;
        }
        self.unprepare(deployment, out);
        if self.preparing.len() >= MAX_STAGES {
            let reason = format!("this worker reads ahead for {MAX_STAGES} stages already");
            out.push(report(deployment, order.epoch, StageState::Failed { reason }));
            return;
        }
        let load = LoadId(self.next_id());
        out.push(StageCommand::FindMissing { load, order: order.clone() });
        let preparing = Preparing { order, load, phase: Phase::Finding, taken: false };
        out.push(preparing.report());
        self.preparing.insert(deployment, preparing);
    }

    /// Lets go of what was read ahead.
    pub(super) fn unprepare(&mut self, deployment: DeploymentId, out: &mut Vec<StageCommand>) {
        let Some(preparing) = self.preparing.remove(&deployment) else {
            return;
        };
        let Preparing { load, phase, .. } = &preparing;
        if let Phase::Prepared { .. } = phase {
            out.push(StageCommand::Discard { load: *load });
            return;
        }
        out.push(StageCommand::Cancel { load: *load });
        // What it has read is not free before its thread has ended.
        self.cancelled.insert(*load, preparing.bytes(self.has_stage(deployment)));
    }

    /// Lets go of what was read ahead for another shard than that of `order`.
    pub(super) fn unprepare_others(&mut self, order: &LoadStage, out: &mut Vec<StageCommand>) {
        let is_for = |preparing: &Preparing| {
            let Preparing { order: ahead, phase, .. } = preparing;
            let same = ahead.fingerprint == order.fingerprint
                && ahead.edition == order.edition
                && ahead.shard == order.shard
                && ahead.streamed_layers == order.streamed_layers;
            same && matches!(phase, Phase::Prepared { .. })
        };
        if self.preparing.get(&order.deployment).is_some_and(|preparing| !is_for(preparing)) {
            self.unprepare(order.deployment, out);
        }
    }

    pub(super) fn found_missing(
        &mut self,
        load: LoadId,
        weights: Bytes,
        missing: Bytes,
        now: Instant,
        out: &mut Vec<StageCommand>,
    ) {
        let held = self.held();
        let budget = self.budget;
        let Some(preparing) = self.preparing.values_mut().find(|preparing| preparing.load == load) else {
            self.cancelled.remove(&load);
            out.push(StageCommand::Discard { load });
            return;
        };
        let free = budget.saturating_sub(held);
        if missing > free {
            let reason = format!(
                "the weights that the next plan adds here take {:.1} MiB, and beside the stage that computes only {:.1} \
                 MiB of this worker's budget of {:.1} MiB are left",
                missing.as_mib(),
                free.as_mib(),
                budget.as_mib()
            );
            out.push(StageCommand::Discard { load });
            let Preparing { order: LoadStage { deployment, epoch, .. }, .. } = preparing;
            let (deployment, epoch) = (*deployment, *epoch);
            out.push(report(deployment, epoch, StageState::Crowded { reason }));
            self.preparing.remove(&deployment);
            return;
        }
        let progress = Progress { total: missing, ..Progress::default() };
        preparing.phase = Phase::Reading { weights, missing, progress, reported: now };
        out.push(StageCommand::ReadMissing { load });
        out.push(preparing.report());
    }

    /// Takes in how far reading ahead has come; whether it was that.
    pub(super) fn preparing_progress(
        &mut self,
        load: LoadId,
        read: &Progress,
        now: Instant,
        out: &mut Vec<StageCommand>,
    ) -> bool {
        let Some(preparing) = self.preparing.values_mut().find(|preparing| preparing.load == load) else {
            return false;
        };
        if let Phase::Reading { progress, reported, .. } = &mut preparing.phase
            && progress != read
            && now.saturating_duration_since(*reported) >= PROGRESS_INTERVAL
        {
            (*progress, *reported) = (read.clone(), now);
            out.push(preparing.report());
        }
        true
    }

    /// Weights are resident.
    pub(super) fn prepared(&mut self, load: LoadId, out: &mut Vec<StageCommand>) {
        let Some(preparing) = self.preparing.values_mut().find(|preparing| preparing.load == load) else {
            self.cancelled.remove(&load);
            out.push(StageCommand::Discard { load });
            return;
        };
        if let Phase::Reading { weights, missing, .. } = preparing.phase {
            preparing.phase = Phase::Prepared { weights, missing };
        }
        out.push(preparing.report());
    }

    /// Reading ahead has ended without weights; whether it was that.
    pub(super) fn preparing_ended(&mut self, load: LoadId, why: &str, out: &mut Vec<StageCommand>) -> bool {
        if self.cancelled.remove(&load).is_some() {
            out.push(StageCommand::Discard { load });
            return true;
        }
        let deployment =
            self.preparing.iter().find(|(_, p)| p.load == load).map(|(deployment, _)| *deployment);
        let Some(preparing) = deployment.and_then(|deployment| self.preparing.remove(&deployment)) else {
            return false;
        };
        out.push(StageCommand::Discard { load });
        out.push(preparing.failed(why.to_owned()));
        true
    }
}

//! The draft model's deployment, beside the one that is served.
//!
//! It takes what the served plan leaves, so it is paused whenever that plan goes, and planned anew once there is another.
//! Whatever becomes of it, requests are served.

use std::collections::BTreeMap;
use std::time::Instant;

use brigade_proto::ids::{DeploymentId, WorkerId};

use super::Core;
use crate::deployment::{self, Deployment};
use crate::membership;
use crate::scheduler::DraftPipeline;

/// A draft model.
pub(in crate::cluster) struct Draft {
    pub(in crate::cluster) deployment: Deployment,
    /// The name that it is called by.
    pub(in crate::cluster) id: String,
    /// Token ids that both models know are below this.
    pub(in crate::cluster) vocabulary: u32,
    /// The worker that its stage is planned for.
    pub(super) worker: Option<WorkerId>,
}

impl Draft {
    pub(in crate::cluster) fn new(deployment: Deployment, id: String, vocabulary: u32) -> Draft {
        Draft { deployment, id, vocabulary, worker: None }
    }
}

impl Core {
    /// Whether this is the draft model's deployment.
    pub(super) fn is_draft(&self, deployment: DeploymentId) -> bool {
        self.draft.as_ref().is_some_and(|draft| draft.deployment.id() == deployment)
    }

    /// Tells the deployment that something is about.
    pub(super) fn tell_deployment(&mut self, id: DeploymentId, event: deployment::Event, now: Instant) {
        match &mut self.draft {
            Some(draft) if draft.deployment.id() == id => {
                draft.deployment.handle(event, &self.membership, now);
            }
            _ => self.deployment.handle(event, &self.membership, now),
        }
    }

    /// Tells every deployment.
    pub(super) fn tell_deployments(&mut self, event: deployment::Event, now: Instant) {
        if let Some(draft) = &mut self.draft {
            draft.deployment.handle(event.clone(), &self.membership, now);
        }
        self.deployment.handle(event, &self.membership, now);
    }

    /// Lets the draft model have what the plan that is served leaves.
    pub(super) fn resume_draft(&mut self, now: Instant) {
        let Some(draft) = &mut self.draft else { return };
        let stages = self.deployment.stages().iter();
        let taken: BTreeMap<WorkerId, _> =
            stages.map(|stage| (stage.worker.clone(), stage.memory.total())).collect();
        draft.deployment.resume(taken, &self.membership, now);
    }

    /// Gives the draft model's memory back to the plan to come.
    pub(super) fn pause_draft(&mut self) {
        if let Some(draft) = &mut self.draft {
            draft.deployment.pause("waiting until the model is served", &self.membership);
        }
    }

    pub(super) fn carry_out_draft(&mut self, command: deployment::Command, now: Instant) {
        self.changed = true;
        let Some(draft) = &mut self.draft else { return };
        match command {
            deployment::Command::PersistEpoch(epoch) => {
                draft.worker = draft.deployment.stages().first().map(|stage| stage.worker.clone());
                let id = draft.deployment.id();
                // A worker keeps one link to the coordinator, which may stand already.
                if let Some(worker) = draft.worker.clone().filter(|worker| self.links.stands(worker)) {
                    self.tell_deployment(id, deployment::Event::LinkUp { worker }, now);
                }
                self.write_epoch(id, epoch);
            }
            deployment::Command::Send { worker, message } => self.send_to(&worker, message),
            deployment::Command::CloseLinks => {
                let worker = draft.worker.take();
                let stages = self.deployment.stages();
                let shared = |worker: &WorkerId| stages.iter().any(|stage| stage.worker == *worker);
                if let Some(worker) = worker.filter(|worker| !shared(worker)) {
                    self.links.close_of(&worker);
                }
            }
            deployment::Command::Start(pipeline) => {
                let worker = draft.worker.as_ref();
                let shares_worker =
                    self.deployment.stages().iter().any(|stage| Some(&stage.worker) == worker);
                tracing::info!(fence = %pipeline.fence, model = draft.id, "the draft model is there");
                let vocabulary = draft.vocabulary;
                self.scheduler.start_drafts(DraftPipeline { pipeline, vocabulary, shares_worker });
            }
            deployment::Command::Suspend { .. }
            | deployment::Command::Move { .. }
            | deployment::Command::Stop { .. } => self.scheduler.stop_drafts(),
            deployment::Command::Say { text } => tracing::warn!(model = draft.id, "{text}"),
            deployment::Command::Doubt(worker) => {
                self.membership.handle(membership::Event::Doubted { worker }, now);
            }
            // Requests are served without drafts meanwhile.
            deployment::Command::LookOut(_) => {}
            deployment::Command::Failed { reason } => {
                tracing::warn!(model = draft.id, "answers go on without the draft model: {reason}");
            }
        }
    }
}

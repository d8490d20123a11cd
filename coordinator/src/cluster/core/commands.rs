//! Carrying out what the machines want.

use std::time::Instant;

use brigade_proto::control::ToWorker;
use brigade_proto::ids::{DeploymentId, Epoch, Peer, WorkerId};
use brigade_proto::step::{Frame, StepFrame};

use super::{Core, CoreEvent};
use crate::deployment;
use crate::membership::{self, PROBE_PATIENCE, SessionId};
use crate::scheduler;

impl Core {
    /// Carries out what the machines want, until none wants anything.
    pub(super) fn carry_out(&mut self, now: Instant) {
        loop {
            if let Some(command) = self.membership.poll_command() {
                self.carry_out_membership(command, now);
            } else if let Some(command) = self.deployment.poll_command() {
                self.carry_out_deployment(command, now);
            } else if let Some(command) =
                self.draft.as_mut().and_then(|draft| draft.deployment.poll_command())
            {
                self.carry_out_draft(command, now);
            } else if let Some(command) = self.scheduler.poll_command(now) {
                self.carry_out_scheduler(command, now);
            } else if self.scheduler.is_idle() != self.idle {
                self.idle = !self.idle;
                let event = deployment::Event::Asked { idle: self.idle };
                self.deployment.handle(event, &self.membership, now);
            } else {
                return;
            }
        }
    }

    fn carry_out_membership(&mut self, command: membership::Command, now: Instant) {
        match command {
            membership::Command::Probe { worker, nonce } => self.probe(worker, nonce),
            membership::Command::Close(session) => {
                if let Some(session) = self.sessions.remove(&session) {
                    session.end.cancel();
                }
            }
            membership::Command::Changed => {
                self.tell_deployments(deployment::Event::MembersChanged, now);
            }
        }
        self.changed = true;
    }

    /// Finds out whether a worker's data plane answers.
    fn probe(&mut self, worker: WorkerId, nonce: u64) {
        let Some(member) = self.membership.member(&worker) else {
            return;
        };
        let (home, addresses) = (member.home(), member.data_addresses());
        let (transport, events) = (self.transport.clone(), self.events_sender.clone());
        self.tasks.spawn(async move {
            let peer = Peer::Worker(worker.clone());
            let probed = tokio::select! {
                probed = transport.probe(&peer, home, &addresses, PROBE_PATIENCE) => probed,
                // The core has ended.
                () = events.closed() => return,
            };
            let _ = events.send(CoreEvent::Probed { worker, nonce, probed }).await;
        });
    }

    fn carry_out_deployment(&mut self, command: deployment::Command, now: Instant) {
        self.changed = true;
        match command {
            deployment::Command::PersistEpoch(epoch) => self.write_epoch(self.deployment.id(), epoch),
            deployment::Command::Send { worker, message } => {
                if matches!(message, ToWorker::Load(_)) {
                    self.recoveries.loading(now);
                }
                self.send_to(&worker, message);
            }
            deployment::Command::Doubt(worker) => {
                self.membership.handle(membership::Event::Doubted { worker }, now);
            }
            deployment::Command::CloseLinks => self.links.close(),
            deployment::Command::Start(pipeline) => {
                let stages = self.deployment.stages();
                tracing::info!(fence = %pipeline.fence, stages = stages.len(), "serving");
                self.first = stages.first().map(|stage| stage.worker.clone());
                self.statistics.restart(&pipeline.stages);
                self.clients.serve_on(stages.iter().map(|stage| stage.name.clone()).collect());
                self.steps_before = stages
                    .iter()
                    .filter_map(|stage| self.membership.member(&stage.worker))
                    .map(|member| (member.id.clone(), member.telemetry.steps))
                    .collect();
                self.recoveries.serving(now);
                self.scheduler.start(pipeline, now);
                self.resume_draft(now);
            }
            deployment::Command::Suspend { reason } => {
                if self.first.take().is_some() {
                    self.recoveries.lost(self.scheduler.silent_since().unwrap_or(now), now);
                } else {
                    self.recoveries.failed_again();
                }
                self.scheduler.suspend(&reason);
                self.pause_draft();
            }
            deployment::Command::Move { reason } => {
                tracing::info!("another plan takes over: {reason}");
                self.first = None;
                self.recoveries.moving(now);
                self.scheduler.move_on(&reason);
                self.pause_draft();
                // Its memory is given back before stages are loaded.
                while let Some(command) =
                    self.draft.as_mut().and_then(|draft| draft.deployment.poll_command())
                {
                    self.carry_out_draft(command, now);
                }
            }
            deployment::Command::Say { text } => tracing::warn!("{text}"),
            deployment::Command::LookOut(outlook) => self.scheduler.look_out(outlook, now),
            deployment::Command::Stop { reason } => {
                self.first = None;
                self.scheduler.stop(&reason, now);
                self.pause_draft();
            }
            deployment::Command::Failed { reason } => {
                self.metrics.plan_failures.inc();
                self.recoveries.failed(&reason);
                tracing::warn!("the plan failed: {reason}");
            }
        }
    }

    fn carry_out_scheduler(&mut self, command: scheduler::Command, now: Instant) {
        match command {
            scheduler::Command::Send(step) if self.is_draft(step.deployment) => self.send_draft(step, now),
            scheduler::Command::Send(step) => self.send_first(Frame::Step(step), now),
            scheduler::Command::Tell(drawn) => self.send_first(Frame::Drawn(drawn), now),
            scheduler::Command::Emit { sequence, event } => self.clients.emit(sequence, event, now),
            scheduler::Command::Admitted { sequence } => self.clients.admitted(sequence, now),
            scheduler::Command::Measured(step) => {
                self.statistics.add(&step, &self.metrics);
                self.clients.measured(&step, now);
                self.timeline.add(step, now);
            }
            scheduler::Command::CaughtUp => {
                self.recoveries.caught_up(now, &self.metrics);
                self.deployment.handle(deployment::Event::CaughtUp, &self.membership, now);
            }
            scheduler::Command::DraftsBroken { reason } => {
                if let Some(draft) = &mut self.draft {
                    draft.deployment.handle(deployment::Event::Broken { reason }, &self.membership, now);
                }
            }
            scheduler::Command::Broken { reason, silent } => {
                let reason = match self.silent_stage().filter(|_| silent) {
                    Some(stage) => format!("{stage} has not answered: {reason}"),
                    None => reason,
                };
                self.deployment.handle(deployment::Event::Broken { reason }, &self.membership, now);
            }
        }
    }

    fn send_first(&mut self, frame: Frame, now: Instant) {
        let Some(first) = self.first.clone() else { return };
        if let Err(reason) = self.links.send(&first, frame) {
            let event = deployment::Event::LinkDown { worker: first, reason };
            self.deployment.handle(event, &self.membership, now);
        }
    }

    fn send_draft(&mut self, step: StepFrame, now: Instant) {
        let Some(draft) = &mut self.draft else { return };
        let Some(worker) = draft.worker.clone() else { return };
        if let Err(reason) = self.links.send(&worker, Frame::Step(step)) {
            draft.deployment.handle(deployment::Event::LinkDown { worker, reason }, &self.membership, now);
        }
    }

    /// Sends a message to a worker, if it is attached.
    pub(super) fn send_to(&mut self, worker: &WorkerId, message: ToWorker) {
        if let Some(session) = self.membership.member(worker).and_then(|member| member.session()) {
            self.tell(session, message);
        }
    }

    /// Writes an epoch down; where another one is being written, after that. A deployment wants its newest one alone.
    pub(super) fn write_epoch(&mut self, deployment: DeploymentId, epoch: Epoch) {
        let Some(mut state) = self.state_dir.take() else {
            self.next_epochs.insert(deployment, epoch);
            return;
        };
        let events = self.events_sender.clone();
        self.tasks.spawn_blocking(move || {
            let result = state.persist_epoch(epoch);
            // An error means that the core has ended: the directory is given up with the event.
            let _ = events.blocking_send(CoreEvent::EpochWritten { deployment, epoch, state, result });
        });
    }

    /// Queues a message for a worker. A worker that does not take its messages is cut off, and attaches anew.
    pub(super) fn tell(&mut self, session: SessionId, message: ToWorker) {
        let Some(open) = self.sessions.get(&session) else {
            return;
        };
        if open.outbox.try_send(message).is_err()
            && let Some(open) = self.sessions.remove(&session)
        {
            open.end.cancel();
            let reason = "it does not take its messages".to_owned();
            self.membership.handle(membership::Event::Detached { session, reason }, Instant::now());
        }
    }

    /// The first stage that has computed fewer steps than those before it.
    fn silent_stage(&self) -> Option<String> {
        let mut before = u64::MAX;
        for (place, stage) in self.deployment.stages().iter().enumerate() {
            let steps = self.membership.member(&stage.worker)?.telemetry.steps;
            let computed = steps.saturating_sub(*self.steps_before.get(&stage.worker)?);
            if place > 0 && computed < before {
                return Some(format!("stage {place} on {}", stage.name));
            }
            before = computed;
        }
        self.deployment.stages().first().map(|stage| format!("stage 0 on {}", stage.name))
    }
}

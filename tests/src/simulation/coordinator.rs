//! The coordinator's real state machines, held together as the running cluster's core does it, with the world in place of
//! its sockets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use brigade_coordinator::deployment::{self, Deployment, DeploymentSettings, Moving};
use brigade_coordinator::generation::{GenerationError, GenerationEvent, GenerationRequest};
use brigade_coordinator::membership::{self, Membership, SessionId};
use brigade_coordinator::scheduler::{self, Scheduler, Speculation};
use brigade_coordinator::status::Phase;
use brigade_proto::control::{CacheDtype, Capabilities, ToCoordinator, ToWorker};
use brigade_proto::delivery::Edition;
use brigade_proto::ids::{DeploymentId, Epoch, Incarnation, SequenceId, WorkerId};
use brigade_proto::link::Probed;
use brigade_proto::step::{StepFrame, StepResult, WireDtype};

use super::model;
use super::world::LinkId;

const DEPLOYMENT: DeploymentId = DeploymentId(1);
/// The only start of the coordinator.
pub(super) const INCARNATION: Incarnation = Incarnation(1);
/// Requests that may wait.
const MAX_WAITING: usize = 64;

/// Something that the world has to do.
pub(super) enum Wanted {
    PersistEpoch(Epoch),
    Tell(SessionId, ToWorker),
    CloseSession(SessionId),
    CloseLinks(Vec<LinkId>),
    Probe(WorkerId, u64),
    Send(LinkId, StepFrame),
    Emit(SequenceId, GenerationEvent),
}

/// The coordinator.
pub(super) struct Coordinator {
    membership: Membership,
    deployment: Deployment,
    scheduler: Scheduler,
    links: BTreeMap<WorkerId, LinkId>,
    first: Option<WorkerId>,
    /// The newest epoch that serves, and how many have.
    serving: Option<Epoch>,
    pub(super) plans_served: u64,
    /// Those that took over by choice.
    pub(super) plans_moved: u64,
    /// Those that failed.
    pub(super) plans_failed: u64,
    /// Whether no request runs or waits, as the deployment knows it.
    idle: bool,
}

impl Coordinator {
    pub(super) fn new(workers: usize, speculation: Speculation, park: Duration, now: Instant) -> Coordinator {
        let settings = DeploymentSettings {
            id: DEPLOYMENT,
            incarnation: INCARNATION,
            last_epoch: Epoch(0),
            min_workers: workers,
            fingerprint: "0f".into(),
            edition: Edition(1),
            file_hint: "model.gguf".into(),
            parallel: 4,
            prefill_chunk: 16,
            cache_dtype: CacheDtype::F16,
            wire: WireDtype::F32,
            moving: Moving::Freely,
        };
        Coordinator {
            membership: Membership::new(),
            deployment: Deployment::new(
                settings,
                Box::new(|live, least, apart, _| model::plan(&live.devices, least, apart)),
            ),
            scheduler: Scheduler::new(MAX_WAITING, speculation, now).with_park(park),
            links: BTreeMap::new(),
            first: None,
            serving: None,
            plans_served: 0,
            plans_moved: 0,
            plans_failed: 0,
            idle: false,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.deployment.phase()
    }

    pub(super) fn reason(&self) -> Option<String> {
        self.deployment.reason()
    }

    /// The workers of the plan.
    pub(super) fn stages(&self) -> Vec<WorkerId> {
        self.deployment.stages().iter().map(|stage| stage.worker.clone()).collect()
    }

    pub(super) fn counts(&self) -> scheduler::Counts {
        self.scheduler.counts()
    }

    pub(super) fn steps_in_flight(&self) -> usize {
        self.scheduler.steps_in_flight()
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let machines =
            [self.membership.next_timeout(), self.deployment.next_timeout(), self.scheduler.next_timeout()];
        machines.into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.membership.handle_timeout(now);
        self.deployment.handle_timeout(&self.membership, now);
        self.scheduler.handle_timeout(now);
    }

    pub(super) fn submit(
        &mut self,
        id: SequenceId,
        request: GenerationRequest,
    ) -> Result<(), GenerationError> {
        self.scheduler.submit(id, request)
    }

    pub(super) fn cancel(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
    }

    pub(super) fn attached(
        &mut self,
        session: SessionId,
        worker: WorkerId,
        hello: Capabilities,
        now: Instant,
    ) {
        let remote = hello.data_addresses[0];
        let event = membership::Event::Attached { session, worker, remote, hello: Box::new(hello) };
        self.membership.handle(event, now);
    }

    pub(super) fn detached(&mut self, session: SessionId, now: Instant) {
        self.membership.handle(membership::Event::Detached { session, reason: "reset".into() }, now);
    }

    pub(super) fn probed(&mut self, worker: WorkerId, nonce: u64, probed: Probed, now: Instant) {
        self.membership.handle(membership::Event::Probed { worker, nonce, probed }, now);
    }

    pub(super) fn epoch_written(&mut self, epoch: Epoch, now: Instant) {
        let event = deployment::Event::EpochPersisted { epoch, result: Ok(()) };
        self.deployment.handle(event, &self.membership, now);
    }

    /// A worker is to be emptied, or used again; whether that was taken.
    pub(super) fn drain(&mut self, worker: &WorkerId, draining: bool, now: Instant) -> bool {
        let room = !draining || self.deployment.check_drain(worker, &self.membership, now).is_ok();
        if room {
            let event = membership::Event::Draining { worker: worker.clone(), draining };
            self.membership.handle(event, now);
        }
        room
    }

    /// Whether a worker has a stage of the plan.
    pub(super) fn is_used(&self, worker: &WorkerId) -> bool {
        self.deployment.uses(worker)
    }

    /// Takes in what a worker said.
    pub(super) fn heard(&mut self, session: SessionId, message: ToCoordinator, now: Instant) {
        let Some(worker) = self.membership.worker_of(session).cloned() else {
            return;
        };
        let telemetry = match &message {
            ToCoordinator::Heartbeat(telemetry) => Some(telemetry.clone()),
            _ => None,
        };
        self.membership.handle(membership::Event::Heard { session, telemetry }, now);
        let event = match message {
            ToCoordinator::Stage(report) => deployment::Event::Stage { worker, report },
            ToCoordinator::LinkLost { peer, reason, .. } => {
                deployment::Event::LinkLost { worker, peer, reason }
            }
            ToCoordinator::Probed { nonce } => deployment::Event::Probed { worker, nonce },
            ToCoordinator::LinkProbed { nonce, reached } => deployment::Event::LinkProbed { nonce, reached },
            ToCoordinator::Heartbeat(telemetry) => {
                let time = Duration::from_millis(telemetry.computing_ms.into());
                deployment::Event::Computing { worker, time }
            }
            ToCoordinator::StepFailed { deployment, step, stage, reason } => {
                return self.scheduler.handle_failure(deployment, step, stage, &reason, now);
            }
            ToCoordinator::Leaving => {
                return self.membership.handle(membership::Event::Leaving { session }, now);
            }
            ToCoordinator::Hello(_) => return,
        };
        self.deployment.handle(event, &self.membership, now);
    }

    /// A worker has dialled; whether the link is taken, with the one that it replaces.
    pub(super) fn link_accepted(
        &mut self,
        worker: &WorkerId,
        link: LinkId,
        now: Instant,
    ) -> (bool, Option<LinkId>) {
        let stages = self.deployment.stages();
        let ends = [stages.first(), stages.last()];
        if !ends.into_iter().flatten().any(|stage| stage.worker == *worker) {
            return (false, None);
        }
        let old = self.links.insert(worker.clone(), link);
        let event = deployment::Event::LinkUp { worker: worker.clone() };
        self.deployment.handle(event, &self.membership, now);
        (true, old)
    }

    pub(super) fn link_ended(&mut self, link: LinkId, now: Instant) {
        let worker = self.links.iter().find(|(_, known)| **known == link).map(|(worker, _)| worker.clone());
        if let Some(worker) = worker {
            self.links.remove(&worker);
            let event = deployment::Event::LinkDown { worker, reason: "it broke".into() };
            self.deployment.handle(event, &self.membership, now);
        }
    }

    /// A result came, on a link of this plan or not.
    pub(super) fn result(&mut self, link: Option<LinkId>, result: StepResult, now: Instant) {
        if link.is_none_or(|link| self.links.values().any(|known| *known == link)) {
            let current = self.serving == Some(result.fence.epoch);
            let before = self.scheduler.counts().results_fenced;
            self.scheduler.handle_result(result, now);
            let fenced = self.scheduler.counts().results_fenced > before;
            assert!(current || fenced, "a result of an old plan was accepted");
        }
    }

    /// Carries out what the machines want, until none wants anything.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        loop {
            if let Some(command) = self.membership.poll_command() {
                match command {
                    membership::Command::Close(session) => wanted.push(Wanted::CloseSession(session)),
                    membership::Command::Probe { worker, nonce } => wanted.push(Wanted::Probe(worker, nonce)),
                    membership::Command::Changed => {
                        self.deployment.handle(deployment::Event::MembersChanged, &self.membership, now);
                    }
                }
            } else if let Some(command) = self.deployment.poll_command() {
                self.carry_out(command, &mut wanted, now);
            } else if let Some(command) = self.scheduler.poll_command(now) {
                match command {
                    scheduler::Command::Send(step) => self.send(step, &mut wanted, now),
                    scheduler::Command::Emit { sequence, event } => {
                        wanted.push(Wanted::Emit(sequence, event));
                    }
                    scheduler::Command::Broken { reason, .. } => {
                        self.deployment.handle(deployment::Event::Broken { reason }, &self.membership, now);
                    }
                    scheduler::Command::DraftsBroken { reason } => {
                        panic!("there is no draft model: {reason}")
                    }
                    scheduler::Command::CaughtUp => {
                        self.deployment.handle(deployment::Event::CaughtUp, &self.membership, now);
                    }
                    scheduler::Command::Tell(_)
                    | scheduler::Command::Admitted { .. }
                    | scheduler::Command::Measured(_) => {}
                }
            } else if self.scheduler.is_idle() != self.idle {
                self.idle = !self.idle;
                let event = deployment::Event::Asked { idle: self.idle };
                self.deployment.handle(event, &self.membership, now);
            } else {
                return wanted;
            }
        }
    }

    fn carry_out(&mut self, command: deployment::Command, wanted: &mut Vec<Wanted>, now: Instant) {
        match command {
            deployment::Command::PersistEpoch(epoch) => {
                assert!(Some(epoch) > self.serving, "epoch {epoch} is not new");
                wanted.push(Wanted::PersistEpoch(epoch));
            }
            deployment::Command::Send { worker, message } => {
                if let Some(session) = self.membership.member(&worker).and_then(|member| member.session()) {
                    wanted.push(Wanted::Tell(session, message));
                }
            }
            deployment::Command::CloseLinks => {
                let links = std::mem::take(&mut self.links).into_values().collect();
                wanted.push(Wanted::CloseLinks(links));
            }
            deployment::Command::Start(pipeline) => {
                self.first = self.deployment.stages().first().map(|stage| stage.worker.clone());
                self.serving = Some(pipeline.fence.epoch);
                self.plans_served += 1;
                self.scheduler.start(pipeline, now);
            }
            deployment::Command::Suspend { reason } => {
                self.first = None;
                self.scheduler.suspend(&reason);
            }
            deployment::Command::Move { reason } => {
                assert!(self.first.take().is_some(), "moved from a plan that does not serve: {reason}");
                self.plans_moved += 1;
                self.scheduler.move_on(&reason);
            }
            deployment::Command::LookOut(outlook) => self.scheduler.look_out(outlook, now),
            deployment::Command::Stop { reason } => self.scheduler.stop(&reason, now),
            deployment::Command::Doubt(worker) => {
                self.membership.handle(membership::Event::Doubted { worker }, now);
            }
            deployment::Command::Failed { .. } => self.plans_failed += 1,
            deployment::Command::Say { .. } => {}
        }
    }

    fn send(&mut self, step: StepFrame, wanted: &mut Vec<Wanted>, now: Instant) {
        let Some(first) = self.first.clone() else { return };
        match self.links.get(&first) {
            Some(link) => wanted.push(Wanted::Send(*link, step)),
            None => {
                let reason = "there is no data link to it".to_owned();
                let event = deployment::Event::LinkDown { worker: first, reason };
                self.deployment.handle(event, &self.membership, now);
            }
        }
    }
}

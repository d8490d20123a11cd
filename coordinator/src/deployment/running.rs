//! A plan on its way from durable epoch to service.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use brigade_proto::control::{
    Capabilities, ConnectStage, DeliveryProgress, DeviceKind, LoadStage, ShortWayEnd, StageMemory, StageRoom,
    StageState, ToWorker,
};
use brigade_proto::ids::{Epoch, Fence, Peer, WorkerId};
use brigade_proto::step::WireDtype;
use brigade_shard::plan::pace::{Crowd, Seat};
use brigade_shard::plan::{Plan, PlannedStage};

use super::{ACTIVATE_LIMIT, CONNECT_LIMIT, DeploymentSettings, LOAD_SILENCE, SEQUENCES};
use crate::membership::{Member, Membership, SessionId};
use crate::scheduler::{Pipeline, StagePrediction};
use crate::status::Phase;

/// How far a stage has come under the current plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Reading its weights.
    Loading,
    /// Weights resident, cache allocated.
    Loaded,
    /// Links stand.
    Connected,
    /// Takes steps.
    Active,
}

impl Progress {
    /// The word for it in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Progress::Loading => "loading",
            Progress::Loaded => "loaded",
            Progress::Connected => "connected",
            Progress::Active => "active",
        }
    }
}

/// A stage under the current plan.
#[derive(Clone, Debug)]
pub struct StageRun {
    /// The worker that holds it.
    pub worker: WorkerId,
    /// That worker's name, for people.
    pub name: String,
    /// Where it computes, if that is on processors that others may share.
    pub(super) seat: Option<Seat<String>>,
    /// What was planned.
    pub planned: PlannedStage,
    /// How far it has come.
    pub progress: Progress,
    /// Share of its weights read, from 0 to 1.
    pub loaded_share: f64,
    /// What of them comes from other machines, while it is loaded.
    pub delivery: Option<DeliveryProgress>,
    /// What it takes, once loaded; as planned until then.
    pub memory: StageMemory,
    /// Where the next stage was reached, once connected.
    pub next_address: Option<SocketAddr>,
    /// Round trip to the next stage in microseconds, once connected.
    pub next_rtt_us: Option<u32>,
    /// Its worker's stream when it was last told or heard.
    pub(super) session: SessionId,
    /// When it last said anything.
    pub(super) heard: Instant,
    /// Until when its worker, which has attached anew, must confirm that it still holds the stage.
    pub(super) confirm_by: Option<Instant>,
    /// Whether the coordinator's own link to it stands.
    pub(super) link_up: bool,
}

/// What a plan is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Persisting,
    Loading,
    Connecting,
    Activating,
    Serving,
}

/// A plan and its stages.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) step: Step,
    /// When the step began.
    pub(super) since: Instant,
    pub(super) fence: Fence,
    pub(super) plan: Plan,
    pub(super) room: StageRoom,
    pub(super) stages: Vec<StageRun>,
    /// Whether results have the same bits on any such stages.
    exact: bool,
}

/// Where a worker computes, if its machine's processors do.
fn seat(own: &Capabilities) -> Option<Seat<String>> {
    Some(Seat::of(own.host.clone(), &own.shared_host?, f64::from(own.threads)))
}

impl Running {
    /// A plan over `workers`, the devices that it was made for, in that order. `None` where a worker is not attached,
    /// or the plan names a device that is not there.
    pub(super) fn new(
        settings: &DeploymentSettings,
        epoch: Epoch,
        plan: Plan,
        workers: &[WorkerId],
        members: &Membership,
        now: Instant,
    ) -> Option<Running> {
        let stages = plan.stages.iter().map(|planned| {
            let member = members.member(workers.get(planned.device)?)?;
            Some(StageRun {
                worker: member.id.clone(),
                name: member.capabilities.name.clone(),
                seat: seat(&member.capabilities),
                planned: planned.clone(),
                progress: Progress::Loading,
                loaded_share: 0.0,
                delivery: None,
                memory: StageMemory {
                    weights: planned.memory.weights,
                    cache: planned.memory.cache,
                    workspace: planned.memory.workspace,
                },
                next_address: None,
                next_rtt_us: None,
                session: member.session()?,
                heard: now,
                confirm_by: None,
                link_up: false,
            })
        });
        let stages = stages.collect::<Option<Vec<_>>>().filter(|stages| !stages.is_empty())?;
        let on_cpu = |stage: &StageRun| {
            let member = members.member(&stage.worker);
            member.is_some_and(|member| member.capabilities.device == DeviceKind::Cpu)
        };
        let exact = settings.wire == WireDtype::F32 && stages.iter().all(on_cpu);
        let room = StageRoom {
            cache_tokens: plan.cache_tokens,
            context: plan.context,
            step_rows: settings.prefill_chunk.max(1),
            sequences: sequences(settings.parallel),
            cache_dtype: settings.cache_dtype,
        };
        let fence = Fence { incarnation: settings.incarnation, epoch };
        Some(Running { step: Step::Persisting, since: now, fence, plan, room, stages, exact })
    }

    /// Whether another plan over `workers`, its devices, has the same stages in the same places.
    pub(super) fn is_the_same(&self, plan: &Plan, workers: &[WorkerId]) -> bool {
        let stage = |run: &StageRun| (run.worker.clone(), run.planned.shard);
        let found = plan.stages.iter().map(|stage| Some((workers.get(stage.device)?.clone(), stage.shard)));
        let room = |plan: &Plan| (plan.context, plan.cache_tokens);
        room(plan) == room(&self.plan) && self.stages.iter().map(|run| Some(stage(run))).eq(found)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.step {
            Step::Persisting | Step::Loading => Phase::Loading,
            Step::Connecting | Step::Activating => Phase::Connecting,
            Step::Serving => Phase::Serving,
        }
    }

    pub(super) fn doing(&self) -> Option<&'static str> {
        match self.step {
            Step::Persisting | Step::Loading => Some("stages are being loaded"),
            Step::Connecting | Step::Activating => Some("stages are being connected"),
            Step::Serving => None,
        }
    }

    pub(super) fn load(&self, settings: &DeploymentSettings, stage: usize) -> ToWorker {
        ToWorker::Load(self.order(settings, stage))
    }

    /// What the stage is loaded by.
    pub(super) fn order(&self, settings: &DeploymentSettings, stage: usize) -> LoadStage {
        LoadStage {
            deployment: settings.id,
            epoch: self.fence.epoch,
            fingerprint: settings.fingerprint.clone(),
            edition: settings.edition,
            file_hint: settings.file_hint.clone(),
            shard: self.stages[stage].planned.shard,
            stage: stage as u32,
            stages: self.stages.len() as u32,
            room: self.room,
            streamed_layers: self.stages[stage].planned.streamed_layers as u32,
        }
    }

    pub(super) fn connect(
        &self,
        settings: &DeploymentSettings,
        stage: usize,
        members: &Membership,
    ) -> ToWorker {
        let neighbour = |place: Option<usize>| place.and_then(|place| self.stages.get(place));
        let peer = |stage: Option<&StageRun>| match stage {
            Some(stage) => Peer::Worker(stage.worker.clone()),
            None => Peer::Coordinator,
        };
        let next = neighbour(stage.checked_add(1));
        let short_way = match (self.stages.first(), self.stages.last()) {
            (Some(first), Some(last)) if first.worker != last.worker && stage == 0 => {
                Some(ShortWayEnd::From(peer(Some(last))))
            }
            (Some(first), Some(last)) if first.worker != last.worker && stage + 1 == self.stages.len() => {
                Some(ShortWayEnd::To(peer(Some(first)), addresses(&first.worker, members)))
            }
            _ => None,
        };
        ToWorker::Connect(ConnectStage {
            deployment: settings.id,
            epoch: self.fence.epoch,
            previous: peer(neighbour(stage.checked_sub(1))),
            next: peer(next),
            next_addresses: next.map(|next| addresses(&next.worker, members)).unwrap_or_default(),
            wire: settings.wire,
            short_way,
        })
    }

    pub(super) fn pipeline(&self, settings: &DeploymentSettings) -> Pipeline {
        let predicted = |stage: &PlannedStage| StagePrediction {
            decode_s: stage.decode_ms / 1e3,
            prefill_s_per_row: stage.prefill_ms_per_token / 1e3,
        };
        let seats: Vec<_> = self.stages.iter().map(|stage| stage.seat.clone()).collect();
        Pipeline {
            fence: self.fence,
            deployment: settings.id,
            stages: self.plan.stages.iter().map(predicted).collect(),
            crowds: Crowd::among(&seats),
            room: self.room,
            exact: self.exact,
        }
    }

    /// Takes in a state of one stage.
    ///
    /// # Errors
    /// The reason, where the stage cannot be used.
    pub(super) fn report(&mut self, stage: usize, state: StageState, now: Instant) -> Result<(), String> {
        let run = &mut self.stages[stage];
        run.heard = now;
        let reached = match state {
            StageState::Loading { loaded, total, delivery } => {
                run.loaded_share = if total.0 == 0 { 0.0 } else { loaded.0 as f64 / total.0 as f64 };
                run.delivery = delivery;
                return Ok(());
            }
            StageState::Loaded(memory) => {
                run.memory = memory;
                Progress::Loaded
            }
            StageState::Connected { next_address, rtt_us } => {
                run.next_address = Some(next_address);
                run.next_rtt_us = Some(rtt_us);
                Progress::Connected
            }
            StageState::Active => {
                run.confirm_by = None;
                Progress::Active
            }
            // Of weights that were read ahead for it; it says once more what it is.
            StageState::Prepared | StageState::Crowded { .. } => return Ok(()),
            StageState::Failed { reason } => return Err(format!("{}: {reason}", self.describe(stage))),
            StageState::Retired => return Err(format!("{} was given up", self.describe(stage))),
        };
        run.progress = run.progress.max(reached);
        run.loaded_share = 1.0;
        Ok(())
    }

    pub(super) fn stage_of(&self, worker: &WorkerId) -> Option<usize> {
        self.stages.iter().position(|stage| stage.worker == *worker)
    }

    pub(super) fn describe(&self, stage: usize) -> String {
        format!("stage {stage} on {}", self.stages[stage].name)
    }

    /// What the largest step should take on a stage.
    pub(super) fn longest_step(&self, stage: usize, rows: u32) -> Duration {
        let planned = &self.stages[stage].planned;
        let longest_ms = planned.decode_ms.max(planned.prefill_ms_per_token * f64::from(rows));
        // A prediction beyond any sense is no reason to wait for ever.
        Duration::from_secs_f64((longest_ms / 1e3).clamp(0.0, LOAD_SILENCE.as_secs_f64()))
    }

    /// Whether the step that all stages are in is done.
    pub(super) fn step_is_done(&self) -> bool {
        let all = |progress| self.stages.iter().all(|stage| stage.progress >= progress);
        match self.step {
            Step::Persisting | Step::Serving => false,
            Step::Loading => all(Progress::Loaded),
            // The workers' word is not enough: the coordinator must have taken both of its links too.
            Step::Connecting => {
                let ends = [self.stages.first(), self.stages.last()];
                all(Progress::Connected) && ends.into_iter().flatten().all(|stage| stage.link_up)
            }
            Step::Activating => all(Progress::Active),
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        match self.step {
            Step::Persisting => None,
            Step::Loading => self
                .stages
                .iter()
                .filter(|stage| stage.progress < Progress::Loaded)
                .map(|stage| stage.heard + LOAD_SILENCE)
                .min(),
            Step::Connecting => Some(self.since + CONNECT_LIMIT),
            Step::Activating => Some(self.since + ACTIVATE_LIMIT),
            Step::Serving => self.stages.iter().filter_map(|stage| stage.confirm_by).min(),
        }
    }

    /// What has taken too long, if anything has.
    pub(super) fn overdue(&self, now: Instant) -> Option<String> {
        if self.next_timeout().is_none_or(|due| now < due) {
            return None;
        }
        let late = |stage: &StageRun| match self.step {
            Step::Persisting => false,
            Step::Loading => stage.progress < Progress::Loaded && now >= stage.heard + LOAD_SILENCE,
            Step::Connecting => stage.progress < Progress::Connected,
            Step::Activating => stage.progress < Progress::Active,
            Step::Serving => stage.confirm_by.is_some_and(|by| now >= by),
        };
        let stages: Vec<String> =
            (0..self.stages.len()).filter(|&i| late(&self.stages[i])).map(|i| self.describe(i)).collect();
        let who =
            if stages.is_empty() { "the link to the coordinator".to_owned() } else { stages.join(", ") };
        Some(match self.step {
            Step::Persisting | Step::Loading => format!("{who} has not said anything while loading"),
            Step::Connecting => {
                format!("{who} could not be connected; neighbours must reach each other's data port over UDP")
            }
            Step::Activating => format!("{who} has not confirmed that it is active"),
            Step::Serving => format!("{who} has not confirmed itself after attaching anew"),
        })
    }
}

/// How many sequences stages make room for.
pub(super) fn sequences(parallel: u32) -> u32 {
    parallel.max(SEQUENCES)
}

/// Where a worker's data plane may be reached.
pub(super) fn addresses(worker: &WorkerId, members: &Membership) -> Vec<SocketAddr> {
    members.member(worker).map(Member::data_addresses).unwrap_or_default()
}

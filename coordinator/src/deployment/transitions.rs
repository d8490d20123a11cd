//! How a deployment goes from one state to the next.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use brigade_proto::control::{StageReport, StageState, ToWorker};
use brigade_proto::ids::{Epoch, Peer, WorkerId};
use brigade_shard::plan::Plan;

use super::devices::devices;
use super::running::{Progress, Running, Step, addresses};
use super::{
    CONFIRM_LIMIT, Command, Deployment, Event, FIRST_BACK_OFF, HUNG_LEAST, HUNG_TIMES, LEFT_OUT,
    LONGEST_BACK_OFF, SETTLED, SHORT_BACK_OFF, State, waiting_for_workers,
};
use crate::membership::{Member, Membership, Presence};
use crate::scheduler::Outlook;

/// The doubling of the back-off ends here, where it is past its limit anyway.
const MAX_DOUBLINGS: u32 = 10;

impl Deployment {
    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, members: &Membership, now: Instant) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        match event {
            Event::MembersChanged => self.members_changed(members, now),
            Event::EpochPersisted { epoch, result } => self.persisted(epoch, result, members, now),
            Event::CaughtUp => {
                self.better.caught_up();
                if self.better.is_ordered() {
                    self.reconsider(members, now);
                }
            }
            Event::Asked { idle } => self.better.asked(idle, now),
            Event::Stage { worker, report } => self.stage_reported(&worker, report, members, now),
            Event::LinkUp { worker } => {
                self.link_changed(&worker, true);
                self.advance(members, now);
            }
            Event::LinkDown { worker, reason } => {
                let name = self.name_of(&worker);
                if self.link_changed(&worker, false) >= Some(Step::Activating) {
                    self.fail(format!("the data link to {name} broke: {reason}"), members, now);
                }
            }
            Event::LinkLost { worker, peer, reason } => {
                // Links of the plan before break while this one comes up: that says nothing about this one.
                let active = self.running().is_some_and(|running| {
                    running.stage_of(&worker).is_some_and(|i| running.stages[i].progress == Progress::Active)
                });
                if active {
                    let name = self.name_of(&worker);
                    if let Peer::Worker(peer) = &peer {
                        self.look_at_link(&worker, peer, members, now);
                    }
                    self.fail(format!("the data link from {name} to {peer} broke: {reason}"), members, now);
                }
            }
            Event::LinkProbed { nonce, reached } => {
                if self.links.probed(nonce, reached, members, now) {
                    self.members_changed(members, now);
                }
            }
            Event::Computing { worker, time } => self.computing(&worker, time, members, now),
            Event::Probed { worker, nonce } => self.probed(&worker, nonce, members, now),
            Event::Broken { reason } => self.fail(reason, members, now),
            Event::Pin { pin, by, until } => self.take_pin(pin, by, until, members, now),
            Event::Unpin => self.take_pin_back(members, now),
            Event::Stop => self.stop(),
        }
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, members: &Membership, now: Instant) {
        self.expire_pin(members, now);
        match &self.state {
            State::Waiting { not_before: Some(due), .. } if now >= *due => self.plan_anew(members, now),
            State::Waiting { not_before: None, .. } if self.links.expire(now) => self.plan_anew(members, now),
            State::Running(running) => match running.overdue(now) {
                Some(reason) => self.fail(reason, members, now),
                None => self.better_due(members, now),
            },
            State::Waiting { .. } | State::Stopped => {}
        }
    }

    fn persisted(&mut self, epoch: Epoch, result: Result<(), String>, members: &Membership, now: Instant) {
        let result = result.map_err(|reason| format!("failed to write down the plan's number: {reason}"));
        let is_next = self.better.next_epoch() == Some(epoch);
        let is_current = self.running().is_some_and(|running| running.fence.epoch == epoch);
        match result {
            Ok(()) if is_next => self.begin_preparing(members, now),
            Err(reason) if is_next => self.stay(reason, members, now),
            Ok(()) if is_current => self.begin_loading(members, now),
            Err(reason) if is_current => self.fail(reason, members, now),
            // Of a plan that was given up meanwhile.
            Ok(()) | Err(_) => {}
        }
    }

    fn members_changed(&mut self, members: &Membership, now: Instant) {
        match &mut self.state {
            State::Waiting { not_before, .. } => {
                if not_before.is_none_or(|due| now >= due) {
                    self.plan_anew(members, now);
                }
            }
            State::Running(running) => match lost_stage(running, &mut self.commands, members, now) {
                Some(reason) => self.fail(reason, members, now),
                None => self.reconsider(members, now),
            },
            State::Stopped => {}
        }
    }

    fn stage_reported(&mut self, worker: &WorkerId, report: StageReport, members: &Membership, now: Instant) {
        if report.deployment == self.settings.id && self.better.next_epoch() == Some(report.epoch) {
            return self.preparing_reported(worker, report.state, members, now);
        }
        let State::Running(running) = &mut self.state else {
            return;
        };
        let current = report.deployment == self.settings.id
            && report.epoch == running.fence.epoch
            && running.step > Step::Persisting;
        let Some(stage) = running.stage_of(worker).filter(|_| current) else {
            return;
        };
        let (connecting, loading) = (running.step == Step::Connecting, running.step == Step::Loading);
        if let StageState::Loaded(_) = report.state {
            self.held.insert(worker.clone(), running.stages[stage].planned.shard.layers);
        }
        match running.report(stage, report.state, now) {
            Ok(()) => self.advance(members, now),
            Err(reason) => {
                if loading && let Some(session) = members.member(worker).and_then(Member::session) {
                    self.could_not_load.insert(worker.clone(), (session, now));
                }
                if connecting {
                    self.blame_link_after(stage, members, now);
                }
                self.fail(reason, members, now);
            }
        }
    }

    /// Has a link looked at that broke between two workers of which nobody doubts that they are there. The next plan waits
    /// for that.
    fn look_at_link(&mut self, from: &WorkerId, to: &WorkerId, members: &Membership, now: Instant) {
        if [from, to].into_iter().any(|worker| !is_well(worker, members)) {
            return;
        }
        let nonce = self.links.check(from, to, now);
        let (peer, addresses) = (Peer::Worker(to.clone()), addresses(to, members));
        let message = ToWorker::ProbeLink { nonce, peer, addresses };
        self.commands.push_back(Command::Send { worker: from.clone(), message });
        self.commands.extend([from, to].map(|worker| Command::Doubt(worker.clone())));
    }

    /// A stage could not be connected, and its worker and the next one are there: they do not reach each other.
    fn blame_link_after(&mut self, stage: usize, members: &Membership, now: Instant) {
        let Some(running) = self.running() else { return };
        let Some([this, next]) = running.stages.get(stage..stage + 2) else {
            return;
        };
        let (this, next) = (this.worker.clone(), next.worker.clone());
        if is_well(&this, members) && is_well(&next, members) {
            self.links.keep_apart(&this, &next, members, now);
        }
    }

    /// Takes in for how long a worker has been computing a step. A device that hangs is left out until it is done, or its
    /// worker is another process.
    fn computing(&mut self, worker: &WorkerId, time: Duration, members: &Membership, now: Instant) {
        if time < HUNG_LEAST {
            if self.hung.remove(worker) {
                self.members_changed(members, now);
            }
            return;
        }
        let Some(running) = self.running().filter(|running| running.step == Step::Serving) else {
            return;
        };
        let Some(stage) = running.stage_of(worker) else {
            return;
        };
        let expected = running.longest_step(stage, self.settings.prefill_chunk);
        if time >= HUNG_LEAST.max(expected.mul_f64(HUNG_TIMES)) {
            let reason = format!(
                "{} hangs: it has computed a step for {:.1} s, of {:.3} s expected",
                running.describe(stage),
                time.as_secs_f64(),
                expected.as_secs_f64()
            );
            self.hung.insert(worker.clone());
            self.fail(reason, members, now);
        }
    }

    /// A worker that attached anew has said all it has to say: without a word on its stage, it is not the process that
    /// held it.
    fn probed(&mut self, worker: &WorkerId, nonce: u64, members: &Membership, now: Instant) {
        let Some(running) = self.running() else { return };
        let Some(stage) = running.stage_of(worker) else {
            return;
        };
        let run = &running.stages[stage];
        if run.confirm_by.is_some() && run.session.0 == nonce {
            let who = running.describe(stage);
            self.fail(format!("{who} was lost: its worker was started anew"), members, now);
        }
    }

    /// Notes whether the coordinator's link to a worker stands; says what the plan is doing, where that concerns it.
    fn link_changed(&mut self, worker: &WorkerId, up: bool) -> Option<Step> {
        let State::Running(running) = &mut self.state else {
            return None;
        };
        let stage = running.stage_of(worker)?;
        running.stages[stage].link_up = up;
        let is_end = stage == 0 || stage + 1 == running.stages.len();
        is_end.then_some(running.step)
    }

    /// Goes on to the plan's next step, as long as one is done.
    fn advance(&mut self, members: &Membership, now: Instant) {
        while let State::Running(running) = &mut self.state {
            if !running.step_is_done() {
                return;
            }
            let took = now.saturating_duration_since(running.since);
            running.since = now;
            let stages = 0..running.stages.len();
            match running.step {
                Step::Persisting | Step::Serving => return,
                Step::Loading => {
                    self.better.loaded(took);
                    running.step = Step::Connecting;
                    for stage in stages {
                        let message = running.connect(&self.settings, stage, members);
                        let worker = running.stages[stage].worker.clone();
                        self.commands.push_back(Command::Send { worker, message });
                    }
                }
                Step::Connecting => {
                    running.step = Step::Activating;
                    for stage in &running.stages {
                        let (deployment, fence) = (self.settings.id, running.fence);
                        let message = ToWorker::Activate { deployment, fence };
                        self.commands.push_back(Command::Send { worker: stage.worker.clone(), message });
                    }
                }
                Step::Activating => {
                    running.step = Step::Serving;
                    self.commands.push_back(Command::Start(running.pipeline(&self.settings)));
                    self.has_served = true;
                    self.last_failure = None;
                    self.better.serving();
                    return self.reconsider(members, now);
                }
            }
        }
    }

    /// Makes a plan over the workers attached, or those that it is pinned to, or says what is missing.
    pub(super) fn plan_anew(&mut self, members: &Membership, now: Instant) {
        if self.paused {
            return;
        }
        if members.any_suspected() {
            // It is known within the grace whether the worker comes back; a plan without it would be wasted.
            let reason = "a worker's control connection broke; waiting for it to come back".into();
            let reason = self.with_last_failure(reason);
            self.state = State::Waiting { reason, not_before: None };
            self.commands.push_back(Command::LookOut(Outlook::Coming));
            return;
        }
        if self.links.is_checking(members, now) {
            let reason = self.with_last_failure("a link between workers broke; finding out why".into());
            self.state = State::Waiting { reason, not_before: None };
            self.commands.push_back(Command::LookOut(Outlook::Coming));
            return;
        }
        if let Some(pin) = self.pin().cloned() {
            match self.plan_pinned(&pin, members, now) {
                Ok((plan, workers)) => {
                    self.note_considered(members);
                    return self.bring_up(plan, &workers, members, now);
                }
                Err(reason) => self.give_up_pin(&reason, now),
            }
        }
        let attached = self.usable(members);
        let wanted = if self.has_served { 1 } else { self.settings.min_workers.max(1) };
        if attached.len() < wanted {
            self.wait(waiting_for_workers(attached.len(), wanted) + &drained(members));
            return;
        }
        self.could_not_load.retain(|worker, (session, since)| {
            let same = members.member(worker).and_then(Member::session) == Some(*session);
            same && now < *since + LEFT_OUT
        });
        let sound: Vec<&Member> =
            attached.iter().copied().filter(|member| !self.could_not_load.contains_key(&member.id)).collect();
        let over_sound = if sound.is_empty() || sound.len() == attached.len() {
            None
        } else {
            self.plan_over(&sound, members, now).ok()
        };
        let plan = match over_sound {
            Some(plan) => Ok(plan),
            None => self.plan_over(&attached, members, now),
        };
        self.note_considered(members);
        let (plan, workers) = match plan {
            Ok(found) => found,
            Err(reason) => return self.wait(reason + &drained(members)),
        };
        self.bring_up(plan, &workers, members, now);
    }

    /// Begins with a plan: its number is made durable first.
    fn bring_up(&mut self, plan: Plan, workers: &[WorkerId], members: &Membership, now: Instant) {
        let epoch = Epoch(self.epoch.0 + 1);
        match Running::new(&self.settings, epoch, plan, workers, members, now) {
            Some(running) => {
                self.epoch = epoch;
                self.state = State::Running(running);
                self.commands.push_back(Command::LookOut(Outlook::Coming));
                self.commands.push_back(Command::CloseLinks);
                self.commands.push_back(Command::PersistEpoch(epoch));
            }
            None => self.wait("the plan names a device that is not attached".into()),
        }
    }

    /// Workers that may be planned with.
    pub(super) fn usable<'a>(&self, members: &'a Membership) -> Vec<&'a Member> {
        let usable = |member: &&Member| !self.hung.contains(&member.id) && !members.is_draining(&member.id);
        members.attached().filter(usable).collect()
    }

    /// The best plan over some workers, and their ids in the order of its devices.
    pub(super) fn plan_over(
        &mut self,
        over: &[&Member],
        members: &Membership,
        now: Instant,
    ) -> Result<(Plan, Vec<WorkerId>), String> {
        let least = self.least_stages(over.len());
        let found = self.plan_with(over, least, &[], members, now);
        let workers: Vec<WorkerId> = over.iter().map(|member| member.id.clone()).collect();
        if found.is_err() && least > 1 && !self.links.apart(&workers, members, now).is_empty() {
            // Rather fewer stages than none.
            return self.plan_with(over, 1, &[], members, now).or(found);
        }
        found
    }

    /// The least number of stages of a plan over so many workers.
    pub(super) fn least_stages(&self, workers: usize) -> usize {
        self.settings.min_workers.clamp(1, workers.max(1))
    }

    /// The same with the number of stages and, where it is not empty, of the layers in each.
    pub(super) fn plan_with(
        &mut self,
        over: &[&Member],
        least_stages: usize,
        split: &[usize],
        members: &Membership,
        now: Instant,
    ) -> Result<(Plan, Vec<WorkerId>), String> {
        // Those that hold something first, in the order of the layers: of equal ones the first are taken.
        let held = |member: &Member| self.held.get(&member.id).copied();
        let mut over = over.to_vec();
        over.sort_by_key(|member| held(member).map_or((usize::MAX, 0), |held| (held.start, held.end)));
        let devices = devices(&over, held, |member| self.left(&member.id, member.capabilities.budget));
        let workers: Vec<WorkerId> = over.iter().map(|member| member.id.clone()).collect();
        let apart = self.links.apart(&workers, members, now);
        let plan = (self.planner)(&devices, least_stages, &apart, split)?;
        Ok((plan, workers))
    }

    pub(super) fn begin_loading(&mut self, members: &Membership, now: Instant) {
        let State::Running(running) = &mut self.state else {
            return;
        };
        if running.step != Step::Persisting {
            return;
        }
        running.step = Step::Loading;
        running.since = now;
        let planned: BTreeSet<WorkerId> = running.stages.iter().map(|stage| stage.worker.clone()).collect();
        // A worker that is away now may come back with its stage: it is told with a later plan.
        let attached = |worker: &WorkerId| members.member(worker).is_some_and(|m| m.session().is_some());
        for worker in self.holders.difference(&planned).filter(|worker| attached(worker)) {
            self.held.remove(worker);
            let message = ToWorker::Retire { deployment: self.settings.id };
            self.commands.push_back(Command::Send { worker: worker.clone(), message });
        }
        running.stages.iter_mut().for_each(|stage| stage.heard = now);
        for (stage, run) in running.stages.iter().enumerate() {
            let message = running.load(&self.settings, stage);
            self.commands.push_back(Command::Send { worker: run.worker.clone(), message });
        }
        self.holders.retain(|worker| !attached(worker) && members.member(worker).is_some());
        self.holders.extend(planned);
    }

    /// Gives the plan up; a new one is made at once, or after a while where plans keep failing.
    fn fail(&mut self, reason: String, members: &Membership, now: Instant) {
        let State::Running(running) = &self.state else {
            return;
        };
        if running.step == Step::Serving && now >= running.since + SETTLED {
            self.failures = 0;
        }
        self.failures += 1;
        if running.step != Step::Serving && self.is_as_pinned() {
            self.give_up_pin(&reason, now);
        }
        self.better.end();
        self.commands.push_back(Command::Failed { reason: reason.clone() });
        self.commands.push_back(Command::Suspend { reason: reason.clone() });
        self.commands.push_back(Command::CloseLinks);
        self.last_failure = Some(reason.clone());
        let Some(doublings) = self.failures.checked_sub(2) else {
            self.state = State::Waiting { reason, not_before: None };
            return self.plan_anew(members, now);
        };
        let back_off = (FIRST_BACK_OFF * 2u32.pow(doublings.min(MAX_DOUBLINGS))).min(LONGEST_BACK_OFF);
        let reason = format!("{reason}; trying again after {} s", back_off.as_secs());
        let outlook = if back_off <= SHORT_BACK_OFF {
            Outlook::Coming
        } else {
            Outlook::Short { reason: reason.clone() }
        };
        self.commands.push_back(Command::LookOut(outlook));
        self.state = State::Waiting { reason, not_before: Some(now + back_off) };
    }

    fn with_last_failure(&self, reason: String) -> String {
        match &self.last_failure {
            Some(failure) => format!("{reason} (the last plan failed: {failure})"),
            None => reason,
        }
    }

    fn wait(&mut self, reason: String) {
        let reason = self.with_last_failure(reason);
        self.commands.push_back(Command::LookOut(Outlook::Short { reason: reason.clone() }));
        self.state = State::Waiting { reason, not_before: None };
    }

    fn stop(&mut self) {
        self.commands.push_back(Command::Stop { reason: "the coordinator is shutting down".into() });
        for worker in std::mem::take(&mut self.holders) {
            let message = ToWorker::Retire { deployment: self.settings.id };
            self.commands.push_back(Command::Send { worker, message });
        }
        self.commands.push_back(Command::CloseLinks);
        self.state = State::Stopped;
    }

    fn name_of(&self, worker: &WorkerId) -> String {
        let stage = self.running().and_then(|running| Some(&running.stages[running.stage_of(worker)?]));
        stage.map_or_else(|| worker.to_string(), |stage| stage.name.clone())
    }
}

/// Who could be used, but is drained; for people.
fn drained(members: &Membership) -> String {
    let drained = members.attached().filter(|member| members.is_draining(&member.id));
    let names: Vec<&str> = drained.map(|member| member.capabilities.name.as_str()).collect();
    match names[..] {
        [] => String::new(),
        _ => format!(
            "; drained: {} (`brigade drain --undo WORKER` takes a worker back into use)",
            names.join(", ")
        ),
    }
}

/// Whether nobody doubts that a worker is there.
fn is_well(worker: &WorkerId, members: &Membership) -> bool {
    let attached = members.member(worker).is_some_and(|member| member.session().is_some());
    attached && !members.is_suspected(worker)
}

/// Why a plan cannot go on with the workers as they are now, if it cannot. Workers that attached anew while serving
/// say by themselves what they hold, and then answer a probe.
pub(super) fn lost_stage(
    running: &mut Running,
    commands: &mut VecDeque<Command>,
    members: &Membership,
    now: Instant,
) -> Option<String> {
    for i in 0..running.stages.len() {
        let who = running.describe(i);
        let stage = &mut running.stages[i];
        match members.member(&stage.worker).map(|member| &member.presence) {
            None => return Some(format!("{who} was lost")),
            Some(Presence::Lost { reason, .. }) => return Some(format!("{who} was lost: {reason}")),
            Some(Presence::Suspected { .. }) => {}
            Some(Presence::Attached { session, .. }) if *session == stage.session => {}
            Some(Presence::Attached { session, .. }) => match running.step {
                Step::Persisting => stage.session = *session,
                Step::Serving => {
                    stage.session = *session;
                    stage.confirm_by = Some(now + CONFIRM_LIMIT);
                    let message = ToWorker::Probe { nonce: session.0 };
                    commands.push_back(Command::Send { worker: stage.worker.clone(), message });
                }
                Step::Loading | Step::Connecting | Step::Activating => {
                    return Some(format!("{who} attached anew before it was ready"));
                }
            },
        }
    }
    None
}

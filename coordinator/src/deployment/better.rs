//! A better plan while one serves: when one is looked for, how it is prepared beside the other, and the switch.
//!
//! One is looked for when there is more to plan with than before, or when a worker that holds a stage is drained. Its
//! weights are read ahead; when all are resident, what runs goes over to it as after a loss, but by choice. Where a
//! worker has no room for them beside its stage, the plan takes over once nobody has asked for anything for as long as
//! loading takes; a worker that is drained is left at once all the same, if its stage could be loaded were the live one
//! gone. What a pin orders, or the end of one, takes over in the same way, and is not waited for any longer.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use brigade_proto::control::{StageState, ToWorker};
use brigade_proto::ids::{Epoch, WorkerId};
use brigade_shard::plan::{COMFORTABLE_CONTEXT, Plan};
use brigade_shard::units::Bytes;

use super::running::{Running, Step};
use super::transitions::lost_stage;
use super::{Command, Deployment, LOAD_SILENCE, Moving, State};
use crate::membership::Membership;
use crate::scheduler::Outlook;

/// How long a better plan waits for more workers: people start several one after another.
pub const JOIN_PAUSE: Duration = Duration::from_secs(2);
/// How long nothing must have run before a plan takes over whose weights are not all resident; as long as loading last took,
/// within these bounds. Who comes back then waits for no longer than they were away.
pub const QUIET_PAUSE: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(60);
/// A plan that serves is given up for at least this factor: less is within what predictions are wrong by, and everything
/// that runs has to be computed anew.
pub const WORTH_A_MOVE: f64 = 1.1;

/// What is done about a better plan.
#[derive(Debug, Default)]
pub(super) struct Better {
    next: Option<Next>,
    /// What plans have been made over; there is no better one before there is more.
    considered: Considered,
    /// When to look for one.
    look_at: Option<Instant>,
    /// Whether that is an order: which workers plans are made over has changed, and what is found takes over whether or not
    /// it is better.
    ordered: bool,
    /// Whether what ran on the plan before is where it was.
    caught_up: bool,
    /// Since when no request runs or waits, if none does.
    idle_since: Option<Instant>,
    /// How long the plan that serves took to load.
    loading_took: Duration,
    /// What people should know of it.
    note: Option<String>,
}

#[derive(Debug, Default)]
struct Considered {
    workers: BTreeSet<WorkerId>,
    apart: BTreeSet<(WorkerId, WorkerId)>,
}

/// A plan that is being prepared.
#[derive(Debug)]
struct Next {
    running: Running,
    /// Why it is to take over, for people.
    reason: String,
    /// Whether a worker is drained by it.
    drains: bool,
    /// Whether it was ordered, by a pin or the end of one.
    ordered: bool,
    /// Stages whose weights are resident.
    prepared: BTreeSet<usize>,
    /// Stages whose weights do not fit beside what computes.
    crowded: BTreeSet<usize>,
}

impl Better {
    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    pub(super) fn next_epoch(&self) -> Option<Epoch> {
        self.next.as_ref().map(|next| next.running.fence.epoch)
    }

    /// From now on plans are made over other workers.
    pub(super) fn order(&mut self, now: Instant) {
        (self.ordered, self.look_at) = (true, Some(now));
    }

    /// Whether that has not been followed yet.
    pub(super) fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// A plan begins to serve.
    pub(super) fn serving(&mut self) {
        self.caught_up = false;
    }

    pub(super) fn caught_up(&mut self) {
        self.caught_up = true;
    }

    /// Whether any request runs or waits.
    pub(super) fn asked(&mut self, idle: bool, now: Instant) {
        self.idle_since = idle.then(|| self.idle_since.unwrap_or(now));
    }

    /// All stages of the plan that is to serve are loaded.
    pub(super) fn loaded(&mut self, took: Duration) {
        self.loading_took = took;
    }

    fn quiet_pause(&self) -> Duration {
        self.loading_took.clamp(*QUIET_PAUSE.start(), *QUIET_PAUSE.end())
    }

    /// When the next plan takes over whose weights are not all resident, if no request comes.
    fn switch_at(&self) -> Option<Instant> {
        self.next.as_ref().filter(|next| next.waits_for_quiet())?;
        self.idle_since.map(|since| since + self.quiet_pause())
    }

    /// Whether nothing better may be looked for because weights are being read. An order waits for none.
    fn is_reading(&self) -> bool {
        !self.ordered && self.next.as_ref().is_some_and(|next| !next.waits_for_quiet())
    }

    /// The plan that served is gone, and with it the reason for a better one. What was read ahead stays where it is until
    /// the workers are told of the next plan, which may use it.
    pub(super) fn end(&mut self) {
        (self.next, self.look_at, self.note) = (None, None, None);
    }
}

impl Deployment {
    /// Whether what is served could be without a worker: the longest sequence then, in tokens, where that would change.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn check_drain(
        &mut self,
        worker: &WorkerId,
        members: &Membership,
        now: Instant,
    ) -> Result<Option<u32>, String> {
        let State::Running(running) = &self.state else {
            return Ok(None);
        };
        if running.stage_of(worker).is_none() {
            return Ok(None);
        }
        let needed: Bytes = running.plan.stages.iter().map(|stage| stage.memory.total()).sum();
        let mut rest = self.usable(members);
        rest.retain(|member| member.id != *worker);
        if rest.is_empty() {
            return Err(format!("no other worker is there, and {needed} more are needed"));
        }
        let (plan, _) = self.plan_over(&rest, members, now)?;
        Ok(Some(plan.context))
    }

    /// When [`Deployment::better_due`] has something to do next.
    pub(super) fn better_timeout(&self) -> Option<Instant> {
        self.running().filter(|running| running.step == Step::Serving)?;
        let silence = self.better.next.iter().filter_map(|next| next.late_at());
        let look = self.better.look_at.filter(|_| !self.better.is_reading());
        // Links that are avoided may have been mended.
        let links = self.links.next_timeout().filter(|_| !self.better.considered.apart.is_empty());
        silence.chain(look).chain(links).chain(self.better.switch_at()).min()
    }

    /// Takes in that time has passed while a plan serves.
    pub(super) fn better_due(&mut self, members: &Membership, now: Instant) {
        if self.running().is_none_or(|running| running.step != Step::Serving) {
            return;
        }
        if self.better.next.as_ref().and_then(Next::late_at).is_some_and(|late| now >= late) {
            self.stay("a worker has not said anything while loading".into(), members, now);
        }
        if self.links.expire(now) {
            self.reconsider(members, now);
        }
        if !self.better.is_reading() && self.better.look_at.is_some_and(|due| now >= due) {
            self.look_for_better(members, now);
        } else if self.better.switch_at().is_some_and(|due| now >= due) {
            self.switch(members, now);
        }
    }

    /// Notes what plans are made over now.
    pub(super) fn note_considered(&mut self, members: &Membership) {
        self.better.considered = self.at_hand(members);
        (self.better.look_at, self.better.ordered) = (None, false);
    }

    fn at_hand(&self, members: &Membership) -> Considered {
        let workers = self.usable(members).iter().map(|member| member.id.clone()).collect();
        Considered { workers, apart: self.links.pairs() }
    }

    /// Looks at the members while a plan serves: whether the next plan still can be, and whether there may be a better one.
    pub(super) fn reconsider(&mut self, members: &Membership, now: Instant) {
        let State::Running(running) = &self.state else { return };
        if running.step != Step::Serving {
            return;
        }
        let drains = running.stages.iter().any(|stage| members.is_draining(&stage.worker));
        self.check_next(drains, members, now);
        let hand = self.at_hand(members);
        let considered = &mut self.better.considered;
        let more = !hand.workers.is_subset(&considered.workers) || !considered.apart.is_subset(&hand.apart);
        // A worker that has left and comes back counts as more; so does a link that breaks and heals.
        considered.workers.retain(|worker| hand.workers.contains(worker));
        considered.apart.extend(hand.apart);
        if self.better.ordered || (drains && !self.better.is_reading()) {
            self.better.look_at = Some(now);
        } else if more && self.settings.moving == Moving::Freely && self.pin().is_none() {
            self.better.look_at.get_or_insert(now + JOIN_PAUSE);
        }
    }

    /// Gives the next plan up where a worker of it is lost or drained, or it drains nobody any more.
    fn check_next(&mut self, drains: bool, members: &Membership, now: Instant) {
        let Some(next) = &mut self.better.next else { return };
        let before: Vec<_> = next.running.stages.iter().map(|stage| stage.session).collect();
        let lost = lost_stage(&mut next.running, &mut self.commands, members, now);
        let draining = next.running.stages.iter().any(|stage| members.is_draining(&stage.worker));
        let ordered = next.ordered;
        if lost.is_some() || draining || (!ordered && next.drains != drains) {
            let reason = lost.unwrap_or_else(|| "other workers are to be used".into());
            self.stay(reason, members, now);
            // There may be another plan over the workers that are left.
            if ordered {
                self.better.order(now);
            }
            return;
        }
        // A worker that has attached anew says what it has, or reads it.
        for (place, before) in before.into_iter().enumerate() {
            if next.running.stages[place].session != before {
                next.prepared.remove(&place);
                next.crowded.remove(&place);
                let message = ToWorker::Prepare(next.running.order(&self.settings, place));
                let worker = next.running.stages[place].worker.clone();
                self.commands.push_back(Command::Send { worker, message });
            }
        }
    }

    fn look_for_better(&mut self, members: &Membership, now: Instant) {
        let State::Running(running) = &self.state else { return };
        let unsettled = running.stages.iter().any(|stage| stage.confirm_by.is_some());
        let behind = !self.better.caught_up && self.settings.moving != Moving::AtOnce;
        if behind || unsettled || members.any_suspected() || self.links.is_checking(members, now) {
            self.better.look_at = Some(now + JOIN_PAUSE);
            return;
        }
        // One that waits for a quiet moment may not be the best any more.
        self.give_up_next(members);
        let State::Running(running) = &self.state else { return };
        let leaving = running.stages.iter().filter(|stage| members.is_draining(&stage.worker));
        let leaving: Vec<String> = leaving.map(|stage| stage.name.clone()).collect();
        let ordered = self.better.ordered;
        let pin = self.pin().cloned();
        let found = match &pin {
            Some(pin) => self.plan_pinned(pin, members, now),
            None => {
                let mut over = self.usable(members);
                over.retain(|member| !self.could_not_load.contains_key(&member.id));
                self.plan_over(&over, members, now)
            }
        };
        self.note_considered(members);
        let idle = self.better.idle_since.is_some();
        let State::Running(running) = &self.state else { return };
        let (plan, workers) = match found {
            Ok(found) => found,
            Err(reason) if pin.is_some() => {
                self.give_up_pin(&reason, now);
                return;
            }
            Err(reason) if ordered => return self.stay(reason, members, now),
            Err(_) if leaving.is_empty() => return,
            Err(reason) if self.settings.moving == Moving::AtOnce => {
                self.pause(&reason, members);
                self.paused = false;
                return;
            }
            Err(reason) => return self.stay(reason, members, now),
        };
        let reason = match (leaving.is_empty(), gain(&running.plan, &plan)) {
            (false, _) => format!("{} is drained", leaving.join(", ")),
            (true, _) if ordered && running.is_the_same(&plan, &workers) => {
                self.better.note = None;
                return;
            }
            (true, _) if ordered && pin.is_some() => {
                let names = self.pinned().map(|pinned| pinned.names.join(", "));
                format!("the plan is pinned to {}", names.unwrap_or_default())
            }
            (true, _) if ordered && !idle && has_less_room(&plan, &running.plan) => {
                let text = "the pin has ended: a plan with a shorter context takes over once nothing runs";
                self.better.note = Some(text.to_owned());
                (self.better.ordered, self.better.look_at) = (true, Some(now + JOIN_PAUSE));
                return;
            }
            (true, _) if ordered => "the pin has ended".to_owned(),
            (true, Some(gain)) => format!("a plan over {} stages is better by {gain}", plan.stages.len()),
            (true, None) => {
                self.better.note = None;
                return;
            }
        };
        let epoch = Epoch(self.epoch.0 + 1);
        let Some(running) = Running::new(&self.settings, epoch, plan, &workers, members, now) else {
            return;
        };
        self.epoch = epoch;
        self.better.note =
            Some(format!("{reason}: its weights are being loaded beside the plan that serves"));
        let drains = !leaving.is_empty();
        let (prepared, crowded) = (BTreeSet::new(), BTreeSet::new());
        self.better.next = Some(Next { running, reason, drains, ordered, prepared, crowded });
        self.commands.push_back(Command::PersistEpoch(epoch));
    }

    /// The next plan's number is durable.
    pub(super) fn begin_preparing(&mut self, members: &Membership, now: Instant) {
        let Some(next) = &mut self.better.next else { return };
        if self.settings.moving == Moving::AtOnce {
            return self.switch(members, now);
        }
        next.running.stages.iter_mut().for_each(|stage| stage.heard = now);
        for (place, stage) in next.running.stages.iter().enumerate() {
            let message = ToWorker::Prepare(next.running.order(&self.settings, place));
            let worker = stage.worker.clone();
            // Should the plan come to nothing, the worker is told with the one after.
            self.holders.insert(worker.clone());
            self.commands.push_back(Command::Send { worker, message });
        }
    }

    /// A worker has said how far it is with the next plan's weights.
    pub(super) fn preparing_reported(
        &mut self,
        worker: &WorkerId,
        state: StageState,
        members: &Membership,
        now: Instant,
    ) {
        let Some(next) = &mut self.better.next else { return };
        let Some(place) = next.running.stage_of(worker) else {
            return;
        };
        next.running.stages[place].heard = now;
        let who = next.running.describe(place);
        match state {
            StageState::Prepared => {
                next.prepared.insert(place);
                if next.prepared.len() == next.running.stages.len() {
                    self.switch(members, now);
                }
            }
            StageState::Crowded { reason } if !next.drains && !next.ordered => {
                let first = next.crowded.is_empty();
                next.crowded.insert(place);
                let better = next.reason.clone();
                let text = format!(
                    "{better}; it takes over once no request has come for {} s: {who}: {reason}",
                    self.better.quiet_pause().as_secs()
                );
                if first {
                    self.better.note = Some(text.clone());
                    self.commands.push_back(Command::Say { text });
                }
            }
            // What is to be unplugged, or was ordered, is not waited for longer than must be.
            StageState::Crowded { reason } => {
                let text = format!("{who}: {reason}; answers wait while it is loaded");
                self.commands.push_back(Command::Say { text });
                self.switch(members, now);
            }
            StageState::Failed { reason } => {
                self.stay(format!("{who}: {reason}"), members, now);
            }
            StageState::Loading { loaded, total, delivery } => {
                let stage = &mut next.running.stages[place];
                stage.loaded_share = if total.0 == 0 { 0.0 } else { loaded.0 as f64 / total.0 as f64 };
                stage.delivery = delivery;
            }
            StageState::Loaded(_)
            | StageState::Connected { .. }
            | StageState::Active
            | StageState::Retired => {}
        }
    }

    /// The next plan takes over.
    fn switch(&mut self, members: &Membership, now: Instant) {
        let Some(Next { running, reason, .. }) = self.better.next.take() else {
            return;
        };
        self.better.end();
        self.commands.push_back(Command::Move { reason });
        self.commands.push_back(Command::CloseLinks);
        self.commands.push_back(Command::LookOut(Outlook::Coming));
        self.state = State::Running(running);
        self.begin_loading(members, now);
    }

    /// Gives the next plan up, if there is one, and says why the one that serves stays.
    ///
    /// A pin whose plan cannot take over is no pin.
    pub(super) fn stay(&mut self, reason: String, members: &Membership, now: Instant) {
        let of_pin = self.better.next.as_ref().is_some_and(|next| next.ordered) && self.pin().is_some();
        self.give_up_next(members);
        if of_pin {
            return self.give_up_pin(&reason, now);
        }
        let text = format!("the plan stays as it is: {reason}");
        self.better.note = Some(text.clone());
        self.commands.push_back(Command::Say { text });
    }

    /// Gives the next plan up, if there is one, and with it what was read ahead.
    fn give_up_next(&mut self, members: &Membership) {
        let Some(next) = self.better.next.take() else { return };
        let attached = |worker: &WorkerId| members.member(worker).is_some_and(|m| m.session().is_some());
        for stage in next.running.stages.iter().filter(|stage| attached(&stage.worker)) {
            let message = ToWorker::Unprepare { deployment: self.settings.id };
            self.commands.push_back(Command::Send { worker: stage.worker.clone(), message });
        }
    }
}

impl Next {
    /// Whether all that fits beside what computes is resident, and something does not fit.
    fn waits_for_quiet(&self) -> bool {
        !self.crowded.is_empty() && self.prepared.len() + self.crowded.len() == self.running.stages.len()
    }

    /// When a worker that is still reading must have said something.
    fn late_at(&self) -> Option<Instant> {
        let stages = self.running.stages.iter().enumerate();
        let said = |place: &usize| self.prepared.contains(place) || self.crowded.contains(place);
        let reading = stages.filter(|(place, _)| !said(place));
        reading.map(|(_, stage)| stage.heard + LOAD_SILENCE).min()
    }
}

/// What another plan is better by, in words, where that is worth a move. It must have room for all that runs.
fn gain(now: &Plan, other: &Plan) -> Option<String> {
    if has_less_room(other, now) {
        return None;
    }
    let comfort = |plan: &Plan| f64::from(plan.context.min(COMFORTABLE_CONTEXT));
    let speed = |plan: &Plan| plan.predicted.throughput_tokens_per_s;
    if comfort(other) >= WORTH_A_MOVE * comfort(now) {
        return Some(format!("{} tokens of context", other.context - now.context));
    }
    let factor = speed(other) / speed(now);
    (factor >= WORTH_A_MOVE).then(|| format!("{:.0}% more tokens/s", (factor - 1.0) * 100.0))
}

/// Whether what runs on one plan may not fit another.
fn has_less_room(other: &Plan, now: &Plan) -> bool {
    other.context < now.context || other.cache_tokens < now.cache_tokens
}

//! A pin: somebody's word on which workers hold the model, one stage each, until it is taken back.
//!
//! Plans are then made over those workers alone. What serves goes over to the pinned plan as to a better one, but without
//! waiting for a quiet moment where weights do not fit beside what computes: a pin is an order. One that cannot be
//! followed any more, because a worker is lost, drained or cannot load its stage, is given up, and the planner decides
//! again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use brigade_proto::ids::WorkerId;
use brigade_shard::plan::Plan;

use super::devices::devices;
use super::running::Step;
use super::{Command, Deployment, State};
use crate::membership::{Member, Membership};
use crate::planning::LiveDevices;

/// Which workers are to hold the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// One stage each; at least one worker, and none twice. Their order in the pipeline is the planner's.
    pub workers: Vec<WorkerId>,
    /// How many layers each stage holds, in the order of the pipeline; empty where that is planned.
    pub split: Vec<usize>,
}

/// For how long it is told why the last pin ended: who had wished it looks at the status within that, and whoever comes
/// later did not see it hold.
pub const END_TOLD: Duration = Duration::from_secs(60);

/// A pin that holds.
#[derive(Clone, Debug)]
pub struct Pinned {
    pin: Pin,
    /// The workers' names, for people.
    pub names: Vec<String>,
    /// Since when it holds.
    pub since: Instant,
    /// Who wanted it, for people; `None` where nobody said.
    pub by: Option<String>,
    /// When it ends by itself.
    until: Option<Instant>,
}

/// The devices that may be planned with now.
#[derive(Clone, Debug)]
pub struct AtHand {
    /// As the planner sees them, with nothing held.
    pub live: LiveDevices,
    /// Their workers, in the same order.
    pub workers: Vec<WorkerId>,
    /// Pairs of them that do not reach each other.
    pub apart: Vec<(usize, usize)>,
    /// The least number of stages that plans have.
    pub min_stages: usize,
}

impl Deployment {
    /// The pin that holds, if one does.
    pub fn pin(&self) -> Option<&Pin> {
        self.pin.as_ref().map(|pinned| &pinned.pin)
    }

    /// The same with what people want to know of it.
    pub fn pinned(&self) -> Option<&Pinned> {
        self.pin.as_ref()
    }

    /// Why the last pin ended, where it was not taken back and none followed it, for [`END_TOLD`].
    pub fn pin_ended(&self, now: Instant) -> Option<&str> {
        let (why, at) = self.pin_ended.as_ref()?;
        (now.saturating_duration_since(*at) < END_TOLD).then_some(why)
    }

    /// Whether a pin could be followed: the longest sequence then, in tokens.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn check_pin(&mut self, pin: &Pin, members: &Membership, now: Instant) -> Result<u32, String> {
        self.plan_pinned(pin, members, now).map(|(plan, _)| plan.context)
    }

    /// What plans could be made with now, whether or not they are pinned.
    pub fn at_hand_for_plans(&self, members: &Membership, now: Instant) -> AtHand {
        let over = self.usable(members);
        let workers: Vec<WorkerId> = over.iter().map(|member| member.id.clone()).collect();
        let left = |member: &Member| self.left(&member.id, member.capabilities.budget);
        let live = devices(&over, |_| None, left);
        let min_stages = self.least_stages(over.len());
        let apart = self.links.known_apart(&workers, members, now);
        AtHand { live, workers, apart, min_stages }
    }

    /// Follows a pin, in place of any other; the same one again only ends later, and is whose who wanted it last.
    pub(super) fn take_pin(
        &mut self,
        pin: Pin,
        by: Option<String>,
        until: Option<Instant>,
        members: &Membership,
        now: Instant,
    ) {
        self.pin_ended = None;
        if let Some(pinned) = self.pin.as_mut().filter(|pinned| pinned.pin == pin) {
            (pinned.by, pinned.until) = (by, until);
            return;
        }
        let name = |worker: &WorkerId| match members.member(worker) {
            Some(member) => member.capabilities.name.clone(),
            None => worker.to_string(),
        };
        let names = pin.workers.iter().map(name).collect();
        self.pin = Some(Pinned { pin, names, since: now, by, until });
        self.follow(members, now);
    }

    /// The pin is taken back.
    pub(super) fn take_pin_back(&mut self, members: &Membership, now: Instant) {
        self.pin_ended = None;
        if self.pin.take().is_some() {
            self.follow(members, now);
        }
    }

    /// When the pin ends by itself.
    pub(super) fn pin_timeout(&self) -> Option<Instant> {
        self.pin.as_ref()?.until
    }

    /// Ends a pin that was not renewed in time.
    pub(super) fn expire_pin(&mut self, members: &Membership, now: Instant) {
        if self.pin_timeout().is_some_and(|until| now >= until) {
            self.give_up_pin("it was not renewed in time", now);
            self.follow(members, now);
        }
    }

    /// Gives the pin up, if there is one, and says why. The plan that follows is looked for as one that was ordered.
    pub(super) fn give_up_pin(&mut self, reason: &str, now: Instant) {
        let Some(pinned) = self.pin.take() else { return };
        let text = format!("the pin to {} is given up: {reason}", pinned.names.join(", "));
        self.commands.push_back(Command::Say { text: text.clone() });
        self.pin_ended = Some((text, now));
        self.better.order(now);
    }

    /// Whether the plan being brought up or served is the one that is pinned.
    pub(super) fn is_as_pinned(&self) -> bool {
        let (Some(pinned), Some(running)) = (&self.pin, self.running()) else {
            return false;
        };
        let wanted: BTreeSet<&WorkerId> = pinned.pin.workers.iter().collect();
        let found: BTreeSet<&WorkerId> = running.stages.iter().map(|stage| &stage.worker).collect();
        let layers = running.stages.iter().map(|stage| stage.planned.shard.layers);
        let split = layers.map(|layers| layers.end - layers.start);
        wanted == found && (pinned.pin.split.is_empty() || split.eq(pinned.pin.split.iter().copied()))
    }

    /// The best plan as pinned.
    pub(super) fn plan_pinned(
        &mut self,
        pin: &Pin,
        members: &Membership,
        now: Instant,
    ) -> Result<(Plan, Vec<WorkerId>), String> {
        let usable = self.usable(members);
        let find = |worker: &WorkerId| usable.iter().copied().find(|member| member.id == *worker);
        let mut over = Vec::with_capacity(pin.workers.len());
        for worker in &pin.workers {
            over.push(find(worker).ok_or_else(|| self.why_unusable(worker, members))?);
        }
        self.plan_with(&over, over.len(), &pin.split, members, now)
    }

    fn why_unusable(&self, worker: &WorkerId, members: &Membership) -> String {
        let Some(member) = members.member(worker) else {
            return format!("{worker} has left");
        };
        let name = &member.capabilities.name;
        if members.is_draining(worker) {
            format!("{name} is drained")
        } else if self.hung.contains(worker) {
            format!("{name} hangs")
        } else {
            format!("{name} is not attached")
        }
    }

    /// Goes over to what was ordered, as soon as that can be.
    fn follow(&mut self, members: &Membership, now: Instant) {
        self.better.order(now);
        match &self.state {
            State::Waiting { not_before, .. } if not_before.is_none_or(|due| now >= due) => {
                self.plan_anew(members, now);
            }
            State::Running(running) if running.step == Step::Serving => self.reconsider(members, now),
            // Nobody waits until all of a plan is loaded that is not wanted any more.
            State::Running(_) if !self.is_as_pinned() => self.plan_anew(members, now),
            State::Waiting { .. } | State::Running(_) | State::Stopped => {}
        }
    }
}

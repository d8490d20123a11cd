//! A deployment that takes what another one leaves: it is paused while that has no plan, and planned over the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use brigade_proto::control::ToWorker;
use brigade_proto::ids::WorkerId;
use brigade_shard::units::Bytes;

use super::{Command, Deployment, State};
use crate::membership::Membership;

impl Deployment {
    /// A deployment that is not planned before [`Deployment::resume`].
    #[must_use]
    pub fn paused(self, reason: &str) -> Deployment {
        let state = State::Waiting { reason: reason.to_owned(), not_before: None };
        Deployment { paused: true, state, ..self }
    }

    /// Gives the plan up and its workers' memory back, and makes no other one until [`Deployment::resume`].
    pub fn pause(&mut self, reason: &str, members: &Membership) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        if self.running().is_some() {
            self.commands.push_back(Command::Stop { reason: reason.to_owned() });
            self.commands.push_back(Command::CloseLinks);
        }
        let attached = |worker: &WorkerId| members.member(worker).is_some_and(|m| m.session().is_some());
        let holders = std::mem::take(&mut self.holders);
        let (told, away): (BTreeSet<WorkerId>, BTreeSet<WorkerId>) = holders.into_iter().partition(attached);
        self.holders = away;
        for worker in told {
            let message = ToWorker::Retire { deployment: self.settings.id };
            self.commands.push_back(Command::Send { worker, message });
        }
        self.paused = true;
        self.better.end();
        self.state = State::Waiting { reason: reason.to_owned(), not_before: None };
    }

    /// Plans with what others leave: `taken` is what they hold on each worker.
    pub fn resume(&mut self, taken: BTreeMap<WorkerId, Bytes>, members: &Membership, now: Instant) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        self.taken = taken;
        self.paused = false;
        if self.running().is_none() {
            self.plan_anew(members, now);
        }
    }

    /// What others leave of a worker's budget.
    pub(super) fn left(&self, worker: &WorkerId, budget: Bytes) -> Bytes {
        budget.saturating_sub(self.taken.get(worker).copied().unwrap_or_default())
    }
}

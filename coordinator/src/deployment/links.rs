//! Who reaches whom: when a link between two workers breaks that are both there, the link is to blame and not a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use brigade_proto::ids::WorkerId;

use crate::membership::{Membership, SessionId};

/// How long the check of a link may take: the probe, and a message each way.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// How long two workers are kept apart that did not reach each other: then it is tried again, since paths get mended.
const APART_FOR: Duration = Duration::from_secs(60);

/// What is known of links between workers.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Pairs that do not reach each other, the lesser first.
    broken: BTreeMap<(WorkerId, WorkerId), Broken>,
    check: Option<Check>,
    last_nonce: u64,
}

#[derive(Debug)]
struct Broken {
    until: Instant,
    /// The workers' streams when it was found out: one that has attached anew may be somewhere else.
    sessions: [Option<SessionId>; 2],
}

/// A link that is being looked at.
#[derive(Debug)]
struct Check {
    nonce: u64,
    from: WorkerId,
    to: WorkerId,
    until: Instant,
}

impl Links {
    /// Begins to look at a link; the number that the probe must carry.
    pub(super) fn check(&mut self, from: &WorkerId, to: &WorkerId, now: Instant) -> u64 {
        self.last_nonce += 1;
        let (nonce, until) = (self.last_nonce, now + CHECK_LIMIT);
        self.check = Some(Check { nonce, from: from.clone(), to: to.clone(), until });
        nonce
    }

    /// Whether a link is being looked at: both of its ends are there, and there is still time.
    pub(super) fn is_checking(&mut self, members: &Membership, now: Instant) -> bool {
        let session = |worker: &WorkerId| session(members, worker);
        let open = |check: &Check| {
            now < check.until && session(&check.from).is_some() && session(&check.to).is_some()
        };
        if !self.check.as_ref().is_some_and(open) {
            self.check = None;
        }
        self.check.is_some()
    }

    /// Takes in what a probe has found out; whether it was asked for.
    pub(super) fn probed(&mut self, nonce: u64, reached: bool, members: &Membership, now: Instant) -> bool {
        let Some(check) = self.check.take_if(|check| check.nonce == nonce) else {
            return false;
        };
        if !reached {
            self.keep_apart(&check.from, &check.to, members, now);
        }
        true
    }

    /// Takes two workers for such that do not reach each other.
    pub(super) fn keep_apart(
        &mut self,
        one: &WorkerId,
        other: &WorkerId,
        members: &Membership,
        now: Instant,
    ) {
        let pair = [one.min(other), one.max(other)];
        let sessions = pair.map(|worker| session(members, worker));
        let pair = (pair[0].clone(), pair[1].clone());
        self.broken.insert(pair, Broken { until: now + APART_FOR, sessions });
    }

    /// Pairs of `workers`, by their places, that do not reach each other; others are forgotten.
    pub(super) fn apart(
        &mut self,
        workers: &[WorkerId],
        members: &Membership,
        now: Instant,
    ) -> Vec<(usize, usize)> {
        self.broken.retain(|pair, broken| broken.holds(pair, members, now));
        self.known_apart(workers, members, now)
    }

    /// The same for who only asks: nothing is forgotten.
    pub(super) fn known_apart(
        &self,
        workers: &[WorkerId],
        members: &Membership,
        now: Instant,
    ) -> Vec<(usize, usize)> {
        let place = |worker: &WorkerId| workers.iter().position(|other| other == worker);
        let broken = self.broken.iter().filter(|(pair, broken)| broken.holds(pair, members, now));
        broken.filter_map(|((one, other), _)| Some((place(one)?, place(other)?))).collect()
    }

    /// Pairs that do not reach each other, the lesser first.
    pub(super) fn pairs(&self) -> BTreeSet<(WorkerId, WorkerId)> {
        self.broken.keys().cloned().collect()
    }

    /// When something is known no longer.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let check = self.check.iter().map(|check| check.until);
        self.broken.values().map(|broken| broken.until).chain(check).min()
    }

    /// Forgets what has become old; whether there was any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.broken.len() + usize::from(self.check.is_some());
        self.broken.retain(|_, broken| now < broken.until);
        self.check.take_if(|check| now >= check.until);
        self.broken.len() + usize::from(self.check.is_some()) < before
    }
}

impl Broken {
    /// Whether it is still taken to be so.
    fn holds(&self, (one, other): &(WorkerId, WorkerId), members: &Membership, now: Instant) -> bool {
        now < self.until && self.sessions == [one, other].map(|worker| session(members, worker))
    }
}

fn session(members: &Membership, worker: &WorkerId) -> Option<SessionId> {
    members.member(worker)?.session()
}

//! Who is in the cluster: workers attach, report, break off, come back and get lost.
//!
//! A pure state machine: events and the time go in, commands come out. Neither a broken control stream nor silence alone
//! is death: both raise a doubt at once, for which the worker's data plane is probed. A worker counts as lost when the
//! probe finds nobody, when its stream has stayed broken for [`REATTACH_GRACE`], or when it says that it leaves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use brigade_proto::control::{Capabilities, Telemetry};
use brigade_proto::ids::WorkerId;
use brigade_proto::link::Probed;

/// How often a worker reports: often enough that a silent one is noticed within seconds, and nothing beside the steps.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// After how much silence a worker is doubted: two heartbeats, and as much again as a packet lost twice comes late.
pub const DOUBT_AFTER: Duration = Duration::from_millis(2200);
/// How long a probe may take: a handshake over a far link, and one lost packet of it.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a doubt may stay unsettled: a probe, and as long again for a coordinator that is busy.
pub const DOUBT_LIMIT: Duration = Duration::from_secs(2);
/// How long a broken control stream may stay broken: one reconnection with its back-off.
pub const REATTACH_GRACE: Duration = Duration::from_secs(2);
/// The same for a worker whose data plane has answered since: several reconnections.
pub const ANSWERED_GRACE: Duration = Duration::from_secs(5);
/// How long the control stream of a worker whose data plane answers may be silent, before the stream counts as broken:
/// five heartbeats, as long as a data link may be idle.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// How long a lost worker stays in the status.
const REMEMBER_LOST: Duration = Duration::from_secs(600);
/// Most lost workers remembered; the longest lost go first.
const MAX_LOST: usize = 64;

/// One attach stream; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Something that happened to a worker.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker has opened an attach stream.
    Attached {
        /// The new stream.
        session: SessionId,
        /// Who it is, by its certificate.
        worker: WorkerId,
        /// Where the stream comes from.
        remote: SocketAddr,
        /// What it can do.
        hello: Box<Capabilities>,
    },
    /// Any message came; heartbeats bring telemetry.
    Heard {
        /// The stream it came on.
        session: SessionId,
        /// How the worker is doing, where the message says so.
        telemetry: Option<Telemetry>,
    },
    /// The worker ends of its own will.
    Leaving {
        /// The stream it said so on.
        session: SessionId,
    },
    /// There is reason to doubt that a worker is there.
    Doubted {
        /// Which.
        worker: WorkerId,
    },
    /// A worker's data plane was probed.
    Probed {
        /// Which worker.
        worker: WorkerId,
        /// The number of the doubt.
        nonce: u64,
        /// What was found out.
        probed: Probed,
    },
    /// A worker is not to be planned with any more, or is again. That holds until it is said otherwise, whatever becomes of
    /// its stream.
    Draining {
        /// Which.
        worker: WorkerId,
        /// Whether it is to be emptied.
        draining: bool,
    },
    /// A stream has ended.
    Detached {
        /// Which.
        session: SessionId,
        /// What is known of the cause.
        reason: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Close a stream that a newer one has replaced, or that belongs to a lost worker.
    Close(SessionId),
    /// Probe a worker's data plane, and say what was found out.
    Probe {
        /// Which worker.
        worker: WorkerId,
        /// The number of the doubt.
        nonce: u64,
    },
    /// The set of attached workers has changed, or who is in doubt: look at it again.
    Changed,
}

/// A worker's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Its stream stands.
    Attached {
        /// The stream.
        session: SessionId,
        /// When its last message came.
        heard: Instant,
    },
    /// Its stream broke just now; it may come back.
    Suspected {
        /// When it broke.
        since: Instant,
    },
    /// It is gone.
    Lost {
        /// Since when.
        since: Instant,
        /// Why, for people.
        reason: String,
    },
}

/// One worker, present or lost lately.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its lasting id.
    pub id: WorkerId,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Where its last stream came from.
    pub remote: SocketAddr,
    /// How it is connected.
    pub presence: Presence,
    /// Its last report.
    pub telemetry: Telemetry,
}

impl Member {
    /// The stream to the worker, where it stands.
    pub fn session(&self) -> Option<SessionId> {
        match self.presence {
            Presence::Attached { session, .. } => Some(session),
            Presence::Suspected { .. } | Presence::Lost { .. } => None,
        }
    }

    /// Where its data plane may be reached: what it says itself, and where it is seen.
    pub fn data_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = self.capabilities.data_addresses.clone();
        addresses.extend(self.home().filter(|seen| !self.capabilities.data_addresses.contains(seen)));
        addresses
    }

    /// Where it gives weights to others; nowhere if it does not.
    pub fn delivery_addresses(&self) -> Vec<SocketAddr> {
        let port = self.capabilities.delivery_port;
        let given = |address: &SocketAddr| SocketAddr::new(address.ip(), port);
        if port == 0 { Vec::new() } else { self.data_addresses().iter().map(given).collect() }
    }

    /// Where its data plane is if it is where it is seen.
    pub fn home(&self) -> Option<SocketAddr> {
        let port = self.capabilities.data_addresses.first()?.port();
        Some(SocketAddr::new(self.remote.ip(), port))
    }
}

/// Whether a worker is there, while that is not known.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    nonce: u64,
    since: Instant,
    /// Whether its data plane has answered.
    answered: bool,
}

/// The workers of a cluster.
#[derive(Debug, Default)]
pub struct Membership {
    members: BTreeMap<WorkerId, Member>,
    sessions: BTreeMap<SessionId, WorkerId>,
    doubts: BTreeMap<WorkerId, Doubt>,
    /// Workers that are not to be planned with.
    draining: BTreeSet<WorkerId>,
    last_nonce: u64,
    commands: VecDeque<Command>,
}

impl Membership {
    /// An empty cluster.
    pub fn new() -> Membership {
        Membership::default()
    }

    /// Every worker present or lost lately, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One worker.
    pub fn member(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(worker)
    }

    /// The worker that a stream belongs to; `None` for streams that were replaced or have ended.
    pub fn worker_of(&self, session: SessionId) -> Option<&WorkerId> {
        self.sessions.get(&session)
    }

    /// Workers whose stream stands, by id.
    pub fn attached(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.session().is_some())
    }

    /// Whether a worker is not to be planned with.
    pub fn is_draining(&self, worker: &WorkerId) -> bool {
        self.draining.contains(worker)
    }

    /// Whether it is not known of some worker that may be planned with whether it is there: its stream broke just now, or
    /// it is in doubt.
    pub fn any_suspected(&self) -> bool {
        self.members.keys().any(|worker| self.is_suspected(worker) && !self.is_draining(worker))
    }

    /// Whether that is not known of this worker.
    pub fn is_suspected(&self, worker: &WorkerId) -> bool {
        let broken = |member: &Member| matches!(member.presence, Presence::Suspected { .. });
        self.members.get(worker).is_some_and(broken)
            || self.doubts.get(worker).is_some_and(|doubt| !doubt.answered)
    }

    /// Since when that is not known of this worker, where it is not.
    pub fn suspected_since(&self, worker: &WorkerId) -> Option<Instant> {
        let broken = match self.members.get(worker)?.presence {
            Presence::Suspected { since } => Some(since),
            Presence::Attached { .. } | Presence::Lost { .. } => None,
        };
        let doubt = self.doubts.get(worker).filter(|doubt| !doubt.answered).map(|doubt| doubt.since);
        broken.into_iter().chain(doubt).min()
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Attached { session, worker, remote, hello } => {
                self.attach(session, worker, remote, *hello, now);
            }
            Event::Heard { session, telemetry } => {
                if let Some(member) = self.of_session(session) {
                    member.presence = Presence::Attached { session, heard: now };
                    if let Some(telemetry) = telemetry {
                        member.telemetry = telemetry;
                    }
                    let worker = member.id.clone();
                    self.settle(&worker);
                }
            }
            Event::Doubted { worker } => {
                if self.members.get(&worker).is_some_and(|member| member.session().is_some()) {
                    self.doubt(worker, now);
                }
            }
            Event::Draining { worker, draining } => {
                let changed =
                    if draining { self.draining.insert(worker) } else { self.draining.remove(&worker) };
                if changed {
                    self.commands.push_back(Command::Changed);
                }
            }
            Event::Probed { worker, nonce, probed } => self.probed(&worker, nonce, probed, now),
            Event::Leaving { session } => {
                if let Some(worker) = self.worker_of(session).cloned() {
                    self.lose(&worker, "it was stopped".into(), now);
                }
            }
            Event::Detached { session, reason: _ } => {
                if let Some(member) = self.of_session(session) {
                    member.presence = Presence::Suspected { since: now };
                    let worker = member.id.clone();
                    self.sessions.remove(&session);
                    self.commands.push_back(Command::Changed);
                    self.doubt(worker, now);
                }
            }
        }
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = |member: &&Member| self.due(member).is_some_and(|due| now >= due);
        let due: Vec<WorkerId> = self.members.values().filter(due).map(|member| member.id.clone()).collect();
        for worker in due {
            self.time_is_up(&worker, now);
        }
        self.forget(now);
    }

    /// When [`Membership::handle_timeout`] has something to do next.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.members.values().filter_map(|member| self.due(member)).min()
    }

    /// When something has to happen to a member.
    fn due(&self, member: &Member) -> Option<Instant> {
        let doubt = self.doubts.get(&member.id);
        Some(match member.presence {
            Presence::Attached { heard, .. } => match doubt {
                None => heard + DOUBT_AFTER,
                Some(Doubt { answered: false, since, .. }) => *since + DOUBT_LIMIT,
                Some(Doubt { answered: true, .. }) => heard + SILENCE_LIMIT,
            },
            Presence::Suspected { since } => {
                let answered = doubt.is_some_and(|doubt| doubt.answered);
                since + if answered { ANSWERED_GRACE } else { REATTACH_GRACE }
            }
            Presence::Lost { since, .. } => since + REMEMBER_LOST,
        })
    }

    fn time_is_up(&mut self, worker: &WorkerId, now: Instant) {
        let doubt = self.doubts.get(worker).copied();
        let Some(member) = self.members.get_mut(worker) else {
            return;
        };
        match (&member.presence, doubt) {
            (Presence::Attached { .. }, None) => self.doubt(worker.clone(), now),
            (Presence::Attached { heard, .. }, Some(Doubt { answered: false, .. })) => {
                let silent = now.saturating_duration_since(*heard);
                self.lose(worker, silence(silent), now);
            }
            (Presence::Attached { session, .. }, Some(Doubt { answered: true, .. })) => {
                let session = *session;
                member.presence = Presence::Suspected { since: now };
                self.sessions.remove(&session);
                self.commands.push_back(Command::Close(session));
                self.commands.push_back(Command::Changed);
            }
            (Presence::Suspected { .. }, _) => {
                self.lose(worker, "its control connection broke and it did not come back".into(), now);
            }
            (Presence::Lost { .. }, _) => {}
        }
    }

    /// Has a worker probed, unless it is in doubt already.
    fn doubt(&mut self, worker: WorkerId, now: Instant) {
        if self.doubts.contains_key(&worker) {
            return;
        }
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        self.doubts.insert(worker.clone(), Doubt { nonce, since: now, answered: false });
        self.commands.push_back(Command::Probe { worker, nonce });
    }

    /// A worker is there, or known not to be.
    fn settle(&mut self, worker: &WorkerId) {
        if self.doubts.remove(worker).is_some() {
            self.commands.push_back(Command::Changed);
        }
    }

    fn probed(&mut self, worker: &WorkerId, nonce: u64, probed: Probed, now: Instant) {
        let Some(doubt) = self.doubts.get_mut(worker).filter(|doubt| doubt.nonce == nonce) else {
            return;
        };
        if probed == Probed::Here {
            doubt.answered = true;
            self.commands.push_back(Command::Changed);
            return;
        }
        let broken = "its control connection broke";
        let reason = match self.members.get(worker).map(|member| &member.presence) {
            Some(Presence::Attached { heard, .. }) => silence(now.saturating_duration_since(*heard)),
            _ if probed == Probed::Gone => format!("{broken}, and nothing listens at its data port"),
            _ => format!("{broken}, and its data port does not answer"),
        };
        self.lose(worker, reason, now);
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn attach(
        &mut self,
        session: SessionId,
        worker: WorkerId,
        remote: SocketAddr,
        capabilities: Capabilities,
        now: Instant,
    ) {
        self.doubts.remove(&worker);
        let old = self.members.get(&worker);
        if let Some(replaced) = old.and_then(Member::session) {
            self.sessions.remove(&replaced);
            self.commands.push_back(Command::Close(replaced));
        }
        let telemetry = old.map(|member| member.telemetry.clone()).unwrap_or_default();
        let presence = Presence::Attached { session, heard: now };
        self.sessions.insert(session, worker.clone());
        self.members.insert(worker.clone(), Member { id: worker, capabilities, remote, presence, telemetry });
        self.commands.push_back(Command::Changed);
    }

    fn lose(&mut self, worker: &WorkerId, reason: String, now: Instant) {
        self.doubts.remove(worker);
        let Some(member) = self.members.get_mut(worker) else {
            return;
        };
        let session = member.session();
        member.presence = Presence::Lost { since: now, reason };
        if let Some(session) = session {
            self.sessions.remove(&session);
            self.commands.push_back(Command::Close(session));
        }
        self.commands.push_back(Command::Changed);
    }

    fn of_session(&mut self, session: SessionId) -> Option<&mut Member> {
        self.members.get_mut(self.sessions.get(&session)?)
    }

    fn forget(&mut self, now: Instant) {
        let mut lost: Vec<(Instant, WorkerId)> = self
            .members
            .values()
            .filter_map(|member| match member.presence {
                Presence::Lost { since, .. } => Some((since, member.id.clone())),
                _ => None,
            })
            .collect();
        lost.sort();
        let too_many = lost.len().saturating_sub(MAX_LOST);
        for (place, (since, worker)) in lost.into_iter().enumerate() {
            if place < too_many || now >= since + REMEMBER_LOST {
                self.members.remove(&worker);
            }
        }
    }
}

fn silence(silent: Duration) -> String {
    format!("nothing was heard of it for {:.1} s, and its data port does not answer", silent.as_secs_f64())
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;

//! Who is in the cluster: workers attach, report, break off, come back and get lost.
//!
//! A pure state machine: events and the time go in, commands come out. A broken control stream alone is not death; a
//! worker counts as lost once the stream has stayed broken for [`REATTACH_GRACE`], when nothing was heard of it for
//! [`SILENCE_LIMIT`], or when it says that it leaves.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use brigade_proto::control::{Capabilities, Telemetry};
use brigade_proto::ids::WorkerId;

/// How often a worker reports: often enough that a silent one is noticed within seconds, and nothing beside the steps.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a broken control stream may stay broken: one reconnection with its back-off.
pub const REATTACH_GRACE: Duration = Duration::from_secs(2);
/// How long a worker may be silent: five heartbeats, as long as a data link may be idle.
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
    /// The set of attached workers has changed: look at it again.
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
}

/// The workers of a cluster.
#[derive(Debug, Default)]
pub struct Membership {
    members: BTreeMap<WorkerId, Member>,
    sessions: BTreeMap<SessionId, WorkerId>,
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

    /// Whether some worker's stream broke so lately that it may come back.
    pub fn any_suspected(&self) -> bool {
        self.members.values().any(|member| matches!(member.presence, Presence::Suspected { .. }))
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
                }
            }
            Event::Leaving { session } => self.lose(session, "it was stopped".into(), now),
            Event::Detached { session, reason: _ } => {
                if let Some(member) = self.of_session(session) {
                    member.presence = Presence::Suspected { since: now };
                    self.sessions.remove(&session);
                    self.commands.push_back(Command::Changed);
                }
            }
        }
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut silent = Vec::new();
        let mut changed = false;
        for member in self.members.values_mut() {
            match member.presence {
                Presence::Attached { session, heard } if now >= heard + SILENCE_LIMIT => silent.push(session),
                Presence::Suspected { since } if now >= since + REATTACH_GRACE => {
                    let reason = "its control connection broke and it did not come back".into();
                    member.presence = Presence::Lost { since: now, reason };
                    changed = true;
                }
                _ => {}
            }
        }
        for session in silent {
            self.lose(session, format!("nothing was heard of it for {} s", SILENCE_LIMIT.as_secs()), now);
        }
        if changed {
            self.commands.push_back(Command::Changed);
        }
        self.forget(now);
    }

    /// When [`Membership::handle_timeout`] has something to do next.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.members
            .values()
            .map(|member| match member.presence {
                Presence::Attached { heard, .. } => heard + SILENCE_LIMIT,
                Presence::Suspected { since } => since + REATTACH_GRACE,
                Presence::Lost { since, .. } => since + REMEMBER_LOST,
            })
            .min()
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
        let old = self.members.get(&worker);
        if let Some(replaced) = old.and_then(Member::session) {
            self.sessions.remove(&replaced);
            self.commands.push_back(Command::Close(replaced));
        }
        let telemetry = old.map(|member| member.telemetry).unwrap_or_default();
        let presence = Presence::Attached { session, heard: now };
        self.sessions.insert(session, worker.clone());
        self.members.insert(worker.clone(), Member { id: worker, capabilities, remote, presence, telemetry });
        self.commands.push_back(Command::Changed);
    }

    fn lose(&mut self, session: SessionId, reason: String, now: Instant) {
        if let Some(member) = self.of_session(session) {
            member.presence = Presence::Lost { since: now, reason };
            self.sessions.remove(&session);
            self.commands.push_back(Command::Close(session));
            self.commands.push_back(Command::Changed);
        }
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

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;

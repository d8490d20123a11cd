//! What happened in the cluster, kept so that it can be asked for later, also after a restart.
//!
//! What is an event is decided purely, by comparing one status with the next ([`between`]), and so is what is told only once
//! ([`Damper`]). [`EventLog`] gives events their numbers and keeps the newest in memory; `store` writes them to an SQLite
//! file, in a thread of its own. An event never holds a prompt or an answer.

mod between;
mod damper;
mod log;
mod store;

pub use between::between;
pub use damper::Damper;
pub use log::EventLog;

use crate::status::Severity;

/// Something that happened, before it has a number and a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about.
    pub kind: Kind,
    /// The worker that it concerns, by its name, if one.
    pub worker: Option<String>,
    /// What happened, for people.
    pub text: String,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The coordinator itself.
    Coordinator,
    /// Who is in the cluster.
    Worker,
    /// What runs where, or why nothing does.
    Plan,
    /// A plan that was lost, and requests that went on.
    Recovery,
    /// How a worker or a stage is.
    Health,
    /// The model that drafts answers.
    Draft,
}

impl Kind {
    /// The word for it, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Coordinator => "coordinator",
            Kind::Worker => "worker",
            Kind::Plan => "plan",
            Kind::Recovery => "recovery",
            Kind::Health => "health",
            Kind::Draft => "draft",
        }
    }
}

impl Event {
    fn new(severity: Severity, kind: Kind, text: impl Into<String>) -> Event {
        Event { severity, kind, worker: None, text: text.into() }
    }

    fn of(self, worker: &str) -> Event {
        Event { worker: Some(worker.to_owned()), ..self }
    }
}

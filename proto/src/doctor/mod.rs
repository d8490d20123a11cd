//! `doctor`: what on this machine may stand between a coordinator and its workers, and the command that mends it.
//!
//! [`examine`] looks at everything through [`Surroundings`], so that each check can be tried on a machine that is only
//! written down. Nothing is changed, and nothing needs root: what only root may read is said to be so.

mod certificates;
mod clock;
mod device;
mod firewall;
mod kernel;
mod memory;
mod network;
mod path;
mod ports;
mod report;
mod storage;
mod surroundings;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use brigade_shard::units::Bytes;
pub use device::{nvidia_cards, nvidia_driver};
pub use path::{DATA_PORT, Reach, TcpReach, UdpReach};
pub use report::{Finding, Level, Report};
pub use surroundings::{Here, Protocol, Ran, Surroundings, System};

/// What is to be examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// For which of the two programs.
    pub role: Role,
    /// Ports that it would listen on.
    pub ports: Vec<Port>,
    /// Its state directory; `None` where there is no place for one.
    pub state: Option<PathBuf>,
    /// Where it looks for models.
    pub models: Vec<PathBuf>,
    /// What it would take of the memory; `None` for its default.
    pub memory: Option<Bytes>,
    /// Addresses that must be reached, as `HOST` or `HOST:PORT`.
    pub to: Vec<String>,
    /// The URL of a coordinator, to compare clocks with.
    pub url: Option<String>,
}

/// A program that needs the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `brigade`.
    Coordinator,
    /// `brigade-worker`.
    Worker,
}

impl Role {
    /// The program's name.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Role::Coordinator => "brigade",
            Role::Worker => "brigade-worker",
        }
    }
}

/// A port that must be free, or ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// What for, such as `HTTP`.
    pub purpose: &'static str,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it would be listened on.
    pub addr: SocketAddr,
    /// The flag that takes another.
    pub flag: &'static str,
}

/// Looks at everything.
pub fn examine(subject: &Subject, machine: &dyn Surroundings) -> Report {
    let mut findings = ports::check(subject, machine);
    for to in &subject.to {
        findings.extend(path::check(to, &machine.reach(to)));
    }
    findings.extend(firewall::check(subject, machine));
    findings.extend(certificates::check(subject, machine));
    findings.extend(clock::check(subject, machine));
    findings.extend(network::check(machine));
    findings.extend(storage::check(subject, machine));
    findings.extend(memory::check(subject, machine));
    findings.extend(device::check(machine));
    findings.extend(kernel::check(machine));
    Report { findings }
}

//! What the store tells of its work while it lasts.

use serde::{Deserialize, Serialize};

/// A part of the work whose end is foreseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Bytes come over the network.
    Fetching,
    /// Bytes come from another place on this machine.
    Copying,
    /// Files are read again and compared with their checksums.
    Checking,
}

impl Phase {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Fetching => "fetching",
            Phase::Copying => "copying",
            Phase::Checking => "checking",
        }
    }
}

/// Who is told. Calls come from one thread at a time, and seldom.
pub trait Watch: Send + Sync {
    /// A phase begins, with so many bytes done, of so many where that is known.
    fn begin(&self, phase: Phase, done: u64, total: Option<u64>);

    /// So many bytes are done now.
    fn at(&self, done: u64, total: Option<u64>);

    /// Something that a person should know.
    fn note(&self, text: &str);
}

/// Nobody is told.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn begin(&self, _: Phase, _: u64, _: Option<u64>) {}
    fn at(&self, _: u64, _: Option<u64>) {}
    fn note(&self, _: &str) {}
}

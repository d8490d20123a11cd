//! Names for the things that messages speak of.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A model being served: everything on a worker is keyed by it.
    DeploymentId
);
number!(
    /// A plan's number within a coordinator's state; only ever grows.
    Epoch
);
number!(
    /// Counts the starts of a coordinator on one state directory; only ever grows.
    Incarnation
);
number!(
    /// A step's number within an epoch.
    StepId
);
number!(
    /// One generation, unique within a coordinator's incarnation.
    SequenceId
);

/// What fences the data plane: frames are accepted only where both numbers equal the active ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The coordinator's start that the frame belongs to.
    pub incarnation: Incarnation,
    /// The plan that the frame belongs to.
    pub epoch: Epoch,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.epoch)
    }
}

/// A worker's lasting identity, given by the coordinator when it enrols: lower-case letters, digits and dashes, at most
/// [`WorkerId::MAX_BYTES`]; fit for a DNS label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(String);

impl WorkerId {
    /// The longest id: what fits a DNS label.
    pub const MAX_BYTES: usize = 63;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A worker id that is not of its form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a worker id: 1 to 63 lower-case letters, digits and dashes, not starting or ending with a dash"
)]
pub struct WorkerIdError(String);

impl TryFrom<String> for WorkerId {
    type Error = WorkerIdError;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        let fits = (1..=Self::MAX_BYTES).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !id.starts_with('-')
            && !id.ends_with('-');
        if fits { Ok(WorkerId(id)) } else { Err(WorkerIdError(id)) }
    }
}

impl From<WorkerId> for String {
    fn from(id: WorkerId) -> String {
        id.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// The coordinator.
    Coordinator,
    /// A worker.
    Worker(WorkerId),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Coordinator => f.write_str("coordinator"),
            Peer::Worker(id) => id.fmt(f),
        }
    }
}

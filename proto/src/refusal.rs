//! Why a coordinator says no.

use std::fmt;

use prost::Message;
use tonic::{Code, Status};

use crate::pb;

/// A request that the coordinator understood and does not grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, for programs.
    pub kind: RefusalKind,
    /// What is wrong and what to do, for people.
    pub message: String,
}

impl Refusal {
    /// A refusal of `kind`.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.fmt(f)
    }
}

impl std::error::Error for Refusal {}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// The token's secret is not known here.
    BadToken,
    /// The token was good once.
    ExpiredToken,
    /// The token has served as many machines as it was made for.
    UsedToken,
    /// The two ends speak different protocol versions.
    Version,
    /// The caller's certificate does not allow it.
    NotAllowed,
    /// Not now: try again later.
    Busy,
    /// The request breaks the protocol.
    Malformed,
    /// The coordinator failed.
    Internal,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let code = match refusal.kind {
            RefusalKind::BadToken | RefusalKind::ExpiredToken | RefusalKind::UsedToken => {
                Code::Unauthenticated
            }
            RefusalKind::Version => Code::FailedPrecondition,
            RefusalKind::NotAllowed => Code::PermissionDenied,
            RefusalKind::Busy => Code::Unavailable,
            RefusalKind::Malformed => Code::InvalidArgument,
            RefusalKind::Internal => Code::Internal,
        };
        let refusal = pb::Refusal::from(refusal);
        Status::with_details(code, refusal.message.clone(), refusal.encode_to_vec().into())
    }
}

/// The refusal inside a status; `None` where the status is not one of the coordinator's own.
pub(crate) fn refusal_of(status: &Status) -> Option<Refusal> {
    if status.details().is_empty() {
        return None;
    }
    pb::Refusal::decode(status.details()).ok()?.try_into().ok()
}

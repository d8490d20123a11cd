//! Enrolling, and the coordinator's refusals.

use crate::control::{EnrolRequest, Enrolment, PROTOCOL_VERSION};
use crate::convert::InvalidMessage;
use crate::convert::fields::{MAX_NAME_BYTES, MAX_REASON_BYTES, shortened, text, worker};
use crate::pb;
use crate::refusal::{Refusal, RefusalKind};

/// Longest secret: several times what this version's tokens hold.
const MAX_SECRET_BYTES: usize = 256;
/// Largest certificate or request: an ECDSA one has under 1 KiB.
const MAX_DER_BYTES: usize = 16 << 10;

fn der(field: &'static str, value: Vec<u8>) -> Result<Vec<u8>, InvalidMessage> {
    match value.len() {
        0 => Err(InvalidMessage::new(field, "is empty")),
        1..=MAX_DER_BYTES => Ok(value),
        bytes => Err(InvalidMessage::new(field, format!("has {bytes} bytes, more than {MAX_DER_BYTES}"))),
    }
}

impl From<EnrolRequest> for pb::EnrolRequest {
    fn from(request: EnrolRequest) -> pb::EnrolRequest {
        pb::EnrolRequest {
            protocol_version: PROTOCOL_VERSION,
            secret: request.secret,
            name: request.name,
            csr_der: request.csr_der,
        }
    }
}

impl TryFrom<pb::EnrolRequest> for EnrolRequest {
    type Error = InvalidMessage;

    fn try_from(request: pb::EnrolRequest) -> Result<EnrolRequest, InvalidMessage> {
        Ok(EnrolRequest {
            secret: text("enrol.secret", request.secret, MAX_SECRET_BYTES)?,
            name: text("enrol.name", request.name, MAX_NAME_BYTES)?,
            csr_der: der("enrol.csr_der", request.csr_der)?,
        })
    }
}

impl From<Enrolment> for pb::Enrolment {
    fn from(enrolment: Enrolment) -> pb::Enrolment {
        pb::Enrolment {
            worker: enrolment.worker.into(),
            certificate_der: enrolment.certificate_der,
            ca_der: enrolment.ca_der,
        }
    }
}

impl TryFrom<pb::Enrolment> for Enrolment {
    type Error = InvalidMessage;

    fn try_from(enrolment: pb::Enrolment) -> Result<Enrolment, InvalidMessage> {
        Ok(Enrolment {
            worker: worker("enrolment.worker", enrolment.worker)?,
            certificate_der: der("enrolment.certificate_der", enrolment.certificate_der)?,
            ca_der: der("enrolment.ca_der", enrolment.ca_der)?,
        })
    }
}

impl From<Refusal> for pb::Refusal {
    fn from(refusal: Refusal) -> pb::Refusal {
        let kind = match refusal.kind {
            RefusalKind::BadToken => pb::RefusalKind::BadToken,
            RefusalKind::ExpiredToken => pb::RefusalKind::ExpiredToken,
            RefusalKind::UsedToken => pb::RefusalKind::UsedToken,
            RefusalKind::Version => pb::RefusalKind::Version,
            RefusalKind::NotAllowed => pb::RefusalKind::NotAllowed,
            RefusalKind::Busy => pb::RefusalKind::Busy,
            RefusalKind::Malformed => pb::RefusalKind::Malformed,
            RefusalKind::Internal => pb::RefusalKind::Internal,
        };
        pb::Refusal { kind: kind.into(), message: shortened(refusal.message) }
    }
}

impl TryFrom<pb::Refusal> for Refusal {
    type Error = InvalidMessage;

    fn try_from(refusal: pb::Refusal) -> Result<Refusal, InvalidMessage> {
        let kind = match pb::RefusalKind::try_from(refusal.kind) {
            Ok(pb::RefusalKind::BadToken) => RefusalKind::BadToken,
            Ok(pb::RefusalKind::ExpiredToken) => RefusalKind::ExpiredToken,
            Ok(pb::RefusalKind::UsedToken) => RefusalKind::UsedToken,
            Ok(pb::RefusalKind::Version) => RefusalKind::Version,
            Ok(pb::RefusalKind::NotAllowed) => RefusalKind::NotAllowed,
            Ok(pb::RefusalKind::Busy) => RefusalKind::Busy,
            Ok(pb::RefusalKind::Malformed) => RefusalKind::Malformed,
            Ok(pb::RefusalKind::Internal) => RefusalKind::Internal,
            Ok(pb::RefusalKind::Unspecified) | Err(_) => {
                let problem = format!("is {}, not a kind known here", refusal.kind);
                return Err(InvalidMessage::new("refusal.kind", problem));
            }
        };
        Ok(Refusal { kind, message: text("refusal.message", refusal.message, MAX_REASON_BYTES)? })
    }
}

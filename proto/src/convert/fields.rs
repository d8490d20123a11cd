//! Checks that many messages share.

use std::net::SocketAddr;

use super::InvalidMessage;
use crate::ids::{Epoch, Fence, Incarnation, Peer, WorkerId};
use crate::pb;

/// Longest name, file name or version in a message: what people and file systems use.
pub(crate) const MAX_NAME_BYTES: usize = 256;
/// Longest explanation in a message: a screenful.
pub(super) const MAX_REASON_BYTES: usize = 4096;
/// Most addresses of one machine: more than any has, and few enough to be dialled at once.
pub(super) const MAX_ADDRESSES: usize = 64;

/// A part of a message that must be there.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, InvalidMessage> {
    value.ok_or_else(|| InvalidMessage::new(field, "is missing"))
}

/// Text of at most `max` bytes.
pub(crate) fn text(field: &'static str, value: String, max: usize) -> Result<String, InvalidMessage> {
    if value.len() > max {
        return Err(InvalidMessage::new(field, format!("has {} bytes, more than {max}", value.len())));
    }
    Ok(value)
}

/// An explanation for people.
pub(crate) fn reason(field: &'static str, value: String) -> Result<String, InvalidMessage> {
    text(field, value, MAX_REASON_BYTES)
}

/// An explanation, shortened to what the other end accepts: a failure must arrive even where its text is long.
pub(crate) fn shortened(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}

/// A count that cannot be zero.
pub(super) fn positive(field: &'static str, value: u32) -> Result<u32, InvalidMessage> {
    if value == 0 { Err(InvalidMessage::new(field, "is zero")) } else { Ok(value) }
}

/// A rate: finite and not negative.
pub(super) fn rate(field: &'static str, value: f64) -> Result<f64, InvalidMessage> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(InvalidMessage::new(field, format!("is {value}, not a rate")))
    }
}

pub(super) fn address(field: &'static str, value: &str) -> Result<SocketAddr, InvalidMessage> {
    value.parse().map_err(|_| {
        let shown: String = value.chars().take(64).collect();
        InvalidMessage::new(field, format!("is `{shown}`, not an address with a port"))
    })
}

pub(crate) fn addresses(field: &'static str, values: Vec<String>) -> Result<Vec<SocketAddr>, InvalidMessage> {
    if values.len() > MAX_ADDRESSES {
        let problem = format!("has {} addresses, more than {MAX_ADDRESSES}", values.len());
        return Err(InvalidMessage::new(field, problem));
    }
    values.iter().map(|value| address(field, value)).collect()
}

pub(super) fn worker(field: &'static str, value: String) -> Result<WorkerId, InvalidMessage> {
    let value = text(field, value, WorkerId::MAX_BYTES)?;
    WorkerId::try_from(value).map_err(|error| InvalidMessage::new(field, error.to_string()))
}

pub(crate) fn peer(field: &'static str, value: Option<pb::Peer>) -> Result<Peer, InvalidMessage> {
    match required(field, value.and_then(|peer| peer.peer))? {
        pb::peer::Peer::Coordinator(true) => Ok(Peer::Coordinator),
        pb::peer::Peer::Coordinator(false) => Err(InvalidMessage::new(field, "names nobody")),
        pb::peer::Peer::Worker(id) => Ok(Peer::Worker(worker(field, id)?)),
    }
}

impl From<Peer> for pb::Peer {
    fn from(peer: Peer) -> pb::Peer {
        let peer = match peer {
            Peer::Coordinator => pb::peer::Peer::Coordinator(true),
            Peer::Worker(id) => pb::peer::Peer::Worker(id.into()),
        };
        pb::Peer { peer: Some(peer) }
    }
}

impl From<Fence> for pb::Fence {
    fn from(fence: Fence) -> pb::Fence {
        pb::Fence { incarnation: fence.incarnation.0, epoch: fence.epoch.0 }
    }
}

impl From<pb::Fence> for Fence {
    fn from(fence: pb::Fence) -> Fence {
        Fence { incarnation: Incarnation(fence.incarnation), epoch: Epoch(fence.epoch) }
    }
}

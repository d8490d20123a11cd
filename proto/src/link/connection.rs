//! One authenticated connection, and what its two halves share.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::{Connection, SendStream, VarInt};
use tokio::sync::{Mutex, mpsc, watch};

use super::config;
use super::error::LinkError;
use super::receive::{self, LinkReceiver, Queues};
use super::send::LinkSender;
use super::transport::{CLOSE_CODE, Shared};
use crate::frame::FrameError;
use crate::ids::Peer;
use crate::step::StepKind;

/// Decode frames that wait for the engine: more than there are groups in flight, so that a full queue means an engine
/// that does not keep up. They are small.
const DECODE_QUEUE: usize = 32;
/// Prefill frames that wait for the engine: the next one, while one is computed. Each may have tens of MiB.
const PREFILL_QUEUE: usize = 2;
/// The code that a link is closed with because of what its peer did; the reason is in words.
const FAULT_CODE: VarInt = VarInt::from_u32(1);
/// Longest reason that is told to the peer: with its header it fits the smallest datagram.
const MAX_REASON_BYTES: usize = 512;

/// An authenticated connection to a neighbour. Closed once both its halves are dropped; what has been sent may then be
/// lost, so that an end waits for its answers first.
#[derive(Debug)]
pub struct Link {
    sender: LinkSender,
    receiver: LinkReceiver,
}

/// Held by the halves alone: when it goes, so does the connection.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<Core>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.connection.close(CLOSE_CODE, b"it no longer needs the link");
    }
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) peer: Peer,
    pub(super) connection: Connection,
    /// Why its address was taken, at the end that dialled.
    pub(super) choice: String,
    pub(super) shared: Shared,
    /// Why the link ended, where this end found out by more than the connection's end.
    failure: OnceLock<LinkError>,
    prefill: Mutex<Option<SendStream>>,
    decode: Mutex<Option<SendStream>>,
    /// Number of decode frames that want to be written; prefill frames wait until it is zero.
    pub(super) decode_waiting: watch::Sender<usize>,
}

impl Link {
    pub(super) fn start(connection: Connection, peer: Peer, choice: String, shared: &Shared) -> Link {
        connection.set_send_window(config::send_window(connection.min_rtt()));
        let core = Arc::new(Core {
            peer,
            connection,
            choice,
            shared: shared.clone(),
            failure: OnceLock::new(),
            prefill: Mutex::new(None),
            decode: Mutex::new(None),
            decode_waiting: watch::Sender::new(0),
        });
        let (decode_sender, decode) = mpsc::channel(DECODE_QUEUE);
        let (prefill_sender, prefill) = mpsc::channel(PREFILL_QUEUE);
        let queues = Arc::new(std::sync::Mutex::new(Queues::new(decode_sender, prefill_sender)));
        shared.tasks.spawn(receive::receive_streams(core.clone(), queues));
        let handle = Arc::new(Handle(core));
        Link { sender: LinkSender::new(handle.clone()), receiver: LinkReceiver::new(handle, decode, prefill) }
    }

    /// Who is at the other end, as its certificate says.
    pub fn peer(&self) -> &Peer {
        self.sender.peer()
    }

    /// The other end's address.
    pub fn remote_address(&self) -> SocketAddr {
        self.sender.remote_address()
    }

    /// The round trip, as last measured.
    pub fn rtt(&self) -> Duration {
        self.sender.rtt()
    }

    /// Why this address was taken and no other, for people; empty at the end that was dialled.
    pub fn choice(&self) -> &str {
        self.sender.choice()
    }

    /// The two halves, which may live in different tasks.
    pub fn split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }
}

impl Core {
    /// The stream that frames of a kind are sent on, once the first has opened it.
    pub(super) fn outgoing(&self, kind: StepKind) -> &Mutex<Option<SendStream>> {
        match kind {
            StepKind::Prefill => &self.prefill,
            StepKind::Decode => &self.decode,
        }
    }

    /// Why the link is no more.
    pub(super) fn error(&self, error: quinn::ConnectionError) -> LinkError {
        match self.failure.get() {
            Some(failure) => failure.clone(),
            None => LinkError::from_connection(&self.peer, error),
        }
    }

    /// Closes the link for a reason that is told to both ends.
    pub(super) fn fail(&self, failure: LinkError, told: &str) {
        // The first failure is the cause of those after it.
        let _ = self.failure.set(failure);
        self.connection.close(FAULT_CODE, shortened(told));
    }

    pub(super) fn malformed(&self, error: FrameError) {
        let told = format!("malformed frame: {error}");
        self.fail(LinkError::Malformed { peer: self.peer.clone(), error }, &told);
    }
}

fn shortened(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON_BYTES)]
}

impl Handle {
    pub(super) fn close(&self, reason: &str) {
        self.0.connection.close(CLOSE_CODE, shortened(reason));
    }
}

/// The first byte of a stream.
pub(super) const fn mark(kind: StepKind) -> u8 {
    match kind {
        StepKind::Prefill => 1,
        StepKind::Decode => 2,
    }
}

//! Why a link could not be made, or is no more.

use std::net::SocketAddr;

use quinn::{ConnectionError, TransportErrorCode};

use crate::control::PROTOCOL_VERSION;
use crate::frame::FrameError;
use crate::ids::Peer;

/// Why a link could not be made, or is no more.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LinkError {
    /// The socket could not be opened.
    #[error("cannot use UDP {addr} for the data plane: {reason}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What is wrong.
        reason: String,
    },
    /// The peer answers at none of its addresses.
    #[error("cannot reach {peer} over UDP: {reason}")]
    Unreachable {
        /// Who.
        peer: Peer,
        /// What happened at each address.
        reason: String,
    },
    /// One end does not believe that the other is who it should be.
    #[error("{peer} is not authenticated: {reason}")]
    Untrusted {
        /// Who.
        peer: Peer,
        /// What TLS said.
        reason: String,
    },
    /// The two ends have no protocol version in common.
    #[error(
        "{peer} does not speak protocol version {PROTOCOL_VERSION} of the data plane; install the same release of \
         Brigade on both"
    )]
    Version {
        /// Who.
        peer: Peer,
    },
    /// The peer has closed the link, and said why.
    #[error("{peer} closed the link: {reason}")]
    ClosedByPeer {
        /// Who.
        peer: Peer,
        /// What it said.
        reason: String,
    },
    /// The path is gone, or the peer is.
    #[error("the link to {peer} broke: {reason}")]
    Lost {
        /// Who.
        peer: Peer,
        /// What happened.
        reason: String,
    },
    /// The peer sent something that is no frame; the link is closed.
    #[error("{peer} broke the protocol: {error}")]
    Malformed {
        /// Who.
        peer: Peer,
        /// What is wrong with the frame.
        error: FrameError,
    },
    /// The frame to be sent is not one; nothing was sent.
    #[error("cannot send a frame: {0}")]
    Unsendable(#[from] FrameError),
    /// A frame's sending was given up half way, which ends the link.
    #[error("the link to {peer} was closed because a frame was given up half way")]
    Interrupted {
        /// Who.
        peer: Peer,
    },
    /// The link was closed on this side.
    #[error("the link to {peer} is closed")]
    Closed {
        /// Who.
        peer: Peer,
    },
}

/// TLS's "no application protocol" alert, as QUIC carries it: the two ends have no version in common.
fn is_version(code: TransportErrorCode) -> bool {
    code == TransportErrorCode::crypto(120)
}

/// Whether the code stands for a TLS alert.
fn is_alert(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// Longest reason of a peer that is repeated.
const MAX_REASON_CHARS: usize = 300;

fn told(reason: &[u8]) -> String {
    String::from_utf8_lossy(reason).chars().take(MAX_REASON_CHARS).collect()
}

impl LinkError {
    pub(crate) fn from_connection(peer: &Peer, error: ConnectionError) -> LinkError {
        let peer = peer.clone();
        match error {
            ConnectionError::TransportError(error) if is_version(error.code) => LinkError::Version { peer },
            ConnectionError::TransportError(error) if is_alert(error.code) => {
                LinkError::Untrusted { peer, reason: error.reason }
            }
            ConnectionError::ConnectionClosed(close) if is_version(close.error_code) => {
                LinkError::Version { peer }
            }
            ConnectionError::ConnectionClosed(close) if is_alert(close.error_code) => {
                let reason = format!("it does not accept our certificate ({})", told(&close.reason));
                LinkError::Untrusted { peer, reason }
            }
            ConnectionError::ApplicationClosed(close) => {
                LinkError::ClosedByPeer { peer, reason: told(&close.reason) }
            }
            ConnectionError::LocallyClosed => LinkError::Closed { peer },
            ConnectionError::TimedOut => {
                LinkError::Lost { peer, reason: "nothing was heard from it for 5 seconds".to_owned() }
            }
            // An end that closed while its window was full, or that has started anew, answers like this.
            ConnectionError::Reset => {
                LinkError::Lost { peer, reason: "it no longer knows of the link".to_owned() }
            }
            other => LinkError::Lost { peer, reason: other.to_string() },
        }
    }
}

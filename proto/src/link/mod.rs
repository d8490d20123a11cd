//! The data plane: QUIC links that carry frames between neighbours.
//!
//! A [`Transport`] is one UDP socket that both dials and accepts; a [`Link`] is one authenticated connection. Decode
//! and prefill frames travel on a stream each, and a decode frame never waits behind a prefill frame: not in the sender
//! (which writes a large frame in pieces and lets others pass), not on the wire (stream priority), and not in the
//! receiver (a queue each, decode first). What a frame means, and whether its fence is the active one, is the caller's
//! business. The same socket may give deliveries of weights ([`crate::delivery`]), on connections of their own.

mod config;
mod congestion;
mod connection;
mod dial;
mod error;
mod path;
mod probe;
mod receive;
mod send;
mod transport;

pub(crate) use config::SOCKET_BUFFER_BYTES;
pub use connection::Link;
pub use error::LinkError;
pub use probe::Probed;
pub use receive::LinkReceiver;
pub use send::{LinkSender, LinkStats};
pub use transport::Transport;

//! The sending half of a link: frames onto a stream per kind of step, decode first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{ConnectionError, SendStream, WriteError};
use tokio::sync::watch;

use super::connection::{Core, Handle, mark};
use super::error::LinkError;
use crate::frame::{self, FrameLengths, FrameLimits};
use crate::ids::Peer;
use crate::step::{Frame, StepKind};

/// Bytes that are written at once: a decode frame passes a prefill frame between two pieces of that, and memory is
/// given back by the piece as the peer acknowledges it.
const PIECE_BYTES: usize = 64 << 10;
/// No limit of our own on what is sent: it is the receiver's plan that counts.
const UNLIMITED: FrameLimits = FrameLimits { max_header_bytes: usize::MAX, max_payload_bytes: usize::MAX };

/// How a link is doing, as the sending end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStats {
    /// The round trip, as last measured.
    pub rtt: Duration,
    /// Bytes sent in datagrams since the link was made.
    pub sent_bytes: u64,
    /// Bytes received in datagrams since then.
    pub received_bytes: u64,
    /// Packets sent since then.
    pub sent_packets: u64,
    /// Those of them that had to be sent again.
    pub lost_packets: u64,
    /// Largest datagram that the path is known to carry, in bytes.
    pub datagram_bytes: u16,
    /// What may be under way, in bytes.
    pub congestion_window: u64,
}

/// The sending half of a link. Clones share it.
#[derive(Clone, Debug)]
pub struct LinkSender(Arc<Handle>);

impl LinkSender {
    pub(super) fn new(handle: Arc<Handle>) -> LinkSender {
        LinkSender(handle)
    }

    /// Sends a frame, after those of its kind whose sending began before. Returns how long that took: to the point
    /// where no more than a window of all that was sent (1 to 16 MiB, by the round trip) is not acknowledged.
    ///
    /// A future that is dropped before it ends closes the link, since half a frame may be on its way.
    ///
    /// # Errors
    /// Where the frame is not consistent, and then nothing is sent; or the link is no more.
    pub async fn send(&self, frame: &Frame) -> Result<Duration, LinkError> {
        let started = Instant::now();
        let (header, payload) = frame::encode(frame)?;
        let prefix = FrameLengths::prefix(&header, &payload, &UNLIMITED)?;
        let core = &self.0.0;
        // One piece where it is small: each piece may have to wait for room.
        let head = Bytes::from([prefix.as_slice(), &header].concat());
        let parts = [head, payload];
        let passing = (frame.kind() == StepKind::Decode).then(|| Passing::new(&core.decode_waiting));
        let sent = core.write(frame.kind(), parts).await;
        drop(passing);
        match sent {
            Ok(()) => Ok(started.elapsed()),
            // A stream that the peer has stopped or that never opens is a link that has ended, or is about to.
            Err(Broken::Connection(error)) => Err(core.error(error)),
            Err(Broken::Stopped) => {
                let reason = "it takes no more frames".to_owned();
                Err(LinkError::ClosedByPeer { peer: core.peer.clone(), reason })
            }
            Err(Broken::Gone) => Err(LinkError::Closed { peer: core.peer.clone() }),
        }
    }

    /// Closes the link; the peer is told `reason`.
    pub fn close(&self, reason: &str) {
        self.0.close(reason);
    }

    /// Waits until the link is no more, and says why.
    pub async fn closed(&self) -> LinkError {
        let core = &self.0.0;
        let error = core.connection.closed().await;
        core.error(error)
    }

    /// Who is at the other end, as its certificate says.
    pub fn peer(&self) -> &Peer {
        &self.0.0.peer
    }

    /// The other end's address.
    pub fn remote_address(&self) -> SocketAddr {
        let addr = self.0.0.connection.remote_address();
        match addr.ip().to_canonical() {
            std::net::IpAddr::V4(ip) => SocketAddr::new(ip.into(), addr.port()),
            std::net::IpAddr::V6(_) => addr,
        }
    }

    /// The round trip, as last measured.
    pub fn rtt(&self) -> Duration {
        self.0.0.connection.rtt()
    }

    /// Why this address was taken and no other, for people; empty at the end that was dialled.
    pub fn choice(&self) -> &str {
        &self.0.0.choice
    }

    /// How the link is doing.
    pub fn stats(&self) -> LinkStats {
        let stats = self.0.0.connection.stats();
        let path = stats.path;
        LinkStats {
            rtt: path.rtt,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_packets: path.sent_packets,
            lost_packets: path.lost_packets,
            datagram_bytes: path.current_mtu,
            congestion_window: path.cwnd,
        }
    }
}

/// A decode frame that wants to be written, while it lives.
struct Passing<'a>(&'a watch::Sender<usize>);

impl<'a> Passing<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Passing<'a> {
        waiting.send_modify(|count| *count += 1);
        Passing(waiting)
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A frame of which a part may be on its way; dropped before [`Half::done`], it ends the link.
struct Half<'a>(Option<&'a Core>);

impl Half<'_> {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        if let Some(core) = self.0 {
            core.fail(LinkError::Interrupted { peer: core.peer.clone() }, "a frame was given up half way");
        }
    }
}

/// Why a frame was not written.
enum Broken {
    Connection(ConnectionError),
    Stopped,
    Gone,
}

impl From<WriteError> for Broken {
    fn from(error: WriteError) -> Broken {
        match error {
            WriteError::ConnectionLost(error) => Broken::Connection(error),
            WriteError::Stopped(_) => Broken::Stopped,
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Broken::Gone,
        }
    }
}

impl Core {
    async fn write(&self, kind: StepKind, parts: [Bytes; 2]) -> Result<(), Broken> {
        let mut slot = self.outgoing(kind).lock().await;
        let mut decode_waiting = self.decode_waiting.subscribe();
        let half = Half(Some(self));
        let written = async {
            let stream = self.opened(&mut slot, kind).await?;
            for mut part in parts {
                while !part.is_empty() {
                    if kind == StepKind::Prefill {
                        // Fails only without a sender, and `self` has it.
                        let _ = decode_waiting.wait_for(|waiting| *waiting == 0).await;
                    }
                    stream.write_chunk(part.split_to(part.len().min(PIECE_BYTES))).await?;
                }
            }
            Ok(())
        };
        let written = written.await;
        half.done();
        written
    }

    /// The stream of a kind, which the first frame of that kind opens.
    async fn opened<'a>(
        &self,
        slot: &'a mut Option<SendStream>,
        kind: StepKind,
    ) -> Result<&'a mut SendStream, Broken> {
        if slot.is_none() {
            let mut stream = self.connection.open_uni().await.map_err(Broken::Connection)?;
            // The larger number goes first.
            let priority = match kind {
                StepKind::Decode => 1,
                StepKind::Prefill => 0,
            };
            stream.set_priority(priority).map_err(|_| Broken::Gone)?;
            stream.write_all(&[mark(kind)]).await?;
            *slot = Some(stream);
        }
        slot.as_mut().ok_or(Broken::Gone)
    }
}

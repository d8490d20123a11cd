//! Asking whether the other end of a link is there, without making one.
//!
//! Two questions go out at once. A handshake, which only the peer itself can answer: it is given up as soon as it is
//! answered, before either end holds a link. And a bare datagram, which nobody answers: but where no process has the port
//! any more, the machine says so within a round trip, while a handshake could only wait.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{ClientConfig, Endpoint};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::dial::{MAX_CANDIDATES, attempt};
use super::error::LinkError;
use super::transport::CLOSE_CODE;
use crate::ids::Peer;

/// How long a bare datagram waits for the machine's word before it is sent again: one may be lost.
const AGAIN: Duration = Duration::from_millis(200);

/// What a probe has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// The peer is there.
    Here,
    /// It is not: its machine says that nothing listens there, or somebody else answers.
    Gone,
    /// Nobody has answered in time.
    Silent,
}

/// Probes `peer` at all of `candidates`. Only what is found out at `home` can say that it is gone: other addresses may
/// be other machines' as well.
pub(super) async fn probe(
    endpoint: &Endpoint,
    config: &ClientConfig,
    peer: &Peer,
    home: Option<SocketAddr>,
    candidates: &[SocketAddr],
    patience: Duration,
) -> Probed {
    let asked = async {
        tokio::select! {
            probed = handshakes(endpoint, config, peer, home, candidates) => probed,
            () = refused(home) => Probed::Gone,
        }
    };
    timeout(patience, asked).await.unwrap_or(Probed::Silent)
}

async fn handshakes(
    endpoint: &Endpoint,
    config: &ClientConfig,
    peer: &Peer,
    home: Option<SocketAddr>,
    candidates: &[SocketAddr],
) -> Probed {
    let candidates = candidates.iter().take(MAX_CANDIDATES);
    let mut attempts: FuturesUnordered<_> =
        candidates.map(|&addr| async move { (addr, attempt(endpoint, config, peer, addr).await) }).collect();
    while let Some((addr, outcome)) = attempts.next().await {
        match outcome {
            Ok(connection) => {
                connection.close(CLOSE_CODE, b"it was a probe");
                return Probed::Here;
            }
            Err(LinkError::Untrusted { .. } | LinkError::Version { .. }) if home == Some(addr) => {
                return Probed::Gone;
            }
            Err(_) => {}
        }
    }
    // The machine may still say that nothing listens.
    std::future::pending().await
}

/// Ends once the machine at `home` says that no process has the port.
async fn refused(home: Option<SocketAddr>) {
    let Some(home) = home else {
        return std::future::pending().await;
    };
    let Ok(socket) = towards(home).await else {
        return std::future::pending().await;
    };
    let is_refusal = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    loop {
        // Too short to be a packet: who does listen drops it.
        if socket.send(&[0]).await.is_err_and(|error| is_refusal(&error)) {
            return;
        }
        if let Ok(Err(error)) = timeout(AGAIN, socket.recv(&mut [0])).await {
            if is_refusal(&error) {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn towards(home: SocketAddr) -> io::Result<UdpSocket> {
    let any = match home {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(home).await?;
    Ok(socket)
}

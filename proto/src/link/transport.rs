//! The socket of the data plane: accepts links, and dials them.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{ClientConfig, Connection, Endpoint, Incoming, TokioRuntime, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config;
use super::connection::Link;
use super::dial::{self, confirm_chosen};
use super::error::LinkError;
use super::probe::{self, Probed};
use crate::delivery::{Delivered, Shelf, Source, serve};
use crate::frame::FrameLimits;
use crate::identity::{Alpn, TransportIdentity, peer_of};
use crate::ids::Peer;

/// Links that wait to be taken: one per neighbour and deployment, with room for several deployments.
const ACCEPT_QUEUE: usize = 32;
/// Most handshakes at a time: each costs a signature, and strangers can start them.
const MAX_HANDSHAKES: usize = 64;
/// How long a handshake may take, with the choice among paths that follows it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long closed connections may take to tell their peers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The code that links are closed with; the reason is in words.
pub(super) const CLOSE_CODE: VarInt = VarInt::from_u32(0);

/// One UDP socket that dials and accepts links. Clones share it; once the last is dropped, its links are closed.
#[derive(Clone, Debug)]
pub struct Transport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    client: ClientConfig,
    delivery_client: ClientConfig,
    local: SocketAddr,
    accepted: Mutex<mpsc::Receiver<Link>>,
    delivered: Arc<Delivered>,
    shared: Shared,
}

/// What every link of a transport has a hand on.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    limits: Arc<RwLock<FrameLimits>>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Shared {
    pub(super) fn limits(&self) -> FrameLimits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport {
    /// Opens the socket at `addr`: port 0 takes any, and `[::]` takes IPv4 too. Frames larger than `limits` are not
    /// accepted on any link. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the socket cannot be opened, or the identity gives no TLS configuration.
    pub fn bind(
        addr: SocketAddr,
        identity: TransportIdentity,
        limits: FrameLimits,
    ) -> Result<Transport, LinkError> {
        Transport::open(addr, &identity, limits, &[Alpn::Link], None)
    }

    /// The same, where deliveries are had, too, from `shelf`.
    ///
    /// # Errors
    /// As [`Transport::bind`].
    pub fn bind_with_shelf(
        addr: SocketAddr,
        identity: TransportIdentity,
        limits: FrameLimits,
        shelf: Arc<dyn Shelf>,
    ) -> Result<Transport, LinkError> {
        Transport::open(addr, &identity, limits, &[Alpn::Link, Alpn::Delivery], Some(shelf))
    }

    /// A socket for deliveries alone.
    ///
    /// # Errors
    /// As [`Transport::bind`].
    pub fn bind_shelf(
        addr: SocketAddr,
        identity: TransportIdentity,
        shelf: Arc<dyn Shelf>,
    ) -> Result<Transport, LinkError> {
        Transport::open(addr, &identity, FrameLimits::HEADERS_ONLY, &[Alpn::Delivery], Some(shelf))
    }

    fn open(
        addr: SocketAddr,
        identity: &TransportIdentity,
        limits: FrameLimits,
        services: &[Alpn],
        shelf: Option<Arc<dyn Shelf>>,
    ) -> Result<Transport, LinkError> {
        let failed = |reason: String| LinkError::Bind { addr, reason };
        let server = config::server(identity, services).map_err(failed)?;
        let client = config::client(identity, Alpn::Link).map_err(failed)?;
        let delivery_client = config::client(identity, Alpn::Delivery).map_err(failed)?;
        let endpoint = config::socket(addr)
            .and_then(|socket| {
                Endpoint::new(config::endpoint(), Some(server), socket, Arc::new(TokioRuntime))
            })
            .map_err(|error| failed(error.to_string()))?;
        let local = endpoint.local_addr().map_err(|error| failed(error.to_string()))?;
        let shared = Shared {
            limits: Arc::new(RwLock::new(limits)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        let (sender, accepted) = mpsc::channel(ACCEPT_QUEUE);
        let delivered = Arc::new(Delivered::default());
        let shelf = shelf.map(|shelf| (shelf, delivered.clone()));
        shared.tasks.spawn(accept(endpoint.clone(), sender, shelf, shared.clone()));
        let accepted = Mutex::new(accepted);
        Ok(Transport(Arc::new(Inner {
            endpoint,
            client,
            delivery_client,
            local,
            accepted,
            delivered,
            shared,
        })))
    }

    /// The address that the socket has, with its true port.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// Makes a link to `peer`, which may be at any of `candidates` (of which the first 32 count): all are tried at
    /// once, and of those that answer in time the one with the shortest round trip is taken, or the first of those that
    /// are about as short. Ends within about 10 seconds.
    ///
    /// # Errors
    /// Where none answers, or who answers is not `peer` or speaks another version.
    pub async fn dial(&self, peer: &Peer, candidates: &[SocketAddr]) -> Result<Link, LinkError> {
        let (connection, choice) = dial::dial(&self.0.endpoint, &self.0.client, peer, candidates).await?;
        Ok(Link::start(connection, peer.clone(), choice, &self.0.shared))
    }

    /// Makes a connection for deliveries from `peer`, likewise.
    ///
    /// # Errors
    /// As [`Transport::dial`].
    pub async fn dial_source(&self, peer: &Peer, candidates: &[SocketAddr]) -> Result<Source, LinkError> {
        let dialled = dial::dial(&self.0.endpoint, &self.0.delivery_client, peer, candidates);
        let (connection, _) = dialled.await?;
        Ok(Source::new(peer.clone(), connection, self.0.delivered.clone()))
    }

    /// What deliveries over this socket come to.
    pub fn delivered(&self) -> Arc<Delivered> {
        self.0.delivered.clone()
    }

    /// Asks for at most `patience` whether `peer` is at any of `candidates` (of which the first 32 count), without making
    /// a link. That it is gone can only be found out at `home`, where it certainly was.
    pub async fn probe(
        &self,
        peer: &Peer,
        home: Option<SocketAddr>,
        candidates: &[SocketAddr],
        patience: Duration,
    ) -> Probed {
        probe::probe(&self.0.endpoint, &self.0.client, peer, home, candidates, patience).await
    }

    /// The next link that another end has made; `None` once the transport is closed. Dropping the future loses none.
    pub async fn accept(&self) -> Option<Link> {
        self.0.accepted.lock().await.recv().await
    }

    /// Replaces the limits of frames, on the links that stand too.
    pub fn set_limits(&self, limits: FrameLimits) {
        *self.0.shared.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Closes every link and the socket; all tasks have ended when it returns. Frames still under way are lost.
    pub async fn close(&self) {
        self.0.shut_down();
        self.0.shared.tasks.close();
        self.0.shared.tasks.wait().await;
        // A peer that does not answer needs no longer telling.
        let _ = timeout(CLOSE_TIMEOUT, self.0.endpoint.wait_idle()).await;
    }
}

impl Inner {
    fn shut_down(&self) {
        self.shared.shutdown.cancel();
        self.endpoint.close(CLOSE_CODE, b"it is shutting down");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Admits whoever comes and can prove who it is, until the endpoint is closed.
async fn accept(
    endpoint: Endpoint,
    links: mpsc::Sender<Link>,
    shelf: Option<(Arc<dyn Shelf>, Arc<Delivered>)>,
    shared: Shared,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (links, shelf) = (links.clone(), shelf.clone());
        let admission = shared.clone();
        shared.tasks.spawn(async move {
            let remote = incoming.remote_address();
            let admitted = timeout(HANDSHAKE_TIMEOUT, admit(incoming));
            let outcome = admission.shutdown.run_until_cancelled(admitted).await;
            drop(permit);
            match outcome {
                Some(Ok(Ok((connection, peer)))) if is_delivery(&connection) => {
                    tracing::debug!(%peer, %remote, "asks for weights");
                    if let Some((shelf, delivered)) = shelf {
                        serve((connection, peer), shelf, delivered, admission.shutdown.clone()).await;
                    }
                }
                Some(Ok(Ok((connection, peer)))) => {
                    let link = Link::start(connection, peer, String::new(), &admission);
                    // Nobody takes links of a transport that is closed.
                    let _ = admission.shutdown.run_until_cancelled(links.send(link)).await;
                }
                Some(Ok(Err(reason))) => tracing::debug!(%remote, reason, "link not accepted"),
                Some(Err(_)) => tracing::debug!(%remote, "link not completed in time"),
                None => {}
            }
        });
    }
}

/// A connection whose other end has proven who it is and has chosen this path.
async fn admit(incoming: Incoming) -> Result<(Connection, Peer), String> {
    let connection = incoming.await.map_err(|error| error.to_string())?;
    let peer = match authenticated(&connection) {
        Ok(peer) => peer,
        Err(reason) => {
            connection.close(CLOSE_CODE, reason.as_bytes());
            return Err(reason);
        }
    };
    confirm_chosen(&connection).await?;
    Ok((connection, peer))
}

/// What the two ends have agreed on.
fn is_delivery(connection: &Connection) -> bool {
    let agreed = connection.handshake_data().and_then(|any| any.downcast::<HandshakeData>().ok());
    agreed.and_then(|agreed| agreed.protocol).is_some_and(|protocol| protocol == Alpn::Delivery.protocol())
}

fn authenticated(connection: &Connection) -> Result<Peer, String> {
    let chain =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let cert = chain.as_ref().and_then(|chain| chain.first()).ok_or("it showed no certificate")?;
    peer_of(cert).map_err(|error| error.to_string())
}

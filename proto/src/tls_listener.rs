//! Accepts TCP connections, does their TLS handshake, and feeds them to a gRPC server.
//!
//! A connection that fails is that connection's trouble alone: nothing that a stranger does ends the accept loop.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};

use crate::control_server::ServeError;
use crate::identity::peer_of;
use crate::ids::Peer;

/// Most connections at a time: one per worker, with room for machines that join and for probes.
const MAX_CONNECTIONS: usize = 1024;
/// Most handshakes at a time: each costs a signature, and strangers can start them.
const MAX_HANDSHAKES: usize = 64;
/// How long a handshake may take: several round trips over a bad line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long who shows no certificate may stay: enrolling and a probe take less than a second.
const ANONYMOUS_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an accept that failed, as it does while the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections may take to end of their own will once serving ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// How often an idle connection is asked for a sign of life, and how long it may take: a machine that went away
/// without a word is noticed after their sum, and one that is merely busy is not lost.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(8);
/// Calls of one connection at a time: an attach stream, and a few probes.
const MAX_STREAMS: u32 = 16;
/// Most bytes of a request's headers; ours have a few hundred.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// A gRPC server with the settings of both sides' control planes.
pub(crate) fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
}

/// Who is at the other end of a connection; in every request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) remote: SocketAddr,
    /// As its certificate says; `None` without one.
    pub(crate) peer: Option<Peer>,
}

/// Connections whose handshake is done.
pub(crate) struct TlsListener {
    connections: mpsc::Receiver<Connection>,
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl TlsListener {
    /// Accepts from now on, until `shutdown`.
    pub(crate) fn start(
        listener: TcpListener,
        tls: ServerConfig,
        shutdown: CancellationToken,
    ) -> TlsListener {
        let (sender, connections) = mpsc::channel(MAX_HANDSHAKES);
        let tasks = TaskTracker::new();
        let accept = Accept {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            cut: CancellationToken::new(),
            sender,
        };
        let cut = accept.cut.clone();
        let handshakes = tasks.clone();
        tasks.spawn(async move {
            shutdown.run_until_cancelled(accept.run(listener, &handshakes)).await;
        });
        TlsListener { connections, tasks, cut }
    }

    /// Serves `router` until `shutdown`, then lets connections end and cuts those that do not.
    pub(crate) async fn serve(self, router: Router, shutdown: CancellationToken) -> Result<(), ServeError> {
        let incoming = ReceiverStream::new(self.connections).map(Ok::<_, io::Error>);
        let serving = router.serve_with_incoming_shutdown(incoming, shutdown.cancelled());
        let too_long = async {
            shutdown.cancelled().await;
            sleep(SHUTDOWN_GRACE).await;
            self.cut.cancel();
            std::future::pending().await
        };
        let result = tokio::select! {
            result = serving => result,
            result = too_long => result,
        };
        self.cut.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        result.map_err(|error| ServeError::Transport(chain(&error)))
    }
}

/// An error with its causes, which gRPC's own text leaves out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

struct Accept {
    acceptor: TlsAcceptor,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    cut: CancellationToken,
    sender: mpsc::Sender<Connection>,
}

impl Accept {
    /// Ends only by being dropped.
    async fn run(self, listener: TcpListener, tasks: &TaskTracker) {
        loop {
            let permits = async {
                let connection = self.connections.clone().acquire_owned().await.ok()?;
                Some((connection, self.handshakes.clone().acquire_owned().await.ok()?))
            };
            // The semaphores are never closed.
            let Some((connection_permit, handshake_permit)) = permits.await else {
                return;
            };
            let (stream, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let acceptor = self.acceptor.clone();
            let sender = self.sender.clone();
            let cut = self.cut.clone();
            tasks.spawn(async move {
                let handshake = timeout(HANDSHAKE_TIMEOUT, handshake(acceptor, stream));
                let outcome = cut.run_until_cancelled(handshake).await;
                drop(handshake_permit);
                match outcome {
                    Some(Ok(Ok((stream, peer)))) => {
                        let info = ConnectionInfo { remote, peer };
                        let connection = Connection::new(stream, info, cut.clone(), connection_permit);
                        // A server that has ended takes no more connections.
                        let _ = cut.run_until_cancelled(sender.send(connection)).await;
                    }
                    Some(Ok(Err(error))) => tracing::debug!(%remote, %error, "handshake failed"),
                    Some(Err(_)) => tracing::debug!(%remote, "handshake took too long"),
                    None => {}
                }
            });
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, Option<Peer>)> {
    // Control messages are small and wanted at once.
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let (_, session) = stream.get_ref();
    let peer = match session.peer_certificates().and_then(|chain| chain.first()) {
        Some(cert) => Some(peer_of(cert).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?),
        None => None,
    };
    Ok((stream, peer))
}

/// A TLS connection that ends when it is cut, or when it has been anonymous for too long.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    ended: bool,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: TlsStream<TcpStream>,
        info: ConnectionInfo,
        cut: CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Connection {
        let deadline = info.peer.is_none().then(|| Box::pin(sleep(ANONYMOUS_TIMEOUT)));
        Connection {
            stream,
            info,
            ended: false,
            cut: Box::pin(cut.cancelled_owned()),
            deadline,
            _permit: permit,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ended {
            let late = this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
            this.ended = late || this.cut.as_mut().poll(cx).is_ready();
        }
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

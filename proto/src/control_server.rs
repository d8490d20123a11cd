//! Serves the control plane: enrolling, workers' streams, and `grpc.health.v1`, all on one TLS port.
//!
//! Who a caller is, its certificate says; what it may do, the [`ControlHandler`] decides.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::InvalidMessage;
use crate::control::{Capabilities, EnrolRequest, Enrolment, PROTOCOL_VERSION, ToCoordinator, ToWorker};
use crate::health::Health;
use crate::identity::{CoordinatorIdentity, IdentityError};
use crate::ids::{Peer, WorkerId};
use crate::pb;
use crate::tls_listener::{self, ConnectionInfo, TlsListener};

pub use crate::refusal::{Refusal, RefusalKind};

/// Messages from one worker that wait for the coordinator: a heartbeat a second and a few reports at a time, so that
/// a full queue means a coordinator that has stopped looking. The worker then waits, too.
const INBOX_MESSAGES: usize = 64;
/// Commands to one worker that wait for its connection: a deployment takes three.
const OUTBOX_MESSAGES: usize = 64;
/// Largest message: a load command has under 1 KiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 << 10;
/// How long a worker that attaches may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// What a coordinator does with its callers.
pub trait ControlHandler: Send + Sync + 'static {
    /// A machine with a token wants a certificate.
    ///
    /// # Errors
    /// Where the token is not good; the refusal is told to the machine.
    fn enrol(
        &self,
        request: EnrolRequest,
        remote: SocketAddr,
    ) -> impl Future<Output = Result<Enrolment, Refusal>> + Send;

    /// A worker's stream has begun. Returns soon: the session, of which the handler owns both ends, lives in a task of
    /// the handler's. Dropping the outbox ends the stream.
    ///
    /// # Errors
    /// Where the worker is not welcome; the refusal is told to it.
    fn attach(&self, session: AttachSession) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// A worker's stream, as the coordinator holds it.
#[derive(Debug)]
pub struct AttachSession {
    /// Who, as its certificate says.
    pub worker: WorkerId,
    /// The address that the worker dialled from.
    pub remote: SocketAddr,
    /// What it can do.
    pub hello: Capabilities,
    /// What the worker says after that. Ends with `None` where the worker ended its side, or the server shuts down;
    /// an error is the last thing that comes.
    pub inbox: mpsc::Receiver<Result<ToCoordinator, SessionError>>,
    /// What the worker is told. What is in it when serving ends is still sent.
    pub outbox: mpsc::Sender<ToWorker>,
}

/// Why a worker's stream ended.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    /// The connection is gone.
    #[error("the worker's stream broke: {0}")]
    Lost(String),
    /// The worker said something that it may not say.
    #[error("the worker broke the protocol: {0}")]
    Malformed(#[from] InvalidMessage),
}

/// Why serving could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The identity gives no TLS configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The gRPC server failed.
    #[error("cannot serve: {0}")]
    Transport(String),
}

/// Serves `handler` on `listener` until `shutdown` is cancelled. Streams then end once what their outboxes hold has
/// been sent; a connection that takes longer than a second is cut. All tasks have ended when it returns.
///
/// # Errors
/// Where the identity gives no TLS configuration, or the server fails as a whole; a failing connection is not an error.
pub async fn serve_control<H: ControlHandler>(
    listener: TcpListener,
    identity: &CoordinatorIdentity,
    handler: Arc<H>,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let tls = identity.tls().control_server()?;
    let sessions = TaskTracker::new();
    let service = Service { handler, sessions: sessions.clone(), shutdown: shutdown.clone() };
    let service = pb::control_server::ControlServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let router = tls_listener::server().add_service(service).add_service(health.service());
    let result = TlsListener::start(listener, tls, shutdown.clone()).serve(router, shutdown).await;
    sessions.close();
    sessions.wait().await;
    result
}

struct Service<H> {
    handler: Arc<H>,
    sessions: TaskTracker,
    shutdown: CancellationToken,
}

fn caller<T>(request: &Request<T>) -> Result<ConnectionInfo, Refusal> {
    let info = request.extensions().get::<ConnectionInfo>().cloned();
    info.ok_or_else(|| Refusal::new(RefusalKind::Internal, "the connection does not say who is calling"))
}

fn check_version(theirs: u32) -> Result<(), Refusal> {
    if theirs == PROTOCOL_VERSION {
        return Ok(());
    }
    let message = format!(
        "the worker speaks protocol version {theirs}, this coordinator {PROTOCOL_VERSION}; install the same release \
         of Brigade on both"
    );
    Err(Refusal::new(RefusalKind::Version, message))
}

fn malformed(error: InvalidMessage) -> Refusal {
    Refusal::new(RefusalKind::Malformed, format!("the request is malformed: {error}"))
}

#[tonic::async_trait]
impl<H: ControlHandler> pb::control_server::Control for Service<H> {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<pb::ToWorker, Status>> + Send>>;

    async fn enrol(&self, request: Request<pb::EnrolRequest>) -> Result<Response<pb::Enrolment>, Status> {
        let info = caller(&request)?;
        let request = request.into_inner();
        check_version(request.protocol_version)?;
        let request = EnrolRequest::try_from(request).map_err(malformed)?;
        let enrolment = self.handler.enrol(request, info.remote).await?;
        Ok(Response::new(enrolment.into()))
    }

    async fn attach(
        &self,
        request: Request<Streaming<pb::ToCoordinator>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let info = caller(&request)?;
        let Some(Peer::Worker(worker)) = info.peer else {
            let message = "only a worker's certificate may attach; enrol with a join token to get one";
            return Err(Refusal::new(RefusalKind::NotAllowed, message).into());
        };
        let mut stream = request.into_inner();
        let hello = timeout(HELLO_TIMEOUT, hello(&mut stream)).await.map_err(|_| {
            Refusal::new(RefusalKind::Malformed, "the worker did not say who it is within 10 seconds")
        })??;
        let (inbox_sender, inbox) = mpsc::channel(INBOX_MESSAGES);
        let (outbox, outbox_receiver) = mpsc::channel(OUTBOX_MESSAGES);
        let session = AttachSession { worker, remote: info.remote, hello, inbox, outbox };
        self.handler.attach(session).await?;
        self.sessions.spawn(receive(stream, inbox_sender, self.shutdown.clone()));
        Ok(Response::new(Box::pin(send(outbox_receiver, self.shutdown.clone()))))
    }
}

/// The first message of a worker's stream.
async fn hello(stream: &mut Streaming<pb::ToCoordinator>) -> Result<Capabilities, Status> {
    let absent = || Refusal::new(RefusalKind::Malformed, "the worker's first message was not `hello`");
    let first = stream.message().await?.ok_or_else(absent)?;
    if let Some(pb::to_coordinator::Message::Hello(hello)) = &first.message {
        check_version(hello.protocol_version)?;
    }
    match ToCoordinator::try_from(first).map_err(malformed)? {
        ToCoordinator::Hello(capabilities) => Ok(capabilities),
        _ => Err(absent().into()),
    }
}

/// Moves a worker's messages to its inbox until either end is gone, or the server ends.
async fn receive(
    mut stream: Streaming<pb::ToCoordinator>,
    inbox: mpsc::Sender<Result<ToCoordinator, SessionError>>,
    shutdown: CancellationToken,
) {
    let pump = async {
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => ToCoordinator::try_from(message).map_err(SessionError::from),
                Ok(None) => return,
                Err(status) => Err(SessionError::Lost(tls_listener::chain(&status))),
            };
            let last = message.is_err();
            if inbox.send(message).await.is_err() || last {
                return;
            }
        }
    };
    tokio::select! {
        () = pump => {}
        () = inbox.closed() => {}
        () = shutdown.cancelled() => {}
    }
}

/// What is sent to a worker: its outbox until that is dropped, or until the server ends and the outbox is empty.
fn send(
    outbox: mpsc::Receiver<ToWorker>,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<pb::ToWorker, Status>> + Send {
    futures_util::stream::unfold((outbox, shutdown), |(mut outbox, shutdown)| async move {
        let message = tokio::select! {
            biased;
            message = outbox.recv() => message,
            () = shutdown.cancelled() => outbox.try_recv().ok(),
        };
        message.map(|message| (Ok(message.into()), (outbox, shutdown)))
    })
}

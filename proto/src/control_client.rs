//! Dials the control plane: a worker enrols once with a token, and attaches with its certificate from then on.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::io::AsyncBufReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::InvalidMessage;
use crate::control::{Capabilities, EnrolRequest, ToCoordinator, ToWorker};
use crate::control_server::MAX_MESSAGE_BYTES;
use crate::identity::{
    IdentityError, JoinToken, TransportIdentity, WorkerIdentity, WorkerKey, enrolment_client, server_name,
};
use crate::ids::Peer;
use crate::pb;
use crate::pb::control_client::ControlClient;
use crate::refusal::{Refusal, RefusalKind, refusal_of};
use crate::tls_listener::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, chain};

/// Commands from the coordinator that wait for the worker: a deployment takes three.
const INBOX_MESSAGES: usize = 64;
/// Reports that wait for the connection: one heartbeat a second, and one report per change of a stage.
const OUTBOX_MESSAGES: usize = 64;
/// How long one address may take to answer, and a coordinator to do its half of a handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most addresses of a name that are tried, one after the other.
const MAX_CANDIDATES: usize = 8;
/// How long the coordinator may take to answer a call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a coordinator could not be talked to, or no longer can.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers there.
    #[error("cannot reach a coordinator at {addr}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        addr: String,
        /// What happened at each address.
        reason: String,
    },
    /// Somebody answers who does not complete a TLS handshake with us.
    #[error("cannot talk to {addr} as a coordinator: {reason}")]
    Handshake {
        /// Where it was looked for.
        addr: String,
        /// What happened.
        reason: String,
    },
    /// The coordinator there has another CA.
    #[error("the coordinator at {addr} is not the one {trust}")]
    WrongCa {
        /// Where it was looked for.
        addr: String,
        /// What the expected CA is known from.
        trust: Trust,
    },
    /// The coordinator does not accept our certificate.
    #[error(
        "the coordinator at {addr} does not accept this machine's certificate ({reason}); join again with a token"
    )]
    CertificateRefused {
        /// Which coordinator.
        addr: String,
        /// What it said.
        reason: String,
    },
    /// The two ends speak different versions of the protocol; the message has both.
    #[error("{message}")]
    Version {
        /// What the coordinator said.
        message: String,
    },
    /// The coordinator says no.
    #[error("the coordinator refused: {0}")]
    Refused(Refusal),
    /// The coordinator has ended the stream.
    #[error("the coordinator ended the stream")]
    Ended,
    /// The connection broke.
    #[error("the connection to the coordinator at {addr} broke: {reason}")]
    Lost {
        /// Which coordinator.
        addr: String,
        /// What happened.
        reason: String,
    },
    /// The coordinator said something that it may not say.
    #[error("the coordinator broke the protocol: {0}")]
    Malformed(#[from] InvalidMessage),
    /// Our own identity cannot be made or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What a coordinator's CA is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The hash in a join token.
    Token,
    /// An earlier enrolment.
    Enrolment,
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trust::Token => "this token was made for",
            Trust::Enrolment => {
                "that this machine's certificate is from; join again with a token of this one"
            }
        })
    }
}

impl ControlError {
    pub(crate) fn from_status(addr: &str, status: &Status) -> ControlError {
        match refusal_of(status) {
            Some(Refusal { kind: RefusalKind::Version, message }) => ControlError::Version { message },
            Some(refusal) => ControlError::Refused(refusal),
            None => ControlError::Lost { addr: addr.to_owned(), reason: chain(status) },
        }
    }

    fn from_tls(addr: &str, trust: Trust, error: &std::io::Error) -> ControlError {
        let addr = addr.to_owned();
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => ControlError::WrongCa { addr, trust },
            Some(rustls::Error::AlertReceived(alert)) => {
                ControlError::CertificateRefused { addr, reason: format!("{alert:?}") }
            }
            Some(rustls::Error::InvalidMessage(_)) => ControlError::Handshake {
                addr,
                reason: "it does not speak TLS; is the port right?".to_owned(),
            },
            _ => ControlError::Handshake { addr, reason: error.to_string() },
        }
    }
}

/// Asks the coordinator at `addr` (`host:port`) for a certificate, under `name`. The coordinator must show the CA that
/// `token` names. Keeping the identity is the caller's business ([`WorkerIdentity::save`]).
///
/// # Errors
/// Where the coordinator cannot be reached, is another than the token's, speaks another version, or refuses.
pub async fn enrol(addr: &str, token: &JoinToken, name: &str) -> Result<WorkerIdentity, ControlError> {
    let key = WorkerKey::generate()?;
    let request =
        EnrolRequest { secret: token.secret.clone(), name: name.to_owned(), csr_der: key.request()? };
    let tls = enrolment_client(token.ca_spki_sha256)?;
    let connection = open(addr, tls, server_name(&Peer::Coordinator)?, Trust::Token).await?;
    let mut client = ControlClient::new(connection.channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = answer(addr, client.enrol(pb::EnrolRequest::from(request))).await?;
    Ok(key.enrolled(answer.into_inner().try_into()?, &token.ca_spki_sha256)?)
}

/// A worker's stream, as the worker holds it.
#[derive(Debug)]
pub struct Attached {
    /// What the coordinator is told. Dropping it ends the worker's side of the stream.
    pub outbox: mpsc::Sender<ToCoordinator>,
    /// What the coordinator says, [`ToWorker::Welcome`] first. An error is the last thing that comes:
    /// [`ControlError::Ended`] where the coordinator has ended the stream.
    pub inbox: mpsc::Receiver<Result<ToWorker, ControlError>>,
    /// Our address, as the coordinator sees it unless it is translated on the way.
    pub local: SocketAddr,
    /// The coordinator's address.
    pub remote: SocketAddr,
    /// Moves messages to `inbox`; ends after the last one, or once `inbox` is dropped.
    pub task: JoinHandle<()>,
}

/// Attaches to the coordinator at `addr` (`host:port`) as `identity`, saying `hello`.
///
/// # Errors
/// Where the coordinator cannot be reached, has another CA, does not accept the certificate, speaks another version, or
/// refuses.
pub async fn attach(
    addr: &str,
    identity: &WorkerIdentity,
    hello: Capabilities,
) -> Result<Attached, ControlError> {
    let connection = connect(addr, &TransportIdentity::from(identity), &Peer::Coordinator).await?;
    let (outbox, outgoing) = mpsc::channel(OUTBOX_MESSAGES);
    let hello = pb::ToCoordinator::from(ToCoordinator::Hello(hello));
    let outgoing = tokio_stream::once(hello).chain(ReceiverStream::new(outgoing).map(Into::into));
    let mut client = ControlClient::new(connection.channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let stream = answer(addr, client.attach(outgoing)).await?.into_inner();
    let (inbox_sender, inbox) = mpsc::channel(INBOX_MESSAGES);
    let task = tokio::spawn(receive(stream, inbox_sender, addr.to_owned()));
    Ok(Attached { outbox, inbox, local: connection.local, remote: connection.remote, task })
}

/// Moves the coordinator's messages to `inbox` until either end is gone.
async fn receive(
    mut stream: Streaming<pb::ToWorker>,
    inbox: mpsc::Sender<Result<ToWorker, ControlError>>,
    addr: String,
) {
    let pump = async {
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => ToWorker::try_from(message).map_err(ControlError::from),
                Ok(None) => Err(ControlError::Ended),
                Err(status) => Err(ControlError::from_status(&addr, &status)),
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
    }
}

/// What a call brings, unless it takes too long.
async fn answer<T>(addr: &str, call: impl Future<Output = Result<T, Status>>) -> Result<T, ControlError> {
    match timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(ControlError::from_status(addr, &status)),
        Err(_) => {
            let reason = format!("it did not answer within {} seconds", ANSWER_TIMEOUT.as_secs());
            Err(ControlError::Lost { addr: addr.to_owned(), reason })
        }
    }
}

/// A gRPC connection over TLS.
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    local: SocketAddr,
    remote: SocketAddr,
}

/// Connects to `peer` at `addr` as `identity`.
pub(crate) async fn connect(
    addr: &str,
    identity: &TransportIdentity,
    peer: &Peer,
) -> Result<Connection, ControlError> {
    open(addr, identity.control_client()?, server_name(peer)?, Trust::Enrolment).await
}

async fn open(
    addr: &str,
    tls: ClientConfig,
    name: ServerName<'static>,
    trust: Trust,
) -> Result<Connection, ControlError> {
    let (stream, local, remote) = dial(addr).await?;
    let stream = match timeout(CONNECT_TIMEOUT, handshake(tls, name, stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(ControlError::from_tls(addr, trust, &error)),
        Err(_) => {
            let reason = format!("no handshake within {} seconds", CONNECT_TIMEOUT.as_secs());
            return Err(ControlError::Handshake { addr: addr.to_owned(), reason });
        }
    };
    // The channel may ask for a connection again after this one has broken; there is none, and its error says so.
    let stream = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    // The scheme is for HTTP's own headers: the stream handed over is TLS already.
    let channel = Endpoint::from_static("http://coordinator.brigade")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| ControlError::Handshake { addr: addr.to_owned(), reason: chain(&error) })?;
    Ok(Connection { channel, local, remote })
}

/// A TCP connection to the first of a host's addresses that answers, with both its ends.
async fn dial(addr: &str) -> Result<(TcpStream, SocketAddr, SocketAddr), ControlError> {
    let unreachable = |reason: String| ControlError::Unreachable { addr: addr.to_owned(), reason };
    let candidates = match timeout(CONNECT_TIMEOUT, lookup_host(addr)).await {
        Ok(Ok(candidates)) => candidates,
        Ok(Err(error)) => return Err(unreachable(format!("{error}; write it as host:port"))),
        Err(_) => return Err(unreachable("its name is not resolved in time".to_owned())),
    };
    let mut failures = Vec::new();
    for candidate in candidates.take(MAX_CANDIDATES) {
        let failure = match timeout(CONNECT_TIMEOUT, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => match ends(&stream) {
                Ok((local, remote)) => return Ok((stream, local, remote)),
                Err(error) => error.to_string(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        failures.push(format!("{candidate}: {failure}"));
    }
    if failures.is_empty() {
        return Err(unreachable("the name has no address".to_owned()));
    }
    Err(unreachable(failures.join("; ")))
}

fn ends(stream: &TcpStream) -> std::io::Result<(SocketAddr, SocketAddr)> {
    // Control messages are small and wanted at once.
    stream.set_nodelay(true)?;
    Ok((stream.local_addr()?, stream.peer_addr()?))
}

/// The TLS handshake, to the point where the server has accepted our certificate: with TLS 1.3 it looks at it after our
/// half is done, and what it thinks comes with the first bytes, which every HTTP/2 server sends unasked.
async fn handshake(
    tls: ClientConfig,
    name: ServerName<'static>,
    stream: TcpStream,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
    if stream.fill_buf().await?.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(stream)
}

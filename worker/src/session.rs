//! The worker's place at its coordinator: enrolling once, and an attach stream that is dialled again when it breaks.

use std::net::SocketAddr;
use std::time::Duration;

use brigade_proto::control::{Capabilities, ToCoordinator, ToWorker};
use brigade_proto::control_client::{Attached, ControlError, attach, enrol};
use brigade_proto::identity::{IdentityError, JoinToken, WorkerIdentity};
use brigade_proto::refusal::RefusalKind;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::addresses::{candidates, interfaces, local_address_towards};
use crate::backoff::Backoff;
use crate::state_dir::StateDir;

/// Happenings on the stream that wait to be handled: whoever takes them never waits for anything slow.
const EVENT_QUEUE: usize = 64;

/// How long a stream that we end may take to say so to the coordinator.
const FAREWELL: Duration = Duration::from_millis(200);

/// What happens between this worker and its coordinator.
#[derive(Debug)]
pub enum SessionEvent {
    /// A stream stands; its first message is a welcome.
    Attached(AttachStream),
    /// The coordinator says something.
    Message(ToWorker),
    /// The stream has ended; it will be dialled again.
    Detached,
    /// There is no use in dialling again.
    Refused(SessionError),
}

/// The worker's end of a stream. Dropping it ends the stream once all of it is sent.
#[derive(Debug)]
pub struct AttachStream {
    /// What the coordinator is told.
    pub outbox: mpsc::Sender<ToCoordinator>,
    /// The coordinator's address.
    pub remote: SocketAddr,
    /// Ends the stream at once, for another one to be dialled.
    pub give_up: CancellationToken,
}

/// Why a worker cannot be attached, and will not be by trying again.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The coordinator does not take this worker's certificate, or is not the one that issued it.
    #[error(
        "{error}; to leave the old coordinator for this one, remove {identity} and join with a new token"
    )]
    Certificate {
        /// What the coordinator said.
        error: ControlError,
        /// The file of the certificate.
        identity: String,
    },
    /// The coordinator says no.
    #[error(transparent)]
    Control(ControlError),
    /// The kept certificate cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The worker was told to end before it was enrolled.
    #[error("the worker ended before it had joined")]
    Interrupted,
    /// There is neither a certificate nor a token.
    #[error(
        "this worker has no certificate in {0} yet: give it a token with --token, BRIGADE_TOKEN or --token-file \
         (`brigade token create` prints one)"
    )]
    NoToken(String),
}

impl SessionError {
    /// Whether the command line is to blame, rather than the world.
    pub fn is_usage(&self) -> bool {
        matches!(self, SessionError::NoToken(_))
    }
}

/// Whether trying again can help.
fn is_passing(error: &ControlError) -> bool {
    match error {
        ControlError::Unreachable { .. }
        | ControlError::Handshake { .. }
        | ControlError::Ended
        | ControlError::Lost { .. }
        | ControlError::Malformed(_) => true,
        ControlError::Refused(refusal) => matches!(refusal.kind, RefusalKind::Busy | RefusalKind::Internal),
        ControlError::WrongCa { .. }
        | ControlError::CertificateRefused { .. }
        | ControlError::Version { .. }
        | ControlError::Identity(_) => false,
    }
}

/// A random number for [`Backoff`]; without one, workers only lose the spread of their waits.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}

/// The identity kept in `state`, or else one that `token` yields, which is then kept there. A coordinator that cannot
/// be reached is tried again until `ending`.
///
/// # Errors
/// Where there is neither, the coordinator refuses the token, or the identity cannot be read or kept.
pub async fn identity(
    coordinator: &str,
    token: Option<&JoinToken>,
    name: &str,
    state: &StateDir,
    ending: &CancellationToken,
) -> Result<WorkerIdentity, SessionError> {
    if let Some(identity) = WorkerIdentity::load(state.path())? {
        if let Some(token) = token
            && identity.ca_spki_sha256()? != token.ca_spki_sha256
        {
            tracing::warn!(
                "the token is of another coordinator than the certificate in {}, and the certificate wins; remove it \
                 to join with the token",
                state.path().display()
            );
        }
        return Ok(identity);
    }
    let Some(token) = token else {
        return Err(SessionError::NoToken(state.path().display().to_string()));
    };
    let mut backoff = Backoff::default();
    loop {
        let enrolled = tokio::select! {
            () = ending.cancelled() => return Err(SessionError::Interrupted),
            enrolled = enrol(coordinator, token, name) => enrolled,
        };
        match enrolled {
            Ok(identity) => {
                identity.save(state.path())?;
                tracing::info!("joined the coordinator at {coordinator} as {}", identity.id());
                return Ok(identity);
            }
            Err(error) if is_passing(&error) => {
                if !pause(&mut backoff, &error, ending).await {
                    return Err(SessionError::Interrupted);
                }
            }
            Err(error) => return Err(SessionError::Control(error)),
        }
    }
}

/// Waits before another try; `false` where the worker ends meanwhile.
async fn pause(backoff: &mut Backoff, error: &ControlError, ending: &CancellationToken) -> bool {
    let wait = backoff.next(random());
    tracing::warn!("{error}; trying again in {:.1} s", wait.as_secs_f64());
    tokio::select! {
        () = ending.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

/// What an attach stream is made with.
#[derive(Clone, Debug)]
pub struct Session {
    /// Where the coordinator is, `host:port`.
    pub coordinator: String,
    /// Who this worker is.
    pub identity: WorkerIdentity,
    /// What it can do; its addresses are found anew with every stream.
    pub capabilities: Capabilities,
    /// Where its data plane listens.
    pub data: SocketAddr,
    /// The file that keeps the identity, for errors.
    pub identity_file: String,
}

impl Session {
    /// Keeps this worker attached until `ending`, or until the coordinator wants nothing of it. Events come out of the
    /// receiver, which must be taken from at all times.
    pub fn start(
        self,
        ending: CancellationToken,
    ) -> (tokio::task::JoinHandle<()>, mpsc::Receiver<SessionEvent>) {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        (tokio::spawn(self.run(events, ending)), receiver)
    }

    async fn run(self, events: mpsc::Sender<SessionEvent>, ending: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let attached = tokio::select! {
                () = ending.cancelled() => return,
                attached = self.attach() => attached,
            };
            let error = match attached {
                Ok(attached) => match serve(attached, &mut backoff, &events, &ending).await {
                    Some(error) => error,
                    None => return,
                },
                Err(error) => error,
            };
            if !is_passing(&error) {
                // The receiver is gone only while the worker ends.
                let _ = events.send(SessionEvent::Refused(self.refused(error))).await;
                return;
            }
            if !pause(&mut backoff, &error, &ending).await {
                return;
            }
        }
    }

    fn refused(&self, error: ControlError) -> SessionError {
        match error {
            ControlError::WrongCa { .. } | ControlError::CertificateRefused { .. } => {
                SessionError::Certificate { error, identity: self.identity_file.clone() }
            }
            error => SessionError::Control(error),
        }
    }

    async fn attach(&self) -> Result<Attached, ControlError> {
        let unreachable = |error: std::io::Error| ControlError::Unreachable {
            addr: self.coordinator.clone(),
            reason: error.to_string(),
        };
        let towards = local_address_towards(&self.coordinator).await.map_err(unreachable)?;
        let here = interfaces().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list this machine's addresses; naming only the one towards the coordinator");
            Vec::new()
        });
        let mut hello = self.capabilities.clone();
        hello.data_addresses = candidates(self.data, towards, &here);
        attach(&self.coordinator, &self.identity, hello).await
    }
}

/// Passes one stream's messages on; why it ended, or `None` where the worker ends.
async fn serve(
    attached: Attached,
    backoff: &mut Backoff,
    events: &mpsc::Sender<SessionEvent>,
    ending: &CancellationToken,
) -> Option<ControlError> {
    let Attached { outbox, mut inbox, remote, task, .. } = attached;
    let give_up = CancellationToken::new();
    let stream = AttachStream { outbox, remote, give_up: give_up.clone() };
    events.send(SessionEvent::Attached(stream)).await.ok()?;
    let error = loop {
        let message = tokio::select! {
            () = ending.cancelled() => break None,
            () = give_up.cancelled() => {
                let reason = "it does not take this worker's reports".to_owned();
                break Some(ControlError::Lost { addr: remote.to_string(), reason });
            }
            message = inbox.recv() => message,
        };
        match message {
            Some(Ok(message)) => {
                if matches!(message, ToWorker::Welcome(_)) {
                    backoff.reset();
                }
                if events.send(SessionEvent::Message(message)).await.is_err() {
                    break None;
                }
            }
            Some(Err(error)) => break Some(error),
            None => break Some(ControlError::Ended),
        }
    };
    if error.is_some() && events.send(SessionEvent::Detached).await.is_err() {
        return None;
    }
    if error.is_none() {
        // What is left in the outbox, such as the farewell, goes out before the coordinator ends its side.
        let last = async { while let Some(Ok(_)) = inbox.recv().await {} };
        let _ = tokio::time::timeout(FAREWELL, last).await;
    }
    drop(inbox);
    if let Err(error) = task.await {
        tracing::error!(%error, "the task of the attach stream ended with a defect");
    }
    error
}

//! The control plane's shell: enrols machines, and turns workers' streams into events of the core.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use brigade_proto::control::{EnrolRequest, Enrolment, ToCoordinator, ToWorker};
use brigade_proto::control_server::{AttachSession, ControlHandler, Refusal, RefusalKind, SessionError};
use brigade_proto::identity::CoordinatorIdentity;
use brigade_proto::ids::WorkerId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::core::CoreEvent;
use crate::membership::SessionId;
use crate::tokens::{TokenRefusal, TokenStore, TokenStoreError};

/// Most letters of a wanted name that go into a worker's id; the rest of a DNS label is for telling equal names apart.
const SLUG_BYTES: usize = 40;
/// Random bytes that tell workers of one name apart.
const SUFFIX_BYTES: usize = 3;

/// Serves workers on behalf of the core.
pub(super) struct Control {
    pub(super) identity: CoordinatorIdentity,
    pub(super) tokens: TokenStore,
    pub(super) events: mpsc::Sender<CoreEvent>,
    pub(super) tasks: TaskTracker,
    pub(super) next_session: AtomicU64,
}

/// A stream that has just begun, as the core takes it over.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) outbox: mpsc::Sender<ToWorker>,
    /// Ends the stream's task.
    pub(super) end: CancellationToken,
}

impl ControlHandler for Control {
    async fn enrol(&self, request: EnrolRequest, remote: SocketAddr) -> Result<Enrolment, Refusal> {
        let internal = |error: String| Refusal::new(RefusalKind::Internal, error);
        let worker = worker_id(&request.name).map_err(internal)?;
        let (tokens, identity) = (self.tokens.clone(), self.identity.clone());
        let id = worker.clone();
        // Files are locked, and a certificate is signed.
        let signed = tokio::task::spawn_blocking(move || {
            tokens.redeem(&request.secret, SystemTime::now()).map_err(refusal)?;
            let certificate = identity.sign_worker(&request.csr_der, &id);
            certificate.map_err(|error| Refusal::new(RefusalKind::Malformed, error.to_string()))
        });
        let certificate_der =
            signed.await.map_err(|error| internal(error.to_string()))?.inspect_err(|refused| {
                tracing::warn!(%remote, "refused to enrol a worker: {refused}");
            })?;
        tracing::info!(%worker, %remote, "enrolled a worker");
        Ok(Enrolment { worker, certificate_der, ca_der: self.identity.ca_der().to_vec() })
    }

    async fn attach(&self, session: AttachSession) -> Result<(), Refusal> {
        let stopping = || Refusal::new(RefusalKind::Busy, "the coordinator is shutting down");
        let AttachSession { worker, remote, hello, inbox, outbox } = session;
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let end = CancellationToken::new();
        let session = Session { id, outbox, end: end.clone() };
        let attached = CoreEvent::Attached { session, worker, remote, hello: Box::new(hello) };
        self.events.send(attached).await.map_err(|_| stopping())?;
        self.tasks.spawn(pump(id, inbox, self.events.clone(), end));
        Ok(())
    }
}

/// Moves what a worker says to the core, until either ends.
async fn pump(
    session: SessionId,
    mut inbox: mpsc::Receiver<Result<ToCoordinator, SessionError>>,
    events: mpsc::Sender<CoreEvent>,
    end: CancellationToken,
) {
    let messages = async {
        loop {
            match inbox.recv().await {
                Some(Ok(message)) => {
                    if events.send(CoreEvent::Said { session, message }).await.is_err() {
                        return None;
                    }
                }
                Some(Err(error)) => return Some(error.to_string()),
                None => return Some("the worker ended its stream".into()),
            }
        }
    };
    let reason = tokio::select! {
        reason = messages => reason,
        // The core knows already.
        () = end.cancelled() => None,
    };
    if let Some(reason) = reason {
        // An error means that the core has ended, and every session with it.
        let _ = events.send(CoreEvent::Detached { session, reason }).await;
    }
}

fn refusal(error: TokenStoreError) -> Refusal {
    let kind = match &error {
        TokenStoreError::Refused(TokenRefusal::Unknown | TokenRefusal::Revoked) => RefusalKind::BadToken,
        TokenStoreError::Refused(TokenRefusal::Expired) => RefusalKind::ExpiredToken,
        TokenStoreError::Refused(TokenRefusal::Used) => RefusalKind::UsedToken,
        _ => RefusalKind::Internal,
    };
    Refusal::new(kind, error.to_string())
}

/// A new worker's id: its wanted name as far as an id may hold it, and something random.
fn worker_id(name: &str) -> Result<WorkerId, String> {
    let mut suffix = [0; SUFFIX_BYTES];
    getrandom::fill(&mut suffix).map_err(|error| format!("failed to draw a random id: {error}"))?;
    let suffix: String = suffix.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = match slug(name) {
        slug if slug.is_empty() => format!("worker-{suffix}"),
        slug => format!("{slug}-{suffix}"),
    };
    WorkerId::try_from(id).map_err(|error| error.to_string())
}

/// Lower-case letters, digits and single dashes of `name`; may be empty.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for letter in name.chars() {
        if slug.len() >= SLUG_BYTES {
            break;
        }
        match letter.to_ascii_lowercase() {
            letter @ ('a'..='z' | '0'..='9') => slug.push(letter),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
    }
    slug.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_of_names() {
        for (name, expected) in [
            ("w1", "w1"),
            ("Anna's Mac Studio", "anna-s-mac-studio"),
            ("--x--", "x"),
            ("Größe", "gr-e"),
            ("日本", ""),
        ] {
            assert_eq!(slug(name), expected, "{name}");
        }
        let long = worker_id(&"long name ".repeat(50)).unwrap();
        assert!(long.as_str().len() <= WorkerId::MAX_BYTES);
        assert!(worker_id("日本").unwrap().as_str().starts_with("worker-"));
        assert_ne!(worker_id("w").unwrap(), worker_id("w").unwrap());
    }
}

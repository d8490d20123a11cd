//! Dialling: all of a peer's addresses at once, and the best of those that answer.
//!
//! The end that dials says which path it takes by a byte on a bidirectional stream, and the other end answers with the
//! same byte. So no end holds a link that the other has not chosen; and who dials knows that its own certificate was
//! accepted, which TLS 1.3 does not tell it.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::time::{Instant, sleep_until, timeout};

use super::error::LinkError;
use super::transport::CLOSE_CODE;
use crate::identity::dns_name;
use crate::ids::Peer;

/// Most addresses tried; machines have a handful.
pub(super) const MAX_CANDIDATES: usize = 32;
/// How long an address may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long others may still answer after the first: the first to answer a handshake is not always the fastest after
/// it, but one that takes this much longer is not.
const WINDOW: Duration = Duration::from_millis(30);
/// The byte that says, and confirms, that a path is taken.
const CHOSEN: u8 = 1;

/// A connection to `peer` on its best path.
pub(super) async fn dial(
    endpoint: &Endpoint,
    config: &ClientConfig,
    peer: &Peer,
    candidates: &[SocketAddr],
) -> Result<Connection, LinkError> {
    let (mut answered, mut failures) = answers(endpoint, config, peer, candidates).await;
    answered.sort_by_key(Connection::rtt);
    let mut answered = answered.into_iter();
    while let Some(connection) = answered.next() {
        match timeout(DIAL_TIMEOUT, choose(&connection, peer)).await {
            Ok(Ok(())) => {
                answered.for_each(|slower| slower.close(CLOSE_CODE, b"another path is faster"));
                return Ok(connection);
            }
            Ok(Err(error)) => failures.push((connection.remote_address(), error)),
            Err(_) => {
                let reason = "it did not confirm the path".to_owned();
                let error = LinkError::Lost { peer: peer.clone(), reason };
                failures.push((connection.remote_address(), error));
            }
        }
    }
    Err(worst(peer, failures))
}

type Failures = Vec<(SocketAddr, LinkError)>;

/// Connections to those candidates that answer soon, and why the others do not.
async fn answers(
    endpoint: &Endpoint,
    config: &ClientConfig,
    peer: &Peer,
    candidates: &[SocketAddr],
) -> (Vec<Connection>, Failures) {
    let mut attempts: FuturesUnordered<_> = candidates
        .iter()
        .take(MAX_CANDIDATES)
        .map(|&addr| async move { (addr, attempt(endpoint, config, peer, addr).await) })
        .collect();
    let (mut answered, mut failures) = (Vec::new(), Failures::new());
    let mut deadline = Instant::now() + DIAL_TIMEOUT;
    loop {
        tokio::select! {
            outcome = attempts.next() => match outcome {
                Some((_, Ok(connection))) => {
                    deadline = deadline.min(Instant::now() + WINDOW);
                    answered.push(connection);
                }
                Some((addr, Err(error))) => failures.push((addr, error)),
                None => return (answered, failures),
            },
            () = sleep_until(deadline) => {
                if answered.is_empty() {
                    failures.extend(silent(peer, candidates, &failures));
                }
                return (answered, failures);
            }
        }
    }
}

/// The failures of candidates that have not answered at all.
fn silent(peer: &Peer, candidates: &[SocketAddr], failures: &Failures) -> Failures {
    let reason = format!("no answer within {} seconds", DIAL_TIMEOUT.as_secs());
    let error = LinkError::Lost { peer: peer.clone(), reason };
    let silent = candidates.iter().take(MAX_CANDIDATES);
    let silent = silent.filter(|addr| !failures.iter().any(|(failed, _)| failed == *addr));
    silent.map(|&addr| (addr, error.clone())).collect()
}

/// A connection to one address.
pub(super) async fn attempt(
    endpoint: &Endpoint,
    config: &ClientConfig,
    peer: &Peer,
    addr: SocketAddr,
) -> Result<Connection, LinkError> {
    let connecting = endpoint
        .connect_with(config.clone(), addr, &dns_name(peer))
        .map_err(|error| LinkError::Unreachable { peer: peer.clone(), reason: error.to_string() })?;
    connecting.await.map_err(|error| LinkError::from_connection(peer, error))
}

/// Tells the other end that this path is taken, and waits until it has heard.
async fn choose(connection: &Connection, peer: &Peer) -> Result<(), LinkError> {
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        send.write_all(&[CHOSEN]).await.ok()?;
        send.finish().ok()?;
        let mut byte = [0];
        receive.read_exact(&mut byte).await.ok()?;
        (byte == [CHOSEN]).then_some(())
    };
    match exchange.await {
        Some(()) => Ok(()),
        None => {
            // Closing would replace the reason that the connection already has.
            let reason = connection.close_reason();
            connection.close(CLOSE_CODE, b"the path was not confirmed");
            Err(LinkError::from_connection(peer, reason.unwrap_or(ConnectionError::LocallyClosed)))
        }
    }
}

/// The other end of [`choose`]; ends with an error where the path was not taken.
pub(super) async fn confirm_chosen(connection: &Connection) -> Result<(), String> {
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    let mut byte = [0];
    receive.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
    if byte != [CHOSEN] {
        connection.close(CLOSE_CODE, b"the first stream did not choose the path");
        return Err("its first stream did not choose the path".to_owned());
    }
    send.write_all(&byte).await.map_err(|error| error.to_string())?;
    send.finish().map_err(|error| error.to_string())
}

/// What a dial failed with: who is there and is wrong says more than who is not there.
fn worst(peer: &Peer, failures: Failures) -> LinkError {
    let telling = failures
        .iter()
        .find(|(_, error)| matches!(error, LinkError::Version { .. } | LinkError::Untrusted { .. }));
    if let Some((_, error)) = telling {
        return error.clone();
    }
    let reason = if failures.is_empty() {
        "no address of it is known".to_owned()
    } else {
        let each: Vec<String> = failures.iter().map(|(addr, error)| format!("{addr}: {error}")).collect();
        each.join("; ")
    };
    LinkError::Unreachable { peer: peer.clone(), reason }
}

//! Dialling: all of a peer's addresses at once, and the best of those that answer.
//!
//! The handshake's own round trip says little of a fast path: both ends compute in it, for one path after the other. So
//! where several answer, each is asked a few times by a byte on a bidirectional stream, which the other end answers with
//! the same byte. Another byte says which path is taken, and is answered too: so no end holds a link that the other has
//! not chosen, and who dials knows that its own certificate was accepted, which TLS 1.3 does not tell it.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::error::LinkError;
use super::path::{Answer, best, told};
use super::transport::CLOSE_CODE;
use crate::identity::dns_name;
use crate::ids::Peer;

/// Most addresses tried; machines have a handful.
pub(super) const MAX_CANDIDATES: usize = 32;
/// How long an address may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long others may still answer after the first: as many times as long as that took, since the first to answer a
/// handshake is not always the fastest after it, but one that takes this much longer is not.
const LATER: u32 = 4;
/// The least and the most of that. The least leaves a busy machine time for several handshakes; whatever a link is made
/// for waits as long for an address that leads nowhere.
const WINDOW: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(200));
/// How often a path is asked for its round trip.
const ROUNDS: usize = 5;
/// How long that may take: a path that is too slow for all rounds has a round trip of which the handshake tells enough.
const MEASURING: Duration = Duration::from_millis(20);
/// The byte that asks for an answer alone.
const ASKED: u8 = 0;
/// The byte that says, and confirms, that a path is taken.
const CHOSEN: u8 = 1;

/// A connection that stands, to the address at a place of the list.
struct Path {
    place: usize,
    connection: Connection,
    /// Once it has been asked.
    streams: Option<(SendStream, RecvStream)>,
}

/// A connection to `peer` on its best path, and why that is it.
pub(super) async fn dial(
    endpoint: &Endpoint,
    config: &ClientConfig,
    peer: &Peer,
    candidates: &[SocketAddr],
) -> Result<(Connection, String), LinkError> {
    let candidates = &candidates[..candidates.len().min(MAX_CANDIDATES)];
    let (mut paths, mut failures) = answers(endpoint, config, peer, candidates).await;
    if paths.len() > 1 {
        join_all(paths.iter_mut().map(|path| timeout(MEASURING, path.measure()))).await;
    }
    let round_trip = |path: &Path| (path.place, path.connection.min_rtt());
    while let Some(place) = best(paths.iter().map(round_trip)) {
        let Some(at) = paths.iter().position(|path| path.place == place) else { break };
        let mut path = paths.swap_remove(at);
        let took = path.connection.min_rtt();
        match timeout(DIAL_TIMEOUT, path.choose(peer)).await {
            Ok(Ok(())) => {
                let choice = choice(candidates, (place, took), &paths, &failures);
                let slower = paths.into_iter().map(|path| path.connection);
                slower.for_each(|slower| slower.close(CLOSE_CODE, b"another path is faster"));
                return Ok((path.connection, choice));
            }
            Ok(Err(error)) => failures.push((candidates[place], error)),
            Err(_) => {
                let reason = "it did not confirm the path".to_owned();
                failures.push((candidates[place], LinkError::Lost { peer: peer.clone(), reason }));
            }
        }
    }
    Err(worst(peer, failures))
}

type Failures = Vec<(SocketAddr, LinkError)>;

/// Why the path to the address at a place was taken.
fn choice(
    candidates: &[SocketAddr],
    taken: (usize, Duration),
    slower: &[Path],
    failures: &Failures,
) -> String {
    let (place, took) = taken;
    let others =
        candidates.iter().enumerate().filter(|(other, _)| *other != place).map(|(other, address)| {
            let failed = || failures.iter().find(|(failed, _)| failed == address);
            let answer = match slower.iter().find(|path| path.place == other) {
                Some(path) => Answer::After(path.connection.min_rtt()),
                None => match failed() {
                    Some((_, LinkError::Untrusted { .. } | LinkError::Version { .. })) => Answer::Stranger,
                    Some(_) => Answer::Failed,
                    None => Answer::Late,
                },
            };
            (*address, answer)
        });
    told((candidates[place], took), &others.collect::<Vec<_>>())
}

/// Connections to those candidates that answer soon, and why the others do not.
async fn answers(
    endpoint: &Endpoint,
    config: &ClientConfig,
    peer: &Peer,
    candidates: &[SocketAddr],
) -> (Vec<Path>, Failures) {
    let mut attempts: FuturesUnordered<_> = candidates
        .iter()
        .enumerate()
        .map(|(place, &addr)| async move { (place, attempt(endpoint, config, peer, addr).await) })
        .collect();
    let (mut answered, mut failures) = (Vec::new(), Failures::new());
    let began = Instant::now();
    let mut deadline = began + DIAL_TIMEOUT;
    loop {
        tokio::select! {
            outcome = attempts.next() => match outcome {
                Some((place, Ok(connection))) => {
                    let now = Instant::now();
                    deadline = deadline.min(now + ((now - began) * LATER).clamp(WINDOW.0, WINDOW.1));
                    answered.push(Path { place, connection, streams: None });
                }
                Some((place, Err(error))) => failures.push((candidates[place], error)),
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
    let silent = candidates.iter().filter(|addr| !failures.iter().any(|(failed, _)| failed == *addr));
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

impl Path {
    /// Asks a few times for an answer, so that the connection knows its round trip.
    async fn measure(&mut self) -> Option<()> {
        let (send, receive) = self.streams().await?;
        for _ in 0..ROUNDS {
            send.write_all(&[ASKED]).await.ok()?;
            receive.read_exact(&mut [0]).await.ok()?;
        }
        Some(())
    }

    /// Tells the other end that this path is taken, and waits until it has heard.
    async fn choose(&mut self, peer: &Peer) -> Result<(), LinkError> {
        if self.exchange().await.is_some() {
            return Ok(());
        }
        // Closing would replace the reason that the connection already has.
        let reason = self.connection.close_reason();
        self.connection.close(CLOSE_CODE, b"the path was not confirmed");
        Err(LinkError::from_connection(peer, reason.unwrap_or(ConnectionError::LocallyClosed)))
    }

    async fn exchange(&mut self) -> Option<()> {
        let (send, receive) = self.streams().await?;
        send.write_all(&[CHOSEN]).await.ok()?;
        send.finish().ok()?;
        // An answer to a question that was given up may come first.
        for _ in 0..=ROUNDS {
            let mut byte = [0];
            receive.read_exact(&mut byte).await.ok()?;
            if byte == [CHOSEN] {
                return Some(());
            }
        }
        None
    }

    async fn streams(&mut self) -> Option<&mut (SendStream, RecvStream)> {
        if self.streams.is_none() {
            self.streams = Some(self.connection.open_bi().await.ok()?);
        }
        self.streams.as_mut()
    }
}

/// The other end of [`Path::measure`] and [`Path::choose`]; ends with an error where the path was not taken.
pub(super) async fn confirm_chosen(connection: &Connection) -> Result<(), String> {
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    loop {
        let mut byte = [0];
        receive.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        if byte != [ASKED] && byte != [CHOSEN] {
            connection.close(CLOSE_CODE, b"the first stream did not choose the path");
            return Err("its first stream did not choose the path".to_owned());
        }
        send.write_all(&byte).await.map_err(|error| error.to_string())?;
        if byte == [CHOSEN] {
            return send.finish().map_err(|error| error.to_string());
        }
    }
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

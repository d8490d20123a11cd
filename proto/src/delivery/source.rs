//! The end of a delivery connection that asks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use brigade_shard::chunks::Chunks;
use brigade_shard::model_file::Fingerprint;
use brigade_shard::units::Bytes as Size;
use quinn::{Connection, RecvStream};
use tokio::time::timeout;

use super::Delivered;
use super::document::{Document, Edition};
use super::message::{Answer, Ask, CachedModel, Checked, Holder, Unreadable, answered, ask};
use super::serve::{HERE, NOT_HERE, UNREADABLE};
use crate::ids::Peer;
use crate::link::LinkError;

/// How long an answer may take: a page of hashes needs as much as a quarter of a GiB to be read, from a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long checking a cache may take: a TB at 300 MB/s.
const VERIFYING: Duration = Duration::from_secs(3600);
/// How long nothing of a chunk may come: a disk that has to wake, and a lost datagram.
const SILENCE: Duration = Duration::from_secs(10);

/// A machine that can be asked for weights.
#[derive(Clone, Debug)]
pub struct Source {
    peer: Peer,
    connection: Connection,
    delivered: Arc<Delivered>,
}

/// Why a source gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// It cannot be reached, or the connection broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It says nothing.
    #[error("{peer} said nothing for {} s", .silence.as_secs())]
    Silent {
        /// Who.
        peer: Peer,
        /// For how long.
        silence: Duration,
    },
    /// It has no answer.
    #[error("{peer} does not have it")]
    NotHere {
        /// Who.
        peer: Peer,
    },
    /// It failed to find one.
    #[error("{peer}: {reason}")]
    Failed {
        /// Who.
        peer: Peer,
        /// What it says.
        reason: String,
    },
    /// What it says is no answer.
    #[error("{peer} broke the protocol: {problem}")]
    Malformed {
        /// Who.
        peer: Peer,
        /// What is wrong.
        problem: String,
    },
}

impl Source {
    pub(crate) fn new(peer: Peer, connection: Connection, delivered: Arc<Delivered>) -> Source {
        Source { peer, connection, delivered }
    }

    /// Who it is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The round trip to it, as last measured.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// The model's outline; its signature is for the caller to check.
    ///
    /// # Errors
    /// [`DeliveryError`]; so everywhere.
    pub async fn outline(&self, model: &Fingerprint) -> Result<Document, DeliveryError> {
        self.document(model, Ask::Outline).await
    }

    /// A page of hashes; its signature is for the caller to check.
    pub async fn hashes(
        &self,
        model: &Fingerprint,
        edition: Edition,
        page: u32,
    ) -> Result<Document, DeliveryError> {
        self.document(model, Ask::Hashes { edition, page }).await
    }

    async fn document(&self, model: &Fingerprint, ask: Ask) -> Result<Document, DeliveryError> {
        match self.ask(model, ask).await? {
            Answer::Document(document) => Ok(document),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The chunks that it has.
    pub async fn holdings(&self, model: &Fingerprint) -> Result<Vec<Range<u32>>, DeliveryError> {
        match self.ask(model, Ask::Holdings).await? {
            Answer::Holdings(ranges) => Ok(ranges),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Others that may have some.
    pub async fn holders(&self, model: &Fingerprint) -> Result<Vec<Holder>, DeliveryError> {
        match self.ask(model, Ask::Holders).await? {
            Answer::Holders(holders) => Ok(holders),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The models of its cache; the coordinator's to ask, as the next two.
    pub async fn kept(&self) -> Result<Vec<CachedModel>, DeliveryError> {
        match self.ask(&Fingerprint::new([0; 32]), Ask::Kept).await? {
            Answer::Kept(models) => Ok(models),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Has a model removed from its cache; what that freed.
    pub async fn remove(&self, model: &Fingerprint) -> Result<Size, DeliveryError> {
        match self.ask(model, Ask::Remove).await? {
            Answer::Removed(bytes) => Ok(bytes),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Has a model's chunks in its cache checked.
    pub async fn verify(&self, model: &Fingerprint) -> Result<Checked, DeliveryError> {
        match self.ask(model, Ask::Verify).await? {
            Answer::Verified(checked) => Ok(checked),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Begins to take the chunks with these numbers, of which there is at least one.
    pub async fn chunks<'s>(
        &'s self,
        model: &Fingerprint,
        chunks: &'s Chunks,
        numbers: Range<u32>,
    ) -> Result<ChunkStream<'s>, DeliveryError> {
        let ask = Ask::Chunks { first: numbers.start, count: numbers.end - numbers.start };
        let (answer, stream) = self.asking(model, ask).await?;
        match answer {
            Answer::Chunks { busy } => Ok(ChunkStream { source: self, chunks, stream, numbers, busy }),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn ask(&self, model: &Fingerprint, ask: Ask) -> Result<Answer, DeliveryError> {
        Ok(self.asking(model, ask).await?.0)
    }

    async fn asking(
        &self,
        model: &Fingerprint,
        question: Ask,
    ) -> Result<(Answer, RecvStream), DeliveryError> {
        let patience = if question == Ask::Verify { VERIFYING } else { PATIENCE };
        let asking = async {
            let (mut send, mut receive) =
                self.connection.open_bi().await.map_err(|error| self.lost(error))?;
            if ask(&mut send, model, question).await.is_err() {
                return Err(self.ended());
            }
            // A stream that is stopped has its answer, or none will come.
            let _ = send.finish();
            let answer =
                answered(&mut receive, &self.delivered).await.map_err(|error| self.unreadable(&error))?;
            Ok((answer, receive))
        };
        let silent = || DeliveryError::Silent { peer: self.peer.clone(), silence: patience };
        match timeout(patience, asking).await.map_err(|_| silent())?? {
            (Answer::NotHere, _) => Err(DeliveryError::NotHere { peer: self.peer.clone() }),
            (Answer::Failed(reason), _) => Err(DeliveryError::Failed { peer: self.peer.clone(), reason }),
            answered => Ok(answered),
        }
    }

    fn lost(&self, error: quinn::ConnectionError) -> DeliveryError {
        LinkError::from_connection(&self.peer, error).into()
    }

    /// Why nothing more can be written or read.
    fn ended(&self) -> DeliveryError {
        match self.connection.close_reason() {
            Some(error) => self.lost(error),
            None => self.malformed("it gave up an answer"),
        }
    }

    fn unreadable(&self, error: &Unreadable) -> DeliveryError {
        match error {
            Unreadable::Stream(_) => self.ended(),
            other => self.malformed(&other.to_string()),
        }
    }

    fn unexpected(&self, answer: &Answer) -> DeliveryError {
        let kind = format!("{answer:?}");
        self.malformed(&format!(
            "its answer is one to another question: {}",
            kind.chars().take(40).collect::<String>()
        ))
    }

    fn malformed(&self, problem: &str) -> DeliveryError {
        DeliveryError::Malformed { peer: self.peer.clone(), problem: problem.to_owned() }
    }
}

/// Chunks that are on their way.
#[derive(Debug)]
pub struct ChunkStream<'s> {
    source: &'s Source,
    chunks: &'s Chunks,
    stream: RecvStream,
    /// Those that are still to come.
    numbers: Range<u32>,
    busy: bool,
}

impl ChunkStream<'_> {
    /// Whether answers are computed where they come from.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// The next chunk's number, and its bytes in `buffer`; `false` with it where the source does not have it. `None` after
    /// the last one.
    ///
    /// # Errors
    /// Where the connection breaks, the source fails, or says nothing for some seconds.
    pub async fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<(u32, bool)>, DeliveryError> {
        let Some(number) = self.numbers.next() else {
            return Ok(None);
        };
        let source = self.source;
        let Some(chunk) = self.chunks.get(number) else {
            return Err(source.malformed("there is no such chunk"));
        };
        let mut kind = [0];
        self.fill(&mut kind).await?;
        match kind[0] {
            HERE => {
                buffer.resize(chunk.bytes as usize, 0);
                self.fill(buffer).await?;
                Ok(Some((number, true)))
            }
            NOT_HERE => Ok(Some((number, false))),
            UNREADABLE => {
                let mut len = [0; 2];
                self.fill(&mut len).await?;
                let mut reason = vec![0; usize::from(u16::from_le_bytes(len))];
                self.fill(&mut reason).await?;
                let reason = String::from_utf8_lossy(&reason).into_owned();
                Err(DeliveryError::Failed { peer: source.peer.clone(), reason })
            }
            _ => Err(source.malformed("what it sends is no chunk")),
        }
    }

    /// Fills `out`, piece by piece, each of which may take [`SILENCE`].
    async fn fill(&mut self, out: &mut [u8]) -> Result<(), DeliveryError> {
        let mut filled = 0;
        while filled < out.len() {
            let silent = || DeliveryError::Silent { peer: self.source.peer.clone(), silence: SILENCE };
            let read = timeout(SILENCE, self.stream.read(&mut out[filled..])).await.map_err(|_| silent())?;
            match read {
                Ok(Some(read)) => {
                    self.source.delivered.came(read);
                    filled += read;
                }
                Ok(None) | Err(_) => return Err(self.source.ended()),
            }
        }
        Ok(())
    }
}

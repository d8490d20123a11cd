//! Questions and answers, and how they lie on a stream: each behind its length, four bytes, little-endian.

use std::ops::Range;

use brigade_shard::model_file::{Fingerprint, MAX_OUTLINE_BYTES};
use brigade_shard::units::Bytes as Size;
use bytes::Bytes;
use prost::Message as _;
use quinn::{RecvStream, SendStream};

use super::Delivered;
use super::document::{Document, Edition};
use crate::convert::InvalidMessage;
use crate::convert::fields::{MAX_NAME_BYTES, addresses, peer, reason, required, shortened, text};
use crate::ids::Peer;
use crate::pb;

/// Bytes of the length before a message.
const PREFIX_BYTES: usize = 4;
/// Longest question.
const MAX_ASK_BYTES: usize = 1024;
/// Longest answer: an outline, with what is around it.
const MAX_ANSWER_BYTES: usize = MAX_OUTLINE_BYTES + 4096;
/// Most ranges of chunks in an answer: a worker has one for every run of tensors that its shards had.
const MAX_RANGES: usize = 65_536;
/// Most models, and most damaged chunks, that an answer tells of.
const MAX_KEPT: usize = 256;
const MAX_DAMAGED: usize = 256;
/// Most machines in an answer.
const MAX_HOLDERS: usize = 256;

/// A question about a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What is in it?
    Outline,
    /// What must its chunks be?
    Hashes {
        /// Of which contents.
        edition: Edition,
        /// Which page of them.
        page: u32,
    },
    /// Which chunks are there?
    Holdings,
    /// Who else may have some?
    Holders,
    /// These chunks, one after another.
    Chunks {
        /// The first.
        first: u32,
        /// How many; at least 1.
        count: u32,
    },
    /// Which models are in the cache? Asked by the coordinator, and about none in particular; so are the next two.
    Kept,
    /// Remove the model from the cache.
    Remove,
    /// Check the model's chunks in the cache.
    Verify,
}

/// A model in a worker's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// Which.
    pub model: Fingerprint,
    /// What its header calls it.
    pub name: String,
    /// What of it is there.
    pub bytes: Size,
    /// All of its tensors.
    pub model_bytes: Size,
    /// When it was last used, in seconds since 1970, where that is known.
    pub used_at: Option<u64>,
    /// Whether a stage is loaded from it.
    pub in_use: bool,
}

/// What checking a model's chunks came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Chunks that are there and right.
    pub chunks: u32,
    /// Those that were not right, in words; they are there no more.
    pub damaged: Vec<String>,
}

/// A machine that may have some of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub peer: Peer,
    /// Where its deliveries may be had.
    pub addresses: Vec<std::net::SocketAddr>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is nothing of that here.
    NotHere,
    /// There may be, but it cannot be told.
    Failed(String),
    /// To [`Ask::Outline`] and [`Ask::Hashes`].
    Document(Document),
    /// To [`Ask::Holdings`].
    Holdings(Vec<Range<u32>>),
    /// To [`Ask::Holders`].
    Holders(Vec<Holder>),
    /// To [`Ask::Chunks`]: they follow, each behind a byte that says whether it is there.
    Chunks {
        /// Whether answers are computed, or steps sent, where they come from: then they are to be asked for gently.
        busy: bool,
    },
    /// To [`Ask::Kept`].
    Kept(Vec<CachedModel>),
    /// To [`Ask::Remove`]: what was freed.
    Removed(Size),
    /// To [`Ask::Verify`].
    Verified(Checked),
}

/// Writes a question.
pub(super) async fn ask(
    stream: &mut SendStream,
    model: &Fingerprint,
    ask: Ask,
) -> Result<(), quinn::WriteError> {
    use pb::ask::What;
    let what = match ask {
        Ask::Outline => What::Outline(pb::AskOutline {}),
        Ask::Hashes { edition, page } => What::Hashes(pb::AskHashes { edition: edition.0, page }),
        Ask::Holdings => What::Holdings(pb::AskHoldings {}),
        Ask::Holders => What::Holders(pb::AskHolders {}),
        Ask::Chunks { first, count } => What::Chunks(pb::AskChunks { first, count }),
        Ask::Kept => What::Kept(pb::AskKept {}),
        Ask::Remove => What::Remove(pb::AskRemove {}),
        Ask::Verify => What::Verify(pb::AskVerify {}),
    };
    let message = pb::Ask { fingerprint: model.as_bytes().to_vec(), what: Some(what) };
    write(stream, &message).await
}

/// Reads a question.
pub(super) async fn asked(stream: &mut RecvStream) -> Result<(Fingerprint, Ask), Unreadable> {
    use pb::ask::What;
    let message: pb::Ask = read(stream, MAX_ASK_BYTES).await?;
    let fingerprint = <[u8; 32]>::try_from(&message.fingerprint[..])
        .map_err(|_| InvalidMessage::new("ask.fingerprint", "does not have 32 bytes"))?;
    let ask = match required("ask.what", message.what)? {
        What::Outline(_) => Ask::Outline,
        What::Hashes(asked) => Ask::Hashes { edition: Edition(asked.edition), page: asked.page },
        What::Holdings(_) => Ask::Holdings,
        What::Holders(_) => Ask::Holders,
        What::Chunks(pb::AskChunks { first, count }) => {
            if count == 0 || first.checked_add(count).is_none() {
                return Err(InvalidMessage::new("ask.chunks", "are none, or beyond all numbers").into());
            }
            Ask::Chunks { first, count }
        }
        What::Kept(_) => Ask::Kept,
        What::Remove(_) => Ask::Remove,
        What::Verify(_) => Ask::Verify,
    };
    Ok((Fingerprint::new(fingerprint), ask))
}

/// Writes an answer.
pub(super) async fn answer(
    stream: &mut SendStream,
    answer: Answer,
    delivered: &Delivered,
) -> Result<(), quinn::WriteError> {
    use pb::answer::What;
    let what = match answer {
        Answer::NotHere => What::NotHere(pb::NotHere {}),
        Answer::Failed(reason) => What::Failed(pb::DeliveryFailed { reason: shortened(reason) }),
        Answer::Document(document) => What::Document(pb::Document {
            edition: document.edition.0,
            content: document.content.to_vec(),
            signature: document.signature.to_vec(),
        }),
        Answer::Holdings(ranges) => {
            let range = |range: Range<u32>| pb::ChunkRange { first: range.start, end: range.end };
            What::Holdings(pb::Holdings { ranges: ranges.into_iter().take(MAX_RANGES).map(range).collect() })
        }
        Answer::Holders(holders) => {
            let holder = |holder: Holder| pb::Holder {
                peer: Some(holder.peer.into()),
                addresses: holder.addresses.iter().map(ToString::to_string).collect(),
            };
            What::Holders(pb::Holders {
                holders: holders.into_iter().take(MAX_HOLDERS).map(holder).collect(),
            })
        }
        Answer::Chunks { busy } => What::Chunks(pb::Chunks { busy }),
        Answer::Kept(models) => {
            let kept = |kept: CachedModel| pb::KeptModel {
                fingerprint: kept.model.as_bytes().to_vec(),
                name: named(kept.name),
                bytes: kept.bytes.0,
                model_bytes: kept.model_bytes.0,
                used_at: kept.used_at.unwrap_or_default(),
                in_use: kept.in_use,
            };
            What::Kept(pb::Kept { models: models.into_iter().take(MAX_KEPT).map(kept).collect() })
        }
        Answer::Removed(bytes) => What::RemovedBytes(bytes.0),
        Answer::Verified(checked) => What::Verified(pb::Verified {
            chunks: checked.chunks,
            damaged: checked.damaged.into_iter().take(MAX_DAMAGED).map(shortened).collect(),
        }),
    };
    let message = pb::Answer { what: Some(what) };
    delivered.went(PREFIX_BYTES + message.encoded_len());
    write(stream, &message).await
}

/// Reads an answer.
pub(super) async fn answered(stream: &mut RecvStream, delivered: &Delivered) -> Result<Answer, Unreadable> {
    use pb::answer::What;
    let message: pb::Answer = read(stream, MAX_ANSWER_BYTES).await?;
    delivered.came(PREFIX_BYTES + message.encoded_len());
    Ok(match required("answer.what", message.what)? {
        What::NotHere(_) => Answer::NotHere,
        What::Failed(failed) => Answer::Failed(reason("answer.failed.reason", failed.reason)?),
        What::Document(document) => Answer::Document(Document {
            edition: Edition(document.edition),
            content: Bytes::from(document.content),
            signature: Bytes::from(document.signature),
        }),
        What::Holdings(holdings) => {
            limited("answer.holdings", holdings.ranges.len(), MAX_RANGES)?;
            Answer::Holdings(holdings.ranges.into_iter().map(|range| range.first..range.end).collect())
        }
        What::Holders(holders) => {
            limited("answer.holders", holders.holders.len(), MAX_HOLDERS)?;
            let holder = |holder: pb::Holder| {
                let peer = peer("answer.holders.peer", holder.peer)?;
                let addresses = addresses("answer.holders.addresses", holder.addresses)?;
                Ok::<_, InvalidMessage>(Holder { peer, addresses })
            };
            Answer::Holders(holders.holders.into_iter().map(holder).collect::<Result<_, _>>()?)
        }
        What::Chunks(chunks) => Answer::Chunks { busy: chunks.busy },
        What::Kept(kept) => {
            limited("answer.kept", kept.models.len(), MAX_KEPT)?;
            let model = |kept: pb::KeptModel| {
                let fingerprint = <[u8; 32]>::try_from(&kept.fingerprint[..])
                    .map_err(|_| InvalidMessage::new("answer.kept.fingerprint", "does not have 32 bytes"))?;
                Ok::<_, InvalidMessage>(CachedModel {
                    model: Fingerprint::new(fingerprint),
                    name: text("answer.kept.name", kept.name, MAX_NAME_BYTES)?,
                    bytes: Size(kept.bytes),
                    model_bytes: Size(kept.model_bytes),
                    used_at: Some(kept.used_at).filter(|at| *at > 0),
                    in_use: kept.in_use,
                })
            };
            Answer::Kept(kept.models.into_iter().map(model).collect::<Result<_, _>>()?)
        }
        What::RemovedBytes(bytes) => Answer::Removed(Size(bytes)),
        What::Verified(verified) => {
            limited("answer.verified", verified.damaged.len(), MAX_DAMAGED)?;
            let words = |words| reason("answer.verified.damaged", words);
            let damaged = verified.damaged.into_iter().map(words).collect::<Result<_, _>>()?;
            Answer::Verified(Checked { chunks: verified.chunks, damaged })
        }
    })
}

/// A name, shortened to what the other end accepts.
fn named(mut name: String) -> String {
    name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
    name
}

fn limited(field: &'static str, count: usize, most: usize) -> Result<(), InvalidMessage> {
    if count > most {
        return Err(InvalidMessage::new(field, format!("has {count} entries, more than {most}")));
    }
    Ok(())
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    Stream(#[from] quinn::ReadExactError),
    #[error(transparent)]
    Invalid(#[from] InvalidMessage),
    #[error("a message has {0} bytes, more than it may")]
    TooLong(usize),
    #[error("a message cannot be decoded: {0}")]
    Undecodable(#[from] prost::DecodeError),
}

async fn read<M: prost::Message + Default>(stream: &mut RecvStream, most: usize) -> Result<M, Unreadable> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await?;
    let len = u32::from_le_bytes(prefix) as usize;
    if len > most {
        return Err(Unreadable::TooLong(len));
    }
    let mut bytes = Vec::new();
    // What has come so far bounds what is asked of memory.
    while bytes.len() < len {
        let piece = stream.read_chunk(len - bytes.len(), true).await.map_err(quinn::ReadExactError::from)?;
        let Some(piece) = piece else {
            return Err(quinn::ReadExactError::FinishedEarly(bytes.len()).into());
        };
        bytes.extend_from_slice(&piece.bytes);
    }
    Ok(M::decode(&bytes[..])?)
}

async fn write(stream: &mut SendStream, message: &impl prost::Message) -> Result<(), quinn::WriteError> {
    let mut bytes = Vec::with_capacity(4 + message.encoded_len());
    bytes.extend_from_slice(&(message.encoded_len() as u32).to_le_bytes());
    // A vector takes all that is written to it.
    let _ = message.encode(&mut bytes);
    stream.write_all(&bytes).await
}

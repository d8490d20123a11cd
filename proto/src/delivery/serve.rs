//! The end of a delivery connection that answers.

use std::ops::Range;
use std::sync::Arc;

use brigade_shard::model_file::Fingerprint;
use brigade_shard::units::Bytes as Size;
use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::Delivered;
use super::document::{Document, Edition};
use super::message::{Answer, Ask, CachedModel, Checked, Holder, answer, asked};
use crate::convert::fields::shortened;
use crate::ids::Peer;

/// Questions of one connection that are answered at a time: a few that are about chunks, so that one is read from the disk
/// while another is on its way, and one that is not.
const MAX_ASKS: u32 = 4;
/// Bytes of a connection that are written and not yet acknowledged: what 10 Gbit/s carries in 12 ms.
const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// Chunks that were read ahead of what the network takes.
const READ_AHEAD: usize = 2;
/// The byte before a chunk that is there.
pub(super) const HERE: u8 = 0;
/// The byte in the place of one that is not.
pub(super) const NOT_HERE: u8 = 1;
/// The byte before the reason why one cannot be read, which ends the answer: its length, two bytes, and UTF-8.
pub(super) const UNREADABLE: u8 = 2;
/// What a stream that breaks the protocol is stopped with.
const FAULT_CODE: VarInt = VarInt::from_u32(1);

/// What a machine has of models. All of it may wait for disks: it is called where that is allowed.
pub trait Shelf: Send + Sync + 'static {
    /// The model's outline, as the coordinator has signed it.
    ///
    /// # Errors
    /// Why that cannot be told, for people; so everywhere.
    fn outline(&self, model: &Fingerprint) -> Result<Option<Document>, String>;

    /// A page of hashes, likewise.
    fn hashes(&self, model: &Fingerprint, edition: Edition, page: u32) -> Result<Option<Document>, String>;

    /// The chunks that are here.
    fn holdings(&self, model: &Fingerprint) -> Result<Vec<Range<u32>>, String>;

    /// Other machines that may have some.
    fn holders(&self, model: &Fingerprint) -> Vec<Holder>;

    /// Something that reads chunks, where there are any.
    fn reader(&self, model: &Fingerprint) -> Result<Option<Box<dyn ChunkReader>>, String>;

    /// The models of the cache; none where there is no such thing, as everywhere in the next two.
    fn kept(&self) -> Vec<CachedModel> {
        Vec::new()
    }

    /// Removes a model from the cache; what that freed.
    fn remove(&self, model: &Fingerprint) -> Result<Option<Size>, String> {
        let _ = model;
        Ok(None)
    }

    /// Checks the chunks of a model in the cache.
    fn verify(&self, model: &Fingerprint) -> Result<Option<Checked>, String> {
        let _ = model;
        Ok(None)
    }

    /// Whether answers are computed here, or steps sent, which weights should not be in the way of.
    fn is_busy(&self) -> bool;
}

/// Reads chunks of one model.
pub trait ChunkReader: Send {
    /// All bytes of a chunk; `None` where it is not here.
    ///
    /// # Errors
    /// Why it cannot be read, for people.
    fn read(&mut self, chunk: u32) -> Result<Option<Bytes>, String>;
}

/// Answers until the connection ends, or `stop`.
pub(crate) async fn serve(
    (connection, peer): (Connection, Peer),
    shelf: Arc<dyn Shelf>,
    delivered: Arc<Delivered>,
    stop: CancellationToken,
) {
    connection.set_send_window(SEND_WINDOW_BYTES);
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_ASKS));
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            streams = connection.accept_bi() => match streams {
                Ok((send, receive)) => {
                    let own = peer == Peer::Coordinator;
                    answers.spawn(respond(send, receive, own, shelf.clone(), delivered.clone()));
                }
                Err(_) => break,
            },
            Some(ended) = answers.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("answering a question about weights ended with a defect");
                }
            }
        }
    }
    answers.shutdown().await;
}

async fn respond(
    mut send: SendStream,
    mut receive: RecvStream,
    own: bool,
    shelf: Arc<dyn Shelf>,
    delivered: Arc<Delivered>,
) {
    let (model, ask) = match asked(&mut receive).await {
        Ok(asked) => asked,
        Err(error) => {
            tracing::debug!(%error, "a question about weights was not understood");
            let _ = (send.reset(FAULT_CODE), receive.stop(FAULT_CODE));
            return;
        }
    };
    let sent = match ask {
        Ask::Kept | Ask::Remove | Ask::Verify if !own => {
            let refusal = Answer::Failed("that is the coordinator's to ask".to_owned());
            answer(&mut send, refusal, &delivered).await
        }
        Ask::Chunks { first, count } => {
            send_chunks(&mut send, shelf, &delivered, model, first..first + count).await
        }
        ask => {
            let found = spawn_blocking(move || look_up(&*shelf, &model, ask)).await;
            let found =
                found.unwrap_or_else(|_| Answer::Failed("looking it up ended with a defect".to_owned()));
            answer(&mut send, found, &delivered).await
        }
    };
    // Who does not read the answer any more has ended, or needs nothing.
    if let Err(error) = sent.map(|()| send.finish()) {
        tracing::trace!(%error, "an answer about weights was not taken");
    }
}

fn look_up(shelf: &dyn Shelf, model: &Fingerprint, ask: Ask) -> Answer {
    let told = |found: Result<Option<Answer>, String>| match found {
        Ok(answer) => answer.unwrap_or(Answer::NotHere),
        Err(reason) => Answer::Failed(reason),
    };
    match ask {
        Ask::Outline => told(shelf.outline(model).map(|found| found.map(Answer::Document))),
        Ask::Hashes { edition, page } => {
            told(shelf.hashes(model, edition, page).map(|found| found.map(Answer::Document)))
        }
        Ask::Holdings => told(shelf.holdings(model).map(|ranges| Some(Answer::Holdings(ranges)))),
        Ask::Holders => Answer::Holders(shelf.holders(model)),
        Ask::Kept => Answer::Kept(shelf.kept()),
        Ask::Remove => told(shelf.remove(model).map(|freed| freed.map(Answer::Removed))),
        Ask::Verify => told(shelf.verify(model).map(|checked| checked.map(Answer::Verified))),
        Ask::Chunks { .. } => Answer::NotHere,
    }
}

async fn send_chunks(
    send: &mut SendStream,
    shelf: Arc<dyn Shelf>,
    delivered: &Delivered,
    model: Fingerprint,
    numbers: Range<u32>,
) -> Result<(), quinn::WriteError> {
    let (read, mut chunks) = mpsc::channel(READ_AHEAD);
    let busy = shelf.is_busy();
    let reading = spawn_blocking(move || {
        let mut reader = match shelf.reader(&model) {
            Ok(reader) => reader,
            Err(reason) => {
                // Nobody waits for it any more; so below.
                let _ = read.blocking_send(Err(reason));
                return;
            }
        };
        for number in numbers {
            let chunk = match &mut reader {
                Some(reader) => reader.read(number),
                None => Ok(None),
            };
            let ends = chunk.is_err();
            if read.blocking_send(chunk).is_err() || ends {
                return;
            }
        }
    });
    let sending = async {
        answer(send, Answer::Chunks { busy }, delivered).await?;
        while let Some(chunk) = chunks.recv().await {
            match chunk {
                Ok(Some(bytes)) => {
                    let len = 1 + bytes.len();
                    send.write_all(&[HERE]).await?;
                    send.write_chunk(bytes).await?;
                    delivered.went(len);
                }
                Ok(None) => send.write_all(&[NOT_HERE]).await?,
                Err(reason) => {
                    let reason = shortened(reason);
                    let len = (reason.len() as u16).to_le_bytes();
                    send.write_all(&[&[UNREADABLE], &len[..], reason.as_bytes()].concat()).await?;
                }
            }
        }
        Ok(())
    };
    let sent = sending.await;
    chunks.close();
    // A reader that was panicking has sent too little, which the other end sees.
    let _ = reading.await;
    sent
}

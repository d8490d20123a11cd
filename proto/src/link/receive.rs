//! The receiving half of a link: a stream and a queue per kind of step, decode first.

use std::sync::{Arc, Mutex, PoisonError};

use quinn::{ReadError, ReadExactError, RecvStream};
use tokio::sync::mpsc;

use super::connection::{Core, Handle, mark};
use super::error::LinkError;
use crate::frame::{self, FrameError, FrameLengths, PREFIX_BYTES};
use crate::ids::Peer;
use crate::step::{Frame, StepKind};

/// The receiving half of a link.
#[derive(Debug)]
pub struct LinkReceiver {
    handle: Arc<Handle>,
    decode: mpsc::Receiver<Frame>,
    prefill: mpsc::Receiver<Frame>,
}

impl LinkReceiver {
    pub(super) fn new(
        handle: Arc<Handle>,
        decode: mpsc::Receiver<Frame>,
        prefill: mpsc::Receiver<Frame>,
    ) -> LinkReceiver {
        LinkReceiver { handle, decode, prefill }
    }

    /// The next frame; decode frames come before prefill frames that wait beside them. Dropping the future loses none.
    /// Frames that have come before the link ended come first, then the error, again and again.
    ///
    /// # Errors
    /// Where the link is no more.
    pub async fn recv(&mut self) -> Result<Frame, LinkError> {
        tokio::select! {
            biased;
            Some(frame) = self.decode.recv() => Ok(frame),
            Some(frame) = self.prefill.recv() => Ok(frame),
            else => {
                let core = &self.handle.0;
                let error = core.connection.closed().await;
                Err(core.error(error))
            }
        }
    }

    /// The next decode frame, for a caller that has no room for prefill frames; `None` where no more of them come.
    /// Dropping the future loses none.
    pub async fn recv_decode(&mut self) -> Option<Frame> {
        self.decode.recv().await
    }

    /// Closes the link; the peer is told `reason`.
    pub fn close(&self, reason: &str) {
        self.handle.close(reason);
    }

    /// Who is at the other end, as its certificate says.
    pub fn peer(&self) -> &Peer {
        &self.handle.0.peer
    }
}

/// Where frames go, until the stream of their kind has taken its queue.
pub(super) struct Queues {
    decode: Option<mpsc::Sender<Frame>>,
    prefill: Option<mpsc::Sender<Frame>>,
}

impl Queues {
    pub(super) fn new(decode: mpsc::Sender<Frame>, prefill: mpsc::Sender<Frame>) -> Queues {
        Queues { decode: Some(decode), prefill: Some(prefill) }
    }
}

/// Takes the peer's streams until the connection ends.
pub(super) async fn receive_streams(core: Arc<Core>, queues: Arc<Mutex<Queues>>) {
    while let Ok(stream) = core.connection.accept_uni().await {
        core.shared.tasks.spawn(receive_stream(core.clone(), stream, queues.clone()));
    }
}

async fn receive_stream(core: Arc<Core>, stream: RecvStream, queues: Arc<Mutex<Queues>>) {
    let receiving = receive_frames(&core, stream, &queues);
    // A caller that holds the receiving half without looking must not keep the transport from closing.
    match core.shared.shutdown.run_until_cancelled(receiving).await {
        Some(Err(Unreadable::Frame(error))) => core.malformed(error),
        // The connection's end is told by the connection.
        Some(Err(Unreadable::Connection) | Ok(())) | None => {}
    }
}

/// Why a stream cannot be read any further.
enum Unreadable {
    Frame(FrameError),
    Connection,
}

impl From<FrameError> for Unreadable {
    fn from(error: FrameError) -> Unreadable {
        Unreadable::Frame(error)
    }
}

impl From<ReadExactError> for Unreadable {
    fn from(error: ReadExactError) -> Unreadable {
        match error {
            ReadExactError::ReadError(ReadError::ConnectionLost(_)) => Unreadable::Connection,
            ReadExactError::FinishedEarly(_) | ReadExactError::ReadError(_) => {
                Unreadable::Frame(FrameError::CutOff)
            }
        }
    }
}

/// Ends where the stream does between two frames, or the receiving half is gone.
async fn receive_frames(
    core: &Core,
    mut stream: RecvStream,
    queues: &Mutex<Queues>,
) -> Result<(), Unreadable> {
    let mut first = [0];
    stream.read_exact(&mut first).await?;
    let (kind, queue) = {
        let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
        match first {
            [byte] if byte == mark(StepKind::Decode) => (StepKind::Decode, queues.decode.take()),
            [byte] if byte == mark(StepKind::Prefill) => (StepKind::Prefill, queues.prefill.take()),
            [byte] => return Err(FrameError::UnknownStream(byte).into()),
        }
    };
    let queue = queue.ok_or(FrameError::SecondStream(kind))?;
    loop {
        let mut prefix = [0; PREFIX_BYTES];
        match stream.read_exact(&mut prefix).await {
            Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
            read => read?,
        }
        let lengths = FrameLengths::parse(prefix, &core.shared.limits())?;
        let mut header = vec![0; lengths.header];
        stream.read_exact(&mut header).await?;
        let mut payload = vec![0; lengths.payload];
        stream.read_exact(&mut payload).await?;
        let frame = frame::decode(&header, payload.into())?;
        if frame.kind() != kind {
            return Err(FrameError::WrongStream { expected: kind, found: frame.kind() }.into());
        }
        if queue.send(frame).await.is_err() {
            return Ok(());
        }
    }
}

//! The coordinator's data links: to the first stage, which gets steps, and from the last, which sends results.

use std::collections::BTreeMap;
use std::sync::Arc;

use brigade_proto::ids::{Peer, WorkerId};
use brigade_proto::link::{Link, LinkReceiver, LinkSender, Transport};
use brigade_proto::step::{Frame, StepKind};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::core::CoreEvent;

/// Steps of one kind that wait to be sent over a link. The scheduler has a few dozen under way at most: a full queue is
/// a link that does not send.
const SEND_QUEUE: usize = 128;

/// One link; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinkId(u64);

/// The links that stand, at most one per worker.
pub(super) struct Links {
    links: BTreeMap<WorkerId, OpenLink>,
    next: u64,
    events: mpsc::Sender<CoreEvent>,
    tasks: TaskTracker,
}

struct OpenLink {
    id: LinkId,
    decode: mpsc::Sender<Frame>,
    prefill: mpsc::Sender<Frame>,
    /// Closes the link and ends its tasks.
    end: CancellationToken,
}

impl Links {
    pub(super) fn new(events: mpsc::Sender<CoreEvent>, tasks: TaskTracker) -> Links {
        Links { links: BTreeMap::new(), next: 0, events, tasks }
    }

    /// Takes a link over; an older one of the same worker is closed. `None` where the peer is no worker.
    pub(super) fn open(&mut self, link: Link) -> Option<WorkerId> {
        let Peer::Worker(worker) = link.peer().clone() else {
            return None;
        };
        self.next += 1;
        let id = LinkId(self.next);
        let end = CancellationToken::new();
        let (sender, receiver) = link.split();
        let sender = Arc::new(sender);
        let queue = |sender: Arc<LinkSender>| {
            let (queue, steps) = mpsc::channel(SEND_QUEUE);
            self.tasks.spawn(send(id, sender, steps, self.events.clone(), end.clone()));
            queue
        };
        let (decode, prefill) = (queue(sender.clone()), queue(sender.clone()));
        self.tasks.spawn(receive(id, receiver, sender, self.events.clone(), end.clone()));
        if let Some(old) = self.links.insert(worker.clone(), OpenLink { id, decode, prefill, end }) {
            old.end.cancel();
        }
        Some(worker)
    }

    /// The worker whose link this is; `None` where it was closed or replaced.
    pub(super) fn worker_of(&self, id: LinkId) -> Option<&WorkerId> {
        self.links.iter().find(|(_, link)| link.id == id).map(|(worker, _)| worker)
    }

    /// Forgets a link that has ended.
    pub(super) fn remove(&mut self, id: LinkId) -> Option<WorkerId> {
        let worker = self.worker_of(id)?.clone();
        let link = self.links.remove(&worker)?;
        link.end.cancel();
        Some(worker)
    }

    /// Queues a step, or what one drew, for a worker.
    ///
    /// # Errors
    /// The reason, where there is no link, or it does not send.
    pub(super) fn send(&self, worker: &WorkerId, frame: Frame) -> Result<(), String> {
        let link = self.links.get(worker).ok_or("there is no data link to it")?;
        let queue = match frame.kind() {
            StepKind::Decode => &link.decode,
            StepKind::Prefill => &link.prefill,
        };
        queue.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "its data link does not take any more steps".into(),
            mpsc::error::TrySendError::Closed(_) => "its data link has ended".into(),
        })
    }

    /// Whether a link to a worker stands.
    pub(super) fn stands(&self, worker: &WorkerId) -> bool {
        self.links.contains_key(worker)
    }

    /// Closes a worker's link, if one stands.
    pub(super) fn close_of(&mut self, worker: &WorkerId) {
        if let Some(link) = self.links.remove(worker) {
            link.end.cancel();
        }
    }

    /// Closes every link.
    pub(super) fn close(&mut self) {
        for (_, link) in std::mem::take(&mut self.links) {
            link.end.cancel();
        }
    }
}

/// Sends frames of one kind in order. Kinds have a task each, so that a step never waits behind one of the other kind.
async fn send(
    id: LinkId,
    sender: Arc<LinkSender>,
    mut frames: mpsc::Receiver<Frame>,
    events: mpsc::Sender<CoreEvent>,
    end: CancellationToken,
) {
    let all = async {
        while let Some(frame) = frames.recv().await {
            if let Err(error) = sender.send(&frame).await {
                return Some(error.to_string());
            }
        }
        None
    };
    let reason = tokio::select! {
        reason = all => reason,
        () = end.cancelled() => None,
    };
    if let Some(reason) = reason {
        // An error means that the core has ended.
        let _ = events.send(CoreEvent::LinkEnded { link: id, reason }).await;
    }
}

/// Moves results to the core until the link ends, and closes it at the end.
async fn receive(
    id: LinkId,
    mut receiver: LinkReceiver,
    sender: Arc<LinkSender>,
    events: mpsc::Sender<CoreEvent>,
    end: CancellationToken,
) {
    let all = async {
        loop {
            match receiver.recv().await {
                Ok(Frame::Result(result)) => {
                    let event = CoreEvent::Result { link: id, result: Box::new(result) };
                    if events.send(event).await.is_err() {
                        return None;
                    }
                }
                Ok(Frame::Step(_) | Frame::Drawn(_)) => {
                    return Some("it sent what is for a first stage".to_owned());
                }
                Err(error) => return Some(error.to_string()),
            }
        }
    };
    let reason = tokio::select! {
        reason = all => reason,
        () = end.cancelled() => None,
    };
    sender.close(reason.as_deref().unwrap_or("the plan has ended"));
    if let Some(reason) = reason {
        let _ = events.send(CoreEvent::LinkEnded { link: id, reason }).await;
    }
}

/// Hands accepted links to the core until the transport is closed.
pub(super) async fn accept(transport: Arc<Transport>, events: mpsc::Sender<CoreEvent>) {
    while let Some(link) = transport.accept().await {
        if events.send(CoreEvent::LinkAccepted(Box::new(link))).await.is_err() {
            return;
        }
    }
}

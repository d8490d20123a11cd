//! The data plane of a worker: which links stand, who uses them, and the tasks that read from and write to them.
//!
//! There is one link per pair of neighbours where possible: a link that a neighbour has dialled is used in the other
//! direction too, and links outlive plans, so that a new plan over the same neighbours finds them standing. A link
//! that no stage has a use for is closed after a grace. The methods are called by one task; what happens on links
//! comes to it as [`DataEvent`]s.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use brigade_proto::control::{ConnectStage, LinkTelemetry, ShortWayEnd, StageRoom};
use brigade_proto::frame::FrameLimits;
use brigade_proto::ids::{DeploymentId, Peer};
use brigade_proto::link::{Link, LinkReceiver, LinkSender, Probed, Transport};
use brigade_proto::step::{Frame, StepKind};
use brigade_shard::cost::PAGE_TOKENS;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Arrival, Lanes, OUTPUT_FRAMES, Outputs};
use crate::lifecycle::ConnectId;

/// How long a link may stand without a stage that needs it: a neighbour may dial before this worker has heard of
/// the plan, and the next plan may want the link again.
pub const UNUSED_LINK_GRACE: Duration = Duration::from_secs(5);

/// Most links at a time: two for each stage that a worker may hold, and as many again on their way in or out.
pub const MAX_LINKS: usize = 64;

/// How long opening the links of a stage may take: beyond what a handshake over a bad wireless link needs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long that may take of the link from the last stage to the first, which is of use but not needed.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer that is probed may take to answer: a handshake over a far link, and one lost packet of it.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// Happenings on links that wait to be handled.
const EVENT_QUEUE: usize = 64;

/// Names a link for as long as this process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(u64);

/// What happens on links.
pub enum DataEvent {
    /// A peer has dialled.
    Accepted(Link),
    /// Dialling for a stage is over.
    Dialled {
        /// Which attempt.
        attempt: ConnectId,
        /// Which stage.
        deployment: DeploymentId,
        /// The links made, or why not all of them could be.
        result: Result<Vec<Link>, String>,
    },
    /// A peer was probed.
    Probed {
        /// Who asked.
        nonce: u64,
        /// Whether it has answered.
        reached: bool,
    },
    /// A link has ended.
    Closed {
        /// Which link.
        link: LinkId,
        /// Why.
        reason: String,
    },
}

/// What a happening means for stages.
pub enum DataOutcome {
    /// All links of a stage stand.
    Opened {
        /// Which attempt.
        attempt: ConnectId,
        /// Its neighbours.
        order: ConnectStage,
        /// Where its frames go.
        outputs: Outputs,
        /// Where the next neighbour was reached.
        next_address: SocketAddr,
        /// Round trip to it, in microseconds.
        rtt_us: u32,
    },
    /// A link of a stage could not be opened.
    Failed {
        /// Which attempt.
        attempt: ConnectId,
        /// Why.
        reason: String,
    },
    /// A peer was probed.
    Probed {
        /// Who asked.
        nonce: u64,
        /// Whether it has answered.
        reached: bool,
    },
    /// A link that a stage relies on is gone.
    Lost {
        /// Which stage.
        deployment: DeploymentId,
        /// The other end.
        peer: Peer,
        /// Why.
        reason: String,
    },
}

/// The largest frames that a stage sends or receives, given its room and the model's hidden width.
///
/// Payload: `step_rows * hidden * 4` bytes. Header: 64 KiB for the frame itself, timings and one sequence's logit
/// bias; 4 KiB per sequence for its segment, sampling parameters and release, and 5 bytes for each page that it may be
/// given; 512 bytes per row for its token id or its score with 20 alternatives.
pub fn frame_limits(room: &StageRoom, hidden: usize) -> FrameLimits {
    let (rows, sequences) = (room.step_rows as usize, room.sequences as usize);
    let pages = room.context.div_ceil(PAGE_TOKENS) as usize;
    let header = rows.saturating_mul(512).saturating_add(sequences.saturating_mul(4096 + 5 * pages));
    FrameLimits {
        max_header_bytes: header.saturating_add(64 << 10),
        max_payload_bytes: rows.saturating_mul(hidden).saturating_mul(4),
    }
}

/// All links of a worker.
pub struct DataPlane {
    transport: Transport,
    lanes: Lanes,
    events: mpsc::Sender<DataEvent>,
    links: BTreeMap<LinkId, LiveLink>,
    dials: BTreeMap<DeploymentId, Dial>,
    bindings: BTreeMap<DeploymentId, Binding>,
    tasks: TaskTracker,
    ending: CancellationToken,
    last_id: u64,
}

struct LiveLink {
    peer: Peer,
    remote: SocketAddr,
    rtt: Duration,
    sender: LinkSender,
    unused_since: Option<Instant>,
}

impl LiveLink {
    fn telemetry(&self) -> LinkTelemetry {
        let stats = self.sender.stats();
        LinkTelemetry {
            peer: self.peer.clone(),
            address: self.remote,
            choice: self.sender.choice().to_owned(),
            rtt_us: u32::try_from(stats.rtt.as_micros()).unwrap_or(u32::MAX),
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.received_bytes,
            sent_packets: stats.sent_packets,
            lost_packets: stats.lost_packets,
            congestion_window: stats.congestion_window,
        }
    }
}

/// An attempt to open a stage's links.
struct Dial {
    attempt: ConnectId,
    order: ConnectStage,
    next_addresses: Vec<SocketAddr>,
    given_up: CancellationToken,
}

/// What a connected stage relies on.
struct Binding {
    previous: Peer,
    /// The other end of the short way round, which the stage uses and does not rely on.
    short_way: Option<Peer>,
    next_link: LinkId,
    senders: CancellationToken,
}

impl DataPlane {
    /// Takes over `transport`; frames go into `lanes`. Events come out of the receiver and go back into
    /// [`DataPlane::handle`].
    pub fn start(transport: Transport, lanes: Lanes) -> (DataPlane, mpsc::Receiver<DataEvent>) {
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (tasks, ending) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(accept(transport.clone(), events.clone(), ending.clone()));
        let plane = DataPlane {
            transport,
            lanes,
            events,
            links: BTreeMap::new(),
            dials: BTreeMap::new(),
            bindings: BTreeMap::new(),
            tasks,
            ending,
            last_id: 0,
        };
        (plane, receiver)
    }

    /// Accepts and sends frames up to these sizes from now on.
    pub fn set_limits(&self, limits: FrameLimits) {
        self.transport.set_limits(limits);
    }

    /// Begins to open a stage's links: to its next neighbour, and to the coordinator (at `coordinator`) where that is
    /// its previous one. Ends with `Opened` or `Failed`, unless the stage is released before.
    pub fn open(&mut self, attempt: ConnectId, order: ConnectStage, coordinator: SocketAddr) {
        let deployment = order.deployment;
        self.release(deployment);
        let addresses = |peer: &Peer| match peer {
            Peer::Coordinator => vec![coordinator],
            Peer::Worker(_) => order.next_addresses.clone(),
        };
        let mut wanted = vec![(order.next.clone(), addresses(&order.next))];
        if order.previous == Peer::Coordinator && order.next != Peer::Coordinator {
            wanted.push((Peer::Coordinator, vec![coordinator]));
        }
        let absent = |(peer, addresses): &Candidates| self.standing(peer, addresses).is_none();
        wanted.retain(absent);
        let first = match &order.short_way {
            Some(ShortWayEnd::To(first, addresses)) => {
                Some((first.clone(), addresses.clone())).filter(absent)
            }
            Some(ShortWayEnd::From(_)) | None => None,
        };
        let given_up = self.ending.child_token();
        let next_addresses = addresses(&order.next);
        self.tasks.spawn(dial(
            self.transport.clone(),
            (wanted, first),
            attempt,
            deployment,
            self.events.clone(),
            given_up.clone(),
        ));
        self.dials.insert(deployment, Dial { attempt, order, next_addresses, given_up });
    }

    /// Asks whether `peer` can be reached at any of `addresses`; ends with `Probed`.
    pub fn probe(&self, nonce: u64, peer: Peer, addresses: Vec<SocketAddr>) {
        let (transport, events, ending) = (self.transport.clone(), self.events.clone(), self.ending.clone());
        self.tasks.spawn(async move {
            let probe = transport.probe(&peer, None, &addresses, PROBE_PATIENCE);
            if let Some(probed) = ending.run_until_cancelled(probe).await {
                // The receiver is gone only while the worker ends.
                let _ = events.send(DataEvent::Probed { nonce, reached: probed == Probed::Here }).await;
            }
        });
    }

    /// Forgets what a stage relies on: its frames go nowhere any more, and an attempt to connect it is given up. Its
    /// links stay for the next plan, or until their grace is over.
    pub fn release(&mut self, deployment: DeploymentId) {
        if let Some(dial) = self.dials.remove(&deployment) {
            dial.given_up.cancel();
        }
        if let Some(binding) = self.bindings.remove(&deployment) {
            binding.senders.cancel();
        }
    }

    /// Closes every link to the coordinator: another process answers there now.
    pub fn forget_coordinator(&mut self) {
        self.links.retain(|_, link| {
            let keep = link.peer != Peer::Coordinator;
            if !keep {
                link.sender.close("the coordinator has started anew");
            }
            keep
        });
    }

    /// Takes up what has happened on a link.
    pub fn handle(&mut self, event: DataEvent) -> Vec<DataOutcome> {
        match event {
            DataEvent::Accepted(link) => {
                self.adopt(link);
                Vec::new()
            }
            DataEvent::Dialled { attempt, deployment, result } => {
                self.dialled(attempt, deployment, result).into_iter().collect()
            }
            DataEvent::Probed { nonce, reached } => vec![DataOutcome::Probed { nonce, reached }],
            DataEvent::Closed { link, reason } => self.closed(link, &reason),
        }
    }

    /// Closes links that no stage has needed for [`UNUSED_LINK_GRACE`].
    pub fn expire(&mut self, now: Instant) {
        let (dials, bindings) = (&self.dials, &self.bindings);
        self.links.retain(|id, link| {
            let dialled = dials.values().any(|dial| {
                let first =
                    matches!(&dial.order.short_way, Some(ShortWayEnd::To(first, _)) if *first == link.peer);
                dial.order.previous == link.peer || dial.order.next == link.peer || first
            });
            let bound = bindings.values().any(|b| {
                b.previous == link.peer || b.next_link == *id || b.short_way.as_ref() == Some(&link.peer)
            });
            if dialled || bound {
                link.unused_since = None;
                return true;
            }
            let unused = now.saturating_duration_since(*link.unused_since.get_or_insert(now));
            if unused < UNUSED_LINK_GRACE {
                return true;
            }
            tracing::debug!(peer = %link.peer, remote = %link.remote, "closed a link that no stage needs");
            link.sender.close("no stage of this worker has this peer for a neighbour");
            false
        });
    }

    /// How every link is doing.
    pub fn telemetry(&self) -> Vec<LinkTelemetry> {
        self.links.values().map(LiveLink::telemetry).collect()
    }

    /// Closes everything and waits until every task has ended, for at most `patience`.
    pub async fn stop(mut self, patience: Duration) {
        self.ending.cancel();
        for link in std::mem::take(&mut self.links).into_values() {
            link.sender.close("this worker ends");
        }
        self.tasks.close();
        let all = async {
            self.transport.close().await;
            self.tasks.wait().await;
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("left links behind that did not close in time");
        }
    }

    /// A link to `peer` at one of `addresses` that can be used as it is.
    fn standing(&self, peer: &Peer, addresses: &[SocketAddr]) -> Option<LinkId> {
        let fits = |link: &LiveLink| link.peer == *peer && addresses.contains(&link.remote);
        self.links.iter().rev().find(|(_, link)| fits(link)).map(|(id, _)| *id)
    }

    fn adopt(&mut self, link: Link) -> Option<LinkId> {
        let (peer, remote, rtt) = (link.peer().clone(), link.remote_address(), link.rtt());
        let (sender, receiver) = link.split();
        if self.links.len() >= MAX_LINKS {
            sender.close("this worker has too many links");
            return None;
        }
        self.last_id += 1;
        let id = LinkId(self.last_id);
        tracing::debug!(%peer, %remote, rtt_us = rtt.as_micros() as u64, "a link stands");
        let reader = read(id, peer.clone(), receiver, self.lanes.clone(), self.events.clone());
        let ending = self.ending.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = ending.cancelled() => {}
                () = reader => {}
            }
        });
        let live = LiveLink { peer, remote, rtt, sender, unused_since: None };
        self.links.insert(id, live);
        Some(id)
    }

    fn dialled(
        &mut self,
        attempt: ConnectId,
        deployment: DeploymentId,
        result: Result<Vec<Link>, String>,
    ) -> Option<DataOutcome> {
        let made: Result<Vec<LinkId>, String> =
            result.map(|links| links.into_iter().filter_map(|link| self.adopt(link)).collect());
        // What comes of an attempt that was given up must leave the one after it alone.
        if self.dials.get(&deployment)?.attempt != attempt {
            return None;
        }
        let Dial { order, next_addresses, .. } = self.dials.remove(&deployment)?;
        let made = match made {
            Ok(made) => made,
            Err(reason) => return Some(DataOutcome::Failed { attempt, reason }),
        };
        let to_next = |id: &&LinkId| self.links.get(id).is_some_and(|link| link.peer == order.next);
        let next = made.iter().find(to_next).copied().or_else(|| self.standing(&order.next, &next_addresses));
        let Some((next_link, link)) = next.and_then(|id| Some((id, self.links.get(&id)?))) else {
            let reason = format!("the link to {} broke as soon as it stood", order.next);
            return Some(DataOutcome::Failed { attempt, reason });
        };
        let (next_address, rtt_us) = (link.remote, u32::try_from(link.rtt.as_micros()).unwrap_or(u32::MAX));
        let senders = self.ending.child_token();
        let mut outputs = self.spawn_senders(link.sender.clone(), &senders);
        if let Some(ShortWayEnd::To(first, addresses)) = &order.short_way {
            let to_first = |id: &&LinkId| self.links.get(id).is_some_and(|link| link.peer == *first);
            let id = made.iter().find(to_first).copied().or_else(|| self.standing(first, addresses));
            let link = id.and_then(|id| self.links.get(&id));
            outputs.drawn = link.map(|link| self.spawn_sender(&link.sender, &Arc::default(), &senders));
        }
        let short_way = order.short_way.as_ref().map(|end| match end {
            ShortWayEnd::To(peer, _) | ShortWayEnd::From(peer) => peer.clone(),
        });
        let previous = order.previous.clone();
        self.bindings.insert(deployment, Binding { previous, short_way, next_link, senders });
        Some(DataOutcome::Opened { attempt, order, outputs, next_address, rtt_us })
    }

    fn spawn_senders(&self, sender: LinkSender, stop: &CancellationToken) -> Outputs {
        let sent_us = Arc::new(AtomicU32::new(0));
        let lane = || self.spawn_sender(&sender, &sent_us, stop);
        Outputs { decode: lane(), prefill: lane(), drawn: None, sent_us: sent_us.clone() }
    }

    fn spawn_sender(
        &self,
        sender: &LinkSender,
        sent_us: &Arc<AtomicU32>,
        stop: &CancellationToken,
    ) -> mpsc::Sender<Frame> {
        let (frames, queue) = mpsc::channel(OUTPUT_FRAMES);
        self.tasks.spawn(send(sender.clone(), queue, sent_us.clone(), stop.clone()));
        frames
    }

    fn closed(&mut self, id: LinkId, reason: &str) -> Vec<DataOutcome> {
        let Some(link) = self.links.remove(&id) else {
            return Vec::new();
        };
        tracing::debug!(peer = %link.peer, remote = %link.remote, reason, "a link has ended");
        let another = self.links.values().any(|other| other.peer == link.peer);
        let lost = self
            .bindings
            .iter()
            .filter(|(_, binding)| binding.next_link == id || (binding.previous == link.peer && !another));
        let lost: Vec<DeploymentId> = lost.map(|(deployment, _)| *deployment).collect();
        let outcome = |deployment| {
            // What the stage makes from now on is dropped; another plan binds it anew.
            if let Some(binding) = self.bindings.get(&deployment).filter(|binding| binding.next_link == id) {
                binding.senders.cancel();
            }
            DataOutcome::Lost { deployment, peer: link.peer.clone(), reason: reason.to_owned() }
        };
        lost.into_iter().map(outcome).collect()
    }
}

async fn accept(transport: Transport, events: mpsc::Sender<DataEvent>, ending: CancellationToken) {
    loop {
        let link = tokio::select! {
            () = ending.cancelled() => return,
            link = transport.accept() => link,
        };
        let Some(link) = link else { return };
        if events.send(DataEvent::Accepted(link)).await.is_err() {
            return;
        }
    }
}

/// A peer, and where it may be.
type Candidates = (Peer, Vec<SocketAddr>);

/// Dials all of `wanted`, and then `first`, which is of use but not needed.
async fn dial(
    transport: Transport,
    (wanted, first): (Vec<Candidates>, Option<Candidates>),
    attempt: ConnectId,
    deployment: DeploymentId,
    events: mpsc::Sender<DataEvent>,
    given_up: CancellationToken,
) {
    let all = async {
        let mut links = Vec::new();
        for (peer, addresses) in &wanted {
            match transport.dial(peer, addresses).await {
                Ok(link) => links.push(link),
                Err(error) => return Err(format!("{error} (tried {})", listed(addresses))),
            }
        }
        if let Some((peer, addresses)) = &first {
            match tokio::time::timeout(FIRST_TIMEOUT, transport.dial(peer, addresses)).await {
                Ok(Ok(link)) => links.push(link),
                Ok(Err(error)) => {
                    tracing::info!("no short way round to {peer}: {error} (tried {})", listed(addresses))
                }
                Err(_) => {
                    tracing::info!("no short way round to {peer}: no link to {} in time", listed(addresses))
                }
            }
        }
        Ok(links)
    };
    let result = tokio::select! {
        () = given_up.cancelled() => return,
        result = tokio::time::timeout(CONNECT_TIMEOUT, all) => result.unwrap_or_else(|_| {
            let peers: Vec<String> = wanted.iter().map(|(peer, at)| format!("{peer} at {}", listed(at))).collect();
            Err(format!("no link within {} s to {}", CONNECT_TIMEOUT.as_secs(), peers.join(" or ")))
        }),
    };
    // The receiver is gone only while the worker ends.
    let _ = events.send(DataEvent::Dialled { attempt, deployment, result }).await;
}

fn listed(addresses: &[SocketAddr]) -> String {
    let each: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    each.join(", ")
}

async fn read(id: LinkId, peer: Peer, mut link: LinkReceiver, lanes: Lanes, events: mpsc::Sender<DataEvent>) {
    let reason = loop {
        match link.recv().await {
            Ok(frame) => {
                if !take(&peer, frame, &mut link, &lanes).await {
                    break "the engine has ended".to_owned();
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    // The receiver is gone only while the worker ends.
    let _ = events.send(DataEvent::Closed { link: id, reason }).await;
}

/// Queues a frame; while a prefill frame waits for room in its lane, decode frames go past it. `false` where the engine
/// has ended.
async fn take(peer: &Peer, frame: Frame, link: &mut LinkReceiver, lanes: &Lanes) -> bool {
    if frame.kind() == StepKind::Decode {
        return push(peer, frame, lanes).await;
    }
    let pushing = push(peer, frame, lanes);
    tokio::pin!(pushing);
    loop {
        let frame = tokio::select! {
            biased;
            pushed = &mut pushing => return pushed,
            Some(frame) = link.recv_decode() => frame,
        };
        if !push(peer, frame, lanes).await {
            return false;
        }
    }
}

async fn push(peer: &Peer, frame: Frame, lanes: &Lanes) -> bool {
    match frame {
        Frame::Step(frame) => lanes.push(Arrival { peer: peer.clone(), frame, at: Instant::now() }).await,
        Frame::Drawn(drawn) => lanes.push_drawn(peer.clone(), drawn).await,
        // Results end at the coordinator; one that comes here is not acted upon.
        Frame::Result(result) => {
            tracing::warn!(%peer, step = %result.step, "dropped a result, which workers do not take");
            true
        }
    }
}

/// Sends a stage's frames of one kind, in order, until the stage is released or the link breaks (which the reader of
/// the same link reports). A frame that is being written is always finished: the next plan may use the link again.
async fn send(
    link: LinkSender,
    mut queue: mpsc::Receiver<Frame>,
    sent_us: Arc<AtomicU32>,
    stop: CancellationToken,
) {
    loop {
        let frame = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            frame = queue.recv() => frame,
        };
        let Some(frame) = frame else { return };
        let sending = link.send(&frame);
        tokio::pin!(sending);
        let sent = tokio::select! {
            biased;
            sent = &mut sending => sent,
            () = stop.cancelled() => {
                // The engine must not wait for room in a queue that nobody empties.
                drop(queue);
                if let Err(error) = sending.await {
                    tracing::debug!(%error, "failed to finish the last frame of a released stage");
                }
                return;
            }
        };
        match sent {
            Ok(took) => sent_us.store(u32::try_from(took.as_micros()).unwrap_or(u32::MAX), Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(%error, "failed to send a frame");
                return;
            }
        }
    }
}

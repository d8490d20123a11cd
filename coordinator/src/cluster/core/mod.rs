//! The one task that owns the state machines: it takes events in, and carries their commands out.

mod commands;
mod draft;
mod drain;
mod pin;
mod publish;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_proto::control::{Capabilities, ToCoordinator, ToWorker, Welcome};
use brigade_proto::health::Health;
use brigade_proto::ids::{DeploymentId, Epoch, Incarnation, SequenceId, WorkerId};
use brigade_proto::link::{Link, Probed, Transport};
use brigade_proto::step::StepResult;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clients::Clients;
use super::control::Session;
use super::handle::{Drain, PinWish, Submission};
use super::links::{LinkId, Links};
use super::recovery::Recoveries;
use super::statistics::Statistics;
use super::timeline::Timeline;
use super::traffic::Traffic;
use crate::deployment::{self, Deployment};
use crate::health::Monitor;
use crate::membership::{self, HEARTBEAT, Membership, SessionId};
use crate::metrics::Metrics;
use crate::scheduler::{Scheduler, Speculation};
use crate::shelf::Holders;
use crate::state_dir::{StateDir, StateDirError};
use crate::status::{ClusterStatus, ModelStatus, PullStatus};
use crate::traces::Tracer;

pub(super) use self::draft::Draft;

/// Events that wait for the core: some from every worker and link at once. Their tasks wait when it is full.
pub(super) const EVENT_QUEUE: usize = 1024;
/// Requests that wait for the core to look at them; they wait microseconds.
pub(super) const SUBMISSION_QUEUE: usize = 64;
/// Wishes to drain a worker that wait for the core: people type them.
pub(super) const DRAIN_QUEUE: usize = 8;
/// Pins, renewals of them and questions about what plans are made with that wait for the core: a few in a second at the
/// most.
pub(super) const PIN_QUEUE: usize = 8;
/// The status is never older than this.
const STATUS_PERIOD: Duration = Duration::from_millis(250);
/// Changes within this time are published together.
const STATUS_PAUSE: Duration = Duration::from_millis(20);

/// Something that a shell task tells the core.
pub(super) enum CoreEvent {
    /// A worker has attached.
    Attached { session: Session, worker: WorkerId, remote: SocketAddr, hello: Box<Capabilities> },
    /// A worker has said something.
    Said { session: SessionId, message: ToCoordinator },
    /// A worker's stream has ended.
    Detached { session: SessionId, reason: String },
    /// A worker's data plane was probed.
    Probed { worker: WorkerId, nonce: u64, probed: Probed },
    /// A worker has dialled the data plane.
    LinkAccepted(Box<Link>),
    /// A result came.
    Result { link: LinkId, result: Box<StepResult> },
    /// A data link has ended.
    LinkEnded { link: LinkId, reason: String },
    /// The state directory is back from writing an epoch.
    EpochWritten {
        deployment: DeploymentId,
        epoch: Epoch,
        state: StateDir,
        result: Result<(), StateDirError>,
    },
}

/// What the core is made with.
pub(super) struct CoreParts {
    pub(super) incarnation: Incarnation,
    pub(super) data_port: u16,
    pub(super) model: ModelStatus,
    pub(super) state_dir: StateDir,
    pub(super) deployment: Deployment,
    pub(super) draft: Option<Draft>,
    pub(super) max_waiting: usize,
    pub(super) park: Duration,
    pub(super) speculation: Speculation,
    pub(super) short_way: bool,
    pub(super) metrics: Metrics,
    pub(super) tracer: Option<Tracer>,
    pub(super) health: Health,
    pub(super) timeline: Timeline,
    pub(super) tasks: TaskTracker,
    pub(super) transport: Arc<Transport>,
    pub(super) events: (mpsc::Sender<CoreEvent>, mpsc::Receiver<CoreEvent>),
    pub(super) submissions: mpsc::Receiver<Submission>,
    pub(super) drains: mpsc::Receiver<Drain>,
    pub(super) pins: mpsc::Receiver<PinWish>,
    pub(super) status: watch::Sender<Arc<ClusterStatus>>,
    pub(super) holders: Holders,
    pub(super) pulls: watch::Receiver<Vec<PullStatus>>,
}

type Cancelled = Pin<Box<dyn Future<Output = SequenceId> + Send>>;

/// The owner of all decisions.
pub(super) struct Core {
    incarnation: Incarnation,
    data_port: u16,
    model: ModelStatus,
    /// `None` while a task writes an epoch.
    state_dir: Option<StateDir>,
    /// Epochs that are to be written after that one.
    next_epochs: BTreeMap<DeploymentId, Epoch>,
    membership: Membership,
    deployment: Deployment,
    draft: Option<Draft>,
    scheduler: Scheduler,
    sessions: HashMap<SessionId, Session>,
    links: Links,
    /// The worker of the first stage, while a plan is served.
    first: Option<WorkerId>,
    /// Each worker's count of steps when the plan began to serve.
    steps_before: BTreeMap<WorkerId, u64>,
    clients: Clients,
    cancelled: FuturesUnordered<Cancelled>,
    statistics: Statistics,
    timeline: Timeline,
    traffic: Traffic,
    monitor: Monitor,
    recoveries: Recoveries,
    metrics: Metrics,
    health: Health,
    tasks: TaskTracker,
    transport: Arc<Transport>,
    events_sender: mpsc::Sender<CoreEvent>,
    events: mpsc::Receiver<CoreEvent>,
    submissions: mpsc::Receiver<Submission>,
    drains: mpsc::Receiver<Drain>,
    pins: mpsc::Receiver<PinWish>,
    status: watch::Sender<Arc<ClusterStatus>>,
    /// Workers that others may get weights from.
    holders: Holders,
    pulls: watch::Receiver<Vec<PullStatus>>,
    published: Instant,
    changed: bool,
    /// Whether no request runs or waits, as the deployment knows it.
    idle: bool,
}

impl Core {
    pub(super) fn new(parts: CoreParts) -> Core {
        let now = Instant::now();
        let (events_sender, events) = parts.events;
        Core {
            incarnation: parts.incarnation,
            data_port: parts.data_port,
            model: parts.model,
            state_dir: Some(parts.state_dir),
            next_epochs: BTreeMap::new(),
            membership: Membership::new(),
            deployment: parts.deployment,
            draft: parts.draft,
            scheduler: Scheduler::new(parts.max_waiting, parts.speculation, now)
                .with_short_way(parts.short_way)
                .with_park(parts.park),
            sessions: HashMap::new(),
            links: Links::new(events_sender.clone(), parts.tasks.clone()),
            first: None,
            steps_before: BTreeMap::new(),
            clients: Clients::new(parts.metrics.clone(), parts.tracer),
            cancelled: FuturesUnordered::new(),
            statistics: Statistics::default(),
            timeline: parts.timeline,
            traffic: Traffic::default(),
            monitor: Monitor::default(),
            recoveries: Recoveries::default(),
            metrics: parts.metrics,
            health: parts.health,
            tasks: parts.tasks,
            transport: parts.transport,
            events_sender,
            events,
            submissions: parts.submissions,
            drains: parts.drains,
            pins: parts.pins,
            status: parts.status,
            holders: parts.holders,
            pulls: parts.pulls,
            published: now,
            changed: true,
            idle: false,
        }
    }

    /// Runs until `shutdown`; stages are retired and clients told before it returns.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            self.carry_out(Instant::now());
            self.publish_if_due(Instant::now()).await;
            let wake_at = self.wake_at();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(event) = self.events.recv() => self.handle(event, Instant::now()),
                Some(submission) = self.submissions.recv() => self.submit(submission),
                Some(wish) = self.drains.recv() => self.drain(wish, Instant::now()).await,
                Some(wish) = self.pins.recv() => self.pin_wished(wish, Instant::now()).await,
                Some(sequence) = self.cancelled.next() => {
                    self.clients.forget(sequence);
                    self.scheduler.cancel(sequence);
                    self.changed = true;
                }
                () = sleep_until(wake_at.into()) => self.handle_timeout(Instant::now()),
            }
        }
        let now = Instant::now();
        self.tell_deployments(deployment::Event::Stop, now);
        self.carry_out(now);
        self.publish(now).await;
    }

    fn wake_at(&self) -> Instant {
        let status = self.published + if self.changed { STATUS_PAUSE } else { STATUS_PERIOD };
        let machines =
            [self.membership.next_timeout(), self.deployment.next_timeout(), self.scheduler.next_timeout()];
        let draft = self.draft.as_ref().and_then(|draft| draft.deployment.next_timeout());
        let machines = machines.into_iter().chain([draft]);
        machines.flatten().fold(status, Instant::min)
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.membership.handle_timeout(now);
        self.deployment.handle_timeout(&self.membership, now);
        if let Some(draft) = &mut self.draft {
            draft.deployment.handle_timeout(&self.membership, now);
        }
        self.scheduler.handle_timeout(now);
    }

    fn handle(&mut self, event: CoreEvent, now: Instant) {
        // Results come by the hundred a second, and change nothing that cannot wait for the period.
        self.changed |= !matches!(event, CoreEvent::Result { .. });
        match event {
            CoreEvent::Attached { session, worker, remote, hello } => {
                tracing::info!(%worker, %remote, name = hello.name, budget = %hello.budget, "a worker attached");
                let welcome = Welcome {
                    incarnation: self.incarnation,
                    data_port: self.data_port,
                    heartbeat_ms: HEARTBEAT.as_millis() as u32,
                };
                let id = session.id;
                self.sessions.insert(id, session);
                self.tell(id, ToWorker::Welcome(welcome));
                let event = membership::Event::Attached { session: id, worker, remote, hello };
                self.membership.handle(event, now);
            }
            CoreEvent::Said { session, message } => self.heard(session, message, now),
            CoreEvent::Detached { session, reason } => {
                if let Some(worker) = self.membership.worker_of(session) {
                    tracing::warn!(%worker, "a worker's control stream ended: {reason}");
                }
                self.sessions.remove(&session);
                self.membership.handle(membership::Event::Detached { session, reason }, now);
            }
            CoreEvent::Probed { worker, nonce, probed } => {
                tracing::info!(%worker, ?probed, "probed a worker's data plane");
                self.membership.handle(membership::Event::Probed { worker, nonce, probed }, now);
            }
            CoreEvent::LinkAccepted(link) => self.link_accepted(*link, now),
            CoreEvent::Result { link, result } => {
                if self.links.worker_of(link).is_some() {
                    self.scheduler.handle_result(*result, now);
                }
            }
            CoreEvent::LinkEnded { link, reason } => {
                if let Some(worker) = self.links.remove(link) {
                    self.tell_deployments(deployment::Event::LinkDown { worker, reason }, now);
                }
            }
            CoreEvent::EpochWritten { deployment, epoch, state, result } => {
                self.state_dir = Some(state);
                let result = result.map_err(|error| error.to_string());
                let event = deployment::Event::EpochPersisted { epoch, result };
                self.tell_deployment(deployment, event, now);
                if let Some((deployment, epoch)) = self.next_epochs.pop_first() {
                    self.write_epoch(deployment, epoch);
                }
            }
        }
    }

    /// Takes in what a worker said; streams that were replaced are not listened to.
    fn heard(&mut self, session: SessionId, message: ToCoordinator, now: Instant) {
        let Some(worker) = self.membership.worker_of(session).cloned() else {
            return;
        };
        let telemetry = match &message {
            ToCoordinator::Heartbeat(telemetry) => Some(telemetry.clone()),
            _ => None,
        };
        self.membership.handle(membership::Event::Heard { session, telemetry }, now);
        let event = match message {
            // Reports name their deployment, and a worker that has answered a probe has spoken for all.
            ToCoordinator::Stage(report) => deployment::Event::Stage { worker, report },
            ToCoordinator::LinkLost { deployment, peer, reason } => {
                let known = deployment == self.deployment.id() || self.is_draft(deployment);
                if known {
                    let event = deployment::Event::LinkLost { worker, peer, reason };
                    self.tell_deployment(deployment, event, now);
                }
                return;
            }
            ToCoordinator::Probed { nonce } => deployment::Event::Probed { worker, nonce },
            ToCoordinator::StepFailed { deployment, step, stage, reason } => {
                tracing::warn!(%worker, stage, %step, "a step failed: {reason}");
                return self.scheduler.handle_failure(deployment, step, stage, &reason, now);
            }
            ToCoordinator::Leaving => {
                tracing::info!(%worker, "a worker leaves");
                return self.membership.handle(membership::Event::Leaving { session }, now);
            }
            // The served model's plan alone looks at links and devices.
            ToCoordinator::LinkProbed { nonce, reached } => {
                tracing::info!(%worker, reached, "a worker probed the link to another");
                let event = deployment::Event::LinkProbed { nonce, reached };
                return self.deployment.handle(event, &self.membership, now);
            }
            ToCoordinator::Heartbeat(telemetry) => {
                self.traffic.heard(&worker, &telemetry.links, now);
                let time = Duration::from_millis(telemetry.computing_ms.into());
                let event = deployment::Event::Computing { worker, time };
                return self.deployment.handle(event, &self.membership, now);
            }
            ToCoordinator::Hello(_) => return,
        };
        self.tell_deployments(event, now);
    }

    fn link_accepted(&mut self, link: Link, now: Instant) {
        let stages = self.deployment.stages();
        let draft = self.draft.iter().flat_map(|draft| draft.deployment.stages());
        let ends = stages.first().into_iter().chain(stages.last()).chain(draft);
        let expected = ends.into_iter().any(|stage| {
            matches!(link.peer(), brigade_proto::ids::Peer::Worker(worker) if *worker == stage.worker)
        });
        if !expected {
            tracing::warn!(peer = %link.peer(), "closed a data link that no plan asks for");
            link.split().0.close("the coordinator does not expect a link from this worker");
            return;
        }
        if let Some(worker) = self.links.open(link) {
            self.tell_deployments(deployment::Event::LinkUp { worker }, now);
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { request, reply } = submission;
        let generation = self.clients.add(&request);
        let result = self.scheduler.submit(generation.sequence, request);
        match result {
            Ok(()) => {
                let (sequence, cancelled) = (generation.sequence, generation.cancelled);
                self.cancelled.push(Box::pin(async move {
                    cancelled.cancelled_owned().await;
                    sequence
                }));
                // A client that has gone already drops the generation, which cancels it.
                let _ = reply.send(Ok(generation.generation));
            }
            Err(error) => {
                self.clients.refuse(generation.sequence);
                let _ = reply.send(Err(error));
            }
        }
        self.changed = true;
    }
}

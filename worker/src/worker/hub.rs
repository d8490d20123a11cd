//! The loop that owns the stage machine and carries out what it decides.
//!
//! Everything that happens (the coordinator's commands, loads, links, the engine, time) arrives here, and the loop never
//! waits for any of it to be done: probes are answered while steps are computed and weights are read.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use brigade_proto::control::{
    ConnectStage, ShortWayEnd, StageState, Telemetry, ToCoordinator, ToWorker, Welcome,
};
use brigade_proto::frame::FrameLimits;
use brigade_proto::health::Health;
use brigade_proto::ids::{DeploymentId, Incarnation};
use brigade_shard::units::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::WorkerError;
use crate::data::{DataEvent, DataOutcome, DataPlane};
use crate::delivery::{Home, Service};
use crate::engine::{Compute, Engine, EngineEvent, EngineOrder};
use crate::lifecycle::{LoadId, PROGRESS_INTERVAL, StageCommand, StageEvent, StageMachine};
use crate::loads::{Found, LoadEvent, Loads};
use crate::session::{AttachStream, SessionEvent};
use crate::stage::{PreparedWeights, Stage};
use crate::stretch::{Stretch, Stretched};
use crate::telemetry::{EngineCounters, MemoryMeter, Meters, Vitals};

/// How often a worker reports until a coordinator has said how often it should.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(1);

/// Bounds on what a coordinator may ask for, so that no mistake of its own floods or silences a worker.
const HEARTBEATS: std::ops::RangeInclusive<u32> = 100..=10_000;

/// Failures and losses that are kept for the coordinator while it cannot be told: as many as can happen to the steps
/// and links of a few deployments at once; past it the oldest go, whose steps have long been replayed.
const BACKLOG: usize = 64;

/// How long links may take to close, so that a worker ends within a second.
const LINK_PATIENCE: Duration = Duration::from_millis(300);

/// How long the engine may take to finish the step under way, so that a worker ends within a second.
const ENGINE_PATIENCE: Duration = Duration::from_millis(700);

/// How long a look at the system may take to end, so that a worker ends within a second.
const LOOK_PATIENCE: Duration = Duration::from_millis(300);

/// Frames before the first stage is loaded: none are expected.
pub(super) const IDLE_LIMITS: FrameLimits = FrameLimits { max_header_bytes: 64 << 10, max_payload_bytes: 0 };

fn heartbeat_every(period: Duration) -> Interval {
    let mut heartbeat = interval(period);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

/// Where everything that happens comes from.
pub(super) struct Events {
    pub(super) session: mpsc::Receiver<SessionEvent>,
    pub(super) engine: mpsc::Receiver<EngineEvent>,
    pub(super) loads: mpsc::Receiver<LoadEvent>,
    pub(super) data: mpsc::Receiver<DataEvent>,
}

/// The loop's state.
pub(super) struct Hub {
    machine: StageMachine,
    stretch: Stretch,
    engine: Engine,
    data: DataPlane,
    loads: Loads,
    /// What loads have found, until the machine wants it read or discarded.
    found: BTreeMap<LoadId, Found>,
    /// What loads have made, until the machine wants it installed or discarded.
    made: BTreeMap<LoadId, (Box<Stage>, FrameLimits)>,
    /// Weights that are resident ahead of their stage, until the machine wants them discarded.
    prepared: BTreeMap<LoadId, PreparedWeights>,
    /// The largest frames of each stage in the engine.
    limits: BTreeMap<DeploymentId, FrameLimits>,
    stream: Option<AttachStream>,
    /// The coordinator's own words on the stream that stands; `None` before they come.
    welcome: Option<Welcome>,
    backlog: VecDeque<(Incarnation, ToCoordinator)>,
    heartbeat: Interval,
    counters: Arc<EngineCounters>,
    meter: MemoryMeter,
    meters: Meters,
    health: Health,
    delivery: (Service, Home),
}

impl Hub {
    /// A hub between the parts of a worker that may use so much memory, and stretches its steps.
    pub(super) fn new(
        (budget, stretch): (Bytes, Stretch),
        engine: Engine,
        data: DataPlane,
        loads: Loads,
        (counters, meters): (Arc<EngineCounters>, Meters),
        health: Health,
        delivery: (Service, Home),
    ) -> Hub {
        Hub {
            machine: StageMachine::new(budget),
            stretch,
            engine,
            data,
            loads,
            found: BTreeMap::new(),
            made: BTreeMap::new(),
            prepared: BTreeMap::new(),
            limits: BTreeMap::new(),
            stream: None,
            welcome: None,
            backlog: VecDeque::new(),
            heartbeat: heartbeat_every(FIRST_HEARTBEAT),
            counters,
            meter: MemoryMeter::default(),
            meters,
            health,
            delivery,
        }
    }

    /// Runs until `ending`, or until the coordinator wants nothing of the worker any more; then ends all parts.
    pub(super) async fn run(
        mut self,
        mut events: Events,
        session: JoinHandle<()>,
        session_ending: CancellationToken,
        ending: &CancellationToken,
    ) -> Result<(), WorkerError> {
        let mut progress = interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            let loading = self.machine.is_loading();
            tokio::select! {
                biased;
                () = ending.cancelled() => break Ok(()),
                event = events.session.recv() => match event {
                    Some(event) => match self.session(event).await {
                        Next::GoOn => {}
                        Next::End(result) => break result,
                    },
                    None => break Err(WorkerError::Unattached),
                },
                Some(event) = events.engine.recv() => self.engine_said(event),
                Some(event) = events.data.recv() => self.data_said(event),
                Some(event) = events.loads.recv() => self.load_said(event),
                _ = self.heartbeat.tick() => self.beat(),
                _ = progress.tick(), if loading => self.load_progress(),
            }
        };
        self.end(events, session, session_ending).await;
        result
    }

    async fn session(&mut self, event: SessionEvent) -> Next {
        match event {
            SessionEvent::Attached(stream) => (self.stream, self.welcome) = (Some(stream), None),
            SessionEvent::Detached => {
                (self.stream, self.welcome) = (None, None);
                self.health.set_serving(false).await;
            }
            SessionEvent::Refused(error) => return Next::End(Err(error.into())),
            SessionEvent::Message(message) => match message {
                ToWorker::Welcome(welcome) => self.welcomed(welcome).await,
                ToWorker::Load(order) => self.apply(StageEvent::Load(order)),
                ToWorker::Connect(order) => self.apply(StageEvent::Connect(order)),
                ToWorker::Activate { deployment, fence } => {
                    self.apply(StageEvent::Activate { deployment, fence });
                }
                ToWorker::Retire { deployment } => self.apply(StageEvent::Retire { deployment }),
                ToWorker::Prepare(order) => self.apply(StageEvent::Prepare(order)),
                ToWorker::Unprepare { deployment } => self.apply(StageEvent::Unprepare { deployment }),
                ToWorker::Probe { nonce } => {
                    self.try_tell(ToCoordinator::Probed { nonce });
                }
                ToWorker::ProbeLink { nonce, peer, addresses } => self.data.probe(nonce, peer, addresses),
                ToWorker::Shutdown { reason } => {
                    tracing::info!("the coordinator has told this worker to end: {reason}");
                    return Next::End(Ok(()));
                }
            },
        }
        Next::GoOn
    }

    async fn welcomed(&mut self, welcome: Welcome) {
        tracing::info!("attached to the coordinator's start {}", welcome.incarnation);
        let period = welcome.heartbeat_ms.clamp(*HEARTBEATS.start(), *HEARTBEATS.end());
        self.heartbeat = heartbeat_every(Duration::from_millis(period.into()));
        let incarnation = welcome.incarnation;
        let home = self.stream.as_ref().map(|stream| SocketAddr::new(stream.remote.ip(), welcome.data_port));
        *self.delivery.1.lock().unwrap_or_else(PoisonError::into_inner) = home;
        self.welcome = Some(welcome);
        if self.machine.incarnation() != Some(incarnation) {
            self.data.forget_coordinator();
        }
        self.apply(StageEvent::Welcomed(incarnation));
        for (then, message) in std::mem::take(&mut self.backlog) {
            if then == incarnation {
                self.tell(message);
            }
        }
        self.health.set_serving(true).await;
    }

    /// Tells the machine, and does what it wants done.
    fn apply(&mut self, event: StageEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for command in self.machine.handle(event, Instant::now()) {
                events.extend(self.carry_out(command));
            }
        }
    }

    /// Carries a command out; what could not even be begun comes back as an event.
    fn carry_out(&mut self, command: StageCommand) -> Option<StageEvent> {
        match command {
            StageCommand::Find { load, order } => {
                let begun = self.loads.find(load, order);
                return begun.err().map(|error| not_begun(load, &error));
            }
            StageCommand::Read { load, budget } => {
                let found = self.found.remove(&load)?;
                let begun = self.loads.read(load, found, budget);
                return begun.err().map(|error| not_begun(load, &error));
            }
            StageCommand::FindMissing { load, order } => {
                let begun = self.loads.find_missing(load, order);
                return begun.err().map(|error| not_begun(load, &error));
            }
            StageCommand::ReadMissing { load } => {
                let found = self.found.remove(&load)?;
                let begun = self.loads.read_missing(load, found);
                return begun.err().map(|error| not_begun(load, &error));
            }
            StageCommand::Cancel { load } => self.loads.cancel(load),
            StageCommand::Discard { load } => {
                self.found.remove(&load);
                self.made.remove(&load);
                self.prepared.remove(&load);
            }
            StageCommand::Install { load, deployment, stage } => {
                let (made, limits) = self.made.remove(&load)?;
                self.limits.insert(deployment, limits);
                self.limit_frames();
                let compute: Box<dyn Compute> = match self.stretch {
                    Stretch::NONE => made,
                    stretch => Box::new(Stretched::new(*made, stretch)),
                };
                self.order(EngineOrder::Install { deployment, stage, compute });
            }
            StageCommand::Open { attempt, order } => {
                let at = self.stream.as_ref().map(|stream| stream.remote).zip(self.welcome.as_ref());
                let Some((remote, welcome)) = at else {
                    let reason = "the coordinator's stream ended before its links were opened".to_owned();
                    return Some(StageEvent::LinksFailed { attempt, reason });
                };
                let coordinator = SocketAddr::new(remote.ip(), welcome.data_port);
                self.data.open(attempt, order, coordinator);
            }
            StageCommand::Unbind { deployment } => self.data.release(deployment),
            StageCommand::Activate { deployment, fence } => {
                self.order(EngineOrder::Activate { deployment, fence });
            }
            StageCommand::Clear { deployment, stage } => self.order(EngineOrder::Clear { deployment, stage }),
            StageCommand::Drop { deployment } => {
                self.limits.remove(&deployment);
                self.limit_frames();
                self.order(EngineOrder::Drop { deployment });
            }
            StageCommand::Report(report) => {
                // Whoever acts on the news sees the memory that goes with it.
                if !matches!(report.state, StageState::Loading { .. }) {
                    self.tell_telemetry();
                }
                if let StageState::Failed { reason } = &report.state {
                    tracing::warn!(deployment = %report.deployment, "a stage cannot be used: {reason}");
                }
                self.tell(ToCoordinator::Stage(report));
            }
        }
        None
    }

    fn order(&self, order: EngineOrder) {
        if let Err(error) = self.engine.order(order) {
            tracing::error!("{error}");
        }
    }

    /// Accepts frames as large as the largest stage's.
    fn limit_frames(&self) {
        let largest = self.limits.values().fold(IDLE_LIMITS, |a, b| FrameLimits {
            max_header_bytes: a.max_header_bytes.max(b.max_header_bytes),
            max_payload_bytes: a.max_payload_bytes.max(b.max_payload_bytes),
        });
        self.data.set_limits(largest);
    }

    fn engine_said(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Dropped { deployment } => self.apply(StageEvent::Dropped { deployment }),
            EngineEvent::Panicked { deployment, reason } => {
                tracing::error!("{reason}");
                self.apply(StageEvent::Panicked { deployment, reason });
            }
            EngineEvent::StepFailed { deployment, step, stage, reason } => {
                tracing::warn!(%deployment, %step, "a step failed: {reason}");
                self.tell(ToCoordinator::StepFailed { deployment, step, stage, reason });
            }
        }
    }

    fn data_said(&mut self, event: DataEvent) {
        for outcome in self.data.handle(event) {
            match outcome {
                DataOutcome::Opened { attempt, order, outputs, next_address, rtt_us } => {
                    let ConnectStage { deployment, previous, wire, short_way, .. } = order;
                    let last = match short_way {
                        Some(ShortWayEnd::From(last)) => Some(last),
                        Some(ShortWayEnd::To(..)) | None => None,
                    };
                    self.order(EngineOrder::Bind { deployment, previous, outputs, last, wire });
                    self.apply(StageEvent::LinksOpened { attempt, next_address, rtt_us });
                }
                DataOutcome::Failed { attempt, reason } => {
                    self.apply(StageEvent::LinksFailed { attempt, reason });
                }
                DataOutcome::Probed { nonce, reached } => {
                    self.try_tell(ToCoordinator::LinkProbed { nonce, reached });
                }
                DataOutcome::Lost { deployment, peer, reason } => {
                    tracing::warn!(%deployment, "lost the link to {peer}: {reason}");
                    self.tell(ToCoordinator::LinkLost { deployment, peer, reason });
                }
            }
        }
    }

    fn load_said(&mut self, event: LoadEvent) {
        self.loads.joined(&event);
        match event {
            LoadEvent::Found { load, found } => {
                let memory = found.memory;
                let event = match found.missing {
                    Some(missing) => StageEvent::FoundMissing { load, weights: memory.weights, missing },
                    None => StageEvent::Found { load, memory },
                };
                self.found.insert(load, *found);
                self.apply(event);
            }
            LoadEvent::Prepared { load, weights } => {
                self.prepared.insert(load, weights);
                self.apply(StageEvent::Prepared { load });
            }
            LoadEvent::Ended { load, result } => {
                let result = match result {
                    Ok((stage, limits)) => {
                        let memory = stage.memory();
                        self.made.insert(load, (stage, limits));
                        Ok(memory)
                    }
                    Err(reason) => {
                        tracing::warn!("{reason}");
                        Err(reason)
                    }
                };
                self.apply(StageEvent::LoadEnded { load, result });
            }
        }
    }

    fn load_progress(&mut self) {
        for (load, progress) in self.loads.progress(Instant::now()) {
            self.apply(StageEvent::Progress { load, progress });
        }
    }

    fn beat(&mut self) {
        self.data.expire(Instant::now());
        if self.welcome.is_some() {
            self.apply(StageEvent::Beat);
        }
        self.tell_telemetry();
    }

    fn tell_telemetry(&mut self) {
        let resident = self.meter.read();
        if self.welcome.is_some() {
            let Vitals { machine, process, card } = self.meters.latest();
            let links = self.data.telemetry();
            let delivered = self.delivery.0.delivered();
            let (fetched, given) = (delivered.fetched(), delivered.given());
            let counted = self.counters.telemetry(resident);
            let telemetry = Telemetry { machine, process, card, links, fetched, given, ..counted };
            // A heartbeat that finds the queue full is late anyway: the next one says more.
            self.try_tell(ToCoordinator::Heartbeat(telemetry));
        }
    }

    /// Tells the coordinator, now or once it can be told: failures and losses are kept, states are told anew with
    /// every welcome.
    fn tell(&mut self, message: ToCoordinator) {
        if self.welcome.is_some() && self.try_tell(message.clone()) {
            return;
        }
        if let (Some(incarnation), ToCoordinator::StepFailed { .. } | ToCoordinator::LinkLost { .. }) =
            (self.machine.incarnation(), &message)
        {
            if self.backlog.len() >= BACKLOG {
                self.backlog.pop_front();
            }
            self.backlog.push_back((incarnation, message));
        }
        // A stream that does not drain has lost a report: a new one begins with all of them.
        if let (Some(_), Some(stream)) = (&self.welcome, &self.stream) {
            stream.give_up.cancel();
        }
    }

    fn try_tell(&mut self, message: ToCoordinator) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.outbox.try_send(message).is_ok())
    }

    /// Ends everything, within a second.
    async fn end(mut self, mut events: Events, session: JoinHandle<()>, session_ending: CancellationToken) {
        self.try_tell(ToCoordinator::Leaving);
        self.stream = None;
        session_ending.cancel();
        self.loads.cancel_all();
        // Nobody takes these any more: whoever waits to hand one over must not.
        events.session.close();
        events.engine.close();
        events.data.close();
        let Hub { engine, data, mut loads, meters, delivery: (delivery, _), .. } = self;
        let loads_ended = async {
            while !loads.is_empty() {
                let Some(event) = events.loads.recv().await else {
                    return;
                };
                loads.joined(&event);
            }
        };
        let (_, stopped, loaded, session, metered, delivered) = tokio::join!(
            data.stop(LINK_PATIENCE),
            engine.stop(ENGINE_PATIENCE),
            tokio::time::timeout(ENGINE_PATIENCE, loads_ended),
            tokio::time::timeout(ENGINE_PATIENCE, session),
            meters.stop(LOOK_PATIENCE),
            delivery.stop(ENGINE_PATIENCE),
        );
        if !stopped {
            tracing::warn!("left a computation behind that did not end in time");
        }
        if loaded.is_err() {
            tracing::warn!("left a load behind that did not end in time");
        }
        if !matches!(session, Ok(Ok(()))) {
            tracing::warn!("left the attach stream behind, which did not end in time");
        }
        if !delivered {
            tracing::warn!("left the thread that fetches weights behind, which did not end in time");
        }
        if !metered {
            tracing::warn!("left a look at the system behind that did not end in time");
        }
    }
}

/// Whether the loop goes on.
enum Next {
    GoOn,
    End(Result<(), WorkerError>),
}

fn not_begun(load: LoadId, error: &std::io::Error) -> StageEvent {
    StageEvent::LoadEnded { load, result: Err(format!("failed to start a thread to load with: {error}")) }
}

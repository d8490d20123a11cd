//! Everything that happens, in order of time: messages on their way, computations, timers and faults.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use brigade_coordinator::generation::{GenerationEvent, GenerationRequest};
use brigade_coordinator::membership::{HEARTBEAT, SessionId};
use brigade_coordinator::scheduler::Speculation;
use brigade_proto::control::{Capabilities, ConnectStage, DeviceKind, ToCoordinator, ToWorker};
use brigade_proto::ids::{Epoch, Peer, SequenceId, WorkerId};
use brigade_proto::link::Probed;
use brigade_proto::step::{Frame, StepResult};
use brigade_shard::units::Bytes;
use brigade_worker::lifecycle::{ConnectId, LoadId, StageEvent};

use super::coordinator::{Coordinator, INCARNATION, Wanted};
use super::random::Random;
use super::stage::Output;
use super::worker::{self, Computed, Process};

/// How long a probe waits for an answer.
const PROBE_US: u64 = 1_000_000;
/// Things that happened, kept for a failing run.
const LOG: usize = 400;

/// A link; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub(super) u64);

/// A machine: 0 is the coordinator's, the others are the workers'.
pub(super) type Place = usize;

/// One life of a process on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Life {
    pub(super) place: Place,
    pub(super) life: u64,
}

/// Something that happens at a moment.
#[derive(Debug)]
pub(super) enum Happening {
    /// A worker dials the coordinator; that takes it in.
    Attach(Life),
    Attached(Life),
    ToWorker(Life, SessionId, ToWorker),
    ToCoordinator(Life, SessionId, ToCoordinator),
    /// The end of a stream is noticed by the worker, or by the coordinator.
    StreamEnded(Life, SessionId),
    Detached(SessionId),
    Heartbeat(Life),
    Found(Life, LoadId),
    Read(Life, LoadId),
    Dialled(Life, ConnectId, Box<ConnectStage>),
    LinkProbed(Life, u64, WorkerId),
    Frame(LinkId, Life, Box<Frame>),
    LinkEnded(LinkId, Life),
    /// A link has been silent for a while.
    LinkIdle(LinkId),
    Computed(Life),
    EpochWritten(Epoch),
    Probed(WorkerId, u64, Probed),
    /// A result of an old plan comes once more.
    Ghost(Box<StepResult>),
    Wake,
    Start(Place),
}

/// A link between two processes.
pub(super) struct Link {
    pub(super) ends: [Life; 2],
    pub(super) broken: bool,
    /// When the last frame of each direction arrives, decode frames apart.
    pub(super) last_us: BTreeMap<(Life, bool), u64>,
}

/// A machine, and what runs on it.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) process: Option<Process>,
    pub(super) life: u64,
    pub(super) session: Option<SessionId>,
    pub(super) welcomed: bool,
    /// Since when nothing of it runs.
    pub(super) paused_us: Option<u64>,
    pub(super) backlog: VecDeque<Happening>,
    /// Whether its device does not get done.
    pub(super) hung: bool,
    /// How many times as long as usual its disk takes, and whether it fails.
    pub(super) slow: u64,
    pub(super) disk_fails: bool,
}

/// The world.
pub struct World {
    begin: Instant,
    pub(super) now_us: u64,
    happened: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    pub(super) random: Random,
    pub(super) coordinator: Coordinator,
    pub(super) machines: Vec<Machine>,
    budget: Bytes,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) last_link: u64,
    sessions: BTreeMap<SessionId, Life>,
    last_session: u64,
    /// When the last message of a stream arrives, towards the worker or from it.
    stream_us: BTreeMap<(SessionId, bool), u64>,
    pub(super) cut: BTreeMap<(Place, Place), u64>,
    pub(super) held: VecDeque<Happening>,
    wake_us: Option<u64>,
    pub(super) told: BTreeMap<SequenceId, Vec<GenerationEvent>>,
    log: VecDeque<String>,
}

impl World {
    /// A coordinator, and workers that are about to start, with so much memory each.
    pub fn new(seed: u64, workers: usize, budget: Bytes, speculation: Speculation, park: Duration) -> World {
        let begin = Instant::now();
        let mut world = World {
            begin,
            now_us: 0,
            happened: 0,
            queue: BTreeMap::new(),
            random: Random::new(seed),
            coordinator: Coordinator::new(workers, speculation, park, begin),
            machines: (0..=workers).map(|_| Machine { slow: 1, ..Machine::default() }).collect(),
            budget,
            links: BTreeMap::new(),
            last_link: 0,
            sessions: BTreeMap::new(),
            last_session: 0,
            stream_us: BTreeMap::new(),
            cut: BTreeMap::new(),
            held: VecDeque::new(),
            wake_us: None,
            told: BTreeMap::new(),
            log: VecDeque::new(),
        };
        for place in 1..=workers {
            let us = world.random.between(0, 300_000);
            world.after(us, Happening::Start(place));
        }
        world
    }

    pub(super) fn now(&self) -> Instant {
        self.begin + Duration::from_micros(self.now_us)
    }

    /// Microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// What happened last, for people.
    pub fn log(&self) -> String {
        self.log.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    /// Notes something for people.
    pub(super) fn note(&mut self, text: String) {
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:10.3} ms  {text}", self.now_us as f64 / 1e3));
    }

    pub(super) fn after(&mut self, us: u64, happening: Happening) {
        self.happened += 1;
        self.queue.insert((self.now_us + us, self.happened), happening);
    }

    /// Lets time pass, and all happen that happens meanwhile.
    pub fn pass(&mut self, us: u64) {
        let until = self.now_us + us;
        while let Some((&(at, _), _)) = self.queue.first_key_value().filter(|((at, _), _)| *at <= until) {
            self.now_us = at;
            if let Some((_, happening)) = self.queue.pop_first() {
                self.deliver(happening);
            }
        }
        self.now_us = until;
    }

    /// A request comes.
    ///
    /// # Errors
    /// Where it is refused.
    pub(super) fn submit(&mut self, id: SequenceId, request: GenerationRequest) -> Result<(), String> {
        let result = self.coordinator.submit(id, request).map_err(|error| error.to_string());
        self.settle();
        result
    }

    /// A client leaves.
    pub(super) fn cancel(&mut self, id: SequenceId) {
        self.coordinator.cancel(id);
        self.settle();
    }

    fn deliver(&mut self, happening: Happening) {
        if self.path(&happening).is_some_and(|(from, to)| self.is_cut(from, to)) {
            self.held.push_back(happening);
            return;
        }
        if let Some(place) = place_of(&happening)
            && self.machines[place].paused_us.is_some()
        {
            self.machines[place].backlog.push_back(happening);
            return;
        }
        if is_telling(&happening) {
            self.note(format!("{happening:?}").chars().take(300).collect());
        }
        self.happen(happening);
        self.settle();
    }

    /// Between which machines a message is on its way.
    fn path(&self, happening: &Happening) -> Option<(Place, Place)> {
        match happening {
            Happening::Attached(life)
            | Happening::ToWorker(life, ..)
            | Happening::ToCoordinator(life, ..)
            | Happening::StreamEnded(life, _) => Some((0, life.place)),
            Happening::Detached(session) => self.sessions.get(session).map(|life| (0, life.place)),
            Happening::Frame(link, ..) => {
                let ends = self.links.get(link)?.ends;
                Some((ends[0].place, ends[1].place))
            }
            _ => None,
        }
    }

    pub(super) fn is_cut(&self, one: Place, other: Place) -> bool {
        self.cut.contains_key(&(one.min(other), one.max(other)))
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.now();
        match happening {
            Happening::Start(place) => self.start(place),
            Happening::Attach(life) if self.lives(life) && !self.is_cut(0, life.place) => {
                let us = self.random.between(300, 3000);
                self.after(us, Happening::Attached(life));
            }
            // The coordinator cannot be reached: it is tried again.
            Happening::Attach(life) if self.lives(life) => self.after(500_000, Happening::Attach(life)),
            Happening::Attached(life) if self.lives(life) => self.attached(life, now),
            Happening::ToWorker(life, session, message) => self.worker_told(life, session, message, now),
            Happening::ToCoordinator(_, session, message) => self.coordinator.heard(session, message, now),
            Happening::StreamEnded(life, session) if self.lives(life) => {
                let machine = &mut self.machines[life.place];
                if machine.session == Some(session) {
                    (machine.session, machine.welcomed) = (None, false);
                    let us = self.random.between(150_000, 400_000);
                    self.after(us, Happening::Attach(life));
                }
            }
            Happening::Detached(session) => self.coordinator.detached(session, now),
            Happening::Heartbeat(life) if self.lives(life) => {
                self.beat(life);
                self.after(HEARTBEAT.as_micros() as u64, Happening::Heartbeat(life));
            }
            Happening::Found(life, load) => {
                self.with(life, |process, _| process.found(load, now));
            }
            Happening::Read(life, load) => {
                let failed = self.machines[life.place].disk_fails;
                self.with(life, |process, _| process.read(load, failed, now));
            }
            Happening::Dialled(life, attempt, order) if self.lives(life) => {
                self.dialled(life, attempt, &order, now);
            }
            Happening::LinkProbed(life, nonce, peer) if self.lives(life) => {
                let reached = self.place(&peer).is_some_and(|place| self.answers(life.place, place));
                self.tell(life, ToCoordinator::LinkProbed { nonce, reached });
            }
            Happening::Frame(link, to, frame) => self.frame_arrives(link, to, *frame, now),
            Happening::LinkEnded(link, at) => self.link_ended(link, at, now),
            Happening::LinkIdle(link) => self.link_idle(link),
            Happening::Computed(life) if self.lives(life) => self.computed(life),
            Happening::EpochWritten(epoch) => self.coordinator.epoch_written(epoch, now),
            Happening::Probed(worker, nonce, probed) => self.coordinator.probed(worker, nonce, probed, now),
            Happening::Ghost(result) => self.coordinator.result(None, *result, now),
            Happening::Wake => {
                self.wake_us = None;
                self.coordinator.handle_timeout(now);
            }
            // Of a process that is gone.
            Happening::Attach(_)
            | Happening::Attached(_)
            | Happening::StreamEnded(..)
            | Happening::Heartbeat(_)
            | Happening::Dialled(..)
            | Happening::LinkProbed(..)
            | Happening::Computed(_) => {}
        }
    }

    /// Has the coordinator's wishes done, and its timer set.
    pub(super) fn settle(&mut self) {
        let now = self.now();
        for wanted in self.coordinator.poll(now) {
            match wanted {
                Wanted::PersistEpoch(epoch) => {
                    let us = self.random.between(500, 20_000);
                    self.after(us, Happening::EpochWritten(epoch));
                }
                Wanted::Tell(session, message) => {
                    if let Some(life) = self.sessions.get(&session).copied() {
                        let us = self.stream_delay(session, true);
                        self.after(us, Happening::ToWorker(life, session, message));
                    }
                }
                Wanted::CloseSession(session) => {
                    if let Some(life) = self.sessions.get(&session).copied() {
                        let us = self.stream_delay(session, true);
                        self.after(us, Happening::StreamEnded(life, session));
                    }
                }
                Wanted::CloseLinks(links) => links.into_iter().for_each(|link| self.close(link, 0)),
                Wanted::Probe(worker, nonce) => self.probe(worker, nonce),
                Wanted::Send(link, step) => {
                    self.send(link, Life { place: 0, life: 0 }, Frame::Step(step));
                }
                Wanted::Emit(sequence, event) => self.told.entry(sequence).or_default().push(event),
            }
        }
        let Some(due) = self.coordinator.next_timeout() else {
            return;
        };
        let due_us = due.saturating_duration_since(self.begin).as_micros() as u64 + 1;
        if self.wake_us.is_none_or(|wake_us| due_us < wake_us) {
            self.wake_us = Some(due_us);
            self.after(due_us.saturating_sub(self.now_us), Happening::Wake);
        }
    }

    fn probe(&mut self, worker: WorkerId, nonce: u64) {
        let Some(place) = self.place(&worker) else { return };
        let machine = &self.machines[place];
        let (us, probed) = match () {
            () if self.answers(0, place) => (self.random.between(300, 5000), Probed::Here),
            // A machine without power says nothing; one whose process is gone does.
            () if machine.process.is_none() && !self.is_cut(0, place) && machine.paused_us.is_none() => {
                (self.random.between(100, 1000), Probed::Gone)
            }
            () => (PROBE_US, Probed::Silent),
        };
        self.after(us, Happening::Probed(worker, nonce, probed));
    }

    /// Whether a process answers that is asked from a machine.
    pub(super) fn answers(&self, from: Place, to: Place) -> bool {
        let machine = &self.machines[to];
        machine.process.is_some() && machine.paused_us.is_none() && !self.is_cut(from, to)
    }

    // What workers do.

    fn start(&mut self, place: Place) {
        let machine = &mut self.machines[place];
        if machine.process.is_some() {
            return;
        }
        machine.process = Some(Process::new(self.budget));
        let life = Life { place, life: machine.life };
        self.after(1000, Happening::Attach(life));
        self.after(2000, Happening::Heartbeat(life));
    }

    pub(super) fn lives(&self, life: Life) -> bool {
        life.place == 0
            || (self.machines[life.place].life == life.life && self.machines[life.place].process.is_some())
    }

    /// Has a process do something, and what it wants then.
    pub(super) fn with(&mut self, life: Life, act: impl FnOnce(&mut Process, u64) -> Vec<worker::Wanted>) {
        if !self.lives(life) {
            return;
        }
        let now_us = self.now_us;
        let Some(process) = &mut self.machines[life.place].process else {
            return;
        };
        for wanted in act(process, now_us) {
            match wanted {
                worker::Wanted::Find(load) => {
                    let us = self.random.between(500, 5000);
                    self.after(us, Happening::Found(life, load));
                }
                worker::Wanted::Read(load, layers) => {
                    let each_us = self.random.between(10_000, 60_000);
                    let slow = self.machines[life.place].slow;
                    self.after(each_us * layers as u64 * slow, Happening::Read(life, load));
                }
                worker::Wanted::Dial(attempt, order) => self.dial(life, attempt, order),
                worker::Wanted::Tell(message) => self.tell(life, message),
            }
        }
        self.compute_next(life);
    }

    fn attached(&mut self, life: Life, now: Instant) {
        self.last_session += 1;
        let session = SessionId(self.last_session);
        self.sessions.insert(session, life);
        self.machines[life.place].session = Some(session);
        let hello = Capabilities {
            name: format!("w{}", life.place),
            host: format!("host{}", life.place),
            version: "1".into(),
            device: DeviceKind::Cpu,
            device_name: "cpu".into(),
            budget: self.budget,
            threads: 1,
            bandwidth_bytes_per_s: 1e9,
            flops_per_s: 1e9,
            delivery_port: 0,
            data_addresses: vec![([10, 0, 0, life.place as u8], 7000).into()],
            stretch: 1.0,
            kernel_speeds: Vec::new(),
            shared_host: None,
            offload_bytes_per_s: None,
            converts: false,
        };
        let us = self.stream_delay(session, true);
        let welcome = brigade_proto::control::Welcome {
            incarnation: INCARNATION,
            data_port: 7481,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
        };
        self.after(us, Happening::ToWorker(life, session, ToWorker::Welcome(welcome)));
        self.coordinator.attached(session, worker_id(life.place), hello, now);
    }

    fn worker_told(&mut self, life: Life, session: SessionId, message: ToWorker, now: Instant) {
        if !self.lives(life) || self.machines[life.place].session != Some(session) {
            return;
        }
        let event = match message {
            ToWorker::Welcome(welcome) => {
                self.machines[life.place].welcomed = true;
                self.with(life, |process, _| {
                    let mut wanted = process.apply(StageEvent::Welcomed(welcome.incarnation), now);
                    let kept = process.kept(welcome.incarnation).into_iter();
                    wanted.extend(kept.map(worker::Wanted::Tell));
                    wanted
                });
                return;
            }
            ToWorker::Load(order) => StageEvent::Load(order),
            ToWorker::Connect(order) => StageEvent::Connect(order),
            ToWorker::Activate { deployment, fence } => StageEvent::Activate { deployment, fence },
            ToWorker::Retire { deployment } => StageEvent::Retire { deployment },
            ToWorker::Prepare(order) => StageEvent::Prepare(order),
            ToWorker::Unprepare { deployment } => StageEvent::Unprepare { deployment },
            ToWorker::Probe { nonce } => return self.tell(life, ToCoordinator::Probed { nonce }),
            ToWorker::ProbeLink { nonce, peer, .. } => {
                let Peer::Worker(peer) = peer else { return };
                let reached = self.place(&peer).is_some_and(|place| self.answers(life.place, place));
                let us = if reached { self.random.between(300, 5000) } else { PROBE_US };
                return self.after(us, Happening::LinkProbed(life, nonce, peer));
            }
            ToWorker::Shutdown { .. } => return,
        };
        self.with(life, |process, _| process.apply(event, now));
    }

    pub(super) fn tell(&mut self, life: Life, message: ToCoordinator) {
        let machine = &mut self.machines[life.place];
        match machine.session.filter(|_| machine.welcomed) {
            Some(session) => {
                let us = self.stream_delay(session, false);
                self.after(us, Happening::ToCoordinator(life, session, message));
            }
            None => {
                if let Some(process) = &mut machine.process {
                    process.keep(message);
                }
            }
        }
    }

    fn beat(&mut self, life: Life) {
        let now_us = self.now_us;
        let machine = &self.machines[life.place];
        if let (Some(process), true) = (&machine.process, machine.welcomed) {
            let telemetry = process.telemetry(now_us);
            self.tell(life, ToCoordinator::Heartbeat(telemetry));
        }
    }

    /// How long a message takes on a stream, which keeps their order.
    fn stream_delay(&mut self, session: SessionId, to_worker: bool) -> u64 {
        let delay_us = if self.random.once_in(40) {
            // A packet is lost, and sent again.
            self.random.between(200_000, 450_000)
        } else {
            self.random.between(200, 2000)
        };
        let last_us = self.stream_us.entry((session, to_worker)).or_default();
        *last_us = (self.now_us + delay_us).max(*last_us);
        *last_us - self.now_us
    }

    fn computed(&mut self, life: Life) {
        if self.machines[life.place].hung {
            return;
        }
        let now_us = self.now_us;
        let Some(process) = &mut self.machines[life.place].process else {
            return;
        };
        match process.finish(now_us) {
            Computed::Sends(link, Output::Pass(frame)) => self.send(link, life, Frame::Step(frame)),
            Computed::Sends(link, Output::Finish(result)) => self.send(link, life, Frame::Result(result)),
            Computed::Failed { deployment, step, stage, reason } => {
                self.tell(life, ToCoordinator::StepFailed { deployment, step, stage, reason });
            }
            Computed::Nothing => {}
        }
        self.compute_next(life);
    }

    fn compute_next(&mut self, life: Life) {
        let now_us = self.now_us;
        let Some(process) = &mut self.machines[life.place].process else {
            return;
        };
        if let Some(rows) = process.begin(now_us) {
            let us = 1000 + 300 * rows as u64 + self.random.below(500);
            self.after(us, Happening::Computed(life));
        }
    }

    /// Machines besides the coordinator's.
    pub(super) fn workers(&self) -> usize {
        self.machines.len() - 1
    }

    /// Sequences that the stages of the plan still hold.
    pub(super) fn held(&self) -> usize {
        let stages = self.coordinator.stages().into_iter().filter_map(|worker| self.place(&worker));
        stages.filter_map(|place| self.machines[place].process.as_ref()).map(Process::held).sum()
    }

    fn place(&self, worker: &WorkerId) -> Option<Place> {
        (1..self.machines.len()).find(|place| worker_id(*place) == *worker)
    }

    pub(super) fn peer_place(&self, peer: &Peer) -> Option<Place> {
        match peer {
            Peer::Coordinator => Some(0),
            Peer::Worker(worker) => self.place(worker),
        }
    }
}

/// The machine at which something happens; `None` where it is the world's.
fn place_of(happening: &Happening) -> Option<Place> {
    match happening {
        Happening::Attach(life)
        | Happening::ToWorker(life, ..)
        | Happening::StreamEnded(life, _)
        | Happening::Heartbeat(life)
        | Happening::Found(life, _)
        | Happening::Read(life, _)
        | Happening::Dialled(life, ..)
        | Happening::LinkProbed(life, ..)
        | Happening::Frame(_, life, _)
        | Happening::LinkEnded(_, life)
        | Happening::Computed(life) => Some(life.place),
        Happening::Attached(_)
        | Happening::ToCoordinator(..)
        | Happening::Detached(_)
        | Happening::EpochWritten(_)
        | Happening::Probed(..)
        | Happening::Ghost(_)
        | Happening::Wake => Some(0),
        Happening::LinkIdle(_) | Happening::Start(_) => None,
    }
}

/// Whether something says more than that time passes.
fn is_telling(happening: &Happening) -> bool {
    !matches!(
        happening,
        Happening::Frame(..)
            | Happening::Computed(_)
            | Happening::Wake
            | Happening::Heartbeat(_)
            | Happening::Ghost(_)
            | Happening::ToCoordinator(_, _, ToCoordinator::Heartbeat(_))
    )
}

pub(super) fn worker_id(place: Place) -> WorkerId {
    WorkerId::try_from(format!("w{place}")).expect("a good name")
}

pub(super) fn peer_of(place: Place) -> Peer {
    if place == 0 { Peer::Coordinator } else { Peer::Worker(worker_id(place)) }
}

//! The engine: one thread that owns a device's stages and computes their steps, one at a time.
//!
//! Frames arrive in two bounded lanes, decode before prefill, and orders about the stages come before both. Every
//! frame is checked against its stage's fence and sender before anything else; what is not expected is dropped and
//! counted. What a stage makes goes to the tasks that send, so that receiving, computing and sending overlap. A step
//! that fails is reported and the engine goes on; a defect that unwinds costs the stage, never the thread.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use brigade_proto::control::StageMemory;
use brigade_proto::ids::{DeploymentId, Fence, Peer, StepId};
use brigade_proto::step::{Drawn, Frame, StageTiming, StepFrame, StepKind, StepResult, WireDtype};
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::ahead::{Ahead, drawn, places};
use crate::driver::{Driver, EngineThread};
use crate::telemetry::EngineCounters;

/// Decode frames that wait to be computed, of a few rows each. A coordinator has at most so many under way; past this
/// the link's flow control holds them back.
pub const DECODE_LANE_FRAMES: usize = 32;

/// Prefill frames that wait to be computed: a first stage is sent some more chunks than the pipeline has stages, as
/// token ids.
pub const PREFILL_LANE_FRAMES: usize = 64;

/// Bytes of hidden states in the prefill lane, the frame that is being computed included; a larger frame has the lane
/// for itself. Between two stages a chunk can be megabytes, and what is not taken in here waits at its sender.
pub const PREFILL_LANE_BYTES: usize = 8 << 20;

/// Frames of a kind that wait to be sent: one on its way and one behind it keep the link busy, and more would only
/// hold memory.
pub const OUTPUT_FRAMES: usize = 2;

/// For how long after a prefill step there may be another: its frames come in bursts that must be taken in meanwhile.
const PROMPTS_PAST: Duration = Duration::from_secs(1);

/// Orders about stages that wait: a few per deployment and plan, and a worker holds few deployments.
const ORDER_QUEUE: usize = 128;

/// Reports that wait to be taken up. Whoever takes them never waits for the engine, so the engine may wait here.
const EVENT_QUEUE: usize = 64;

/// What the engine needs of a stage.
pub trait Compute: Send {
    /// Computes a step: ended sequences are released first. Timings are the engine's to fill in.
    ///
    /// # Errors
    /// Where the frame does not fit the stage; the stage stays usable for others.
    fn run(&mut self, frame: StepFrame) -> Result<Output, String>;
    /// Forgets all sequences.
    fn clear(&mut self);
    /// Cache tokens in use, and sequences that hold any.
    fn usage(&self) -> (u32, u32);
    /// What the stage takes of the budget.
    fn memory(&self) -> StageMemory;
    /// How hidden states leave the stage from now on.
    fn set_wire(&mut self, wire: WireDtype);
}

/// What a step brought.
#[derive(Debug)]
pub enum Output {
    /// For the next stage.
    Pass(StepFrame),
    /// For the coordinator.
    Finish(StepResult),
}

impl Output {
    fn into_frame(self, timings: Vec<StageTiming>) -> Frame {
        match self {
            Output::Pass(frame) => Frame::Step(StepFrame { timings, ..frame }),
            Output::Finish(result) => Frame::Result(StepResult { timings, ..result }),
        }
    }
}

/// A frame with where it came from and when.
#[derive(Debug)]
pub struct Arrival {
    /// Who sent it.
    pub peer: Peer,
    /// What it is.
    pub frame: StepFrame,
    /// When it was complete.
    pub at: Instant,
}

/// Where a stage's frames leave it.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// For decode steps.
    pub decode: mpsc::Sender<Frame>,
    /// For prefill steps.
    pub prefill: mpsc::Sender<Frame>,
    /// From the last stage to the first, for what steps draw.
    pub drawn: Option<mpsc::Sender<Frame>>,
    /// How long sending the last frame took, in microseconds; kept by whoever sends.
    pub sent_us: Arc<AtomicU32>,
}

/// What to do with a stage.
pub enum EngineOrder {
    /// Take a stage in; it accepts no frame yet.
    Install {
        /// What it is called.
        deployment: DeploymentId,
        /// Its place in the pipeline, from 0.
        stage: u32,
        /// The stage.
        compute: Box<dyn Compute>,
    },
    /// Set its neighbours.
    Bind {
        /// Which stage.
        deployment: DeploymentId,
        /// Whose frames it accepts.
        previous: Peer,
        /// Where its own go.
        outputs: Outputs,
        /// For the first of several stages: the last one, which may tell what it draws.
        last: Option<Peer>,
        /// How hidden states are stored on the way.
        wire: WireDtype,
    },
    /// Accept frames of this fence.
    Activate {
        /// Which stage.
        deployment: DeploymentId,
        /// What frames must carry.
        fence: Fence,
    },
    /// Accept no frame, and forget neighbours and sequences; the weights stay.
    Clear {
        /// Which stage.
        deployment: DeploymentId,
        /// Its place in the pipeline from now on.
        stage: u32,
    },
    /// Let go of the stage and its memory; answered by [`EngineEvent::Dropped`], also where there is none.
    Drop {
        /// Which stage.
        deployment: DeploymentId,
    },
}

/// What the engine has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// A stage is gone and its memory free.
    Dropped {
        /// Which stage.
        deployment: DeploymentId,
    },
    /// A stage was lost to a defect; its memory is free.
    Panicked {
        /// Which stage.
        deployment: DeploymentId,
        /// What the defect said.
        reason: String,
    },
    /// A step brings no result.
    StepFailed {
        /// Which stage.
        deployment: DeploymentId,
        /// Which step.
        step: StepId,
        /// The stage's place in the pipeline.
        stage: u32,
        /// What is wrong.
        reason: String,
    },
}

/// The queues of frames in front of the engine.
#[derive(Clone, Debug)]
pub struct Lanes {
    drawn: mpsc::Sender<(Peer, Drawn)>,
    decode: mpsc::Sender<Queued>,
    prefill: mpsc::Sender<Queued>,
    prefill_bytes: Arc<Semaphore>,
}

/// A frame in a lane, with its share of the lane's bytes.
#[derive(Debug)]
struct Queued {
    arrival: Arrival,
    _share: Option<OwnedSemaphorePermit>,
}

impl Lanes {
    /// Queues what a step drew, before every step; `false` where the engine has ended.
    pub async fn push_drawn(&self, peer: Peer, drawn: Drawn) -> bool {
        self.drawn.send((peer, drawn)).await.is_ok()
    }

    /// Queues a frame, waiting where its lane is full; `false` where the engine has ended.
    pub async fn push(&self, arrival: Arrival) -> bool {
        match arrival.frame.kind {
            StepKind::Decode => self.decode.send(Queued { arrival, _share: None }).await.is_ok(),
            StepKind::Prefill => {
                let bytes = arrival.frame.hidden.as_ref().map_or(0, |hidden| hidden.data.len());
                // Never more than there are, so that a single large frame gets through.
                let share = u32::try_from(bytes.min(PREFILL_LANE_BYTES)).unwrap_or(u32::MAX);
                let Ok(share) = self.prefill_bytes.clone().acquire_many_owned(share).await else {
                    return false;
                };
                self.prefill.send(Queued { arrival, _share: Some(share) }).await.is_ok()
            }
        }
    }
}

/// The engine's thread as others see it. Dropping it ends the thread after the step under way.
#[derive(Debug)]
pub struct Engine {
    orders: mpsc::Sender<EngineOrder>,
    lanes: Lanes,
    ended: oneshot::Receiver<()>,
    thread: std::thread::JoinHandle<()>,
}

/// The engine takes no orders: it has ended, or a computation hangs.
#[derive(Debug, thiserror::Error)]
#[error("the engine does not take orders any more: a computation hangs or has ended it; restart this worker")]
pub struct EngineStuck;

impl Engine {
    /// Starts the thread, which drives `driver` while it waits. Events come out of the receiver, which must be taken from
    /// at all times.
    ///
    /// # Errors
    /// Where the operating system gives no thread.
    pub fn start(
        driver: Arc<Driver>,
        counters: Arc<EngineCounters>,
    ) -> std::io::Result<(Engine, mpsc::Receiver<EngineEvent>)> {
        let (orders, orders_in) = mpsc::channel(ORDER_QUEUE);
        let (decode, decode_in) = mpsc::channel(DECODE_LANE_FRAMES);
        let (prefill, prefill_in) = mpsc::channel(PREFILL_LANE_FRAMES);
        let (events_out, events) = mpsc::channel(EVENT_QUEUE);
        let (ending, ended) = oneshot::channel();
        let (drawn, drawn_in) = mpsc::channel(DECODE_LANE_FRAMES);
        let queues = Queues { orders: orders_in, drawn: drawn_in, decode: decode_in, prefill: prefill_in };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
            let _thread = EngineThread(driver.clone());
            let core = Core { slots: BTreeMap::new(), driver, counters, events: events_out, prompts: None };
            core.run(queues);
            // Nobody waits any more where the receiver is gone.
            let _ = ending.send(());
        })?;
        let prefill_bytes = Arc::new(Semaphore::new(PREFILL_LANE_BYTES));
        let lanes = Lanes { drawn, decode, prefill, prefill_bytes };
        Ok((Engine { orders, lanes, ended, thread }, events))
    }

    /// Where frames go in.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Gives an order. Orders are obeyed in turn, and before every frame that arrives afterwards.
    ///
    /// # Errors
    /// Where the engine has ended, or has not taken an order for so long that the queue is full.
    pub fn order(&self, order: EngineOrder) -> Result<(), EngineStuck> {
        self.orders.try_send(order).map_err(|_| EngineStuck)
    }

    /// Ends the thread after the step under way; `false` where that takes longer than `patience`, and the thread is
    /// left behind.
    pub async fn stop(self, patience: Duration) -> bool {
        let Engine { orders, lanes, ended, thread } = self;
        drop((orders, lanes));
        match tokio::time::timeout(patience, ended).await {
            // The thread ends with its last message, so joining it does not wait.
            Ok(_) => thread.join().is_ok(),
            Err(_) => false,
        }
    }
}

struct Queues {
    orders: mpsc::Receiver<EngineOrder>,
    drawn: mpsc::Receiver<(Peer, Drawn)>,
    decode: mpsc::Receiver<Queued>,
    prefill: mpsc::Receiver<Queued>,
}

enum Work {
    Order(EngineOrder),
    Frame(Queued),
    Drawn(Peer, Drawn),
}

impl Queues {
    /// The most urgent work; `None` once nobody can give orders.
    async fn next(&mut self) -> Option<Work> {
        tokio::select! {
            biased;
            order = self.orders.recv() => order.map(Work::Order),
            Some((peer, drawn)) = self.drawn.recv() => Some(Work::Drawn(peer, drawn)),
            Some(queued) = self.decode.recv() => Some(Work::Frame(queued)),
            Some(queued) = self.prefill.recv() => Some(Work::Frame(queued)),
        }
    }
}

/// A stage in the engine.
struct Slot {
    stage: u32,
    compute: Box<dyn Compute>,
    fence: Option<Fence>,
    neighbours: Option<Neighbours>,
    /// Steps that came ahead of their tokens.
    ahead: Ahead,
    usage: (u32, u32),
}

struct Neighbours {
    previous: Peer,
    last: Option<Peer>,
    outputs: Outputs,
}

/// What the thread owns.
struct Core {
    slots: BTreeMap<DeploymentId, Slot>,
    driver: Arc<Driver>,
    counters: Arc<EngineCounters>,
    events: mpsc::Sender<EngineEvent>,
    /// When the last prefill step was computed.
    prompts: Option<Instant>,
}

impl Core {
    fn run(mut self, mut queues: Queues) {
        // What is there already needs no waiting.
        while let Some(work) = queues.next().now_or_never().unwrap_or_else(|| self.driver.wait(queues.next()))
        {
            match work {
                Work::Order(order) => {
                    self.driver.computing(false);
                    self.obey(order);
                }
                Work::Frame(queued) => {
                    if let Some(arrival) = self.admit(queued.arrival) {
                        self.step(arrival);
                    }
                }
                Work::Drawn(peer, drawn) => {
                    for arrival in self.fill(&peer, &drawn) {
                        self.step(arrival);
                    }
                }
            }
        }
    }

    /// Computes a step whose tokens are known and, while the stage is a pipeline of its own, those that waited for it.
    fn step(&mut self, arrival: Arrival) {
        let mut next = VecDeque::from([arrival]);
        while let Some(arrival) = next.pop_front() {
            let alone = self.decodes_alone(arrival.frame.kind);
            self.driver.computing(alone);
            let told = arrival.frame.short_way.told.then(|| places(&arrival.frame));
            let Some((frame, outputs)) = self.compute(arrival) else {
                continue;
            };
            let drawn = told.and_then(|places| drawn(&places, &frame));
            // The first stage goes on with it; the coordinator only takes note. Where it cannot be sent at once the
            // coordinator's own word will do.
            if let (Some(lane), Some(drawn)) = (&outputs.drawn, &drawn) {
                let _ = lane.try_send(Frame::Drawn(drawn.clone()));
            }
            let lane = match frame.kind() {
                StepKind::Decode => &outputs.decode,
                StepKind::Prefill => &outputs.prefill,
            };
            self.pass_on(frame, lane, alone);
            if let Some(drawn) = drawn
                && let Some(slot) = self.slots.get_mut(&drawn.deployment).filter(|slot| slot.stage == 0)
            {
                next.extend(slot.ahead.fill(&drawn, Instant::now()));
            }
        }
    }

    /// The active stage that expects frames of this fence from `peer`.
    fn expecting(&mut self, peer: &Peer, frame: &StepFrame) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&frame.deployment).filter(|slot| {
            slot.fence == Some(frame.fence) && slot.neighbours.as_ref().is_some_and(|n| n.previous == *peer)
        });
        if slot.is_none() {
            self.counters.frames_fenced.fetch_add(1, Ordering::Relaxed);
            let StepFrame { fence, deployment, step, .. } = frame;
            tracing::debug!(%peer, %fence, %deployment, %step, "dropped a frame that is not of an active stage");
        }
        slot
    }

    /// Takes a frame in; `None` where it is not expected, or its tokens are still to be drawn.
    fn admit(&mut self, arrival: Arrival) -> Option<Arrival> {
        let slot = self.expecting(&arrival.peer, &arrival.frame)?;
        if !arrival.frame.short_way.follows || slot.stage > 0 {
            slot.ahead.forget(&arrival.frame.release);
            return Some(arrival);
        }
        let (deployment, step) = (arrival.frame.deployment, arrival.frame.step);
        match slot.ahead.admit(arrival) {
            Ok(arrival) => arrival,
            Err(reason) => {
                let stage = slot.stage;
                self.tell(EngineEvent::StepFailed { deployment, step, stage, reason });
                None
            }
        }
    }

    /// The steps that waited for what was drawn and for nothing else.
    fn fill(&mut self, peer: &Peer, drawn: &Drawn) -> Vec<Arrival> {
        let slot = self.slots.get_mut(&drawn.deployment).filter(|slot| {
            let teller = |n: &Neighbours| n.previous == *peer || n.last.as_ref() == Some(peer);
            slot.stage == 0 && slot.fence == Some(drawn.fence) && slot.neighbours.as_ref().is_some_and(teller)
        });
        match slot {
            Some(slot) => slot.ahead.fill(drawn, Instant::now()),
            None => {
                self.counters.frames_fenced.fetch_add(1, Ordering::Relaxed);
                Vec::new()
            }
        }
    }

    /// Whether there are decode steps alone, which are short and whose frames are small.
    fn decodes_alone(&mut self, kind: StepKind) -> bool {
        if kind == StepKind::Prefill {
            self.prompts = Some(Instant::now());
        }
        self.prompts.is_none_or(|last| last.elapsed() > PROMPTS_PAST)
    }

    fn obey(&mut self, order: EngineOrder) {
        match order {
            EngineOrder::Install { deployment, stage, compute } => {
                let slot = Slot {
                    stage,
                    compute,
                    fence: None,
                    neighbours: None,
                    ahead: Ahead::default(),
                    usage: (0, 0),
                };
                self.slots.insert(deployment, slot);
            }
            EngineOrder::Bind { deployment, previous, outputs, last, wire } => {
                if let Some(slot) = self.slots.get_mut(&deployment) {
                    slot.compute.set_wire(wire);
                    slot.neighbours = Some(Neighbours { previous, last, outputs });
                }
            }
            EngineOrder::Activate { deployment, fence } => {
                if let Some(slot) = self.slots.get_mut(&deployment) {
                    slot.fence = Some(fence);
                }
            }
            EngineOrder::Clear { deployment, stage } => {
                if let Some(slot) = self.slots.get_mut(&deployment) {
                    (slot.stage, slot.fence, slot.neighbours, slot.usage) = (stage, None, None, (0, 0));
                    slot.ahead = Ahead::default();
                    slot.compute.clear();
                }
                self.count_cache();
            }
            EngineOrder::Drop { deployment } => {
                drop(self.slots.remove(&deployment));
                self.count_cache();
                self.tell(EngineEvent::Dropped { deployment });
            }
        }
    }

    /// Computes a frame; where it brings something, that and where it goes.
    fn compute(&mut self, arrival: Arrival) -> Option<(Frame, Outputs)> {
        let Arrival { mut frame, at, .. } = arrival;
        let (deployment, step) = (frame.deployment, frame.step);
        let slot = self.slots.get_mut(&deployment)?;
        let outputs = slot.neighbours.as_ref()?.outputs.clone();
        let stage = slot.stage;
        let mut timings = std::mem::take(&mut frame.timings);
        let start = Instant::now();
        self.counters.step_begins();
        let ran = catch_unwind(AssertUnwindSafe(|| slot.compute.run(frame)));
        self.counters.step_ends();
        let computed = start.elapsed();
        match ran {
            Ok(Ok(output)) => {
                slot.usage = slot.compute.usage();
                self.counters.steps.fetch_add(1, Ordering::Relaxed);
                self.count_cache();
                let sent_bytes = match &output {
                    Output::Pass(frame) => frame.hidden.as_ref().map_or(0, |hidden| hidden.data.len()),
                    Output::Finish(_) => 0,
                };
                timings.push(StageTiming {
                    stage,
                    queued_us: micros(start.saturating_duration_since(at)),
                    computed_us: micros(computed),
                    sent_bytes: u32::try_from(sent_bytes).unwrap_or(u32::MAX),
                    sent_us: outputs.sent_us.load(Ordering::Relaxed),
                });
                Some((output.into_frame(timings), outputs))
            }
            Ok(Err(reason)) => {
                slot.usage = slot.compute.usage();
                self.count_cache();
                self.tell(EngineEvent::StepFailed { deployment, step, stage, reason });
                None
            }
            Err(panic) => {
                let reason = format!(
                    "stage {stage} stopped at a defect while computing step {step}: {}",
                    words(&*panic)
                );
                // What unwound may have left anything behind; freeing it must not end the thread either.
                let lost = self.slots.remove(&deployment);
                let _ = catch_unwind(AssertUnwindSafe(|| drop(lost)));
                self.count_cache();
                self.tell(EngineEvent::StepFailed { deployment, step, stage, reason: reason.clone() });
                self.tell(EngineEvent::Panicked { deployment, reason });
                None
            }
        }
    }

    /// Hands an output to its sender, waiting while the link is slower than the stage; `at_once` has it sent before
    /// anything else is computed. An output for a link that is gone is dropped: its loss has been reported, and the
    /// coordinator replays it.
    fn pass_on(&self, frame: Frame, lane: &mpsc::Sender<Frame>, at_once: bool) {
        let sent = if at_once {
            self.driver.wait(async {
                let sent = lane.send(frame).await;
                // Everything that can run now does before this goes on: the sender, and the connection.
                tokio::task::yield_now().await;
                sent
            })
        } else {
            lane.blocking_send(frame)
        };
        if sent.is_err() {
            tracing::debug!("dropped an output whose link is gone");
        }
    }

    fn tell(&self, event: EngineEvent) {
        // Nobody listens any more only while the worker ends.
        let _ = self.events.blocking_send(event);
    }

    fn count_cache(&self) {
        let sum = |part: fn(&Slot) -> u32| self.slots.values().map(part).fold(0, u32::saturating_add);
        self.counters.cache_tokens_used.store(sum(|slot| slot.usage.0), Ordering::Relaxed);
        self.counters.sequences.store(sum(|slot| slot.usage.1), Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// What a panic said.
pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

//! The engine's thread, with stages that do what a test tells them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use brigade_proto::control::StageMemory;
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, SequenceId, StepId};
use brigade_proto::step::{Frame, Segment, ShortWay, StepFrame, StepKind, WireDtype};
use brigade_worker::driver::Driver;
use brigade_worker::engine::{Arrival, Compute, Engine, EngineEvent, EngineOrder, Output, Outputs};
use brigade_worker::telemetry::EngineCounters;
use tokio::sync::mpsc;

const DEPLOYMENT: DeploymentId = DeploymentId(1);
const FENCE: Fence = Fence { incarnation: Incarnation(1), epoch: Epoch(1) };

/// What a segment's first token makes the stage do.
const FAIL: u32 = 1;
const PANIC: u32 = 2;
const SLOW: u32 = 3;

/// Passes frames on, or does what their first token says.
#[derive(Default)]
struct Obedient {
    rows: u32,
}

impl Compute for Obedient {
    fn run(&mut self, frame: StepFrame) -> Result<Output, String> {
        match frame.segments.first().map(|segment| segment.tokens[0]) {
            Some(FAIL) => return Err("no such token".to_owned()),
            Some(PANIC) => panic!("a defect"),
            Some(SLOW) => std::thread::sleep(Duration::from_millis(200)),
            _ => {}
        }
        self.rows += frame.segments.iter().map(|segment| segment.tokens.len() as u32).sum::<u32>();
        Ok(Output::Pass(frame))
    }

    fn clear(&mut self) {
        self.rows = 0;
    }

    fn usage(&self) -> (u32, u32) {
        (self.rows, 1)
    }

    fn memory(&self) -> StageMemory {
        StageMemory::default()
    }

    fn set_wire(&mut self, _: WireDtype) {}
}

fn frame(step: u64, kind: StepKind, token: u32) -> StepFrame {
    let segment = Segment {
        sequence: SequenceId(1),
        start: 0,
        tokens: vec![token],
        begin: None,
        pages: Vec::new(),
        sample: false,
        drafts: 0,
        score: false,
        next_token: None,
    };
    StepFrame {
        fence: FENCE,
        deployment: DEPLOYMENT,
        step: StepId(step),
        kind,
        segments: vec![segment],
        release: Vec::new(),
        short_way: ShortWay::default(),
        timings: Vec::new(),
        hidden: None,
    }
}

/// An engine with one active stage between the coordinator and whoever reads `sent`.
struct Rig {
    engine: Engine,
    events: mpsc::Receiver<EngineEvent>,
    sent: mpsc::Receiver<Frame>,
    counters: Arc<EngineCounters>,
}

impl Rig {
    fn start() -> Rig {
        let counters = Arc::new(EngineCounters::default());
        let (engine, events) = Engine::start(Driver::new().unwrap(), counters.clone()).unwrap();
        let sent = Rig::activate(&engine);
        Rig { engine, events, sent, counters }
    }

    fn activate(engine: &Engine) -> mpsc::Receiver<Frame> {
        let (frames, sent) = mpsc::channel(16);
        let outputs = Outputs {
            decode: frames.clone(),
            prefill: frames,
            drawn: None,
            sent_us: Arc::new(AtomicU32::new(77)),
        };
        let compute = Box::new(Obedient::default());
        let bind = EngineOrder::Bind {
            deployment: DEPLOYMENT,
            previous: Peer::Coordinator,
            outputs,
            last: None,
            wire: WireDtype::F32,
        };
        engine.order(EngineOrder::Install { deployment: DEPLOYMENT, stage: 4, compute }).unwrap();
        engine.order(bind).unwrap();
        engine.order(EngineOrder::Activate { deployment: DEPLOYMENT, fence: FENCE }).unwrap();
        sent
    }

    async fn push(&self, frame: StepFrame) {
        self.push_from(Peer::Coordinator, frame).await;
    }

    async fn push_from(&self, peer: Peer, frame: StepFrame) {
        assert!(self.engine.lanes().push(Arrival { peer, frame, at: Instant::now() }).await);
    }

    async fn step_sent(&mut self) -> StepFrame {
        match soon(self.sent.recv()).await {
            Some(Frame::Step(frame)) => frame,
            other => panic!("no step was sent, but {other:?}"),
        }
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), future).await.expect("nothing came within 5 s")
}

#[tokio::test]
async fn a_step_is_passed_on_with_where_its_time_went() {
    let mut rig = Rig::start();
    rig.push(frame(1, StepKind::Decode, SLOW)).await;
    rig.push(frame(2, StepKind::Decode, 9)).await;
    let timing = rig.step_sent().await.timings[0];
    assert_eq!((timing.stage, timing.sent_us), (4, 77));
    assert!(timing.computed_us >= 200_000, "{timing:?}");
    let waited = rig.step_sent().await.timings[0];
    assert!(waited.queued_us >= 100_000, "it stood behind the slow step: {waited:?}");
    assert_eq!(rig.counters.steps.load(Ordering::Relaxed), 2);
    assert!(rig.engine.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn decode_goes_before_prefill() {
    let mut rig = Rig::start();
    rig.push(frame(1, StepKind::Prefill, SLOW)).await;
    for step in 2..5 {
        rig.push(frame(step, StepKind::Prefill, 9)).await;
    }
    rig.push(frame(5, StepKind::Decode, 9)).await;
    let mut order = Vec::new();
    for _ in 0..5 {
        order.push(rig.step_sent().await.step.0);
    }
    assert!(order.iter().position(|step| *step == 5) <= Some(1), "steps were computed as {order:?}");
}

#[tokio::test]
async fn frames_of_another_fence_deployment_or_sender_are_dropped_and_counted() {
    let mut rig = Rig::start();
    let old = Fence { incarnation: Incarnation(1), epoch: Epoch(0) };
    rig.push(StepFrame { fence: old, ..frame(1, StepKind::Decode, 9) }).await;
    let restarted = Fence { incarnation: Incarnation(2), epoch: Epoch(1) };
    rig.push(StepFrame { fence: restarted, ..frame(2, StepKind::Decode, 9) }).await;
    rig.push(StepFrame { deployment: DeploymentId(8), ..frame(3, StepKind::Decode, 9) }).await;
    let stranger = Peer::Worker("w9".to_owned().try_into().unwrap());
    rig.push_from(stranger, frame(4, StepKind::Decode, 9)).await;
    rig.push(frame(5, StepKind::Decode, 9)).await;
    assert_eq!(rig.step_sent().await.step, StepId(5));
    assert_eq!(rig.counters.frames_fenced.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_step_that_fails_is_reported_and_the_next_one_is_computed() {
    let mut rig = Rig::start();
    rig.push(frame(1, StepKind::Decode, FAIL)).await;
    rig.push(frame(2, StepKind::Decode, 9)).await;
    let failed = EngineEvent::StepFailed {
        deployment: DEPLOYMENT,
        step: StepId(1),
        stage: 4,
        reason: "no such token".to_owned(),
    };
    assert_eq!(soon(rig.events.recv()).await, Some(failed));
    assert_eq!(rig.step_sent().await.step, StepId(2));
}

#[tokio::test]
async fn a_defect_costs_the_stage_and_not_the_engine() {
    let mut rig = Rig::start();
    rig.push(frame(1, StepKind::Decode, PANIC)).await;
    let step = soon(rig.events.recv()).await;
    assert!(
        matches!(&step, Some(EngineEvent::StepFailed { reason, .. }) if reason.contains("a defect")),
        "{step:?}"
    );
    let stage = soon(rig.events.recv()).await;
    assert!(matches!(stage, Some(EngineEvent::Panicked { deployment: DEPLOYMENT, .. })), "{stage:?}");
    rig.sent = Rig::activate(&rig.engine);
    rig.push(frame(2, StepKind::Decode, 9)).await;
    assert_eq!(rig.step_sent().await.step, StepId(2));
}

#[tokio::test]
async fn a_cleared_stage_takes_no_frames_and_a_dropped_one_frees_its_cache() {
    let mut rig = Rig::start();
    rig.push(frame(1, StepKind::Decode, 9)).await;
    rig.step_sent().await;
    assert_eq!(rig.counters.cache_tokens_used.load(Ordering::Relaxed), 1);
    rig.engine.order(EngineOrder::Clear { deployment: DEPLOYMENT, stage: 0 }).unwrap();
    rig.push(frame(2, StepKind::Decode, 9)).await;
    rig.engine.order(EngineOrder::Drop { deployment: DEPLOYMENT }).unwrap();
    assert_eq!(soon(rig.events.recv()).await, Some(EngineEvent::Dropped { deployment: DEPLOYMENT }));
    assert!(rig.engine.stop(Duration::from_secs(5)).await);
    assert_eq!(rig.counters.cache_tokens_used.load(Ordering::Relaxed), 0);
    assert!(rig.sent.try_recv().is_err(), "a cleared stage sent something");
}

#[tokio::test]
async fn a_link_that_takes_nothing_does_not_keep_the_engine_from_ending() {
    let mut rig = Rig::start();
    for step in 0..20 {
        rig.push(frame(step, StepKind::Decode, 9)).await;
    }
    // Nobody reads: the engine waits for room until the link's queue is gone, as when its stage is released.
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.sent.close();
    while rig.sent.try_recv().is_ok() {}
    assert!(rig.engine.stop(Duration::from_secs(5)).await);
}

//! A worker's links over real sockets: what is queued on them, and attempts to open them.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;

use brigade_proto::control::{ConnectStage, StageMemory};
use brigade_proto::frame::FrameLimits;
use brigade_proto::identity::{CoordinatorIdentity, TransportIdentity};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, SequenceId, StepId};
use brigade_proto::link::Transport;
use brigade_proto::step::{Frame, Segment, ShortWay, StepFrame, StepKind, WireDtype};
use brigade_worker::data::{DataEvent, DataOutcome, DataPlane};
use brigade_worker::driver::Driver;
use brigade_worker::engine::{Compute, Engine, EngineOrder, Output, Outputs, PREFILL_LANE_FRAMES};
use brigade_worker::lifecycle::ConnectId;
use tokio::sync::mpsc;

const DEPLOYMENT: DeploymentId = DeploymentId(1);
const FENCE: Fence = Fence { incarnation: Incarnation(1), epoch: Epoch(1) };

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("nothing came within 10 s")
}

/// Two ends that may talk to each other; both are the coordinator, which makes no difference to a link.
fn transports() -> (Transport, Transport, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let identity = CoordinatorIdentity::load_or_create(directory.path()).unwrap();
    let bind = || {
        let any = "127.0.0.1:0".parse().unwrap();
        Transport::bind(any, TransportIdentity::from(&identity), FrameLimits::for_steps(64, 64)).unwrap()
    };
    (bind(), bind(), directory)
}

/// Begins each step when it is told to.
struct Told {
    go: blocking::Receiver<()>,
}

impl Compute for Told {
    fn run(&mut self, frame: StepFrame) -> Result<Output, String> {
        self.go.recv().map_err(|error| error.to_string())?;
        Ok(Output::Pass(frame))
    }

    fn clear(&mut self) {}

    fn usage(&self) -> (u32, u32) {
        (0, 0)
    }

    fn memory(&self) -> StageMemory {
        StageMemory::default()
    }

    fn set_wire(&mut self, _: WireDtype) {}
}

fn frame(step: u64, kind: StepKind) -> Frame {
    let segment = Segment {
        sequence: SequenceId(1),
        start: 0,
        tokens: vec![7],
        begin: None,
        pages: Vec::new(),
        sample: false,
        drafts: 0,
        score: false,
        next_token: None,
    };
    Frame::Step(StepFrame {
        fence: FENCE,
        deployment: DEPLOYMENT,
        step: StepId(step),
        kind,
        segments: vec![segment],
        release: Vec::new(),
        short_way: ShortWay::default(),
        timings: Vec::new(),
        hidden: None,
    })
}

fn order(next_addresses: Vec<SocketAddr>) -> ConnectStage {
    ConnectStage {
        deployment: DEPLOYMENT,
        epoch: Epoch(1),
        previous: Peer::Coordinator,
        next: Peer::Coordinator,
        next_addresses,
        wire: WireDtype::F32,
        short_way: None,
    }
}

#[tokio::test]
async fn decode_frames_go_past_prefill_frames_that_find_their_lane_full() {
    let (here, there, _directory) = transports();
    let (engine, _events) = Engine::start(Driver::new().unwrap(), Arc::default()).unwrap();
    let (go, told) = blocking::channel();
    let (frames, mut computed) = mpsc::channel(2 * PREFILL_LANE_FRAMES);
    let outputs = Outputs { decode: frames.clone(), prefill: frames, drawn: None, sent_us: Arc::default() };
    let (deployment, previous, wire) = (DEPLOYMENT, Peer::Coordinator, WireDtype::F32);
    let compute = Box::new(Told { go: told });
    engine.order(EngineOrder::Install { deployment, stage: 0, compute }).unwrap();
    engine.order(EngineOrder::Bind { deployment, previous, outputs, last: None, wire }).unwrap();
    engine.order(EngineOrder::Activate { deployment, fence: FENCE }).unwrap();

    let at = here.local_addr();
    let (mut plane, mut happened) = DataPlane::start(here, engine.lanes().clone());
    let link = soon(there.dial(&Peer::Coordinator, &[at])).await.unwrap();
    plane.handle(soon(happened.recv()).await.unwrap());
    let (sender, _receiver) = link.split();
    let prefills = PREFILL_LANE_FRAMES as u64 + 16;
    for step in 0..prefills {
        soon(sender.send(&frame(step, StepKind::Prefill))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    soon(sender.send(&frame(prefills, StepKind::Decode))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;

    for _ in 0..=prefills {
        go.send(()).unwrap();
    }
    let mut steps = Vec::new();
    for _ in 0..=prefills {
        let Some(Frame::Step(frame)) = soon(computed.recv()).await else { panic!("no step was computed") };
        steps.push(frame.step.0);
    }
    assert_eq!(steps[1], prefills, "the decode step was computed after {:?}", &steps[..4]);
    steps.remove(1);
    assert!(steps.is_sorted(), "{steps:?}");
    plane.stop(Duration::from_secs(5)).await;
    assert!(engine.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn an_attempt_that_was_given_up_leaves_the_next_one_alone() {
    let (here, there, _directory) = transports();
    let (engine, _events) = Engine::start(Driver::new().unwrap(), Arc::default()).unwrap();
    let (mut plane, mut happened) = DataPlane::start(here, engine.lanes().clone());
    let at = there.local_addr();
    plane.open(ConnectId(2), order(vec![at]), at);
    // It failed just before it was given up, and is heard of only now.
    let late = DataEvent::Dialled {
        attempt: ConnectId(1),
        deployment: DEPLOYMENT,
        result: Err("nobody answers".to_owned()),
    };
    assert!(plane.handle(late).is_empty(), "a stage was told of an attempt that it gave up");
    let accepted = tokio::spawn(async move { (there.accept().await, there) });
    let outcomes = plane.handle(soon(happened.recv()).await.unwrap());
    assert!(
        matches!(outcomes[..], [DataOutcome::Opened { attempt: ConnectId(2), .. }]),
        "{} outcomes, none of which opened the stage",
        outcomes.len()
    );
    drop(soon(accepted).await.unwrap());
    plane.stop(Duration::from_secs(5)).await;
    assert!(engine.stop(Duration::from_secs(5)).await);
}

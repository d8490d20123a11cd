//! Tests of the deployment machine, with workers that answer as real ones do.

mod better;
mod devices;
mod left_out;
mod pin;

use brigade_proto::control::{Capabilities, DeviceKind, StageMemory, StageState};
use brigade_proto::ids::Fence;
use brigade_shard::cost::StageBytes;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::plan::{Optimality, PlannedStage, Prediction};
use brigade_shard::units::Bytes;

use super::*;
use crate::membership::{self, Membership, REATTACH_GRACE, SessionId};
use crate::test_random::Random;

const LAYERS: usize = 12;
const ID: DeploymentId = DeploymentId(1);

/// Even shards over all devices, which need 100 MiB together.
fn planner() -> Planner {
    planner_with(|_| 1.0)
}

/// The same, with the throughput that so many stages are said to have.
fn planner_with(throughput: impl Fn(usize) -> f64 + Send + 'static) -> Planner {
    Box::new(move |live, min_stages, apart, _| {
        let devices = &live.devices;
        let offered: Bytes = devices.iter().map(|device| device.budget).sum();
        if offered < Bytes::mib(100) {
            return Err(format!("{} more are needed", Bytes::mib(100) - offered));
        }
        assert!(min_stages <= devices.len());
        let order = order(devices.len(), apart).ok_or("no order keeps them apart")?;
        let end = |stage: usize| (stage + 1) * LAYERS / devices.len();
        let start = |stage: usize| stage * LAYERS / devices.len();
        let stage = |place: usize| PlannedStage {
            device: order[place],
            shard: Shard::of(LayerRange { start: start(place), end: end(place) }, LAYERS),
            memory: StageBytes::default(),
            streamed_layers: 0,
            decode_ms: 1.0,
            prefill_ms_per_token: 0.1,
        };
        Ok(Plan {
            stages: (0..devices.len()).map(stage).collect(),
            context: 256,
            cache_tokens: 512,
            predicted: Prediction {
                decode_tokens_per_s: 1.0,
                ttft_ms: 1.0,
                throughput_tokens_per_s: throughput(devices.len()),
            },
            optimality: Optimality::Exact,
            bottleneck: String::new(),
            unused: Vec::new(),
            notes: Vec::new(),
        })
    })
}

/// Some order of four devices or fewer in which no pair of `apart` are neighbours.
fn order(devices: usize, apart: &[(usize, usize)]) -> Option<Vec<usize>> {
    let orders = [[0, 1, 2, 3], [1, 0, 2, 3], [0, 2, 1, 3]]
        .map(|order| order.into_iter().filter(|device| *device < devices).collect::<Vec<usize>>());
    let is_apart =
        |pair: &[usize]| apart.contains(&(pair[0], pair[1])) || apart.contains(&(pair[1], pair[0]));
    orders.into_iter().find(|order| !order.windows(2).any(is_apart))
}

fn worker(name: &str) -> WorkerId {
    WorkerId::try_from(name.to_owned()).unwrap()
}

/// Members and a deployment, with what they wanted so far.
struct Bench {
    members: Membership,
    deployment: Deployment,
    now: Instant,
    sessions: u64,
    sent: Vec<(String, ToWorker)>,
    persisted: Vec<Epoch>,
    /// Whether the scheduler has a pipeline.
    serving: Option<Pipeline>,
    outlook: Option<Outlook>,
    failures: Vec<String>,
    moves: Vec<String>,
    said: Vec<String>,
    links_closed: usize,
    doubted: Vec<String>,
}

impl Bench {
    fn new(min_workers: usize) -> Bench {
        Bench::planned(min_workers, planner(), Moving::Freely)
    }

    fn planned(min_workers: usize, planner: Planner, moving: Moving) -> Bench {
        let settings = DeploymentSettings {
            id: ID,
            incarnation: Incarnation(3),
            last_epoch: Epoch(10),
            min_workers,
            fingerprint: "f".into(),
            edition: Edition(2),
            file_hint: "model.gguf".into(),
            parallel: 1,
            prefill_chunk: 128,
            cache_dtype: CacheDtype::F16,
            wire: WireDtype::F32,
            moving,
        };
        Bench {
            members: Membership::new(),
            deployment: Deployment::new(settings, planner),
            now: Instant::now(),
            sessions: 0,
            sent: Vec::new(),
            persisted: Vec::new(),
            serving: None,
            outlook: None,
            failures: Vec::new(),
            moves: Vec::new(),
            said: Vec::new(),
            links_closed: 0,
            doubted: Vec::new(),
        }
    }

    fn attach(&mut self, name: &str, mib: u64) {
        self.sessions += 1;
        let hello = Box::new(Capabilities {
            name: name.into(),
            host: "host".into(),
            version: "1".into(),
            device: DeviceKind::Cpu,
            device_name: "cpu".into(),
            budget: Bytes::mib(mib),
            threads: 1,
            bandwidth_bytes_per_s: 1e9,
            flops_per_s: 1e9,
            data_addresses: vec![([10, 0, 0, 1], 7000).into()],
            delivery_port: 0,
            stretch: 1.0,
            kernel_speeds: Vec::new(),
            shared_host: None,
            offload_bytes_per_s: None,
            converts: false,
        });
        let remote = ([192, 168, 0, 1], 40000).into();
        let session = SessionId(self.sessions);
        let event = membership::Event::Attached { session, worker: worker(name), remote, hello };
        self.member_event(event);
    }

    fn session(&self, name: &str) -> SessionId {
        self.members.member(&worker(name)).unwrap().session().unwrap()
    }

    fn detach(&mut self, name: &str) {
        let session = self.session(name);
        self.member_event(membership::Event::Detached { session, reason: "reset".into() });
    }

    fn leave(&mut self, name: &str) {
        let session = self.session(name);
        self.member_event(membership::Event::Leaving { session });
    }

    fn member_event(&mut self, event: membership::Event) {
        self.members.handle(event, self.now);
        self.members_changed();
    }

    fn members_changed(&mut self) {
        while let Some(command) = self.members.poll_command() {
            if command == membership::Command::Changed {
                self.deployment.handle(Event::MembersChanged, &self.members, self.now);
            }
        }
        self.poll();
    }

    fn handle(&mut self, event: Event) {
        self.deployment.handle(event, &self.members, self.now);
        self.poll();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.members.handle_timeout(self.now);
        self.members_changed();
        self.deployment.handle_timeout(&self.members, self.now);
        self.poll();
    }

    fn poll(&mut self) {
        while let Some(command) = self.deployment.poll_command() {
            match command {
                Command::PersistEpoch(epoch) => {
                    self.persisted.push(epoch);
                    self.deployment.handle(
                        Event::EpochPersisted { epoch, result: Ok(()) },
                        &self.members,
                        self.now,
                    );
                }
                Command::Send { worker, message } => {
                    if let ToWorker::Load(load) | ToWorker::Prepare(load) = &message {
                        assert!(self.persisted.contains(&load.epoch), "{} was used too early", load.epoch);
                    }
                    self.sent.push((worker.to_string(), message));
                }
                Command::CloseLinks => self.links_closed += 1,
                Command::Doubt(worker) => self.doubted.push(worker.to_string()),
                Command::Start(pipeline) => {
                    assert!(self.serving.replace(pipeline).is_none(), "started twice");
                }
                Command::Suspend { .. } | Command::Stop { .. } => self.serving = None,
                Command::Move { reason } => {
                    assert!(self.serving.take().is_some(), "moved while nothing served");
                    self.moves.push(reason);
                }
                Command::Say { text } => self.said.push(text),
                Command::LookOut(outlook) => self.outlook = Some(outlook),
                Command::Failed { reason } => self.failures.push(reason),
            }
        }
    }

    /// A worker reports on its stage of the newest plan.
    fn report(&mut self, name: &str, state: StageState) {
        let report = StageReport { deployment: ID, epoch: self.deployment.epoch(), state };
        self.handle(Event::Stage { worker: worker(name), report });
    }

    fn all_report(&mut self, state: &StageState) {
        let names: Vec<String> = self.deployment.stages().iter().map(|stage| stage.name.clone()).collect();
        for name in names {
            self.report(&name, state.clone());
        }
    }

    fn link_ends(&mut self) {
        let stages = self.deployment.stages();
        for worker in [stages.first(), stages.last()].map(|stage| stage.unwrap().worker.clone()) {
            self.handle(Event::LinkUp { worker });
        }
    }

    /// Every stage does what it is told, until the plan serves.
    fn bring_up(&mut self) {
        self.all_report(&StageState::Loaded(StageMemory::default()));
        self.all_report(&connected());
        self.link_ends();
        self.all_report(&StageState::Active);
        assert_eq!(self.deployment.phase(), Phase::Serving, "{:?}", self.deployment);
    }

    fn take_sent(&mut self) -> Vec<(String, ToWorker)> {
        std::mem::take(&mut self.sent)
    }
}

fn connected() -> StageState {
    StageState::Connected { next_address: ([10, 0, 0, 1], 7000).into(), rtt_us: 50 }
}

fn three() -> Bench {
    let mut bench = Bench::new(3);
    for name in ["w1", "w2", "w3"] {
        bench.attach(name, 64);
    }
    bench
}

#[test]
fn a_plan_goes_through_its_steps_on_all_stages_together() {
    let mut bench = Bench::new(3);
    bench.attach("w1", 64);
    bench.attach("w2", 64);
    assert_eq!(bench.deployment.reason().unwrap(), "waiting for 1 more worker (2 of 3 attached)");
    assert!(bench.sent.is_empty());
    bench.attach("w3", 64);
    assert_eq!(bench.persisted, [Epoch(11)]);
    let loads = bench.take_sent();
    let shards: Vec<String> = loads
        .iter()
        .map(|(name, message)| match message {
            ToWorker::Load(load) => format!("{name}: {} of {} {}", load.stage, load.stages, load.shard),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        shards,
        ["w1: 0 of 3 embedding + layers 0..4", "w2: 1 of 3 layers 4..8", "w3: 2 of 3 layers 8..12 + head"]
    );

    bench.report("w1", StageState::Loading { loaded: Bytes(1), total: Bytes(4), delivery: None });
    assert_eq!(bench.deployment.stages()[0].loaded_share, 0.25);
    bench.report("w1", StageState::Loaded(StageMemory::default()));
    bench.report("w3", StageState::Loaded(StageMemory::default()));
    assert!(bench.sent.is_empty(), "connected before all are loaded");
    bench.report("w2", StageState::Loaded(StageMemory::default()));
    let connects = bench.take_sent();
    let ToWorker::Connect(middle) = &connects[1].1 else { panic!("{connects:?}") };
    assert_eq!((&middle.previous, &middle.next), (&Peer::Worker(worker("w1")), &Peer::Worker(worker("w3"))));
    // Where the worker says it is, and where it is seen.
    assert_eq!(middle.next_addresses, [([10, 0, 0, 1], 7000).into(), ([192, 168, 0, 1], 7000).into()]);
    let ToWorker::Connect(last) = &connects[2].1 else { panic!("{connects:?}") };
    assert_eq!((&last.next, last.next_addresses.len()), (&Peer::Coordinator, 0));

    bench.all_report(&connected());
    assert!(bench.sent.is_empty(), "activated before the coordinator has its own links");
    bench.link_ends();
    let fence = Fence { incarnation: Incarnation(3), epoch: Epoch(11) };
    assert_eq!(bench.take_sent().len(), 3);
    bench.report("w1", StageState::Active);
    bench.report("w2", StageState::Active);
    assert_eq!(bench.serving, None, "served before every stage is active");
    bench.report("w3", StageState::Active);
    let serving = bench.serving.as_ref().map(|pipeline| (pipeline.fence, pipeline.stages.len()));
    assert_eq!(serving, Some((fence, 3)));
    assert_eq!((bench.deployment.phase(), bench.deployment.reason()), (Phase::Serving, None));
}

#[test]
fn a_lost_worker_ends_service_and_a_new_plan_is_made_over_what_is_left() {
    let mut bench = three();
    bench.bring_up();
    bench.take_sent();
    bench.leave("w2");
    assert_eq!(bench.serving, None);
    assert!(bench.failures[0].contains("stage 1 on w2 was lost"), "{:?}", bench.failures);
    assert_eq!(bench.deployment.epoch(), Epoch(12));
    assert_eq!(bench.deployment.stages().len(), 2);
    bench.bring_up();
}

#[test]
fn with_too_little_left_the_reason_is_shown_until_a_worker_joins() {
    let mut bench = Bench::new(2);
    bench.attach("w1", 64);
    bench.attach("w2", 64);
    bench.bring_up();
    bench.leave("w1");
    assert_eq!(bench.deployment.phase(), Phase::Waiting);
    let reason = bench.deployment.reason().unwrap();
    assert!(reason.contains("36.0 MiB more are needed") && reason.contains("w1 was lost"), "{reason}");
    assert_eq!(bench.outlook, Some(Outlook::Short { reason }), "what runs is parked, and told why");
    bench.attach("w4", 20);
    assert_eq!(bench.deployment.phase(), Phase::Waiting);
    bench.attach("w5", 20);
    assert_eq!(bench.deployment.stages().len(), 3);
    bench.bring_up();
}

#[test]
fn a_broken_control_stream_alone_does_not_end_service() {
    let mut bench = three();
    bench.bring_up();
    bench.detach("w2");
    assert!(bench.serving.is_some());
    bench.pass(REATTACH_GRACE / 2);
    bench.attach("w2", 64);
    bench.report("w2", StageState::Active);
    for _ in 0..10 {
        keep_alive(&mut bench);
        bench.pass(Duration::from_secs(1));
    }
    assert!(bench.serving.is_some() && bench.failures.is_empty(), "{:?}", bench.failures);
}

#[test]
fn a_worker_that_comes_back_without_its_stage_is_found_out() {
    let mut bench = three();
    bench.bring_up();
    bench.detach("w2");
    bench.attach("w2", 64);
    assert!(bench.serving.is_some());
    bench.pass(CONFIRM_LIMIT);
    assert_eq!(bench.serving, None);
    assert!(bench.failures[0].contains("stage 1 on w2 has not confirmed"), "{:?}", bench.failures);
}

#[test]
fn a_worker_that_was_started_anew_is_found_out_at_once() {
    let mut bench = three();
    bench.bring_up();
    bench.take_sent();
    for holds in [true, false] {
        bench.detach("w2");
        bench.attach("w2", 64);
        let probes = bench.take_sent();
        let ToWorker::Probe { nonce } = probes[0].1 else { panic!("{probes:?}") };
        if holds {
            // A worker that still holds its stage says so before it answers.
            bench.report("w2", StageState::Active);
        }
        bench.handle(Event::Probed { worker: worker("w2"), nonce });
        assert_eq!(bench.failures.is_empty(), holds);
    }
    assert!(bench.failures[0].contains("stage 1 on w2 was lost"), "{:?}", bench.failures);
    assert_eq!(bench.deployment.stages().len(), 3);
}

#[test]
fn planning_waits_for_a_worker_that_may_come_back() {
    let mut bench = three();
    bench.bring_up();
    bench.take_sent();
    // The data link tells of the death while the probe is still under way.
    bench.detach("w2");
    let reason = "reset".to_owned();
    bench.handle(Event::LinkLost { worker: worker("w1"), peer: Peer::Worker(worker("w2")), reason });
    assert_eq!((&bench.serving, bench.deployment.phase()), (&None, Phase::Waiting));
    assert!(bench.take_sent().is_empty());
    assert_eq!(bench.outlook, Some(Outlook::Coming));
    bench.attach("w2", 64);
    assert_eq!(bench.deployment.stages().len(), 3);
}

#[test]
fn a_load_that_keeps_failing_is_tried_ever_more_slowly() {
    // None of the three can be done without.
    let mut bench = Bench::new(3);
    for name in ["w1", "w2", "w3"] {
        bench.attach(name, 40);
    }
    let mut tried = Vec::new();
    let failed = || StageState::Failed { reason: "no such file".into() };
    for _ in 0..600 {
        if bench.deployment.phase() == Phase::Loading {
            tried.push(bench.now);
            bench.report("w2", failed());
        }
        for session in 1..=3 {
            let event = membership::Event::Heard { session: SessionId(session), telemetry: None };
            bench.member_event(event);
        }
        bench.pass(Duration::from_millis(500));
    }
    let waits: Vec<u64> = tried.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(waits[..6], [0, 1, 2, 4, 8, 16], "{waits:?}");
    assert!(waits[6..].iter().all(|wait| *wait == 30), "{waits:?}");
    let reason = bench.deployment.reason().unwrap();
    assert!(reason.contains("stage 1 on w2: no such file"), "{reason}");
}

#[test]
fn steps_that_take_too_long_fail_and_name_the_stage() {
    let heartbeats = |bench: &mut Bench, limit: Duration| {
        let until = bench.now + limit;
        while bench.now < until && bench.failures.is_empty() {
            for session in 1..=3 {
                let event = membership::Event::Heard { session: SessionId(session), telemetry: None };
                bench.member_event(event);
            }
            bench.pass(Duration::from_secs(1));
        }
    };
    let mut bench = three();
    bench.report("w1", StageState::Loaded(StageMemory::default()));
    heartbeats(&mut bench, LOAD_SILENCE);
    assert_eq!(bench.failures, ["stage 1 on w2, stage 2 on w3 has not said anything while loading"]);

    let mut bench = three();
    bench.all_report(&StageState::Loaded(StageMemory::default()));
    bench.report("w1", connected());
    bench.report("w3", connected());
    heartbeats(&mut bench, CONNECT_LIMIT);
    assert!(bench.failures[0].starts_with("stage 1 on w2 could not be connected"), "{:?}", bench.failures);

    let mut bench = three();
    bench.all_report(&StageState::Loaded(StageMemory::default()));
    bench.all_report(&connected());
    heartbeats(&mut bench, CONNECT_LIMIT);
    assert!(bench.failures[0].starts_with("the link to the coordinator"), "{:?}", bench.failures);
}

#[test]
fn reports_of_an_older_plan_are_ignored() {
    let mut bench = three();
    let report =
        StageReport { deployment: ID, epoch: Epoch(10), state: StageState::Failed { reason: "old".into() } };
    bench.handle(Event::Stage { worker: worker("w1"), report });
    let reason = "the old plan's".to_owned();
    bench.handle(Event::LinkLost { worker: worker("w1"), peer: Peer::Coordinator, reason: reason.clone() });
    bench.handle(Event::LinkDown { worker: worker("w1"), reason });
    assert!(bench.failures.is_empty());
    bench.bring_up();
}

#[test]
fn a_broken_link_or_pipeline_ends_service() {
    let reason = || "reset".to_owned();
    let events = [
        Event::LinkDown { worker: worker("w3"), reason: reason() },
        Event::LinkLost { worker: worker("w1"), peer: Peer::Worker(worker("w2")), reason: reason() },
        Event::Broken { reason: reason() },
    ];
    for event in events {
        let mut bench = three();
        bench.bring_up();
        bench.handle(event);
        assert_eq!(bench.serving, None);
        assert!(bench.failures[0].contains("reset"), "{:?}", bench.failures);
        // A link between two workers is looked at first.
        let asked = bench.take_sent().into_iter().find_map(|(_, message)| match message {
            ToWorker::ProbeLink { nonce, .. } => Some(nonce),
            _ => None,
        });
        if let Some(nonce) = asked {
            bench.handle(Event::LinkProbed { nonce, reached: true });
        }
        bench.bring_up();
    }
}

#[test]
fn a_link_that_broke_between_workers_that_are_there_is_looked_at_before_the_next_plan() {
    for reached in [true, false] {
        let mut bench = three();
        bench.bring_up();
        bench.take_sent();
        let reason = "nothing was heard".to_owned();
        let lost = |from: &str, to: &str| Event::LinkLost {
            worker: worker(from),
            peer: Peer::Worker(worker(to)),
            reason: reason.clone(),
        };
        bench.handle(lost("w1", "w2"));
        bench.handle(lost("w2", "w1"));
        assert_eq!((&bench.serving, bench.deployment.phase()), (&None, Phase::Waiting));
        assert_eq!(bench.outlook, Some(Outlook::Coming), "requests wait");
        assert_eq!(bench.doubted, ["w1", "w2"], "both ends are probed");
        let sent = bench.take_sent();
        let [(asked, ToWorker::ProbeLink { nonce, peer, addresses })] = &sent[..] else {
            panic!("{sent:?}");
        };
        assert_eq!((asked.as_str(), peer), ("w1", &Peer::Worker(worker("w2"))));
        assert!(!addresses.is_empty());
        bench.handle(Event::LinkProbed { nonce: nonce + 1, reached: true });
        assert_eq!(bench.deployment.phase(), Phase::Waiting, "that was another question");
        bench.handle(Event::LinkProbed { nonce: *nonce, reached });
        let names: Vec<&str> = bench.deployment.stages().iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, if reached { ["w1", "w2", "w3"] } else { ["w1", "w3", "w2"] });
        bench.bring_up();
        assert_eq!(bench.failures.len(), 1, "{:?}", bench.failures);
    }
}

#[test]
fn a_check_that_brings_no_answer_does_not_hold_up_the_plan() {
    let mut bench = three();
    bench.bring_up();
    let reason = "nothing was heard".to_owned();
    bench.handle(Event::LinkLost { worker: worker("w1"), peer: Peer::Worker(worker("w2")), reason });
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.deployment.phase(), Phase::Waiting);
    keep_alive(&mut bench);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.deployment.stages().len(), 3);
    bench.bring_up();
    // Nor does one whose worker is lost meanwhile.
    let reason = "nothing was heard".to_owned();
    bench.pass(SETTLED);
    keep_alive(&mut bench);
    bench.handle(Event::LinkLost { worker: worker("w1"), peer: Peer::Worker(worker("w2")), reason });
    bench.leave("w2");
    assert_eq!(bench.deployment.stages().len(), 2);
}

#[test]
fn workers_that_could_not_be_connected_are_kept_apart_for_a_while() {
    let mut bench = three();
    let order = |bench: &Bench| -> Vec<String> {
        bench.deployment.stages().iter().map(|stage| stage.name.clone()).collect()
    };
    bench.all_report(&StageState::Loaded(StageMemory::default()));
    bench.report("w2", StageState::Failed { reason: "no answer from w3".into() });
    assert_eq!(order(&bench), ["w2", "w1", "w3"]);
    // A worker that has attached anew may be somewhere else.
    bench.attach("w3", 64);
    bench.pass(FIRST_BACK_OFF);
    assert_eq!(order(&bench), ["w1", "w2", "w3"], "{:?}", bench.deployment);
}

#[test]
fn a_device_that_hangs_is_left_out_until_it_is_done() {
    let mut bench = three();
    bench.bring_up();
    let computing =
        |seconds: f64| Event::Computing { worker: worker("w2"), time: Duration::from_secs_f64(seconds) };
    // The largest step should take 12.8 ms.
    bench.handle(computing(HUNG_LEAST.as_secs_f64() - 0.1));
    assert!(bench.failures.is_empty());
    bench.handle(computing(HUNG_LEAST.as_secs_f64()));
    assert!(bench.failures[0].contains("stage 1 on w2 hangs"), "{:?}", bench.failures);
    let names: Vec<&str> = bench.deployment.stages().iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["w1", "w3"]);
    bench.bring_up();
    bench.handle(computing(60.0));
    assert_eq!(bench.failures.len(), 1, "it has no part in this plan");
    bench.handle(computing(0.0));
    bench.handle(Event::Broken { reason: "a test".into() });
    bench.pass(FIRST_BACK_OFF);
    assert_eq!(bench.deployment.stages().len(), 3);
}

#[test]
fn an_epoch_that_cannot_be_written_is_not_used() {
    let mut bench = Bench::new(1);
    bench.attach("w1", 128);
    bench.take_sent();
    let mut deployment = Deployment::new(bench.deployment.settings.clone(), planner());
    deployment.handle(Event::MembersChanged, &bench.members, bench.now);
    assert!(matches!(deployment.poll_command(), Some(Command::LookOut(Outlook::Coming))));
    assert!(matches!(deployment.poll_command(), Some(Command::CloseLinks)));
    assert!(matches!(deployment.poll_command(), Some(Command::PersistEpoch(_))));
    let failed = Event::EpochPersisted { epoch: Epoch(11), result: Err("disk full".into()) };
    deployment.handle(failed, &bench.members, bench.now);
    let commands: Vec<Command> = std::iter::from_fn(|| deployment.poll_command()).collect();
    assert!(commands.iter().all(|command| !matches!(command, Command::Send { .. })), "{commands:?}");
}

#[test]
fn stopping_retires_every_stage() {
    let mut bench = three();
    bench.bring_up();
    bench.take_sent();
    bench.handle(Event::Stop);
    let retired: Vec<String> = bench.take_sent().into_iter().map(|(name, _)| name).collect();
    assert_eq!(retired, ["w1", "w2", "w3"]);
    assert_eq!((&bench.serving, bench.deployment.phase()), (&None, Phase::Stopping));
    bench.attach("w4", 64);
    assert_eq!(bench.deployment.phase(), Phase::Stopping);
}

#[test]
fn a_worker_that_is_not_used_any_more_gives_its_stage_up() {
    let mut bench = three();
    bench.bring_up();
    bench.detach("w2");
    bench.pass(REATTACH_GRACE);
    assert_eq!(bench.deployment.stages().len(), 2);
    bench.bring_up();
    bench.take_sent();
    // It comes back with what it held, and is part of the next plan; nothing is retired then.
    bench.attach("w2", 64);
    bench.handle(Event::Broken { reason: "a test".into() });
    bench.pass(LONGEST_BACK_OFF.min(Duration::from_secs(2)));
    assert!(bench.take_sent().iter().all(|(_, message)| !matches!(message, ToWorker::Retire { .. })));
}

/// Whatever happens in whatever order: epochs grow and are durable first, service has every stage active, and with
/// all workers well the model is served again.
/// A deployment beside another one, with two workers of 60 MiB each.
fn beside() -> Bench {
    let mut bench = Bench::new(1);
    bench.deployment = bench.deployment.paused("the other one is not served yet");
    bench.attach("a", 60);
    bench.attach("b", 60);
    bench
}

#[test]
fn what_is_paused_makes_no_plan_and_then_takes_what_is_left() {
    let mut bench = beside();
    assert_eq!((bench.deployment.phase(), bench.persisted.len()), (Phase::Waiting, 0));
    assert_eq!(bench.deployment.reason().as_deref(), Some("the other one is not served yet"));
    let taken = BTreeMap::from([(worker("a"), Bytes::mib(30))]);
    bench.deployment.resume(taken, &bench.members, bench.now);
    bench.poll();
    assert_eq!(bench.deployment.reason().as_deref(), Some("10.0 MiB more are needed"));
    // As soon as others leave enough.
    let taken = BTreeMap::from([(worker("a"), Bytes::mib(20))]);
    bench.deployment.resume(taken, &bench.members, bench.now);
    bench.poll();
    bench.bring_up();
    assert!(bench.serving.is_some());
}

#[test]
fn what_is_paused_while_it_serves_gives_its_workers_back() {
    let mut bench = beside();
    bench.deployment.resume(BTreeMap::new(), &bench.members, bench.now);
    bench.poll();
    bench.bring_up();
    bench.take_sent();
    bench.deployment.pause("the other one is lost", &bench.members);
    bench.poll();
    let retire = ToWorker::Retire { deployment: ID };
    assert_eq!(bench.take_sent(), [("a".to_owned(), retire.clone()), ("b".to_owned(), retire)]);
    assert_eq!((&bench.serving, bench.deployment.stages().len()), (&None, 0));
    bench.members_changed();
    bench.attach("c", 60);
    assert_eq!((bench.deployment.phase(), bench.persisted.len()), (Phase::Waiting, 1), "no plan is made");
    bench.deployment.resume(BTreeMap::new(), &bench.members, bench.now);
    bench.poll();
    bench.bring_up();
    assert_eq!(bench.deployment.stages().len(), 3);
}

#[test]
fn service_always_comes_back_after_random_events() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let mut bench = three();
        for _ in 0..400 {
            random_event(&mut bench, &mut random);
            let active = bench.deployment.stages().iter().all(|stage| stage.progress == Progress::Active);
            assert!(bench.serving.is_none() || active, "seed {seed}");
            assert_eq!(bench.serving.is_some(), bench.deployment.phase() == Phase::Serving, "seed {seed}");
            assert!(bench.persisted.windows(2).all(|pair| pair[0] < pair[1]), "seed {seed}");
        }
        for name in ["w1", "w2", "w3"] {
            bench.attach(name, 64);
        }
        for _ in 0..200 {
            keep_alive(&mut bench);
            bench.pass(Duration::from_secs(1));
            match bench.deployment.phase() {
                Phase::Loading => bench.all_report(&StageState::Loaded(StageMemory::default())),
                Phase::Connecting => {
                    bench.all_report(&connected());
                    bench.link_ends();
                    bench.all_report(&StageState::Active);
                }
                _ => {}
            }
            for name in ["w1", "w2", "w3"] {
                bench.report(name, StageState::Active);
            }
        }
        assert_eq!(bench.deployment.phase(), Phase::Serving, "seed {seed}: {:?}", bench.deployment.reason());
    }
}

fn keep_alive(bench: &mut Bench) {
    for session in bench.members.attached().filter_map(|member| member.session()).collect::<Vec<_>>() {
        bench.member_event(membership::Event::Heard { session, telemetry: None });
    }
}

fn random_event(bench: &mut Bench, random: &mut Random) {
    let name = format!("w{}", 1 + random.below(3));
    let is_attached = bench.members.member(&worker(&name)).is_some_and(|member| member.session().is_some());
    let known = bench.members.member(&worker(&name)).is_some();
    match random.below(15) {
        0 if is_attached => bench.detach(&name),
        1 if is_attached => bench.leave(&name),
        0..=2 => bench.attach(&name, 40 + random.below(60)),
        3 => bench.report(&name, StageState::Failed { reason: "random".into() }),
        4 if known => {
            let worker = worker(&name);
            bench.handle(Event::LinkDown { worker, reason: "random".into() });
        }
        5 => bench.handle(Event::Broken { reason: "random".into() }),
        6 => bench.all_report(&StageState::Loaded(StageMemory::default())),
        7 => bench.all_report(&connected()),
        8 if !bench.deployment.stages().is_empty() => bench.link_ends(),
        9 => bench.all_report(&StageState::Active),
        10 => keep_alive(bench),
        11 => pin_at_random(bench, random),
        12 if !bench.persisted.is_empty() => {
            let crowded = StageState::Crowded { reason: "random".into() };
            let state = if random.below(3) == 0 { crowded } else { StageState::Prepared };
            bench.ahead(&name, state);
        }
        _ => bench.pass(Duration::from_millis(random.below(3000))),
    }
}

/// Pins the plan to two or three workers for a while, where they can hold the model; or takes a pin back.
fn pin_at_random(bench: &mut Bench, random: &mut Random) {
    if random.below(3) == 0 {
        return bench.handle(Event::Unpin);
    }
    let left_out = random.below(4);
    let workers = (0..3).filter(|place| *place != left_out).map(|place| worker(&format!("w{}", place + 1)));
    let pin = Pin { workers: workers.collect(), split: Vec::new() };
    let until = (random.below(2) == 0).then(|| bench.now + Duration::from_millis(random.below(20_000)));
    if bench.deployment.check_pin(&pin, &bench.members, bench.now).is_ok() {
        bench.handle(Event::Pin { pin: pin.clone(), by: None, until });
        assert_eq!(bench.deployment.pin(), Some(&pin));
    }
}

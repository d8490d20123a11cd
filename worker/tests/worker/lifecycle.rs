//! The stage machine, driven without files, sockets or a device.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use brigade_proto::control::{
    CacheDtype, ConnectStage, LoadStage, StageMemory, StageReport, StageRoom, StageState,
};
use brigade_proto::delivery::Edition;
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer};
use brigade_proto::step::WireDtype;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::units::Bytes;
use brigade_worker::lifecycle::{
    ConnectId, KEPT_FOR, LoadId, MAX_STAGES, Progress, StageCommand, StageEvent, StageMachine,
};

const DEPLOYMENT: DeploymentId = DeploymentId(7);
const INCARNATION: Incarnation = Incarnation(3);

fn order(epoch: u64, start: usize) -> LoadStage {
    LoadStage {
        deployment: DEPLOYMENT,
        epoch: Epoch(epoch),
        fingerprint: "ab".repeat(32),
        edition: Edition(1),
        file_hint: "tiny.gguf".to_owned(),
        shard: Shard::of(LayerRange::new(start, 4).unwrap(), 4),
        stage: 1,
        stages: 2,
        room: StageRoom {
            cache_tokens: 64,
            context: 64,
            step_rows: 16,
            sequences: 2,
            cache_dtype: CacheDtype::F32,
        },
        streamed_layers: 0,
    }
}

fn connect(deployment: DeploymentId, epoch: u64) -> ConnectStage {
    ConnectStage {
        deployment,
        epoch: Epoch(epoch),
        previous: Peer::Coordinator,
        next: Peer::Coordinator,
        next_addresses: Vec::new(),
        wire: WireDtype::F32,
        short_way: None,
    }
}

fn fence(epoch: u64) -> Fence {
    Fence { incarnation: INCARNATION, epoch: Epoch(epoch) }
}

fn memory(mib: u64) -> StageMemory {
    StageMemory { weights: Bytes::mib(mib), cache: Bytes::ZERO, workspace: Bytes::ZERO }
}

/// A machine whose answers are kept for a closer look.
struct Driven {
    machine: StageMachine,
    now: Instant,
}

impl Driven {
    fn new(budget_mib: u64) -> Driven {
        let mut driven = Driven { machine: StageMachine::new(Bytes::mib(budget_mib)), now: Instant::now() };
        assert_eq!(driven.tell(StageEvent::Welcomed(INCARNATION)), []);
        driven
    }

    fn tell(&mut self, event: StageEvent) -> Vec<StageCommand> {
        self.machine.handle(event, self.now)
    }

    /// Loads as ordered, to the end.
    fn loaded(&mut self, order: LoadStage, mib: u64) -> LoadId {
        let load = find_of(&self.tell(StageEvent::Load(order)));
        let commands = self.tell(StageEvent::Found { load, memory: memory(mib) });
        assert!(matches!(commands[0], StageCommand::Read { .. }), "{commands:?}");
        let commands = self.tell(StageEvent::LoadEnded { load, result: Ok(memory(mib)) });
        assert!(matches!(commands[0], StageCommand::Install { .. }), "{commands:?}");
        assert_eq!(states(&commands), [StageState::Loaded(memory(mib))]);
        load
    }

    /// Loads, connects and activates.
    fn active(&mut self, epoch: u64, mib: u64) {
        self.loaded(order(epoch, 2), mib);
        let commands = self.tell(StageEvent::Connect(connect(DEPLOYMENT, epoch)));
        let [StageCommand::Open { attempt, .. }] = commands[..] else { panic!("{commands:?}") };
        let next_address = "127.0.0.1:9".parse().unwrap();
        let commands = self.tell(StageEvent::LinksOpened { attempt, next_address, rtt_us: 20 });
        assert_eq!(states(&commands), [StageState::Connected { next_address, rtt_us: 20 }]);
        let commands = self.tell(StageEvent::Activate { deployment: DEPLOYMENT, fence: fence(epoch) });
        assert!(matches!(commands[0], StageCommand::Activate { .. }), "{commands:?}");
        assert_eq!(states(&commands), [StageState::Active]);
    }
}

fn find_of(commands: &[StageCommand]) -> LoadId {
    let found = commands.iter().find_map(|command| match command {
        StageCommand::Find { load, .. } => Some(*load),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("nothing is looked for: {commands:?}"))
}

fn reports(commands: &[StageCommand]) -> Vec<StageReport> {
    let report = |command: &StageCommand| match command {
        StageCommand::Report(report) => Some(report.clone()),
        _ => None,
    };
    commands.iter().filter_map(report).collect()
}

fn states(commands: &[StageCommand]) -> Vec<StageState> {
    reports(commands).into_iter().map(|report| report.state).collect()
}

fn only_failure(commands: &[StageCommand]) -> String {
    match commands {
        [StageCommand::Report(StageReport { state: StageState::Failed { reason }, .. })] => reason.clone(),
        other => panic!("not a single failure: {other:?}"),
    }
}

#[test]
fn a_stage_goes_from_its_load_to_its_end() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    assert_eq!(driven.machine.held(), Bytes::mib(60));
    let commands = driven.tell(StageEvent::Retire { deployment: DEPLOYMENT });
    let gone =
        [StageCommand::Unbind { deployment: DEPLOYMENT }, StageCommand::Drop { deployment: DEPLOYMENT }];
    assert_eq!(commands, gone);
    assert_eq!(driven.machine.held(), Bytes::mib(60), "memory is held until the engine has let go");
    let commands = driven.tell(StageEvent::Dropped { deployment: DEPLOYMENT });
    assert_eq!(states(&commands), [StageState::Retired]);
    assert!(driven.machine.is_empty());
    assert_eq!(driven.machine.held(), Bytes::ZERO);
}

#[test]
fn a_budget_is_for_all_stages_together_and_the_refusal_says_what_is_missing() {
    let mut driven = Driven::new(100);
    driven.loaded(order(1, 2), 60);
    let second = LoadStage { deployment: DeploymentId(8), ..order(1, 2) };
    let load = find_of(&driven.tell(StageEvent::Load(second)));
    let needs = StageMemory { weights: Bytes::mib(30), cache: Bytes::mib(15), workspace: Bytes::mib(5) };
    let commands = driven.tell(StageEvent::Found { load, memory: needs });
    assert_eq!(commands[0], StageCommand::Discard { load });
    let reason = only_failure(&commands[1..]);
    for part in [
        "50.0 MiB",
        "weights 30.0",
        "cache 15.0",
        "workspace 5.0",
        "100.0 MiB",
        "60.0 MiB",
        "10.0 MiB are missing",
    ] {
        assert!(reason.contains(part), "`{part}` is not in `{reason}`");
    }
    assert_eq!(driven.machine.held(), Bytes::mib(60));
}

#[test]
fn a_new_plan_over_the_same_shard_keeps_the_weights() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    let commands = driven.tell(StageEvent::Load(LoadStage { stage: 0, ..order(2, 2) }));
    let expected = [
        StageCommand::Unbind { deployment: DEPLOYMENT },
        StageCommand::Clear { deployment: DEPLOYMENT, stage: 0 },
        StageCommand::Report(StageReport {
            deployment: DEPLOYMENT,
            epoch: Epoch(2),
            state: StageState::Loaded(memory(60)),
        }),
    ];
    assert_eq!(commands, expected);
}

#[test]
fn a_new_plan_with_another_shard_or_edition_loads_only_when_the_old_one_is_gone() {
    for other in [order(2, 1), LoadStage { edition: Edition(2), ..order(2, 2) }] {
        let mut driven = Driven::new(100);
        driven.active(1, 60);
        let commands = driven.tell(StageEvent::Load(other));
        assert!(!commands.iter().any(|command| matches!(command, StageCommand::Find { .. })), "{commands:?}");
        let commands = driven.tell(StageEvent::Dropped { deployment: DEPLOYMENT });
        let load = find_of(&commands);
        let commands = driven.tell(StageEvent::Found { load, memory: memory(90) });
        assert_eq!(commands[0], StageCommand::Read { load, budget: Bytes::mib(100) });
    }
}

#[test]
fn a_new_start_of_the_coordinator_with_another_edition_loads_it() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    driven.tell(StageEvent::Welcomed(Incarnation(4)));
    let other = LoadStage { edition: Edition(2), ..order(2, 2) };
    let commands = driven.tell(StageEvent::Load(other));
    assert!(commands.contains(&StageCommand::Drop { deployment: DEPLOYMENT }), "{commands:?}");
    find_of(&driven.tell(StageEvent::Dropped { deployment: DEPLOYMENT }));
}

#[test]
fn retiring_ends_a_load_under_way() {
    let mut driven = Driven::new(100);
    let load = find_of(&driven.tell(StageEvent::Load(order(1, 2))));
    driven.tell(StageEvent::Found { load, memory: memory(10) });
    let commands = driven.tell(StageEvent::Retire { deployment: DEPLOYMENT });
    assert_eq!(commands, [StageCommand::Cancel { load }]);
    // The load may have come to its end before it heard of that.
    let commands = driven.tell(StageEvent::LoadEnded { load, result: Ok(memory(10)) });
    assert_eq!(commands[0], StageCommand::Discard { load });
    assert_eq!(states(&commands), [StageState::Retired]);
    assert!(driven.machine.is_empty());
}

#[test]
fn commands_of_an_older_plan_are_refused() {
    let mut driven = Driven::new(100);
    driven.active(5, 10);
    let reason = only_failure(&driven.tell(StageEvent::Load(order(4, 2))));
    assert!(reason.contains("older"), "{reason}");
    let reason = only_failure(&driven.tell(StageEvent::Connect(connect(DEPLOYMENT, 4))));
    assert!(reason.contains("epoch 4") && reason.contains('5'), "{reason}");
    only_failure(&driven.tell(StageEvent::Activate { deployment: DEPLOYMENT, fence: fence(4) }));
    let stranger = Fence { incarnation: Incarnation(9), epoch: Epoch(5) };
    only_failure(&driven.tell(StageEvent::Activate { deployment: DEPLOYMENT, fence: stranger }));
    let again = driven.tell(StageEvent::Activate { deployment: DEPLOYMENT, fence: fence(5) });
    assert_eq!(states(&again), [StageState::Active], "the live stage is untouched");
}

#[test]
fn commands_out_of_order_are_refused() {
    let mut driven = Driven::new(100);
    let connecting = StageEvent::Connect(connect(DEPLOYMENT, 1));
    let activating = StageEvent::Activate { deployment: DEPLOYMENT, fence: fence(1) };
    assert!(only_failure(&driven.tell(connecting.clone())).contains("no stage"));
    let load = find_of(&driven.tell(StageEvent::Load(order(1, 2))));
    assert!(only_failure(&driven.tell(connecting)).contains("looking for its file"));
    driven.tell(StageEvent::Found { load, memory: memory(1) });
    driven.tell(StageEvent::LoadEnded { load, result: Ok(memory(1)) });
    assert!(only_failure(&driven.tell(activating)).contains("not connected"));
    let unknown = driven.tell(StageEvent::Retire { deployment: DeploymentId(99) });
    assert_eq!(states(&unknown), [StageState::Retired]);
}

#[test]
fn a_lost_stream_keeps_stages_and_a_new_start_of_the_coordinator_their_weights() {
    let mut driven = Driven::new(100);
    driven.active(7, 10);
    let again = driven.tell(StageEvent::Welcomed(INCARNATION));
    assert_eq!(states(&again), [StageState::Active]);
    // The new start's epochs may begin anywhere.
    for epoch in [8, 3] {
        let commands = driven.tell(StageEvent::Welcomed(Incarnation(90 - epoch)));
        assert_eq!(commands, [StageCommand::Unbind { deployment: DEPLOYMENT }]);
        assert!(only_failure(&driven.tell(StageEvent::Connect(connect(DEPLOYMENT, 7)))).contains("no stage"));
        let commands = driven.tell(StageEvent::Load(order(epoch, 2)));
        let clear = StageCommand::Clear { deployment: DEPLOYMENT, stage: order(epoch, 2).stage };
        assert!(commands.contains(&clear), "{commands:?}");
        assert_eq!(states(&commands), [StageState::Loaded(memory(10))], "nothing is read again");
        assert_eq!(reports(&commands)[0].epoch, Epoch(epoch));
    }
}

#[test]
fn weights_that_a_new_start_does_not_want_make_room() {
    let draft = DeploymentId(DEPLOYMENT.0 + 1);
    let with_draft = |driven: &mut Driven| {
        driven.active(1, 50);
        driven.loaded(LoadStage { deployment: draft, ..order(1, 2) }, 40);
        driven.tell(StageEvent::Welcomed(Incarnation(4)));
    };
    // Another shard: both go, and reading waits for it.
    let mut driven = Driven::new(100);
    with_draft(&mut driven);
    let commands = driven.tell(StageEvent::Load(order(2, 0)));
    let dropped = |deployment| StageCommand::Drop { deployment };
    assert!(commands.contains(&dropped(draft)) && commands.contains(&dropped(DEPLOYMENT)), "{commands:?}");
    assert_eq!(driven.tell(StageEvent::Dropped { deployment: draft }), []);
    let load = find_of(&driven.tell(StageEvent::Dropped { deployment: DEPLOYMENT }));
    let commands = driven.tell(StageEvent::Found { load, memory: memory(100) });
    assert!(matches!(commands[0], StageCommand::Read { .. }), "{commands:?}");

    // One of another deployment that was not here.
    let mut driven = Driven::new(100);
    driven.loaded(LoadStage { deployment: draft, ..order(1, 2) }, 40);
    driven.tell(StageEvent::Welcomed(Incarnation(4)));
    assert!(driven.tell(StageEvent::Load(order(2, 0))).contains(&dropped(draft)));
    find_of(&driven.tell(StageEvent::Dropped { deployment: draft }));

    // The same shard: the draft model's weights wait, but not for ever.
    let mut driven = Driven::new(100);
    with_draft(&mut driven);
    assert_eq!(states(&driven.tell(StageEvent::Load(order(2, 2)))), [StageState::Loaded(memory(50))]);
    assert_eq!(driven.tell(StageEvent::Beat), []);
    driven.now += KEPT_FOR;
    assert!(driven.tell(StageEvent::Beat).contains(&dropped(draft)));
    driven.tell(StageEvent::Dropped { deployment: draft });
    assert_eq!(driven.machine.held(), Bytes::mib(50));
}

#[test]
fn failures_are_told_again_with_a_new_stream_and_end_with_a_new_load() {
    let mut driven = Driven::new(100);
    let load = find_of(&driven.tell(StageEvent::Load(order(1, 2))));
    let commands = driven.tell(StageEvent::LoadEnded { load, result: Err("no such file".to_owned()) });
    assert_eq!(only_failure(&commands[1..]), "no such file");
    assert_eq!(only_failure(&driven.tell(StageEvent::Welcomed(INCARNATION))), "no such file");
    find_of(&driven.tell(StageEvent::Load(order(2, 2))));
}

#[test]
fn a_stage_lost_to_a_defect_has_failed_and_its_memory_is_free() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    let commands = driven
        .tell(StageEvent::Panicked { deployment: DEPLOYMENT, reason: "index out of bounds".to_owned() });
    assert_eq!(states(&commands), [StageState::Failed { reason: "index out of bounds".to_owned() }]);
    assert_eq!(driven.machine.held(), Bytes::ZERO);
    let commands = driven.tell(StageEvent::Retire { deployment: DEPLOYMENT });
    assert_eq!(states(&commands), [StageState::Retired]);
}

#[test]
fn links_that_cannot_be_opened_leave_the_weights() {
    let mut driven = Driven::new(100);
    driven.loaded(order(1, 2), 60);
    let commands = driven.tell(StageEvent::Connect(connect(DEPLOYMENT, 1)));
    let [StageCommand::Open { attempt, .. }] = commands[..] else { panic!("{commands:?}") };
    let commands = driven.tell(StageEvent::LinksFailed { attempt, reason: "no path to w2".to_owned() });
    assert_eq!(states(&commands), [StageState::Failed { reason: "no path to w2".to_owned() }]);
    let commands = driven.tell(StageEvent::Load(order(2, 2)));
    assert_eq!(states(&commands), [StageState::Loaded(memory(60))]);
    // What the first attempt still brings is nobody's any more.
    let next_address = "127.0.0.1:9".parse().unwrap();
    assert_eq!(driven.tell(StageEvent::LinksOpened { attempt, next_address, rtt_us: 1 }), []);
}

#[test]
fn progress_is_reported_ten_times_a_second_at_most() {
    let mut driven = Driven::new(100);
    let load = find_of(&driven.tell(StageEvent::Load(order(1, 2))));
    driven.tell(StageEvent::Found { load, memory: memory(50) });
    let mut told = 0;
    for step in 0..1000u64 {
        driven.now += Duration::from_millis(1);
        let progress = Progress { loaded: Bytes(step), total: Bytes::mib(50), delivery: None };
        let event = StageEvent::Progress { load, progress };
        told += driven.tell(event).len();
    }
    assert!((9..=10).contains(&told), "{told} reports within a second");
}

/// The weights of `order` are resident beside what there is.
fn prepared(driven: &mut Driven, order: LoadStage, weights_mib: u64, missing_mib: u64) -> LoadId {
    let commands = driven.tell(StageEvent::Prepare(order));
    let [StageCommand::FindMissing { load, .. }, _] = commands[..] else { panic!("{commands:?}") };
    let (weights, missing) = (Bytes::mib(weights_mib), Bytes::mib(missing_mib));
    let commands = driven.tell(StageEvent::FoundMissing { load, weights, missing });
    assert_eq!(commands[0], StageCommand::ReadMissing { load });
    let commands = driven.tell(StageEvent::Prepared { load });
    assert_eq!(states(&commands), [StageState::Prepared]);
    load
}

#[test]
fn weights_are_read_ahead_beside_an_active_stage_and_taken_over_by_the_next() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    let ahead = prepared(&mut driven, order(2, 1), 50, 30);
    assert_eq!(driven.machine.held(), Bytes::mib(90), "what the stage holds counts there");
    let again = driven.tell(StageEvent::Prepare(order(2, 1)));
    assert_eq!(states(&again), [StageState::Prepared]);
    let again = driven.tell(StageEvent::Activate { deployment: DEPLOYMENT, fence: fence(1) });
    assert_eq!(states(&again), [StageState::Active], "the live stage is untouched");

    let commands = driven.tell(StageEvent::Load(order(2, 1)));
    assert!(commands.contains(&StageCommand::Drop { deployment: DEPLOYMENT }), "{commands:?}");
    let load = find_of(&driven.tell(StageEvent::Dropped { deployment: DEPLOYMENT }));
    assert_eq!(driven.machine.held(), Bytes::mib(50), "they are all that is left");
    let commands = driven.tell(StageEvent::Found { load, memory: memory(95) });
    assert_eq!(commands[0], StageCommand::Read { load, budget: Bytes::mib(100) });
    assert_eq!(driven.machine.held(), Bytes::mib(95), "they are a part of the stage");
    let commands = driven.tell(StageEvent::LoadEnded { load, result: Ok(memory(95)) });
    assert!(matches!(commands[0], StageCommand::Install { .. }), "{commands:?}");
    assert!(commands.contains(&StageCommand::Discard { load: ahead }), "{commands:?}");
    assert_eq!(driven.machine.held(), Bytes::mib(95));
}

#[test]
fn weights_that_do_not_fit_beside_the_stage_are_not_read() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    let commands = driven.tell(StageEvent::Prepare(order(2, 1)));
    let [StageCommand::FindMissing { load, .. }, _] = commands[..] else { panic!("{commands:?}") };
    let (weights, missing) = (Bytes::mib(90), Bytes::mib(41));
    let commands = driven.tell(StageEvent::FoundMissing { load, weights, missing });
    assert_eq!(commands[0], StageCommand::Discard { load });
    let told = states(&commands);
    let [StageState::Crowded { reason }] = &told[..] else { panic!("{told:?}") };
    assert!(reason.contains("41.0 MiB") && reason.contains("only 40.0 MiB"), "{reason}");
    assert_eq!(driven.machine.held(), Bytes::mib(60));
}

#[test]
fn weights_read_ahead_go_when_they_are_not_wanted_any_more() {
    let gone = |event: StageEvent| {
        let mut driven = Driven::new(100);
        driven.active(1, 60);
        let ahead = prepared(&mut driven, order(2, 1), 50, 30);
        let commands = driven.tell(event);
        assert!(commands.contains(&StageCommand::Discard { load: ahead }), "{commands:?}");
        assert_eq!(driven.machine.held(), Bytes::mib(60));
    };
    gone(StageEvent::Unprepare { deployment: DEPLOYMENT });
    gone(StageEvent::Retire { deployment: DEPLOYMENT });
    gone(StageEvent::Welcomed(Incarnation(4)));
    // Another plan came, with the shard that is here, or a third one.
    gone(StageEvent::Load(order(3, 2)));
    gone(StageEvent::Load(order(3, 0)));
    gone(StageEvent::Prepare(order(3, 0)));
    gone(StageEvent::RetireAll);
}

#[test]
fn reading_ahead_that_is_given_up_counts_until_its_thread_has_ended() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    let commands = driven.tell(StageEvent::Prepare(order(2, 1)));
    let [StageCommand::FindMissing { load, .. }, _] = commands[..] else { panic!("{commands:?}") };
    let (weights, missing) = (Bytes::mib(50), Bytes::mib(30));
    driven.tell(StageEvent::FoundMissing { load, weights, missing });
    let commands = driven.tell(StageEvent::Unprepare { deployment: DEPLOYMENT });
    assert_eq!(commands, [StageCommand::Cancel { load }]);
    assert_eq!(driven.machine.held(), Bytes::mib(90));
    let commands = driven.tell(StageEvent::LoadEnded { load, result: Err("cancelled".to_owned()) });
    assert_eq!(commands, [StageCommand::Discard { load }]);
    assert_eq!(driven.machine.held(), Bytes::mib(60));
}

#[test]
fn a_stage_waits_for_memory_that_is_on_its_way_out() {
    let mut driven = Driven::new(100);
    driven.active(1, 40);
    let commands = driven.tell(StageEvent::Prepare(order(2, 1)));
    let [StageCommand::FindMissing { load: ahead, .. }, _] = commands[..] else { panic!("{commands:?}") };
    let (weights, missing) = (Bytes::mib(50), Bytes::mib(50));
    driven.tell(StageEvent::FoundMissing { load: ahead, weights, missing });
    // Another plan comes while they are still being read; the stage that computed goes at once, they don't.
    let commands = driven.tell(StageEvent::Load(order(3, 0)));
    assert!(commands.contains(&StageCommand::Cancel { load: ahead }), "{commands:?}");
    let load = find_of(&driven.tell(StageEvent::Dropped { deployment: DEPLOYMENT }));
    let commands = driven.tell(StageEvent::Found { load, memory: memory(80) });
    assert_eq!(commands, []);
    assert_eq!(driven.machine.held(), Bytes::mib(50));
    assert!(driven.machine.is_loading());
    let ended = StageEvent::LoadEnded { load: ahead, result: Err("cancelled".to_owned()) };
    let commands = driven.tell(ended);
    assert_eq!(
        commands[..2],
        [StageCommand::Discard { load: ahead }, StageCommand::Read { load, budget: Bytes::mib(100) }]
    );
    assert_eq!(driven.machine.held(), Bytes::mib(80));
}

#[test]
fn a_stage_that_would_never_fit_does_not_wait() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    driven.tell(StageEvent::Retire { deployment: DEPLOYMENT });
    let other = LoadStage { deployment: DeploymentId(9), ..order(1, 1) };
    let load = find_of(&driven.tell(StageEvent::Load(other)));
    let commands = driven.tell(StageEvent::Found { load, memory: memory(101) });
    assert_eq!(commands[0], StageCommand::Discard { load });
    let told = states(&commands);
    assert!(matches!(told[..], [StageState::Failed { .. }]), "{told:?}");
}

#[test]
fn a_stage_that_waits_for_memory_can_be_retired() {
    let mut driven = Driven::new(100);
    driven.active(1, 60);
    driven.tell(StageEvent::Retire { deployment: DEPLOYMENT });
    let deployment = DeploymentId(9);
    let load = find_of(&driven.tell(StageEvent::Load(LoadStage { deployment, ..order(1, 1) })));
    assert_eq!(driven.tell(StageEvent::Found { load, memory: memory(80) }), []);
    let commands = driven.tell(StageEvent::Retire { deployment });
    assert_eq!(commands[0], StageCommand::Discard { load });
    assert_eq!(states(&commands), [StageState::Retired]);
}

#[test]
fn there_is_a_bound_on_stages() {
    let mut driven = Driven::new(100);
    for number in 0..MAX_STAGES as u64 {
        find_of(
            &driven.tell(StageEvent::Load(LoadStage { deployment: DeploymentId(number), ..order(1, 2) })),
        );
    }
    let more = LoadStage { deployment: DeploymentId(1000), ..order(1, 2) };
    assert!(only_failure(&driven.tell(StageEvent::Load(more))).contains("no more"));
}

/// SplitMix64: the tests need no better one.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What stands outside of the machine: loads under way, stages in the engine, links being opened.
#[derive(Default)]
struct World {
    loads: BTreeMap<LoadId, Load>,
    engine: BTreeMap<DeploymentId, (Bytes, bool)>,
    dropping: Vec<DeploymentId>,
    opening: BTreeMap<DeploymentId, ConnectId>,
    connected: BTreeMap<DeploymentId, bool>,
    activations: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Finding,
    /// Of weights alone, and so on.
    FindingAhead,
    ReadingAhead,
    Ahead,
    Found(u64),
    Reading(u64),
    Made(u64),
}

impl World {
    const BUDGET: u64 = 100;

    /// Does what the machine wants, and checks that it may want it.
    fn obey(&mut self, commands: Vec<StageCommand>) {
        for command in commands {
            match command {
                StageCommand::Find { load, order } => {
                    assert!(!self.engine.contains_key(&order.deployment), "loads beside a stage of its own");
                    assert!(self.loads.insert(load, Load::Finding).is_none());
                }
                StageCommand::Read { load, budget } => {
                    let Some(Load::Found(mib)) = self.loads.get(&load).copied() else {
                        panic!("read of {load:?}")
                    };
                    assert!(Bytes::mib(mib) <= budget, "{mib} MiB into {budget}");
                    self.loads.insert(load, Load::Reading(mib));
                }
                StageCommand::FindMissing { load, .. } => {
                    assert!(self.loads.insert(load, Load::FindingAhead).is_none());
                }
                StageCommand::ReadMissing { load } => {
                    assert_eq!(self.loads.insert(load, Load::ReadingAhead), Some(Load::Found(0)));
                }
                StageCommand::Cancel { load } => {
                    let under_way = matches!(
                        self.loads[&load],
                        Load::Finding | Load::Reading(_) | Load::FindingAhead | Load::ReadingAhead
                    );
                    assert!(under_way);
                }
                StageCommand::Discard { load } => assert!(self.loads.remove(&load).is_some()),
                StageCommand::Install { load, deployment, .. } => {
                    let Some(Load::Made(mib)) = self.loads.remove(&load) else {
                        panic!("install of {load:?}")
                    };
                    assert!(self.engine.insert(deployment, (Bytes::mib(mib), false)).is_none());
                }
                StageCommand::Open { attempt, order } => {
                    assert!(self.engine.contains_key(&order.deployment));
                    self.opening.insert(order.deployment, attempt);
                }
                StageCommand::Unbind { deployment } => {
                    self.opening.remove(&deployment);
                    self.connected.remove(&deployment);
                }
                StageCommand::Activate { deployment, .. } => {
                    assert!(self.connected.contains_key(&deployment), "activates what is not connected");
                    self.engine.get_mut(&deployment).expect("activates what is not there").1 = true;
                    self.activations += 1;
                }
                StageCommand::Clear { deployment, .. } => {
                    self.engine.get_mut(&deployment).expect("clears what is not there").1 = false;
                }
                StageCommand::Drop { deployment } => self.dropping.push(deployment),
                StageCommand::Report(_) => {}
            }
            let reading = |load: &Load| {
                if let Load::Reading(mib) | Load::Made(mib) = load { *mib } else { 0 }
            };
            let loads: u64 = self.loads.values().map(reading).sum();
            let stages: Bytes = self.engine.values().map(|(bytes, _)| *bytes).sum();
            assert!(
                Bytes::mib(loads) + stages <= Bytes::mib(Self::BUDGET),
                "more than the budget is resident"
            );
        }
    }

    /// Something that may happen now.
    fn happen(&mut self, random: &mut Random) -> Option<StageEvent> {
        match random.below(5) {
            0 => {
                // What is read ahead is there, and what was found may wait for room.
                let still = |state: &Load| matches!(state, Load::Ahead | Load::Found(1..));
                let under_way = || self.loads.iter().filter(|(_, state)| !still(state));
                let at = random.below(under_way().count().max(1) as u64) as usize;
                let (load, state) = under_way().nth(at).map(|(load, state)| (*load, *state))?;
                let mib = random.below(60) + 1;
                match state {
                    Load::Finding if random.below(8) == 0 => {
                        self.loads.insert(load, Load::Found(0));
                        Some(StageEvent::LoadEnded { load, result: Err("no file".to_owned()) })
                    }
                    Load::Finding => {
                        self.loads.insert(load, Load::Found(mib));
                        Some(StageEvent::Found { load, memory: memory(mib) })
                    }
                    Load::FindingAhead => {
                        self.loads.insert(load, Load::Found(0));
                        let weights = Bytes::mib(mib);
                        Some(StageEvent::FoundMissing { load, weights, missing: weights })
                    }
                    Load::ReadingAhead if random.below(8) == 0 => {
                        Some(StageEvent::LoadEnded { load, result: Err("cancelled".to_owned()) })
                    }
                    Load::ReadingAhead => {
                        self.loads.insert(load, Load::Ahead);
                        Some(StageEvent::Prepared { load })
                    }
                    Load::Reading(_) if random.below(8) == 0 => {
                        Some(StageEvent::LoadEnded { load, result: Err("cancelled".to_owned()) })
                    }
                    Load::Reading(mib) => {
                        self.loads.insert(load, Load::Made(mib));
                        Some(StageEvent::LoadEnded { load, result: Ok(memory(mib)) })
                    }
                    Load::Found(_) | Load::Made(_) | Load::Ahead => panic!("{load:?} was left lying about"),
                }
            }
            1 if !self.dropping.is_empty() => {
                let deployment = self.dropping.remove(0);
                self.engine.remove(&deployment);
                Some(StageEvent::Dropped { deployment })
            }
            2 => {
                let (deployment, attempt) = self.opening.pop_first()?;
                if random.below(4) == 0 {
                    return Some(StageEvent::LinksFailed { attempt, reason: "no path".to_owned() });
                }
                self.connected.insert(deployment, true);
                let next_address = "127.0.0.1:9".parse().unwrap();
                Some(StageEvent::LinksOpened { attempt, next_address, rtt_us: 1 })
            }
            3 if random.below(20) == 0 => {
                let deployment = *self.engine.keys().find(|id| !self.dropping.contains(id))?;
                self.engine.remove(&deployment);
                Some(StageEvent::Panicked { deployment, reason: "defect".to_owned() })
            }
            _ => None,
        }
    }
}

#[test]
fn no_order_of_events_breaks_the_budget_or_leaves_anything_behind() {
    let mut activations = 0;
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut machine = StageMachine::new(Bytes::mib(World::BUDGET));
        let mut world = World::default();
        let mut incarnation = 1;
        let mut now = Instant::now();
        let step = |machine: &mut StageMachine, world: &mut World, event, now| {
            let commands = machine.handle(event, now);
            assert!(machine.held() <= Bytes::mib(World::BUDGET), "seed {seed}: {machine:?}");
            world.obey(commands);
        };
        step(&mut machine, &mut world, StageEvent::Welcomed(Incarnation(incarnation)), now);
        for _ in 0..800 {
            let deployment = DeploymentId(random.below(3));
            let epoch = random.below(6);
            let event = match random.below(14) {
                0 | 1 => StageEvent::Load(LoadStage {
                    deployment,
                    ..order(epoch, usize::try_from(random.below(2)).unwrap())
                }),
                2 | 3 => StageEvent::Connect(connect(deployment, epoch)),
                4 | 5 => StageEvent::Activate {
                    deployment,
                    fence: Fence { incarnation: Incarnation(incarnation), epoch: Epoch(epoch) },
                },
                12 if random.below(4) == 0 => StageEvent::Prepare(LoadStage {
                    deployment,
                    ..order(epoch, usize::try_from(random.below(2)).unwrap())
                }),
                13 if random.below(3) == 0 => StageEvent::Unprepare { deployment },
                6 if random.below(3) == 0 => StageEvent::Retire { deployment },
                8 if random.below(20) == 0 => {
                    now += KEPT_FOR / 3;
                    StageEvent::Beat
                }
                7 if random.below(20) == 0 => {
                    incarnation += random.below(2);
                    StageEvent::Welcomed(Incarnation(incarnation))
                }
                _ => match world.happen(&mut random) {
                    Some(event) => event,
                    None => continue,
                },
            };
            step(&mut machine, &mut world, event, now);
        }
        // Whatever waits is let in once nothing is on its way out any more.
        for _ in 0..2000 {
            if let Some(event) = world.happen(&mut random) {
                step(&mut machine, &mut world, event, now);
            }
        }
        let waits = world.loads.values().any(|load| matches!(load, Load::Found(1..)));
        assert!(!waits, "seed {seed}: a stage waits for nothing: {machine:?}");
        step(&mut machine, &mut world, StageEvent::RetireAll, now);
        for _ in 0..10_000 {
            if let Some(event) = world.happen(&mut random) {
                step(&mut machine, &mut world, event, now);
            }
        }
        assert!(machine.is_empty(), "seed {seed}: {machine:?}");
        assert_eq!(machine.held(), Bytes::ZERO, "seed {seed}");
        assert!(world.loads.is_empty() && world.engine.is_empty(), "seed {seed}: something was left behind");
        activations += world.activations;
    }
    assert!(activations > 100, "only {activations} stages ever became active: the test has lost its point");
}

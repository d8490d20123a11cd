//! Each state comes once it has lasted, within five seconds, with its figures; and goes once its cause is gone.

use brigade_proto::step::StepKind;

use super::*;
use crate::scheduler::StagePrediction;
use crate::status::{
    CardStatus, MachineStatus, ModelStatus, RequestStatus, StageStatus, Throttling, WorkerStatus,
};

/// Within this a fault must be told.
const TOLD: Duration = Duration::from_secs(5);
/// How often the coordinator looks.
const PERIOD: Duration = Duration::from_millis(250);
const GIB: u64 = 1 << 30;

/// A monitor that looks at a cluster of three workers, in simulated time.
struct Rig {
    monitor: Monitor,
    status: ClusterStatus,
    facts: Facts,
    now: Instant,
}

impl Rig {
    fn new() -> Rig {
        let worker = |name: &str| WorkerStatus {
            id: format!("id-{name}"),
            name: name.into(),
            host: format!("{name}.local"),
            state: "attached".into(),
            device: "cpu".into(),
            budget_bytes: 8 * GIB,
            resident_bytes: 5 * GIB,
            machine: MachineStatus {
                memory_bytes: 16 * GIB,
                memory_available_bytes: 8 * GIB,
                ..MachineStatus::default()
            },
            ..WorkerStatus::default()
        };
        let stage = |place: u32, name: &str| StageStatus {
            stage: place,
            worker: format!("id-{name}"),
            name: name.into(),
            layer_start: place * 10,
            layer_end: place * 10 + 10,
            state: "active".into(),
            loaded: 1.0,
            weight_bytes: 4 * GIB,
            cache_bytes: GIB / 2,
            step_share: 1.0 / 3.0,
            ..StageStatus::default()
        };
        let names = ["anna", "ben", "carla"];
        let known = WorkerFacts {
            contact: Contact::There,
            computing: Duration::ZERO,
            longest_step: Some(Duration::from_millis(100)),
        };
        let pace = Recent { than_usual: 1.0, than_predicted: 1.1, step_s: 0.011, usual_s: 0.011 };
        Rig {
            monitor: Monitor::default(),
            status: ClusterStatus {
                phase: Phase::Serving,
                epoch: 3,
                model: ModelStatus { layers: 30, ..ModelStatus::default() },
                cache_tokens: 2048,
                workers: names.map(worker).to_vec(),
                stages: (0..3).zip(names).map(|(place, name)| stage(place, name)).collect(),
                ..ClusterStatus::default()
            },
            facts: Facts { workers: vec![known; 3], paces: vec![Some(pace); 3] },
            now: Instant::now(),
        }
    }

    /// Looks again and again for so long.
    fn look_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += PERIOD;
            self.monitor.judge(&mut self.status, &self.facts, self.now);
        }
    }

    /// How ben is by now: he, his stage and the cluster, which must agree.
    #[track_caller]
    fn ben(&mut self, time: Duration) -> Health {
        self.look_for(time);
        let (worker, stage) = (&self.status.workers[1].health, &self.status.stages[1].health);
        assert_eq!(worker, stage);
        assert_eq!(self.status.health.state, worker.state, "{:?}", self.status.health);
        for other in [0, 2] {
            assert_eq!(self.status.stages[other].health, Health::default(), "stage {other}");
        }
        worker.clone()
    }

    /// That ben comes to be like this within five seconds, and is `ok` again soon after `mend`.
    #[track_caller]
    fn told_and_mended(
        &mut self,
        state: HealthState,
        says: &str,
        advises: &str,
        mend: impl FnOnce(&mut Rig),
    ) {
        let told = self.ben(TOLD);
        assert_eq!(told.state, state, "{told:?}");
        let (reason, advice) = (told.reason.unwrap(), told.advice.unwrap_or_default());
        assert!(reason.contains(says), "{reason}");
        assert!(advice.contains(advises), "{advice}");
        mend(self);
        assert_eq!(self.ben(TOLD), Health::default());
    }

    fn slow_down(&mut self, place: usize, than_usual: f64, than_predicted: f64) {
        let step_s = 0.011 * than_usual;
        self.facts.paces[place] = Some(Recent { than_usual, than_predicted, step_s, usual_s: 0.011 });
        let times: Vec<f64> = self.facts.paces.iter().flatten().map(|pace| pace.step_s).collect();
        let all: f64 = times.iter().sum();
        for (stage, time) in self.status.stages.iter_mut().zip(&times) {
            stage.step_share = time / all;
        }
    }
}

#[test]
fn all_is_well() {
    let mut rig = Rig::new();
    assert_eq!(rig.ben(Duration::from_secs(60)), Health::default());
}

#[test]
fn a_worker_in_doubt_is_unreachable_unless_the_doubt_passes_at_once() {
    let mut rig = Rig::new();
    rig.look_for(PERIOD);
    rig.status.workers[1].last_seen_s = 2.4;
    rig.facts.workers[1].contact = Contact::Doubted { since: rig.now };
    assert_eq!(rig.ben(PERIOD), Health::default(), "a probe takes a moment");
    let there = |rig: &mut Rig| rig.facts.workers[1].contact = Contact::There;
    rig.told_and_mended(HealthState::Unreachable, "nothing was heard of it for 2.4 s", "ben.local", there);
}

#[test]
fn a_lost_worker_is_unreachable_at_once_whatever_it_said_last() {
    let mut rig = Rig::new();
    rig.status.workers[1].machine.throttle = Some(Throttling::Heat);
    rig.look_for(TOLD);
    let reason = "its data port does not answer".to_owned();
    rig.facts.workers[1].contact = Contact::Lost { since: rig.now, reason };
    let told = rig.ben(PERIOD);
    assert_eq!(told.state, HealthState::Unreachable);
    assert_eq!(told.reason.unwrap(), "lost 0 s ago: its data port does not answer");
    rig.look_for(Duration::from_secs(60));
    rig.facts.workers[1].contact = Contact::There;
    rig.status.workers[1].machine.throttle = None;
    assert_eq!(rig.ben(PERIOD), Health::default());
}

#[test]
fn a_step_without_end_is_a_hung_device_and_a_long_one_is_not() {
    let mut rig = Rig::new();
    rig.facts.workers[1].computing = Duration::from_millis(1400);
    assert_eq!(rig.ben(TOLD), Health::default(), "machines do other things, too");
    rig.facts.workers[1].computing = Duration::from_millis(2100);
    let done = |rig: &mut Rig| rig.facts.workers[1].computing = Duration::ZERO;
    rig.told_and_mended(HealthState::Hung, "2.1 s, of 100.0 ms expected", "driver", done);
    // Where steps take long, so does this.
    rig.facts.workers[1].longest_step = Some(Duration::from_secs(2));
    rig.facts.workers[1].computing = Duration::from_secs(9);
    assert_eq!(rig.ben(TOLD), Health::default());
}

#[test]
fn paging_is_swapping_only_where_steps_suffer() {
    let mut rig = Rig::new();
    rig.status.workers[1].machine.paged_in_bytes_per_s = Some(50e6);
    assert_eq!(rig.ben(TOLD), Health::default(), "something else may read files");
    rig.slow_down(1, 5.0, 5.0);
    let mend = |rig: &mut Rig| {
        rig.status.workers[1].machine.paged_in_bytes_per_s = Some(0.0);
        rig.slow_down(1, 1.0, 1.0);
    };
    rig.told_and_mended(HealthState::Swapping, "47.7 MiB/s are read back", "--memory below 8.0 GiB", mend);
}

#[test]
fn growing_swap_is_swapping_and_what_was_swapped_long_ago_is_not() {
    let mut rig = Rig::new();
    rig.status.workers[1].machine.swap_used_bytes = 4 * GIB;
    rig.slow_down(1, 1.4, 1.4);
    assert_eq!(rig.ben(Duration::from_secs(20)), Health::default());
    for _ in 0..5 {
        rig.status.workers[1].machine.swap_used_bytes += 20 << 20;
        rig.look_for(Duration::from_secs(1));
    }
    assert_eq!(
        rig.status.workers[1].health.state,
        HealthState::Swapping,
        "{:?}",
        rig.status.workers[1].health
    );
    assert_eq!(rig.ben(Duration::from_secs(10)), Health::default());
}

#[test]
fn a_machine_without_memory_and_a_worker_beyond_its_budget_are_full() {
    let mut rig = Rig::new();
    rig.status.workers[1].machine.memory_available_bytes = GIB / 4;
    let free = |rig: &mut Rig| rig.status.workers[1].machine.memory_available_bytes = 8 * GIB;
    rig.told_and_mended(
        HealthState::Full,
        "256.0 MiB of ben.local's 16.0 GiB are available",
        "free memory on ben.local",
        free,
    );
    // What is told stays until there is clearly enough.
    rig.status.workers[1].machine.memory_available_bytes = GIB / 4;
    rig.look_for(TOLD);
    rig.status.workers[1].machine.memory_available_bytes = 16 * GIB / 25;
    assert_eq!(rig.ben(Duration::from_secs(60)).state, HealthState::Full);
    free(&mut rig);
    rig.look_for(TOLD);

    rig.status.workers[1].resident_bytes = 9 * GIB;
    let less = |rig: &mut Rig| rig.status.workers[1].resident_bytes = 5 * GIB;
    rig.told_and_mended(HealthState::Full, "9.0 GiB of memory, of 8.0 GiB", "start it anew", less);
}

#[test]
fn requests_that_wait_for_cache_fill_every_stage() {
    let mut rig = Rig::new();
    rig.status.requests = RequestStatus { running: 2, waiting: 3, ..RequestStatus::default() };
    rig.status.cache_tokens_reserved = 2000;
    rig.look_for(PERIOD * 2);
    assert_eq!(rig.status.health, Health::default(), "a burst is no alarm");
    rig.look_for(TOLD);
    let told = &rig.status.health;
    assert_eq!(told.state, HealthState::Full);
    assert_eq!(
        told.reason.as_deref(),
        Some("requests wait: 3; 2000 of 2048 cache tokens are reserved for the 2 that run")
    );
    assert!(told.advice.as_ref().unwrap().contains("--memory"), "{told:?}");
    assert!(rig.status.stages.iter().all(|stage| stage.health == *told));
    assert!(rig.status.workers.iter().all(|worker| worker.health == *told));
    rig.status.requests.waiting = 0;
    assert_eq!(rig.ben(TOLD), Health::default());
}

#[test]
fn heat_is_told_where_it_holds_clocks_back() {
    let mut rig = Rig::new();
    rig.status.workers[1].machine.temperature_celsius = Some(97.0);
    assert_eq!(rig.ben(TOLD), Health::default(), "hot, and at full speed");
    let cool = |rig: &mut Rig| {
        rig.status.workers[1].machine.throttle = Some(Throttling::None);
        rig.status.workers[1].card = None;
    };
    rig.status.workers[1].machine.throttle = Some(Throttling::Power);
    rig.told_and_mended(
        HealthState::Hot,
        "its processors are held back at 97 °C",
        "cooling of ben.local",
        cool,
    );
    let card = CardStatus { throttle: Some(Throttling::Heat), ..CardStatus::default() };
    rig.status.workers[1].card = Some(card);
    rig.told_and_mended(HealthState::Hot, "its card is held back", "fans", cool);
    // A card at its power limit is as fast as it can be.
    let card = CardStatus { throttle: Some(Throttling::Power), temperature_celsius: Some(70.0), ..card };
    rig.status.workers[1].card = Some(card);
    assert_eq!(rig.ben(TOLD), Health::default());
}

#[test]
fn a_stage_that_has_become_slow_is_told_with_the_layers_to_move() {
    let mut rig = Rig::new();
    rig.slow_down(1, 3.2, 3.4);
    rig.look_for(PERIOD * 2);
    assert_eq!(rig.status.health, Health::default(), "a hiccup is no alarm");
    // 62% of a step over ten layers, beside 19%: four of them moved leave 37% here and 44% there.
    let says = "steps take 35.2 ms, 3.2 times the 11.0 ms of when it began to serve, and 3.4 times what was predicted; \
                it takes 62% of the step";
    let advises = "move 5 layers to anna (--split 15,5,10): `brigade plan` shows how";
    rig.told_and_mended(HealthState::Slow, says, advises, |rig| rig.slow_down(1, 1.0, 1.1));
}

#[test]
fn what_slows_all_stages_is_no_stage_that_is_slow() {
    let mut rig = Rig::new();
    // A long context, or a machine that all of them share.
    (0..3).for_each(|place| rig.slow_down(place, 3.0, 3.0));
    assert_eq!(rig.ben(Duration::from_secs(60)), Health::default());
    // Above what it was, and still as predicted.
    (0..3).for_each(|place| rig.slow_down(place, 1.0, 0.5));
    rig.slow_down(1, 2.0, 1.0);
    assert_eq!(rig.ben(Duration::from_secs(60)), Health::default());
    rig.slow_down(1, 2.0, 1.7);
    assert_eq!(rig.ben(TOLD).state, HealthState::Slow);
    // Between slow and not slow, what was told stays.
    rig.slow_down(1, 1.45, 1.2);
    assert_eq!(rig.ben(Duration::from_secs(60)).state, HealthState::Slow);
    rig.slow_down(1, 1.2, 1.2);
    assert_eq!(rig.ben(TOLD), Health::default());
}

#[test]
fn no_layer_moves_where_there_is_no_room() {
    let mut rig = Rig::new();
    for place in [0, 2] {
        rig.status.workers[place].budget_bytes = 5 * GIB;
        rig.status.workers[place].resident_bytes = 4 * GIB;
    }
    rig.slow_down(1, 3.2, 3.4);
    let advice = rig.ben(TOLD).advice.unwrap();
    assert!(advice.contains("move 1 layer to") && advice.contains("--split"), "{advice}");
    rig.status.workers[0].budget_bytes = 9 * GIB / 2;
    rig.status.workers[2].budget_bytes = 9 * GIB / 2;
    let advice = rig.ben(TOLD).advice.unwrap();
    assert!(!advice.contains("--split") && advice.contains("what else runs on ben.local"), "{advice}");
}

#[test]
fn a_stage_that_never_was_as_predicted_is_told_in_time() {
    let mut rig = Rig::new();
    rig.slow_down(1, 1.0, 2.5);
    rig.status.stages[1].step_share = 0.61;
    assert_eq!(rig.ben(TOLD), Health::default());
    let told = rig.ben(Duration::from_secs(10));
    assert_eq!(told.state, HealthState::Slow);
    assert!(told.reason.unwrap().contains("61% of the step: 2.5 times what was predicted"));
    // A plan whose predictions are all as wrong is not uneven.
    rig.status.epoch += 1;
    (0..3).for_each(|place| rig.slow_down(place, 1.0, 2.5));
    assert_eq!(rig.ben(Duration::from_secs(60)), Health::default());
}

#[test]
fn another_plan_begins_anew() {
    let mut rig = Rig::new();
    rig.slow_down(1, 5.0, 5.0);
    assert_eq!(rig.ben(TOLD).state, HealthState::Slow);
    rig.status.epoch += 1;
    rig.facts.paces = vec![None; 3];
    assert_eq!(rig.ben(PERIOD), Health::default());
}

#[test]
fn a_cluster_that_does_not_serve_says_how_far_it_is() {
    let mut rig = Rig::new();
    rig.status.phase = Phase::Loading;
    rig.status.reason = Some("stages are being loaded".into());
    for (stage, loaded) in rig.status.stages.iter_mut().zip([1.0, 0.43, 0.0]) {
        stage.loaded = loaded;
        stage.state = if loaded < 1.0 { "loading".into() } else { "loaded".into() };
    }
    rig.look_for(PERIOD);
    let told = &rig.status.health;
    assert_eq!(told.state, HealthState::Loading);
    assert_eq!(told.reason.as_deref(), Some("48% of 12.0 GiB read; stages are being loaded"));
    let ben = &rig.status.workers[1].health;
    assert_eq!((ben.state, ben.reason.as_deref()), (HealthState::Loading, Some("43% of 4.0 GiB read")));
    rig.status.phase = Phase::Waiting;
    rig.status.stages.clear();
    rig.facts.paces.clear();
    rig.status.reason = Some("3.0 GiB more are needed".into());
    rig.look_for(PERIOD);
    let told = &rig.status.health;
    assert_eq!(
        (told.state, told.reason.as_deref()),
        (HealthState::Unreachable, Some("3.0 GiB more are needed"))
    );
    assert_eq!(rig.status.workers[1].health, Health::default());
}

#[test]
fn a_drained_worker_says_so_and_worse_things_come_first() {
    let mut rig = Rig::new();
    rig.status.workers[1].state = "draining".into();
    assert_eq!(rig.ben(PERIOD).state, HealthState::Draining);
    rig.status.workers[1].machine.throttle = Some(Throttling::Heat);
    assert_eq!(rig.ben(TOLD).state, HealthState::Hot);
    rig.status.workers[1].machine.throttle = None;
    rig.status.workers[1].state = "drained".into();
    let told = rig.ben(TOLD);
    assert_eq!(told.reason.as_deref(), Some("it holds nothing, and may be unplugged"));
}

/// A stage that is predicted to take 10 ms for a token and 1 ms for each further row.
fn pace() -> Pace {
    Pace::new(StagePrediction { decode_s: 0.010, prefill_s_per_row: 0.001 })
}

/// Steps of so many rows for so long, each as many times as slow as predicted; then how it went lately.
fn steps(pace: &mut Pace, now: &mut Instant, rows: u32, times: f64, seconds: f64) -> Option<Recent> {
    let step_s =
        StagePrediction { decode_s: 0.010, prefill_s_per_row: 0.001 }.seconds(StepKind::Decode, rows);
    let end = *now + Duration::from_secs_f64(seconds);
    while *now < end {
        *now += Duration::from_secs_f64(step_s * times);
        pace.add(StepKind::Decode, rows, 0, step_s * times);
        pace.read(*now);
    }
    pace.recent(*now)
}

#[track_caller]
fn assert_near(found: f64, wanted: f64) {
    assert!((found / wanted - 1.0).abs() < 0.1, "{found} instead of {wanted}");
}

#[test]
fn a_pace_is_compared_with_the_beginning_and_the_prediction() {
    let (mut pace, mut now) = (pace(), Instant::now());
    assert_eq!(pace.recent(now), None);
    let begun = steps(&mut pace, &mut now, 1, 1.5, 5.0).unwrap();
    assert_near(begun.than_usual, 1.0);
    assert_near(begun.than_predicted, 1.5);
    let slow = steps(&mut pace, &mut now, 1, 6.0, 3.0).unwrap();
    assert_near(slow.than_usual, 4.0);
    assert_near(slow.step_s, 0.060);
    assert_near(slow.usual_s, 0.015);
    let mended = steps(&mut pace, &mut now, 1, 1.5, 3.0).unwrap();
    assert_near(mended.than_usual, 1.0);
    assert_eq!(pace.recent(now + Duration::from_secs(60)), None, "what is long past says nothing");
}

#[test]
fn more_rows_are_not_a_slower_stage() {
    let (mut pace, mut now) = (pace(), Instant::now());
    steps(&mut pace, &mut now, 1, 1.0, 5.0);
    let more = steps(&mut pace, &mut now, 32, 1.4, 5.0).unwrap();
    assert_near(more.than_usual, 1.0);
}

#[test]
fn rows_that_come_up_while_a_stage_is_slow_do_not_pass_for_usual() {
    let (mut pace, mut now) = (pace(), Instant::now());
    steps(&mut pace, &mut now, 1, 1.0, 5.0);
    let slow = steps(&mut pace, &mut now, 4, 5.0, 5.0).unwrap();
    assert!(slow.than_usual > 3.0, "{slow:?}");
}

#[test]
fn a_context_that_grows_is_not_a_slower_stage_and_hides_none() {
    let (mut pace, mut now) = (pace(), Instant::now());
    // Attention over 1600 tokens costs as much as all else.
    let mut grow = |from: u32, to: u32, times: f64| {
        let mut most = 0.0_f64;
        for context in from..to {
            let step_s = 0.010 * times * (1.0 + f64::from(context) / 1600.0);
            now += Duration::from_secs_f64(step_s);
            pace.add(StepKind::Decode, 1, context, step_s);
            pace.read(now);
            most = most.max(pace.recent(now).map_or(0.0, |pace| pace.than_usual));
        }
        most
    };
    let grown = grow(1, 3000, 1.0);
    assert!(grown < 1.3, "{grown}");
    let slow = grow(3000, 3400, 3.0);
    assert!(slow > 2.0, "{slow}");
}

#[test]
fn one_hiccup_is_no_pace() {
    let (mut pace, mut now) = (pace(), Instant::now());
    steps(&mut pace, &mut now, 1, 1.0, 5.0);
    pace.add(StepKind::Decode, 1, 0, 30.0);
    let after = steps(&mut pace, &mut now, 1, 1.0, 1.0).unwrap();
    assert!(after.than_usual < 1.2, "{after:?}");
}

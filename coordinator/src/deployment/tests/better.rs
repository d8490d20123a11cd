//! Tests of plans that take over by choice.

use super::*;

/// Every stage counts.
fn by_stages() -> Planner {
    planner_with(|stages| stages as f64)
}

/// Two workers that serve, with all that ran where it was.
fn two() -> Bench {
    serving(2, by_stages(), Moving::Freely)
}

pub(super) fn serving(workers: usize, planner: Planner, moving: Moving) -> Bench {
    let mut bench = Bench::planned(workers, planner, moving);
    for place in 1..=workers {
        bench.attach(&format!("w{place}"), 64);
    }
    bench.bring_up();
    bench.handle(Event::CaughtUp);
    bench.take_sent();
    bench
}

impl Bench {
    /// Lets time pass in which all workers are heard.
    pub(super) fn go_on(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            for session in 1..=self.sessions {
                let event = membership::Event::Heard { session: SessionId(session), telemetry: None };
                self.member_event(event);
            }
            self.pass((until - self.now).min(Duration::from_secs(1)));
        }
    }

    pub(super) fn drain(&mut self, name: &str, draining: bool) {
        self.member_event(membership::Event::Draining { worker: worker(name), draining });
    }

    /// Who is to read weights ahead since the last time, and who may let go of them.
    pub(super) fn told(&mut self) -> (Vec<String>, Vec<String>) {
        let (mut prepare, mut unprepare) = (Vec::new(), Vec::new());
        for (name, message) in self.take_sent() {
            match message {
                ToWorker::Prepare(order) => {
                    assert_eq!(order.epoch, *self.persisted.last().unwrap());
                    prepare.push(name);
                }
                ToWorker::Unprepare { .. } => unprepare.push(name),
                _ => {}
            }
        }
        (prepare, unprepare)
    }

    /// A worker reports on the plan that is being prepared.
    pub(super) fn ahead(&mut self, name: &str, state: StageState) {
        let report = StageReport { deployment: ID, epoch: *self.persisted.last().unwrap(), state };
        self.handle(Event::Stage { worker: worker(name), report });
    }

    pub(super) fn workers(&self) -> Vec<String> {
        self.deployment.stages().iter().map(|stage| stage.name.clone()).collect()
    }
}

pub(super) fn crowded() -> StageState {
    StageState::Crowded { reason: "3 MiB are missing".into() }
}

#[test]
fn a_worker_that_joins_makes_the_plan_better_without_a_failure() {
    let mut bench = two();
    bench.attach("w3", 64);
    bench.go_on(JOIN_PAUSE / 2);
    assert_eq!(bench.persisted, [Epoch(11)], "it did not wait for more workers");
    bench.attach("w4", 64);
    bench.go_on(JOIN_PAUSE / 2);
    assert_eq!(bench.persisted, [Epoch(11), Epoch(12)]);
    assert_eq!(bench.told().0, ["w1", "w2", "w3", "w4"]);
    assert_eq!((bench.deployment.epoch(), bench.deployment.phase()), (Epoch(11), Phase::Serving));
    let note = bench.deployment.note().unwrap().to_owned();
    assert!(note.contains("100% more tokens/s"), "{note}");
    for name in ["w1", "w2", "w3"] {
        bench.ahead(name, StageState::Loading { loaded: Bytes(1), total: Bytes(4), delivery: None });
        bench.ahead(name, StageState::Prepared);
    }
    assert!(bench.serving.is_some() && bench.moves.is_empty(), "moved before all weights are there");
    bench.ahead("w4", StageState::Prepared);
    assert_eq!((bench.moves.len(), bench.deployment.epoch()), (1, Epoch(12)));
    assert_eq!(bench.outlook, Some(Outlook::Coming), "requests wait for it");
    bench.bring_up();
    assert_eq!(bench.workers(), ["w1", "w2", "w3", "w4"]);
    assert!(bench.failures.is_empty() && bench.said.is_empty(), "{:?} {:?}", bench.failures, bench.said);
    bench.handle(Event::CaughtUp);
    bench.go_on(JOIN_PAUSE * 4);
    assert_eq!((bench.moves.len(), bench.deployment.note()), (1, None), "nothing is better than that");
}

#[test]
fn a_plan_is_given_up_only_for_a_tenth_more() {
    for (factor, moves) in [(1.09, 0), (1.11, 1)] {
        let planner = planner_with(move |stages| if stages > 2 { factor } else { 1.0 });
        let mut bench = serving(2, planner, Moving::Freely);
        bench.attach("w3", 64);
        bench.go_on(JOIN_PAUSE * 2);
        let prepared = bench.told().0;
        assert_eq!(prepared.len(), 3 * moves, "{factor}");
    }
}

/// Two workers that serve, and a third with which the plan is better, but which the second has no room for.
fn crowded_two() -> Bench {
    let mut bench = two();
    bench.attach("w3", 64);
    bench.go_on(JOIN_PAUSE);
    assert_eq!(bench.told().0, ["w1", "w2", "w3"]);
    bench.ahead("w1", StageState::Prepared);
    bench.ahead("w2", crowded());
    bench.ahead("w3", StageState::Prepared);
    bench
}

#[test]
fn a_better_plan_without_room_takes_over_once_nobody_asks_for_anything() {
    let mut bench = crowded_two();
    assert!(bench.said[0].contains("stage 1 on w2: 3 MiB are missing"), "{:?}", bench.said);
    assert!(bench.said[0].contains("once no request has come for 5 s"), "{:?}", bench.said);
    assert_eq!(bench.deployment.note(), Some(bench.said[0].as_str()));
    bench.go_on(Duration::from_secs(300));
    assert!(bench.serving.is_some() && bench.failures.is_empty() && bench.moves.is_empty());
    assert_eq!((bench.persisted.len(), bench.said.len()), (2, 1), "it was tried again, or said twice");
    assert_eq!(bench.told().1, [""; 0], "what is prepared stays");
    // A pause that is too short.
    bench.handle(Event::Asked { idle: true });
    bench.go_on(*QUIET_PAUSE.start() - Duration::from_secs(1));
    bench.handle(Event::Asked { idle: false });
    bench.go_on(*QUIET_PAUSE.start());
    assert!(bench.moves.is_empty());
    bench.handle(Event::Asked { idle: true });
    bench.go_on(*QUIET_PAUSE.start());
    assert_eq!((bench.moves.len(), bench.deployment.epoch()), (1, Epoch(12)));
    bench.bring_up();
    assert_eq!(bench.workers(), ["w1", "w2", "w3"]);
    assert!(bench.failures.is_empty() && bench.deployment.note().is_none());
}

#[test]
fn while_a_plan_waits_for_a_quiet_moment_a_better_one_may_come() {
    let mut bench = crowded_two();
    bench.attach("w4", 64);
    bench.go_on(JOIN_PAUSE);
    let (prepare, unprepare) = bench.told();
    assert_eq!(prepare, ["w1", "w2", "w3", "w4"]);
    assert_eq!(unprepare, ["w1", "w2", "w3"], "what was prepared is freed");
    bench.ahead("w2", crowded());
    // Not before the others have said something.
    bench.handle(Event::Asked { idle: true });
    bench.go_on(Duration::from_secs(20));
    assert!(bench.moves.is_empty());
    for name in ["w1", "w3", "w4"] {
        bench.ahead(name, StageState::Prepared);
    }
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.moves.len(), 1, "it has been quiet for long");
}

#[test]
fn a_worker_of_a_plan_that_waits_may_be_lost() {
    let mut bench = crowded_two();
    bench.leave("w3");
    assert_eq!(bench.told().1, ["w1", "w2"]);
    bench.handle(Event::Asked { idle: true });
    bench.go_on(Duration::from_secs(100));
    assert!(bench.moves.is_empty() && bench.failures.is_empty() && bench.serving.is_some());
}

#[test]
fn no_better_plan_is_looked_for_while_answers_catch_up() {
    let mut bench = two();
    bench.leave("w2");
    bench.attach("w3", 64);
    bench.bring_up();
    bench.attach("w4", 64);
    bench.go_on(JOIN_PAUSE * 4);
    assert_eq!(bench.told().0.len(), 0);
    bench.handle(Event::CaughtUp);
    bench.go_on(JOIN_PAUSE);
    assert_eq!(bench.told().0, ["w1", "w3", "w4"]);
}

#[test]
fn a_loss_while_a_plan_is_prepared_is_a_loss_as_ever() {
    let mut bench = two();
    bench.attach("w3", 64);
    bench.go_on(JOIN_PAUSE);
    bench.told();
    bench.ahead("w3", StageState::Prepared);
    bench.leave("w1");
    assert_eq!((bench.failures.len(), bench.serving.clone()), (1, None));
    assert_eq!((bench.workers(), bench.deployment.epoch()), (vec!["w2".into(), "w3".into()], Epoch(13)));
    // What comes late is of a plan that is gone.
    let report = StageReport { deployment: ID, epoch: Epoch(12), state: StageState::Prepared };
    bench.handle(Event::Stage { worker: worker("w2"), report });
    bench.bring_up();
    assert!(bench.moves.is_empty());
}

#[test]
fn a_worker_of_the_next_plan_that_is_lost_ends_that_plan_alone() {
    let mut bench = two();
    bench.attach("w3", 64);
    bench.go_on(JOIN_PAUSE);
    bench.told();
    bench.leave("w3");
    assert_eq!(bench.told().1, ["w1", "w2"]);
    assert!(bench.serving.is_some() && bench.failures.is_empty());
    assert!(bench.said[0].contains("w3 was lost"), "{:?}", bench.said);
}

#[test]
fn a_drained_worker_is_left_and_may_die_then() {
    for moving in [Moving::Freely, Moving::ToDrain] {
        let mut bench = serving(3, planner(), moving);
        let room = bench.deployment.check_drain(&worker("w2"), &bench.members, bench.now);
        assert_eq!(room, Ok(Some(256)));
        bench.drain("w2", true);
        bench.go_on(Duration::from_millis(1));
        assert_eq!(bench.told().0, ["w1", "w3"]);
        assert!(bench.deployment.uses(&worker("w2")) && bench.serving.is_some());
        bench.ahead("w1", StageState::Prepared);
        bench.ahead("w3", StageState::Prepared);
        assert_eq!(bench.moves, ["w2 is drained"]);
        assert!(!bench.deployment.uses(&worker("w2")));
        let retired = bench.take_sent();
        let retired = retired.iter().filter(|(_, message)| matches!(message, ToWorker::Retire { .. }));
        assert_eq!(retired.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["w2"]);
        bench.bring_up();
        bench.handle(Event::CaughtUp);
        // It comes back and dies, and nobody minds.
        bench.detach("w2");
        bench.attach("w2", 64);
        assert!(bench.members.is_draining(&worker("w2")), "the mark survives its reconnection");
        bench.detach("w2");
        assert!(!bench.members.any_suspected());
        bench.go_on(Duration::from_secs(10));
        assert!(bench.serving.is_some() && bench.failures.is_empty(), "{:?}", bench.failures);
        assert_eq!(bench.workers(), ["w1", "w3"]);
    }
}

#[test]
fn a_worker_taken_back_into_use_is_as_one_that_joins() {
    let mut bench = serving(3, by_stages(), Moving::Freely);
    bench.drain("w2", true);
    bench.go_on(Duration::from_millis(1));
    bench.ahead("w1", StageState::Prepared);
    bench.ahead("w3", StageState::Prepared);
    bench.bring_up();
    bench.handle(Event::CaughtUp);
    bench.told();
    bench.go_on(JOIN_PAUSE * 2);
    assert!(bench.told().0.is_empty(), "it was planned with");
    bench.drain("w2", false);
    bench.go_on(JOIN_PAUSE);
    assert_eq!(bench.told().0, ["w1", "w3", "w2"]);
}

#[test]
fn a_drain_that_is_taken_back_in_time_changes_nothing() {
    let mut bench = serving(3, by_stages(), Moving::Freely);
    bench.drain("w2", true);
    bench.go_on(Duration::from_millis(1));
    bench.told();
    bench.drain("w2", false);
    assert_eq!(bench.told().1, ["w1", "w3"]);
    bench.go_on(JOIN_PAUSE * 2);
    assert!(bench.moves.is_empty() && bench.serving.is_some() && bench.deployment.uses(&worker("w2")));
}

#[test]
fn a_drain_without_room_is_refused_with_what_is_missing() {
    let mut bench = serving(2, by_stages(), Moving::Freely);
    let refused = bench.deployment.check_drain(&worker("w1"), &bench.members, bench.now);
    assert!(refused.unwrap_err().contains("36.0 MiB more are needed"));
    bench.attach("w3", 64);
    assert_eq!(
        bench.deployment.check_drain(&worker("w3"), &bench.members, bench.now),
        Ok(None),
        "it is idle"
    );
    assert_eq!(bench.deployment.check_drain(&worker("w1"), &bench.members, bench.now), Ok(Some(256)));
    let mut alone = Bench::new(1);
    alone.attach("w1", 128);
    alone.bring_up();
    let refused = alone.deployment.check_drain(&worker("w1"), &alone.members, alone.now);
    assert!(refused.unwrap_err().contains("no other worker is there"));
}

#[test]
fn a_worker_is_drained_although_weights_do_not_fit_beside_the_stage() {
    let mut bench = serving(3, planner(), Moving::Freely);
    bench.drain("w2", true);
    bench.go_on(Duration::from_millis(1));
    bench.ahead("w1", crowded());
    assert_eq!((bench.moves.len(), bench.serving.clone()), (1, None));
    assert!(bench.said[0].contains("answers wait while it is loaded"), "{:?}", bench.said);
    bench.bring_up();
    assert!(bench.failures.is_empty());
}

#[test]
fn a_drain_whose_weights_cannot_be_read_leaves_the_plan_as_it_is() {
    let mut bench = serving(3, planner(), Moving::Freely);
    bench.drain("w2", true);
    bench.go_on(Duration::from_millis(1));
    bench.ahead("w1", StageState::Failed { reason: "no such file".into() });
    bench.go_on(Duration::from_secs(60));
    assert!(bench.serving.is_some() && bench.moves.is_empty() && bench.failures.is_empty());
    assert_eq!((bench.said.len(), bench.persisted.len()), (1, 2), "{:?}", bench.said);
    bench.attach("w4", 64);
    bench.go_on(JOIN_PAUSE);
    assert_eq!(bench.persisted.len(), 3, "another worker is another chance");
}

#[test]
fn who_does_not_wait_for_weights_moves_at_once() {
    let mut bench = serving(2, planner(), Moving::AtOnce);
    bench.attach("w3", 64);
    bench.drain("w2", true);
    bench.go_on(Duration::from_millis(1));
    assert_eq!((bench.moves.len(), bench.told().0.len()), (1, 0));
    bench.bring_up();
    assert_eq!(bench.workers(), ["w1", "w3"]);
    bench.drain("w3", true);
    bench.go_on(Duration::from_millis(1));
    assert_eq!((bench.deployment.phase(), bench.serving.clone()), (Phase::Waiting, None), "it goes without");
    bench.drain("w3", false);
    bench.bring_up();
    assert!(bench.failures.is_empty());
}

#[test]
fn a_worker_that_attaches_anew_is_told_again_what_to_prepare() {
    let mut bench = two();
    bench.attach("w3", 64);
    bench.go_on(JOIN_PAUSE);
    bench.told();
    bench.ahead("w3", StageState::Prepared);
    bench.detach("w3");
    bench.attach("w3", 64);
    assert_eq!(bench.told().0, ["w3"]);
    bench.ahead("w1", StageState::Prepared);
    bench.ahead("w2", StageState::Prepared);
    assert!(bench.moves.is_empty(), "it may have been started anew");
    bench.ahead("w3", StageState::Prepared);
    assert_eq!(bench.moves.len(), 1);
}

#[test]
fn a_link_that_is_tried_again_makes_for_a_better_plan() {
    let planner = || -> Planner {
        let plain = by_stages();
        Box::new(move |live, min_stages, apart, split| {
            // Whoever is kept apart is left out.
            let mut live = live.clone();
            if !apart.is_empty() {
                live.devices.truncate(2);
            }
            plain(&live, min_stages.min(2), &[], split)
        })
    };
    let mut bench = serving(3, planner(), Moving::Freely);
    let reason = "reset".to_owned();
    bench.handle(Event::LinkLost { worker: worker("w2"), peer: Peer::Worker(worker("w3")), reason });
    let sent = bench.take_sent();
    let nonce = sent.iter().find_map(|(_, message)| match message {
        ToWorker::ProbeLink { nonce, .. } => Some(*nonce),
        _ => None,
    });
    bench.handle(Event::LinkProbed { nonce: nonce.unwrap(), reached: false });
    bench.bring_up();
    bench.handle(Event::CaughtUp);
    assert_eq!(bench.workers(), ["w1", "w2"]);
    bench.told();
    bench.go_on(Duration::from_secs(50));
    assert!(bench.told().0.is_empty());
    bench.go_on(Duration::from_secs(15));
    assert_eq!(bench.told().0, ["w1", "w2", "w3"]);
}

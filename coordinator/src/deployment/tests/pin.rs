//! Tests of plans that are pinned to certain workers.

use super::better::{crowded, serving};
use super::*;

impl Bench {
    fn pin(&mut self, names: &[&str], until: Option<Instant>) {
        let workers = names.iter().map(|name| worker(name)).collect();
        self.handle(Event::Pin { pin: Pin { workers, split: Vec::new() }, by: None, until });
        // An order is looked at at once.
        self.pass(Duration::from_millis(1));
    }

    fn unpin(&mut self) {
        self.handle(Event::Unpin);
        self.pass(Duration::from_millis(1));
    }

    fn pin_ended(&self) -> Option<&str> {
        self.deployment.pin_ended(self.now)
    }

    /// Who holds the plan that serves, and whether it does.
    fn served_by(&self) -> Vec<String> {
        assert!(self.serving.is_some(), "{:?}", self.deployment);
        self.workers()
    }

    /// All workers of the plan that is being prepared have read its weights, and it is brought up.
    fn go_over(&mut self) {
        let prepared = self.told().0;
        assert!(!prepared.is_empty(), "nothing is prepared: {:?}", self.deployment);
        prepared.iter().for_each(|name| self.ahead(name, StageState::Prepared));
        self.bring_up();
        self.handle(Event::CaughtUp);
    }
}

/// Two workers that serve together, each of which could alone.
fn two_large() -> Bench {
    let mut bench = Bench::planned(2, planner(), Moving::Freely);
    bench.attach("w1", 128);
    bench.attach("w2", 128);
    bench.bring_up();
    bench.handle(Event::CaughtUp);
    bench.take_sent();
    bench
}

fn check(bench: &mut Bench, names: &[&str]) -> Result<u32, String> {
    let workers = names.iter().map(|name| worker(name)).collect();
    bench.deployment.check_pin(&Pin { workers, split: Vec::new() }, &bench.members, bench.now)
}

#[test]
fn a_pin_takes_over_beside_what_serves_and_its_end_brings_the_plan_back() {
    for moving in [Moving::Freely, Moving::ToDrain] {
        let mut bench = serving(2, planner(), moving);
        bench.attach("w3", 128);
        bench.pin(&["w3"], None);
        assert_eq!(bench.served_by(), ["w1", "w2"], "what serves goes on");
        let note = bench.deployment.note().unwrap();
        assert!(note.starts_with("the plan is pinned to w3: its weights are being loaded"), "{note}");
        bench.go_over();
        assert_eq!(
            (bench.served_by(), bench.moves.as_slice()),
            (vec!["w3".to_owned()], &["the plan is pinned to w3".to_owned()][..])
        );
        // Workers that come change nothing.
        bench.attach("w4", 64);
        bench.go_on(JOIN_PAUSE * 3);
        assert_eq!(bench.told().0, [""; 0]);
        bench.unpin();
        bench.go_over();
        assert_eq!(bench.served_by(), ["w3", "w1", "w2", "w4"]);
        assert_eq!(bench.moves[1], "the pin has ended");
        assert!(bench.failures.is_empty() && bench.pin_ended().is_none());
    }
}

#[test]
fn a_pin_waits_for_no_quiet_moment() {
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.ahead("w1", crowded());
    assert_eq!((bench.moves.len(), bench.serving.clone()), (1, None));
    assert!(bench.said[0].contains("answers wait while it is loaded"), "{:?}", bench.said);
    bench.bring_up();
    assert_eq!(bench.served_by(), ["w1"]);
}

#[test]
fn a_pin_that_cannot_hold_the_model_is_refused_with_what_is_missing() {
    let mut bench = serving(2, planner(), Moving::Freely);
    assert_eq!(check(&mut bench, &["w1"]), Err("36.0 MiB are needed".replace("are", "more are")));
    assert_eq!(check(&mut bench, &["w2", "w1"]), Ok(256));
    assert_eq!(check(&mut bench, &["w7"]), Err("w7 has left".into()));
    bench.drain("w2", true);
    assert_eq!(check(&mut bench, &["w1", "w2"]), Err("w2 is drained".into()));
}

#[test]
fn another_pin_replaces_one_that_is_being_prepared() {
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    assert_eq!(bench.told().0, ["w1"]);
    bench.pin(&["w2"], None);
    let (prepare, unprepare) = bench.told();
    assert_eq!((prepare, unprepare), (vec!["w2".to_owned()], vec!["w1".to_owned()]));
    bench.ahead("w2", StageState::Prepared);
    bench.bring_up();
    assert_eq!((bench.served_by(), bench.moves.len()), (vec!["w2".to_owned()], 1));
}

#[test]
fn a_pin_that_is_taken_back_at_once_changes_nothing() {
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.told();
    bench.unpin();
    assert_eq!(bench.told().1, ["w1"]);
    bench.go_on(JOIN_PAUSE * 3);
    assert!(bench.moves.is_empty() && bench.deployment.note().is_none());
    assert_eq!(bench.served_by(), ["w1", "w2"]);
    // What serves already as it is pinned stays where it is.
    bench.pin(&["w2", "w1"], None);
    bench.go_on(JOIN_PAUSE * 3);
    assert!(bench.told().0.is_empty() && bench.moves.is_empty());
    assert_eq!(bench.deployment.pinned().unwrap().names, ["w2", "w1"]);
}

#[test]
fn a_pinned_worker_that_is_lost_ends_the_pin_and_service_goes_on_without_it() {
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.go_over();
    bench.leave("w1");
    bench.bring_up();
    assert_eq!(bench.served_by(), ["w2"]);
    assert!(bench.deployment.pin().is_none());
    let why = bench.pin_ended().unwrap();
    assert_eq!(why, "the pin to w1 is given up: w1 is not attached");
    assert_eq!(bench.said, [why]);
    // It comes back as any worker does.
    bench.attach("w1", 128);
    bench.pin(&["w2"], None);
    assert_eq!(bench.pin_ended(), None, "another pin holds");
}

#[test]
fn a_worker_that_is_lost_while_the_pin_is_prepared_ends_it_too() {
    let mut bench = two_large();
    bench.attach("w3", 128);
    bench.pin(&["w3"], None);
    bench.told();
    bench.leave("w3");
    bench.go_on(JOIN_PAUSE * 3);
    assert_eq!(bench.served_by(), ["w1", "w2"]);
    assert!(bench.pin_ended().unwrap().contains("w3 was lost"), "{:?}", bench.said);
    assert!(bench.failures.is_empty() && bench.moves.is_empty());
}

#[test]
fn a_pinned_worker_that_is_drained_ends_the_pin() {
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.go_over();
    assert_eq!(bench.deployment.check_drain(&worker("w1"), &bench.members, bench.now), Ok(Some(256)));
    bench.drain("w1", true);
    // The pin is given up, and then another plan is looked for.
    bench.go_on(Duration::from_millis(1));
    bench.go_on(Duration::from_millis(1));
    bench.go_over();
    assert_eq!(bench.served_by(), ["w2"]);
    assert!(bench.pin_ended().unwrap().ends_with("w1 is drained"), "{:?}", bench.said);
}

#[test]
fn a_pin_whose_weights_cannot_be_read_is_given_up() {
    // While they are read ahead.
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.ahead("w1", StageState::Failed { reason: "no such file".into() });
    bench.go_on(JOIN_PAUSE * 3);
    assert_eq!(bench.served_by(), ["w1", "w2"]);
    assert!(bench.pin_ended().unwrap().contains("no such file"), "{:?}", bench.said);
    // While they are loaded.
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.ahead("w1", crowded());
    bench.report("w1", StageState::Failed { reason: "no such file".into() });
    assert!(bench.pin_ended().unwrap().contains("no such file"), "{:?}", bench.said);
    bench.bring_up();
    assert_eq!(bench.served_by(), ["w2"], "w1 is left out for a while");
}

#[test]
fn a_pin_that_is_not_renewed_ends_by_itself() {
    let mut bench = two_large();
    let ttl = Duration::from_secs(15);
    bench.pin(&["w1"], Some(bench.now + ttl));
    bench.go_over();
    bench.go_on(ttl / 2);
    bench.pin(&["w1"], Some(bench.now + ttl));
    bench.go_on(ttl * 2 / 3);
    assert_eq!((bench.served_by(), bench.moves.len()), (vec!["w1".to_owned()], 1), "it was renewed");
    bench.go_on(ttl);
    assert!(bench.pin_ended().unwrap().contains("not renewed in time"), "{:?}", bench.said);
    bench.go_over();
    assert_eq!(bench.served_by(), ["w1", "w2"]);
    // Also while nothing serves.
    bench.pin(&["w2"], Some(bench.now + ttl));
    bench.told();
    bench.detach("w1");
    bench.detach("w2");
    bench.pass(ttl * 2);
    assert!(bench.deployment.pin().is_none());
}

#[test]
fn a_pin_says_since_when_it_holds_and_who_wanted_it_last() {
    let mut bench = two_large();
    let pin = Pin { workers: vec![worker("w1")], split: Vec::new() };
    let by = |name: &str| Event::Pin { pin: pin.clone(), by: Some(name.to_owned()), until: None };
    let began = bench.now;
    bench.handle(by("anna"));
    bench.pass(Duration::from_secs(9));
    bench.handle(by("ben"));
    let pinned = bench.deployment.pinned().unwrap();
    assert_eq!((pinned.since, pinned.by.as_deref()), (began, Some("ben")));
    bench.handle(Event::Unpin);
    assert!(bench.deployment.pinned().is_none());
}

#[test]
fn why_a_pin_ended_is_told_for_a_minute() {
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.go_over();
    bench.leave("w1");
    let ended = bench.now;
    bench.bring_up();
    assert!(bench.pin_ended().unwrap().contains("w1 is not attached"), "{:?}", bench.said);
    let told = |after: Duration| bench.deployment.pin_ended(ended + after).is_some();
    assert_eq!([END_TOLD - Duration::from_millis(1), END_TOLD].map(told), [true, false]);
}

#[test]
fn a_pin_while_a_plan_is_brought_up_is_followed_at_once() {
    let mut bench = Bench::planned(2, planner(), Moving::Freely);
    bench.attach("w1", 128);
    bench.pin(&["w1"], None);
    bench.bring_up();
    assert_eq!(bench.served_by(), ["w1"], "no other worker is waited for");
    bench.handle(Event::CaughtUp);

    let mut bench = Bench::planned(2, planner(), Moving::Freely);
    bench.attach("w1", 128);
    bench.attach("w2", 128);
    bench.report("w1", StageState::Loaded(StageMemory::default()));
    bench.pin(&["w2"], None);
    bench.bring_up();
    assert_eq!(bench.served_by(), ["w2"]);
    bench.handle(Event::CaughtUp);
    bench.pin(&["w1"], None);
    bench.ahead("w1", crowded());
    assert_eq!(bench.deployment.phase(), Phase::Loading);
    // Taken back while it is loaded.
    bench.unpin();
    bench.bring_up();
    assert_eq!(bench.served_by(), ["w1", "w2"]);
    assert!(bench.failures.is_empty());
}

#[test]
fn an_order_waits_until_answers_have_caught_up() {
    let mut bench = two_large();
    bench.pin(&["w1"], None);
    bench.told().0.iter().for_each(|name| bench.ahead(name, StageState::Prepared));
    bench.bring_up();
    bench.unpin();
    bench.go_on(JOIN_PAUSE * 3);
    assert_eq!((bench.told().0.len(), bench.served_by()), (0, vec!["w1".to_owned()]));
    bench.handle(Event::CaughtUp);
    bench.pass(Duration::from_millis(1));
    bench.go_over();
    assert_eq!(bench.served_by(), ["w1", "w2"]);
}

#[test]
fn a_shorter_context_does_not_come_back_while_answers_run() {
    // The more stages, the less room.
    let plain = planner();
    let planner: Planner = Box::new(move |live, least, apart, split| {
        let plan = plain(live, least, apart, split)?;
        Ok(Plan { context: 256 / live.devices.len() as u32, ..plan })
    });
    let mut bench = Bench::planned(2, planner, Moving::Freely);
    bench.attach("w1", 128);
    bench.attach("w2", 128);
    bench.bring_up();
    bench.handle(Event::CaughtUp);
    bench.take_sent();
    bench.pin(&["w1"], None);
    bench.go_over();
    bench.handle(Event::Asked { idle: false });
    bench.unpin();
    bench.go_on(JOIN_PAUSE * 5);
    assert_eq!(bench.served_by(), ["w1"]);
    assert!(bench.deployment.note().unwrap().contains("once nothing runs"), "{:?}", bench.deployment.note());
    bench.handle(Event::Asked { idle: true });
    bench.go_on(JOIN_PAUSE);
    bench.go_over();
    assert_eq!(bench.served_by(), ["w1", "w2"]);
}

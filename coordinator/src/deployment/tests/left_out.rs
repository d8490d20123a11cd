//! Workers that could not load what a plan gave them.

use super::*;

#[test]
fn a_worker_that_could_not_load_is_left_out_while_the_others_suffice() {
    let planned = |bench: &Bench| -> Vec<String> {
        bench.deployment.stages().iter().map(|stage| stage.name.clone()).collect()
    };
    let failed = || StageState::Failed { reason: "no such file".into() };
    let mut bench = three();
    bench.report("w2", failed());
    assert_eq!(planned(&bench), ["w1", "w3"]);
    bench.bring_up();
    // Another plan within a while still does without it, unless there is no other way.
    bench.handle(Event::Broken { reason: "reset".into() });
    bench.pass(FIRST_BACK_OFF);
    assert_eq!(planned(&bench), ["w1", "w3"]);
    bench.leave("w3");
    for session in 1..=2 {
        let event = membership::Event::Heard { session: SessionId(session), telemetry: None };
        bench.member_event(event);
    }
    bench.pass(FIRST_BACK_OFF * 2);
    assert_eq!(planned(&bench), ["w1", "w2"]);
    bench.bring_up();

    // Started anew, it is taken at once; or after a while, since a file may have been put right.
    let mut bench = three();
    bench.report("w2", failed());
    bench.leave("w2");
    bench.attach("w2", 64);
    bench.handle(Event::Broken { reason: "reset".into() });
    bench.pass(FIRST_BACK_OFF);
    assert!(planned(&bench).contains(&"w2".to_owned()), "{:?}", planned(&bench));

    let mut bench = three();
    bench.report("w2", failed());
    bench.bring_up();
    for _ in 0..LEFT_OUT.as_secs() {
        for session in 1..=3 {
            let event = membership::Event::Heard { session: SessionId(session), telemetry: None };
            bench.member_event(event);
        }
        bench.pass(Duration::from_secs(1));
    }
    bench.handle(Event::Broken { reason: "reset".into() });
    bench.pass(FIRST_BACK_OFF);
    assert!(planned(&bench).contains(&"w2".to_owned()), "{:?}", planned(&bench));
}

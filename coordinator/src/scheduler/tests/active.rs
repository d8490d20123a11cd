//! What each request is said to be doing.

use super::*;

fn doing(bench: &Bench) -> Vec<(u64, Doing, usize, usize)> {
    let all = bench.scheduler.active(64);
    all.iter().map(|one| (one.sequence.0, one.doing, one.prompt_done, one.drawn)).collect()
}

#[test]
fn requests_are_listed_with_what_they_are_doing_oldest_first() {
    let mut bench = Bench::new(pipeline(1, 64), 4);
    assert_eq!(doing(&bench), []);
    bench.submit(1, request(20, 8)).unwrap();
    bench.submit(2, request(40, 8)).unwrap();
    assert_eq!(doing(&bench), [(1, Doing::Prefill, 0, 0), (2, Doing::Waiting, 0, 0)]);
    while bench.run(StepKind::Prefill) {}
    bench.run(StepKind::Decode);
    assert_eq!(doing(&bench), [(1, Doing::Decode, 20, 2), (2, Doing::Waiting, 0, 0)]);
    assert_eq!(bench.scheduler.active(1).len(), 1);

    bench.scheduler.suspend("w2 was lost");
    bench.scheduler.look_out(Outlook::Coming, bench.now);
    assert_eq!(doing(&bench), [(1, Doing::Recovering, 0, 2), (2, Doing::Waiting, 0, 0)]);
}

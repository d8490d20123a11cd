//! Tests of what becomes of generations whose pipeline is lost.

use std::collections::BTreeSet;

use super::*;

const PARK: Duration = Duration::from_secs(120);

/// The pipeline of another plan.
fn plan(epoch: u64, stages: u32, cache_tokens: u32) -> Pipeline {
    let fence = Fence { incarnation: Incarnation(1), epoch: Epoch(epoch) };
    Pipeline { fence, ..pipeline(stages, cache_tokens) }
}

fn shortage() -> Outlook {
    Outlook::Short { reason: "1.5 GiB more are needed".into() }
}

impl Bench {
    /// The pipeline is gone with all that was under way; the steps are handed on.
    fn lose(&mut self) -> Vec<StepFrame> {
        self.scheduler.suspend("w2 was lost");
        self.scheduler.look_out(Outlook::Coming, self.now);
        self.poll();
        self.broken = None;
        self.decode.drain(..).chain(self.prefill.drain(..)).collect()
    }

    /// The plan is given up for another, by choice.
    fn move_on(&mut self) {
        self.scheduler.move_on("a plan is better");
        self.scheduler.look_out(Outlook::Coming, self.now);
        self.poll();
        self.decode.clear();
        self.prefill.clear();
    }

    /// Another plan serves.
    fn resume(&mut self, pipeline: Pipeline) {
        let stage = SimulatedStage::new(pipeline.clone());
        self.stage = std::mem::replace(&mut self.stage, stage).anew(pipeline.clone());
        self.told.clear();
        self.scheduler.start(pipeline, self.now);
        self.poll();
    }

    /// No plan can be made, for so long.
    fn park_for(&mut self, time: Duration) {
        self.scheduler.look_out(shortage(), self.now);
        self.now += time;
        self.scheduler.handle_timeout(self.now);
        self.poll();
    }

    fn run_prefill(&mut self, chunks: usize) {
        for _ in 0..chunks {
            assert!(self.run(StepKind::Prefill));
        }
    }

    fn assert_whole(&self, id: u64, prompt: u32, tokens: u32) {
        let expected: Vec<u32> =
            (prompt..prompt + tokens).map(|position| drawn(SequenceId(id), position)).collect();
        assert_eq!(self.tokens(id), expected);
        assert_eq!(self.events(id).last(), Some(&GenerationEvent::Done(FinishReason::Length)));
    }
}

#[test]
fn what_ran_goes_on_with_the_next_pipeline_where_it_was() {
    for tokens in [0, 1, 17, 60] {
        let mut bench = Bench::new(pipeline(3, 512), 4);
        for id in 1..=3 {
            bench.submit(id, request(20, 100)).unwrap();
        }
        while bench.tokens(3).len() < tokens {
            assert!(bench.run(StepKind::Decode) || bench.run(StepKind::Prefill));
        }
        let late = bench.lose();
        let counts = bench.scheduler.counts();
        assert_eq!((counts.running, counts.waiting), (0, 3), "nothing has failed");
        assert_eq!((counts.cache_tokens_reserved, counts.cache_tokens_kept), (0, 0));
        bench.resume(plan(2, 2, 512));
        // What the lost pipeline still had to say comes too late.
        let mut old = SimulatedStage::new(pipeline(3, 512));
        for step in late.iter().filter(|step| step.segments.iter().all(|segment| segment.begin.is_some())) {
            bench.scheduler.handle_result(old.run(step).unwrap(), bench.now);
        }
        bench.run_all();
        for id in 1..=3 {
            bench.assert_whole(id, 20, 100);
        }
        bench.assert_idle();
        let counts = bench.scheduler.counts();
        assert_eq!((counts.finished, counts.failed, counts.recovered), (3, 0, 3), "{counts:?}");
        assert_eq!((counts.prompt_tokens, counts.replayed), (60, 0), "no prompt counts twice");
        assert_eq!(bench.caught_up, 2, "once for each pipeline");
    }
}

#[test]
fn a_change_of_plan_by_choice_counts_as_no_loss() {
    let mut bench = Bench::new(pipeline(3, 512), 4);
    for id in 1..=3 {
        bench.submit(id, request(20, 100)).unwrap();
    }
    while bench.tokens(3).len() < 17 {
        assert!(bench.run(StepKind::Decode) || bench.run(StepKind::Prefill));
    }
    assert_eq!(bench.scheduler.longest(), 120);
    // More often in a row than a plan may be lost.
    for epoch in 2..8 {
        bench.run(StepKind::Prefill);
        bench.move_on();
        assert!(bench.scheduler.is_recovering(), "requests are taken meanwhile");
        bench.resume(plan(epoch, 2, 512));
    }
    bench.run_all();
    for id in 1..=3 {
        bench.assert_whole(id, 20, 100);
    }
    bench.assert_idle();
    let counts = bench.scheduler.counts();
    assert_eq!((counts.finished, counts.failed, counts.recovered), (3, 0, 0), "{counts:?}");
    assert!(counts.moved >= 3, "{counts:?}");
    assert_eq!((bench.caught_up > 0, bench.scheduler.longest()), (true, 0));
}

#[test]
fn scores_that_were_told_are_not_told_again() {
    // Lost after each chunk of the prompt, and after its end.
    for chunks in 0..=6 {
        let mut bench = Bench::new(pipeline(2, 512), 4);
        let wanted = GenerationRequest { score_prompt: true, ..request(45, 5) };
        let prompt = wanted.prompt.clone();
        bench.submit(1, wanted).unwrap();
        bench.run_prefill(chunks.min(bench.prefill.len()));
        bench.lose();
        let before = bench.scores(1).len();
        bench.resume(plan(2, 1, 512));
        bench.run_all();
        assert_eq!(bench.scores(1), prompt[1..], "lost after {chunks} chunks with {before} scores");
        bench.assert_whole(1, 45, 5);
        assert_eq!(bench.scheduler.counts().prompt_tokens, 45);
    }
}

#[test]
fn what_others_computed_is_told_once_and_never_after_the_cache_is_gone() {
    let mut bench = Bench::new(pipeline(1, 1024), 4);
    for id in 1..=2 {
        bench.submit(id, request(100, 20)).unwrap();
        bench.run_prefill(1);
    }
    while !bench.events(2).iter().any(|event| matches!(event, GenerationEvent::Reused(_))) {
        assert!(bench.run(StepKind::Prefill) || bench.run(StepKind::Decode));
    }
    for epoch in 2..4 {
        bench.lose();
        bench.resume(plan(epoch, 1, 1024));
        bench.run_prefill(3);
    }
    bench.run_all();
    for id in 1..=2 {
        let reused = bench.events(id).iter().filter(|event| matches!(event, GenerationEvent::Reused(_)));
        assert_eq!(reused.count(), id as usize - 1);
        bench.assert_whole(id, 100, 20);
    }
    bench.assert_idle();
}

#[test]
fn ended_ones_do_not_come_back() {
    let mut bench = Bench::new(pipeline(2, 512), 4);
    bench.submit(1, request(140, 10)).unwrap();
    bench.submit(2, request(4, 2)).unwrap();
    bench.cancel(1);
    while bench.tokens(2).len() < 2 {
        assert!(bench.run(StepKind::Decode) || bench.run(StepKind::Prefill));
    }
    bench.lose();
    assert_eq!(bench.scheduler.counts().waiting, 0);
    bench.resume(plan(2, 1, 512));
    bench.run_all();
    assert_eq!(bench.scheduler.counts().recovered, 0);
    bench.assert_idle();
}

#[test]
fn requests_of_a_short_recovery_wait_behind_those_that_ran() {
    let mut bench = Bench::new(pipeline(1, 256), 2);
    bench.submit(1, request(100, 28)).unwrap();
    bench.run_prefill(2);
    bench.lose();
    assert!(bench.scheduler.is_recovering());
    bench.submit(2, request(20, 20)).unwrap();
    let refused = bench.submit(3, request(4, 4)).unwrap_err();
    assert!(matches!(refused, GenerationError::Overloaded { waiting: 2, .. }), "{refused:?}");
    let refused = bench.submit(4, request(200, 100)).unwrap_err();
    assert!(matches!(refused, GenerationError::ContextExceeded { .. }), "{refused:?}");
    bench.resume(plan(2, 1, 128));
    let counts = bench.scheduler.counts();
    assert_eq!((counts.running, counts.waiting), (1, 1), "there is room for the older one");
    bench.run_all();
    bench.assert_whole(1, 100, 28);
    bench.assert_whole(2, 20, 20);
    assert_eq!(bench.scheduler.counts().recovered, 1, "one had not begun");
}

#[test]
fn what_runs_is_parked_for_a_while_and_then_told_what_is_missing() {
    let mut bench = Bench::new(pipeline(2, 512), 4);
    bench.scheduler = bench.scheduler.with_park(PARK);
    bench.submit(1, request(20, 64)).unwrap();
    bench.run_prefill(2);
    bench.lose();
    bench.submit(2, request(20, 4)).unwrap();
    bench.park_for(PARK - Duration::from_secs(1));
    assert_eq!(
        bench.submit(3, request(4, 4)),
        Err(GenerationError::NotReady { reason: "1.5 GiB more are needed".into() })
    );
    // A plan that comes to nothing in between gives no more time.
    bench.scheduler.look_out(Outlook::Coming, bench.now);
    bench.now += Duration::from_secs(30);
    bench.scheduler.handle_timeout(bench.now);
    bench.poll();
    assert_eq!(bench.scheduler.counts().waiting, 2, "it might have worked");
    bench.park_for(Duration::ZERO);
    let ends: Vec<GenerationEvent> = (1..=2).map(|id| bench.events(id).last().unwrap().clone()).collect();
    let [
        GenerationEvent::Failed(GenerationError::Interrupted { reason }),
        GenerationEvent::Failed(GenerationError::NotReady { .. }),
    ] = &ends[..]
    else {
        panic!("{ends:?}");
    };
    assert_eq!(reason, "1.5 GiB more are needed; parked for 120 s, and no plan could be made");
    assert_eq!(bench.scheduler.next_timeout(), None);
    bench.resume(plan(2, 2, 512));
    bench.assert_idle();
}

#[test]
fn a_worker_that_comes_back_in_time_brings_service_back() {
    let mut bench = Bench::new(pipeline(2, 512), 4);
    bench.scheduler = bench.scheduler.with_park(PARK);
    bench.submit(1, request(20, 64)).unwrap();
    bench.run_prefill(2);
    for epoch in 2..5 {
        bench.lose();
        bench.park_for(PARK - Duration::from_secs(1));
        bench.resume(plan(epoch, 2, 512));
        while bench.tokens(1).len() < epoch as usize * 10 {
            assert!(bench.run(StepKind::Prefill) || bench.run(StepKind::Decode));
        }
    }
    bench.run_all();
    bench.assert_whole(1, 20, 64);
}

#[test]
fn what_no_longer_fits_keeps_nobody_waiting_and_ends_after_its_time() {
    let mut bench = Bench::new(pipeline(1, 512), 4);
    bench.scheduler = bench.scheduler.with_park(PARK);
    bench.submit(1, request(20, 200)).unwrap();
    bench.submit(2, request(20, 40)).unwrap();
    bench.run_prefill(3);
    bench.lose();
    bench.resume(plan(2, 1, 128));
    bench.run_all();
    bench.assert_whole(2, 20, 40);
    assert_eq!(bench.scheduler.counts().waiting, 1);
    let told = bench.tokens(1).len();
    // Room for it comes in time, and goes again: its time begins anew only where it was served meanwhile.
    bench.now += PARK / 2;
    bench.lose();
    bench.resume(plan(3, 1, 128));
    bench.now += PARK / 2 - Duration::from_secs(1);
    bench.scheduler.handle_timeout(bench.now);
    bench.poll();
    assert_eq!(bench.scheduler.counts().waiting, 1);
    bench.now += Duration::from_secs(1);
    bench.scheduler.handle_timeout(bench.now);
    bench.poll();
    let Some(GenerationEvent::Failed(GenerationError::Interrupted { reason })) = bench.events(1).last()
    else {
        panic!("{:?}", bench.events(1));
    };
    assert!(reason.contains("128 tokens") && reason.contains("220") && reason.contains("120 s"), "{reason}");
    assert_eq!(bench.tokens(1).len(), told);
    bench.assert_idle();
}

#[test]
fn a_request_that_every_pipeline_is_lost_by_ends() {
    let mut bench = Bench::new(pipeline(1, 512), 4);
    bench.submit(1, request(20, 64)).unwrap();
    let mut lost = 0;
    while bench.scheduler.counts().failed == 0 {
        assert!(lost < 10, "it goes on for ever");
        bench.lose();
        lost += 1;
        bench.resume(plan(1 + lost, 1, 512));
    }
    assert_eq!(lost, 3);
    assert!(matches!(
        bench.events(1).last(),
        Some(GenerationEvent::Failed(GenerationError::Interrupted { reason })) if reason.contains("w2 was lost")
    ));
    bench.assert_idle();
}

#[test]
fn what_was_computed_by_pipelines_that_are_not_exact_is_counted_apart() {
    for inexact in [None, Some(0), Some(1)] {
        let of = |place: usize, pipeline: Pipeline| Pipeline { exact: inexact != Some(place), ..pipeline };
        let mut bench = Bench::new(of(0, pipeline(1, 512)), 4);
        bench.submit(1, request(20, 30)).unwrap();
        bench.run_prefill(2);
        bench.lose();
        bench.resume(of(1, plan(2, 1, 512)));
        bench.run_all();
        let counts = bench.scheduler.counts();
        assert_eq!((counts.recovered, counts.recovered_inexact), (1, u64::from(inexact.is_some())));
    }
}

/// Pipelines are lost and replaced at any time, with drafts and steps sent ahead, by larger and smaller ones: every
/// request ends exactly once, with the tokens and scores that it would have had.
#[test]
fn nothing_is_lost_or_told_twice_whenever_pipelines_are_lost() {
    let (mut recovered, mut parked) = (0, 0);
    for seed in 0..150 {
        let mut random = Random::new(1000 + seed);
        let speculation = if seed % 3 == 0 { Speculation::Lookup } else { Speculation::Off };
        let mut bench = Bench::with(plan(1, 2, 512), 6, speculation);
        if seed % 2 == 1 {
            bench = bench.with_short_way();
        }
        bench.scheduler = bench.scheduler.with_park(PARK);
        let mut wanted = BTreeMap::new();
        let mut cancelled = BTreeSet::new();
        let (mut next, mut epoch) = (1, 1);
        let mut serving = true;
        for _ in 0..1500 {
            bench.now += Duration::from_millis(random.below(20));
            match random.below(40) {
                0..=3 => {
                    let prompt = 1 + random.below(100) as u32;
                    let mut asked = request(prompt, 1 + random.below(100) as u32);
                    asked.score_prompt = random.below(2) == 0;
                    asked.sampling.end_ids = if random.below(2) == 0 { vec![END] } else { Vec::new() };
                    if bench.submit(next, asked.clone()).is_ok() {
                        wanted.insert(next, asked);
                    }
                    next += 1;
                }
                4 if next > 1 => {
                    let id = 1 + random.below(next - 1);
                    if bench.events(id).iter().all(|event| !is_end(event)) && wanted.contains_key(&id) {
                        cancelled.insert(id);
                    }
                    bench.cancel(id);
                }
                5 if serving => {
                    let late = bench.lose();
                    let mut fenced = bench.scheduler.counts().results_fenced;
                    for step in late.iter().take(3) {
                        let (fence, deployment, kind) = (step.fence, step.deployment, step.kind);
                        let (step, outputs, timings) = (step.step, Vec::new(), Vec::new());
                        let result = StepResult { fence, deployment, step, kind, outputs, timings };
                        bench.scheduler.handle_result(result, bench.now);
                        fenced += 1;
                    }
                    assert_eq!(bench.scheduler.counts().results_fenced, fenced, "seed {seed}");
                    serving = false;
                }
                6 if !serving => {
                    bench.park_for(Duration::from_secs(random.below(70)));
                }
                7..=12 if !serving => {
                    epoch += 1;
                    let cache_tokens = 32 * (5 + random.below(12) as u32);
                    bench.resume(plan(epoch, 1 + random.below(4) as u32, cache_tokens));
                    serving = true;
                }
                13..=26 => {
                    bench.run(StepKind::Decode);
                }
                _ => {
                    bench.run(StepKind::Prefill);
                }
            }
            bench.scheduler.handle_timeout(bench.now);
            bench.poll();
            assert_eq!(bench.broken, None, "seed {seed}");
        }
        epoch += 1;
        bench.lose();
        bench.resume(plan(epoch, 2, 512));
        bench.run_all();
        bench.assert_idle();
        let counts = bench.scheduler.counts();
        assert_eq!((counts.running, counts.waiting), (0, 0), "seed {seed}");
        recovered += counts.recovered;
        parked += counts.failed;
        for (id, asked) in &wanted {
            check_ending(&bench, *id, asked, cancelled.contains(id), seed);
        }
    }
    assert!(recovered > 500 && parked > 10, "{recovered} recovered, {parked} parked for too long");
}

//! Tests of drafts: answers are those without them, steps are fewer, and nobody gives way for one.

use super::*;
use crate::scheduler::ahead::MOST_AHEAD;

fn bench(stages: u32, cache_tokens: u32) -> Bench {
    // Rows cost little, so that drafts pay.
    bench_of(stages, cache_tokens, 0.000_1)
}

/// A pipeline whose stages take 10 ms for a token, and `row_s` for each one more.
fn bench_of(stages: u32, cache_tokens: u32, row_s: f64) -> Bench {
    let mut pipeline = pipeline(stages, cache_tokens);
    for stage in &mut pipeline.stages {
        stage.prefill_s_per_row = row_s;
    }
    Bench::with(pipeline, 6, Speculation::Lookup)
}

/// The answer of `id` to a prompt of `prompt` tokens.
fn answer(id: u64, prompt: u32, tokens: u32) -> Vec<u32> {
    (prompt..prompt + tokens).map(|position| drawn(SequenceId(id), position)).collect()
}

/// How the tokens of a sequence came about: drafts taken, and drafts computed in vain.
fn origins(bench: &Bench, id: u64) -> (u64, u64) {
    let origin = |event: &GenerationEvent| match event {
        GenerationEvent::Token(drawn) => match drawn.origin {
            Origin::Draft => Some((1, 0)),
            Origin::Drawn { rejected } => Some((0, u64::from(rejected))),
        },
        _ => None,
    };
    let each = bench.events(id).iter().filter_map(origin);
    each.fold((0, 0), |sum, origin| (sum.0 + origin.0, sum.1 + origin.1))
}

#[test]
fn what_repeats_comes_in_fewer_steps_and_is_the_same() {
    let mut bench = bench(2, 512);
    bench.submit(1, request(10, 200)).unwrap();
    let mut steps = 0;
    while bench.run(StepKind::Decode) || bench.run(StepKind::Prefill) {
        steps += 1;
    }
    assert_eq!(bench.tokens(1), answer(1, 10, 200));
    assert!(steps < 90, "{steps} steps");
    let (accepted, rejected) = origins(&bench, 1);
    let counts = bench.scheduler.counts();
    assert_eq!((accepted, accepted + rejected), (counts.draft_tokens_accepted, counts.draft_tokens));
    assert!(accepted > 110, "{accepted} of {}", counts.draft_tokens);
    assert_eq!(counts.generated_tokens, 200);
    bench.assert_idle();
}

#[test]
fn a_lone_sequence_runs_ahead_of_itself_and_goes_on_where_its_guesses_failed() {
    let mut bench = bench_of(4, 512, 0.006);
    bench.submit(1, request(10, 220)).unwrap();
    while bench.run(StepKind::Prefill) {}
    let (mut most, mut ahead, mut in_vain) = (0, 0, 0);
    loop {
        most = most.max(bench.decode.len());
        let segments = bench.decode.iter().flat_map(|step| &step.segments);
        let under_way: usize = segments.map(|segment| segment.drafts as usize).sum();
        assert!(under_way <= 2 * MOST_AHEAD, "{under_way} drafts under way");
        let Some(step) = bench.decode.front() else { break };
        let runs_ahead = step.segments.iter().any(|segment| segment.drafts as usize == segment.tokens.len());
        let before = bench.tokens(1).len();
        bench.run(StepKind::Decode);
        ahead += usize::from(runs_ahead);
        in_vain += usize::from(runs_ahead && bench.tokens(1).len() == before);
    }
    assert_eq!(bench.tokens(1), answer(1, 10, 220));
    assert!(most >= 4 && ahead > 20 && in_vain > 5, "{most} under way, {ahead} ahead, {in_vain} in vain");
    let (accepted, rejected) = origins(&bench, 1);
    let counts = bench.scheduler.counts();
    assert_eq!((accepted, accepted + rejected), (counts.draft_tokens_accepted, counts.draft_tokens));
    bench.assert_idle();
}

#[test]
fn tokens_of_what_ran_ahead_in_vain_break_the_pipeline() {
    let mut bench = bench_of(4, 512, 0.006);
    bench.submit(1, request(10, 220)).unwrap();
    loop {
        let step = bench.decode.pop_front().or_else(|| bench.prefill.pop_front()).unwrap();
        let mut result = bench.stage.run(&step).unwrap();
        let drafts_alone =
            |segment: &brigade_proto::step::Segment| segment.drafts as usize == segment.tokens.len();
        if step.segments.iter().any(drafts_alone) && result.outputs[0].sampled.is_empty() {
            let token = brigade_proto::step::TokenScore { token: 1, logprob: 0.0, top: Vec::new() };
            result.outputs[0].sampled.push(token);
            bench.scheduler.handle_result(result, bench.now);
            bench.poll();
            break;
        }
        bench.scheduler.handle_result(result, bench.now);
        bench.poll();
    }
    let reason = bench.broken.expect("what cannot be was taken in");
    assert!(reason.contains("behind drafts that were wrong"), "{reason}");
}

#[test]
fn what_does_not_repeat_has_few_drafts() {
    let mut bench = bench(2, 512);
    bench.submit(2, request(10, 240)).unwrap();
    bench.run_all();
    assert_eq!(bench.tokens(2), answer(2, 10, 240));
    let counts = bench.scheduler.counts();
    assert!(
        counts.draft_tokens < 60,
        "{} drafts, {} taken",
        counts.draft_tokens,
        counts.draft_tokens_accepted
    );
}

#[test]
fn dear_rows_and_the_flag_keep_drafts_away() {
    for (row_s, speculation) in [(0.000_1, Speculation::Off), (0.010, Speculation::Lookup)] {
        // On a single stage, where nothing is idle meanwhile.
        let mut pipeline = pipeline(1, 512);
        pipeline.stages.iter_mut().for_each(|stage| stage.prefill_s_per_row = row_s);
        let mut bench = Bench::with(pipeline, 4, speculation);
        bench.submit(1, request(10, 200)).unwrap();
        bench.run_all();
        assert_eq!(bench.tokens(1), answer(1, 10, 200));
        // Now and then a step finds out whether rows are still dear.
        let most = if speculation == Speculation::Off { 0 } else { 12 };
        assert!(bench.scheduler.counts().draft_tokens <= most, "{}", bench.scheduler.counts().draft_tokens);
    }
}

#[test]
fn limits_and_end_tokens_within_drafts_are_where_they_were() {
    for max_tokens in 1..60 {
        for end_ids in [vec![], vec![drawn(SequenceId(1), 37)]] {
            let mut bench = bench(1, 256);
            let mut asked = request(10, max_tokens);
            asked.sampling.end_ids = end_ids.clone();
            bench.submit(1, asked).unwrap();
            bench.run_all();
            let all = answer(1, 10, max_tokens);
            let end = all.iter().position(|token| end_ids.contains(token)).map_or(all.len(), |end| end + 1);
            assert_eq!(bench.tokens(1), all[..end]);
            let reason = if all[..end].last().is_some_and(|token| end_ids.contains(token)) {
                FinishReason::EndToken
            } else {
                FinishReason::Length
            };
            assert_eq!(bench.events(1).last(), Some(&GenerationEvent::Done(reason)));
            bench.assert_idle();
        }
    }
}

#[test]
fn nobody_gives_way_for_a_draft() {
    // As long as both fit, neither is replayed: each takes seven of 15 pages in the end.
    let mut bench = bench(2, 32 * 15);
    for id in [1, 4] {
        bench.submit(id, request(20, 204)).unwrap();
    }
    bench.run_all();
    for id in [1, 4] {
        assert_eq!(bench.tokens(id), answer(id, 20, 204));
    }
    let counts = bench.scheduler.counts();
    assert_eq!(counts.replayed, 0);
    assert!(counts.draft_tokens_accepted > 100, "{counts:?}");
    bench.assert_idle();
}

#[test]
fn wrong_drafts_are_told_from_right_ones() {
    type Change = fn(&mut Vec<brigade_proto::step::TokenScore>);
    let changes: [Change; 5] = [
        |drawn| drawn.clear(),
        |drawn| drawn[0].token += 1,
        |drawn| drawn.truncate(1),
        |drawn| drawn.extend(drawn.clone()),
        |_| {},
    ];
    for (place, change) in changes.into_iter().enumerate() {
        let mut bench = bench(1, 512);
        bench.submit(1, request(10, 200)).unwrap();
        let result = loop {
            let drafts = bench.decode.front().map_or(0, |step| step.segments[0].drafts);
            if drafts > 0 {
                let step = bench.decode.pop_front().unwrap();
                let result = bench.stage.run(&step).unwrap();
                if result.outputs[0].sampled.len() > 2 {
                    break result;
                }
                bench.scheduler.handle_result(result, bench.now);
                bench.poll();
            } else {
                assert!(bench.run(StepKind::Decode) || bench.run(StepKind::Prefill));
            }
        };
        let mut changed = result;
        change(&mut changed.outputs[0].sampled);
        bench.scheduler.handle_result(changed, bench.now);
        bench.poll();
        assert_eq!(bench.broken.is_some(), place < 4, "change {place}: {:?}", bench.broken);
    }
}

/// Many sequences in little cache, of which some repeat themselves, with cancellations and failures: answers are those
/// without drafts, the stage is sent no position out of turn, and all is free at the end.
#[test]
fn answers_are_the_same_under_random_events() {
    let (mut accepted, mut rejected, mut replayed, mut reused, mut ahead) = (0, 0, 0, 0, 0);
    for seed in 0..200 {
        let mut random = Random::new(7000 + seed);
        // In some there is seldom more than one at a time, which then runs ahead of itself.
        let lone = seed % 4 == 0;
        let stages = 1 + random.below(4) as u32;
        let row_s = if lone { 0.006 } else { 0.000_1 };
        let mut bench = bench_of(stages, 32 * (8 + random.below(16) as u32), row_s);
        if seed % 2 == 1 {
            bench = bench.with_short_way();
        }
        let failures = random.below(4) == 0;
        let mut wanted = BTreeMap::new();
        let mut cancelled = std::collections::BTreeSet::new();
        let mut next = 1;
        for _ in 0..3000 {
            bench.now += Duration::from_millis(random.below(20));
            match random.below(12) {
                0 if !lone || bench.scheduler.counts().running == 0 || random.below(40) == 0 => {
                    let prompt = 1 + random.below(100) as u32;
                    let mut asked = request(prompt, (random.below(240) as u32).min(256 - prompt));
                    asked.score_prompt = random.below(6) == 0;
                    asked.sampling.end_ids = if random.below(3) == 0 { vec![END] } else { Vec::new() };
                    if bench.submit(next, asked.clone()).is_ok() {
                        wanted.insert(next, asked);
                    }
                    next += 1;
                }
                1 if next > 1 && random.below(if lone { 20 } else { 3 }) == 0 => {
                    let id = 1 + random.below(next - 1);
                    if bench.events(id).iter().all(|event| !is_end(event)) && wanted.contains_key(&id) {
                        cancelled.insert(id);
                    }
                    bench.cancel(id);
                }
                2 if failures && random.below(8) == 0 => {
                    let kind = if random.below(2) == 0 { StepKind::Prefill } else { StepKind::Decode };
                    bench.fail(kind);
                }
                0..=8 => {
                    bench.run(StepKind::Decode);
                }
                _ => {
                    bench.run(StepKind::Prefill);
                }
            }
            if bench.broken.is_some() {
                break;
            }
        }
        if bench.broken.is_some() {
            assert!(failures, "seed {seed}: {:?}", bench.broken);
            continue;
        }
        bench.run_all();
        bench.assert_idle();
        let counts = bench.scheduler.counts();
        if lone {
            ahead += bench.ahead;
        }
        accepted += counts.draft_tokens_accepted;
        rejected += counts.draft_tokens - counts.draft_tokens_accepted;
        replayed += counts.replayed;
        reused += counts.prompt_tokens_reused;
        for (id, asked) in &wanted {
            check_ending(&bench, *id, asked, cancelled.contains(id), seed);
        }
    }
    assert!(
        accepted > 3000 && rejected > 1000 && replayed > 100 && reused > 1000 && ahead > 1000,
        "{accepted} drafts taken, {rejected} not, {replayed} replays, {reused} reused, {ahead} ran ahead"
    );
}

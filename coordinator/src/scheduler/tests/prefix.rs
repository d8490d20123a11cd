//! Tests of prompts that begin alike: who shares what, when, and what is given up for whom.

use super::*;

/// A prompt of `common` tokens that all of these prompts have, and others up to `length`.
fn prompt(common: u32, length: u32, others: u32) -> Vec<u32> {
    (0..length).map(|i| if i < common { 100 + i } else { 1000 * others + i }).collect()
}

fn ask(prompt: Vec<u32>, max_tokens: u32) -> GenerationRequest {
    GenerationRequest { prompt, ..request(1, max_tokens) }
}

/// How many tokens a generation found in the cache, as its client was told.
fn reused(bench: &Bench, id: u64) -> u32 {
    let told = bench.events(id).iter().enumerate().filter_map(|(place, event)| match event {
        GenerationEvent::Reused(tokens) => Some((place, *tokens)),
        _ => None,
    });
    match told.collect::<Vec<_>>()[..] {
        [] => 0,
        [(0, tokens)] if tokens > 0 => tokens,
        ref told => panic!("{told:?} is not the first event, or says nothing"),
    }
}

/// Where the first segment of the next prompt chunk starts.
fn next_start(bench: &Bench) -> u32 {
    bench.prefill[0].segments[0].start
}

#[test]
fn whole_pages_in_common_are_shared_and_one_token_is_left_to_compute() {
    for common in [0, 31, 32, 33, 63, 64, 65, 96] {
        for longer in [0, 1, 31, 32, 40] {
            let length = (common + longer).max(1);
            let mut bench = Bench::new(pipeline(2, 1024), 4);
            bench.submit(1, ask(prompt(common, 100, 1), 3)).unwrap();
            bench.run_all();
            bench.submit(2, ask(prompt(common, length, 2), 3)).unwrap();
            let expected = (common / 32).min((length - 1) / 32) * 32;
            let what = format!("{common} tokens in common of {length}");
            assert_eq!(next_start(&bench), expected, "{what}");
            bench.run_all();
            assert_eq!((reused(&bench, 1), reused(&bench, 2)), (0, expected), "{what}");
            let answer: Vec<u32> = (length..length + 3).map(|at| drawn(SequenceId(2), at)).collect();
            assert_eq!(bench.tokens(2), answer, "{what}");
            let counts = bench.scheduler.counts();
            assert_eq!(counts.prompt_tokens, u64::from(100 + length - expected), "{what}");
            assert_eq!(counts.prompt_tokens_reused, u64::from(expected), "{what}");
            assert_eq!(counts.prefix_hits, u64::from(expected > 0), "{what}");
            bench.assert_idle();
        }
    }
}

#[test]
fn a_chats_next_turn_begins_with_the_last_ones_answer() {
    let mut bench = Bench::new(pipeline(2, 1024), 4);
    let mut history = prompt(40, 40, 1);
    // The last token of an answer is drawn, and never computed.
    for (turn, expected) in [(1, 0), (2, (40 + 25 - 1) / 32 * 32), (3, (40 + 25 + 7 + 25 - 1) / 32 * 32)] {
        bench.submit(turn, ask(history.clone(), 25)).unwrap();
        bench.run_all();
        assert_eq!(reused(&bench, turn), expected, "turn {turn}");
        history.extend(bench.tokens(turn));
        history.extend(0..7);
    }
}

#[test]
fn of_requests_that_come_at_once_one_computes_the_beginning_for_all() {
    let mut bench = Bench::new(pipeline(2, 1024), 8);
    for id in 1..=4 {
        bench.submit(id, ask(prompt(100, 100, 1), 5)).unwrap();
    }
    // One that begins otherwise does not wait for them.
    bench.submit(9, ask(prompt(0, 5, 2), 1)).unwrap();
    for _ in 0..4 {
        bench.run(StepKind::Prefill);
    }
    assert_eq!(bench.tokens(9).len(), 1);
    bench.run_all();
    for id in 1..=4 {
        assert_eq!(reused(&bench, id), if id == 1 { 0 } else { 96 });
        assert_eq!(bench.tokens(id).len(), 5);
    }
    let counts = bench.scheduler.counts();
    assert_eq!((counts.prompt_tokens, counts.prompt_tokens_reused), (100 + 3 * 4 + 5, 3 * 96));
    assert_eq!(counts.prefix_hits, 3);
    bench.assert_idle();
}

#[test]
fn shared_pages_take_room_once() {
    // Three times 5 pages fit 9 because they have 3 in common.
    let mut bench = Bench::new(pipeline(1, 32 * 9), 4);
    bench.submit(1, ask(prompt(96, 100, 1), 28)).unwrap();
    bench.run_all();
    for id in 2..=4 {
        bench.submit(id, ask(prompt(96, 100, id as u32), 50)).unwrap();
    }
    assert_eq!(bench.scheduler.counts().running, 3, "3 pages together, and 2 for each");
    assert_eq!(bench.scheduler.counts().cache_tokens_reserved, 9 * 32);
    bench.run_all();
    bench.assert_idle();
}

#[test]
fn an_owner_that_leaves_takes_nothing_from_those_who_share() {
    for run_before in 0..8 {
        let mut bench = Bench::new(pipeline(2, 1024), 4);
        bench.submit(1, ask(prompt(100, 100, 1), 50)).unwrap();
        bench.submit(2, ask(prompt(100, 110, 2), 20)).unwrap();
        for _ in 0..run_before {
            bench.run(StepKind::Prefill);
        }
        bench.cancel(1);
        bench.run_all();
        let answer: Vec<u32> = (110..130).map(|at| drawn(SequenceId(2), at)).collect();
        assert_eq!(bench.tokens(2), answer, "after {run_before} steps");
        bench.assert_idle();
    }
}

#[test]
fn who_waits_for_a_prompt_that_fails_computes_it() {
    let mut bench = Bench::new(pipeline(1, 1024), 4);
    bench.submit(1, ask(prompt(100, 100, 1), 5)).unwrap();
    bench.submit(2, ask(prompt(100, 100, 1), 5)).unwrap();
    while bench.scheduler.counts().prompt_tokens < 32 {
        assert!(bench.run(StepKind::Prefill));
    }
    let home = bench.scheduler.counts().prompt_tokens as u32;
    assert!(bench.fail(StepKind::Prefill));
    bench.run_all();
    assert_eq!(bench.tokens(1).len(), 0);
    assert_eq!((bench.tokens(2).len(), reused(&bench, 2)), (5, home / 32 * 32), "of {home} that came home");
    bench.assert_idle();
    assert_eq!(bench.broken, None);
}

#[test]
fn what_was_used_the_longest_ago_gives_way_and_its_end_first() {
    let mut bench = Bench::new(pipeline(1, 32 * 8), 4);
    let ended = |bench: &mut Bench, id: u64, others: u32| {
        bench.submit(id, ask(prompt(0, 97, others), 1)).unwrap();
        bench.run_all();
    };
    ended(&mut bench, 1, 1);
    ended(&mut bench, 2, 2);
    assert_eq!(bench.scheduler.counts().cache_tokens_kept, 6 * 32);
    // The first is used again, and then two pages more than are blank are needed.
    ended(&mut bench, 3, 1);
    assert_eq!(reused(&bench, 3), 96);
    ended(&mut bench, 4, 4);
    let counts = bench.scheduler.counts();
    assert_eq!((counts.pages_evicted, counts.cache_tokens_kept), (2, 7 * 32));
    ended(&mut bench, 5, 1);
    assert_eq!(reused(&bench, 5), 96, "it was used later than the second");
    bench.submit(6, ask(prompt(0, 97, 2), 1)).unwrap();
    assert_eq!(next_start(&bench), 32, "the beginning of the second is left");
    bench.run_all();
    bench.assert_idle();
}

#[test]
fn what_is_kept_never_keeps_anyone_waiting() {
    let mut bench = Bench::new(pipeline(2, 256), 4);
    for id in 1..=6 {
        let length = 200 + id as u32;
        bench.submit(id, ask(prompt(0, length, id as u32), 256 - length)).unwrap();
        assert_eq!(bench.scheduler.counts().waiting, 0);
        bench.run_all();
    }
    assert_eq!(bench.scheduler.counts().replayed, 0);
    assert!(bench.scheduler.counts().pages_evicted >= 5 * 7);
    bench.assert_idle();
}

#[test]
fn scopes_share_nothing() {
    let mut bench = Bench::new(pipeline(2, 1024), 4);
    for (id, scope, expected) in [(1, 1, 0), (2, 2, 0), (3, 1, 96), (4, 2, 96)] {
        let asked = GenerationRequest { scope: ReuseScope(scope), ..ask(prompt(100, 100, 1), 2) };
        bench.submit(id, asked).unwrap();
        bench.run_all();
        assert_eq!(reused(&bench, id), expected, "request {id}");
    }
}

#[test]
fn what_is_scored_is_computed_and_others_may_begin_with_it() {
    let mut bench = Bench::new(pipeline(2, 1024), 4);
    for id in [1, 2] {
        let asked = GenerationRequest { score_prompt: true, ..ask(prompt(100, 100, 1), 2) };
        bench.submit(id, asked).unwrap();
        bench.run_all();
        assert_eq!(reused(&bench, id), 0);
    }
    bench.submit(3, ask(prompt(100, 100, 1), 2)).unwrap();
    bench.run_all();
    assert_eq!(reused(&bench, 3), 96);
    bench.assert_idle();
}

#[test]
fn a_replay_begins_with_what_is_still_there() {
    // 13 pages: two sequences of 8 that have two in common need one more.
    let mut bench = Bench::new(pipeline(2, 32 * 13), 4);
    for id in 1..=3 {
        bench.submit(id, ask(prompt(64, 70, id as u32), 180)).unwrap();
    }
    let mut replays = BTreeMap::new();
    loop {
        for segment in bench.prefill.iter().flat_map(|step| &step.segments) {
            if segment.begin.is_some() && !bench.tokens(segment.sequence.0).is_empty() {
                replays.insert(segment.sequence, segment.start);
            }
        }
        if !bench.run(StepKind::Decode) && !bench.run(StepKind::Prefill) {
            break;
        }
    }
    assert_eq!(bench.scheduler.counts().replayed, replays.len() as u64);
    assert!(!replays.is_empty() && replays.values().all(|start| *start >= 64), "{replays:?}");
    for id in 1..=3 {
        let answer: Vec<u32> = (70..250).map(|at| drawn(SequenceId(id), at)).collect();
        assert_eq!(bench.tokens(id), answer);
        assert_eq!(reused(&bench, id), if id == 1 { 0 } else { 64 }, "a replay is not told");
    }
    bench.assert_idle();
}

#[test]
fn a_new_plan_begins_with_an_empty_cache() {
    let mut bench = Bench::new(pipeline(1, 512), 4);
    bench.submit(1, ask(prompt(100, 100, 1), 2)).unwrap();
    bench.run_all();
    assert!(bench.scheduler.counts().cache_tokens_kept > 0);
    bench.scheduler.start(pipeline(1, 512), bench.now);
    bench.submit(2, ask(prompt(100, 100, 1), 2)).unwrap();
    assert_eq!((next_start(&bench), bench.scheduler.counts().cache_tokens_kept), (0, 0));
}

/// Chats and families of prompts in small caches, with cancellations, failures and replays: the stage panics where a
/// sequence begins with anything but its prompt, or a page is written that another sequence has.
#[test]
fn what_is_shared_is_right_under_random_events() {
    let (mut hits, mut evicted, mut replayed) = (0, 0, 0);
    for seed in 0..150 {
        let mut random = Random::new(1000 + seed);
        let stages = 1 + random.below(4) as u32;
        let mut bench = Bench::new(pipeline(stages, 32 * (8 + random.below(16) as u32)), 6);
        if seed % 2 == 1 {
            bench = bench.with_short_way();
        }
        let failures = random.below(4) == 0;
        let mut asked: BTreeMap<u64, GenerationRequest> = BTreeMap::new();
        let mut next = 1;
        for _ in 0..2500 {
            match random.below(10) {
                0 => {
                    let mut tokens = match asked.get(&(1 + random.below(next))) {
                        // The next turn of a chat.
                        Some(before) if random.below(2) == 0 => before.prompt.clone(),
                        _ => prompt(
                            random.below(4) as u32 * 31,
                            1 + random.below(110) as u32,
                            1 + random.below(2) as u32,
                        ),
                    };
                    if let Some((id, _)) = asked.iter().find(|(_, before)| before.prompt == tokens) {
                        tokens.extend(bench.tokens(*id));
                    }
                    tokens.truncate(200);
                    tokens.extend((0..random.below(3)).map(|i| i as u32));
                    let most = 256 - tokens.len() as u64;
                    let wanted = GenerationRequest {
                        score_prompt: random.below(8) == 0,
                        scope: ReuseScope(random.below(8) / 7),
                        ..ask(tokens, random.below(most) as u32)
                    };
                    if !wanted.prompt.is_empty() && bench.submit(next, wanted.clone()).is_ok() {
                        asked.insert(next, wanted);
                    }
                    next += 1;
                }
                1 if next > 1 && random.below(3) == 0 => bench.cancel(1 + random.below(next - 1)),
                2 if failures && random.below(4) == 0 => {
                    bench.fail(StepKind::Prefill);
                }
                1..=5 => {
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
        hits += counts.prefix_hits;
        evicted += counts.pages_evicted;
        replayed += counts.replayed;
        for (id, wanted) in &asked {
            let start = wanted.prompt.len() as u32;
            let tokens = bench.tokens(*id);
            let right = (start..).zip(&tokens).all(|(at, token)| *token == drawn(SequenceId(*id), at));
            assert!(right, "seed {seed}, sequence {id}: {tokens:?}");
            let _ = reused(&bench, *id);
        }
    }
    assert!(
        hits > 1000 && evicted > 1000 && replayed > 100,
        "{hits} hits, {evicted} evicted, {replayed} replays"
    );
}

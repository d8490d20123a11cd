//! Tests of drafts by a draft model: answers are those without it, it comes and goes, and it rests where it does not pay.

use super::simulated_pipeline::{SimulatedPipeline, Speed};
use super::*;

/// A stage of which a step takes so long, and each row a tenth of a millisecond.
fn speed(step_ms: f64) -> Speed {
    Speed { decode_ms: (step_ms, 0.1), prefill_ms: (step_ms, 0.1) }
}

/// How long an answer of 400 tokens takes, in seconds, that does not repeat itself.
fn seconds(pipeline: SimulatedPipeline) -> f64 {
    let mut pipeline = pipeline;
    pipeline.submit(20, 1);
    let id = pipeline.submit(20, 400);
    assert_ne!(id.0 % 3, 1, "nothing repeats");
    pipeline.pass_until_ended(id) as f64 * 1e-6
}

fn stages(each_ms: &[f64]) -> SimulatedPipeline {
    let speeds: Vec<Speed> = each_ms.iter().map(|ms| speed(*ms)).collect();
    SimulatedPipeline::new(&speeds, &vec![0.1; each_ms.len() + 1], 1.0)
}

#[test]
fn a_good_draft_model_makes_answers_faster() {
    for (each_ms, percent, least) in
        [(&[20.0][..], 80, 2.2), (&[20.0, 20.0][..], 80, 2.5), (&[10.0; 4][..], 95, 4.0)]
    {
        let plain = seconds(stages(each_ms));
        let drafted = seconds(stages(each_ms).with_draft(speed(2.0), 0.1, percent, None));
        println!("{each_ms:?}, {percent}%: {plain:.2} s, {drafted:.2} s, {:.2} times", plain / drafted);
        assert!(plain > least * drafted, "{plain} {drafted}");
    }
}

#[test]
fn a_draft_model_that_does_not_pay_costs_little() {
    /// What it is, the stages' times and the draft's in milliseconds, how often it is right in percent, and beside which stage.
    type Case = (&'static str, &'static [f64], f64, u64, Option<usize>);
    let cases: [Case; 6] = [
        ("it never guesses right", &[20.0, 20.0], 2.0, 0, None),
        ("nor on a worker that has enough to do", &[20.0], 5.0, 0, Some(0)),
        ("it seldom guesses right", &[20.0, 20.0], 10.0, 10, Some(1)),
        ("it is as slow as the pipeline", &[20.0], 20.0, 90, Some(0)),
        ("it is slower than the pipeline", &[5.0, 5.0], 30.0, 50, None),
        ("it is slower and beside a stage", &[5.0, 5.0], 12.0, 50, Some(0)),
    ];
    for (what, each_ms, draft_ms, percent, beside) in cases {
        let plain = seconds(stages(each_ms));
        let drafted = seconds(stages(each_ms).with_draft(speed(draft_ms), 0.1, percent, beside));
        println!("{what}: {plain:.2} s, {drafted:.2} s, {:.2} times", plain / drafted);
        assert!(plain > 0.95 * drafted, "{what}: {plain} {drafted}");
    }
}

#[test]
fn a_draft_model_beside_a_stage_makes_answers_faster_where_it_is_fast() {
    for each_ms in [&[20.0][..], &[20.0, 20.0][..]] {
        let plain = seconds(stages(each_ms));
        let drafted = seconds(stages(each_ms).with_draft(speed(2.0), 0.1, 85, Some(0)));
        println!("{each_ms:?}: {:.2} times", plain / drafted);
        assert!(plain > 1.6 * drafted, "{plain} {drafted}");
    }
}

#[test]
fn several_streams_have_drafts_too_as_far_as_rows_are_cheap() {
    let run = |mut pipeline: SimulatedPipeline| {
        let ids: Vec<SequenceId> = (0..4).map(|_| pipeline.submit(20, 300)).collect();
        let end = ids.into_iter().map(|id| pipeline.pass_until_ended(id)).max().unwrap();
        end as f64 * 1e-6
    };
    let plain = run(stages(&[20.0, 20.0]));
    let drafted = run(stages(&[20.0, 20.0]).with_draft(speed(2.0), 0.1, 80, None));
    println!("{plain:.2} s, {drafted:.2} s, {:.2} times", plain / drafted);
    assert!(plain > 1.5 * drafted, "{plain} {drafted}");
}

#[test]
fn a_draft_model_that_hangs_is_waited_for_once_and_then_given_up() {
    let plain = seconds(stages(&[20.0, 20.0]));
    let mut pipeline = stages(&[20.0, 20.0]).with_draft(speed(2.0), 0.1, 90, None);
    pipeline.submit(20, 1);
    pipeline.pass(100_000);
    let id = pipeline.submit(20, 400);
    pipeline.pass(300_000);
    pipeline.hang_draft();
    let took = (pipeline.pass_until_ended(id) - 100_000) as f64 * 1e-6;
    assert!(took < plain + 0.2, "{took} s with a draft model that hangs, {plain} s without one");
    pipeline.pass(60_000_000);
    assert!(!pipeline.has_draft(), "it was not given up");
    assert!(pipeline.is_idle());
}

#[test]
fn answers_are_the_same_with_a_draft_model_under_random_events() {
    let (mut accepted, mut rejected, mut replayed, mut lost, mut ahead) = (0, 0, 0, 0, 0);
    for seed in 0..200 {
        let mut random = Random::new(9000 + seed);
        let stages = 1 + random.below(4) as u32;
        let lone = seed % 4 == 0;
        let mut described = pipeline(stages, 32 * (8 + random.below(16) as u32));
        let row_s = if lone { 0.006 } else { 0.000_1 };
        described.stages.iter_mut().for_each(|stage| stage.prefill_s_per_row = row_s);
        let speculation = if random.below(2) == 0 { Speculation::Off } else { Speculation::Lookup };
        let percent = [0, 50, 80, 95][random.below(4) as usize];
        let draft_cache = 32 * (4 + random.below(24) as u32);
        let mut bench = Bench::with(described, 6, speculation).with_draft(percent, draft_cache);
        if seed % 2 == 1 {
            bench = bench.with_short_way();
        }
        let mut wanted = BTreeMap::new();
        let mut cancelled = std::collections::BTreeSet::new();
        let mut next = 1;
        for _ in 0..3000 {
            bench.now += Duration::from_millis(random.below(4));
            bench.scheduler.handle_timeout(bench.now);
            bench.poll();
            match random.below(24) {
                0 if !lone || bench.scheduler.counts().running == 0 => {
                    let prompt = 1 + random.below(100) as u32;
                    let mut asked = request(prompt, (random.below(240) as u32).min(256 - prompt));
                    asked.score_prompt = random.below(6) == 0;
                    asked.sampling.end_ids = if random.below(3) == 0 { vec![END] } else { Vec::new() };
                    if bench.submit(next, asked.clone()).is_ok() {
                        wanted.insert(next, asked);
                    }
                    next += 1;
                }
                1 if next > 1 && random.below(6) == 0 => {
                    let id = 1 + random.below(next - 1);
                    if bench.events(id).iter().all(|event| !is_end(event)) && wanted.contains_key(&id) {
                        cancelled.insert(id);
                    }
                    bench.cancel(id);
                }
                2 if random.below(40) == 0 => {
                    lost += 1;
                    bench.lose_draft();
                    if random.below(2) == 0 {
                        bench = bench.with_draft(percent, draft_cache);
                    }
                }
                0..=12 => {
                    bench.run_draft();
                }
                13..=20 => {
                    bench.run(StepKind::Decode);
                }
                _ => {
                    bench.run(StepKind::Prefill);
                }
            }
            assert_eq!((&bench.broken, &bench.drafts_broken), (&None, &None), "seed {seed}");
        }
        bench.run_all();
        bench.assert_idle();
        let counts = bench.scheduler.counts();
        accepted += counts.draft_model_tokens_accepted;
        rejected += counts.draft_model_tokens - counts.draft_model_tokens_accepted;
        replayed += counts.replayed;
        ahead += bench.ahead;
        for (id, asked) in &wanted {
            check_ending(&bench, *id, asked, cancelled.contains(id), seed);
        }
    }
    println!("{accepted} drafts taken, {rejected} not, {replayed} replays, {lost} lost, {ahead} ran ahead");
    assert!(accepted > 3000 && rejected > 1000 && replayed > 100 && lost > 20, "too little happened");
}

#[test]
fn what_the_draft_model_answers_wrongly_ends_its_use_and_no_answer() {
    let mut bench = Bench::new(pipeline(2, 512), 4).with_draft(90, 1024);
    bench.submit(2, request(10, 100)).unwrap();
    let step = bench.draft_steps.pop_front().unwrap();
    let mut result = bench.draft.as_mut().unwrap().run(&step);
    result.outputs.clear();
    bench.scheduler.handle_result(result, bench.now);
    bench.poll();
    assert!(bench.drafts_broken.as_ref().is_some_and(|reason| reason.contains("wrong result")));
    bench.lose_draft();
    bench.run_all();
    assert_eq!(bench.tokens(2).len(), 100);

    let mut bench = Bench::new(pipeline(2, 512), 4).with_draft(90, 1024);
    bench.submit(2, request(10, 100)).unwrap();
    let step = bench.draft_steps.pop_front().unwrap();
    bench.scheduler.handle_failure(DRAFT, step.step, 0, "it was meant to", bench.now);
    bench.poll();
    assert!(bench.drafts_broken.as_ref().is_some_and(|reason| reason.contains("it was meant to")));
    assert_eq!(bench.broken, None);
}

#[test]
fn a_draft_that_the_pipeline_does_not_know_is_never_sent() {
    let mut bench = Bench::new(pipeline(1, 512), 4).with_draft(100, 1024);
    let unknown = 10_000;
    bench.submit(2, request(10, 60)).unwrap();
    while bench.run(StepKind::Prefill) {}
    for _ in 0..400 {
        if let Some(step) = bench.draft_steps.pop_front() {
            let mut result = bench.draft.as_mut().unwrap().run(&step);
            for token in result.outputs.iter_mut().flat_map(|output| &mut output.sampled) {
                token.token = unknown;
            }
            bench.scheduler.handle_result(result, bench.now);
            bench.poll();
        }
        let tokens = bench.decode.iter().flat_map(|step| &step.segments).flat_map(|segment| &segment.tokens);
        assert!(tokens.into_iter().all(|token| *token != unknown));
        bench.now += Duration::from_millis(5);
        bench.scheduler.handle_timeout(bench.now);
        bench.poll();
        bench.run(StepKind::Decode);
    }
    assert_eq!(bench.tokens(2).len(), 60);
}

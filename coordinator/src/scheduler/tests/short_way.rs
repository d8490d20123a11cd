//! Tests of steps sent ahead of their tokens: answers are those without, and a far coordinator costs nothing.

use super::simulated_pipeline::{SimulatedPipeline, Speed};
use super::*;

fn bench(stages: u32, cache_tokens: u32) -> Bench {
    Bench::new(pipeline(stages, cache_tokens), 6).with_short_way()
}

fn answer(id: u64, prompt: u32, tokens: u32) -> Vec<u32> {
    (prompt..prompt + tokens).map(|position| drawn(SequenceId(id), position)).collect()
}

#[test]
fn a_lone_sequence_is_sent_ahead_of_its_tokens_up_to_its_limit() {
    for max_tokens in 1..40 {
        let mut bench = bench(3, 512);
        bench.submit(2, request(10, max_tokens)).unwrap();
        bench.run_all();
        assert_eq!(bench.tokens(2), answer(2, 10, max_tokens));
        // The first token is the prompt's, and the second goes on from a known one.
        assert_eq!(bench.followed, u64::from(max_tokens.saturating_sub(2)), "{max_tokens}");
        bench.assert_idle();
    }
}

#[test]
fn nothing_is_sent_ahead_where_no_stage_waits_for_it() {
    let mut bench = bench(1, 512);
    bench.submit(2, request(10, 50)).unwrap();
    bench.run_all();
    assert_eq!((bench.tokens(2).len(), bench.followed), (50, 0));
}

#[test]
fn a_sequence_that_joins_is_not_kept_out() {
    let mut bench = bench(2, 1024);
    bench.submit(2, request(10, 200)).unwrap();
    for _ in 0..20 {
        assert!(bench.run(StepKind::Decode) || bench.run(StepKind::Prefill));
    }
    bench.submit(3, request(10, 20)).unwrap();
    let mut steps = 0;
    while bench.tokens(3).len() < 20 {
        assert!(bench.run(StepKind::Prefill) || bench.run(StepKind::Decode));
        steps += 1;
    }
    assert!(steps < 60, "{steps} steps for 20 tokens");
    bench.run_all();
    assert_eq!(bench.tokens(2), answer(2, 10, 200));
    assert_eq!(bench.tokens(3), answer(3, 10, 20));
    bench.assert_idle();
}

#[test]
fn what_waits_for_a_step_that_failed_is_told_something() {
    for stages in 2..4 {
        let mut bench = bench(stages, 1024);
        bench.submit(2, request(10, 60)).unwrap();
        for _ in 0..9 {
            assert!(bench.run(StepKind::Prefill) || bench.run(StepKind::Decode));
        }
        assert!(bench.decode.iter().any(|step| step.short_way.follows));
        bench.fail(StepKind::Decode);
        assert!(matches!(bench.events(2).last(), Some(GenerationEvent::Failed(_))));
        bench.run_all();
        bench.assert_idle();
        assert_eq!(bench.broken, None);
    }
}

/// Microseconds from the first token of a lone stream to its last, with the coordinator `far_ms` away.
fn decoding_us(far_ms: f64, short_way: Option<Option<f64>>) -> u64 {
    let stage = Speed { decode_ms: (10.0, 1.0), prefill_ms: (10.0, 0.3) };
    let mut pipeline = SimulatedPipeline::new(&[stage; 2], &[far_ms, 0.2, far_ms], 1.3).with_jitter(3);
    if let Some(short_ms) = short_way {
        pipeline = pipeline.with_short_way(short_ms);
    }
    let id = pipeline.submit(10, 200);
    let ended_us = pipeline.pass_until_ended(id);
    pipeline.pass(1_000_000);
    assert!(pipeline.is_idle());
    assert_eq!(pipeline.tokens_us[&id].len(), 200);
    ended_us - pipeline.tokens_us[&id][0]
}

#[test]
fn a_far_coordinator_costs_a_lone_stream_nothing() {
    let beside = decoding_us(0.2, None);
    assert!(decoding_us(20.0, None) > beside * 5 / 2, "without the short way every token takes 40 ms more");
    for far_ms in [1.0, 20.0, 35.0] {
        let far = decoding_us(far_ms, Some(Some(0.2)));
        assert!(
            far < beside + beside / 20 + (4.0 * far_ms * 1e3) as u64,
            "{far} of {beside} us at {far_ms} ms"
        );
    }
}

#[test]
fn without_a_link_from_the_last_stage_to_the_first_it_is_no_worse() {
    let (without, with) = (decoding_us(20.0, None), decoding_us(20.0, Some(None)));
    assert!(with < without + without / 20, "{with} of {without} us");
}

#[test]
fn many_streams_with_a_far_coordinator_keep_the_stages_busy() {
    let stage = Speed { decode_ms: (10.0, 1.0), prefill_ms: (10.0, 0.3) };
    let links_ms = [20.0, 0.2, 20.0];
    let mut pipeline = SimulatedPipeline::new(&[stage; 2], &links_ms, 1.0).with_short_way(Some(0.2));
    for _ in 0..8 {
        pipeline.submit(10, 4000);
    }
    pipeline.pass(5_000_000);
    let busy = pipeline.busy_us()[0];
    let tokens = |pipeline: &SimulatedPipeline| pipeline.tokens_us.values().map(Vec::len).sum::<usize>();
    let before = tokens(&pipeline);
    pipeline.pass(5_000_000);
    assert!(pipeline.busy_us()[0] - busy > 4_700_000, "{} us busy", pipeline.busy_us()[0] - busy);
    // Two groups of four take 28 ms for eight tokens.
    let found = tokens(&pipeline) - before;
    assert!(found > 1300, "{found} tokens in 5 s");
}

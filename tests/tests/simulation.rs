//! Hundreds of simulated clusters, each with faults of its own; `BRIGADE_SEEDS=20000` runs as many of each kind, and
//! `BRIGADE_SEED=17` that one alone.

use std::time::Instant;

use brigade_tests::simulation::{Outcome, Weather, run};

/// Seeds of a plain run, of each kind.
const SEEDS: u64 = 150;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {value}")))
}

/// Runs all seeds of a kind; what they came to together.
fn all(weather: Weather) -> Outcome {
    let seeds = match number("BRIGADE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BRIGADE_SEEDS").unwrap_or(SEEDS),
    };
    let start = Instant::now();
    let count = seeds.end - seeds.start;
    let mut sum = Outcome::default();
    for seed in seeds {
        let outcome = run(seed, weather).unwrap_or_else(|wrong| panic!("{wrong}"));
        sum.requests += outcome.requests;
        sum.answered += outcome.answered;
        sum.given_up += outcome.given_up;
        sum.recovered += outcome.recovered;
        sum.plans += outcome.plans;
        sum.moved += outcome.moved;
        sum.unplugged += outcome.unplugged;
        sum.fenced += outcome.fenced;
    }
    println!("{weather:?}: {count} seeds in {:.1?}, {sum:?}", start.elapsed());
    sum
}

#[test]
fn with_enough_workers_every_request_is_answered_whatever_fails() {
    let sum = all(Weather::Fair);
    assert_eq!(sum.given_up, 0);
    assert!(sum.recovered > sum.plans - sum.moved, "{sum:?}: too little was going on");
    assert!(sum.moved > 0 && sum.unplugged > 0, "{sum:?}: too little was wished for");
}

#[test]
fn whatever_fails_every_request_ends_once_and_nothing_is_left_behind() {
    let sum = all(Weather::Foul);
    assert!(
        sum.given_up > 0 && sum.answered > sum.given_up && sum.fenced > 0,
        "{sum:?}: it was not foul enough"
    );
}

#[test]
fn a_seed_decides_everything() {
    for seed in [3, 4] {
        assert_eq!(run(seed, Weather::Foul), run(seed, Weather::Foul));
    }
}

//! The sampler: each parameter's effect, the distribution of draws, and log-probabilities.

use brigade_proto::sampling::Sampling;
use brigade_worker::sampler::{History, LogSoftmax, SampleError, Sampler, check, most_likely};

const NOTHING: History<'static> = History { tokens: &[], prompt_tokens: 0 };

/// Shares of the tokens in draws at 20,000 positions.
fn shares(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let mut sampler = Sampler::default();
    let mut counts = vec![0u32; logits.len()];
    let draws = 20_000;
    let tokens = vec![logits.len() as u32 - 1; draws];
    for position in 0..draws {
        let history = History { tokens: &tokens[..position], prompt_tokens: position };
        counts[sampler.draw(logits, sampling, history).unwrap() as usize] += 1;
    }
    counts.iter().map(|&n| f64::from(n) / draws as f64).collect()
}

fn assert_shares(logits: &[f32], sampling: &Sampling, expected: &[f64]) {
    let found = shares(logits, sampling);
    for (found, expected) in found.iter().zip(expected) {
        // Four standard deviations of a share of 20,000 draws.
        assert!((found - expected).abs() < 0.015, "{sampling:?}: {found} instead of {expected}");
        assert_eq!(*expected == 0.0, *found == 0.0, "{sampling:?}");
    }
}

/// Logits of probabilities.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

fn greedy(logits: &[f32], sampling: Sampling, history: History<'_>) -> u32 {
    Sampler::default().draw(logits, &Sampling { temperature: 0.0, ..sampling }, history).unwrap()
}

#[test]
fn draws_follow_the_probabilities_and_every_filter() {
    let all = logits(&[0.1, 0.4, 0.2, 0.3]);
    let plain = Sampling { seed: 3, ..Sampling::default() };
    assert_shares(&all, &plain, &[0.1, 0.4, 0.2, 0.3]);
    let hot = Sampling { temperature: 2.0, ..plain.clone() };
    let roots = [0.1f64, 0.4, 0.2, 0.3].map(f64::sqrt);
    let sum: f64 = roots.iter().sum();
    assert_shares(&all, &hot, &roots.map(|root| root / sum));
    assert_shares(&all, &Sampling { top_k: 2, ..plain.clone() }, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    assert_shares(&all, &Sampling { top_k: 9, ..plain.clone() }, &[0.1, 0.4, 0.2, 0.3]);
    assert_shares(&all, &Sampling { top_p: 0.75, ..plain.clone() }, &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
    assert_shares(&all, &Sampling { top_p: 1e-6, ..plain.clone() }, &[0.0, 1.0, 0.0, 0.0]);
    assert_shares(&all, &Sampling { min_p: 0.6, ..plain.clone() }, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    // top_p counts among what top_k has left: 3/7 + 4/7.
    assert_shares(&all, &Sampling { top_k: 2, top_p: 0.57, ..plain }, &[0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn a_nucleus_of_many_tokens_is_found() {
    // 5,000 equal tokens: nine tenths of them by id, since equal ones are taken from the lowest id on.
    let all = vec![1.5f32; 5000];
    let sampling = Sampling { top_p: 0.9, ..Sampling::default() };
    let mut sampler = Sampler::default();
    let tokens = vec![0; 3000];
    let mut largest = 0;
    for position in 0..3000 {
        let history = History { tokens: &tokens[..position], prompt_tokens: position };
        largest = largest.max(sampler.draw(&all, &sampling, history).unwrap());
    }
    assert!((4400..4500).contains(&largest), "{largest}");
}

#[test]
fn a_draw_depends_on_seed_and_position_alone() {
    let all = logits(&[0.25; 4]);
    let draw = |seed, position: usize| {
        let tokens = vec![0; position];
        let history = History { tokens: &tokens, prompt_tokens: 0 };
        Sampler::default().draw(&all, &Sampling { seed, ..Sampling::default() }, history).unwrap()
    };
    let line = |seed| (0..64).map(|position| draw(seed, position)).collect::<Vec<_>>();
    assert_eq!(line(1), line(1));
    assert_ne!(line(1), line(2));
}

#[test]
fn greedy_takes_the_first_of_the_best() {
    assert_eq!(greedy(&[1.0, 3.0, 3.0, 2.0], Sampling::default(), NOTHING), 1);
    // Temperatures too small to divide by are greedy as well.
    let cold = Sampling { temperature: 1e-40, ..Sampling::default() };
    assert_eq!(Sampler::default().draw(&[1.0, 3.0, 3.0], &cold, NOTHING), Ok(1));
}

#[test]
fn bias_and_min_tokens_change_the_choice() {
    let all = [1.0, 3.0, 2.0];
    let bias = Sampling { logit_bias: vec![(0, 5.0), (1, -5.0)], ..Sampling::default() };
    assert_eq!(greedy(&all, bias, NOTHING), 0);
    let longer = Sampling { min_tokens: 2, end_ids: vec![1], ..Sampling::default() };
    let after = |tokens: &'static [u32]| History { tokens, prompt_tokens: 1 };
    assert_eq!(greedy(&all, longer.clone(), after(&[0])), 2);
    assert_eq!(greedy(&all, longer.clone(), after(&[0, 0])), 2);
    assert_eq!(greedy(&all, longer, after(&[0, 0, 0])), 1);
}

#[test]
fn penalties_count_what_they_should() {
    let all = [2.0, 1.9, -1.0, -1.1];
    let after = History { tokens: &[0, 3, 1, 1], prompt_tokens: 2 };
    // Prompt and answer: 0, 3 and 1 are penalised; a negative logit gets more negative.
    let repetition = |penalty| Sampling { repetition_penalty: penalty, ..Sampling::default() };
    assert_eq!(greedy(&all, repetition(1.5), after), 0);
    assert_eq!(greedy(&[2.0, 1.9, 1.5, -1.1], repetition(1.5), after), 2);
    assert_eq!(greedy(&[-5.0, -5.0, -1.05, -1.0], repetition(1.1), after), 2);
    // Answer only: 1, twice.
    let presence = Sampling { presence_penalty: 0.5, ..Sampling::default() };
    assert_eq!(greedy(&[1.0, 1.4, 0.0, 0.0], presence.clone(), after), 0);
    assert_eq!(greedy(&[1.0, 1.6, 0.0, 0.0], presence, after), 1);
    let frequency = Sampling { frequency_penalty: 0.5, ..Sampling::default() };
    assert_eq!(greedy(&[1.0, 1.9, 0.0, 0.0], frequency.clone(), after), 0);
    assert_eq!(greedy(&[1.0, 2.1, 0.0, 0.0], frequency, after), 1);
}

#[test]
fn nonsense_is_an_error() {
    let sampling = Sampling::default();
    let draw = |logits: &[f32], sampling: &Sampling| Sampler::default().draw(logits, sampling, NOTHING);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = draw(&[0.0, bad, 0.0], &sampling).unwrap_err();
        assert!(matches!(error, SampleError::NotFinite { token: 1, .. }), "{error}");
        assert!(LogSoftmax::of(&[bad; 9]).is_err());
    }
    let none = Sampling { min_tokens: 1, end_ids: vec![0, 1], ..Sampling::default() };
    assert_eq!(draw(&[0.0, 0.0], &none), Err(SampleError::NothingLeft));
    for (wrong, name) in [
        (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
        (Sampling { temperature: f32::NAN, ..Sampling::default() }, "temperature"),
        (Sampling { top_p: 0.0, ..Sampling::default() }, "top_p"),
        (Sampling { min_p: 1.5, ..Sampling::default() }, "min_p"),
        (Sampling { repetition_penalty: 0.0, ..Sampling::default() }, "repetition_penalty"),
        (Sampling { presence_penalty: f32::INFINITY, ..Sampling::default() }, "presence_penalty"),
        (Sampling { frequency_penalty: f32::NAN, ..Sampling::default() }, "frequency_penalty"),
        (Sampling { logit_bias: vec![(10, 1.0)], ..Sampling::default() }, "logit_bias"),
        (Sampling { end_ids: vec![10], ..Sampling::default() }, "end_ids"),
    ] {
        assert!(check(&wrong, 10).unwrap_err().to_string().contains(name), "{name}");
    }
    assert_eq!(check(&sampling, 10), Ok(()));
}

#[test]
fn log_probabilities_are_exact_to_f32() {
    let all: Vec<f32> = (0..50_001).map(|i| ((i * 7919) % 1000) as f32 / 50.0).collect();
    let sum: f64 = all.iter().map(|&l| (f64::from(l) - 20.0).exp()).sum();
    let softmax = LogSoftmax::of(&all).unwrap();
    for token in [0, 1, 777, 50_000] {
        let exact = f64::from(all[token]) - 20.0 - sum.ln();
        assert!((f64::from(softmax.of_logit(all[token])) - exact).abs() < 2e-6);
    }
}

#[test]
fn the_most_likely_come_in_order() {
    let all: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32).collect();
    let mut sorted: Vec<(u32, f32)> = all.iter().enumerate().map(|(i, &l)| (i as u32, l)).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    for count in [0, 1, 2, 20, 999, 1000, 5000] {
        assert_eq!(most_likely(&all, count), sorted[..count.min(1000)], "{count}");
    }
}

//! Whether a draft model is used, rests, or is tried again.

use super::*;

fn worth(rights: &[bool]) -> Worth {
    let mut worth = Worth::new();
    rights.iter().for_each(|right| worth.observe(*right));
    worth
}

/// Answers are faster by the chance of a draft.
fn gain(chance: f64) -> f64 {
    1.0 + chance - 0.3
}

#[test]
fn a_model_that_guesses_badly_rests_and_is_tried_ever_more_seldom() {
    let mut now = Instant::now();
    let mut worth = worth(&[false; 12]);
    let mut tried = Vec::new();
    for _ in 0..2000 {
        let rests = worth.judge(gain, now) == Use::Rest;
        let trial = worth.judge(gain, now) == Use::Try;
        assert!(rests || trial);
        if trial {
            tried.push(now);
            (0..TRIAL as usize).for_each(|_| worth.observe(false));
        }
        now += Duration::from_secs(1);
    }
    let rests: Vec<u64> = tried.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    // A second passes between a trial and its judgement.
    assert!(rests.starts_with(&[11, 21, 41, 81]) && rests.last() == Some(&321), "{rests:?}");
}

#[test]
fn a_model_that_has_become_better_is_used_again() {
    let now = Instant::now();
    let mut worth = worth(&[false; 200]);
    assert_eq!(worth.judge(gain, now), Use::Rest);
    let later = now + FIRST_REST;
    assert_eq!(worth.judge(gain, later), Use::Try);
    (0..TRIAL as usize).for_each(|_| worth.observe(true));
    assert_eq!(worth.judge(gain, later), Use::Draft);
}

#[test]
fn where_no_draft_would_pay_nothing_is_said_of_the_model() {
    let now = Instant::now();
    let mut worth = worth(&[true; 50]);
    assert_eq!(worth.judge(|_| 1.0, now), Use::Wait);
    assert_eq!(worth.judge(gain, now), Use::Draft);
    assert_eq!(worth.judge(|_| 1.0, now), Use::Wait);
}

#[test]
fn drafts_are_waited_for_as_far_as_they_pay() {
    let cycle_s = |drafts: usize| 0.040 + 0.001 * drafts as f64;
    let depth = |chance, here, draft_s: f64| {
        best_depth(chance, 24, here, |missing| missing as f64 * draft_s, cycle_s).drafts
    };
    assert_eq!(depth(0.8, 0, 0.050), 0, "a draft takes longer than a step");
    assert_eq!(depth(0.8, 3, 0.050), 3, "those that are there are sent");
    assert!((3..=6).contains(&depth(0.8, 0, 0.004)), "{}", depth(0.8, 0, 0.004));
    assert!(depth(0.95, 0, 0.004) > depth(0.8, 0, 0.004));
    assert_eq!(depth(0.01, 24, 0.004), 0, "rows that are computed in vain");
}

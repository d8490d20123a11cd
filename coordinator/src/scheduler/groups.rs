//! Into how many groups decoding sequences are divided, each of which is a step on its way.
//!
//! With `S` sequences in `G` groups, every sequence gets a token once per cycle, and a cycle takes
//!
//! `cycle(G) = max(G * fixed + S * per_row of the slowest stage, sum over stages of t(ceil(S / G)) + wire)`
//!
//! The first is what the slowest stage computes in a cycle: one step per group; or what a machine does that several
//! stages crowd. Steps of few rows cost nearly as much as steps of many, so more
//! groups than needed cost throughput. The second is a step's own way round: with too few groups
//! stages wait for it. Over slow links more groups than stages pay, since a step on the wire keeps no stage busy.

use brigade_proto::step::StepKind;
pub(super) use brigade_shard::plan::pace::MOST_GROUPS;
use brigade_shard::plan::pace::groups_cost;

use super::times::Times;

/// Another number of groups must be better by this share: changing it tears groups apart, whose sequences then wait for
/// each other.
const WORTHWHILE: f64 = 0.04;
/// For as many decode steps as this another number must stay better while no sequence comes or goes: twice as many as
/// times are the mean of, so that their noise changes nothing.
const PATIENCE: u64 = 64;

/// The number of groups, as it is now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    count: usize,
    /// For how many sequences it was chosen.
    sequences: usize,
    /// Since which decode step another number has been better.
    doubted: Option<u64>,
}

impl Groups {
    /// A single group.
    pub(super) fn new() -> Groups {
        Groups::of(1)
    }

    fn of(count: usize) -> Groups {
        Groups { count, sequences: 0, doubted: None }
    }

    /// The number of groups for `sequences` sequences when `steps` decode steps have been sent, which changes only where
    /// that is worth it; at least 1, and at most [`MOST_GROUPS`] or one per sequence.
    pub(super) fn adapt(&mut self, times: &Times, sequences: usize, steps: u64) -> usize {
        let most = sequences.clamp(1, MOST_GROUPS);
        self.count = self.count.min(most);
        let cost = |count: usize| Groups::of(count).cost(times, sequences);
        let best = (1..=most).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1);
        if cost(best) >= cost(self.count) * (1.0 - WORTHWHILE) {
            self.doubted = None;
        } else if self.sequences != sequences || steps >= *self.doubted.get_or_insert(steps) + PATIENCE {
            *self = Groups::of(best);
        }
        self.sequences = sequences;
        self.count
    }

    /// Groups besides one.
    pub(super) fn others(&self) -> usize {
        self.count - 1
    }

    /// Most sequences in a step.
    pub(super) fn largest(&self, sequences: usize) -> usize {
        sequences.div_ceil(self.count)
    }

    /// Seconds from one token of a sequence to its next, with `sequences` of them.
    pub(super) fn cycle_s(&self, times: &Times, sequences: usize) -> f64 {
        self.busy_s(times, sequences).max(self.round_s(times, sequences))
    }

    /// The same while no prompt is computed beside it.
    pub(super) fn usual_cycle_s(&self, times: &Times, sequences: usize) -> f64 {
        self.cycle_s(times, sequences) / times.beside_prompts()
    }

    /// Seconds of a step's way through all stages and back, where nothing stands in its way.
    pub(super) fn round_s(&self, times: &Times, sequences: usize) -> f64 {
        times.sum_and_slowest(StepKind::Decode, self.largest(sequences) as f64).0 + times.wire_s()
    }

    /// Seconds from one token of a sequence to its next, where every group's step has `rows` rows.
    pub(super) fn cycle_of_rows_s(&self, times: &Times, rows: f64) -> f64 {
        let (sum_s, slowest_s) = times.sum_and_slowest(StepKind::Decode, rows);
        (self.count as f64 * slowest_s).max(sum_s + times.wire_s())
    }

    /// Seconds that the slowest stage computes in a cycle, and that a step's way takes through all stages, to the coordinator
    /// and back.
    pub(super) fn busy_and_far_round_s(&self, times: &Times, sequences: usize) -> (f64, f64) {
        let (stages_s, _) = times.sum_and_slowest(StepKind::Decode, self.largest(sequences) as f64);
        (self.busy_s(times, sequences), stages_s + times.far_wire_s())
    }

    /// Seconds that the slowest stage, or the most crowded machine, computes in a cycle.
    fn busy_s(&self, times: &Times, sequences: usize) -> f64 {
        let (groups, sequences) = (self.count as f64, sequences as f64);
        times
            .paced(times.lines(StepKind::Decode).map(|line| groups * line.fixed_s + sequences * line.row_s))
            .1
    }

    fn cost(&self, times: &Times, sequences: usize) -> f64 {
        groups_cost(self.cycle_s(times, sequences), self.busy_s(times, sequences))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use brigade_proto::step::StageTiming;
    use brigade_shard::plan::pace::{Crowd, Seat};

    use super::*;
    use crate::scheduler::times::{Observed, StagePrediction};

    /// Stages of which each takes `fixed_ms` and `row_ms` for each row, with `wire_ms` on all links together.
    fn times(stages: &[(f64, f64)], wire_ms: u64) -> Times {
        crowded_times(stages, Vec::new(), wire_ms)
    }

    fn crowded_times(stages: &[(f64, f64)], crowds: Vec<Crowd>, wire_ms: u64) -> Times {
        let predicted = |&(fixed_ms, row_ms): &(f64, f64)| StagePrediction {
            decode_s: (fixed_ms + row_ms) / 1e3,
            prefill_s_per_row: row_ms / 1e3,
        };
        let predicted: Vec<StagePrediction> = stages.iter().map(predicted).collect();
        let mut times = Times::crowded(&predicted, crowds, 128);
        let timing = |(stage, &(fixed_ms, row_ms)): (usize, &(f64, f64))| StageTiming {
            stage: stage as u32,
            computed_us: ((fixed_ms + row_ms) * 1e3) as u32,
            ..StageTiming::default()
        };
        let timings: Vec<StageTiming> = stages.iter().enumerate().map(timing).collect();
        let computed_us: u32 = timings.iter().map(|timing| timing.computed_us).sum();
        let took = Duration::from_micros(u64::from(computed_us)) + Duration::from_millis(wire_ms);
        let step = Observed { kind: StepKind::Decode, rows: 1, riding: 0, took, chained: false, quiet: true };
        times.observe(step, &timings);
        times
    }

    fn groups(stages: &[(f64, f64)], wire_ms: u64, sequences: usize) -> usize {
        Groups::new().adapt(&times(stages, wire_ms), sequences, 0)
    }

    #[test]
    fn there_are_as_many_groups_as_keep_the_slowest_stage_busy_and_no_more() {
        assert_eq!(groups(&[(10.0, 1.0)], 0, 8), 1, "one stage needs one");
        assert_eq!(groups(&[(10.0, 1.0); 2], 0, 8), 2);
        assert_eq!(groups(&[(10.0, 1.0); 4], 0, 16), 4);
        assert_eq!(
            groups(&[(30.0, 1.0), (5.0, 0.1)], 0, 16),
            1,
            "a second one would cost the slow stage 30 ms"
        );
        assert_eq!(groups(&[(10.0, 1.0); 3], 20, 16), 4, "one more on the wire");
        assert_eq!(groups(&[(10.0, 0.1); 2], 200, 64), 21, "many more over far links");
        assert_eq!(groups(&[(10.0, 0.1); 2], 2000, 500), MOST_GROUPS);
    }

    #[test]
    fn stages_that_crowd_their_machine_get_fewer_groups_than_stages() {
        let seat = |machine| Some(Seat { machine, share: 0.5 });
        let chosen = |machines: [u32; 3]| {
            let times = crowded_times(&[(10.0, 1.0); 3], Crowd::among(&machines.map(seat)), 0);
            Groups::new().adapt(&times, 12, 0)
        };
        assert_eq!(chosen([0, 1, 2]), 3, "three machines compute three steps at a time");
        assert_eq!(chosen([0, 0, 0]), 2, "two processors compute two");
    }

    #[test]
    fn there_are_never_more_groups_than_sequences() {
        for sequences in [0, 1, 2, 3] {
            let found = groups(&[(1.0, 1.0); 6], 1, sequences);
            assert_eq!(found, sequences.max(1), "{sequences} sequences");
        }
    }

    #[test]
    fn a_number_is_kept_until_another_is_clearly_better() {
        let near = times(&[(10.0, 1.0); 2], 0);
        let edge = times(&[(10.0, 1.0); 2], 9);
        let cost = |count| Groups::of(count).cost(&edge, 8);
        assert!(cost(3) < cost(2) && cost(2) < cost(3) * (1.0 + WORTHWHILE), "{} {}", cost(2), cost(3));
        let mut groups = Groups::of(2);
        assert_eq!(groups.adapt(&near, 8, 0), 2);
        assert_eq!(groups.adapt(&edge, 8, 1000), 2);
        assert_eq!(Groups::of(3).adapt(&edge, 8, 0), 3);
    }

    #[test]
    fn with_the_same_sequences_another_number_must_stay_better() {
        let (near, far) = (times(&[(10.0, 1.0); 2], 0), times(&[(10.0, 1.0); 2], 30));
        let mut groups = Groups::of(2);
        assert_eq!(groups.adapt(&near, 8, 0), 2);
        assert_eq!(groups.adapt(&far, 8, 10), 2);
        assert_eq!(groups.adapt(&near, 8, 40), 2, "it was noise");
        assert_eq!(groups.adapt(&far, 8, 60), 2);
        assert_eq!(groups.adapt(&far, 8, 60 + PATIENCE - 1), 2);
        assert_eq!(groups.adapt(&far, 8, 60 + PATIENCE), 4);
        assert_eq!(groups.adapt(&near, 9, 60 + PATIENCE), 2, "another sequence, another choice");
    }
}

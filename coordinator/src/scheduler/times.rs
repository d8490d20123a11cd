//! How long stages take for steps of different sizes, and how long steps are on links: predicted by the plan, corrected
//! by every step that comes home.
//!
//! A stage's time for `rows` rows is taken to be a fixed part, for reading its weights and passing the step on, and a
//! part per row: `t(rows) = fixed + per_row * rows`, apart for prefill and decode. The line goes through recent steps by
//! least squares of relative errors. Steps of a single size cannot tell the two parts apart, so the line is held, with
//! the weight of one step, to the predicted one scaled to what was measured.

use std::collections::VecDeque;
use std::time::Duration;

use brigade_proto::step::{StageTiming, StepKind};
use brigade_shard::plan::pace::Crowd;

/// By how much a step counts less with every one after it: the newest 32 or so decide, which is a second of decoding.
const FADE: f64 = 1.0 - 1.0 / 32.0;
/// A step counts as at most this many times as long, or as short, as expected. One that waited for a disk or for another
/// process moves little that way, and a lasting change is followed within some steps all the same.
const OUTLIER: f64 = 4.0;
/// What each of the two points counts by which the line is held to the prediction; a step counts 1.
const PREDICTION_WEIGHT: f64 = 0.5;
/// Rows of the larger decode step at which the line is held to the prediction; the other one has a single row.
const DECODE_ROWS: f64 = 16.0;
/// Rows of the decode step by which times with and without prompts are compared.
const QUIET_ROWS: f64 = 4.0;
/// By how much of the difference each step beside steps of the other kind moves what is taken for usual without them: where
/// there are always some, what was measured without them minutes ago says little.
const FORGETTING: f64 = 1.0 / 4096.0;
/// Steps whose time on links is remembered: enough for a steady median.
const WIRE_WINDOW: usize = 33;
/// The least time that anything is taken to cost, in seconds: keeps every quotient finite.
const LEAST_S: f64 = 1e-7;
/// The longest that a step is taken to last, in seconds.
const MOST_S: f64 = 3600.0;

/// What a plan predicts of one stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StagePrediction {
    /// Time to decode one token of one sequence, in seconds.
    pub decode_s: f64,
    /// Time per prompt token in full chunks, in seconds.
    pub prefill_s_per_row: f64,
}

impl StagePrediction {
    /// Seconds that a step of `rows` rows should take.
    pub fn seconds(&self, kind: StepKind, rows: u32) -> f64 {
        self.line(kind).at(f64::from(rows))
    }

    fn line(&self, kind: StepKind) -> Line {
        let row_s = seconds(self.prefill_s_per_row);
        let one_s = seconds(self.decode_s);
        // A step of one row costs its arithmetic, and on top of that what reading the weights takes, of which the
        // arithmetic of a chunk hides about half.
        let fixed_s = (one_s - row_s).max(LEAST_S);
        match kind {
            StepKind::Decode => Line { fixed_s, row_s: row_s.min(one_s) },
            StepKind::Prefill => Line { fixed_s: fixed_s / 2.0, row_s },
        }
    }
}

/// A stage's time over the rows of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    /// Seconds of any step.
    pub(super) fixed_s: f64,
    /// Seconds of each row.
    pub(super) row_s: f64,
}

impl Line {
    /// Seconds for a step of `rows` rows.
    pub(super) fn at(&self, rows: f64) -> f64 {
        self.fixed_s + self.row_s * rows
    }

    /// Moves towards what is measured now.
    fn follow(&mut self, now: &Line) {
        self.fixed_s += (now.fixed_s - self.fixed_s) * FORGETTING;
        self.row_s += (now.row_s - self.row_s) * FORGETTING;
    }

    fn scaled(&self, factor: f64) -> Line {
        Line { fixed_s: self.fixed_s * factor, row_s: self.row_s * factor }
    }
}

/// One stage's steps of one kind.
#[derive(Clone, Debug)]
struct Fit {
    predicted: Line,
    /// Rows at which the line is held to the prediction, besides one.
    far_rows: f64,
    line: Line,
    sums: Sums,
    /// Logarithm of how many times as long as predicted steps take, and the weight of what it is the mean of.
    scale_ln: (f64, f64),
}

/// Sums over points `(rows, seconds)` for a line through them by least squares, each point with its weight.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    weight: f64,
    rows: f64,
    rows_rows: f64,
    seconds: f64,
    rows_seconds: f64,
}

impl Sums {
    fn add(&mut self, weight: f64, rows: f64, seconds: f64) {
        self.weight += weight;
        self.rows += weight * rows;
        self.rows_rows += weight * rows * rows;
        self.seconds += weight * seconds;
        self.rows_seconds += weight * rows * seconds;
    }

    fn fade(&mut self) {
        for sum in
            [&mut self.weight, &mut self.rows, &mut self.rows_rows, &mut self.seconds, &mut self.rows_seconds]
        {
            *sum *= FADE;
        }
    }

    /// The best line without a negative part.
    fn line(&self) -> Line {
        let spread = self.weight * self.rows_rows - self.rows * self.rows;
        let row_s = (self.weight * self.rows_seconds - self.rows * self.seconds) / spread;
        let fixed_s = (self.seconds - row_s * self.rows) / self.weight;
        if row_s < 0.0 {
            Line { fixed_s: self.seconds / self.weight, row_s: 0.0 }
        } else if fixed_s < 0.0 {
            Line { fixed_s: 0.0, row_s: self.rows_seconds / self.rows_rows }
        } else {
            Line { fixed_s, row_s }
        }
    }
}

impl Fit {
    fn new(predicted: Line, far_rows: f64) -> Fit {
        // Two different places, or the line would not be determined.
        Fit {
            predicted,
            far_rows: far_rows.max(2.0),
            line: predicted,
            sums: Sums::default(),
            scale_ln: (0.0, 1.0),
        }
    }

    fn observe(&mut self, rows: f64, seconds: f64) {
        let expected = self.line.at(rows);
        let seconds = seconds.clamp(expected / OUTLIER, expected * OUTLIER);
        let predicted = self.predicted.at(rows);
        self.sums.fade();
        self.sums.add(relative(predicted), rows, seconds);
        let (mean, weight) = self.scale_ln;
        let weight = weight * FADE + 1.0;
        self.scale_ln = (mean + ((seconds / predicted).ln() - mean) / weight, weight);
        let held = self.predicted.scaled(self.scale_ln.0.exp());
        let mut sums = self.sums;
        for rows in [1.0, self.far_rows] {
            sums.add(PREDICTION_WEIGHT * relative(self.predicted.at(rows)), rows, held.at(rows));
        }
        self.line = sums.line();
    }
}

/// The weight that makes an error count by its share of `seconds`.
fn relative(seconds: f64) -> f64 {
    1.0 / (seconds * seconds)
}

#[derive(Clone, Debug)]
struct Stage {
    decode: Fit,
    prefill: Fit,
    /// Seconds of a prompt's row that rides with a decode step.
    riding_row_s: f64,
}

impl Stage {
    fn new(predicted: &StagePrediction, step_rows: u32) -> Stage {
        Stage {
            decode: Fit::new(predicted.line(StepKind::Decode), DECODE_ROWS.min(f64::from(step_rows))),
            prefill: Fit::new(predicted.line(StepKind::Prefill), f64::from(step_rows)),
            riding_row_s: predicted.line(StepKind::Prefill).row_s,
        }
    }

    /// Takes in a decode step of `rows` rows with which `riding` others rode. What these add is told by what the step would
    /// have taken without them. Where prompts ride with every step that was measured long ago, so it follows slowly.
    fn observe_riding(&mut self, rows: f64, riding: f64, seconds: f64) {
        let without_s = self.decode.line.at(rows);
        let slower = seconds / (without_s + riding * self.riding_row_s);
        let added_s = (seconds - without_s) / riding;
        let row_s = added_s.clamp(self.riding_row_s / OUTLIER, self.riding_row_s * OUTLIER).max(LEAST_S);
        self.riding_row_s += (row_s - self.riding_row_s) * (1.0 - FADE);
        let now = self.decode.line.scaled(slower.clamp(1.0 / OUTLIER, OUTLIER));
        self.decode.line.follow(&now);
    }

    fn fit(&self, kind: StepKind) -> &Fit {
        match kind {
            StepKind::Decode => &self.decode,
            StepKind::Prefill => &self.prefill,
        }
    }
}

/// A time that can be reckoned with, whatever a prediction says.
fn seconds(value: f64) -> f64 {
    if value.is_nan() { LEAST_S } else { value.clamp(LEAST_S, MOST_S) }
}

/// What the newest decode steps took besides waiting and computing on stages, in seconds.
#[derive(Clone, Debug, Default)]
struct Wire {
    newest: VecDeque<f64>,
    median_s: Option<f64>,
}

impl Wire {
    fn observe(&mut self, wire_s: f64) {
        if self.newest.len() == WIRE_WINDOW {
            self.newest.pop_front();
        }
        self.newest.push_back(wire_s);
        let mut sorted: Vec<f64> = self.newest.iter().copied().collect();
        let middle = sorted.len() / 2;
        self.median_s = Some(*sorted.select_nth_unstable_by(middle, f64::total_cmp).1);
    }
}

/// A step that has come home.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observed {
    pub(super) kind: StepKind,
    pub(super) rows: u32,
    /// Those of them that are of prompts, where it is a decode step.
    pub(super) riding: u32,
    /// Since it was sent or, where it waited for another one's tokens on the first stage, since that one came home.
    pub(super) took: Duration,
    /// Whether it waited for another one's tokens.
    pub(super) chained: bool,
    /// Whether no step of the other kind was under way.
    pub(super) quiet: bool,
}

/// The times of a pipeline.
#[derive(Clone, Debug)]
pub(super) struct Times {
    stages: Vec<Stage>,
    crowds: Vec<Crowd>,
    /// From the coordinator and back to it.
    far: Wire,
    /// Around the stages alone.
    short: Wire,
    short_way: bool,
    /// Seconds that a decode step of [`QUIET_ROWS`] took on all stages together when last no prompt was under way.
    quiet_s: Option<f64>,
    /// Each stage's line for prompts when last nothing was decoded beside them; empty before that was ever so.
    quiet_prefill: Vec<Line>,
}

impl Times {
    /// What a plan predicts; `step_rows` are the most rows of a step.
    pub(super) fn new(predicted: &[StagePrediction], step_rows: u32) -> Times {
        Times::crowded(predicted, Vec::new(), step_rows)
    }

    /// The same of stages some of which crowd their machines.
    pub(super) fn crowded(predicted: &[StagePrediction], crowds: Vec<Crowd>, step_rows: u32) -> Times {
        let stages = predicted.iter().map(|stage| Stage::new(stage, step_rows)).collect();
        let (far, short) = (Wire::default(), Wire::default());
        Times { stages, crowds, far, short, short_way: false, quiet_s: None, quiet_prefill: Vec::new() }
    }

    /// Takes in a step that has come home. What does not name this pipeline's stages in order is not learnt from.
    pub(super) fn observe(&mut self, step: Observed, timings: &[StageTiming]) {
        let Observed { kind, rows, riding, took, chained, quiet } = step;
        let ordered = timings.iter().enumerate().all(|(place, timing)| timing.stage as usize == place);
        if rows == 0 || timings.len() != self.stages.len() || !ordered {
            return;
        }
        let computed_s = |timing: &StageTiming| seconds(f64::from(timing.computed_us) * 1e-6);
        if riding > 0 {
            for (stage, timing) in self.stages.iter_mut().zip(timings) {
                stage.observe_riding(f64::from(rows - riding), f64::from(riding), computed_s(timing));
            }
            return;
        }
        for (stage, timing) in self.stages.iter_mut().zip(timings) {
            let fit = match kind {
                StepKind::Decode => &mut stage.decode,
                StepKind::Prefill => &mut stage.prefill,
            };
            fit.observe(f64::from(rows), computed_s(timing));
        }
        if kind == StepKind::Prefill {
            let now: Vec<Line> = self.lines(StepKind::Prefill).copied().collect();
            if quiet {
                self.quiet_prefill = now;
            } else {
                self.quiet_prefill.iter_mut().zip(&now).for_each(|(before, now)| before.follow(now));
            }
        }
        if kind == StepKind::Decode {
            let on_stages: u64 = timings
                .iter()
                .map(|timing| u64::from(timing.queued_us) + u64::from(timing.computed_us))
                .sum();
            let wire_s = took.saturating_sub(Duration::from_micros(on_stages)).as_secs_f64();
            if chained {
                self.short.observe(wire_s)
            } else {
                self.far.observe(wire_s)
            }
            let now_s = self.sum_and_slowest(StepKind::Decode, QUIET_ROWS).0;
            self.quiet_s = match self.quiet_s.filter(|_| !quiet) {
                None => Some(now_s),
                Some(quiet_s) => Some(quiet_s + (now_s - quiet_s) * FORGETTING),
            };
        }
    }

    /// The longest that a step of `rows` rows should take through all stages.
    pub(super) fn slowest_step(&self, rows: u32) -> Duration {
        let (round_s, _) = self.sum_and_slowest(StepKind::Prefill, f64::from(rows));
        // A prediction beyond any sense is no reason to wait for ever.
        Duration::from_secs_f64(round_s.min(MOST_S))
    }

    /// Each stage's line.
    pub(super) fn lines(&self, kind: StepKind) -> impl Iterator<Item = &Line> + Clone {
        self.stages.iter().map(move |stage| &stage.fit(kind).line)
    }

    /// Seconds of a step of `rows` rows on all stages together, and on the slowest one or the most crowded machine.
    pub(super) fn sum_and_slowest(&self, kind: StepKind, rows: f64) -> (f64, f64) {
        self.paced(self.lines(kind).map(|line| line.at(rows)))
    }

    /// The sum of what stages take, and the pace that the slowest of them, or the most crowded machine, sets.
    pub(super) fn paced(&self, each_s: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
        let of_stage = |stage: usize| each_s.clone().nth(stage).unwrap_or_default();
        let crowds = self.crowds.iter().map(|crowd| crowd.busy_s(of_stage));
        let slowest_s = each_s.clone().chain(crowds).fold(0.0, f64::max);
        (each_s.sum(), slowest_s)
    }

    /// Seconds of a decode step of `rows` rows with which `riding` rows of prompts ride, on all stages together and on the
    /// slowest one.
    pub(super) fn riding(&self, rows: f64, riding: f64) -> (f64, f64) {
        self.paced(self.stages.iter().map(|stage| stage.decode.line.at(rows) + riding * stage.riding_row_s))
    }

    /// Seconds of a prompt's chunk of `rows` rows on all stages together, and on the slowest one, with nothing decoded beside
    /// it: stages on one machine share its memory.
    pub(super) fn prefill_alone(&self, rows: f64) -> (f64, f64) {
        if self.quiet_prefill.is_empty() {
            return self.sum_and_slowest(StepKind::Prefill, rows);
        }
        self.paced(self.quiet_prefill.iter().map(|line| line.at(rows)))
    }

    /// How many times as long as usually decode steps take at the moment, because prompts are computed beside them: stages
    /// on one machine share its memory. At least 1.
    pub(super) fn beside_prompts(&self) -> f64 {
        let now_s = self.sum_and_slowest(StepKind::Decode, QUIET_ROWS).0;
        self.quiet_s.map_or(1.0, |quiet_s| (now_s / quiet_s).clamp(1.0, OUTLIER))
    }

    /// Seconds that a decode step spends on links from one token of a sequence to its next: from the coordinator and back to
    /// it or, where steps are sent ahead, around the stages alone; 0 before any was measured.
    pub(super) fn wire_s(&self) -> f64 {
        let short_s = self.short.median_s.filter(|_| self.short_way);
        short_s.unwrap_or_else(|| self.far_wire_s())
    }

    /// Seconds that a decode step spends on links from the coordinator and back to it; 0 before one was measured.
    pub(super) fn far_wire_s(&self) -> f64 {
        self.far.median_s.unwrap_or_default()
    }

    /// Takes it that steps are sent ahead of their tokens, or are not.
    pub(super) fn take_short_way(&mut self, taken: bool) {
        self.short_way = taken;
    }

    /// Whether they are.
    pub(super) fn short_way(&self) -> bool {
        self.short_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_random::Random;

    /// One stage, predicted to take 10 ms for a token and 2 ms for each row of a prompt.
    fn times() -> Times {
        Times::new(&[StagePrediction { decode_s: 0.010, prefill_s_per_row: 0.002 }], 128)
    }

    fn timing(stage: u32, computed_s: f64) -> StageTiming {
        StageTiming { stage, computed_us: (computed_s * 1e6) as u32, ..StageTiming::default() }
    }

    fn step(kind: StepKind, rows: u32, took: Duration) -> Observed {
        Observed { kind, rows, riding: 0, took, chained: false, quiet: true }
    }

    fn observe(times: &mut Times, kind: StepKind, rows: u32, computed_s: f64) {
        times.observe(step(kind, rows, Duration::from_secs_f64(computed_s)), &[timing(0, computed_s)]);
    }

    #[track_caller]
    fn assert_near(found: f64, wanted: f64, share: f64) {
        assert!((found - wanted).abs() <= share * wanted, "{found} instead of {wanted}");
    }

    fn decode_s(times: &Times, rows: f64) -> f64 {
        times.sum_and_slowest(StepKind::Decode, rows).1
    }

    #[test]
    fn before_the_first_step_the_prediction_holds() {
        let times = times();
        assert_near(decode_s(&times, 1.0), 0.010, 1e-9);
        assert_near(decode_s(&times, 5.0), 0.018, 1e-9);
        assert_near(times.sum_and_slowest(StepKind::Prefill, 128.0).1, 0.260, 1e-9);
        assert_eq!(times.wire_s(), 0.0);
    }

    #[test]
    fn what_riding_rows_add_is_learnt_apart_from_what_decoding_takes() {
        let mut times = times();
        for _ in 0..200 {
            observe(&mut times, StepKind::Decode, 4, 0.016);
            // Twelve rows of a prompt, of 3 ms each: half as much again as predicted.
            let step = Observed { riding: 12, ..step(StepKind::Decode, 16, Duration::from_millis(52)) };
            times.observe(step, &[timing(0, 0.052)]);
        }
        assert_near(decode_s(&times, 4.0), 0.016, 0.05);
        assert_near(times.riding(4.0, 12.0).1, 0.052, 0.05);
        assert_near(times.riding(4.0, 4.0).1, 0.028, 0.05);
    }

    #[test]
    fn steps_of_one_size_scale_the_prediction_and_keep_its_shape() {
        for factor in [0.02, 0.5, 3.0, 50.0] {
            let mut times = times();
            for _ in 0..100 {
                observe(&mut times, StepKind::Decode, 4, 0.016 * factor);
            }
            assert_near(decode_s(&times, 4.0), 0.016 * factor, 0.1);
            assert_near(decode_s(&times, 1.0), 0.010 * factor, 0.1);
            assert_near(decode_s(&times, 16.0), 0.040 * factor, 0.1);
        }
    }

    #[test]
    fn steps_of_different_sizes_show_both_parts_whatever_was_predicted() {
        let mut random = Random::new(1);
        let mut times = times();
        for _ in 0..300 {
            let rows = 1 + random.below(16) as u32;
            let noise = 0.95 + 0.001 * random.below(100) as f64;
            observe(&mut times, StepKind::Decode, rows, (0.030 + 0.0005 * f64::from(rows)) * noise);
        }
        let line = *times.lines(StepKind::Decode).next().unwrap();
        assert_near(line.fixed_s, 0.030, 0.1);
        assert_near(line.at(16.0), 0.038, 0.1);
    }

    #[test]
    fn a_lasting_change_is_followed_and_a_single_hiccup_is_not() {
        let mut times = times();
        for _ in 0..100 {
            observe(&mut times, StepKind::Decode, 4, 0.016);
        }
        observe(&mut times, StepKind::Decode, 4, 5.0);
        assert_near(decode_s(&times, 4.0), 0.016, 0.15);
        for _ in 0..100 {
            observe(&mut times, StepKind::Decode, 4, 0.160);
        }
        assert_near(decode_s(&times, 4.0), 0.160, 0.1);
    }

    #[test]
    fn what_no_stage_accounts_for_is_on_the_wire() {
        let prediction = StagePrediction { decode_s: 0.010, prefill_s_per_row: 0.002 };
        let mut times = Times::new(&[prediction; 2], 128);
        for took_ms in [40, 41, 42, 500, 42] {
            let second = StageTiming { queued_us: 10_000, ..timing(1, 0.005) };
            let timings = [timing(0, 0.005), second];
            times.observe(step(StepKind::Decode, 2, Duration::from_millis(took_ms)), &timings);
        }
        assert_near(times.wire_s(), 0.022, 1e-6);
    }

    #[test]
    fn the_short_way_is_measured_apart() {
        let mut times = times();
        let took = |ms: u64| step(StepKind::Decode, 1, Duration::from_millis(ms));
        times.observe(took(50), &[timing(0, 0.010)]);
        times.take_short_way(true);
        assert_near(times.wire_s(), 0.040, 1e-6);
        times.observe(Observed { chained: true, ..took(11) }, &[timing(0, 0.010)]);
        assert_near(times.wire_s(), 0.001, 1e-6);
        assert_near(times.far_wire_s(), 0.040, 1e-6);
        times.take_short_way(false);
        assert_near(times.wire_s(), 0.040, 1e-6);
    }

    #[test]
    fn what_prompts_cost_decode_steps_is_not_taken_for_usual() {
        let mut times = times();
        let mut observe = |computed_s: f64, quiet: bool| {
            for _ in 0..200 {
                let took = Duration::from_secs_f64(computed_s);
                times
                    .observe(Observed { quiet, ..step(StepKind::Decode, 4, took) }, &[timing(0, computed_s)]);
            }
            times.beside_prompts()
        };
        assert_near(observe(0.016, true), 1.0, 1e-9);
        assert_near(observe(0.024, false), 1.5, 0.1);
        assert_near(observe(0.024, true), 1.0, 1e-9);
    }

    #[test]
    fn what_decoding_costs_prompts_is_not_taken_for_what_they_take_alone() {
        let mut times = times();
        let mut observe = |factor: f64, quiet: bool| {
            for rows in [8, 64].into_iter().cycle().take(200) {
                let computed_s = (0.005 + 0.002 * f64::from(rows)) * factor;
                let took = Duration::from_secs_f64(computed_s);
                let step = Observed { quiet, ..step(StepKind::Prefill, rows, took) };
                times.observe(step, &[timing(0, computed_s)]);
            }
            (times.prefill_alone(64.0).1, times.sum_and_slowest(StepKind::Prefill, 64.0).1)
        };
        let (alone_s, now_s) = observe(1.0, true);
        assert_near(alone_s, 0.133, 0.05);
        assert_near(now_s, 0.133, 0.05);
        let (alone_s, now_s) = observe(1.5, false);
        assert_near(alone_s, 0.133, 0.1);
        assert_near(now_s, 0.200, 0.05);
        assert_near(observe(1.5, true).0, 0.200, 0.05);
    }

    #[test]
    fn timings_of_other_stages_teach_nothing_and_no_number_is_too_odd() {
        let mut times = times();
        let before = decode_s(&times, 3.0);
        let odd: [&[StageTiming]; 3] = [&[], &[timing(1, 9.0)], &[timing(0, 9.0), timing(1, 9.0)]];
        for timings in odd {
            times.observe(step(StepKind::Decode, 3, Duration::from_secs(9)), timings);
        }
        assert_near(decode_s(&times, 3.0), before, 1e-9);
        for prediction in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            let stage = StagePrediction { decode_s: prediction, prefill_s_per_row: prediction };
            let mut times = Times::new(&[stage], 1);
            for computed_us in [0, u32::MAX, 1] {
                let timings = [StageTiming { computed_us, ..StageTiming::default() }];
                times.observe(step(StepKind::Decode, 1, Duration::ZERO), &timings);
                let line = times.lines(StepKind::Decode).next().unwrap();
                assert!(line.at(1.0).is_finite() && line.at(1.0) > 0.0, "{prediction}: {line:?}");
            }
        }
    }
}

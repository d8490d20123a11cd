//! How long a stage takes for its steps, compared with what it took when it began to serve, and with what was predicted.
//!
//! What a step should take depends on its rows and, by attention, on how much its sequences have in the cache, so each kind,
//! number of rows and length of context has its own usual time, as a multiple of what is predicted for such rows. It is
//! learnt from the first steps; what comes up later is not believed to be much slower than what is known, or a stage that
//! is slow by then would pass for usual.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use brigade_proto::step::StepKind;

use crate::recent::Readings;
use crate::scheduler::StagePrediction;

/// Steps from which it is learnt what is usual: enough for a mean, and some tenths of a second of most pipelines.
const LEARNT: u32 = 16;
/// The first steps of a stage are not learnt from: its weights and cache are touched for the first time.
const WARM_UP: u32 = 2;
/// How many times as slow as the nearest class that is known another may be, compared with what is predicted: the
/// prediction knows its shape roughly, and attention takes at most as many times as long as the context is longer.
const SHAPE: f64 = 1.5;
/// A step counts as at most this many times as long as usual: one hiccup is no pace.
const OUTLIER: f64 = 8.0;
/// While it is learnt what is usual, a step counts as at most this many times as long as those before it.
const OUTLIER_LEARNING: f64 = 3.0;
/// Paces are of so much time at least, and of [`LEAST_STEPS`] at least.
const SPAN: Duration = Duration::from_secs(2);
/// Steps of a pace.
const LEAST_STEPS: u64 = 3;
/// Steps longer ago than this say nothing of now.
const LONGEST_SPAN: Duration = Duration::from_secs(10);
/// Up to here each number of rows is a class of its own; above, so are those up to the next power of two.
const SINGLE_ROWS: u32 = 8;
/// Up to here attention is taken to cost nothing that is worth a class, in tokens; above, each is 1.4 times as long as the
/// one before.
const SHORT_CONTEXT: u32 = 128;
/// Classes of contexts for each doubling.
const CONTEXTS_A_DOUBLING: f64 = 2.0;

/// A stage's steps under one plan.
#[derive(Clone, Debug)]
pub struct Pace {
    predicted: StagePrediction,
    usual: HashMap<Class, Usual>,
    sums: Sums,
    readings: Readings<Sums>,
}

/// Steps that should take about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Class {
    kind: StepKind,
    /// Or the next power of two.
    rows: u32,
    context: u32,
}

impl Class {
    fn of(kind: StepKind, rows: u32, context: u32) -> Class {
        let longer = f64::from(context.max(SHORT_CONTEXT)) / f64::from(SHORT_CONTEXT);
        Class {
            kind,
            rows: if rows <= SINGLE_ROWS { rows } else { rows.next_power_of_two() },
            context: (longer.log2() * CONTEXTS_A_DOUBLING).ceil() as u32,
        }
    }

    /// How different another of the same kind is: its rows before all.
    fn distance(&self, other: &Class) -> (u32, u32, u32, u32) {
        (self.rows.abs_diff(other.rows), self.context.abs_diff(other.context), other.rows, other.context)
    }
}

/// How many times as long as predicted the first steps of a class took.
#[derive(Clone, Copy, Debug, Default)]
struct Usual {
    seen: u32,
    learnt: u32,
    sum: f64,
}

impl Usual {
    fn mean(&self) -> Option<f64> {
        (self.learnt > 0).then(|| self.sum / f64::from(self.learnt))
    }

    fn is_settled(&self) -> bool {
        self.learnt >= LEARNT
    }
}

/// Sums over steps, in seconds; they only grow.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    steps: u64,
    computed_s: f64,
    usual_s: f64,
    predicted_s: f64,
}

/// How a stage's steps went lately.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recent {
    /// How many times as long as usual they took.
    pub than_usual: f64,
    /// How many times as long as predicted.
    pub than_predicted: f64,
    /// What a step took, in seconds.
    pub step_s: f64,
    /// What it usually takes.
    pub usual_s: f64,
}

impl Pace {
    /// A stage that begins to serve.
    pub fn new(predicted: StagePrediction) -> Pace {
        Pace { predicted, usual: HashMap::new(), sums: Sums::default(), readings: Readings::default() }
    }

    /// Takes in a step of `rows` rows that was computed here, whose sequences have `context` tokens in the cache.
    pub fn add(&mut self, kind: StepKind, rows: u32, context: u32, computed_s: f64) {
        let class = Class::of(kind, rows, context);
        let predicted_s = self.predicted.seconds(kind, rows);
        let ratio = computed_s / predicted_s;
        let settled = self.usual.get(&class).is_some_and(Usual::is_settled);
        let most = if settled { None } else { self.nearest(class).map(|known| known * SHAPE) };
        let usual = self.usual.entry(class).or_default();
        usual.seen = usual.seen.saturating_add(1);
        let expected = if settled { usual.mean() } else { most };
        if !settled && (most.is_some() || usual.seen > WARM_UP) {
            let sane = usual.mean().map_or(ratio, |mean| ratio.min(mean * OUTLIER_LEARNING));
            usual.sum += most.map_or(sane, |most| sane.min(most));
            usual.learnt += 1;
        }
        if let Some(expected) = expected {
            let usual_s = expected * predicted_s;
            self.sums.steps += 1;
            self.sums.computed_s += computed_s.min(usual_s * OUTLIER);
            self.sums.usual_s += usual_s;
            self.sums.predicted_s += predicted_s;
        }
    }

    /// What is usual for the class of the same kind that is next to this one, of those that are known.
    fn nearest(&self, class: Class) -> Option<f64> {
        let is_known =
            |other: &Class, usual: &Usual| other.kind == class.kind && *other != class && usual.is_settled();
        let known = self.usual.iter().filter(|(other, usual)| is_known(other, usual));
        known.min_by_key(|(other, _)| class.distance(other)).and_then(|(_, usual)| usual.mean())
    }

    /// Reads the sums, so that later it is known what they were. To be called now and then.
    pub fn read(&mut self, now: Instant) {
        self.readings.read(self.sums, now);
    }

    /// How steps went lately; `None` where there were none, or it is not known yet what is usual.
    pub fn recent(&self, now: Instant) -> Option<Recent> {
        let enough =
            |(age, before): &(Duration, &Sums)| *age >= SPAN && self.sums.steps >= before.steps + LEAST_STEPS;
        let (_, before) =
            self.readings.back_from(now).take_while(|(age, _)| *age <= LONGEST_SPAN).find(enough)?;
        let sums = &self.sums;
        let (computed_s, usual_s) = (sums.computed_s - before.computed_s, sums.usual_s - before.usual_s);
        let steps = (sums.steps - before.steps) as f64;
        Some(Recent {
            than_usual: computed_s / usual_s,
            than_predicted: computed_s / (sums.predicted_s - before.predicted_s),
            step_s: computed_s / steps,
            usual_s: usual_s / steps,
        })
    }
}

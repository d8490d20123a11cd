//! What every stage that a device could hold would take, looked up millions of times.

use super::offload::{Suffix, overlapped_s};
use super::search::Search;
use crate::cost::Room;
use crate::layers::LayerRange;

/// By what partitions are compared: first by the layers that are read again for every step, then by time.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Value {
    /// Streamed layers of all stages.
    pub(super) streamed: u32,
    /// Seconds, by the [`Measure`].
    pub(super) seconds: f64,
}

impl Value {
    pub(super) const ZERO: Value = Value { streamed: 0, seconds: 0.0 };

    pub(super) fn of(seconds: f64) -> Value {
        Value { streamed: 0, seconds }
    }

    /// Whether it is less than another by more than rounding.
    pub(super) fn beats(self, other: Value) -> bool {
        self.streamed < other.streamed
            || (self.streamed == other.streamed && self.seconds < other.seconds * (1.0 - 1e-12))
    }
}

/// What the time of a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Of one step from the coordinator through all stages and back: all of them added up.
    Round,
    /// Of the slowest stage, link or machine, behind which steps of many streams queue.
    Cycle,
}

impl Measure {
    /// The value of two parts together.
    pub(super) fn join(self, one: Value, other: Value) -> Value {
        let seconds = match self {
            Measure::Round => one.seconds + other.seconds,
            Measure::Cycle => one.seconds.max(other.seconds),
        };
        Value { streamed: one.streamed + other.streamed, seconds }
    }
}

/// The stages that devices could hold.
pub(super) struct Table {
    layers: usize,
    /// For every device, which of `classes` it is of: equal devices share what is computed.
    class: Vec<usize>,
    classes: Vec<Class>,
}

struct Class {
    /// By start and end; infinite where it does not hold the range.
    seconds: Vec<f64>,
    /// By start and end; empty where nothing may be streamed.
    streamed: Vec<u32>,
    /// By start, the furthest end that it holds; the start where it holds nothing from there.
    furthest: Vec<usize>,
}

/// How times of a [`Table`] are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kind {
    /// Whether devices may hold more than fits them by reading it again for every step.
    pub(super) streaming: bool,
    /// Whether devices of one machine are as slow as when all of these devices compute at the same time.
    pub(super) crowded: bool,
}

impl Table {
    /// The stages that fit with `room`, with their times for steps of `rows` rows.
    pub(super) fn new(search: &Search<'_>, room: &Room, rows: u32, kind: Kind) -> Table {
        let devices = search.budgets().len();
        let mut class = Vec::with_capacity(devices);
        let mut firsts: Vec<usize> = Vec::new();
        for device in 0..devices {
            let known = firsts.iter().position(|first| search.are_equal(*first, device));
            class.push(known.unwrap_or(firsts.len()));
            if known.is_none() {
                firsts.push(device);
            }
        }
        let classes = firsts.iter().map(|device| Class::of(search, *device, room, rows, kind)).collect();
        Table { layers: search.layers(), class, classes }
    }

    pub(super) fn layers(&self) -> usize {
        self.layers
    }

    pub(super) fn devices(&self) -> usize {
        self.class.len()
    }

    /// One device of every class.
    pub(super) fn different(&self) -> impl Iterator<Item = usize> {
        (0..self.classes.len()).filter_map(|class| self.class.iter().position(|of| *of == class))
    }

    pub(super) fn are_equal(&self, one: usize, other: usize) -> bool {
        self.class[one] == self.class[other]
    }

    /// What a stage takes; infinitely long where the device does not hold it.
    pub(super) fn value(&self, device: usize, start: usize, end: usize) -> Value {
        let class = &self.classes[self.class[device]];
        let at = start * (self.layers + 1) + end;
        Value { streamed: class.streamed.get(at).copied().unwrap_or(0), seconds: class.seconds[at] }
    }

    /// The furthest end of a stage from `start` that a device holds.
    pub(super) fn furthest(&self, device: usize, start: usize) -> usize {
        self.classes[self.class[device]].furthest[start]
    }
}

impl Class {
    fn of(search: &Search<'_>, device: usize, room: &Room, rows: u32, kind: Kind) -> Class {
        let layers = search.layers();
        let bound = search.bound(room, f64::INFINITY, rows);
        let size = layers * (layers + 1);
        let mut class = Class {
            seconds: vec![f64::INFINITY; size],
            streamed: if kind.streaming { vec![0; size] } else { Vec::new() },
            furthest: (0..layers).collect(),
        };
        if kind.streaming {
            for end in 1..=layers {
                let mut suffix = Suffix::before(end);
                for start in (0..end).rev() {
                    let range = LayerRange { start, end };
                    if !search.can_compute(device, range) {
                        break;
                    }
                    if let Some(streamed) = search.least_streamed(device, start, &mut suffix, &bound) {
                        let streaming_s = search.streaming_s(device, range, streamed);
                        let stage_s = overlapped_s(search.stage_s(device, range, rows), streaming_s);
                        class.set(range, stage_s, layers);
                        class.streamed[start * (layers + 1) + end] = streamed as u32;
                    }
                }
            }
            return class;
        }
        for start in 0..layers {
            let ranges = (start + 1..=layers).map(|end| LayerRange { start, end });
            for range in ranges.take_while(|range| search.holds(device, *range, bound)) {
                let crowded_s = if kind.crowded { search.crowded_s(device, range) } else { 0.0 };
                class.set(range, search.stage_s(device, range, rows).max(crowded_s), layers);
            }
        }
        class
    }

    fn set(&mut self, range: LayerRange, seconds: f64, layers: usize) {
        self.seconds[range.start * (layers + 1) + range.end] = seconds;
        self.furthest[range.start] = self.furthest[range.start].max(range.end);
    }
}

//! The best of all partitions: over all sets and orders of a few devices, and all cuts between them.
//!
//! A label says that the devices of a set, with a certain one last, can hold the first so many layers, at what value. Of
//! two labels that agree in all that matters for what may follow, the better one is followed. Where machines are shared,
//! what each of them has to do so far matters too, and several labels stay that are each better in something. A label is
//! dropped where even the best imaginable rest, in which every device may hold several stages, would not beat the best
//! partition known so far.

use super::course::Course;
use super::search::Partition;
use super::table::{Measure, Value};
use crate::layers::LayerRange;

/// Most stages that are looked at and labels that are compared where machines are shared, a few hundredths of a second's
/// work: there labels are many, since each may be better in something.
const MOST_LOOKS: usize = 3_000_000;
/// Values that say how busy the shared machines are: memory and processors of up to four, since each has two devices.
pub(super) const LOADS: usize = 8;

/// How some devices can hold the first layers.
#[derive(Clone, Copy)]
struct Label<const N: usize> {
    value: Value,
    /// Seconds for which memory and processors of the shared machines are busy.
    loads: [f64; N],
    /// Its place among [`Steps`].
    step: u32,
}

/// A stage behind those of another label.
struct Step {
    before: u32,
    device: u8,
    end: u16,
}

const START: u32 = u32::MAX;

/// What a search came to.
pub(super) struct Outcome {
    /// The best partition that is known, with its value.
    pub(super) best: Option<(Partition, Value)>,
    /// Whether there is surely no better one.
    pub(super) exact: bool,
}

impl Course<'_> {
    /// The best partition over at most [`super::search::EXACT_DEVICES`] devices, given one that is known already.
    pub(super) fn best(&self, known: Option<(Partition, Value)>) -> Outcome {
        let shared = self.measure == Measure::Cycle && !self.search.sharing().hosts.is_empty();
        if shared { self.best_of::<LOADS>(known) } else { self.best_of::<0>(known) }
    }

    fn best_of<const N: usize>(&self, known: Option<(Partition, Value)>) -> Outcome {
        let rest = self.least_rest();
        let mut outcome = Outcome { best: known, exact: true };
        let mut looks = if N > 0 { MOST_LOOKS } else { usize::MAX };
        let apart =
            self.measure == Measure::Round && !(self.crossings().same && self.crossings().same_ends());
        if !apart {
            self.best_from::<N>(&rest, None, &mut outcome, &mut looks);
        }
        // Where it matters, who is first is kept fixed, since the last one's way back depends on it.
        for first in (0..self.table.devices()).filter(|_| apart) {
            self.best_from::<N>(&rest, Some(first), &mut outcome, &mut looks);
        }
        outcome
    }

    /// Looks for a better partition than the one that is known, of those that begin with a certain device.
    fn best_from<const N: usize>(
        &self,
        rest: &[Vec<Value>],
        first: Option<usize>,
        outcome: &mut Outcome,
        looks: &mut usize,
    ) {
        let (devices, layers) = (self.table.devices(), self.table.layers());
        let same = self.crossings().same;
        let lasts = if same { 1 } else { devices };
        let place = |set: usize, last: usize, end: usize| {
            (set * lasts + if same { 0 } else { last }) * (layers + 1) + end
        };
        let mut labels: Vec<Vec<Label<N>>> = vec![Vec::new(); (1 << devices) * lasts * (layers + 1)];
        let mut steps: Vec<Step> = Vec::new();
        labels[place(0, 0, 0)].push(Label { value: Value::ZERO, loads: [0.0; N], step: START });
        for set in 0..1usize << devices {
            let index = set.count_ones() as usize;
            if index >= self.stages {
                continue;
            }
            let after = self.stages - index - 1;
            let ways = (0..lasts).flat_map(|last| (0..layers).map(move |start| (last, start)));
            for (last, start) in ways {
                for label in std::mem::take(&mut labels[place(set, last, start)]) {
                    let may_be = |device: &usize| index > 0 || first.is_none_or(|first| first == *device);
                    for device in self.free(set, first.is_some()).filter(may_be) {
                        let hop = match label.step {
                            START => Some(Value::ZERO),
                            step => self.hop(usize::from(steps[step as usize].device), device),
                        };
                        let Some(hop) = hop else { continue };
                        let before = self.measure.join(label.value, hop);
                        *looks = looks.saturating_sub(self.table.furthest(device, start) - start);
                        if *looks == 0 {
                            outcome.exact = false;
                            return;
                        }
                        for end in self.stage_ends(index, start, self.table.furthest(device, start)) {
                            let Some(stage) = self.stage(device, start, end) else { continue };
                            let loads = self.loads(label.loads, device, LayerRange { start, end });
                            let mut value = self.measure.join(before, stage);
                            value.seconds = loads.iter().copied().fold(value.seconds, f64::max);
                            let reached = match (after, first) {
                                (0, Some(first)) => self.ends(first, device),
                                _ => rest[after][end],
                            };
                            let hoped = self.measure.join(value, reached);
                            if outcome.best.as_ref().is_some_and(|(_, least)| !hoped.beats(*least)) {
                                continue;
                            }
                            let step = Step { before: label.step, device: device as u8, end: end as u16 };
                            if after == 0 {
                                outcome.best = Some((self.traced(&steps, step), hoped));
                                continue;
                            }
                            let there = &mut labels[place(set | 1 << device, device, end)];
                            *looks = looks.saturating_sub(there.len());
                            if there.iter().any(|other| other.is_as_good_as(value, &loads)) {
                                continue;
                            }
                            there.retain(|other| !(value <= other.value && no_more(&loads, &other.loads)));
                            there.push(Label { value, loads, step: steps.len() as u32 });
                            steps.push(step);
                        }
                    }
                }
            }
        }
    }

    /// The devices not in `set`; of equal ones the first, unless it matters whose neighbour one is.
    fn free(&self, set: usize, all: bool) -> impl Iterator<Item = usize> {
        let free = move |device: &usize| set & (1 << device) == 0;
        let alike = self.crossings().same && !all;
        (0..self.table.devices()).filter(free).filter(move |device| {
            !alike || !(0..*device).filter(free).any(|other| self.table.are_equal(other, *device))
        })
    }

    /// How busy shared machines are with one more stage.
    fn loads<const N: usize>(&self, mut loads: [f64; N], device: usize, range: LayerRange) -> [f64; N] {
        if N == 0 {
            return loads;
        }
        if let Some((host, seconds)) = self.search.host_s(device, range, self.rows) {
            for (load, more) in loads.iter_mut().skip(2 * host).zip(seconds) {
                *load += more;
            }
        }
        loads
    }

    /// By the number of stages and the first layer, a value that no rest takes less than: the best where devices may
    /// hold several stages, and all hops are the shortest.
    fn least_rest(&self) -> Vec<Vec<Value>> {
        let layers = self.table.layers();
        let never = Value { streamed: u32::MAX / 2, seconds: f64::INFINITY };
        let less = |one: Value, other: Value| if other < one { other } else { one };
        let mut stage = vec![never; layers * (layers + 1)];
        for device in self.table.different() {
            for start in 0..layers {
                for end in start + 1..=self.table.furthest(device, start) {
                    if let Some(value) = self.stage(device, start, end) {
                        let least = &mut stage[start * (layers + 1) + end];
                        *least = less(*least, value);
                    }
                }
            }
        }
        let hop = self.least_hop();
        let mut rest = vec![vec![never; layers + 1]];
        rest[0][layers] = self.least_ends();
        for stages in 1..self.stages {
            let before = &rest[stages - 1];
            let from = |start: usize| {
                let ends = (start + 1..=layers).filter(|end| before[*end].seconds < f64::INFINITY);
                let value = |end: usize| {
                    let stage = stage[start * (layers + 1) + end];
                    self.measure.join(self.measure.join(hop, stage), before[end])
                };
                ends.map(value).fold(never, less)
            };
            let now: Vec<Value> = (0..=layers).map(from).collect();
            rest.push(now);
        }
        rest
    }

    fn traced(&self, steps: &[Step], last: Step) -> Partition {
        let (mut order, mut ends) = (vec![usize::from(last.device)], vec![usize::from(last.end)]);
        let mut at = last.before;
        while at != START {
            let step = &steps[at as usize];
            order.push(usize::from(step.device));
            ends.push(usize::from(step.end));
            at = step.before;
        }
        order.reverse();
        ends.reverse();
        self.streaming(Partition::resident(order, ends))
    }
}

impl<const N: usize> Label<N> {
    fn is_as_good_as(&self, value: Value, loads: &[f64; N]) -> bool {
        self.value <= value && no_more(&self.loads, loads)
    }
}

fn no_more(loads: &[f64], than: &[f64]) -> bool {
    loads.iter().zip(than).all(|(load, other)| load <= other)
}

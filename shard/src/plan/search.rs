//! The search for partitions: which layers on which device, in which order.
//!
//! Whether a device can go on from some layer to another only gets harder with more layers, so for a set of devices the
//! one number that matters is how far they reach together: the furthest layer is always the best. That makes the
//! search over orders a dynamic programme over sets. Where some devices cannot compute some layers that no longer holds, and
//! every layer that a set reaches is followed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::crossings::Crossings;
use super::hosts::{HostLoad, Sharing};
use super::offload;
use super::predict::{MeasuredTimes, stage_s};
use super::{PlanDevice, PlanInput};
use crate::cost::{Cost, LayerCost, Room, cache_bytes, workspace_bytes};
use crate::layers::{LayerRange, Shard};
use crate::units::Bytes;

/// Sets of devices that are followed at every length of the pipeline. Eight devices have at most 70 sets of one size,
/// so up to there nothing is missed.
const BEAM: usize = 70;
/// Sets followed where there are more devices than [`EXACT_DEVICES`], so that planning stays below 0.1 s.
const NARROW_BEAM: usize = 12;
/// Up to here all sets are followed.
pub(super) const EXACT_DEVICES: usize = 8;
/// The search for the least time of the slowest stage halves intervals down to this relative distance.
const TIME_PRECISION: f64 = 1e-3;
/// Relative distance of times that are told apart.
const LAST_STEP: f64 = 1e-9;

/// Devices in order, and where the model is cut between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// Indices of the devices, in the order of the stages.
    pub(super) order: Vec<usize>,
    /// One past each stage's last layer; the last is the number of layers.
    pub(super) ends: Vec<usize>,
    /// How many of each stage's layers, the last ones, are read again for every step.
    pub(super) streamed: Vec<usize>,
}

impl Partition {
    /// One whose stages hold all of their layers.
    pub(super) fn resident(order: Vec<usize>, ends: Vec<usize>) -> Partition {
        let streamed = vec![0; order.len()];
        Partition { order, ends, streamed }
    }

    /// The layers of every stage.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (usize, LayerRange)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        self.order.iter().zip(starts).zip(&self.ends).map(|((device, start), end)| {
            let range = LayerRange { start, end: *end };
            (*device, range)
        })
    }

    /// The device and shard of every stage, and how many of its layers are streamed.
    pub(super) fn streaming_stages(
        &self,
        search: &Search<'_>,
    ) -> impl Iterator<Item = (usize, Shard, usize)> {
        let shard = |range| Shard::of(range, search.layers());
        self.ranges().zip(&self.streamed).map(move |((device, range), n)| (device, shard(range), *n))
    }
}

/// Sums up to every layer, so that any range costs two look-ups.
struct Sums(Vec<u64>);

impl Sums {
    fn of(values: impl Iterator<Item = u64>) -> Sums {
        let sums = values.scan(0u64, |sum, value| {
            *sum = sum.saturating_add(value);
            Some(*sum)
        });
        Sums(std::iter::once(0).chain(sums).collect())
    }

    fn over(&self, range: LayerRange) -> u64 {
        self.0[range.end] - self.0[range.start]
    }
}

/// What a stage may take at most.
#[derive(Clone, Copy)]
pub(super) struct Bound<'r> {
    room: &'r Room,
    /// What a stage's workspace takes without the head, and with it: the same for all ranges, of which a search asks for
    /// millions.
    workspace: [Bytes; 2],
    /// Time of a step, in seconds, and for which it may keep a link busy.
    slowest_s: f64,
    /// Rows of a step.
    rows: u32,
    /// Whether some device may not come after some other: they are apart, or the hop between them takes too long.
    constrained: bool,
}

/// A model and devices, ready to be matched.
pub(super) struct Search<'a> {
    cost: &'a Cost,
    input: &'a PlanInput,
    budgets: Vec<Bytes>,
    /// One past each stage's last layer, where that is given; else empty.
    cuts: Vec<usize>,
    weights: Sums,
    active: Sums,
    flops: Sums,
    cache_values: Sums,
    /// Times of devices whose kernels were measured, by the rows of a step, as far as they were asked for.
    measured: RefCell<Vec<(u32, Rc<MeasuredTimes>)>>,
    /// For every device the layers that it cannot compute; `None` for one that can compute all of the model.
    beyond: Vec<Option<Sums>>,
    crossings: Crossings,
    sharing: Sharing,
    /// For every device the first that is equal to it.
    twins: Vec<usize>,
}

impl<'a> Search<'a> {
    pub(super) fn new(cost: &'a Cost, input: &'a PlanInput) -> Search<'a> {
        let layers = cost.layers();
        let whole = cost.needs(&cost.whole());
        let beyond = |device: &PlanDevice| {
            let lacks = |needed| !device.kernels.can(needed);
            lacks(whole).then(|| Sums::of(layers.iter().map(|layer| u64::from(lacks(layer.needs)))))
        };
        let budget = |device: &PlanDevice| cost.budget_of(device.kernels, device.budget);
        let budgets: Vec<Bytes> = input.devices.iter().map(budget).collect();
        Search {
            cost,
            input,
            twins: twins(input, &budgets),
            budgets,
            cuts: input
                .split
                .iter()
                .scan(0, |end, layers| {
                    *end += layers;
                    Some(*end)
                })
                .collect(),
            weights: Sums::of(layers.iter().map(|layer| layer.weights.0)),
            active: Sums::of(layers.iter().map(|layer| layer.active.0)),
            flops: Sums::of(layers.iter().map(|layer| layer.flops)),
            cache_values: Sums::of(layers.iter().map(|layer| layer.cache_values)),
            measured: RefCell::default(),
            beyond: input.devices.iter().map(beyond).collect(),
            crossings: Crossings::of(input, cost.widths().hidden),
            sharing: Sharing::of(input),
        }
    }

    /// The same search where the devices have other budgets.
    pub(super) fn with_budgets(&self, budgets: Vec<Bytes>) -> Search<'a> {
        let twins = twins(self.input, &budgets);
        Search { budgets, twins, ..Search::new(self.cost, self.input) }
    }

    pub(super) fn budgets(&self) -> &[Bytes] {
        &self.budgets
    }

    pub(super) fn layers(&self) -> usize {
        self.cost.layer_count()
    }

    /// The layers that a device holds before it is given any.
    pub(super) fn held(&self, device: usize) -> Option<LayerRange> {
        self.input.devices[device].held
    }

    /// Weight bytes of `range` that a device does not hold already.
    pub(super) fn added(&self, device: usize, range: LayerRange) -> Bytes {
        let shard = Shard::of(range, self.layers());
        let all = Bytes(self.weights.over(range)) + self.cost.weights_beside_layers(&shard);
        let Some(held) = self.held(device) else {
            return all;
        };
        let both = LayerRange { start: range.start.max(held.start), end: range.end.min(held.end) };
        if both.start >= both.end {
            return all;
        }
        let resident = Shard::of(held, self.layers());
        let both = Shard {
            layers: both,
            embedding: shard.embedding && resident.embedding,
            head: shard.head && resident.head,
        };
        let kept = Bytes(self.weights.over(both.layers)) + self.cost.weights_beside_layers(&both);
        all.saturating_sub(kept)
    }

    /// What a stage of `range` takes.
    pub(super) fn bytes(&self, range: LayerRange, room: &Room) -> Bytes {
        self.bytes_within(range, &self.bound(room, f64::INFINITY, 1))
    }

    pub(super) fn bytes_within(&self, range: LayerRange, bound: &Bound<'_>) -> Bytes {
        let shard = Shard::of(range, self.layers());
        let weights = Bytes(self.weights.over(range)) + self.cost.weights_beside_layers(&shard);
        let cache = cache_bytes(self.cache_values.over(range), bound.room);
        weights + cache + bound.workspace[usize::from(shard.head)]
    }

    /// What a stage may take where steps of `rows` rows may take `slowest_s` seconds.
    pub(super) fn bound<'r>(&self, room: &'r Room, slowest_s: f64, rows: u32) -> Bound<'r> {
        let workspace = [false, true].map(|head| workspace_bytes(self.cost.widths(), room, head));
        let constrained =
            self.crossings.longest_busy_s(f64::from(rows)) > slowest_s || !self.input.apart.is_empty();
        Bound { room, workspace, slowest_s, rows, constrained }
    }

    pub(super) fn input(&self) -> &PlanInput {
        self.input
    }

    pub(super) fn cuts(&self) -> &[usize] {
        &self.cuts
    }

    pub(super) fn crossings(&self) -> &Crossings {
        &self.crossings
    }

    pub(super) fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    pub(super) fn layer(&self, layer: usize) -> &LayerCost {
        &self.cost.layers()[layer]
    }

    pub(super) fn all_weights(&self) -> Bytes {
        self.cost.weights(&self.cost.whole())
    }

    pub(super) fn offload_bytes_per_s(&self, device: usize) -> Option<f64> {
        self.input.devices[device].offload_bytes_per_s
    }

    /// Seconds in which a device reads the last `streamed` layers of `range` once.
    pub(super) fn streaming_s(&self, device: usize, range: LayerRange, streamed: usize) -> f64 {
        let shard = Shard::of(range, self.layers());
        let rate = self.offload_bytes_per_s(device);
        rate.map_or(0.0, |rate| offload::streaming_s(self.cost, &shard, streamed, rate))
    }

    /// What a stage takes of its device's machine for a step of `rows` rows, where that holds other devices too: which of
    /// [`Sharing::hosts`], and for how many seconds it keeps memory and processors busy.
    pub(super) fn host_s(&self, device: usize, range: LayerRange, rows: u32) -> Option<(usize, [f64; 2])> {
        let place = self.sharing.of[device]?;
        let host = &self.input.hosts[self.sharing.hosts[place]];
        let (work, busy_s) = (self.work(range), self.stage_s(device, range, rows));
        let bytes = work.active + work.head_active;
        Some((place, HostLoad::of(&self.input.devices[device], host, bytes, busy_s).seconds(host)))
    }

    /// The least time in which the shared machines compute one step of each of their stages, in seconds.
    pub(super) fn hosts_s(&self, partition: &Partition, rows: u32) -> f64 {
        let mut busy_s = vec![[0.0; 2]; self.sharing.hosts.len()];
        for (device, range) in partition.ranges() {
            if let Some((place, [memory_s, processors_s])) = self.host_s(device, range, rows) {
                busy_s[place][0] += memory_s;
                busy_s[place][1] += processors_s;
            }
        }
        busy_s.into_iter().flatten().fold(0.0, f64::max)
    }

    /// Seconds in which the shared machines read all weights together, where there are no other devices: no cycle is
    /// shorter.
    pub(super) fn all_hosts_s(&self) -> f64 {
        if self.sharing.hosts.is_empty() || self.sharing.of.iter().any(Option::is_none) {
            return 0.0;
        }
        let bandwidth = |host: &usize| self.input.hosts[*host].bandwidth_bytes_per_s;
        let bandwidth: f64 = self.sharing.hosts.iter().map(bandwidth).sum();
        let work = self.work(LayerRange { start: 0, end: self.layers() });
        (work.active + work.head_active) / bandwidth
    }

    /// How long a stage takes at the least while all devices of its machine read at the same time.
    pub(super) fn crowded_s(&self, device: usize, range: LayerRange) -> f64 {
        let Some(host) = self.sharing.of[device] else { return 0.0 };
        let members = self.sharing.of.iter().filter(|of| **of == Some(host)).count() as f64;
        let work = self.work(range);
        let bandwidth = self.input.hosts[self.sharing.hosts[host]].bandwidth_bytes_per_s;
        members * (work.active + work.head_active) / bandwidth
    }

    /// Weight bytes read, and operations, to compute one row of a stage; the head's apart.
    pub(super) fn work(&self, range: LayerRange) -> Work {
        let shard = Shard::of(range, self.layers());
        let (embedding, head) = (self.cost.embedding(), self.cost.head());
        let embedding_active = if shard.embedding { embedding.active.0 } else { 0 };
        Work {
            active: (self.active.over(range) + embedding_active) as f64,
            flops: self.flops.over(range) as f64,
            head_active: if shard.head { head.active.0 as f64 } else { 0.0 },
            head_flops: if shard.head { head.flops as f64 } else { 0.0 },
        }
    }

    /// The least that a stage can take: one layer without the ends, where there is such a layer.
    pub(super) fn smallest_shard(&self, room: &Room) -> Bytes {
        let one = |start| self.bytes(LayerRange { start, end: start + 1 }, room);
        (0..self.layers()).map(one).min().unwrap_or(Bytes::ZERO)
    }

    /// Whether the model fits into exactly `stages` stages.
    pub(super) fn fits(&self, room: &Room, stages: usize) -> bool {
        self.find(self.bound(room, f64::INFINITY, 1), stages).is_some()
    }

    /// The partition into exactly `stages` stages whose slowest stage or link takes the least time for steps of `rows`
    /// rows; `None` where none fits. Up to [`EXACT_DEVICES`] devices none takes less, to within a billionth.
    pub(super) fn least_slowest(&self, room: &Room, stages: usize, rows: u32) -> Option<Partition> {
        let exact = self.budgets.len() <= EXACT_DEVICES;
        let find = |slowest_s| self.find(self.bound(room, slowest_s, rows), stages);
        let mut best = find(f64::INFINITY)?;
        let (mut low, mut high) = (0.0, self.slowest_s(&best, rows));
        let mut precision = TIME_PRECISION;
        while low < high {
            // Near the end anything below the best is asked for, since often there is nothing.
            let near = high - low <= precision * high;
            if near && !exact {
                break;
            }
            let slowest_s = if near { high * (1.0 - LAST_STEP) } else { (low + high) / 2.0 };
            match find(slowest_s) {
                Some(found) => {
                    high = self.slowest_s(&found, rows);
                    best = found;
                    precision = if near { (precision / 2.0).max(LAST_STEP) } else { precision };
                }
                None if near => break,
                None => low = slowest_s,
            }
        }
        Some(best)
    }

    /// The partition within the bound over the devices of `order` that is best beside that: it adds least to what devices
    /// hold, or its order is the given one and it is even.
    pub(super) fn settle(
        &self,
        order: &[usize],
        room: &Room,
        slowest_s: f64,
        rows: u32,
    ) -> Option<Partition> {
        if self.cuts.is_empty()
            && let Some(kept) = self.keeping(order, room, slowest_s, rows)
        {
            return Some(kept);
        }
        let bound = self.bound(room, slowest_s, rows);
        let mut given = order.to_vec();
        given.sort_unstable();
        let keeps = self.passes(&given, &bound)
            && self.chain(&given, bound).is_some()
            && self.hops_s(&given, rows) <= self.hops_s(order, rows) * (1.0 + 1e-9);
        let order = if keeps { given } else { order.to_vec() };
        if self.cuts.is_empty() { self.balance(order, bound) } else { self.chain(&order, bound) }
    }

    /// All hops of an order together, in seconds, until the first device is told what the last one drew.
    pub(super) fn hops_s(&self, order: &[usize], rows: u32) -> f64 {
        let hop_s = |pair: &[usize]| self.crossings.between_s(pair[0], pair[1], f64::from(rows));
        let (Some(first), Some(last)) = (order.first(), order.last()) else { return 0.0 };
        let ends_s = self.crossings.end_s(*first) + self.crossings.end_s(*last);
        order.windows(2).map(hop_s).sum::<f64>() + self.crossings.closing_s(*first, *last) + ends_s
    }

    /// Time of the slowest stage or link for steps of `rows` rows, in seconds.
    pub(super) fn slowest_s(&self, partition: &Partition, rows: u32) -> f64 {
        let stages = partition.ranges().map(|(device, range)| self.stage_s(device, range, rows));
        let busy_s = |pair: &[usize]| self.crossings.busy_s(pair[0], pair[1], f64::from(rows));
        stages.chain(partition.order.windows(2).map(busy_s)).fold(0.0, f64::max)
    }

    /// Time of a stage to decode one token of each of `rows` sequences, in seconds.
    pub(super) fn stage_s(&self, device: usize, range: LayerRange, rows: u32) -> f64 {
        let of = &self.input.devices[device];
        if of.kernel_speeds.is_empty() {
            return stage_s(of, &self.work(range), rows);
        }
        self.measured(rows).stage_s(device, range)
    }

    fn measured(&self, rows: u32) -> Rc<MeasuredTimes> {
        let mut known = self.measured.borrow_mut();
        if let Some((_, times)) = known.iter().find(|(of, _)| *of == rows) {
            return times.clone();
        }
        let times = Rc::new(MeasuredTimes::of(self.cost, self.input, rows));
        known.push((rows, times.clone()));
        times
    }

    pub(super) fn holds(&self, device: usize, range: LayerRange, bound: Bound<'_>) -> bool {
        self.bytes_within(range, &bound) <= self.budgets[device]
            && (bound.slowest_s == f64::INFINITY
                || self.stage_s(device, range, bound.rows) <= bound.slowest_s)
            && self.can_compute(device, range)
    }

    pub(super) fn can_compute(&self, device: usize, range: LayerRange) -> bool {
        let Some(beyond) = &self.beyond[device] else {
            return true;
        };
        let shard = Shard::of(range, self.layers());
        let can = |needed| self.input.devices[device].kernels.can(needed);
        beyond.over(range) == 0
            && (!shard.embedding || can(self.cost.embedding().needs))
            && (!shard.head || can(self.cost.head().needs))
    }

    /// The furthest layer, at most `most`, that a device reaches from `start`; `None` where it holds not even one.
    fn reach(&self, device: usize, start: usize, most: usize, bound: Bound<'_>) -> Option<usize> {
        let holds = |end| self.holds(device, LayerRange { start, end }, bound);
        if let Some(cut) = self.cuts.iter().copied().find(|cut| *cut > start) {
            return (cut <= most && holds(cut)).then_some(cut);
        }
        if start >= most || !holds(start + 1) {
            return None;
        }
        let (mut low, mut high) = (start + 1, most + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if holds(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// The partition in this order where every stage but the last holds as much as it can.
    pub(super) fn chain(&self, order: &[usize], bound: Bound<'_>) -> Option<Partition> {
        let (last, others) = order.split_last()?;
        let mut ends = Vec::with_capacity(order.len());
        let mut at = 0;
        for (index, device) in others.iter().enumerate() {
            let stages_after = others.len() - index;
            at = self.reach(*device, at, self.layers().checked_sub(stages_after)?, bound)?;
            ends.push(at);
        }
        ends.push(self.layers());
        let rest = LayerRange::new(at, self.layers()).filter(|rest| !rest.is_empty())?;
        self.holds(*last, rest, bound).then(|| Partition::resident(order.to_vec(), ends))
    }

    /// Some partition into exactly `stages` stages within the bound.
    pub(super) fn find(&self, bound: Bound<'_>, stages: usize) -> Option<Partition> {
        let few = self.budgets.len() <= EXACT_DEVICES;
        if few && self.beyond.iter().any(Option::is_some) {
            return self.follow_all(bound, stages);
        }
        let found = self.follow(bound, stages, None);
        if found.is_some() || self.budgets.len() <= EXACT_DEVICES {
            return found;
        }
        // The sets that reach furthest use up the largest devices, and the head may fit no other: keep one for it.
        let tail = |device: &usize| {
            let start = |start| self.holds(*device, LayerRange { start, end: self.layers() }, bound);
            (0..self.layers()).find(|at| start(*at)).unwrap_or(self.layers())
        };
        let last = (0..self.budgets.len()).min_by_key(tail)?;
        self.follow(bound, stages, Some(last))
    }

    /// Follows every set of devices to every layer that it reaches. Where devices cannot compute some layers, further is
    /// not always better: the next device may have to begin with a layer that it can compute.
    fn follow_all(&self, bound: Bound<'_>, stages: usize) -> Option<Partition> {
        let (layers, devices) = (self.layers(), self.budgets.len());
        // By device and start.
        let reach = |device| (0..layers).map(|start| self.reach(device, start, layers, bound)).collect();
        let reach: Vec<Vec<Option<usize>>> = (0..devices).map(reach).collect();
        let cuts = |end: usize| self.cuts.is_empty() || self.cuts.contains(&end);
        // For every set of devices, with the last of them, the layers that it reaches, each with where that one started.
        let mut sets = BTreeMap::from([((0u128, usize::MAX), vec![None; layers + 1])]);
        let mut history = Vec::with_capacity(stages);
        for stage in 1..=stages {
            let mut next: BTreeMap<(u128, usize), Vec<Option<usize>>> = BTreeMap::new();
            for ((used, last), from) in &sets {
                let starts = (0..layers).filter(|at| from[*at].is_some() || (stage == 1 && *at == 0));
                let starts: Vec<usize> = starts.collect();
                for device in self
                    .choices(*used, &bound)
                    .filter(|device| stage == 1 || self.may_follow(*last, *device, &bound))
                {
                    let reached =
                        next.entry((used | 1 << device, device)).or_insert_with(|| vec![None; layers + 1]);
                    // Later starts reach further, so that no layer is looked at twice.
                    let mut furthest = 0;
                    for start in &starts {
                        let end = reach[device][*start].unwrap_or(*start);
                        for end in (furthest.max(*start) + 1..=end).filter(|end| cuts(*end)) {
                            reached[end].get_or_insert(*start);
                        }
                        furthest = furthest.max(end);
                    }
                }
            }
            history.push(std::mem::replace(&mut sets, next));
        }
        let mut at = sets.iter().find(|(_, reached)| reached[layers].is_some()).map(|(key, _)| *key)?;
        let (mut order, mut ends, mut end) = (Vec::new(), Vec::new(), layers);
        history.push(sets);
        for stage in (1..=stages).rev() {
            let (used, device) = at;
            let start = history[stage][&at][end]?;
            order.push(device);
            ends.push(end);
            if stage > 1 {
                let before = history[stage - 1].iter().find(|((set, last), reached)| {
                    *set == used & !(1 << device)
                        && self.may_follow(*last, device, &bound)
                        && reached[start].is_some()
                });
                at = *before?.0;
            }
            end = start;
        }
        order.reverse();
        ends.reverse();
        Some(Partition::resident(order, ends))
    }

    /// Follows the sets of devices that reach furthest, stage by stage; `last` is kept for the last one.
    fn follow(&self, bound: Bound<'_>, stages: usize, last: Option<usize>) -> Option<Partition> {
        let devices = self.budgets.len();
        let width = if devices <= EXACT_DEVICES { BEAM } else { NARROW_BEAM };
        // Where some devices cannot follow others, sets differ in who is last, too.
        let constrained = bound.constrained;
        let width = if constrained { width * devices } else { width };
        let kept = last.map_or(0, |device| 1 << device);
        let mut beams = vec![vec![Reached { layer: 0, used: kept, device: None, from: 0 }]];
        let mut next = Vec::new();
        // How far equal devices get from a layer does not depend on who came before; by device and layer, once it was asked.
        let layers = self.layers();
        let mut known: Vec<Option<Option<usize>>> = vec![None; devices * (layers + 1)];
        let mut reach = |device: usize, start: usize, most: usize| {
            if !self.cuts.is_empty() {
                return self.reach(device, start, most, bound);
            }
            let known = &mut known[self.twins[device] * (layers + 1) + start];
            let furthest = *known.get_or_insert_with(|| self.reach(device, start, layers, bound));
            furthest.filter(|_| start < most).map(|furthest| furthest.min(most))
        };
        for stage in 1..stages {
            let most = self.layers().checked_sub(stages - stage)?;
            next.clear();
            for (from, reached) in beams[stage - 1].iter().enumerate() {
                for device in self
                    .choices(reached.used, &bound)
                    .filter(|device| self.may_come_next(reached, *device, &bound))
                {
                    let Some(layer) = reach(device, reached.layer, most) else {
                        continue;
                    };
                    next.push(Reaching {
                        missing: self.layers() - layer,
                        used: reached.used | 1 << device,
                        device,
                        from,
                    });
                }
            }
            // Of each set the one that gets furthest, and of those the best.
            let set = |reaching: &Reaching| (reaching.used, if constrained { reaching.device } else { 0 });
            next.sort_unstable_by_key(|reaching| (set(reaching), reaching.missing, reaching.device));
            next.dedup_by_key(|reaching| set(reaching));
            let first = |reaching: &Reaching| (reaching.missing, reaching.used, reaching.device);
            if next.len() > width {
                next.select_nth_unstable_by_key(width, first);
                next.truncate(width);
            }
            next.sort_unstable_by_key(first);
            let follow = |reaching: &Reaching| Reached {
                layer: self.layers() - reaching.missing,
                used: reaching.used,
                device: Some(reaching.device),
                from: reaching.from,
            };
            beams.push(next.iter().map(follow).collect());
        }
        beams.last()?.iter().find_map(|reached| {
            let rest = LayerRange::new(reached.layer, self.layers()).filter(|rest| !rest.is_empty())?;
            let holds = |device: &usize| {
                self.holds(*device, rest, bound) && self.may_come_next(reached, *device, &bound)
            };
            let device = match last {
                Some(last) => Some(last).filter(holds)?,
                None => self.choices(reached.used, &bound).find(holds)?,
            };
            let (mut order, mut at) = (vec![device], *reached);
            for beam in beams.iter().rev().skip(1) {
                order.extend(at.device);
                at = beam[at.from];
            }
            order.reverse();
            self.chain(&order, bound)
        })
    }

    /// The devices not in `used`, of several equal ones only the first: as long as any may be anybody's neighbour, it does
    /// not matter which.
    fn choices(&self, used: u128, bound: &Bound<'_>) -> impl Iterator<Item = usize> {
        let free = move |device: &usize| used & (1 << device) == 0;
        let constrained = bound.constrained;
        (0..self.budgets.len()).filter(free).filter(move |device| {
            let twin = |other: usize| self.are_equal(other, *device);
            constrained || !(0..*device).filter(free).any(twin)
        })
    }

    /// Whether a device may come after those of `reached`.
    fn may_come_next(&self, reached: &Reached, device: usize, bound: &Bound<'_>) -> bool {
        reached.device.is_none_or(|last| self.may_follow(last, device, bound))
    }

    fn may_follow(&self, one: usize, other: usize, bound: &Bound<'_>) -> bool {
        if !bound.constrained {
            return true;
        }
        let busy_s = self.crossings.busy_s(one, other, f64::from(bound.rows));
        busy_s.is_finite() && busy_s <= bound.slowest_s
    }

    /// Whether every device of an order may come after the one before.
    pub(super) fn passes(&self, order: &[usize], bound: &Bound<'_>) -> bool {
        order.windows(2).all(|pair| self.may_follow(pair[0], pair[1], bound))
    }

    /// Whether devices differ in nothing but their name and their links.
    pub(super) fn are_equal(&self, one: usize, other: usize) -> bool {
        self.twins[one] == self.twins[other]
    }

    /// The partition in this order, within the bound, whose stages' times have the least sum of squares: no slower than
    /// it must be as a whole, and even.
    fn balance(&self, order: Vec<usize>, bound: Bound<'_>) -> Option<Partition> {
        let square = |device, range| self.stage_s(device, range, bound.rows).powi(2);
        let add = |sum: f64, square: f64| sum + square;
        self.cheapest(order, bound, 0.0, square, add).map(|(partition, _)| partition)
    }

    /// The partition in this order, within the bound, that costs least, and its cost: that of all stages added up,
    /// beginning with `none`.
    pub(super) fn cheapest<C: Copy + PartialOrd>(
        &self,
        order: Vec<usize>,
        bound: Bound<'_>,
        none: C,
        of: impl Fn(usize, LayerRange) -> C,
        add: impl Fn(C, C) -> C,
    ) -> Option<(Partition, C)> {
        let layers = self.layers();
        // best[end] is the least cost of the stages so far when they end at `end`; from[stage][end] is where the last of
        // them starts.
        let mut best = vec![None; layers + 1];
        best[0] = Some(none);
        let mut from = Vec::with_capacity(order.len());
        for device in &order {
            let mut next: Vec<Option<C>> = vec![None; layers + 1];
            let mut starts = vec![0; layers + 1];
            for (start, before) in best.iter().take(layers).enumerate() {
                let Some(before) = *before else { continue };
                for end in start + 1..=layers {
                    let range = LayerRange { start, end };
                    if !self.holds(*device, range, bound) {
                        break;
                    }
                    let cost = add(before, of(*device, range));
                    if next[end].is_none_or(|least| cost < least) {
                        (next[end], starts[end]) = (Some(cost), start);
                    }
                }
            }
            best = next;
            from.push(starts);
        }
        let cost = best[layers]?;
        let mut ends = vec![layers];
        for starts in from.iter().skip(1).rev() {
            ends.push(starts[ends[ends.len() - 1]]);
        }
        ends.reverse();
        Some((Partition::resident(order, ends), cost))
    }
}

/// For every device the first that differs from it in nothing but its name and its links.
fn twins(input: &PlanInput, budgets: &[Bytes]) -> Vec<usize> {
    let are_equal = |one: usize, other: usize| {
        let (a, b) = (&input.devices[one], &input.devices[other]);
        budgets[one] == budgets[other]
            && a.bandwidth_bytes_per_s == b.bandwidth_bytes_per_s
            && a.flops_per_s == b.flops_per_s
            && a.threads == b.threads
            && a.kernels == b.kernels
            && a.host == b.host
            && a.offload_bytes_per_s == b.offload_bytes_per_s
            && a.kernel_speeds == b.kernel_speeds
    };
    (0..budgets.len())
        .map(|device| (0..device).find(|first| are_equal(*first, device)).unwrap_or(device))
        .collect()
}

/// How far a set of devices gets.
#[derive(Clone, Copy)]
struct Reached {
    layer: usize,
    used: u128,
    /// The last of them.
    device: Option<usize>,
    /// Which of the sets of one device less it follows.
    from: usize,
}

/// The same with one device more: how many layers are missing then.
struct Reaching {
    missing: usize,
    used: u128,
    device: usize,
    /// Which of those before it follows.
    from: usize,
}

/// What computing one row of a stage takes.
pub(super) struct Work {
    /// Weight bytes read, without the head.
    pub(super) active: f64,
    /// Operations, without the head.
    pub(super) flops: f64,
    /// Weight bytes of the head.
    pub(super) head_active: f64,
    /// Operations of the head.
    pub(super) head_flops: f64,
}

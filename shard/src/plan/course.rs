//! What is asked of a search among partitions into a certain number of stages, and what one of them comes to.

use super::crossings::Crossings;
use super::search::{Partition, Search};
use super::table::{Measure, Table, Value};

/// A search for the partition of the least value.
pub(super) struct Course<'a> {
    pub(super) search: &'a Search<'a>,
    /// The stages that devices could hold, for steps of `rows` rows.
    pub(super) table: &'a Table,
    pub(super) measure: Measure,
    pub(super) stages: usize,
    pub(super) rows: u32,
    /// The longest that a stage or hop may take, in seconds.
    pub(super) most_s: f64,
}

impl Course<'_> {
    pub(super) fn crossings(&self) -> &Crossings {
        self.search.crossings()
    }

    /// The value of a stage; `None` where its device does not hold it, or it takes too long.
    pub(super) fn stage(&self, device: usize, start: usize, end: usize) -> Option<Value> {
        let value = self.table.value(device, start, end);
        (value.seconds < f64::INFINITY && value.seconds <= self.most_s).then_some(value)
    }

    /// The value of the hop from one device to the next; `None` where there is no such hop, or it takes too long.
    pub(super) fn hop(&self, one: usize, other: usize) -> Option<Value> {
        let (crossings, rows) = (self.crossings(), f64::from(self.rows));
        let busy_s = crossings.busy_s(one, other, rows);
        let seconds = match self.measure {
            Measure::Round => crossings.between_s(one, other, rows),
            Measure::Cycle => busy_s,
        };
        (seconds < f64::INFINITY && busy_s <= self.most_s).then_some(Value::of(seconds))
    }

    /// No hop takes less.
    pub(super) fn least_hop(&self) -> Value {
        let (crossings, rows) = (self.crossings(), f64::from(self.rows));
        let seconds = match self.measure {
            Measure::Round => crossings.shortest_s(rows),
            Measure::Cycle => crossings.shortest_busy_s(rows),
        };
        Value::of(seconds.min(f64::MAX))
    }

    /// The value of the way from the coordinator to the first stage, from the last one back to it, and from there to the
    /// first again: steps on these keep no other waiting.
    pub(super) fn ends(&self, first: usize, last: usize) -> Value {
        let crossings = self.crossings();
        match self.measure {
            Measure::Round => {
                Value::of(crossings.end_s(first) + crossings.end_s(last) + crossings.closing_s(first, last))
            }
            Measure::Cycle => Value::ZERO,
        }
    }

    /// No two ends take less.
    pub(super) fn least_ends(&self) -> Value {
        let crossings = self.crossings();
        let closing_s = if self.stages > 1 { crossings.least_closing_s().min(f64::MAX) } else { 0.0 };
        match self.measure {
            Measure::Round => Value::of(2.0 * crossings.least_end_s() + closing_s),
            Measure::Cycle => Value::ZERO,
        }
    }

    /// Where a stage may end that starts at `start` as the one with this index, before the last.
    pub(super) fn stage_ends(
        &self,
        index: usize,
        start: usize,
        furthest: usize,
    ) -> std::ops::RangeInclusive<usize> {
        let (layers, after) = (self.table.layers(), self.stages - index - 1);
        let (mut first, mut last) = (start + 1, furthest.min(layers - after));
        if after == 0 {
            first = first.max(layers);
        }
        if let Some(cut) = self.search.cuts().get(index) {
            (first, last) = (first.max(*cut), last.min(*cut));
        }
        first..=last
    }

    /// The least value in this order, with the partition; where machines are shared that counts only in [`Course::value`].
    pub(super) fn along(&self, order: &[usize]) -> Option<Partition> {
        let layers = self.table.layers();
        let mut best: Vec<Option<Value>> = vec![None; layers + 1];
        best[0] = Some(self.ends(*order.first()?, *order.last()?));
        let mut from = Vec::with_capacity(order.len());
        for (index, device) in order.iter().enumerate() {
            let hop = if index == 0 { Value::ZERO } else { self.hop(order[index - 1], *device)? };
            let mut next: Vec<Option<Value>> = vec![None; layers + 1];
            let mut starts = vec![0; layers + 1];
            for (start, before) in best.iter().enumerate().take(layers) {
                let Some(before) = *before else { continue };
                let before = self.measure.join(before, hop);
                for end in self.stage_ends(index, start, self.table.furthest(*device, start)) {
                    let Some(stage) = self.stage(*device, start, end) else { continue };
                    let value = self.measure.join(before, stage);
                    if next[end].is_none_or(|least| value < least) {
                        (next[end], starts[end]) = (Some(value), start);
                    }
                }
            }
            best = next;
            from.push(starts);
        }
        best[layers]?;
        let mut ends = vec![layers];
        for starts in from.iter().skip(1).rev() {
            ends.push(starts[ends[ends.len() - 1]]);
        }
        ends.reverse();
        Some(self.streaming(Partition::resident(order.to_vec(), ends)))
    }

    /// The partition with what its stages have to stream.
    pub(super) fn streaming(&self, partition: Partition) -> Partition {
        let streamed = partition
            .ranges()
            .map(|(device, range)| self.table.value(device, range.start, range.end).streamed as usize);
        Partition { streamed: streamed.collect(), ..partition }
    }

    /// What a partition comes to, shared machines with it; `None` where it does not fit.
    pub(super) fn value(&self, table: &Table, partition: &Partition) -> Option<Value> {
        let (first, last) = (partition.order.first()?, partition.order.last()?);
        let mut value = self.ends(*first, *last);
        for (device, range) in partition.ranges() {
            let stage = table.value(device, range.start, range.end);
            if stage.seconds == f64::INFINITY {
                return None;
            }
            value = self.measure.join(value, stage);
        }
        for pair in partition.order.windows(2) {
            value = self.measure.join(value, self.hop(pair[0], pair[1])?);
        }
        if self.measure == Measure::Cycle {
            value = self.measure.join(value, Value::of(self.search.hosts_s(partition, self.rows)));
        }
        Some(value)
    }
}

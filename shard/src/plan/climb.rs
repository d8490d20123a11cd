//! Good partitions over many devices: an order at a time, each cut as well as it can be.

use super::course::Course;
use super::search::Partition;
use super::table::{Measure, Table, Value};

/// Table look-ups that a search may take, so that planning stays below 0.1 s.
const MOST_LOOKUPS: usize = 500_000;
/// Devices times stages up to which a lower bound counts stages.
const MOST_COUNTED: usize = 512;

impl Course<'_> {
    /// A good partition: of the best of some orders, devices are replaced and change places as long as that helps. Values
    /// are those of `table`, which differs from the course's own where that only guides cuts.
    pub(super) fn climb(&self, table: &Table, starts: &[Vec<usize>]) -> Option<(Partition, Value)> {
        let valued = |order: &[usize]| {
            let partition = self.along(order)?;
            let value = self.value(table, &partition)?;
            Some((partition, value))
        };
        let better = |one: Option<(Partition, Value)>, other: (Partition, Value)| match one {
            Some(one) if !other.1.beats(one.1) => Some(one),
            _ => Some(other),
        };
        let mut best = starts.iter().filter_map(|order| valued(order)).fold(None, better)?;
        let layers = self.table.layers();
        let mut tries = MOST_LOOKUPS / (self.stages * layers * layers.div_ceil(self.stages) * 2).max(1);
        let alike = self.crossings().same && self.crossings().same_ends();
        let mut improved = true;
        while improved && tries > 0 {
            improved = false;
            for place in 0..self.stages {
                let other_places = place + 1..self.stages;
                let swaps = other_places.map(Move::Swap);
                let unused = (0..self.table.devices()).filter(|device| !best.0.order.contains(device));
                let moves: Vec<Move> = unused.map(Move::Replace).chain(swaps).collect();
                for step in moves {
                    let mut order = best.0.order.clone();
                    let (before, now) = match step {
                        Move::Swap(other) => {
                            order.swap(place, other);
                            (order[other], order[place])
                        }
                        Move::Replace(device) => (std::mem::replace(&mut order[place], device), device),
                    };
                    let repeated = order.iter().filter(|device| **device == now).count() > 1;
                    if repeated || (alike && self.table.are_equal(before, now)) || tries == 0 {
                        continue;
                    }
                    tries -= 1;
                    if let Some(found) = valued(&order)
                        && found.1.beats(best.1)
                    {
                        best = found;
                        improved = true;
                    }
                }
            }
        }
        Some(best)
    }

    /// Seconds that no partition into as many stages takes less than: the best where every device may hold the easiest
    /// layers for as many as it holds, except for one that holds the last ones.
    pub(super) fn least_imaginable_s(&self) -> f64 {
        let layers = self.table.layers();
        // Among very many devices any number of stages will do, which only makes the bound lower.
        let counted = self.table.devices() * self.stages <= MOST_COUNTED;
        let most = if counted { self.stages } else { 0 };
        let join = |one: f64, other: f64| match self.measure {
            Measure::Round => one + other,
            Measure::Cycle => one.max(other),
        };
        // By stages so far, layers so far, and whether the last ones are among them.
        let at =
            |stages: usize, held: usize, last: usize| (stages.min(most) * (layers + 1) + held) * 2 + last;
        let mut best = vec![f64::INFINITY; (most + 1) * (layers + 1) * 2];
        best[at(0, 0, 0)] = 0.0;
        for device in 0..self.table.devices() {
            let seconds = |start, end| self.table.value(device, start, end).seconds;
            let easiest = |count: usize| {
                (0..=layers - count).map(|start| seconds(start, start + count)).fold(f64::INFINITY, f64::min)
            };
            let choices = (1..=layers).map(|count| (count, easiest(count), seconds(layers - count, layers)));
            let choices: Vec<_> = choices.filter(|(_, easy_s, _)| *easy_s < f64::INFINITY).collect();
            // From the end, so that no device is taken twice.
            for stages in (0..most.max(1)).rev() {
                for held in (0..layers).rev() {
                    for last in 0..2 {
                        let before = best[at(stages, held, last)];
                        if before == f64::INFINITY {
                            continue;
                        }
                        for (count, easy_s, last_s) in choices.iter().take_while(|c| held + c.0 <= layers) {
                            let to = at(stages + 1, held + count, last);
                            best[to] = best[to].min(join(before, *easy_s));
                            let to = at(stages + 1, held + count, 1);
                            if last == 0 {
                                best[to] = best[to].min(join(before, *last_s));
                            }
                        }
                    }
                }
            }
        }
        let stages_s = best[at(most, layers, 1)];
        let hops = (self.stages - 1) as f64;
        let hop_s = if hops > 0.0 { self.least_hop().seconds } else { 0.0 };
        match self.measure {
            Measure::Round => stages_s + hops * hop_s + self.least_ends().seconds,
            Measure::Cycle => stages_s.max(hop_s).max(self.search.all_hosts_s()),
        }
    }
}

/// A change to an order.
enum Move {
    /// With the one at another place.
    Swap(usize),
    /// By a device that holds nothing.
    Replace(usize),
}

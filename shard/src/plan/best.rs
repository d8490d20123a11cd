//! The best partition into a certain number of stages, for what a plan is to be best at.

use super::course::Course;
use super::search::{EXACT_DEVICES, Partition, Search};
use super::table::{Kind, Measure, Table, Value};
use super::{Objective, Optimality};
use crate::cost::Room;
use crate::layers::LayerRange;

/// Relative difference in time below which two partitions are as fast.
const SAME: f64 = 1e-6;
/// Relative difference in hops that is one.
const LEAST: f64 = 1e-9;
/// Changes to an order that are tried at most: far more than sixteen devices need.
const MOST_CHANGES: usize = 20_000;
/// How much longer one stream may take for the sake of what devices hold: less than predictions are wrong by.
const SLACK: f64 = 0.02;

/// A partition, and what is known of others.
#[derive(Clone, Debug)]
pub(super) struct Best {
    pub(super) partition: Partition,
    /// Seconds of one stream's way round at the best, where that was looked for; else infinite.
    pub(super) round_s: f64,
    /// Seconds that no other takes less than; `None` where nobody has looked yet.
    least_s: Option<f64>,
}

/// Rows of a decode step where the streams that a plan is made for are shared out to as many groups as stages.
pub(super) fn group_rows(parallel: u32, stages: usize) -> u32 {
    parallel.max(1).div_ceil(stages.max(1) as u32)
}

impl Search<'_> {
    fn measure(&self) -> Measure {
        match self.input().objective {
            Objective::ManyStreams => Measure::Cycle,
            Objective::OneStream => Measure::Round,
        }
    }

    fn rows(&self, stages: usize) -> u32 {
        match self.input().objective {
            Objective::ManyStreams => group_rows(self.input().parallel, stages),
            Objective::OneStream => 1,
        }
    }

    fn course<'a>(&'a self, table: &'a Table, stages: usize) -> Course<'a> {
        let (measure, rows) = (self.measure(), self.rows(stages));
        Course { search: self, table, measure, stages, rows, most_s: f64::INFINITY }
    }

    fn table(&self, room: &Room, stages: usize, kind: Kind) -> Table {
        Table::new(self, room, self.rows(stages), kind)
    }

    fn is_small(&self) -> bool {
        self.budgets().len() <= EXACT_DEVICES
    }

    /// The best partition into exactly `stages` stages that all hold their layers; `None` where none fits, or, for one
    /// stream, where none goes round in less than `most_s`.
    pub(super) fn best(&self, room: &Room, stages: usize, most_s: f64) -> Option<Best> {
        match self.input().objective {
            Objective::ManyStreams => self.best_for_many(room, stages),
            Objective::OneStream => self.best_for_one(room, stages, most_s),
        }
    }

    /// How far a partition may be from the best one.
    pub(super) fn optimality(&self, best: &Best, room: &Room) -> Optimality {
        let stages = best.partition.order.len();
        let streaming = best.partition.streamed.iter().any(|streamed| *streamed > 0);
        let table = self.table(room, stages, Kind { streaming, crowded: false });
        let course = self.course(&table, stages);
        let least_s = best.least_s.unwrap_or_else(|| course.least_imaginable_s());
        // What a plan is made of was looked up in this table.
        let taken_s = course.value(&table, &best.partition).map_or(f64::INFINITY, |value| value.seconds);
        if taken_s <= least_s * (1.0 + SAME) {
            Optimality::Exact
        } else {
            Optimality::Within(least_s / taken_s)
        }
    }

    fn best_for_many(&self, room: &Room, stages: usize) -> Option<Best> {
        let rows = self.rows(stages);
        let found = self.least_slowest(room, stages, rows)?;
        let slowest_s = self.slowest_s(&found, rows);
        let known_s = self.is_small().then_some(slowest_s);
        if self.hosts_s(&found, rows) > slowest_s * (1.0 + SAME) {
            return Some(self.best_on_shared(room, stages, found, slowest_s));
        }
        let order = self.nearest_order(room, &found, slowest_s, rows);
        let settled = self.settle(&order, room, slowest_s, rows);
        // Where machines are shared another cut may have them do more.
        let settled = settled.filter(|settled| self.hosts_s(settled, rows) <= slowest_s * (1.0 + SAME));
        Some(Best { partition: settled.unwrap_or(found), round_s: f64::INFINITY, least_s: known_s })
    }

    /// The same where it is machines with several devices that limit how fast it is; `found` is the best where they do
    /// not count.
    fn best_on_shared(&self, room: &Room, stages: usize, found: Partition, slowest_s: f64) -> Best {
        let table = self.table(room, stages, Kind::default());
        let course = self.course(&table, stages);
        let least_s = slowest_s.max(self.all_hosts_s());
        let rows = course.rows;
        let mut best = course.value(&table, &found).map(|value| (found.clone(), value));
        let is_least = |best: &Option<(Partition, Value)>| {
            best.as_ref().is_some_and(|(_, value)| value.seconds <= least_s * (1.0 + SAME))
        };
        let mut exact = is_least(&best);
        if !exact {
            let crowded = self.table(room, stages, Kind { crowded: true, streaming: false });
            let starts = [found.order.clone()];
            let climbed = self.course(&crowded, stages).climb(&table, &starts);
            best = match (best, climbed) {
                (Some(best), Some(climbed)) if !climbed.1.beats(best.1) => Some(best),
                (best, climbed) => climbed.or(best),
            };
            exact = is_least(&best);
        }
        if !exact && self.is_small() {
            let outcome = course.best(best);
            (best, exact) = (outcome.best, outcome.exact);
        }
        let Some((partition, value)) = best else {
            return Best { partition: found, round_s: f64::INFINITY, least_s: None };
        };
        let as_good = |other: &Partition| {
            let now = course.value(&table, other);
            now.is_some_and(|now| now.seconds <= value.seconds * (1.0 + SAME))
        };
        // Of those that keep the machines as busy, the one whose slowest stage takes least: a prompt and a lone stream gain
        // by that, and on one machine all cuts are alike otherwise.
        let (partition, bound_s) =
            if as_good(&found) { (found, slowest_s) } else { (partition, value.seconds) };
        let settled = self.settle(&partition.order, room, bound_s, rows);
        let partition = settled.filter(as_good).unwrap_or(partition);
        let least_s = match (exact, self.is_small()) {
            (true, _) => Some(value.seconds),
            (false, true) => Some(least_s),
            (false, false) => None,
        };
        Best { partition, round_s: f64::INFINITY, least_s }
    }

    /// An order of the same devices, none of whose stages and links has to take longer than `slowest_s`, in which a step
    /// goes round in less time where hops differ: no part of the way turned round, and no device put elsewhere, makes it
    /// shorter.
    fn nearest_order(&self, room: &Room, found: &Partition, slowest_s: f64, rows: u32) -> Vec<usize> {
        let mut order = found.order.clone();
        if self.crossings().same && self.crossings().same_ends() {
            return order;
        }
        let bound = self.bound(room, slowest_s, rows);
        let places: Vec<(usize, usize)> =
            (0..order.len()).flat_map(|one| (0..one).map(move |other| (other, one))).collect();
        let (mut improved, mut tries) = (true, MOST_CHANGES);
        while improved && tries > 0 {
            improved = false;
            for (one, other) in &places {
                let changes: [fn(&mut [usize]); 3] =
                    [|part| part.reverse(), |part| part.rotate_left(1), |part| part.rotate_right(1)];
                for change in changes.into_iter().take(tries) {
                    tries -= 1;
                    let mut changed = order.clone();
                    change(&mut changed[*one..=*other]);
                    if self.hops_s(&changed, rows) < self.hops_s(&order, rows) * (1.0 - LEAST)
                        && self.passes(&changed, &bound)
                        && self.chain(&changed, bound).is_some()
                    {
                        (order, improved) = (changed, true);
                    }
                }
            }
        }
        order
    }

    fn best_for_one(&self, room: &Room, stages: usize, most_s: f64) -> Option<Best> {
        let base = self.find(self.bound(room, f64::INFINITY, 1), stages)?;
        let table = self.table(room, stages, Kind::default());
        let course = self.course(&table, stages);
        let mut given = base.order.clone();
        given.sort_unstable();
        let starts = [given, base.order.clone(), self.fastest_devices(&table, stages)];
        let climbed = course.climb(&table, &starts).filter(|(_, value)| value.seconds < most_s);
        let (best, exact) = if self.is_small() {
            // Whatever is not below the limit is as good as nothing.
            let limit = most_s.is_finite().then(|| (base, Value::of(most_s)));
            let outcome = course.best(climbed.or(limit));
            (outcome.best, outcome.exact)
        } else {
            (climbed, false)
        };
        let (partition, value) = best.filter(|(_, value)| value.seconds < most_s)?;
        let partition = self.settle_for_one(&course, partition, value.seconds, room);
        Some(Best { partition, round_s: value.seconds, least_s: exact.then_some(value.seconds) })
    }

    /// The devices that take the least time for a layer, in the given order.
    fn fastest_devices(&self, table: &Table, stages: usize) -> Vec<usize> {
        let pace_s = |device: usize| {
            let layers = table.layers();
            let paces = (0..layers).filter_map(|start| {
                let end = table.furthest(device, start);
                (end > start).then(|| table.value(device, start, end).seconds / (end - start) as f64)
            });
            paces.fold(f64::INFINITY, f64::min)
        };
        let mut devices: Vec<(f64, usize)> =
            (0..table.devices()).map(|device| (pace_s(device), device)).collect();
        devices.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut order: Vec<usize> = devices.into_iter().take(stages).map(|(_, device)| device).collect();
        order.sort_unstable();
        order
    }

    /// The partition over the same devices that takes one stream as long, or hardly longer where that saves reading what
    /// devices hold already; of several such in the given order, and even.
    fn settle_for_one(&self, course: &Course<'_>, found: Partition, taken_s: f64, room: &Room) -> Partition {
        if !self.cuts().is_empty() {
            return found;
        }
        let holding = found.order.iter().any(|device| self.held(*device).is_some());
        let mut given = found.order.clone();
        given.sort_unstable();
        let mut orders = vec![given, found.order.clone()];
        if holding {
            let place = |device: &usize| self.held(*device).map_or(usize::MAX, |held| held.start);
            let mut held = found.order.clone();
            held.sort_by_key(place);
            orders.insert(0, held);
        }
        // Seconds for every byte that is read: all of the model is worth the slack.
        let byte_s = if holding { SLACK * taken_s / (self.all_weights().0 as f64).max(1.0) } else { 0.0 };
        let bound = self.bound(room, f64::INFINITY, 1);
        let price = |device, range: LayerRange| {
            let stage_s = self.stage_s(device, range, 1);
            stage_s + byte_s * self.added(device, range).0 as f64 + SAME / 10.0 * stage_s * stage_s / taken_s
        };
        let most_s = taken_s * (1.0 + if holding { SLACK } else { SAME });
        let mut best: Option<(Partition, f64)> = None;
        let found_hops_s = self.hops_s(&found.order, 1);
        for order in orders {
            let hops_s = self.hops_s(&order, 1);
            if !self.passes(&order, &bound) || (!holding && hops_s > found_hops_s * (1.0 + LEAST)) {
                continue;
            }
            let Some((partition, price_s)) = self.cheapest(order, bound, 0.0, price, |sum, one| sum + one)
            else {
                continue;
            };
            let value = course.value(course.table, &partition);
            let price_s = price_s + hops_s;
            if value.is_some_and(|value| value.seconds <= most_s)
                && best.as_ref().is_none_or(|(_, least_s)| price_s < least_s * (1.0 - SAME))
            {
                best = Some((partition, price_s));
            }
        }
        best.map_or(found, |(partition, _)| partition)
    }

    /// The best partition into exactly `stages` stages, some of which read again for every step what does not fit: as few
    /// layers as possible.
    pub(super) fn best_streaming(&self, room: &Room, stages: usize) -> Option<Best> {
        let table = self.table(room, stages, Kind { streaming: true, crowded: false });
        let course = self.course(&table, stages);
        let mut largest: Vec<usize> = (0..self.budgets().len()).collect();
        largest.sort_by_key(|device| std::cmp::Reverse(self.budgets()[*device]));
        largest.truncate(stages);
        let mut given = largest.clone();
        given.sort_unstable();
        let climbed = course.climb(&table, &[given, largest]);
        if !self.is_small() {
            return climbed.map(|(partition, _)| Best { partition, round_s: f64::INFINITY, least_s: None });
        }
        let outcome = course.best(climbed);
        let (partition, value) = outcome.best?;
        Some(Best { partition, round_s: f64::INFINITY, least_s: outcome.exact.then_some(value.seconds) })
    }
}

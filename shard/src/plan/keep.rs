//! Plans that leave devices what they hold.
//!
//! Weights have to be read, and for a plan that takes over from another also to fit beside it, so of partitions that are
//! about as fast the one is best that adds the fewest bytes to what devices hold. Devices that hold some of the model
//! stay in the order of what they hold, and each other one is put between them where that adds least: a new device
//! between two takes the end of one and the beginning of the other, and neither has to read anything.

use super::search::{Partition, Search};
use crate::cost::Room;

/// How much slower the slowest stage may be for the sake of what devices hold: less than predictions are wrong by.
const SLACK: f64 = 1.02;
/// Most places that are tried for devices that hold nothing: enough for one among sixteen, or for four at once among
/// eight. What is left over goes to the end.
const MOST_PLACES: usize = 48;

/// Bytes that have to be read, and the sum of the squares of the stages' times, by which equals are told apart.
type Price = (u64, f64);

impl Search<'_> {
    /// The partition over the devices of `chosen`, in an order of its own, that adds the least to what they hold and
    /// whose slowest stage takes about `slowest_s`. `None` where none of them holds anything, or no such order will do.
    pub(super) fn keeping(
        &self,
        chosen: &[usize],
        room: &Room,
        slowest_s: f64,
        rows: u32,
    ) -> Option<Partition> {
        let (mut order, mut others): (Vec<usize>, Vec<usize>) =
            chosen.iter().copied().partition(|device| self.held(*device).is_some());
        if order.is_empty() {
            return None;
        }
        order.sort_by_key(|device| self.held(*device).map(|held| (held.start, held.end)));
        others.sort_unstable();
        let mut places_left = MOST_PLACES;
        while let Some(device) = (!others.is_empty()).then(|| others.remove(0)) {
            // All the others stand behind it for now, so that every order that is tried is a whole one.
            let places: Vec<usize> =
                if places_left > order.len() { (0..=order.len()).collect() } else { vec![order.len()] };
            places_left = places_left.saturating_sub(places.len());
            let whole = |place: usize| {
                let (before, behind) = order.split_at(place);
                [before, &[device], behind, &others].concat()
            };
            let priced = places.iter().filter_map(|place| {
                let (_, price) = self.cheapest_kept(whole(*place), room, slowest_s, rows)?;
                Some((*place, price))
            });
            let best = priced.min_by(|(_, a), (_, b)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            order.insert(best.map_or(order.len(), |(place, _)| place), device);
        }
        self.cheapest_kept(order, room, slowest_s, rows).map(|(partition, _)| partition)
    }

    fn cheapest_kept(
        &self,
        order: Vec<usize>,
        room: &Room,
        slowest_s: f64,
        rows: u32,
    ) -> Option<(Partition, Price)> {
        let bound = self.bound(room, slowest_s * SLACK, rows);
        if !self.passes(&order, &bound) {
            return None;
        }
        let price = |device, range| (self.added(device, range).0, self.stage_s(device, range, rows).powi(2));
        let add = |sum: Price, one: Price| (sum.0.saturating_add(one.0), sum.1 + one.1);
        self.cheapest(order, bound, (0, 0.0), price, add)
    }
}

//! What all hops of a plan's devices cost, looked up millions of times.

use super::PlanInput;

/// What the way of token ids to the first stage and from the last one counts beside everything else: it keeps no stage
/// waiting, and only decides between orders that are as fast.
const END_SHARE: f64 = 1e-6;

/// The hops between devices, and to and from the coordinator.
pub(super) struct Crossings {
    devices: usize,
    /// Seconds of an empty frame by both devices.
    fixed_s: Vec<f64>,
    /// Seconds that every row adds, by both devices.
    row_s: Vec<f64>,
    /// Whether one device may come right after another, by both.
    reach: Vec<bool>,
    /// Seconds of token ids from the coordinator to a device, or back.
    end_s: Vec<f64>,
    /// Whether it does not matter who comes after whom.
    pub(super) same: bool,
}

impl Crossings {
    /// Those of hidden states of `hidden` values.
    pub(super) fn of(input: &PlanInput, hidden: u64) -> Crossings {
        let devices = input.devices.len();
        let row_bytes = hidden as f64 * f64::from(input.wire_value_bytes);
        let pairs = (0..devices * devices).map(|pair| input.links.between(pair / devices, pair % devices));
        let (fixed_s, row_s) = pairs.map(|hop| (hop.crossing_s(0.0), row_bytes / hop.bytes_per_s)).unzip();
        let mut reach = vec![true; devices * devices];
        for (one, other) in input.apart.iter().filter(|pair| pair.0.max(pair.1) < devices) {
            reach[one * devices + other] = false;
            reach[other * devices + one] = false;
        }
        Crossings {
            devices,
            fixed_s,
            row_s,
            reach,
            end_s: (0..devices).map(|device| input.links.to_coordinator(device).crossing_s(0.0)).collect(),
            same: input.links.pairs.is_empty() && input.apart.is_empty(),
        }
    }

    /// Seconds of `rows` hidden states from one device to the next; infinite where they cannot reach each other.
    pub(super) fn between_s(&self, one: usize, other: usize, rows: f64) -> f64 {
        let pair = one * self.devices + other;
        if self.reach[pair] { self.fixed_s[pair] + rows * self.row_s[pair] } else { f64::INFINITY }
    }

    /// Seconds for which `rows` hidden states keep the link busy, so that others wait; infinite where there is none.
    pub(super) fn busy_s(&self, one: usize, other: usize, rows: f64) -> f64 {
        let pair = one * self.devices + other;
        if self.reach[pair] { rows * self.row_s[pair] } else { f64::INFINITY }
    }

    /// Seconds until the first stage knows what the last one drew, which is next to no bytes.
    pub(super) fn closing_s(&self, first: usize, last: usize) -> f64 {
        if first == last { 0.0 } else { self.fixed_s[last * self.devices + first] }
    }

    /// What the way of token ids between the coordinator and a device counts, in seconds.
    pub(super) fn end_s(&self, device: usize) -> f64 {
        self.end_s[device] * END_SHARE
    }

    /// The longest that a link is kept busy between two devices, in seconds; infinite where some are apart, zero without
    /// any two.
    pub(super) fn longest_busy_s(&self, rows: f64) -> f64 {
        self.pairs().map(|(one, other)| self.busy_s(one, other, rows)).fold(0.0, f64::max)
    }

    /// The shortest that a link is kept busy between two devices, in seconds; infinite without any two.
    pub(super) fn shortest_busy_s(&self, rows: f64) -> f64 {
        self.pairs().map(|(one, other)| self.busy_s(one, other, rows)).fold(f64::INFINITY, f64::min)
    }

    /// The shortest hop between two devices, in seconds; infinite without any two.
    pub(super) fn shortest_s(&self, rows: f64) -> f64 {
        self.pairs().map(|(one, other)| self.between_s(one, other, rows)).fold(f64::INFINITY, f64::min)
    }

    /// The shortest way from a last stage to the first, in seconds; infinite without any two devices.
    pub(super) fn least_closing_s(&self) -> f64 {
        self.pairs().map(|(one, other)| self.closing_s(one, other)).fold(f64::INFINITY, f64::min)
    }

    /// Every two devices; two of them stand for all where all hops are the same.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let devices = if self.same { self.devices.min(2) } else { self.devices };
        (0..devices).flat_map(|one| (0..one).map(move |other| (one, other)))
    }

    /// Whether all devices are as far from the coordinator.
    pub(super) fn same_ends(&self) -> bool {
        self.end_s.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// What the way to the device that is nearest to the coordinator counts, in seconds.
    pub(super) fn least_end_s(&self) -> f64 {
        self.end_s.iter().copied().fold(f64::INFINITY, f64::min) * END_SHARE
    }
}

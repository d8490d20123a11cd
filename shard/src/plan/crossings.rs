//! What all hops of a plan's devices cost, looked up millions of times.

use super::PlanInput;

/// The hops between devices, and to and from the coordinator.
pub(super) struct Crossings {
    devices: usize,
    /// Seconds of an empty frame by both devices; infinite between those that are apart.
    fixed_s: Vec<f64>,
    /// Seconds that every row adds, by both devices.
    row_s: Vec<f64>,
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
        let (mut fixed_s, mut row_s): (Vec<f64>, Vec<f64>) =
            pairs.map(|hop| (hop.crossing_s(0.0), hop.crossing_s(row_bytes) - hop.crossing_s(0.0))).unzip();
        for (one, other) in input.apart.iter().filter(|pair| pair.0.max(pair.1) < devices) {
            for pair in [one * devices + other, other * devices + one] {
                (fixed_s[pair], row_s[pair]) = (f64::INFINITY, 0.0);
            }
        }
        Crossings {
            devices,
            fixed_s,
            row_s,
            end_s: (0..devices).map(|device| input.links.to_coordinator(device).crossing_s(0.0)).collect(),
            same: input.links.pairs.is_empty() && input.apart.is_empty(),
        }
    }

    /// Seconds of `rows` hidden states from one device to the next; infinite where they cannot reach each other.
    pub(super) fn between_s(&self, one: usize, other: usize, rows: f64) -> f64 {
        let pair = one * self.devices + other;
        self.fixed_s[pair] + rows * self.row_s[pair]
    }

    /// Seconds of token ids between the coordinator and a device, one way.
    pub(super) fn end_s(&self, device: usize) -> f64 {
        self.end_s[device]
    }

    /// The longest hop between two devices, in seconds; infinite where some are apart, zero without any two.
    pub(super) fn longest_s(&self, rows: f64) -> f64 {
        self.pairs().map(|(one, other)| self.between_s(one, other, rows)).fold(0.0, f64::max)
    }

    /// The shortest hop between two devices, in seconds; infinite without any two.
    pub(super) fn shortest_s(&self, rows: f64) -> f64 {
        self.pairs().map(|(one, other)| self.between_s(one, other, rows)).fold(f64::INFINITY, f64::min)
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

    /// The nearest device's way to the coordinator, in seconds.
    pub(super) fn least_end_s(&self) -> f64 {
        self.end_s.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

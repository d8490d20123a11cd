//! What it costs to go from one device to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What crossing a link costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HopCost {
    /// Round trip, in microseconds.
    pub rtt_us: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
}

impl HopCost {
    /// Seconds until `bytes` have crossed: half a round trip, and what the bytes take at the link's rate.
    pub fn crossing_s(&self, bytes: f64) -> f64 {
        self.rtt_us * 0.5e-6 + bytes / self.bytes_per_s
    }
}

impl Default for HopCost {
    /// Gigabit Ethernet through one switch.
    fn default() -> Self {
        HopCost { rtt_us: 300.0, bytes_per_s: 118e6 }
    }
}

/// The links between devices, and to the coordinator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Links {
    /// Between any two of which nothing else is said.
    pub default: HopCost,
    /// Between two devices, by their indices, the smaller one first; written as `[one, other, hop]` each.
    #[serde(with = "listed")]
    pub pairs: BTreeMap<(usize, usize), HopCost>,
    /// From the coordinator to a device; where nothing is said, the default.
    pub coordinator: BTreeMap<usize, HopCost>,
}

impl Links {
    /// The same everywhere.
    pub fn all(hop: HopCost) -> Links {
        Links { default: hop, pairs: BTreeMap::new(), coordinator: BTreeMap::new() }
    }

    /// Between two devices.
    pub fn between(&self, one: usize, other: usize) -> HopCost {
        *self.pairs.get(&(one.min(other), one.max(other))).unwrap_or(&self.default)
    }

    /// Between the coordinator and a device.
    pub fn to_coordinator(&self, device: usize) -> HopCost {
        *self.coordinator.get(&device).unwrap_or(&self.default)
    }

    /// What is known of those among `devices`, which are counted anew in the order given.
    pub(super) fn only(&self, devices: &[usize]) -> Links {
        let mut links = Links::all(self.default);
        for (one, device) in devices.iter().enumerate() {
            links.coordinator.extend(self.coordinator.get(device).map(|hop| (one, *hop)));
            for (other, neighbour) in devices.iter().enumerate().skip(one + 1) {
                let pair = (*device.min(neighbour), *device.max(neighbour));
                links.pairs.extend(self.pairs.get(&pair).map(|hop| ((one, other), *hop)));
            }
        }
        links
    }

    /// Every one that is spoken of.
    pub(super) fn hops(&self) -> impl Iterator<Item = &HopCost> {
        std::iter::once(&self.default).chain(self.pairs.values()).chain(self.coordinator.values())
    }
}

/// Pairs as a list, since they cannot be the keys of a JSON object.
mod listed {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::HopCost;

    pub(super) fn serialize<S: Serializer>(
        pairs: &BTreeMap<(usize, usize), HopCost>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(pairs.iter().map(|((one, other), hop)| (one, other, hop)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<(usize, usize), HopCost>, D::Error> {
        let pairs = Vec::<(usize, usize, HopCost)>::deserialize(deserializer)?;
        Ok(pairs.into_iter().map(|(one, other, hop)| ((one.min(other), one.max(other)), hop)).collect())
    }
}

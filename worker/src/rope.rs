//! The angles of rotary position embedding.

use brigade_shard::spec::Rope;

/// How fast each pair of channels turns, in radians per position.
///
/// Frequencies and angles are taken in f64, so that they stay exact to f32 at any position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    per_position: Vec<f64>,
    magnitude: f64,
}

impl RopeFrequencies {
    /// The frequencies of `rope`: `position_scale * base^(-2i / width) / divisors[i]`.
    pub fn new(rope: &Rope, divisors: Option<&[f32]>) -> RopeFrequencies {
        let frequency = |i: usize| {
            let exponent = -2.0 * i as f64 / rope.width as f64;
            let divisor = divisors.and_then(|all| all.get(i)).map_or(1.0, |&d| f64::from(d));
            f64::from(rope.position_scale) * f64::from(rope.base).powf(exponent) / divisor
        };
        RopeFrequencies {
            per_position: (0..rope.width / 2).map(frequency).collect(),
            magnitude: f64::from(rope.magnitude),
        }
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.per_position.len()
    }

    /// Replaces `cos` and `sin` by the angles' cosines and sines times the rope's magnitude, `[positions, pairs]`.
    pub fn angles(&self, positions: impl Iterator<Item = usize>, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        cos.clear();
        sin.clear();
        for position in positions {
            for frequency in &self.per_position {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push((c * self.magnitude) as f32);
                sin.push((s * self.magnitude) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use brigade_shard::spec::{RopeDivisors, RopePairing};

    use super::*;

    #[test]
    fn angles_follow_the_formula_at_far_positions() {
        let rope = Rope {
            width: 64,
            pairing: RopePairing::Adjacent,
            base: 500_000.0,
            position_scale: 0.5,
            divisors: RopeDivisors::Fixed,
            magnitude: 1.0,
        };
        let divisors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 / 4.0).collect();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        RopeFrequencies::new(&rope, Some(&divisors)).angles([131_071].into_iter(), &mut cos, &mut sin);
        for i in 0..32 {
            let angle = 131_071.0 * 0.5 * 500_000f64.powf(-(i as f64) / 32.0) / (1.0 + i as f64 / 4.0);
            assert!((f64::from(cos[i]) - angle.cos()).abs() < 1e-7, "pair {i}");
            assert!((f64::from(sin[i]) - angle.sin()).abs() < 1e-7, "pair {i}");
        }
    }
}

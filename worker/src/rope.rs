//! The angles of rotary position embedding.

use std::f64::consts::PI;

use brigade_shard::spec::{Rope, RopeScaling};

/// How fast each pair of channels turns, in radians per position.
///
/// Frequencies and angles are taken in f64, so that they stay exact to f32 at any position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    per_position: Vec<f64>,
    magnitude: f64,
}

impl RopeFrequencies {
    /// The frequencies of `rope`: `base^(-2i / width) / divisors[i]`, slowed as its scaling says.
    pub fn new(rope: &Rope, divisors: Option<&[f32]>) -> RopeFrequencies {
        let frequency = |i: usize| {
            let exponent = -2.0 * i as f64 / rope.width as f64;
            let divisor = divisors.and_then(|all| all.get(i)).map_or(1.0, |&d| f64::from(d));
            slowing(rope, i) * f64::from(rope.base).powf(exponent) / divisor
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

/// The factor of a rope's scaling on the frequency of pair `i`.
fn slowing(rope: &Rope, i: usize) -> f64 {
    match rope.scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } => 1.0 / f64::from(factor),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, whole_pairs } => {
            let width = rope.width as f64;
            // The pair that turns so many times within the original context, as a real number.
            let pair_of = |turns: f32| {
                let wavelength = original_context as f64 / (f64::from(turns) * 2.0 * PI);
                width * wavelength.ln() / (2.0 * f64::from(rope.base).ln())
            };
            let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
            if whole_pairs {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, last) = (first.max(0.0), last.min(width - 1.0));
            // The least length of the ramp keeps it defined where both ends meet.
            let slowed = ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
            slowed / f64::from(factor) + (1.0 - slowed)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use brigade_shard::spec::{RopeDivisors, RopePairing};

    use super::*;

    #[test]
    fn angles_follow_the_formula_at_far_positions() {
        let rope = Rope {
            width: 64,
            pairing: RopePairing::Adjacent,
            base: 500_000.0,
            scaling: RopeScaling::Linear { factor: 2.0 },
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

    #[test]
    fn yarn_keeps_fast_pairs_slows_slow_ones_and_blends_between() {
        let yarn = |whole_pairs| RopeScaling::Yarn {
            factor: 40.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            whole_pairs,
        };
        let rope = Rope {
            width: 64,
            pairing: RopePairing::Adjacent,
            base: 10_000.0,
            scaling: yarn(true),
            divisors: RopeDivisors::None,
            magnitude: 1.0,
        };
        // 64 ln(4096 / (32 2 pi)) / (2 ln 10000) = 10.47 and 64 ln(4096 / (2 pi)) / (2 ln 10000) = 22.51: the ramp goes
        // from pair 10 to pair 23.
        for (pair, wanted) in [(0, 1.0), (10, 1.0), (11, 1.0 - 0.975 / 13.0), (22, 1.0 - 0.975 * 12.0 / 13.0)]
        {
            assert!((slowing(&rope, pair) - wanted).abs() < 1e-12, "pair {pair}: {}", slowing(&rope, pair));
        }
        for pair in 23..32 {
            assert!((slowing(&rope, pair) - 1.0 / 40.0).abs() < 1e-12, "pair {pair}");
        }
        let rope = Rope { scaling: yarn(false), ..rope };
        let turned = |turns: f64| 64.0 * (4096.0 / (turns * TAU)).ln() / (2.0 * 10_000f64.ln());
        let slowed = (16.0 - turned(32.0)) / (turned(1.0) - turned(32.0));
        assert!((slowing(&rope, 16) - (1.0 - 0.975 * slowed)).abs() < 1e-6, "{}", slowing(&rope, 16));
    }
}

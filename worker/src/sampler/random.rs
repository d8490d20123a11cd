//! Random numbers by position instead of by order.

/// A number in 0..1 that depends on the seed and the position of the token to be drawn, and on nothing else.
///
/// The seed is scrambled, moved on by the position in steps of the golden ratio, and scrambled again with the mixing
/// function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014); the upper 53
/// bits are the number.
pub fn uniform(seed: u64, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let stream = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(stream.wrapping_add(GOLDEN.wrapping_mul(position.wrapping_add(1))));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn numbers_are_spread_evenly_over_seeds_and_positions() {
        for seeds_vary in [true, false] {
            let mut buckets = [0u32; 16];
            for i in 0..16_000 {
                let number = if seeds_vary { uniform(i, 7) } else { uniform(7, i) };
                assert!((0.0..1.0).contains(&number));
                buckets[(number * 16.0) as usize] += 1;
            }
            // 1000 expected in each, with a standard deviation of 31.
            assert!(buckets.iter().all(|&n| (850..1150).contains(&n)), "{buckets:?}");
        }
    }
}

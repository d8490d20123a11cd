//! Random numbers that are the same at every run.

/// Random numbers for weights and inputs; a sequence belongs to its seed.
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number in 0..1.
    pub fn uniform(&mut self) -> f32 {
        // Knuth's linear congruential generator (MMIX), of which the upper bits are used.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A number in `low..high`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + self.uniform() * (high - low)
    }

    /// `count` numbers of mean 0 and this standard deviation, about normal.
    pub fn normals(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        let mut normal =
            || (0..6).map(|_| self.uniform() - 0.5).sum::<f32>() * std::f32::consts::SQRT_2 * deviation;
        (0..count).map(|_| normal()).collect()
    }

    /// `count` token ids below `vocab`.
    pub fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| (self.uniform() * vocab as f32) as u32 % vocab.max(1) as u32).collect()
    }
}

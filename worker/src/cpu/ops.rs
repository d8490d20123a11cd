//! Norm, rotary embedding and gating: what happens to each row alone.

use brigade_shard::spec::RopePairing;

use crate::exponential::exp;
use crate::simd::kernel;

/// How many sums of squares run side by side.
const SQUARE_LANES: usize = 8;

kernel! {
    /// x / sqrt(mean(x^2) + epsilon) * weight, with the mean taken in f64.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let mut lanes = [0f64; SQUARE_LANES];
        let (chunks, rest) = x.as_chunks::<SQUARE_LANES>();
        for chunk in chunks {
            for i in 0..SQUARE_LANES {
                lanes[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        let sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
        let mean = (sum / x.len() as f64) as f32;
        let factor = 1.0 / (mean + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

kernel! {
    /// gate * sigmoid(gate) * up, into `gate`.
    pub(crate) fn silu_gate(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

kernel! {
    /// Adds `other` to `x`.
    pub(crate) fn add(x: &mut [f32], other: &[f32]) {
        for (x, other) in x.iter_mut().zip(other) {
            *x += other;
        }
    }
}

/// Turns the first channels of each head of a row.
pub(crate) fn rope(row: &mut [f32], head_width: usize, pairing: RopePairing, cos: &[f32], sin: &[f32]) {
    let pairs = cos.len();
    for head in row.chunks_exact_mut(head_width) {
        for i in 0..pairs {
            let (a, b) = match pairing {
                RopePairing::Adjacent => (2 * i, 2 * i + 1),
                RopePairing::Halves => (i, i + pairs),
            };
            let (x, y) = (head[a], head[b]);
            head[a] = x * cos[i] - y * sin[i];
            head[b] = x * sin[i] + y * cos[i];
        }
    }
}

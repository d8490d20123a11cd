//! Norm, rotary embedding and gating: what happens to each row alone.

use brigade_shard::spec::{Norm, RopePairing};

use crate::exponential::exp;
use crate::simd::kernel;

/// How many sums of squares run side by side.
const SQUARE_LANES: usize = 8;

/// The sum of `each` value of `x`, in f64 and in a fixed order.
#[inline(always)]
fn sum(x: &[f32], each: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; SQUARE_LANES];
    let (chunks, rest) = x.as_chunks::<SQUARE_LANES>();
    for chunk in chunks {
        for i in 0..SQUARE_LANES {
            lanes[i] += each(f64::from(chunk[i]));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += each(f64::from(x));
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// What a norm takes from every value, and the factor on what is left.
#[inline(always)]
fn shift_and_factor(norm: Norm, x: &[f32]) -> (f32, f32) {
    let count = x.len() as f64;
    match norm {
        Norm::Rms { epsilon } => {
            let mean = (sum(x, |x| x * x) / count) as f32;
            (0.0, 1.0 / (mean + epsilon).sqrt())
        }
        Norm::Layer { epsilon } => {
            let mean = sum(x, |x| x) / count;
            let variance = (sum(x, |x| (x - mean) * (x - mean)) / count) as f32;
            (mean as f32, 1.0 / (variance + epsilon).sqrt())
        }
    }
}

kernel! {
    /// Normalises a row, with means taken in f64.
    pub(crate) fn norm(norm: Norm, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let (shift, factor) = shift_and_factor(norm, x);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (x - shift) * factor * weight;
        }
    }
}

kernel! {
    /// Normalises each part of `width` values of a row, with a weight per value of a part or of the row.
    pub(crate) fn norm_parts(norm: Norm, row: &mut [f32], width: usize, weight: &[f32]) {
        for (part, weight) in row.chunks_exact_mut(width).zip(weight.chunks_exact(width).cycle()) {
            let (shift, factor) = shift_and_factor(norm, part);
            for (x, weight) in part.iter_mut().zip(weight) {
                *x = (*x - shift) * factor * weight;
            }
        }
    }
}

kernel! {
    /// Adds `factor` times `other` to `x`.
    pub(crate) fn add_product(x: &mut [f32], other: &[f32], factor: f32) {
        for (x, other) in x.iter_mut().zip(other) {
            *x += other * factor;
        }
    }
}

kernel! {
    /// Multiplies every value.
    pub(crate) fn scale(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

kernel! {
    /// gelu(gate) * up, into `gate`: (1 + tanh(t)) / 2 is the sigmoid of 2 t.
    pub(crate) fn gelu_gate(gate: &mut [f32], up: &[f32]) {
        const TWICE_ROOT_OF_2_OVER_PI: f32 = 1.595_769;
        for (gate, up) in gate.iter_mut().zip(up) {
            let x = *gate;
            let twice = TWICE_ROOT_OF_2_OVER_PI * (x + 0.044_715 * x * x * x);
            *gate = x / (1.0 + exp(-twice)) * up;
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
    /// gate * sigmoid(1.702 gate) * (up + 1), into `gate`, with a gate of at most 7 and |up| of at most 7. What is not a
    /// number stays so.
    pub(crate) fn clamped_gate(gate: &mut [f32], up: &[f32]) {
        const STEEPNESS: f32 = 1.702;
        const LIMIT: f32 = 7.0;
        for (gate, up) in gate.iter_mut().zip(up) {
            let x = if *gate > LIMIT { LIMIT } else { *gate };
            let up = if *up > LIMIT { LIMIT } else { *up };
            let up = if up < -LIMIT { -LIMIT } else { up };
            *gate = x / (1.0 + exp(-STEEPNESS * x)) * (up + 1.0);
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

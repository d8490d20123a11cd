//! Log-probabilities, and the most likely tokens.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::SampleError;
use crate::exponential::exp;
use crate::simd::{Simd, kernel};

/// What turns a logit into a log-probability: the logarithm of the softmax's denominator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSoftmax {
    largest: f32,
    log_sum: f64,
}

impl LogSoftmax {
    /// Of all logits of a position; fails where one is not finite.
    pub fn of(logits: &[f32]) -> Result<LogSoftmax, SampleError> {
        let simd = Simd::detect();
        check_finite(logits)?;
        let largest = maximum(simd, logits);
        Ok(LogSoftmax { largest, log_sum: sum_of_exponentials(simd, logits, largest).ln() })
    }

    /// The log-probability (natural logarithm) of a token with this logit.
    pub fn of_logit(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.largest) - self.log_sum) as f32
    }
}

pub(super) fn check_finite(logits: &[f32]) -> Result<(), SampleError> {
    if sum_of_zeros(Simd::detect(), logits) == 0.0 {
        return Ok(());
    }
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(token) => Err(SampleError::NotFinite { token: token as u32, value: logits[token] }),
        None => Ok(()),
    }
}

// Each of these keeps eight running results, element `i` going to the `i % 8`th, so that they can be computed side by
// side.

kernel! {
    /// The sum of x * 0, which is 0 for finite numbers and NaN where there is another.
    fn sum_of_zeros(logits: &[f32]) -> f32 {
        let mut sums = [0f32; 8];
        let (chunks, rest) = logits.as_chunks::<8>();
        for chunk in chunks {
            for i in 0..8 {
                sums[i] += chunk[i] * 0.0;
            }
        }
        sums.iter().sum::<f32>() + rest.iter().map(|x| x * 0.0).sum::<f32>()
    }
}

kernel! {
    fn maximum(logits: &[f32]) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let mut largest = [f32::NEG_INFINITY; 8];
        let (chunks, rest) = logits.as_chunks::<8>();
        for chunk in chunks {
            for i in 0..8 {
                largest[i] = larger(largest[i], chunk[i]);
            }
        }
        largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
    }
}

kernel! {
    /// The sum of e^(logit - largest), in f64.
    fn sum_of_exponentials(logits: &[f32], largest: f32) -> f64 {
        let mut sums = [0f64; 8];
        let (chunks, rest) = logits.as_chunks::<8>();
        for chunk in chunks {
            let mut values = [0f32; 8];
            for i in 0..8 {
                values[i] = exp(chunk[i] - largest);
            }
            for i in 0..8 {
                sums[i] += f64::from(values[i]);
            }
        }
        for (sum, logit) in sums.iter_mut().zip(rest) {
            *sum += f64::from(exp(logit - largest));
        }
        sums.iter().sum()
    }
}

/// A token ranked by its logit; of two equal logits the lower id is the better.
#[derive(Clone, Copy, PartialEq)]
struct Ranked {
    logit: f32,
    id: u32,
}

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The `count` tokens with the largest logits, best first, ties to the lower id.
pub fn most_likely(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let mut best: BinaryHeap<Reverse<Ranked>> = BinaryHeap::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        // Once the heap is full, most tokens fail this one comparison; an equal logit has a higher id and loses.
        if best.len() == count && logit <= least {
            continue;
        }
        best.push(Reverse(Ranked { logit, id: id as u32 }));
        if best.len() > count {
            best.pop();
        }
        if best.len() == count {
            least = best.peek().map_or(f32::NEG_INFINITY, |Reverse(ranked)| ranked.logit);
        }
    }
    // A heap of reversed entries comes out in descending order.
    best.into_sorted_vec().into_iter().map(|Reverse(ranked)| (ranked.id, ranked.logit)).collect()
}

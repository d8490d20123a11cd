//! What changes logits before the softmax: `min_tokens`, `logit_bias` and the penalties, in this order.

use std::collections::HashMap;

use brigade_proto::sampling::Sampling;

use super::History;

pub(super) fn apply(logits: &mut [f32], sampling: &Sampling, history: History<'_>) {
    let answer = history.answer();
    if answer.len() < sampling.min_tokens as usize {
        for &id in &sampling.end_ids {
            change(logits, id, |_| f32::NEG_INFINITY);
        }
    }
    for &(id, bias) in &sampling.logit_bias {
        change(logits, id, |logit| logit + bias);
    }
    if sampling.repetition_penalty != 1.0 {
        let penalty = sampling.repetition_penalty;
        for &id in count(history.tokens).keys() {
            change(logits, id, |logit| if logit > 0.0 { logit / penalty } else { logit * penalty });
        }
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        for (&id, &times) in &count(answer) {
            let penalty = sampling.presence_penalty + sampling.frequency_penalty * times as f32;
            change(logits, id, |logit| logit - penalty);
        }
    }
}

fn count(tokens: &[u32]) -> HashMap<u32, u32> {
    let mut counts = HashMap::new();
    for &token in tokens {
        *counts.entry(token).or_insert(0) += 1;
    }
    counts
}

fn change(logits: &mut [f32], id: u32, new: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = new(*logit);
    }
}

//! Choosing the next token from the logits.
//!
//! Pure: the same logits, history and parameters always give the same token. The random number of a draw depends on the
//! seed and the position alone, so that a replay, or a draft that runs ahead, draws what was drawn before.

mod likelihood;
mod penalties;
mod random;

use brigade_proto::sampling::Sampling;

pub use likelihood::{LogSoftmax, most_likely};
pub use random::uniform;

use crate::exponential::exp;

/// Logits or parameters that no token can be drawn with.
#[derive(Debug, thiserror::Error, PartialEq)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum SampleError {
    /// The model computed nonsense.
    #[error("the logit of token {token} is {value}: the weights or hidden states are damaged")]
    NotFinite { token: u32, value: f32 },
    /// Nothing is left to draw.
    #[error("no token can be drawn: logit_bias and min_tokens rule out all of them")]
    NothingLeft,
    /// A parameter is out of its range.
    #[error("sampling parameter {name} is {value}, {wanted}")]
    Parameter { name: &'static str, value: f64, wanted: &'static str },
    /// A parameter names a token that the model does not have.
    #[error("{name} names token {token}, and the vocabulary has {vocab} tokens")]
    UnknownToken { name: &'static str, token: u32, vocab: usize },
}

/// What has been said before the token to be drawn.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// All tokens of the sequence, prompt and answer.
    pub tokens: &'a [u32],
    /// How many of them are the prompt.
    pub prompt_tokens: usize,
}

impl<'a> History<'a> {
    /// The first `tokens` tokens of it.
    pub fn up_to(self, tokens: usize) -> History<'a> {
        History { tokens: self.tokens.get(..tokens).unwrap_or(self.tokens), ..self }
    }

    /// The tokens after the prompt.
    pub fn answer(&self) -> &[u32] {
        self.tokens.get(self.prompt_tokens..).unwrap_or(&[])
    }
}

/// Checks the parameters of a sequence for a model of `vocab` tokens.
pub fn check(sampling: &Sampling, vocab: usize) -> Result<(), SampleError> {
    let range = |name, value: f32, fits: bool, wanted| {
        if fits { Ok(()) } else { Err(SampleError::Parameter { name, value: f64::from(value), wanted }) }
    };
    let Sampling { temperature, top_p, min_p, .. } = *sampling;
    range("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "wanted 0 or more")?;
    range("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "wanted more than 0 and at most 1")?;
    range("min_p", min_p, (0.0..=1.0).contains(&min_p), "wanted 0 to 1")?;
    let repetition = sampling.repetition_penalty;
    range(
        "repetition_penalty",
        repetition,
        repetition.is_finite() && repetition > 0.0,
        "wanted more than 0",
    )?;
    for (name, value) in
        [("presence_penalty", sampling.presence_penalty), ("frequency_penalty", sampling.frequency_penalty)]
    {
        range(name, value, value.is_finite(), "wanted a number")?;
    }
    for &(token, bias) in &sampling.logit_bias {
        range("logit_bias", bias, !bias.is_nan() && bias < f32::INFINITY, "wanted a number")?;
        known("logit_bias", token, vocab)?;
    }
    sampling.end_ids.iter().try_for_each(|&token| known("end_ids", token, vocab))
}

fn known(name: &'static str, token: u32, vocab: usize) -> Result<(), SampleError> {
    if (token as usize) < vocab { Ok(()) } else { Err(SampleError::UnknownToken { name, token, vocab }) }
}

/// Draws tokens; keeps its scratch memory (twice the logits) from one draw to the next.
#[derive(Debug, Default)]
pub struct Sampler {
    weights: Vec<f32>,
    candidates: Vec<u32>,
}

impl Sampler {
    /// The token after `history`, whose logits (`[vocab]`, finite) are given.
    ///
    /// # Errors
    /// Where a logit is not finite, or the parameters leave no token.
    pub fn draw(
        &mut self,
        logits: &[f32],
        sampling: &Sampling,
        history: History<'_>,
    ) -> Result<u32, SampleError> {
        likelihood::check_finite(logits)?;
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        penalties::apply(&mut self.weights, sampling, history);
        let best = most_likely(&self.weights, 1).first().copied();
        let Some((best, largest)) = best.filter(|(_, logit)| *logit > f32::NEG_INFINITY) else {
            return Err(SampleError::NothingLeft);
        };
        // Dividing by a temperature this small would overflow; it leaves the most likely token all the same.
        let inverse = 1.0 / sampling.temperature;
        if !inverse.is_finite() {
            return Ok(best);
        }
        let least = sampling.min_p;
        for weight in &mut self.weights {
            let ruled_out = *weight == f32::NEG_INFINITY;
            let value = exp((*weight - largest) * inverse);
            *weight = if ruled_out || value < least { 0.0 } else { value };
        }
        let number = uniform(sampling.seed, history.tokens.len() as u64);
        let cut = (sampling.top_k as usize) < logits.len() && sampling.top_k > 0;
        if !cut && sampling.top_p >= 1.0 {
            let ids = 0..self.weights.len() as u32;
            return pick(&self.weights, ids, number).ok_or(SampleError::NothingLeft);
        }
        self.candidates.clear();
        self.candidates.extend((0..self.weights.len() as u32).filter(|&id| self.weights[id as usize] > 0.0));
        if cut {
            keep_likeliest(&self.weights, &mut self.candidates, sampling.top_k as usize);
        }
        if sampling.top_p < 1.0 {
            keep_nucleus(&self.weights, &mut self.candidates, sampling.top_p);
        }
        self.candidates.sort_unstable();
        pick(&self.weights, self.candidates.iter().copied(), number).ok_or(SampleError::NothingLeft)
    }
}

/// Sorts by weight, largest first, and then by id.
fn by_weight(weights: &[f32]) -> impl Fn(&u32, &u32) -> std::cmp::Ordering + '_ {
    |a, b| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b))
}

fn keep_likeliest(weights: &[f32], candidates: &mut Vec<u32>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, by_weight(weights));
        candidates.truncate(count);
    }
}

/// Keeps the smallest set of likeliest candidates that has a share of `top_p` of all candidates' weight.
fn keep_nucleus(weights: &[f32], candidates: &mut Vec<u32>, top_p: f32) {
    candidates.sort_unstable();
    let total: f64 = candidates.iter().map(|&id| f64::from(weights[id as usize])).sum();
    let wanted = total * f64::from(top_p);
    let (mut sorted, mut reached) = (0, 0.0);
    // Nearly always a few tokens are enough, so only as many are sorted as turn out to be needed.
    let mut step = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let part = step.min(rest.len());
        if part < rest.len() {
            rest.select_nth_unstable_by(part, by_weight(weights));
        }
        rest[..part].sort_unstable_by(by_weight(weights));
        for (i, &id) in rest[..part].iter().enumerate() {
            reached += f64::from(weights[id as usize]);
            if reached >= wanted {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += part;
        step *= 4;
    }
}

/// The candidate at which the running sum of weights passes `number` (0..1) of their total.
fn pick(weights: &[f32], ids: impl Iterator<Item = u32> + Clone, number: f64) -> Option<u32> {
    let weight = |id: u32| f64::from(weights[id as usize]);
    let total: f64 = ids.clone().map(weight).sum();
    let target = number * total;
    let (mut sum, mut last) = (0.0, None);
    for id in ids {
        let weight = weight(id);
        if weight > 0.0 {
            sum += weight;
            last = Some(id);
            if sum > target {
                break;
            }
        }
    }
    last
}

//! Which rows of a step want logits, and what becomes of them.

use std::ops::Range;

use brigade_proto::step::{Segment, SegmentOutput, TokenScore};

use super::error::StepError;
use super::sequences::Sequences;
use crate::sampler::{LogSoftmax, SampleError, Sampler, most_likely};

/// A row whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The row, in the step.
    pub(super) row: usize,
    /// Which segment it belongs to.
    pub(super) segment: usize,
    /// The token that follows it, to be scored.
    pub(super) follower: Option<u32>,
    /// Whether the token that follows it is to be drawn.
    pub(super) sample: bool,
}

/// The rows of `segments` that sample or score, in order; all others skip the head.
pub(super) fn wanted_rows(segments: &[Segment]) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut row = 0;
    for (index, segment) in segments.iter().enumerate() {
        for i in 0..segment.tokens.len() {
            let last = i + 1 == segment.tokens.len();
            let next = if last { segment.next_token } else { Some(segment.tokens[i + 1]) };
            let follower = next.filter(|_| segment.score);
            let sample = last && segment.sample;
            if follower.is_some() || sample {
                wanted.push(Wanted { row, segment: index, follower, sample });
            }
            row += 1;
        }
    }
    wanted
}

/// What the outcome of a row depends on beside its logits.
pub(super) struct Outcome<'a> {
    pub(super) segments: &'a [Segment],
    pub(super) sequences: &'a Sequences,
}

impl Outcome<'_> {
    /// Scores and samples one row and notes the result.
    pub(super) fn of_row(
        &self,
        sampler: &mut Sampler,
        wanted: &Wanted,
        logits: &[f32],
        output: &mut SegmentOutput,
    ) -> Result<(), StepError> {
        let segment = &self.segments[wanted.segment];
        let sequence = segment.sequence;
        let failed = |source: SampleError| StepError::Sample { sequence, source };
        let known = self.sequences.get(sequence);
        let top_count = known.as_ref().and_then(|(start, _)| start.sampling.logprobs);
        if let Some(token) = wanted.follower {
            output.scores.push(score(logits, token, top_count.unwrap_or(0)).map_err(failed)?);
        }
        if wanted.sample {
            let (start, history) = known.ok_or(StepError::NoSampling { sequence })?;
            let token = sampler.draw(logits, &start.sampling, history).map_err(failed)?;
            output.sampled = Some(match top_count {
                Some(count) => score(logits, token, count).map_err(failed)?,
                None => TokenScore { token, logprob: 0.0, top: Vec::new() },
            });
        }
        Ok(())
    }
}

fn score(logits: &[f32], token: u32, top_count: u32) -> Result<TokenScore, SampleError> {
    let softmax = LogSoftmax::of(logits)?;
    let top = most_likely(logits, top_count as usize);
    Ok(TokenScore {
        token,
        logprob: softmax.of_logit(logits[token as usize]),
        top: top.into_iter().map(|(id, logit)| (id, softmax.of_logit(logit))).collect(),
    })
}

/// The rows of each segment, in the step.
pub(super) fn segment_rows(segments: &[Segment]) -> impl Iterator<Item = Range<usize>> + '_ {
    segments.iter().scan(0, |row, segment| {
        let start = *row;
        *row += segment.tokens.len();
        Some(start..*row)
    })
}

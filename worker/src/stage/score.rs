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
    /// Its place in the segment.
    at: usize,
    /// The token that follows it, to be scored.
    pub(super) follower: Option<u32>,
    /// Whether the token that follows it may have to be drawn.
    pub(super) sample: bool,
}

/// The rows of `segments` that sample or score, in order; all others skip the head. Those that run ahead of what was drawn
/// have none, unless it was `drawn` as they guess.
pub(super) fn wanted_rows(segments: &[Segment], drawn: impl Fn(&Segment) -> bool) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut row = 0;
    for (index, segment) in segments.iter().enumerate() {
        let draws = segment.sample && (!runs_ahead(segment) || drawn(segment));
        for at in 0..segment.tokens.len() {
            let last = at + 1 == segment.tokens.len();
            let next = if last { segment.next_token } else { Some(segment.tokens[at + 1]) };
            let follower = next.filter(|_| segment.score);
            let sample = draws && at >= first_drawn(segment);
            if follower.is_some() || sample {
                wanted.push(Wanted { row, segment: index, at, follower, sample });
            }
            row += 1;
        }
    }
    wanted
}

/// Whether a segment is drafts alone, so that it counts only if its first token was drawn by the one before it.
pub(super) fn runs_ahead(segment: &Segment) -> bool {
    segment.drafts as usize >= segment.tokens.len()
}

/// The place in a segment of the first token after which one is drawn.
pub(super) fn first_drawn(segment: &Segment) -> usize {
    segment.tokens.len().saturating_sub(segment.drafts as usize + 1)
}

/// What the outcome of a row depends on beside its logits.
pub(super) struct Outcome<'a> {
    pub(super) segments: &'a [Segment],
    pub(super) sequences: &'a Sequences,
}

impl Outcome<'_> {
    /// Scores and samples one row and notes the result. A row behind a draft that was not drawn is of no use.
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
        let guessed = output.sampled.last().is_none_or(|last| last.token == segment.tokens[wanted.at]);
        if wanted.sample && first_drawn(segment) + output.sampled.len() == wanted.at && guessed {
            let (start, history) = known.ok_or(StepError::NoSampling { sequence })?;
            let history = history.up_to(segment.start as usize + wanted.at + 1);
            let token = sampler.draw(logits, &start.sampling, history).map_err(failed)?;
            output.sampled.push(match top_count {
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

//! Steps: what flows through the pipeline, and what the last stage sends home.

use bytes::Bytes;

use crate::ids::{DeploymentId, Fence, SequenceId, StepId};
use crate::sampling::Sampling;

/// One message of the data plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Towards the last stage.
    Step(StepFrame),
    /// From the last stage to the coordinator.
    Result(StepResult),
    /// From the last stage to the first, and from the coordinator where the last stage's may not come.
    Drawn(Drawn),
}

/// A micro-batch of segments on its way through all stages.
#[derive(Clone, Debug, PartialEq)]
pub struct StepFrame {
    /// Checked by every stage before anything else.
    pub fence: Fence,
    /// The model being served.
    pub deployment: DeploymentId,
    /// The step's number.
    pub step: StepId,
    /// Which stream it travels on, and what goes before it.
    pub kind: StepKind,
    /// The rows of the step, sequence by sequence; may be empty where the step only releases.
    pub segments: Vec<Segment>,
    /// Sequences that have ended: every stage frees their cache before it computes.
    pub release: Vec<SequenceId>,
    /// What the short way round is to be used for.
    pub short_way: ShortWay,
    /// One entry per stage that has passed the step on, in order.
    pub timings: Vec<StageTiming>,
    /// The hidden states, `[rows, hidden]` with one row per token of the segments in order; `None` on the way to the
    /// first stage, which has the token ids, and in a step without rows.
    pub hidden: Option<Hidden>,
}

/// The way of drawn tokens from the last stage straight to the first, where steps wait for them that were sent ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShortWay {
    /// The last stage tells the first what the step draws.
    pub told: bool,
    /// Each segment has one token, which is not known yet: the first stage replaces it by what the sequence's step before
    /// draws, and computes the step once it knows all of them.
    pub follows: bool,
}

/// What a step drew.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// As in the step.
    pub fence: Fence,
    /// As in the step.
    pub deployment: DeploymentId,
    /// As in the step.
    pub step: StepId,
    /// The last token that each segment drew.
    pub tokens: Vec<DrawnToken>,
}

/// A token that was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawnToken {
    /// The sequence.
    pub sequence: SequenceId,
    /// The token's position.
    pub position: u32,
    /// Its id.
    pub token: u32,
}

/// What a step is for. The two kinds travel on separate streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// Prompt chunks alone.
    Prefill,
    /// Tokens that were generated just now, one per sequence, and drafts behind them; rows of prompts may ride with them.
    Decode,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The sequence that the tokens belong to.
    pub sequence: SequenceId,
    /// Position of the first token; every stage truncates the sequence's cache to it first.
    pub start: u32,
    /// The token ids: the first stage embeds them, the last keeps them as history. Never empty.
    pub tokens: Vec<u32>,
    /// How to sample, with a sequence's first segment and with the first of every replay. Where such a segment starts
    /// after position 0, the positions before it are in the first of its pages already: other sequences computed them.
    pub begin: Option<SequenceStart>,
    /// Numbers of the cache pages that the sequence is given, the same on every stage, behind those that it was given
    /// before: a first segment brings all that it has, others more as it grows.
    pub pages: Vec<u32>,
    /// Whether the last stage draws the token after the last one that is no draft and, while what it has drawn is the
    /// draft in its place, the tokens after the drafts.
    pub sample: bool,
    /// How many of the tokens, the last ones, are drafts: guesses of what will be drawn. Where all are, the segment runs
    /// ahead of the one before it, and nothing is drawn unless that drew its first token last.
    pub drafts: u32,
    /// Whether the last stage returns the log-probability of each token that follows a token of this segment.
    pub score: bool,
    /// For `score`: the token after the segment's last one, where it is known.
    pub next_token: Option<u32>,
}

/// What the last stage must know of a sequence before its first token.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceStart {
    /// How to choose tokens.
    pub sampling: Sampling,
    /// How many of the tokens are the prompt; those after it are the answer, also in a replay.
    pub prompt_tokens: u32,
}

/// Hidden states as they cross a link.
#[derive(Clone, Debug, PartialEq)]
pub struct Hidden {
    /// Number of rows: tokens in the step.
    pub rows: u32,
    /// Values in a row.
    pub width: u32,
    /// How a value is stored.
    pub dtype: WireDtype,
    /// `rows * width` little-endian values.
    pub data: Bytes,
}

/// How hidden states are stored on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireDtype {
    /// 4 bytes; bit-equal to a single box.
    F32,
    /// 2 bytes, IEEE half precision.
    F16,
    /// 2 bytes, bfloat16.
    Bf16,
}

impl WireDtype {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            WireDtype::F32 => 4,
            WireDtype::F16 | WireDtype::Bf16 => 2,
        }
    }

    /// The largest value, either side of zero, that is still finite once it is stored.
    pub const fn largest(self) -> f32 {
        match self {
            WireDtype::F32 => f32::MAX,
            WireDtype::F16 => 65_504.0,
            // All bits of bfloat16's fraction, in the largest exponent.
            WireDtype::Bf16 => f32::from_bits(0x7f7f_0000),
        }
    }

    /// Its name, such as `bf16`.
    pub const fn as_str(self) -> &'static str {
        match self {
            WireDtype::F32 => "f32",
            WireDtype::F16 => "f16",
            WireDtype::Bf16 => "bf16",
        }
    }
}

/// Where a stage's share of a step's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTiming {
    /// Place of the stage in the pipeline, from 0.
    pub stage: u32,
    /// From arrival to the start of the computation.
    pub queued_us: u32,
    /// The computation.
    pub computed_us: u32,
    /// Size of the hidden states that the stage passed on, in bytes.
    pub sent_bytes: u32,
    /// Time that sending the stage's previous frame took.
    pub sent_us: u32,
}

/// What a step brought, from the last stage.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// As in the step.
    pub fence: Fence,
    /// As in the step.
    pub deployment: DeploymentId,
    /// As in the step.
    pub step: StepId,
    /// As in the step.
    pub kind: StepKind,
    /// One entry per segment, in the step's order.
    pub outputs: Vec<SegmentOutput>,
    /// One entry per stage, in order.
    pub timings: Vec<StageTiming>,
}

/// What one segment brought.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentOutput {
    /// The sequence.
    pub sequence: SequenceId,
    /// For `score`: one entry per known following token, in order.
    pub scores: Vec<TokenScore>,
    /// For `sample`: the tokens drawn, in order. All but the last are the segment's drafts; a segment that is not drafts
    /// alone has one at least.
    pub sampled: Vec<TokenScore>,
}

/// A token with its log-probability under the full softmax (natural logarithm).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token id.
    pub token: u32,
    /// Its log-probability; 0 where the sequence did not ask for any.
    pub logprob: f32,
    /// The most likely tokens with theirs, best first, as many as the sequence asked for.
    pub top: Vec<(u32, f32)>,
}

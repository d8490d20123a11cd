//! Headers of data-plane frames.

use super::InvalidMessage;
use super::fields::required;
use crate::ids::{DeploymentId, Epoch, Fence, Incarnation, SequenceId, StepId};
use crate::pb;
use crate::sampling::Sampling;
use crate::step::{
    Drawn, DrawnToken, Hidden, Segment, SegmentOutput, SequenceStart, ShortWay, StageTiming, StepFrame,
    StepKind, StepResult, TokenScore, WireDtype,
};

pub(crate) fn wire_dtype(field: &'static str, value: i32) -> Result<WireDtype, InvalidMessage> {
    match pb::WireDtype::try_from(value) {
        Ok(pb::WireDtype::F32) => Ok(WireDtype::F32),
        Ok(pb::WireDtype::F16) => Ok(WireDtype::F16),
        Ok(pb::WireDtype::Bf16) => Ok(WireDtype::Bf16),
        Ok(pb::WireDtype::Unspecified) | Err(_) => {
            Err(InvalidMessage::new(field, format!("is {value}, not a wire dtype known here")))
        }
    }
}

impl From<WireDtype> for pb::WireDtype {
    fn from(dtype: WireDtype) -> pb::WireDtype {
        match dtype {
            WireDtype::F32 => pb::WireDtype::F32,
            WireDtype::F16 => pb::WireDtype::F16,
            WireDtype::Bf16 => pb::WireDtype::Bf16,
        }
    }
}

fn step_kind(value: i32) -> Result<StepKind, InvalidMessage> {
    match pb::StepKind::try_from(value) {
        Ok(pb::StepKind::Prefill) => Ok(StepKind::Prefill),
        Ok(pb::StepKind::Decode) => Ok(StepKind::Decode),
        Ok(pb::StepKind::Unspecified) | Err(_) => {
            Err(InvalidMessage::new("kind", format!("is {value}, not a kind of step known here")))
        }
    }
}

/// The numbers that every frame of a step carries.
struct Identity {
    fence: Fence,
    deployment: DeploymentId,
    step: StepId,
    kind: StepKind,
}

impl Identity {
    fn encode(self) -> Option<pb::StepIdentity> {
        let kind = match self.kind {
            StepKind::Prefill => pb::StepKind::Prefill,
            StepKind::Decode => pb::StepKind::Decode,
        };
        Some(pb::StepIdentity {
            incarnation: self.fence.incarnation.0,
            epoch: self.fence.epoch.0,
            deployment: self.deployment.0,
            step: self.step.0,
            kind: kind.into(),
        })
    }

    fn decode(identity: Option<pb::StepIdentity>) -> Result<Identity, InvalidMessage> {
        let identity = required("identity", identity)?;
        Ok(Identity {
            fence: Fence { incarnation: Incarnation(identity.incarnation), epoch: Epoch(identity.epoch) },
            deployment: DeploymentId(identity.deployment),
            step: StepId(identity.step),
            kind: step_kind(identity.kind)?,
        })
    }
}

impl From<&StepFrame> for pb::StepHeader {
    fn from(frame: &StepFrame) -> pb::StepHeader {
        let identity =
            Identity { fence: frame.fence, deployment: frame.deployment, step: frame.step, kind: frame.kind };
        pb::StepHeader {
            identity: identity.encode(),
            segments: frame.segments.iter().map(Into::into).collect(),
            release: frame.release.iter().map(|sequence| sequence.0).collect(),
            timings: frame.timings.iter().map(Into::into).collect(),
            told: frame.short_way.told,
            follows: frame.short_way.follows,
            hidden: frame.hidden.as_ref().map(|hidden| pb::HiddenShape {
                rows: hidden.rows,
                width: hidden.width,
                dtype: pb::WireDtype::from(hidden.dtype).into(),
            }),
        }
    }
}

/// The step of a header and the payload that came with it. Whether the two fit is the frame codec's business.
pub(crate) fn step_frame(header: pb::StepHeader, payload: bytes::Bytes) -> Result<StepFrame, InvalidMessage> {
    let Identity { fence, deployment, step, kind } = Identity::decode(header.identity)?;
    let hidden = match header.hidden {
        Some(shape) => Some(Hidden {
            rows: shape.rows,
            width: shape.width,
            dtype: wire_dtype("hidden.dtype", shape.dtype)?,
            data: payload,
        }),
        None if payload.is_empty() => None,
        None => {
            return Err(InvalidMessage::new("hidden", "is missing, and yet there is a payload"));
        }
    };
    let segments: Vec<Segment> =
        header.segments.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    if header.follows && segments.iter().any(|segment| segment.tokens.len() != 1 || segment.start == 0) {
        return Err(InvalidMessage::new("follows", "is set, and a segment is not one token that is drawn"));
    }
    Ok(StepFrame {
        fence,
        deployment,
        step,
        kind,
        segments,
        release: header.release.into_iter().map(SequenceId).collect(),
        short_way: ShortWay { told: header.told, follows: header.follows },
        timings: header.timings.into_iter().map(Into::into).collect(),
        hidden,
    })
}

impl From<&Drawn> for pb::DrawnHeader {
    fn from(drawn: &Drawn) -> pb::DrawnHeader {
        let Drawn { fence, deployment, step, ref tokens } = *drawn;
        let token = |drawn: &DrawnToken| pb::DrawnToken {
            sequence: drawn.sequence.0,
            position: drawn.position,
            token: drawn.token,
        };
        pb::DrawnHeader {
            identity: Identity { fence, deployment, step, kind: StepKind::Decode }.encode(),
            tokens: tokens.iter().map(token).collect(),
        }
    }
}

impl TryFrom<pb::DrawnHeader> for Drawn {
    type Error = InvalidMessage;

    fn try_from(drawn: pb::DrawnHeader) -> Result<Drawn, InvalidMessage> {
        let Identity { fence, deployment, step, kind } = Identity::decode(drawn.identity)?;
        if kind != StepKind::Decode {
            return Err(InvalidMessage::new("kind", "is prefill; only decode steps tell what they draw"));
        }
        let token = |drawn: pb::DrawnToken| DrawnToken {
            sequence: SequenceId(drawn.sequence),
            position: drawn.position,
            token: drawn.token,
        };
        Ok(Drawn { fence, deployment, step, tokens: drawn.tokens.into_iter().map(token).collect() })
    }
}

impl From<&Segment> for pb::Segment {
    fn from(segment: &Segment) -> pb::Segment {
        pb::Segment {
            sequence: segment.sequence.0,
            start: segment.start,
            tokens: segment.tokens.clone(),
            begin: segment.begin.as_ref().map(Into::into),
            pages: segment.pages.clone(),
            sample: segment.sample,
            drafts: segment.drafts,
            score: segment.score,
            next_token: segment.next_token,
        }
    }
}

impl TryFrom<pb::Segment> for Segment {
    type Error = InvalidMessage;

    fn try_from(segment: pb::Segment) -> Result<Segment, InvalidMessage> {
        if segment.tokens.is_empty() {
            return Err(InvalidMessage::new("segments.tokens", "is empty"));
        }
        if u64::from(segment.start) + segment.tokens.len() as u64 > u64::from(u32::MAX) {
            let problem = format!("is {}: its tokens would pass the last position", segment.start);
            return Err(InvalidMessage::new("segments.start", problem));
        }
        if segment.drafts as usize > segment.tokens.len() {
            let problem = format!("is {} of {} tokens", segment.drafts, segment.tokens.len());
            return Err(InvalidMessage::new("segments.drafts", problem));
        }
        Ok(Segment {
            sequence: SequenceId(segment.sequence),
            start: segment.start,
            tokens: segment.tokens,
            begin: segment.begin.map(TryInto::try_into).transpose()?,
            pages: segment.pages,
            sample: segment.sample,
            drafts: segment.drafts,
            score: segment.score,
            next_token: segment.next_token,
        })
    }
}

impl From<&SequenceStart> for pb::SequenceStart {
    fn from(start: &SequenceStart) -> pb::SequenceStart {
        pb::SequenceStart { sampling: Some((&start.sampling).into()), prompt_tokens: start.prompt_tokens }
    }
}

impl TryFrom<pb::SequenceStart> for SequenceStart {
    type Error = InvalidMessage;

    fn try_from(start: pb::SequenceStart) -> Result<SequenceStart, InvalidMessage> {
        Ok(SequenceStart {
            sampling: required("segments.begin.sampling", start.sampling)?.try_into()?,
            prompt_tokens: start.prompt_tokens,
        })
    }
}

impl From<&Sampling> for pb::Sampling {
    fn from(sampling: &Sampling) -> pb::Sampling {
        pb::Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: sampling.seed,
            logit_bias: token_values(&sampling.logit_bias),
            logprobs: sampling.logprobs,
            min_tokens: sampling.min_tokens,
            end_ids: sampling.end_ids.clone(),
        }
    }
}

impl TryFrom<pb::Sampling> for Sampling {
    type Error = InvalidMessage;

    fn try_from(sampling: pb::Sampling) -> Result<Sampling, InvalidMessage> {
        let number = |field, value: f32, good: bool| {
            if good {
                Ok(value)
            } else {
                Err(InvalidMessage::new(field, format!("is {value}, outside of its range")))
            }
        };
        let share = 0.0..=1.0;
        if let Some(bias) = sampling.logit_bias.iter().find(|bias| bias.value.is_nan()) {
            let problem = format!("of token {} is not a number", bias.token);
            return Err(InvalidMessage::new("sampling.logit_bias", problem));
        }
        Ok(Sampling {
            temperature: number(
                "sampling.temperature",
                sampling.temperature,
                sampling.temperature.is_finite() && sampling.temperature >= 0.0,
            )?,
            top_k: sampling.top_k,
            top_p: number("sampling.top_p", sampling.top_p, share.contains(&sampling.top_p))?,
            min_p: number("sampling.min_p", sampling.min_p, share.contains(&sampling.min_p))?,
            repetition_penalty: number(
                "sampling.repetition_penalty",
                sampling.repetition_penalty,
                sampling.repetition_penalty.is_finite() && sampling.repetition_penalty > 0.0,
            )?,
            presence_penalty: number(
                "sampling.presence_penalty",
                sampling.presence_penalty,
                sampling.presence_penalty.is_finite(),
            )?,
            frequency_penalty: number(
                "sampling.frequency_penalty",
                sampling.frequency_penalty,
                sampling.frequency_penalty.is_finite(),
            )?,
            seed: sampling.seed,
            logit_bias: pairs(sampling.logit_bias),
            logprobs: sampling.logprobs,
            min_tokens: sampling.min_tokens,
            end_ids: sampling.end_ids,
        })
    }
}

fn token_values(pairs: &[(u32, f32)]) -> Vec<pb::TokenValue> {
    pairs.iter().map(|&(token, value)| pb::TokenValue { token, value }).collect()
}

fn pairs(values: Vec<pb::TokenValue>) -> Vec<(u32, f32)> {
    values.into_iter().map(|value| (value.token, value.value)).collect()
}

impl From<&StageTiming> for pb::StageTiming {
    fn from(timing: &StageTiming) -> pb::StageTiming {
        pb::StageTiming {
            stage: timing.stage,
            queued_us: timing.queued_us,
            computed_us: timing.computed_us,
            sent_bytes: timing.sent_bytes,
            sent_us: timing.sent_us,
        }
    }
}

impl From<pb::StageTiming> for StageTiming {
    fn from(timing: pb::StageTiming) -> StageTiming {
        StageTiming {
            stage: timing.stage,
            queued_us: timing.queued_us,
            computed_us: timing.computed_us,
            sent_bytes: timing.sent_bytes,
            sent_us: timing.sent_us,
        }
    }
}

impl From<&StepResult> for pb::ResultHeader {
    fn from(result: &StepResult) -> pb::ResultHeader {
        let identity = Identity {
            fence: result.fence,
            deployment: result.deployment,
            step: result.step,
            kind: result.kind,
        };
        pb::ResultHeader {
            identity: identity.encode(),
            outputs: result.outputs.iter().map(Into::into).collect(),
            timings: result.timings.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::ResultHeader> for StepResult {
    type Error = InvalidMessage;

    fn try_from(header: pb::ResultHeader) -> Result<StepResult, InvalidMessage> {
        let Identity { fence, deployment, step, kind } = Identity::decode(header.identity)?;
        Ok(StepResult {
            fence,
            deployment,
            step,
            kind,
            outputs: header.outputs.into_iter().map(Into::into).collect(),
            timings: header.timings.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<&SegmentOutput> for pb::SegmentOutput {
    fn from(output: &SegmentOutput) -> pb::SegmentOutput {
        pb::SegmentOutput {
            sequence: output.sequence.0,
            scores: output.scores.iter().map(Into::into).collect(),
            sampled: output.sampled.iter().map(Into::into).collect(),
        }
    }
}

impl From<pb::SegmentOutput> for SegmentOutput {
    fn from(output: pb::SegmentOutput) -> SegmentOutput {
        SegmentOutput {
            sequence: SequenceId(output.sequence),
            scores: output.scores.into_iter().map(Into::into).collect(),
            sampled: output.sampled.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<&TokenScore> for pb::TokenScore {
    fn from(score: &TokenScore) -> pb::TokenScore {
        pb::TokenScore { token: score.token, logprob: score.logprob, top: token_values(&score.top) }
    }
}

impl From<pb::TokenScore> for TokenScore {
    fn from(score: pb::TokenScore) -> TokenScore {
        TokenScore { token: score.token, logprob: score.logprob, top: pairs(score.top) }
    }
}

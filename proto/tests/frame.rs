//! The frame codec: what goes in comes out, and nothing that comes in does harm.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

use brigade_proto::frame::{FrameError, FrameLengths, FrameLimits, decode, encode};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, SequenceId, StepId};
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{
    Drawn, DrawnToken, Frame, Hidden, Segment, SegmentOutput, SequenceStart, ShortWay, StageTiming,
    StepFrame, StepKind, StepResult, TokenScore, WireDtype,
};
use bytes::Bytes;

fn segment(tokens: &[u32]) -> Segment {
    Segment {
        sequence: SequenceId(u64::MAX),
        start: 17,
        tokens: tokens.to_vec(),
        begin: Some(SequenceStart {
            sampling: Sampling {
                temperature: 0.5,
                top_k: 40,
                top_p: 0.9,
                min_p: 0.05,
                repetition_penalty: 1.1,
                presence_penalty: -0.5,
                frequency_penalty: 0.25,
                seed: 0xdead_beef_dead_beef,
                logit_bias: vec![(7, -100.0), (0, f32::NEG_INFINITY)],
                logprobs: Some(0),
                min_tokens: 3,
                end_ids: vec![2, 128_009],
            },
            prompt_tokens: 2,
        }),
        pages: vec![0, u32::MAX],
        sample: true,
        drafts: tokens.len() as u32,
        score: true,
        next_token: Some(0),
    }
}

fn timing() -> StageTiming {
    StageTiming { stage: 1, queued_us: 2, computed_us: 3, sent_bytes: 4, sent_us: u32::MAX }
}

fn step(kind: StepKind, hidden: Option<Hidden>) -> StepFrame {
    StepFrame {
        fence: Fence { incarnation: Incarnation(3), epoch: Epoch(9) },
        deployment: DeploymentId(5),
        step: StepId(11),
        kind,
        segments: vec![
            segment(&[1, 2, 3]),
            Segment {
                begin: None,
                next_token: None,
                sample: false,
                drafts: 0,
                score: false,
                ..segment(&[u32::MAX])
            },
        ],
        release: vec![SequenceId(1), SequenceId(2)],
        short_way: ShortWay::default(),
        timings: vec![timing(), StageTiming::default()],
        hidden,
    }
}

fn result() -> StepResult {
    StepResult {
        fence: Fence { incarnation: Incarnation(3), epoch: Epoch(9) },
        deployment: DeploymentId(5),
        step: StepId(11),
        kind: StepKind::Decode,
        outputs: vec![
            SegmentOutput {
                sequence: SequenceId(8),
                scores: vec![TokenScore { token: 4, logprob: -0.25, top: vec![(4, -0.25), (5, -3.0)] }],
                sampled: vec![TokenScore { token: 0, logprob: 0.0, top: Vec::new() }; 3],
            },
            SegmentOutput { sequence: SequenceId(9), scores: Vec::new(), sampled: Vec::new() },
        ],
        timings: vec![timing()],
    }
}

fn hidden(dtype: WireDtype) -> Hidden {
    let values: Vec<f32> = (0..4 * 6).map(|i| i as f32 / 8.0 - 1.0).collect();
    Hidden::from_f32(&values, 4, 6, dtype).unwrap()
}

fn drawn() -> Drawn {
    let StepResult { fence, deployment, step, .. } = result();
    let tokens = [(1, 7, 9), (u64::MAX, u32::MAX, u32::MAX)];
    let token = |(sequence, position, token)| DrawnToken { sequence: SequenceId(sequence), position, token };
    Drawn { fence, deployment, step, tokens: tokens.map(token).to_vec() }
}

#[test]
fn every_frame_survives_the_wire() {
    let mut frames = vec![Frame::Result(result()), Frame::Drawn(drawn())];
    for kind in [StepKind::Prefill, StepKind::Decode] {
        frames.push(Frame::Step(step(kind, None)));
        for dtype in [WireDtype::F32, WireDtype::F16, WireDtype::Bf16] {
            frames.push(Frame::Step(step(kind, Some(hidden(dtype)))));
        }
        let empty = StepFrame { segments: Vec::new(), timings: Vec::new(), ..step(kind, None) };
        frames.push(Frame::Step(empty));
    }
    let told = StepFrame {
        short_way: ShortWay { told: true, follows: true },
        segments: vec![segment(&[0])],
        ..step(StepKind::Decode, None)
    };
    frames.push(Frame::Step(told));
    for frame in frames {
        let (header, payload) = encode(&frame).unwrap();
        assert_eq!(decode(&header, payload).unwrap(), frame);
    }
}

#[test]
fn the_payload_is_not_copied() {
    let hidden = hidden(WireDtype::F32);
    let (_, payload) = encode(&Frame::Step(step(StepKind::Decode, Some(hidden.clone())))).unwrap();
    assert_eq!(payload.as_ptr(), hidden.data.as_ptr());
}

#[test]
fn values_survive_the_wire_dtypes_as_far_as_these_hold_them() {
    let values = [0.0, -0.0, 1.5, -65504.0, 1e-3, f32::INFINITY, f32::MIN_POSITIVE, 3.1, 2.0, 1.0];
    let mut out = vec![9.0; 3];
    Hidden::from_f32(&values, 5, 2, WireDtype::F32).unwrap().to_f32(&mut out).unwrap();
    assert_eq!(out.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), values.map(f32::to_bits));
    for (dtype, relative) in [(WireDtype::F16, 1.0 / 2048.0), (WireDtype::Bf16, 1.0 / 256.0)] {
        let hidden = Hidden::from_f32(&values, 2, 5, dtype).unwrap();
        assert_eq!(hidden.data.len(), 20);
        hidden.to_f32(&mut out).unwrap();
        for (found, value) in out.iter().zip(values) {
            let near = *found == value || (found - value).abs() <= (value.abs() * relative).max(1e-7);
            assert!(near, "{dtype:?}: {value} became {found}");
        }
    }
    // Little-endian, whatever machine this is.
    assert_eq!(Hidden::from_f32(&[1.0], 1, 1, WireDtype::F32).unwrap().data[..], [0, 0, 0x80, 0x3f]);
    assert_eq!(Hidden::from_f32(&[1.0], 1, 1, WireDtype::F16).unwrap().data[..], [0, 0x3c]);
    assert_eq!(Hidden::from_f32(&[1.0], 1, 1, WireDtype::Bf16).unwrap().data[..], [0x80, 0x3f]);
}

#[test]
fn hidden_states_have_their_shape() {
    assert!(Hidden::from_f32(&[1.0; 5], 2, 3, WireDtype::F32).is_err());
    assert!(Hidden::from_f32(&[], u32::MAX, u32::MAX, WireDtype::F32).is_err());
    let short = Hidden { rows: 2, width: 2, dtype: WireDtype::F16, data: Bytes::from_static(&[0; 7]) };
    assert!(short.to_f32(&mut Vec::new()).is_err());
}

/// A frame whose header is from `given`, with another payload.
fn with_payload(given: Hidden, bytes: usize) -> Result<Frame, FrameError> {
    let (header, _) = encode(&Frame::Step(step(StepKind::Decode, Some(given)))).unwrap();
    decode(&header, Bytes::from(vec![0; bytes]))
}

#[test]
fn payload_and_header_must_fit() {
    let size = hidden(WireDtype::F16).data.len();
    assert!(with_payload(hidden(WireDtype::F16), size).is_ok());
    for bytes in [0, size - 1, size + 1, size * 2] {
        let error = with_payload(hidden(WireDtype::F16), bytes).unwrap_err();
        assert!(matches!(error, FrameError::PayloadSize { .. }), "{bytes}: {error}");
    }
    let (header, _) = encode(&Frame::Step(step(StepKind::Decode, None))).unwrap();
    assert!(decode(&header, Bytes::from_static(&[0; 4])).is_err(), "a payload nobody announced");
    let (header, _) = encode(&Frame::Result(result())).unwrap();
    assert!(decode(&header, Bytes::from_static(&[0; 4])).is_err(), "a result with a payload");
}

#[test]
fn frames_that_are_not_consistent_are_not_sent() {
    let values =
        |rows, width| Hidden::from_f32(&vec![0.0; (rows * width) as usize], rows, width, WireDtype::F32);
    let with = |hidden| encode(&Frame::Step(step(StepKind::Prefill, Some(hidden))));
    let error = with(values(3, 8).unwrap()).unwrap_err();
    assert_eq!(error, FrameError::Rows { rows: 3, tokens: 4 });
    assert!(matches!(with(values(4, 0).unwrap()), Err(FrameError::Empty { .. })));
    assert!(matches!(with(values(0, 8).unwrap()), Err(FrameError::Empty { .. })));
}

#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let limits = FrameLimits { max_header_bytes: 1000, max_payload_bytes: 4096 };
    let prefix = |header: u32, payload: u32| {
        let mut prefix = [0; 8];
        prefix[..4].copy_from_slice(&header.to_le_bytes());
        prefix[4..].copy_from_slice(&payload.to_le_bytes());
        prefix
    };
    assert_eq!(
        FrameLengths::parse(prefix(1000, 4096), &limits).unwrap(),
        FrameLengths { header: 1000, payload: 4096 }
    );
    let error = FrameLengths::parse(prefix(1001, 0), &limits).unwrap_err();
    assert_eq!(error, FrameError::HeaderTooLarge { bytes: 1001, limit: 1000 });
    let error = FrameLengths::parse(prefix(0, u32::MAX), &limits).unwrap_err();
    assert_eq!(error, FrameError::PayloadTooLarge { bytes: u64::from(u32::MAX), limit: 4096 });
    let (header, payload) = (Bytes::from_static(&[0; 1000]), Bytes::from_static(&[0; 4096]));
    let written = FrameLengths::prefix(&header, &payload, &limits).unwrap();
    assert_eq!(written, prefix(1000, 4096));
    assert!(FrameLengths::prefix(&payload, &header, &limits).is_err());
    assert_eq!(FrameLimits::for_steps(512, 576).max_payload_bytes, 512 * 576 * 4);
    assert_eq!(FrameLimits::for_steps(u32::MAX, u32::MAX).max_payload_bytes, usize::MAX);
}

/// The same numbers on every run: xorshift64*.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[test]
fn garbage_is_an_error_or_another_frame_and_never_a_panic() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let length = (numbers.next() % 300) as usize;
        let header: Vec<u8> = (0..length).map(|_| numbers.next() as u8).collect();
        let payload = vec![0; (numbers.next() % 64) as usize];
        if let Ok(frame) = decode(&header, payload.into()) {
            let (header, payload) = encode(&frame).expect("what is accepted is consistent");
            decode(&header, payload).expect("and survives");
        }
    }
}

#[test]
fn damaged_frames_are_an_error_or_another_frame_and_never_a_panic() {
    let frames = [Frame::Step(step(StepKind::Decode, Some(hidden(WireDtype::F32)))), Frame::Result(result())];
    let mut numbers = Numbers(7);
    for frame in &frames {
        let (header, payload) = encode(frame).unwrap();
        for length in 0..header.len() {
            // A shorter header may be a valid one with less in it, but not with the same payload unless it says so.
            let _ = decode(&header[..length], payload.clone());
        }
        for _ in 0..20_000 {
            let mut damaged = header.to_vec();
            for _ in 0..=numbers.next() % 4 {
                let at = (numbers.next() % damaged.len() as u64) as usize;
                damaged[at] = numbers.next() as u8;
            }
            if let Ok(frame) = decode(&damaged, payload.clone()) {
                encode(&frame).expect("what is accepted is consistent");
            }
        }
    }
}

#[test]
fn fields_that_cannot_be_are_named() {
    let decoded = |change: &dyn Fn(&mut StepFrame)| {
        let mut step = step(StepKind::Decode, None);
        change(&mut step);
        let (header, payload) = encode(&Frame::Step(step)).unwrap();
        decode(&header, payload).unwrap_err().to_string()
    };
    let sampling = |change: fn(&mut Sampling)| {
        decoded(&|step| change(&mut step.segments[0].begin.as_mut().unwrap().sampling))
    };
    for (error, field) in [
        (decoded(&|step| step.segments[1].tokens.clear()), "segments.tokens"),
        (decoded(&|step| step.segments[0].start = u32::MAX - 1), "segments.start"),
        (decoded(&|step| step.segments[0].drafts = 4), "segments.drafts"),
        (sampling(|s| s.temperature = f32::NAN), "sampling.temperature"),
        (sampling(|s| s.temperature = -1.0), "sampling.temperature"),
        (sampling(|s| s.top_p = 1.5), "sampling.top_p"),
        (sampling(|s| s.min_p = f32::NAN), "sampling.min_p"),
        (sampling(|s| s.repetition_penalty = 0.0), "sampling.repetition_penalty"),
        (sampling(|s| s.presence_penalty = f32::INFINITY), "sampling.presence_penalty"),
        (sampling(|s| s.frequency_penalty = f32::NAN), "sampling.frequency_penalty"),
        (sampling(|s| s.logit_bias.push((1, f32::NAN))), "sampling.logit_bias"),
    ] {
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
    assert!(decode(&[], Bytes::new()).unwrap_err().to_string().contains("`frame`"));
}

//! The limits of frames against the largest frames that a plan's room allows.

use brigade_proto::control::{CacheDtype, StageRoom};
use brigade_proto::frame::encode;
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, SequenceId, StepId};
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{
    Frame, Hidden, Segment, SegmentOutput, SequenceStart, ShortWay, StageTiming, StepFrame, StepKind,
    StepResult, TokenScore, WireDtype,
};
use brigade_worker::data::frame_limits;

const FENCE: Fence = Fence { incarnation: Incarnation(u64::MAX), epoch: Epoch(u64::MAX) };
const TOKEN: u32 = 200_000;

fn room(step_rows: u32, sequences: u32) -> StageRoom {
    StageRoom { cache_tokens: 4096, context: 4096, step_rows, sequences, cache_dtype: CacheDtype::F16 }
}

fn timings() -> Vec<StageTiming> {
    let timing = StageTiming {
        stage: 200,
        queued_us: u32::MAX,
        computed_us: u32::MAX,
        sent_bytes: u32::MAX,
        sent_us: u32::MAX,
    };
    vec![timing; 128]
}

/// A step of all rows, in which every sequence begins with the 300 biases that the API allows, and as many end.
fn largest_step(room: &StageRoom, hidden: u32) -> StepFrame {
    let sampling = Sampling {
        seed: u64::MAX,
        logit_bias: vec![(TOKEN, -100.0); 300],
        logprobs: Some(20),
        end_ids: vec![TOKEN; 8],
        ..Sampling::default()
    };
    let segment = |sequence| Segment {
        sequence: SequenceId(u64::MAX - u64::from(sequence)),
        start: 4000,
        tokens: vec![TOKEN; (room.step_rows / room.sequences) as usize],
        begin: Some(SequenceStart { sampling: sampling.clone(), prompt_tokens: 4096 }),
        pages: vec![u32::MAX; 4096 / 32],
        sample: true,
        drafts: 0,
        score: true,
        next_token: Some(TOKEN),
    };
    let bytes = room.step_rows as usize * hidden as usize * WireDtype::F32.size();
    StepFrame {
        fence: FENCE,
        deployment: DeploymentId(u64::MAX),
        step: StepId(u64::MAX),
        kind: StepKind::Prefill,
        segments: (0..room.sequences).map(segment).collect(),
        release: (0..room.sequences).map(|number| SequenceId(u64::MAX - u64::from(number))).collect(),
        short_way: ShortWay::default(),
        timings: timings(),
        hidden: Some(Hidden {
            rows: room.step_rows,
            width: hidden,
            dtype: WireDtype::F32,
            data: vec![0; bytes].into(),
        }),
    }
}

/// A result in which every row has been scored with 20 alternatives.
fn largest_result(room: &StageRoom) -> StepResult {
    let score = TokenScore { token: TOKEN, logprob: -1.5, top: vec![(TOKEN, -1.5); 20] };
    let output = |sequence| SegmentOutput {
        sequence: SequenceId(u64::MAX - u64::from(sequence)),
        scores: vec![score.clone(); (room.step_rows / room.sequences) as usize],
        sampled: vec![score.clone()],
    };
    StepResult {
        fence: FENCE,
        deployment: DeploymentId(u64::MAX),
        step: StepId(u64::MAX),
        kind: StepKind::Prefill,
        outputs: (0..room.sequences).map(output).collect(),
        timings: timings(),
    }
}

#[test]
fn the_largest_frames_of_a_room_are_within_its_limits() {
    for (step_rows, sequences, hidden) in [(1, 1, 64), (128, 1, 576), (128, 8, 576), (64, 64, 1024)] {
        let room = room(step_rows, sequences);
        let limits = frame_limits(&room, hidden as usize);
        for frame in [Frame::Step(largest_step(&room, hidden)), Frame::Result(largest_result(&room))] {
            let (header, payload) = encode(&frame).unwrap();
            assert!(header.len() <= limits.max_header_bytes, "{} in {limits:?} for {room:?}", header.len());
            assert!(payload.len() <= limits.max_payload_bytes, "{} in {limits:?}", payload.len());
        }
    }
}

#[test]
fn a_room_that_overflows_has_limits_all_the_same() {
    let limits = frame_limits(&room(u32::MAX, u32::MAX), usize::MAX);
    assert_eq!(limits.max_payload_bytes, usize::MAX);
}

//! Frames and transports for the tests of links.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

use std::net::SocketAddr;

use brigade_proto::frame::FrameLimits;
use brigade_proto::identity::TransportIdentity;
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, SequenceId, StepId, WorkerId};
use brigade_proto::link::Transport;
use brigade_proto::step::{
    Frame, Hidden, Segment, SegmentOutput, ShortWay, StepFrame, StepKind, StepResult, TokenScore, WireDtype,
};
use bytes::Bytes;

/// The worker of this id.
pub fn peer(id: &str) -> Peer {
    Peer::Worker(WorkerId::try_from(id.to_owned()).unwrap())
}

/// A step whose payload has `rows` rows of 4 KiB.
pub fn step(kind: StepKind, number: u64, rows: u32) -> Frame {
    let data = Bytes::from(vec![number as u8; rows as usize * 4096]);
    let segment = Segment {
        sequence: SequenceId(1),
        start: 0,
        tokens: vec![5; rows as usize],
        begin: None,
        pages: Vec::new(),
        sample: true,
        drafts: 0,
        score: false,
        next_token: None,
    };
    Frame::Step(StepFrame {
        fence: Fence { incarnation: Incarnation(1), epoch: Epoch(2) },
        deployment: DeploymentId(3),
        step: StepId(number),
        kind,
        segments: vec![segment],
        release: Vec::new(),
        short_way: ShortWay::default(),
        timings: Vec::new(),
        hidden: Some(Hidden { rows, width: 1024, dtype: WireDtype::F32, data }),
    })
}

/// A result of one token.
pub fn result(number: u64) -> Frame {
    Frame::Result(StepResult {
        fence: Fence { incarnation: Incarnation(1), epoch: Epoch(2) },
        deployment: DeploymentId(3),
        step: StepId(number),
        kind: StepKind::Decode,
        outputs: vec![SegmentOutput {
            sequence: SequenceId(1),
            scores: Vec::new(),
            sampled: vec![TokenScore { token: 9, logprob: -0.5, top: Vec::new() }],
        }],
        timings: Vec::new(),
    })
}

/// Any port of loopback.
pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A transport on loopback that takes frames of up to 64 MiB.
pub fn bind(identity: impl Into<TransportIdentity>) -> Transport {
    Transport::bind(loopback(), identity.into(), FrameLimits::for_steps(16384, 1024)).expect("a socket")
}

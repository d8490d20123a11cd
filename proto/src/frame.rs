//! The data plane's frames as bytes.
//!
//! A frame is, little-endian: u32 bytes of header, u32 bytes of payload, the header (protobuf), the payload (the hidden
//! states as they are in memory). Both lengths are checked against [`FrameLimits`] before anything is allocated for
//! them, and what is decoded is consistent: the payload has the size that its shape says, with one row per token.

use bytes::Bytes;
use prost::Message;

use crate::convert::{InvalidMessage, step::step_frame};
use crate::pb;
use crate::step::{Frame, StepFrame, StepKind};

/// Bytes before the header: its length and the payload's.
pub const PREFIX_BYTES: usize = 8;

/// The largest frame that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Most bytes of header: token ids, sampling parameters, timings, scores.
    pub max_header_bytes: usize,
    /// Most bytes of payload: rows x width x dtype of the largest step.
    pub max_payload_bytes: usize,
}

impl FrameLimits {
    /// For an end that gets results but no hidden states, or does not know its plan yet. A result of 8,192 scored
    /// tokens with 20 alternatives each is 2.6 MB.
    pub const HEADERS_ONLY: FrameLimits = FrameLimits { max_header_bytes: 4 << 20, max_payload_bytes: 0 };

    /// For steps of at most `rows` rows of `width` values of at most 4 bytes each.
    pub fn for_steps(rows: u32, width: u32) -> FrameLimits {
        let payload = (rows as usize).saturating_mul(width as usize).saturating_mul(4);
        FrameLimits { max_payload_bytes: payload, ..FrameLimits::HEADERS_ONLY }
    }
}

impl Default for FrameLimits {
    /// Steps of 1,024 rows of 16,384 values: the widest models in their largest usual chunk.
    fn default() -> FrameLimits {
        FrameLimits::for_steps(1024, 16384)
    }
}

/// A frame that is not as it must be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The header is larger than the limit.
    #[error("a frame's header of {bytes} bytes is larger than the limit of {limit}")]
    HeaderTooLarge {
        /// Its size.
        bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// The payload is larger than the limit.
    #[error("a frame's payload of {bytes} bytes is larger than the plan's {limit}")]
    PayloadTooLarge {
        /// Its size.
        bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// The header is not protobuf of this protocol.
    #[error("a frame's header cannot be read: {0}")]
    Header(String),
    /// A field of the header cannot be.
    #[error("a frame's header cannot be: {0}")]
    Field(#[from] InvalidMessage),
    /// The payload does not have the size that the header says.
    #[error(
        "a payload of {found} bytes does not hold {rows} rows of {width} values, which need {expected} bytes"
    )]
    PayloadSize {
        /// Rows in the header.
        rows: u32,
        /// Values in a row, in the header.
        width: u32,
        /// Bytes that these need.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The hidden states are not one row per token.
    #[error("hidden states of {rows} rows came with {tokens} tokens; there must be one row per token")]
    Rows {
        /// Rows of the hidden states.
        rows: u32,
        /// Tokens of all segments.
        tokens: u64,
    },
    /// Hidden states without any value.
    #[error("hidden states of {rows} rows by {width} values hold nothing; a step without rows has none")]
    Empty {
        /// Rows of the hidden states.
        rows: u32,
        /// Values in a row.
        width: u32,
    },
    /// The stream ended inside a frame.
    #[error("a frame was cut off")]
    CutOff,
    /// A stream whose first byte names no kind of step.
    #[error("a stream began with the byte {0}, which names no kind of step")]
    UnknownStream(u8),
    /// A second stream of one kind.
    #[error("a second stream of {0:?} frames was opened")]
    SecondStream(StepKind),
    /// A frame on the stream of the other kind of step.
    #[error("a {found:?} frame came on the stream of {expected:?} frames")]
    WrongStream {
        /// The stream's kind.
        expected: StepKind,
        /// The frame's kind.
        found: StepKind,
    },
}

/// Sizes of the two parts of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLengths {
    /// Bytes of header.
    pub header: usize,
    /// Bytes of payload.
    pub payload: usize,
}

impl FrameLengths {
    /// Reads a frame's first bytes.
    ///
    /// # Errors
    /// Where a length is above its limit.
    pub fn parse(prefix: [u8; PREFIX_BYTES], limits: &FrameLimits) -> Result<FrameLengths, FrameError> {
        let [a, b, c, d, e, f, g, h] = prefix;
        let header = u64::from(u32::from_le_bytes([a, b, c, d]));
        let payload = u64::from(u32::from_le_bytes([e, f, g, h]));
        FrameLengths::checked(header, payload, limits)
    }

    /// A frame's first bytes.
    ///
    /// # Errors
    /// Where a length is above its limit.
    pub fn prefix(
        header: &Bytes,
        payload: &Bytes,
        limits: &FrameLimits,
    ) -> Result<[u8; PREFIX_BYTES], FrameError> {
        let (header, payload) = (header.len() as u64, payload.len() as u64);
        FrameLengths::checked(header, payload, limits)?;
        let [a, b, c, d, ..] = header.to_le_bytes();
        let [e, f, g, h, ..] = payload.to_le_bytes();
        Ok([a, b, c, d, e, f, g, h])
    }

    fn checked(header: u64, payload: u64, limits: &FrameLimits) -> Result<FrameLengths, FrameError> {
        let limit = |bytes: usize| (bytes as u64).min(u64::from(u32::MAX));
        let (header_limit, payload_limit) = (limit(limits.max_header_bytes), limit(limits.max_payload_bytes));
        if header > header_limit {
            return Err(FrameError::HeaderTooLarge { bytes: header, limit: header_limit });
        }
        if payload > payload_limit {
            return Err(FrameError::PayloadTooLarge { bytes: payload, limit: payload_limit });
        }
        Ok(FrameLengths { header: header as usize, payload: payload as usize })
    }
}

/// The header and the payload of a frame, without their prefix; the payload is not copied.
///
/// # Errors
/// Where the hidden states are not one row of values per token.
pub fn encode(frame: &Frame) -> Result<(Bytes, Bytes), FrameError> {
    let (header, payload) = match frame {
        Frame::Step(step) => {
            check_hidden(step)?;
            let payload = step.hidden.as_ref().map(|hidden| hidden.data.clone()).unwrap_or_default();
            (pb::frame_header::Frame::Step(step.into()), payload)
        }
        Frame::Result(result) => (pb::frame_header::Frame::Result(result.into()), Bytes::new()),
        Frame::Drawn(drawn) => (pb::frame_header::Frame::Drawn(drawn.into()), Bytes::new()),
    };
    let header = pb::FrameHeader { frame: Some(header) }.encode_to_vec();
    Ok((header.into(), payload))
}

/// The frame that a header and its payload are.
///
/// # Errors
/// Where either is malformed or the two do not fit together.
pub fn decode(header: &[u8], payload: Bytes) -> Result<Frame, FrameError> {
    let header = pb::FrameHeader::decode(header).map_err(|error| FrameError::Header(error.to_string()))?;
    match header.frame {
        Some(pb::frame_header::Frame::Step(header)) => {
            let step = step_frame(header, payload)?;
            check_hidden(&step)?;
            Ok(Frame::Step(step))
        }
        Some(pb::frame_header::Frame::Result(_) | pb::frame_header::Frame::Drawn(_))
            if !payload.is_empty() =>
        {
            let found = payload.len() as u64;
            Err(FrameError::PayloadSize { rows: 0, width: 0, expected: 0, found })
        }
        Some(pb::frame_header::Frame::Result(header)) => Ok(Frame::Result(header.try_into()?)),
        Some(pb::frame_header::Frame::Drawn(header)) => Ok(Frame::Drawn(header.try_into()?)),
        None => Err(InvalidMessage::new("frame", "is missing").into()),
    }
}

fn check_hidden(step: &StepFrame) -> Result<(), FrameError> {
    let Some(hidden) = &step.hidden else { return Ok(()) };
    let (rows, width, found) = (hidden.rows, hidden.width, hidden.data.len() as u64);
    if rows == 0 || width == 0 {
        return Err(FrameError::Empty { rows, width });
    }
    if found != hidden.expected_bytes() {
        return Err(FrameError::PayloadSize { rows, width, expected: hidden.expected_bytes(), found });
    }
    let tokens = step.segments.iter().map(|segment| segment.tokens.len() as u64).sum();
    if tokens != u64::from(rows) {
        return Err(FrameError::Rows { rows, tokens });
    }
    Ok(())
}

impl Frame {
    /// What the frame's step is for: which of a link's streams it travels on.
    pub fn kind(&self) -> StepKind {
        match self {
            Frame::Step(step) => step.kind,
            Frame::Result(result) => result.kind,
            Frame::Drawn(_) => StepKind::Decode,
        }
    }
}

//! Why a step could not be computed.

use brigade_proto::HiddenShapeError;
use brigade_proto::ids::SequenceId;

use crate::backend::BackendError;
use crate::cache::CacheError;
use crate::sampler::SampleError;

/// Why a step could not be computed; the stage goes on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum StepError {
    /// The cache cannot take the step's segments.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A segment without tokens.
    #[error("the segment of sequence {sequence} has no tokens")]
    EmptySegment { sequence: SequenceId },
    /// More rows than the stage has room for.
    #[error("the step has {rows} rows, and the stage has room for {limit}")]
    TooManyRows { rows: usize, limit: u32 },
    /// A token id that the model does not have.
    #[error("sequence {sequence} has token {token}, and the vocabulary has {vocab} tokens")]
    UnknownToken { sequence: SequenceId, token: u32, vocab: usize },
    /// No hidden states where some are needed.
    #[error("the step came without hidden states, and this stage does not hold the embedding")]
    NoHidden,
    /// Hidden states where none belong.
    #[error(
        "the step came with hidden states, and this stage holds the embedding: stages are in the wrong order"
    )]
    UnexpectedHidden,
    /// Hidden states of another shape.
    #[error("the step's hidden states are {found_rows} x {found_width}, wanted {rows} x {width}")]
    HiddenShape { found_rows: u32, found_width: u32, rows: usize, width: usize },
    /// Hidden states whose bytes are not their shape's.
    #[error(transparent)]
    HiddenBytes(#[from] HiddenShapeError),
    /// The model computed nonsense.
    #[error(
        "the hidden state of sequence {sequence} at position {position} is not finite: the weights or the frame are damaged"
    )]
    NotFinite { sequence: SequenceId, position: u32 },
    /// A hidden state that the link's type cannot hold.
    #[error(
        "the hidden state of sequence {sequence} at position {position} holds {value:e}, and {wire} on the link holds at \
         most {limit:e}: serve this model with --wire bf16 or --wire f32"
    )]
    TooLarge { sequence: SequenceId, position: u32, value: f32, wire: &'static str, limit: f32 },
    /// A sequence was to be sampled that has no parameters.
    #[error("sequence {sequence} has no sampling parameters: its first segment came without them")]
    NoSampling { sequence: SequenceId },
    /// Parameters that cannot be used.
    #[error("sequence {sequence}: {source}")]
    Sample { sequence: SequenceId, source: SampleError },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] BackendError),
}

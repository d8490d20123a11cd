//! Turning matrices of types that candle has no kernels for into ones that it has, while they are read.
//!
//! Rows pass in pieces: a thread reads some, widens them with the processor's own code, and rounds them anew with candle's.
//! Nothing is held of a piece when it is done.

use brigade_shard::tensor_type::TensorType;
use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};

use super::matrix::ggml_type;
use crate::backend::BackendError;
use crate::cpu;
use crate::team::{PerMember, Team};
use crate::weights::{LoadError, READING, TensorSource, lengthen};

/// Values of the rows that a thread has in hand: 1 MiB of f32.
const PIECE_VALUES: usize = 256 * 1024;

/// What a thread has in hand.
#[derive(Default)]
struct Piece {
    file: Vec<u8>,
    values: Vec<f32>,
}

/// Fills `out` with rows of `width` values in the type `to`, from those of the source in the type `from` that begin at byte
/// `at`.
pub(super) fn read(
    team: &Team,
    source: &dyn TensorSource,
    at: u64,
    width: usize,
    [from, to]: [TensorType; 2],
    out: &mut [u8],
) -> Result<(), LoadError> {
    let row_bytes = |kind: TensorType| {
        let bytes = kind.bytes_of(width as u64).filter(|bytes| bytes.0 > 0);
        bytes
            .map(|bytes| bytes.0 as usize)
            .ok_or_else(|| refused(to, format!("rows of {width} values are no blocks")))
    };
    let (from_bytes, to_bytes) = (row_bytes(from)?, row_bytes(to)?);
    let together = (PIECE_VALUES / width).max(1);
    let hands = PerMember::<Piece>::new(team.threads());
    team.try_each_chunk(out, together * to_bytes, |member, i, out| {
        let Piece { file, values } = &mut *hands.of(member);
        let rows = out.len() / to_bytes;
        lengthen(READING, file, rows * from_bytes)?;
        lengthen(READING, values, rows * width)?;
        let (file, values) = (&mut file[..rows * from_bytes], &mut values[..rows * width]);
        source.read_at(at + (i * together * from_bytes) as u64, file)?;
        cpu::dequantise(from, width, file, values)?;
        out.copy_from_slice(&round(to, values)?);
        Ok::<(), LoadError>(())
    })
}

/// Values as blocks of a type, which there must be whole ones of.
pub(crate) fn round(kind: TensorType, values: &[f32]) -> Result<Vec<u8>, BackendError> {
    let known = ggml_type(kind).ok_or_else(|| refused(kind, "candle does not know it".to_owned()))?;
    let rounded = Tensor::from_slice(values, values.len(), &Device::Cpu)
        .and_then(|values| QTensor::quantize(&values, known))
        .and_then(|rounded| Ok(rounded.data()?.into_owned()));
    rounded.map_err(|error| refused(kind, error.to_string()))
}

fn refused(kind: TensorType, reason: String) -> BackendError {
    BackendError { operation: "convert weights", reason: format!("to {kind}: {reason}") }
}

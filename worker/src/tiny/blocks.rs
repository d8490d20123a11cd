//! Random weights in every type that a processor has kernels for.

use brigade_shard::tensor_type::TensorType;
use half::{bf16, f16};

use super::Random;
use crate::backend::BackendError;
use crate::candle_backend::round;

/// Every type that a processor has kernels for, with the deviation of random blocks whose scale is 1 where nothing here rounds
/// to the type.
pub const KINDS: [(TensorType, Option<f32>); 25] = {
    use TensorType::*;
    [
        (F32, None),
        (F16, None),
        (BF16, None),
        (Q4_0, None),
        (Q4_1, None),
        (Q5_0, None),
        (Q5_1, None),
        (Q8_0, None),
        (Q2K, None),
        (Q3K, None),
        (Q4K, None),
        (Q5K, None),
        (Q6K, None),
        (IQ4_NL, Some(67.4)),
        (MXFP4, Some(5.85)),
        (IQ4_XS, Some(1245.0)),
        (IQ1_S, Some(7.2)),
        (IQ1_M, Some(7.2)),
        (IQ2_XXS, Some(53.4)),
        (IQ2_XS, Some(55.8)),
        (IQ2_S, Some(56.3)),
        (IQ3_XXS, Some(142.2)),
        (IQ3_S, Some(140.1)),
        (TQ1_0, Some(0.817)),
        (TQ2_0, Some(1.118)),
    ]
};

/// Values as a file would hold them.
///
/// # Errors
/// Where nothing here rounds to the type, or values do not fill whole blocks.
pub fn encode(kind: TensorType, values: &[f32]) -> Result<Vec<u8>, BackendError> {
    match kind {
        TensorType::F32 => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        TensorType::F16 => Ok(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        TensorType::BF16 => Ok(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        quantised => round(quantised, values),
    }
}

/// `count` random values of about this deviation in a type; in MXFP4, whose scales are powers of 2, within a factor of 1.5
/// of it.
///
/// # Errors
/// Where there is no such type here, or values do not fill whole blocks.
pub fn random_blocks(
    kind: TensorType,
    count: usize,
    deviation: f32,
    random: &mut Random,
) -> Result<Vec<u8>, BackendError> {
    let Some(spread) = KINDS.iter().find(|row| row.0 == kind).and_then(|row| row.1) else {
        return encode(kind, &random.normals(count, deviation));
    };
    let bytes = kind.bytes_of(count as u64).ok_or_else(|| BackendError {
        operation: "make weights",
        reason: format!("{count} values are no whole blocks of {kind}"),
    })?;
    let mut bytes: Vec<u8> = (0..bytes.0).map(|_| (random.uniform() * 256.0) as u8).collect();
    let scale = deviation / spread;
    // MXFP4 has an exponent, whose bias is 127, for a scale; its values here are twice those of the format, and its scale
    // half of it.
    let scale = match kind {
        TensorType::MXFP4 => (scale.log2().round() + 128.0).clamp(1.0, 254.0) as u16,
        _ => f16::from_f32(scale).to_bits(),
    };
    set_scales(kind, &mut bytes, scale);
    Ok(bytes)
}

/// Gives every block this scale: bits of a half-precision number, of MXFP4 an exponent.
pub fn set_scales(kind: TensorType, blocks: &mut [u8], scale: u16) {
    for block in blocks.chunks_mut(kind.block_bytes() as usize) {
        let ats: &[usize] = match kind {
            TensorType::MXFP4 => {
                block[0] = scale as u8;
                &[]
            }
            TensorType::IQ1_M => {
                for i in 0..4 {
                    block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((scale >> (4 * i)) as u8 & 15) << 4;
                }
                &[]
            }
            TensorType::TQ1_0 => &[52],
            TensorType::TQ2_0 => &[64],
            TensorType::Q2K => &[80, 82],
            TensorType::Q3K => &[108],
            TensorType::Q6K => &[208],
            _ => &[0],
        };
        for &at in ats {
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

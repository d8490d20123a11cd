//! Random matrices of every type, and what their blocks stand for.

use super::tiny_model::{Random, decode, encode};
use brigade_shard::tensor_type::TensorType;
use brigade_worker::backend::{Backend, MatrixShape};
use brigade_worker::cpu::CpuBackend;
use brigade_worker::weights::{LoadError, TensorSource};
use half::f16;

/// Types whose blocks candle can make and read.
pub const KINDS: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];

/// The other types, with the deviation of random blocks whose scale is 1.
pub const CODEBOOK_KINDS: [(TensorType, f32); 12] = [
    (TensorType::IQ4_NL, 67.4),
    (TensorType::MXFP4, 5.85),
    (TensorType::IQ4_XS, 1245.0),
    (TensorType::IQ1_S, 7.2),
    (TensorType::IQ1_M, 7.2),
    (TensorType::IQ2_XXS, 53.4),
    (TensorType::IQ2_XS, 55.8),
    (TensorType::IQ2_S, 56.3),
    (TensorType::IQ3_XXS, 142.2),
    (TensorType::IQ3_S, 140.1),
    (TensorType::TQ1_0, 0.817),
    (TensorType::TQ2_0, 1.118),
];

pub fn all_kinds() -> impl Iterator<Item = TensorType> {
    KINDS.into_iter().chain(CODEBOOK_KINDS.into_iter().map(|(kind, _)| kind))
}

/// The deviation of random blocks of a type that candle does not know.
fn spread(kind: TensorType) -> Option<f32> {
    CODEBOOK_KINDS.iter().find(|row| row.0 == kind).map(|row| row.1)
}

/// Gives every block this scale: bits of a half-precision number, of MXFP4 an exponent.
pub fn set_scales(kind: TensorType, blocks: &mut [u8], scale: u16) {
    for block in blocks.chunks_mut(kind.block_bytes() as usize) {
        match kind {
            TensorType::MXFP4 => block[0] = scale as u8,
            TensorType::IQ1_M => {
                for i in 0..4 {
                    block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((scale >> (4 * i)) as u8 & 15) << 4;
                }
            }
            TensorType::TQ1_0 => block[52..54].copy_from_slice(&scale.to_le_bytes()),
            TensorType::TQ2_0 => block[64..66].copy_from_slice(&scale.to_le_bytes()),
            TensorType::Q2K => [80, 82]
                .map(|at| block[at..at + 2].copy_from_slice(&scale.to_le_bytes()))
                .into_iter()
                .collect(),
            TensorType::Q3K => block[108..110].copy_from_slice(&scale.to_le_bytes()),
            TensorType::Q6K => block[208..210].copy_from_slice(&scale.to_le_bytes()),
            _ => block[..2].copy_from_slice(&scale.to_le_bytes()),
        }
    }
}

/// Deviation of the values that are made; in MXFP4, whose scales are powers of 2, about that.
const DEVIATION: f32 = 0.3;

/// Random values of a type.
pub fn random_blocks(kind: TensorType, values: usize, random: &mut Random) -> Vec<u8> {
    let Some(spread) = spread(kind) else {
        return encode(kind, &random.normals(values, DEVIATION));
    };
    let count = kind.bytes_of(values as u64).unwrap().0;
    let mut bytes: Vec<u8> = (0..count).map(|_| (random.uniform() * 256.0) as u8).collect();
    let scale = f16::from_f32(DEVIATION / spread).to_bits();
    set_scales(kind, &mut bytes, if kind == TensorType::MXFP4 { 124 } else { scale });
    bytes
}

/// What rows of `width` stand for.
pub fn values_of(kind: TensorType, bytes: &[u8], width: usize) -> Vec<f32> {
    match spread(kind) {
        None => {
            let rows = bytes.len() / kind.bytes_of(width as u64).unwrap().0 as usize;
            decode(kind, bytes, rows * width)
        }
        Some(_) => dequantised(kind, bytes, width),
    }
}

/// What blocks stand for, as rows of an embedding.
pub fn dequantised(kind: TensorType, bytes: &[u8], width: usize) -> Vec<f32> {
    let rows = bytes.len() / kind.bytes_of(width as u64).unwrap().0 as usize;
    let backend = CpuBackend::new(1).unwrap();
    let table = backend.matrix(MatrixShape { kind, rows, width }, &mut InMemory(bytes.to_vec())).unwrap();
    let mut out = backend.rows(rows, width).unwrap();
    backend.embed(&table, &(0..rows as u32).collect::<Vec<_>>(), &mut out).unwrap();
    backend.host(&out, &mut Vec::new()).unwrap().to_vec()
}

/// A tensor's bytes.
pub struct InMemory(pub Vec<u8>);

impl TensorSource for InMemory {
    fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        out.copy_from_slice(&self.0[at as usize..][..out.len()]);
        Ok(())
    }

    fn unsupported(&self, kind: TensorType, device: &'static str) -> LoadError {
        LoadError::Unsupported { tensor: "test".to_owned(), kind, device }
    }
}

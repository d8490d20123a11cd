//! Random matrices of every type, and what their blocks stand for.

use super::tiny_model::{Random, decode};
use brigade_shard::tensor_type::TensorType;
use brigade_worker::backend::{Backend, MatrixShape};
use brigade_worker::cpu::CpuBackend;
pub use brigade_worker::tiny::set_scales;
use brigade_worker::tiny::{self, KINDS};
use brigade_worker::weights::{LoadError, TensorSource};

/// Types whose blocks candle can make and read.
pub fn kinds() -> impl Iterator<Item = TensorType> {
    KINDS.into_iter().filter(|(_, spread)| spread.is_none()).map(|(kind, _)| kind)
}

/// The other types.
pub fn codebook_kinds() -> impl Iterator<Item = TensorType> {
    KINDS.into_iter().filter(|(_, spread)| spread.is_some()).map(|(kind, _)| kind)
}

pub fn all_kinds() -> impl Iterator<Item = TensorType> {
    KINDS.into_iter().map(|(kind, _)| kind)
}

/// Deviation of the values that are made; in MXFP4, whose scales are powers of 2, about that.
const DEVIATION: f32 = 0.3;

/// Random values of a type.
pub fn random_blocks(kind: TensorType, values: usize, random: &mut Random) -> Vec<u8> {
    tiny::random_blocks(kind, values, DEVIATION, random).unwrap()
}

/// What rows of `width` stand for.
pub fn values_of(kind: TensorType, bytes: &[u8], width: usize) -> Vec<f32> {
    match kinds().any(|known| known == kind) {
        true => {
            let rows = bytes.len() / kind.bytes_of(width as u64).unwrap().0 as usize;
            decode(kind, bytes, rows * width)
        }
        false => dequantised(kind, bytes, width),
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

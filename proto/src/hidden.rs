//! Hidden states between the `f32` that stages compute with and the bytes that cross a link.

use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::step::{Hidden, WireDtype};

/// Hidden states whose number of values is not `rows * width`.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("hidden states of {rows} rows by {width} values need {expected} of them, not {found}")]
pub struct HiddenShapeError {
    rows: u32,
    width: u32,
    expected: u64,
    found: u64,
}

impl Hidden {
    /// Stores `values`, `[rows, width]`, as `dtype`; the 2-byte kinds round to nearest, ties to even.
    ///
    /// # Errors
    /// Where there are not `rows * width` values.
    pub fn from_f32(
        values: &[f32],
        rows: u32,
        width: u32,
        dtype: WireDtype,
    ) -> Result<Hidden, HiddenShapeError> {
        let expected = u64::from(rows) * u64::from(width);
        if values.len() as u64 != expected {
            return Err(HiddenShapeError { rows, width, expected, found: values.len() as u64 });
        }
        // Written through arrays of a value's bytes, which compiles to wide moves.
        let mut data = vec![0; values.len() * dtype.size()];
        match dtype {
            WireDtype::F32 => {
                let (stored, _) = data.as_chunks_mut::<4>();
                stored.iter_mut().zip(values).for_each(|(stored, value)| *stored = value.to_le_bytes());
            }
            WireDtype::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                let (stored, _) = data.as_chunks_mut::<2>();
                stored.iter_mut().zip(halves).for_each(|(stored, half)| *stored = half.to_le_bytes());
            }
            WireDtype::Bf16 => {
                let (stored, _) = data.as_chunks_mut::<2>();
                let halves = values.iter().map(|value| bf16::from_f32(*value));
                stored.iter_mut().zip(halves).for_each(|(stored, half)| *stored = half.to_le_bytes());
            }
        }
        Ok(Hidden { rows, width, dtype, data: Bytes::from(data) })
    }

    /// Replaces the content of `out` with the values, `[rows, width]`. Its capacity is kept, so that one buffer serves
    /// many steps.
    ///
    /// # Errors
    /// Where the data are not `rows * width` values; hidden states that came over a link always are.
    pub fn to_f32(&self, out: &mut Vec<f32>) -> Result<(), HiddenShapeError> {
        let expected = u64::from(self.rows) * u64::from(self.width);
        let size = self.dtype.size();
        if self.data.len() as u64 != expected.saturating_mul(size as u64) {
            let found = (self.data.len() / size) as u64;
            return Err(HiddenShapeError { rows: self.rows, width: self.width, expected, found });
        }
        out.clear();
        out.reserve(self.data.len() / size);
        match self.dtype {
            WireDtype::F32 => {
                let (values, _) = self.data.as_chunks::<4>();
                out.extend(values.iter().map(|v| f32::from_le_bytes(*v)));
            }
            WireDtype::F16 => {
                let (values, _) = self.data.as_chunks::<2>();
                out.extend(values.iter().map(|v| f16::from_le_bytes(*v).to_f32()));
            }
            WireDtype::Bf16 => {
                let (values, _) = self.data.as_chunks::<2>();
                out.extend(values.iter().map(|v| bf16::from_le_bytes(*v).to_f32()));
            }
        }
        Ok(())
    }

    /// Bytes that the shape needs, which `data` must have; saturates.
    pub fn expected_bytes(&self) -> u64 {
        (u64::from(self.rows) * u64::from(self.width)).saturating_mul(self.dtype.size() as u64)
    }
}

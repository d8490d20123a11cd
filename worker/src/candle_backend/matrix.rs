//! Weight matrices on a device: how they get there, and products with them.

use std::borrow::Cow;
use std::sync::Arc;

use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Error, Module, Result, Tensor};

use super::convert;
use super::experts::{self, ExpertMatrices};
use super::take_of;
use crate::backend::{BackendError, MatrixShape};
use crate::device::Room;
use crate::team::Team;
use crate::weights::{LoadError, READ_BYTES, TensorSource, WeightBuffer};

/// A weight matrix `[rows, width]`, or those of all experts.
pub enum CandleMatrix {
    /// In blocks.
    Quantised(Arc<QTensor>),
    /// In its file's floating-point type.
    Float(Tensor),
    /// Those of all experts.
    Experts(ExpertMatrices),
}

/// What reads matrices to a device.
pub(super) struct Placing<'a> {
    pub(super) device: &'a Device,
    /// Its memory.
    pub(super) room: &'a Room,
    /// What errors call the device.
    pub(super) name: &'static str,
    pub(super) readers: &'a Team,
    /// What turns types that the device has no kernels for into others, where that is wanted.
    pub(super) converters: Option<&'a Team>,
}

/// How a matrix comes to lie on the device.
#[derive(Clone, Copy)]
struct Form {
    /// Its type in the file.
    from: TensorType,
    /// Its type on the device.
    to: TensorType,
    candle: GgmlDType,
    rows: usize,
    width: usize,
    /// Bytes in the file.
    file_bytes: u64,
    /// Bytes on the device.
    bytes: usize,
}

impl Placing<'_> {
    /// Reads one matrix.
    pub(super) fn matrix(
        &self,
        shape: MatrixShape,
        source: &dyn TensorSource,
    ) -> std::result::Result<CandleMatrix, LoadError> {
        let form = self.form(shape, source)?;
        let mut staged = WeightBuffer::zeroed(form.bytes)?;
        self.stage(&form, 0, source, staged.bytes_mut())?;
        let (rows, width) = (form.rows, form.width);
        let place = || match float_type(form.to) {
            Some(dtype) => {
                let tensor = Tensor::from_raw_buffer(staged.bytes(), dtype, &[rows, width], self.device)?;
                Ok(CandleMatrix::Float(tensor))
            }
            None => Ok(CandleMatrix::Quantised(Arc::new(self.quantised(
                &form,
                staged.bytes(),
                &[rows, width],
            )?))),
        };
        Ok(self.take(form.bytes, place)?)
    }

    /// Reads the matrices of `count` experts, of which `shape` is one's.
    pub(super) fn experts(
        &self,
        shape: MatrixShape,
        count: usize,
        source: &dyn TensorSource,
    ) -> std::result::Result<CandleMatrix, LoadError> {
        let form = self.form(shape, source)?;
        let dims = [count, form.rows, form.width];
        let in_one = float_type(form.to).is_some() || experts::is_indexed(self.device, form.candle);
        if !in_one {
            // One expert is staged at a time.
            let mut staged = WeightBuffer::zeroed(form.bytes)?;
            let mut all = Vec::with_capacity(count);
            for expert in 0..count {
                self.stage(&form, expert as u64 * form.file_bytes, source, staged.bytes_mut())?;
                let tensor = self.take(form.bytes, || self.quantised(&form, staged.bytes(), &dims[1..]))?;
                all.push(Arc::new(tensor));
            }
            return Ok(CandleMatrix::Experts(ExpertMatrices::Separate(all)));
        }
        let all_of = Form { rows: count * form.rows, bytes: count * form.bytes, ..form };
        let mut staged = WeightBuffer::zeroed(all_of.bytes)?;
        self.stage(&all_of, 0, source, staged.bytes_mut())?;
        let place = || match float_type(form.to) {
            Some(dtype) => {
                Ok(ExpertMatrices::Float(Tensor::from_raw_buffer(staged.bytes(), dtype, &dims, self.device)?))
            }
            None => Ok(ExpertMatrices::Indexed(self.quantised(&form, staged.bytes(), &dims)?)),
        };
        Ok(CandleMatrix::Experts(self.take(all_of.bytes, place)?))
    }

    fn take<T>(
        &self,
        bytes: usize,
        place: impl FnOnce() -> Result<T>,
    ) -> std::result::Result<T, BackendError> {
        take_of(self.room, "place weights", Bytes(bytes as u64), place)
    }

    /// Which type a matrix gets; an error where the device has none for it.
    fn form(&self, shape: MatrixShape, source: &dyn TensorSource) -> std::result::Result<Form, LoadError> {
        let MatrixShape { kind: from, rows, width } = shape;
        let unsupported = || source.unsupported(from, self.name);
        let values = (rows * width) as u64;
        let (to, candle) = match (ggml_type(from), from.stand_in(width as u64)) {
            (Some(candle), _) => (from, candle),
            (None, Some(to)) if self.converters.is_some() => (to, ggml_type(to).ok_or_else(unsupported)?),
            (None, Some(_)) => return Err(LoadError::Convertible(Box::new(unsupported()))),
            (None, None) => return Err(unsupported()),
        };
        let file_bytes = from.bytes_of(values).ok_or_else(unsupported)?.0;
        let bytes = to.bytes_of(values).ok_or_else(unsupported)?.0 as usize;
        Ok(Form { from, to, candle, rows, width, file_bytes, bytes })
    }

    /// Fills `out` with the matrix that begins at byte `at` of the source, in the type that it has on the device.
    fn stage(
        &self,
        form: &Form,
        at: u64,
        source: &dyn TensorSource,
        out: &mut [u8],
    ) -> std::result::Result<(), LoadError> {
        match self.converters.filter(|_| form.from != form.to) {
            Some(team) => convert::read(team, source, at, form.width, [form.from, form.to], out),
            None => self.readers.try_each_chunk(out, READ_BYTES, |_, i, piece| {
                source.read_at(at + (i * READ_BYTES) as u64, piece)
            }),
        }
    }

    fn quantised(&self, form: &Form, bytes: &[u8], dims: &[usize]) -> Result<QTensor> {
        QTensor::new(QStorage::from_data(Cow::Borrowed(bytes), self.device, form.candle)?, dims)
    }
}

impl CandleMatrix {
    /// Inputs of the matrix.
    pub(super) fn width(&self) -> Result<usize> {
        match self {
            CandleMatrix::Quantised(tensor) => Ok(tensor.shape().dims2()?.1),
            CandleMatrix::Float(tensor) => tensor.dim(1),
            CandleMatrix::Experts(_) => Err(of_experts()),
        }
    }

    /// `[rows, width] -> [rows, outputs]`
    pub(super) fn multiply(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            CandleMatrix::Quantised(tensor) => multiply_quantised(tensor, input),
            CandleMatrix::Float(tensor) => multiply_float(tensor, input),
            CandleMatrix::Experts(_) => Err(of_experts()),
        }
    }

    /// The rows `ids` in f32.
    pub(super) fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            CandleMatrix::Quantised(table) => table.embedding(ids)?.to_dtype(DType::F32),
            CandleMatrix::Float(table) => table.index_select(ids, 0)?.to_dtype(DType::F32),
            CandleMatrix::Experts(_) => Err(of_experts()),
        }
    }
}

fn of_experts() -> Error {
    Error::Msg("experts are multiplied with by routes alone".to_owned())
}

pub(super) fn multiply_quantised(matrix: &Arc<QTensor>, input: &Tensor) -> Result<Tensor> {
    QMatMul::QTensor(matrix.clone()).forward(&whole(input)?)
}

pub(super) fn multiply_float(matrix: &Tensor, input: &Tensor) -> Result<Tensor> {
    input.to_dtype(matrix.dtype())?.matmul(&matrix.t()?)?.to_dtype(DType::F32)
}

/// The tensor, with nothing before it in its memory: some kernels do not look where a view begins.
pub(super) fn whole(tensor: &Tensor) -> Result<Tensor> {
    match tensor.is_contiguous() && tensor.layout().start_offset() == 0 {
        true => Ok(tensor.clone()),
        false => tensor.force_contiguous(),
    }
}

fn float_type(kind: TensorType) -> Option<DType> {
    Some(match kind {
        TensorType::F32 => DType::F32,
        TensorType::F16 => DType::F16,
        TensorType::BF16 => DType::BF16,
        _ => return None,
    })
}

/// What candle calls a type that it has kernels for.
pub(super) fn ggml_type(kind: TensorType) -> Option<GgmlDType> {
    Some(match kind {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::BF16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

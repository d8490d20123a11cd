//! CUDA and Metal, through candle's tensors.
//!
//! Weights are quantised tensors on the device, in their file's blocks; everything else is composed from candle's
//! operations. Results depend on the device's own kernels, so nothing is promised about bits. Scores of
//! a tile of 32 rows at a time exist beside the workspace.

mod attention;
mod bandwidth;

use brigade_proto::control::{CacheDtype, DeviceKind};
use brigade_shard::cost::PAGE_TOKENS;
use brigade_shard::spec::{Activation, Norm, RopePairing};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, DeviceLocation, Error, Module, Tensor};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

pub use self::bandwidth::copied_bytes_per_s;
use crate::backend::{
    AttentionShape, Backend, BackendError, Batch, CacheShape, HeadRows, MatrixShape, Routes,
};
use crate::device::Room;
use crate::team::Team;
use crate::weights::{LoadError, TensorSource, WeightBuffer};

/// Threads that read files; a disk is not faster with more, and the computing is the device's.
const READERS: usize = 4;

/// A device that candle drives.
pub struct CandleBackend {
    device: Device,
    /// Its memory.
    room: Room,
    readers: Team,
}

/// A weight matrix `[rows, width]`.
pub enum CandleMatrix {
    /// In its file's blocks.
    Quantised(Arc<QTensor>),
    /// In its file's floating-point type.
    Float(Tensor),
}

/// Activations; `None` before they are first written.
pub struct CandleRows(Option<Tensor>);

/// Keys and values of one layer: `[pages, PAGE_TOKENS, kv_heads * width]`.
pub struct CandleCache {
    shape: CacheShape,
    keys: Tensor,
    values: Tensor,
}

/// Opens the device of that kind.
///
/// # Errors
/// Where the program was built without it, or the device cannot be opened.
pub fn device(kind: DeviceKind) -> Result<Device, LoadError> {
    let opened = match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda(index) => Device::new_cuda(index as usize),
        DeviceKind::Metal => Device::new_metal(0),
    };
    opened.map_err(|error| match error {
        Error::NotCompiledWithCudaSupport => LoadError::DeviceNotBuilt { device: "cuda", feature: "cuda" },
        Error::NotCompiledWithMetalSupport => LoadError::DeviceNotBuilt { device: "metal", feature: "metal" },
        error => failed("open")(error).into(),
    })
}

fn failed(operation: &'static str) -> impl FnOnce(Error) -> BackendError {
    move |error| BackendError { operation, reason: error.to_string() }
}

impl CandleBackend {
    /// A backend on `device`.
    pub fn new(device: Device) -> Result<CandleBackend, BackendError> {
        let kind = match device.location() {
            DeviceLocation::Cpu => DeviceKind::Cpu,
            DeviceLocation::Cuda { gpu_id } => DeviceKind::Cuda(gpu_id as u32),
            DeviceLocation::Metal { .. } => DeviceKind::Metal,
        };
        CandleBackend::with_room(device, Room::of(kind))
    }

    /// The same, with what is to be taken for the device's memory.
    pub fn with_room(device: Device, room: Room) -> Result<CandleBackend, BackendError> {
        let readers = Team::new(READERS)
            .map_err(|e| BackendError { operation: "start its threads", reason: e.to_string() })?;
        Ok(CandleBackend { device, room, readers })
    }

    /// Takes `wanted` of the device's memory as `take` does; where that fails, the error says how much is free.
    fn take<T>(
        &self,
        operation: &'static str,
        wanted: Bytes,
        take: impl FnOnce() -> candle_core::Result<T>,
    ) -> Result<T, BackendError> {
        let refused = |reason| BackendError { operation, reason };
        self.room.check(wanted).map_err(refused)?;
        take().map_err(|error| refused(self.room.refused(wanted, &error.to_string())))
    }

    /// What errors call the device.
    fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu => "candle on the cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        }
    }
}

impl CandleRows {
    fn tensor(&self) -> Result<&Tensor, BackendError> {
        let unwritten =
            || BackendError { operation: "read activations", reason: "none were written".to_owned() };
        self.0.as_ref().ok_or_else(unwritten)
    }
}

fn no_experts() -> BackendError {
    let reason = "mixtures of experts run on the processor alone: use `--device cpu`";
    BackendError { operation: "run experts", reason: reason.to_owned() }
}

fn no_latent_attention() -> BackendError {
    let reason = "latent attention runs on the processor alone: use `--device cpu`";
    BackendError { operation: "attend", reason: reason.to_owned() }
}

fn ggml_type(kind: TensorType) -> Option<GgmlDType> {
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

fn multiply(matrix: &CandleMatrix, input: &Tensor) -> candle_core::Result<Tensor> {
    match matrix {
        CandleMatrix::Quantised(tensor) => QMatMul::QTensor(tensor.clone()).forward(input),
        CandleMatrix::Float(tensor) => {
            input.to_dtype(tensor.dtype())?.matmul(&tensor.t()?)?.to_dtype(DType::F32)
        }
    }
}

/// Normalises along the last dimension.
fn norm(norm: Norm, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    let (x, epsilon) = match norm {
        Norm::Rms { epsilon } => (x.clone(), epsilon),
        Norm::Layer { epsilon } => (x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?, epsilon),
    };
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(weight)
}

fn norm_parts(kind: Norm, x: &Tensor, part: usize, weight: &Tensor) -> candle_core::Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let weight = weight.reshape((weight.elem_count() / part, part))?;
    norm(kind, &x.reshape((rows, width / part, part))?, &weight)?.reshape((rows, width))
}

fn rope(
    x: &Tensor,
    head_width: usize,
    pairing: RopePairing,
    cos: &Tensor,
    sin: &Tensor,
) -> candle_core::Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (heads, pairs) = (width / head_width, cos.dim(1)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let heads_of = x.reshape((rows, heads, head_width))?;
    let turned = heads_of.narrow(2, 0, 2 * pairs)?.contiguous()?;
    let (a, b) = match pairing {
        RopePairing::Adjacent => {
            let pairs = turned.reshape((rows, heads, pairs, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
        RopePairing::Halves => (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?),
    };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
    let turned = match pairing {
        RopePairing::Adjacent => Tensor::stack(&[first, second], 3)?.reshape((rows, heads, 2 * pairs))?,
        RopePairing::Halves => Tensor::cat(&[first, second], 2)?,
    };
    let all = match head_width - 2 * pairs {
        0 => turned,
        rest => Tensor::cat(&[turned, heads_of.narrow(2, 2 * pairs, rest)?], 2)?,
    };
    all.reshape((rows, width))
}

/// The gate with `activation`, times what it gates.
fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Silu => gate.silu()? * up,
        Activation::Gelu => gate.gelu()? * up,
        Activation::ClampedSwish => {
            let gate = gate.minimum(7.0)?;
            let divisor = ((&gate * -1.702)?.exp()? + 1.0)?;
            (gate / divisor)? * (up.clamp(-7.0, 7.0)? + 1.0)?
        }
    }
}

impl Backend for CandleBackend {
    type Matrix = CandleMatrix;
    type Vector = Tensor;
    type Rows = CandleRows;
    type Cache = CandleCache;

    fn reserve(&mut self, _rows: usize, _width: usize) {}

    fn loaded(&mut self) {
        // Copies may be under way behind the thread that loads, and another one computes; what fails here fails there, too.
        let _ = self.device.synchronize();
    }

    fn matrix(&self, shape: MatrixShape, source: &mut dyn TensorSource) -> Result<CandleMatrix, LoadError> {
        let MatrixShape { kind, rows, width } = shape;
        let unsupported = || source.unsupported(kind, self.name());
        let ggml = ggml_type(kind).ok_or_else(unsupported)?;
        let bytes = kind.bytes_of((rows * width) as u64).ok_or_else(unsupported)?;
        // One tensor at a time is staged here on its way to the device.
        let mut staged = WeightBuffer::zeroed(bytes.0 as usize)?;
        source.read(staged.bytes_mut(), &self.readers)?;
        let float = match kind {
            TensorType::F32 => Some(DType::F32),
            TensorType::F16 => Some(DType::F16),
            TensorType::BF16 => Some(DType::BF16),
            _ => None,
        };
        let place = || match float {
            Some(dtype) => {
                let tensor = Tensor::from_raw_buffer(staged.bytes(), dtype, &[rows, width], &self.device)?;
                Ok(CandleMatrix::Float(tensor))
            }
            None => {
                let storage = QStorage::from_data(Cow::Borrowed(staged.bytes()), &self.device, ggml)?;
                Ok(CandleMatrix::Quantised(Arc::new(QTensor::new(storage, (rows, width))?)))
            }
        };
        Ok(self.take("place weights", bytes, place)?)
    }

    fn experts(
        &self,
        _shape: MatrixShape,
        _count: usize,
        _source: &mut dyn TensorSource,
    ) -> Result<CandleMatrix, LoadError> {
        Err(no_experts().into())
    }

    fn expert_linear(
        &mut self,
        _input: &CandleRows,
        _routes: &Routes,
        _count: usize,
        _products: &mut [(&CandleMatrix, &mut CandleRows)],
    ) -> Result<(), BackendError> {
        Err(no_experts())
    }

    fn head_linear(
        &mut self,
        _input: &CandleRows,
        _matrix: &CandleMatrix,
        _of: HeadRows,
        _out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        Err(no_latent_attention())
    }

    fn head_linear_transposed(
        &mut self,
        _input: &CandleRows,
        _matrix: &CandleMatrix,
        _of: HeadRows,
        _out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        Err(no_latent_attention())
    }

    fn join_heads(
        &self,
        _heads: usize,
        _parts: &[(&CandleRows, Range<usize>)],
        _out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        Err(no_latent_attention())
    }

    fn combine(
        &self,
        _routed: &CandleRows,
        _routes: &Routes,
        _out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        Err(no_experts())
    }

    fn vector(&self, values: &[f32]) -> Result<Tensor, BackendError> {
        let bytes = Bytes(size_of_val(values) as u64);
        self.take("place weights", bytes, || Tensor::from_slice(values, values.len(), &self.device))
    }

    fn rows(&self, _rows: usize, _width: usize) -> Result<CandleRows, BackendError> {
        Ok(CandleRows(None))
    }

    fn cache(&self, shape: CacheShape) -> Result<CandleCache, BackendError> {
        if shape.values_in_keys {
            return Err(no_latent_attention());
        }
        let dtype = match shape.dtype {
            CacheDtype::F16 => DType::F16,
            CacheDtype::F32 => DType::F32,
        };
        let zeros = |width: usize| {
            let (slots, width) = (shape.pages * PAGE_TOKENS as usize, shape.kv_heads * width);
            let bytes = Bytes((slots * width * dtype.size_in_bytes()) as u64);
            self.take("make room for the cache", bytes, || Tensor::zeros((slots, width), dtype, &self.device))
        };
        Ok(CandleCache { shape, keys: zeros(shape.key_width)?, values: zeros(shape.value_width)? })
    }

    fn enter<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R {
        work(self)
    }

    fn upload(&self, values: &[f32], width: usize, out: &mut CandleRows) -> Result<(), BackendError> {
        let shape = (values.len() / width, width);
        out.0 = Some(Tensor::from_slice(values, shape, &self.device).map_err(failed("upload rows"))?);
        Ok(())
    }

    fn host<'a>(&self, rows: &'a CandleRows, scratch: &'a mut Vec<f32>) -> Result<&'a [f32], BackendError> {
        let tensor = rows.tensor()?;
        *scratch = tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(failed("download rows"))?;
        Ok(scratch)
    }

    fn select(&self, rows: &CandleRows, which: &[usize], out: &mut CandleRows) -> Result<(), BackendError> {
        let rows = rows.tensor()?;
        let which: Vec<u32> = which.iter().map(|&row| row as u32).collect();
        let selected = Tensor::from_slice(&which, which.len(), &self.device)
            .and_then(|which| rows.index_select(&which, 0));
        out.0 = Some(selected.map_err(failed("select rows"))?);
        Ok(())
    }

    fn embed(&self, table: &CandleMatrix, tokens: &[u32], out: &mut CandleRows) -> Result<(), BackendError> {
        let embed = || {
            let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
            match table {
                CandleMatrix::Quantised(table) => table.embedding(&ids)?.to_dtype(DType::F32),
                CandleMatrix::Float(table) => table.index_select(&ids, 0)?.to_dtype(DType::F32),
            }
        };
        out.0 = Some(embed().map_err(failed("embed tokens"))?);
        Ok(())
    }

    fn linear(
        &mut self,
        input: &CandleRows,
        products: &mut [(&CandleMatrix, &mut CandleRows)],
    ) -> Result<(), BackendError> {
        let input = input.tensor()?;
        for (matrix, out) in products {
            out.0 = Some(multiply(matrix, input).map_err(failed("multiply"))?);
        }
        Ok(())
    }

    fn norm(
        &self,
        kind: Norm,
        input: &CandleRows,
        weight: &Tensor,
        out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        out.0 = Some(norm(kind, input.tensor()?, weight).map_err(failed("take the norm"))?);
        Ok(())
    }

    fn norm_parts(
        &self,
        kind: Norm,
        rows: &mut CandleRows,
        width: usize,
        weight: &Tensor,
    ) -> Result<(), BackendError> {
        let normed = norm_parts(kind, rows.tensor()?, width, weight);
        rows.0 = Some(normed.map_err(failed("take the norm of parts"))?);
        Ok(())
    }

    fn add_bias(&self, rows: &mut CandleRows, bias: &Tensor) -> Result<(), BackendError> {
        rows.0 = Some(rows.tensor()?.broadcast_add(bias).map_err(failed("add a bias"))?);
        Ok(())
    }

    fn add_expert_bias(
        &self,
        _rows: &mut CandleRows,
        _routes: &Routes,
        _biases: &Tensor,
    ) -> Result<(), BackendError> {
        Err(no_experts())
    }

    fn scale(&self, rows: &mut CandleRows, factor: f32) -> Result<(), BackendError> {
        rows.0 = Some((rows.tensor()? * f64::from(factor)).map_err(failed("scale"))?);
        Ok(())
    }

    fn scale_rows(&self, rows: &mut CandleRows, factors: &[f32]) -> Result<(), BackendError> {
        let scaled = Tensor::from_slice(factors, (factors.len(), 1), &self.device)
            .and_then(|factors| rows.tensor().map_err(Error::wrap)?.broadcast_mul(&factors));
        rows.0 = Some(scaled.map_err(failed("scale rows"))?);
        Ok(())
    }

    fn rope(
        &self,
        rows: &mut CandleRows,
        head_width: usize,
        pairing: RopePairing,
        cos: &CandleRows,
        sin: &CandleRows,
    ) -> Result<(), BackendError> {
        let turned = rope(rows.tensor()?, head_width, pairing, cos.tensor()?, sin.tensor()?);
        rows.0 = Some(turned.map_err(failed("turn queries and keys"))?);
        Ok(())
    }

    fn store(
        &self,
        cache: &mut CandleCache,
        batch: &Batch,
        keys: &CandleRows,
        values: &CandleRows,
    ) -> Result<(), BackendError> {
        attention::store(&cache.keys, batch, keys.tensor()?).map_err(failed("store keys"))?;
        attention::store(&cache.values, batch, values.tensor()?).map_err(failed("store values"))
    }

    fn attend(
        &mut self,
        cache: &CandleCache,
        batch: &Batch,
        shape: AttentionShape,
        sinks: Option<&Tensor>,
        queries: &CandleRows,
        out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        let attended = attention::attend(cache, batch, shape, sinks, queries.tensor()?, &self.device);
        out.0 = Some(attended.map_err(failed("attend"))?);
        Ok(())
    }

    fn gate(
        &self,
        gate: &mut CandleRows,
        up: &CandleRows,
        activation: Activation,
    ) -> Result<(), BackendError> {
        let gated = gated(gate.tensor()?, up.tensor()?, activation);
        gate.0 = Some(gated.map_err(failed("gate"))?);
        Ok(())
    }

    fn add(&self, rows: &mut CandleRows, other: &CandleRows) -> Result<(), BackendError> {
        let sum = rows.tensor()? + other.tensor()?;
        rows.0 = Some(sum.map_err(failed("add"))?);
        Ok(())
    }
}

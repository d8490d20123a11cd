//! CUDA and Metal, through candle's tensors.
//!
//! Weights are quantised tensors on the device, in their file's blocks; everything else is composed from candle's
//! operations. Results depend on the device's own kernels, so nothing is promised about bits. Beside the workspace there
//! exist, at a time, the scores of a tile of rows (32 MiB), or the widened matrices of some heads (64 MiB).

mod attention;
mod bandwidth;
mod convert;
mod experts;
mod heads;
mod matrix;
mod ops;

use std::ops::Range;

use brigade_proto::control::{CacheDtype, DeviceKind};
use brigade_shard::cost::PAGE_TOKENS;
use brigade_shard::spec::{Activation, Norm, RopePairing};
use brigade_shard::units::Bytes;
use candle_core::{DType, Device, DeviceLocation, Error, Tensor};

use self::attention::StepTensors;
pub use self::bandwidth::copied_bytes_per_s;
pub(crate) use self::convert::round;
pub use self::experts::ExpertMatrices;
use self::experts::Routed;
use self::heads::RowLists;
pub use self::matrix::CandleMatrix;
use self::matrix::Placing;
use crate::backend::{
    AttentionShape, Backend, BackendError, Batch, CacheShape, HeadRows, MatrixShape, Routes,
};
use crate::device::Room;
use crate::team::Team;
use crate::weights::{LoadError, TensorSource};

/// Threads that read files; a disk is not faster with more, and the computing is the device's.
const READERS: usize = 4;

/// A device that candle drives.
pub struct CandleBackend {
    device: Device,
    /// Its memory.
    room: Room,
    readers: Team,
    /// Threads that turn types without kernels into others while they are read, where that is wanted.
    converters: Option<Team>,
    step: StepTensors,
    lists: RowLists,
}

/// Activations; `None` before they are first written.
pub struct CandleRows(Option<Tensor>);

/// Keys and values of one layer: `[pages * PAGE_TOKENS, kv_heads * width]`.
pub struct CandleCache {
    shape: CacheShape,
    keys: Tensor,
    /// `None` where they are the last channels of the keys.
    values: Option<Tensor>,
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

/// Takes `wanted` of a device's memory as `take` does; where that fails, the error says how much is free.
fn take_of<T>(
    room: &Room,
    operation: &'static str,
    wanted: Bytes,
    take: impl FnOnce() -> candle_core::Result<T>,
) -> Result<T, BackendError> {
    let refused = |reason| BackendError { operation, reason };
    room.check(wanted).map_err(refused)?;
    take().map_err(|error| refused(room.refused(wanted, &error.to_string())))
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
        let (step, lists) = (StepTensors::default(), RowLists::default());
        Ok(CandleBackend { device, room, readers: team(READERS)?, converters: None, step, lists })
    }

    /// The same, but matrices of types that candle has no kernels for are not refused: while they are read, they are turned
    /// into their [stand-ins](brigade_shard::tensor_type::TensorType::stand_in).
    pub fn converting(self) -> Result<CandleBackend, BackendError> {
        // Rounding computes, and reading does not wait for it.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(CandleBackend { converters: Some(team(threads)?), ..self })
    }

    fn placing(&self) -> Placing<'_> {
        let CandleBackend { device, room, readers, converters, .. } = self;
        Placing { device, room, name: self.name(), readers, converters: converters.as_ref() }
    }

    fn take<T>(
        &self,
        operation: &'static str,
        wanted: Bytes,
        take: impl FnOnce() -> candle_core::Result<T>,
    ) -> Result<T, BackendError> {
        take_of(&self.room, operation, wanted, take)
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

fn team(threads: usize) -> Result<Team, BackendError> {
    Team::new(threads).map_err(|e| BackendError { operation: "start its threads", reason: e.to_string() })
}

/// A matrix where one expert's or another's is wanted.
fn experts_of(matrix: &CandleMatrix) -> Result<&ExpertMatrices, BackendError> {
    match matrix {
        CandleMatrix::Experts(experts) => Ok(experts),
        CandleMatrix::Quantised(_) | CandleMatrix::Float(_) => {
            let reason = "the matrix was not read as one of experts".to_owned();
            Err(BackendError { operation: "run experts", reason })
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
        self.placing().matrix(shape, &*source)
    }

    fn experts(
        &self,
        shape: MatrixShape,
        count: usize,
        source: &mut dyn TensorSource,
    ) -> Result<CandleMatrix, LoadError> {
        self.placing().experts(shape, count, &*source)
    }

    fn expert_linear(
        &mut self,
        input: &CandleRows,
        routes: &Routes,
        _count: usize,
        products: &mut [(&CandleMatrix, &mut CandleRows)],
    ) -> Result<(), BackendError> {
        let input = input.tensor()?;
        let all = products.iter().map(|(matrix, _)| experts_of(matrix)).collect::<Result<Vec<_>, _>>()?;
        let run = || {
            let routed = Routed::new(routes, input.dim(0)?, &self.device)?;
            experts::linear(input, &routed, &all)
        };
        let found = run().map_err(failed("multiply with experts"))?;
        for ((_, out), product) in products.iter_mut().zip(found) {
            out.0 = Some(product);
        }
        Ok(())
    }

    fn head_linear(
        &mut self,
        input: &CandleRows,
        matrix: &CandleMatrix,
        of: HeadRows,
        out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        let product = heads::linear(&mut self.lists, input.tensor()?, matrix, of, false);
        out.0 = Some(product.map_err(failed("multiply head by head"))?);
        Ok(())
    }

    fn head_linear_transposed(
        &mut self,
        input: &CandleRows,
        matrix: &CandleMatrix,
        of: HeadRows,
        out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        let product = heads::linear(&mut self.lists, input.tensor()?, matrix, of, true);
        out.0 = Some(product.map_err(failed("multiply head by head"))?);
        Ok(())
    }

    fn join_heads(
        &self,
        heads: usize,
        parts: &[(&CandleRows, Range<usize>)],
        out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        let parts = parts.iter().map(|(rows, channels)| Ok((rows.tensor()?, channels.clone())));
        let parts = parts.collect::<Result<Vec<_>, BackendError>>()?;
        out.0 = Some(heads::join(heads, &parts).map_err(failed("join heads"))?);
        Ok(())
    }

    fn combine(
        &self,
        routed: &CandleRows,
        routes: &Routes,
        out: &mut CandleRows,
    ) -> Result<(), BackendError> {
        let sum = experts::combine(routed.tensor()?, routes);
        out.0 = Some(sum.map_err(failed("add up experts"))?);
        Ok(())
    }

    fn vector(&self, values: &[f32]) -> Result<Tensor, BackendError> {
        let bytes = Bytes(size_of_val(values) as u64);
        self.take("place weights", bytes, || Tensor::from_slice(values, values.len(), &self.device))
    }

    fn rows(&self, _rows: usize, _width: usize) -> Result<CandleRows, BackendError> {
        Ok(CandleRows(None))
    }

    fn cache(&self, shape: CacheShape) -> Result<CandleCache, BackendError> {
        let dtype = match shape.dtype {
            CacheDtype::F16 => DType::F16,
            CacheDtype::F32 => DType::F32,
        };
        let zeros = |width: usize| {
            let (slots, width) = (shape.pages * PAGE_TOKENS as usize, shape.kv_heads * width);
            let bytes = Bytes((slots * width * dtype.size_in_bytes()) as u64);
            self.take("make room for the cache", bytes, || Tensor::zeros((slots, width), dtype, &self.device))
        };
        let values = (!shape.values_in_keys).then(|| zeros(shape.value_width)).transpose()?;
        Ok(CandleCache { shape, keys: zeros(shape.key_width)?, values })
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
        let rows = Tensor::from_slice(tokens, tokens.len(), &self.device).and_then(|ids| table.rows(&ids));
        out.0 = Some(rows.map_err(failed("embed tokens"))?);
        Ok(())
    }

    fn linear(
        &mut self,
        input: &CandleRows,
        products: &mut [(&CandleMatrix, &mut CandleRows)],
    ) -> Result<(), BackendError> {
        let input = input.tensor()?;
        for (matrix, out) in products {
            out.0 = Some(matrix.multiply(input).map_err(failed("multiply"))?);
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
        out.0 = Some(ops::norm(kind, input.tensor()?, weight).map_err(failed("take the norm"))?);
        Ok(())
    }

    fn norm_parts(
        &self,
        kind: Norm,
        rows: &mut CandleRows,
        width: usize,
        weight: &Tensor,
    ) -> Result<(), BackendError> {
        let normed = ops::norm_parts(kind, rows.tensor()?, width, weight);
        rows.0 = Some(normed.map_err(failed("take the norm of parts"))?);
        Ok(())
    }

    fn add_bias(&self, rows: &mut CandleRows, bias: &Tensor) -> Result<(), BackendError> {
        rows.0 = Some(rows.tensor()?.broadcast_add(bias).map_err(failed("add a bias"))?);
        Ok(())
    }

    fn add_expert_bias(
        &self,
        rows: &mut CandleRows,
        routes: &Routes,
        biases: &Tensor,
    ) -> Result<(), BackendError> {
        let sum = experts::add_bias(rows.tensor()?, routes, biases);
        rows.0 = Some(sum.map_err(failed("add the experts' biases"))?);
        Ok(())
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
        let turned = ops::rope(rows.tensor()?, head_width, pairing, cos.tensor()?, sin.tensor()?);
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
        match &cache.values {
            Some(cached) => attention::store(cached, batch, values.tensor()?).map_err(failed("store values")),
            None => Ok(()),
        }
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
        let attended = attention::attend(&mut self.step, cache, batch, shape, sinks, queries.tensor()?);
        out.0 = Some(attended.map_err(failed("attend"))?);
        Ok(())
    }

    fn gate(
        &self,
        gate: &mut CandleRows,
        up: &CandleRows,
        activation: Activation,
    ) -> Result<(), BackendError> {
        let gated = ops::gated(gate.tensor()?, up.tensor()?, activation);
        gate.0 = Some(gated.map_err(failed("gate"))?);
        Ok(())
    }

    fn add(&self, rows: &mut CandleRows, other: &CandleRows) -> Result<(), BackendError> {
        let sum = rows.tensor()? + other.tensor()?;
        rows.0 = Some(sum.map_err(failed("add"))?);
        Ok(())
    }
}

//! What a device must be able to do to run a model.
//!
//! The model code is written once over [`Backend`]; how weights, activations and the cache are kept, and which kernels
//! run, is each backend's own. All activations are `[rows, width]` matrices of f32 with one row per token of the step.

use std::ops::Range;

use brigade_proto::control::CacheDtype;
use brigade_shard::spec::{Activation, Norm, RopePairing, Visibility};
use brigade_shard::tensor_type::TensorType;

use crate::weights::{LoadError, TensorSource};

/// An operation that a device could not carry out.
#[derive(Debug, thiserror::Error)]
#[error("device failed to {operation}: {reason}")]
pub struct BackendError {
    /// What was being done, such as `multiply`.
    pub operation: &'static str,
    /// What the device said.
    pub reason: String,
}

/// The form of a weight matrix: `rows` outputs of `width` inputs, stored row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// How values are stored.
    pub kind: TensorType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub width: usize,
}

/// The form of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Pages of [`PAGE_TOKENS`](brigade_shard::cost::PAGE_TOKENS) tokens.
    pub pages: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a key head.
    pub key_width: usize,
    /// Values of a value head.
    pub value_width: usize,
    /// Whether a head's values are the last of its key's, and not stored apart.
    pub values_in_keys: bool,
    /// How a value is kept.
    pub dtype: CacheDtype,
}

/// Consecutive rows of a step that belong to one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The rows.
    pub rows: Range<usize>,
    /// Position of the first row in its sequence.
    pub start: usize,
    /// The sequence's cache pages, in order; they hold every position up to the last row's.
    pub pages: Vec<u32>,
}

/// A step's rows, sequence by sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// One entry per sequence; together they cover all rows in order.
    pub spans: Vec<Span>,
}

impl Batch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.spans.last().map_or(0, |span| span.rows.end)
    }

    /// Every row's position, in order.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.spans.iter().flat_map(|span| span.start..span.start + span.rows.len())
    }
}

/// How queries look at a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; `heads / kv_heads` neighbours share a key and value head.
    pub heads: usize,
    /// Factor on the scores before the softmax.
    pub scale: f32,
    /// Which positions a row sees.
    pub visibility: Visibility,
}

/// Which rows of a stacked matrix are each head's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRows {
    /// Heads.
    pub heads: usize,
    /// Rows between the beginnings of two heads.
    pub stride: usize,
    /// The first of a head's rows that are meant, from the head's beginning.
    pub first: usize,
    /// How many are meant.
    pub count: usize,
}

impl HeadRows {
    /// All of `count` rows of each head.
    pub fn all(heads: usize, count: usize) -> HeadRows {
        HeadRows { heads, stride: count, first: 0, count }
    }
}

/// Which experts a step's rows take. A row has as many routes as it takes experts, one after another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Routes of a row.
    pub used: usize,
    /// The expert of each route.
    pub experts: Vec<u32>,
    /// How much the expert's output counts, for each route.
    pub weights: Vec<f32>,
}

/// A device, with the kernels that run on it.
///
/// Shapes are the caller's duty: the model code checks a file and a frame before it calls. Operations that write to
/// `out` give it as many rows as their input has.
pub trait Backend: Send + Sized {
    /// A weight matrix in its file's blocks.
    type Matrix: Send + Sync + 'static;
    /// One f32 weight per channel.
    type Vector: Send + Sync;
    /// Activations, `[rows, width]`; the operation that writes them sets their shape.
    type Rows: Send + Sync;
    /// Keys and values of one layer.
    type Cache: Send + Sync;

    /// Makes room for the scratch memory of steps of `rows` rows and inputs of up to `width` values.
    fn reserve(&mut self, rows: usize, width: usize);

    /// Takes in that all matrices are loaded: what makes them faster to read may go on beside the steps from now on.
    /// They may not be freed before the backend.
    fn loaded(&mut self) {}

    /// Waits until what [`loaded`](Self::loaded) has begun is done.
    fn settle(&mut self) {}

    /// Reads a matrix to where it stays. Fails where there is no kernel for its type, or the source cannot be read.
    fn matrix(&self, shape: MatrixShape, source: &mut dyn TensorSource) -> Result<Self::Matrix, LoadError>;

    /// Reads the matrices of `count` experts, which lie one after another; `shape` is that of one. Fails as
    /// [`matrix`](Self::matrix) does.
    fn experts(
        &self,
        shape: MatrixShape,
        count: usize,
        source: &mut dyn TensorSource,
    ) -> Result<Self::Matrix, LoadError>;

    /// Takes a matrix that another backend of the device has read as if this one had.
    fn adopt(&self, _matrix: &Self::Matrix) {}

    /// Places channel weights.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, BackendError>;

    /// An empty activation matrix with memory for `rows` rows of `width` values.
    fn rows(&self, rows: usize, width: usize) -> Result<Self::Rows, BackendError>;

    /// An empty cache. Fails where the device cannot attend to one of that form.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, BackendError>;

    /// Runs `work` where the device's operations are cheapest to call; a step is one such call.
    fn enter<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R;

    /// Copies rows of `width` values to the device.
    fn upload(&self, values: &[f32], width: usize, out: &mut Self::Rows) -> Result<(), BackendError>;

    /// The rows' values on the host, in `scratch` where the device's memory is not the host's.
    fn host<'a>(&self, rows: &'a Self::Rows, scratch: &'a mut Vec<f32>) -> Result<&'a [f32], BackendError>;

    /// Takes the rows `which` of `rows`, in that order.
    fn select(&self, rows: &Self::Rows, which: &[usize], out: &mut Self::Rows) -> Result<(), BackendError>;

    /// Takes the row of `table` for each token.
    fn embed(&self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Rows) -> Result<(), BackendError>;

    /// Multiplies the input with each matrix: `[rows, width] x [outputs, width]^T -> [rows, outputs]`.
    fn linear(
        &mut self,
        input: &Self::Rows,
        products: &mut [(&Self::Matrix, &mut Self::Rows)],
    ) -> Result<(), BackendError>;

    /// Multiplies with the experts' matrices that the routes name: the output has a row per route, the input a row per
    /// token or per route. Each matrix holds `count` experts.
    fn expert_linear(
        &mut self,
        input: &Self::Rows,
        routes: &Routes,
        count: usize,
        products: &mut [(&Self::Matrix, &mut Self::Rows)],
    ) -> Result<(), BackendError>;

    /// Multiplies each head's part of the input with the head's rows of the matrix: `[rows, heads * matrix width]` ->
    /// `[rows, heads * count]`.
    fn head_linear(
        &mut self,
        input: &Self::Rows,
        matrix: &Self::Matrix,
        of: HeadRows,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// The same with the transposed rows: `[rows, heads * count]` -> `[rows, heads * matrix width]`.
    fn head_linear_transposed(
        &mut self,
        input: &Self::Rows,
        matrix: &Self::Matrix,
        of: HeadRows,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// Puts channels of the heads of several inputs side by side, head by head. Each input has `heads` heads of a width
    /// of its own, and gives the channels named.
    fn join_heads(
        &self,
        heads: usize,
        parts: &[(&Self::Rows, Range<usize>)],
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// Adds up the routes' rows of each token, each times its weight, in the order of the routes.
    fn combine(&self, routed: &Self::Rows, routes: &Routes, out: &mut Self::Rows)
    -> Result<(), BackendError>;

    /// Normalises each row, with one weight per channel.
    fn norm(
        &self,
        norm: Norm,
        input: &Self::Rows,
        weight: &Self::Vector,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// Normalises each part of `width` channels of each row in place. The weights are one per channel of a part, or one
    /// per channel of a row.
    fn norm_parts(
        &self,
        norm: Norm,
        rows: &mut Self::Rows,
        width: usize,
        weight: &Self::Vector,
    ) -> Result<(), BackendError>;

    /// Adds `bias` to each row.
    fn add_bias(&self, rows: &mut Self::Rows, bias: &Self::Vector) -> Result<(), BackendError>;

    /// Adds to each route's row its expert's part of `biases`, which are `[experts, width]`, one after another.
    fn add_expert_bias(
        &self,
        rows: &mut Self::Rows,
        routes: &Routes,
        biases: &Self::Vector,
    ) -> Result<(), BackendError>;

    /// Multiplies every value by `factor`.
    fn scale(&self, rows: &mut Self::Rows, factor: f32) -> Result<(), BackendError>;

    /// Multiplies each row by its own factor.
    fn scale_rows(&self, rows: &mut Self::Rows, factors: &[f32]) -> Result<(), BackendError>;

    /// Turns the first `2 * angles` channels of each head of `head_width` channels by the row's angles, whose cosines
    /// and sines are given as `[rows, angles]`.
    fn rope(
        &self,
        rows: &mut Self::Rows,
        head_width: usize,
        pairing: RopePairing,
        cos: &Self::Rows,
        sin: &Self::Rows,
    ) -> Result<(), BackendError>;

    /// Writes each row's keys and values to its sequence's pages; values that are parts of the keys are not written again.
    fn store(
        &self,
        cache: &mut Self::Cache,
        batch: &Batch,
        keys: &Self::Rows,
        values: &Self::Rows,
    ) -> Result<(), BackendError>;

    /// Lets each row's queries look at the positions of its sequence that the shape lets it see: softmax(q k^T scale) v
    /// per head. A sink, one per head, is one more score in the softmax that no value belongs to.
    fn attend(
        &mut self,
        cache: &Self::Cache,
        batch: &Batch,
        shape: AttentionShape,
        sinks: Option<&Self::Vector>,
        queries: &Self::Rows,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;

    /// activation(gate) * up, into `gate`.
    fn gate(
        &self,
        gate: &mut Self::Rows,
        up: &Self::Rows,
        activation: Activation,
    ) -> Result<(), BackendError>;

    /// Adds `other` to `rows`.
    fn add(&self, rows: &mut Self::Rows, other: &Self::Rows) -> Result<(), BackendError>;
}

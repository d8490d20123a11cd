//! Latent attention over a cache that keeps the latent vectors alone.
//!
//! A cached key is `[turned key | latent vector]`, and its latent vector is the value, too. A query head is brought into
//! the same form: its turned channels, and what its plain channels become when they have met the head's key matrix. So
//! all heads read one key; the head's value matrix is applied to what they bring back.

use std::sync::Arc;

use super::block::{NormPart, Turn, Workspace};
use crate::backend::{AttentionShape, Backend, BackendError, Batch, HeadRows};

/// Latent attention of one layer.
pub(super) struct LatentPart<B: Backend> {
    pub(super) shape: AttentionShape,
    pub(super) widths: LatentHead,
    pub(super) query: QueryPart<B>,
    /// Makes the latent vector.
    pub(super) latent: Arc<B::Matrix>,
    pub(super) norm: NormPart<B>,
    /// Makes the turned key.
    pub(super) turned: Arc<B::Matrix>,
    pub(super) turn: Turn,
    pub(super) up: UpPart<B>,
    pub(super) output: Arc<B::Matrix>,
    pub(super) cache: B::Cache,
}

/// Channels of one head.
#[derive(Clone, Copy)]
pub(super) struct LatentHead {
    pub(super) rank: usize,
    pub(super) plain: usize,
    pub(super) turned: usize,
    pub(super) value: usize,
}

pub(super) enum QueryPart<B: Backend> {
    Direct(Arc<B::Matrix>),
    Compressed { down: Arc<B::Matrix>, norm: NormPart<B>, up: Arc<B::Matrix> },
}

/// The heads' key and value matrices.
pub(super) enum UpPart<B: Backend> {
    /// The keys' are transposed.
    Split { keys: Arc<B::Matrix>, values: Arc<B::Matrix> },
    /// For every head the rows of its key matrix and then those of its value matrix.
    Joined(Arc<B::Matrix>),
}

/// What latent attention computes in besides, `[rows, width]` each.
pub(super) struct LatentBuffers<B: Backend> {
    pub(super) compressed: B::Rows,
    /// All query heads, `[plain | turned]` each.
    pub(super) query: B::Rows,
    /// Input of the key matrices, and later output of the value matrices.
    pub(super) heads: B::Rows,
    pub(super) turned: B::Rows,
}

impl<B: Backend> LatentPart<B> {
    /// From the block's normalised input to its projected output.
    pub(super) fn run(
        &mut self,
        backend: &mut B,
        batch: &Batch,
        w: &mut Workspace<B>,
    ) -> Result<(), BackendError> {
        let Some(buffers) = &mut w.latent else {
            let reason = "the workspace was made for a model without latent attention".to_owned();
            return Err(BackendError { operation: "attend", reason });
        };
        let LatentHead { rank, plain, turned, .. } = self.widths;
        let (heads, cached) = (self.shape.heads, turned + rank);
        let (cos, sin) = &w.angles[self.turn.angles];
        let down = [(&*self.latent, &mut w.values), (&*self.turned, &mut buffers.turned)];
        match &self.query {
            QueryPart::Direct(query) => {
                let [latent, turned] = down;
                backend.linear(&w.normed, &mut [(query, &mut buffers.query), latent, turned])?;
            }
            QueryPart::Compressed { down: query, norm, up } => {
                let [latent, turned] = down;
                backend.linear(&w.normed, &mut [(query, &mut buffers.compressed), latent, turned])?;
                norm.run_in_place(backend, &mut buffers.compressed)?;
                backend.linear(&buffers.compressed, &mut [(up, &mut buffers.query)])?;
            }
        }
        self.norm.run_in_place(backend, &mut w.values)?;
        backend.join_heads(1, &[(&buffers.turned, 0..turned), (&w.values, 0..rank)], &mut w.keys)?;
        backend.rope(&mut w.keys, cached, self.turn.pairing, cos, sin)?;

        backend.join_heads(heads, &[(&buffers.query, 0..plain)], &mut buffers.heads)?;
        // Nothing has been attended to yet, so that the buffer is free.
        self.up.keys(backend, heads, self.widths, &buffers.heads, &mut w.attended)?;
        let parts = [(&buffers.query, plain..plain + turned), (&w.attended, 0..rank)];
        backend.join_heads(heads, &parts, &mut w.queries)?;
        backend.rope(&mut w.queries, cached, self.turn.pairing, cos, sin)?;

        backend.store(&mut self.cache, batch, &w.keys, &w.values)?;
        backend.attend(&self.cache, batch, self.shape, None, &w.queries, &mut w.attended)?;
        self.up.values(backend, heads, self.widths, &w.attended, &mut buffers.heads)?;
        backend.linear(&buffers.heads, &mut [(&self.output, &mut w.projected)])
    }
}

impl<B: Backend> UpPart<B> {
    /// Applies the key matrices to plain queries: `[rows, heads * plain] -> [rows, heads * rank]`.
    fn keys(
        &self,
        backend: &mut B,
        heads: usize,
        of: LatentHead,
        input: &B::Rows,
        out: &mut B::Rows,
    ) -> Result<(), BackendError> {
        match self {
            UpPart::Split { keys, .. } => {
                backend.head_linear(input, keys, HeadRows::all(heads, of.rank), out)
            }
            UpPart::Joined(both) => {
                let rows = HeadRows { heads, stride: of.plain + of.value, first: 0, count: of.plain };
                backend.head_linear_transposed(input, both, rows, out)
            }
        }
    }

    /// Applies the value matrices to weighted latent vectors: `[rows, heads * rank] -> [rows, heads * value]`.
    fn values(
        &self,
        backend: &mut B,
        heads: usize,
        of: LatentHead,
        input: &B::Rows,
        out: &mut B::Rows,
    ) -> Result<(), BackendError> {
        match self {
            UpPart::Split { values, .. } => {
                backend.head_linear(input, values, HeadRows::all(heads, of.value), out)
            }
            UpPart::Joined(both) => {
                let rows = HeadRows { heads, stride: of.plain + of.value, first: of.plain, count: of.value };
                backend.head_linear(input, both, rows, out)
            }
        }
    }
}

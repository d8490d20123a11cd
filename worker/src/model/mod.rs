//! A stage's part of a model: an optional embedding, blocks, an optional head.
//!
//! One generic block is composed from the typed parts of [`LayerSpec`](brigade_shard::spec::LayerSpec); it knows no
//! family and no device.

mod block;
mod latent;
mod load;
mod room;
mod router;

use std::sync::Arc;

use brigade_shard::cost::HEAD_BLOCK_ROWS;
use brigade_shard::spec::{ModelSpec, Norm};

use self::block::{Block, Workspace};
pub use self::load::{load, prepare};
pub use self::room::{Converted, StageNeeds, check_room};
use crate::backend::{Backend, BackendError, Batch};
use crate::rope::RopeFrequencies;
use crate::weights::LayerStream;

/// Rows of logits that exist at a time.
const HEAD_ROWS: usize = HEAD_BLOCK_ROWS as usize;

/// What enters a stage.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids, one per row, for the stage that holds the embedding.
    Tokens(&'a [u32]),
    /// Hidden states, `[rows, hidden]`, for all others.
    Hidden(&'a [f32]),
}

/// A shard's weights, cache and workspace on a device.
pub struct StageModel<B: Backend> {
    /// Freed before the matrices, as it wants.
    backend: B,
    spec: ModelSpec,
    embedding: Option<Arc<B::Matrix>>,
    blocks: Vec<Block<B>>,
    /// What reads the last of the blocks for every step, where that is wanted.
    stream: Option<LayerStream>,
    frequencies: Vec<RopeFrequencies>,
    head: Option<Head<B>>,
    workspace: Workspace<B>,
    angles: (Vec<f32>, Vec<f32>),
    host: Vec<f32>,
}

/// What turns the last hidden state into logits.
struct Head<B: Backend> {
    norm: Norm,
    norm_weight: B::Vector,
    output: Arc<B::Matrix>,
    logit_scale: f32,
    selected: B::Rows,
    normed: B::Rows,
    logits: B::Rows,
}

impl<B: Backend> StageModel<B> {
    /// What the whole model computes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Whether this stage takes token ids.
    pub fn takes_tokens(&self) -> bool {
        self.embedding.is_some()
    }

    /// Whether this stage makes logits.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Waits until the weights lie where they stay: until then, steps may take somewhat longer.
    pub fn settle(&mut self) {
        self.backend.settle();
    }

    /// Runs a step through the stage's blocks; its hidden states, `[rows, hidden]`, stay on the device.
    ///
    /// The caller has checked that tokens are below the vocabulary's size, that rows are as many as the batch says and
    /// no more than the room, and that the batch's pages are there.
    pub fn run(&mut self, input: Input<'_>, batch: &Batch) -> Result<(), BackendError> {
        let StageModel { backend, embedding, blocks, stream, frequencies, workspace, angles, spec, .. } =
            self;
        let (cos, sin) = angles;
        backend.enter(|backend| {
            match (input, embedding) {
                (Input::Tokens(tokens), Some(table)) => {
                    backend.embed(table, tokens, &mut workspace.hidden)?;
                    if spec.embedding_scale != 1.0 {
                        backend.scale(&mut workspace.hidden, spec.embedding_scale)?;
                    }
                }
                (Input::Hidden(values), None) => {
                    backend.upload(values, spec.hidden, &mut workspace.hidden)?
                }
                (Input::Tokens(_), None) => return Err(misplaced("token ids")),
                (Input::Hidden(_), Some(_)) => return Err(misplaced("hidden states")),
            }
            for (frequencies, (device_cos, device_sin)) in frequencies.iter().zip(&mut workspace.angles) {
                frequencies.angles(batch.positions(), cos, sin);
                backend.upload(cos, frequencies.pairs(), device_cos)?;
                backend.upload(sin, frequencies.pairs(), device_sin)?;
            }
            let streamed = stream.as_ref().map_or(0, LayerStream::layers);
            let resident = blocks.len() - streamed;
            let (resident, streamed) = blocks.split_at_mut(resident);
            resident.iter_mut().try_for_each(|block| block.run(backend, batch, workspace))?;
            let Some(stream) = stream else { return Ok(()) };
            streamed.iter_mut().enumerate().try_for_each(|(layer, block)| {
                stream.enter(layer)?;
                let run = block.run(backend, batch, workspace);
                stream.leave(layer);
                run
            })
        })
    }

    /// Hands the hidden states of the last [`run`](Self::run), `[rows, hidden]`, to `take`.
    pub fn hidden<R>(&mut self, take: impl FnOnce(&[f32]) -> R) -> Result<R, BackendError> {
        let StageModel { backend, workspace, host, .. } = self;
        Ok(take(backend.host(&workspace.hidden, host)?))
    }

    /// Computes the logits of some rows of the last [`run`](Self::run), in blocks, and hands them on one by one: `each`
    /// gets an index into `rows` and the logits, `[vocab]`.
    pub fn logits<E: From<BackendError>>(
        &mut self,
        rows: &[usize],
        mut each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let StageModel { backend, workspace, head, host, spec, .. } = self;
        let head = head.as_mut().ok_or_else(|| misplaced("a wish for logits"))?;
        for (block, rows) in rows.chunks(HEAD_ROWS).enumerate() {
            backend.enter(|backend| head.run(backend, &workspace.hidden, rows))?;
            let logits = backend.host(&head.logits, host)?;
            for (i, logits) in logits.chunks_exact(spec.vocab).enumerate() {
                each(block * HEAD_ROWS + i, logits)?;
            }
        }
        Ok(())
    }
}

impl<B: Backend> Head<B> {
    fn run(&mut self, backend: &mut B, hidden: &B::Rows, rows: &[usize]) -> Result<(), BackendError> {
        backend.select(hidden, rows, &mut self.selected)?;
        backend.norm(self.norm, &self.selected, &self.norm_weight, &mut self.normed)?;
        backend.linear(&self.normed, &mut [(&self.output, &mut self.logits)])?;
        if self.logit_scale == 1.0 { Ok(()) } else { backend.scale(&mut self.logits, self.logit_scale) }
    }
}

fn misplaced(what: &str) -> BackendError {
    BackendError { operation: "run the stage", reason: format!("{what} came to a stage that cannot take it") }
}

//! Building a stage's model from its tensors.

use std::sync::Arc;

use brigade_proto::control::StageRoom;
use brigade_shard::cost::{PAGE_TOKENS, Widths};
use brigade_shard::layers::Shard;
use brigade_shard::spec::{Attention, FeedForward, GroupedAttention, LayerSpec, ModelSpec, Rope};
use brigade_shard::tensors::{LayerRole, Role, TensorError, TensorTable};
use brigade_shard::units::Bytes;

use super::block::{AttentionPart, Block, FeedForwardPart, NormPart, Workspace};
use super::{HEAD_ROWS, Head, StageModel};
use crate::backend::{AttentionShape, Backend, CacheShape, MatrixShape};
use crate::rope::RopeFrequencies;
use crate::weights::{LoadError, LoadProgress, ModelFiles};

/// Reads the tensors of `shard` to `backend` and makes room for its cache and workspace.
///
/// # Errors
/// Where a tensor cannot be read or has a type without kernels, the device fails, or `progress` was cancelled.
pub fn load<B: Backend>(
    mut backend: B,
    files: &ModelFiles<'_>,
    spec: &ModelSpec,
    table: &TensorTable,
    shard: &Shard,
    room: &StageRoom,
    progress: &LoadProgress,
) -> Result<StageModel<B>, LoadError> {
    progress.set_total(table.of(shard).iter().map(|(_, info)| info.bytes).sum::<Bytes>());
    let widths = Widths::of(spec);
    let rows = room.step_rows as usize;
    let widest = widths.hidden.max(widths.attention).max(widths.feed_forward);
    backend.reserve(rows, widest as usize);

    let mut loader = Loader { backend: &backend, files, table, room, divisors: None, ropes: Vec::new() };
    let embedding = if shard.embedding { Some(Arc::new(loader.matrix(Role::TokenEmbedding)?)) } else { None };
    if !shard.layers.is_empty() && table.get(Role::RopeFrequencies).is_some() {
        loader.divisors = Some(loader.floats(Role::RopeFrequencies)?);
    }
    let blocks = shard
        .layers
        .iter()
        .map(|layer| loader.block(layer, &spec.layers[layer]))
        .collect::<Result<Vec<_>, LoadError>>()?;
    let head = if shard.head { Some(loader.head(spec, embedding.clone(), &widths)?) } else { None };
    let frequencies: Vec<_> = loader.ropes.into_iter().map(|(_, frequencies)| frequencies).collect();
    let workspace = workspace(&backend, &widths, rows, &frequencies)?;
    Ok(StageModel {
        backend,
        spec: spec.clone(),
        embedding,
        blocks,
        frequencies,
        head,
        workspace,
        angles: (Vec::new(), Vec::new()),
        host: Vec::new(),
    })
}

fn workspace<B: Backend>(
    backend: &B,
    widths: &Widths,
    rows: usize,
    frequencies: &[RopeFrequencies],
) -> Result<Workspace<B>, LoadError> {
    let buffer = |width: u64| backend.rows(rows, width as usize);
    let angles = |frequencies: &RopeFrequencies| {
        Ok((backend.rows(rows, frequencies.pairs())?, backend.rows(rows, frequencies.pairs())?))
    };
    Ok(Workspace {
        hidden: buffer(widths.hidden)?,
        normed: buffer(widths.hidden)?,
        projected: buffer(widths.hidden)?,
        queries: buffer(widths.query)?,
        keys: buffer(widths.key)?,
        values: buffer(widths.value)?,
        attended: buffer(widths.attention)?,
        gate: buffer(widths.feed_forward)?,
        up: buffer(widths.feed_forward)?,
        angles: frequencies.iter().map(angles).collect::<Result<_, LoadError>>()?,
    })
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    files: &'a ModelFiles<'a>,
    table: &'a TensorTable,
    room: &'a StageRoom,
    divisors: Option<Vec<f32>>,
    /// The kinds of rope met so far; layers of one kind share their angles.
    ropes: Vec<(Rope, RopeFrequencies)>,
}

impl<B: Backend> Loader<'_, B> {
    fn matrix(&self, role: Role) -> Result<B::Matrix, LoadError> {
        let info = self.table.get(role).ok_or_else(|| missing(role))?;
        let [width, rows] = info.dims[..] else {
            return Err(missing(role));
        };
        let shape = MatrixShape { kind: info.kind, rows: rows as usize, width: width as usize };
        self.backend.matrix(shape, &mut self.files.tensor(info))
    }

    fn floats(&self, role: Role) -> Result<Vec<f32>, LoadError> {
        self.files.tensor(self.table.get(role).ok_or_else(|| missing(role))?).floats()
    }

    fn vector(&self, role: Role) -> Result<B::Vector, LoadError> {
        Ok(self.backend.vector(&self.floats(role)?)?)
    }

    fn block(&mut self, layer: usize, spec: &LayerSpec) -> Result<Block<B>, LoadError> {
        let role = |role| Role::Layer(layer, role);
        let Attention::Grouped(attention) = &spec.attention;
        let FeedForward::Gated { activation, .. } = spec.feed_forward;
        Ok(Block {
            attention_norm: NormPart {
                norm: spec.attention_norm,
                weight: self.vector(role(LayerRole::AttentionNorm))?,
            },
            attention: AttentionPart {
                shape: AttentionShape { heads: attention.heads, scale: attention.scale },
                key_width: attention.key_width,
                pairing: attention.rope.pairing,
                angles: self.angles(&attention.rope),
                query: self.matrix(role(LayerRole::Query))?,
                key: self.matrix(role(LayerRole::Key))?,
                value: self.matrix(role(LayerRole::Value))?,
                output: self.matrix(role(LayerRole::AttentionOutput))?,
                cache: self.cache(attention)?,
            },
            feed_forward_norm: NormPart {
                norm: spec.feed_forward_norm,
                weight: self.vector(role(LayerRole::FeedForwardNorm))?,
            },
            feed_forward: FeedForwardPart {
                activation,
                gate: self.matrix(role(LayerRole::Gate))?,
                up: self.matrix(role(LayerRole::Up))?,
                down: self.matrix(role(LayerRole::Down))?,
            },
        })
    }

    fn angles(&mut self, rope: &Rope) -> usize {
        if let Some(index) = self.ropes.iter().position(|(known, _)| known == rope) {
            return index;
        }
        let divisors = self.divisors.as_deref().filter(|_| rope.frequency_divisors);
        self.ropes.push((rope.clone(), RopeFrequencies::new(rope, divisors)));
        self.ropes.len() - 1
    }

    fn cache(&self, attention: &GroupedAttention) -> Result<B::Cache, LoadError> {
        Ok(self.backend.cache(CacheShape {
            pages: (self.room.cache_tokens / PAGE_TOKENS) as usize,
            kv_heads: attention.kv_heads,
            key_width: attention.key_width,
            value_width: attention.value_width,
            dtype: self.room.cache_dtype,
        })?)
    }

    fn head(
        &self,
        spec: &ModelSpec,
        embedding: Option<Arc<B::Matrix>>,
        widths: &Widths,
    ) -> Result<Head<B>, LoadError> {
        let output = match embedding {
            Some(embedding) if self.table.head_role() == Role::TokenEmbedding => embedding,
            _ => Arc::new(self.matrix(self.table.head_role())?),
        };
        let hidden = widths.hidden as usize;
        Ok(Head {
            norm: spec.head.norm,
            norm_weight: self.vector(Role::OutputNorm)?,
            output,
            selected: self.backend.rows(HEAD_ROWS, hidden)?,
            normed: self.backend.rows(HEAD_ROWS, hidden)?,
            logits: self.backend.rows(HEAD_ROWS, widths.vocab as usize)?,
        })
    }
}

/// A role whose tensor the table does not have, or has in another shape than it checked.
fn missing(role: Role) -> LoadError {
    LoadError::Tensor(TensorError::Missing { name: role.to_string() })
}

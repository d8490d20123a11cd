//! Building a stage's model from its tensors.

use std::any::Any;
use std::sync::Arc;

use brigade_proto::control::StageRoom;
use brigade_shard::cost::{LatentWidths, PAGE_TOKENS, Widths};
use brigade_shard::layers::Shard;
use brigade_shard::model_file::TensorInfo;
use brigade_shard::spec::{
    Attention, FeedForward, GroupedAttention, HeadNorm, LatentAttention, LatentLayout, LatentQuery,
    LayerSpec, ModelSpec, Norm, Projections, Residual, Rope, RopeDivisors, Visibility,
};
use brigade_shard::tensors::{LayerRole, Role, TensorError, TensorTable};
use brigade_shard::units::Bytes;

use super::block::{
    AttentionKind, AttentionPart, Biases, Block, ExpertBiases, ExpertBuffers, FeedForwardPart, GatedPart,
    HeadNorms, NormPart, Turn, Workspace,
};
use super::latent::{LatentBuffers, LatentHead, LatentPart, QueryPart, UpPart};
use super::{HEAD_ROWS, Head, StageModel};
use crate::backend::{AttentionShape, Backend, CacheShape, MatrixShape, Routes};
use crate::rope::RopeFrequencies;
use crate::weights::{LoadError, LoadProgress, ModelFiles};

/// Reads the tensors of `shard` to `backend` and makes room for its cache and workspace. Layers that `files` stream must be
/// the last of the shard, and the backend the processor's.
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
    backend.reserve(rows, widths.widest_input() as usize);

    let mut loader = Loader { backend: &backend, files, table, room, ropes: Vec::new() };
    let embedding = if shard.embedding { Some(loader.matrix(Role::TokenEmbedding)?) } else { None };
    let blocks = shard
        .layers
        .iter()
        .map(|layer| loader.block(layer, &spec.layers[layer]))
        .collect::<Result<Vec<_>, LoadError>>()?;
    let head = if shard.head { Some(loader.head(spec, embedding.clone(), &widths)?) } else { None };
    let frequencies: Vec<_> = loader.ropes.into_iter().map(|(_, frequencies)| frequencies).collect();
    let workspace = workspace(&backend, spec, &widths, rows, &frequencies)?;
    backend.loaded();
    let stream = files.stream()?;
    Ok(StageModel {
        backend,
        stream,
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

/// Reads the matrices of `shard` that are not resident, and keeps all of them so for as long as what is returned lives.
/// A stage that shares what is held then has nothing to read.
///
/// # Errors
/// As [`load`].
pub fn prepare<B: Backend + 'static>(
    backend: &B,
    files: &ModelFiles<'_>,
    spec: &ModelSpec,
    table: &TensorTable,
    shard: &Shard,
    room: &StageRoom,
    progress: &LoadProgress,
) -> Result<Box<dyn Any + Send>, LoadError> {
    progress.set_total(table.of(shard).iter().map(|(_, info)| info.bytes).sum::<Bytes>());
    // Blocks come with a cache, which nothing is written to.
    let room = StageRoom { cache_tokens: PAGE_TOKENS, ..*room };
    let mut loader = Loader { backend, files, table, room: &room, ropes: Vec::new() };
    let ends = [(shard.embedding, Role::TokenEmbedding), (shard.head, table.head_role())];
    let ends = ends.into_iter().filter(|(there, _)| *there).map(|(_, role)| loader.matrix(role));
    let ends = ends.collect::<Result<Vec<_>, LoadError>>()?;
    let blocks = shard
        .layers
        .iter()
        .map(|layer| loader.block(layer, &spec.layers[layer]))
        .collect::<Result<Vec<_>, LoadError>>()?;
    Ok(Box::new((ends, blocks)))
}

fn workspace<B: Backend>(
    backend: &B,
    spec: &ModelSpec,
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
        experts: expert_buffers(backend, spec, rows)?,
        latent: latent_buffers(backend, spec, rows)?,
        angles: frequencies.iter().map(angles).collect::<Result<_, LoadError>>()?,
    })
}

fn expert_buffers<B: Backend>(
    backend: &B,
    spec: &ModelSpec,
    rows: usize,
) -> Result<Option<ExpertBuffers<B>>, LoadError> {
    let mixtures = spec.layers.iter().filter_map(|layer| match layer.feed_forward {
        FeedForward::Experts(experts) => Some((experts.count, experts.used)),
        FeedForward::Gated { .. } => None,
    });
    let Some((count, used)) = mixtures.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1))) else {
        return Ok(None);
    };
    Ok(Some(ExpertBuffers {
        scores: backend.rows(rows, count)?,
        routed: backend.rows(rows * used, spec.hidden)?,
        routes: Routes::default(),
        host: Vec::new(),
    }))
}

fn latent_buffers<B: Backend>(
    backend: &B,
    spec: &ModelSpec,
    rows: usize,
) -> Result<Option<LatentBuffers<B>>, LoadError> {
    let widths = spec.layers.iter().filter_map(|layer| match &layer.attention {
        Attention::Latent(attention) => Some(LatentWidths::of(attention)),
        Attention::Grouped(_) => None,
    });
    let Some(widths) = widths.reduce(LatentWidths::max) else {
        return Ok(None);
    };
    Ok(Some(LatentBuffers {
        compressed: backend.rows(rows, widths.compressed)?,
        query: backend.rows(rows, widths.query)?,
        heads: backend.rows(rows, widths.heads)?,
        turned: backend.rows(rows, widths.turned)?,
    }))
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    files: &'a ModelFiles<'a>,
    table: &'a TensorTable,
    room: &'a StageRoom,
    /// The kinds of rope met so far; layers of one kind share their angles.
    ropes: Vec<(Rope, RopeFrequencies)>,
}

impl<B: Backend> Loader<'_, B> {
    fn info(&self, role: Role) -> Result<&TensorInfo, LoadError> {
        self.table.get(role).ok_or_else(|| missing(role))
    }

    fn matrix(&self, role: Role) -> Result<Arc<B::Matrix>, LoadError> {
        let [matrix] =
            self.matrices(role, [self.info(role)?.dims.get(1).map_or(0, |rows| *rows as usize)])?;
        Ok(matrix)
    }

    fn experts(&self, role: Role) -> Result<Arc<B::Matrix>, LoadError> {
        let info = self.info(role)?;
        let [width, rows, count] = info.dims[..] else {
            return Err(missing(role));
        };
        let shape = MatrixShape { kind: info.kind, rows: rows as usize, width: width as usize };
        let source = &mut self.files.tensor(info);
        self.held(info, || self.backend.experts(shape, count as usize, source))
    }

    /// A matrix that is resident already, or that `read` reads.
    fn held(
        &self,
        info: &TensorInfo,
        read: impl FnOnce() -> Result<B::Matrix, LoadError>,
    ) -> Result<Arc<B::Matrix>, LoadError> {
        self.files.matrix(info, |matrix| self.backend.adopt(matrix), read)
    }

    /// Reads matrices that lie one after another as one with the rows of all.
    fn stack(&self, role: Role) -> Result<Arc<B::Matrix>, LoadError> {
        let info = self.info(role)?;
        let [width, rows, count] = info.dims[..] else {
            return Err(missing(role));
        };
        let shape = MatrixShape { kind: info.kind, rows: (rows * count) as usize, width: width as usize };
        self.held(info, || self.backend.matrix(shape, &mut self.files.tensor(info)))
    }

    /// Reads the matrices that lie one after another in a tensor, each with its number of rows.
    fn matrices<const N: usize>(
        &self,
        role: Role,
        rows: [usize; N],
    ) -> Result<[Arc<B::Matrix>; N], LoadError> {
        let info = self.info(role)?;
        if info.dims.get(1) != Some(&(rows.iter().sum::<usize>() as u64)) {
            return Err(missing(role));
        }
        let (mut first, mut from) = (0, 0);
        let mut read = Vec::new();
        for rows in rows {
            let part = info.rows(first, rows as u64).ok_or_else(|| missing(role))?;
            let shape = MatrixShape { kind: part.kind, rows, width: part.dims[0] as usize };
            let source = &mut self.files.rows(&part, info, from);
            (first, from) = (first + rows as u64, from + part.bytes.0);
            read.push(self.held(&part, || self.backend.matrix(shape, source))?);
        }
        read.try_into().map_err(|_| missing(role))
    }

    fn floats(&self, role: Role) -> Result<Vec<f32>, LoadError> {
        self.files.tensor(self.info(role)?).floats()
    }

    fn vector(&self, role: Role) -> Result<B::Vector, LoadError> {
        Ok(self.backend.vector(&self.floats(role)?)?)
    }

    fn block(&mut self, layer: usize, spec: &LayerSpec) -> Result<Block<B>, LoadError> {
        let role = |role| Role::Layer(layer, role);
        let attention_norm = self.norm(spec.attention_norm, role(LayerRole::AttentionNorm))?;
        let attention = match &spec.attention {
            Attention::Grouped(attention) => AttentionKind::Grouped(self.attention(layer, attention)?),
            Attention::Latent(attention) => AttentionKind::Latent(self.latent(layer, attention)?),
        };
        let post = |norm: Option<Norm>, of| norm.map(|norm| self.norm(norm, role(of))).transpose();
        let feed_forward_norm = match spec.residual {
            Residual::Sequential { feed_forward_norm } => Some(feed_forward_norm),
            Residual::Parallel => None,
        };
        Ok(Block {
            attention_norm,
            attention,
            attention_post_norm: post(spec.attention_post_norm, LayerRole::AttentionPostNorm)?,
            feed_forward_norm: post(feed_forward_norm, LayerRole::FeedForwardNorm)?,
            feed_forward: self.feed_forward(layer, &spec.feed_forward)?,
            feed_forward_post_norm: post(spec.feed_forward_post_norm, LayerRole::FeedForwardPostNorm)?,
        })
    }

    fn norm(&self, norm: Norm, role: Role) -> Result<NormPart<B>, LoadError> {
        let weights = self.floats(role)?;
        Ok(NormPart { norm, width: weights.len(), weight: self.backend.vector(&weights)? })
    }

    fn feed_forward(&self, layer: usize, spec: &FeedForward) -> Result<FeedForwardPart<B>, LoadError> {
        let role = |role| Role::Layer(layer, role);
        match *spec {
            FeedForward::Gated { width, activation, fused } => {
                let [gate, up] = if fused {
                    self.matrices(role(LayerRole::GateUp), [width, width])?
                } else {
                    [self.matrix(role(LayerRole::Gate))?, self.matrix(role(LayerRole::Up))?]
                };
                let down = self.matrix(role(LayerRole::Down))?;
                Ok(FeedForwardPart::Gated(GatedPart { activation, gate, up, down }))
            }
            FeedForward::Experts(experts) => Ok(FeedForwardPart::Experts {
                experts,
                router: self.matrix(role(LayerRole::Router))?,
                gates: self.experts(role(LayerRole::ExpertGates))?,
                ups: self.experts(role(LayerRole::ExpertUps))?,
                downs: self.experts(role(LayerRole::ExpertDowns))?,
                biases: experts.biases.then(|| self.expert_biases(layer)).transpose()?,
                selection_bias: match experts.routing.selection_bias {
                    true => self.floats(role(LayerRole::SelectionBias))?,
                    false => Vec::new(),
                },
                shared: match experts.shared_width {
                    Some(_) => Some(GatedPart {
                        activation: experts.activation,
                        gate: self.matrix(role(LayerRole::SharedGate))?,
                        up: self.matrix(role(LayerRole::SharedUp))?,
                        down: self.matrix(role(LayerRole::SharedDown))?,
                    }),
                    None => None,
                },
            }),
        }
    }

    fn expert_biases(&self, layer: usize) -> Result<ExpertBiases<B>, LoadError> {
        let vector = |role| self.vector(Role::Layer(layer, role));
        Ok(ExpertBiases {
            router: vector(LayerRole::RouterBias)?,
            gates: vector(LayerRole::ExpertGateBiases)?,
            ups: vector(LayerRole::ExpertUpBiases)?,
            downs: vector(LayerRole::ExpertDownBiases)?,
        })
    }

    fn attention(&mut self, layer: usize, spec: &GroupedAttention) -> Result<AttentionPart<B>, LoadError> {
        let role = |role| Role::Layer(layer, role);
        let turn = match &spec.rope {
            Some(rope) => Some(Turn { pairing: rope.pairing, angles: self.angles(rope)? }),
            None => None,
        };
        let ([query, key, value], biased) = match spec.projections {
            Projections::Separate { bias } => {
                let matrices = [
                    self.matrix(role(LayerRole::Query))?,
                    self.matrix(role(LayerRole::Key))?,
                    self.matrix(role(LayerRole::Value))?,
                ];
                (matrices, bias)
            }
            Projections::Fused => {
                let rows = [
                    spec.heads * spec.key_width,
                    spec.kv_heads * spec.key_width,
                    spec.kv_heads * spec.value_width,
                ];
                (self.matrices(role(LayerRole::QueryKeyValue), rows)?, false)
            }
        };
        let biases = || {
            Ok::<_, LoadError>(Biases {
                query: self.vector(role(LayerRole::QueryBias))?,
                key: self.vector(role(LayerRole::KeyBias))?,
                value: self.vector(role(LayerRole::ValueBias))?,
            })
        };
        let head_norms = |norm| match norm {
            HeadNorm::Weighted { norm, .. } => Ok::<_, LoadError>(HeadNorms {
                norm,
                after_turn: false,
                query: self.vector(role(LayerRole::QueryNorm))?,
                key: self.vector(role(LayerRole::KeyNorm))?,
            }),
            HeadNorm::Plain { norm } => {
                let ones = vec![1.0; spec.key_width];
                let (query, key) = (self.backend.vector(&ones)?, self.backend.vector(&ones)?);
                Ok(HeadNorms { norm, after_turn: true, query, key })
            }
        };
        let optional = |there: bool, of| there.then(|| self.vector(role(of))).transpose();
        Ok(AttentionPart {
            shape: AttentionShape { heads: spec.heads, scale: spec.scale, visibility: spec.visibility },
            key_width: spec.key_width,
            turn,
            query,
            key,
            value,
            biases: biased.then(biases).transpose()?,
            head_norms: spec.head_norm.map(head_norms).transpose()?,
            temperature: spec.temperature,
            sinks: optional(spec.sinks, LayerRole::Sinks)?,
            output: self.matrix(role(LayerRole::AttentionOutput))?,
            output_bias: optional(spec.output_bias, LayerRole::AttentionOutputBias)?,
            cache: self.cache(spec)?,
        })
    }

    fn latent(&mut self, layer: usize, spec: &LatentAttention) -> Result<LatentPart<B>, LoadError> {
        let role = |role| Role::Layer(layer, role);
        // First, so that a device that cannot attend to it says so before anything is read.
        let cache = self.backend.cache(CacheShape {
            pages: (self.room.cache_tokens / PAGE_TOKENS) as usize,
            kv_heads: 1,
            key_width: spec.cached_width(),
            value_width: spec.rank,
            values_in_keys: true,
            dtype: self.room.cache_dtype,
        })?;
        let turn = Turn { pairing: spec.rope.pairing, angles: self.angles(&spec.rope)? };
        let query = match spec.query {
            LatentQuery::Direct => QueryPart::Direct(self.matrix(role(LayerRole::Query))?),
            LatentQuery::Compressed { norm, .. } => QueryPart::Compressed {
                down: self.matrix(role(LayerRole::QueryDown))?,
                norm: self.norm(norm, role(LayerRole::QueryDownNorm))?,
                up: self.matrix(role(LayerRole::QueryUp))?,
            },
        };
        let [latent, turned] = self.matrices(role(LayerRole::LatentDown), [spec.rank, spec.rope.width])?;
        let up = match spec.layout {
            LatentLayout::Split => UpPart::Split {
                keys: self.stack(role(LayerRole::KeyUp))?,
                values: self.stack(role(LayerRole::ValueUp))?,
            },
            LatentLayout::Joined => UpPart::Joined(self.matrix(role(LayerRole::KeyValueUp))?),
        };
        Ok(LatentPart {
            shape: AttentionShape { heads: spec.heads, scale: spec.scale, visibility: Visibility::All },
            widths: LatentHead {
                rank: spec.rank,
                plain: spec.plain_width,
                turned: spec.rope.width,
                value: spec.value_width,
            },
            query,
            latent,
            norm: self.norm(spec.norm, role(LayerRole::LatentNorm))?,
            turned,
            turn,
            up,
            output: self.matrix(role(LayerRole::AttentionOutput))?,
            cache,
        })
    }

    fn angles(&mut self, rope: &Rope) -> Result<usize, LoadError> {
        if let Some(index) = self.ropes.iter().position(|(known, _)| known == rope) {
            return Ok(index);
        }
        let divisors = match rope.divisors {
            RopeDivisors::None => None,
            RopeDivisors::Fixed => Some(self.floats(Role::RopeFrequencies)?),
            RopeDivisors::ByContext { short_context } => {
                let (short, long) = (self.floats(Role::RopeShort)?, self.floats(Role::RopeLong)?);
                Some(if self.room.context as usize > short_context { long } else { short })
            }
        };
        self.ropes.push((rope.clone(), RopeFrequencies::new(rope, divisors.as_deref())));
        Ok(self.ropes.len() - 1)
    }

    fn cache(&self, attention: &GroupedAttention) -> Result<B::Cache, LoadError> {
        Ok(self.backend.cache(CacheShape {
            pages: (self.room.cache_tokens / PAGE_TOKENS) as usize,
            kv_heads: attention.kv_heads,
            key_width: attention.key_width,
            value_width: attention.value_width,
            values_in_keys: false,
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
            _ => self.matrix(self.table.head_role())?,
        };
        let hidden = widths.hidden as usize;
        Ok(Head {
            norm: spec.head.norm,
            norm_weight: self.vector(Role::OutputNorm)?,
            output,
            logit_scale: spec.head.logit_scale,
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

//! Building a stage's model from its tensors.

use std::sync::Arc;

use brigade_proto::control::StageRoom;
use brigade_shard::cost::{PAGE_TOKENS, Widths};
use brigade_shard::layers::Shard;
use brigade_shard::model_file::TensorInfo;
use brigade_shard::spec::{
    Attention, FeedForward, GroupedAttention, HeadNorm, LayerSpec, ModelSpec, Norm, Projections, Residual,
    Rope, RopeDivisors,
};
use brigade_shard::tensors::{LayerRole, Role, TensorError, TensorTable};
use brigade_shard::units::Bytes;

use super::block::{
    AttentionPart, Biases, Block, ExpertBiases, ExpertBuffers, FeedForwardPart, GatedPart, HeadNorms,
    NormPart, Turn, Workspace,
};
use super::{HEAD_ROWS, Head, StageModel};
use crate::backend::{AttentionShape, Backend, CacheShape, MatrixShape, Routes};
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

    let mut loader = Loader { backend: &backend, files, table, room, ropes: Vec::new() };
    let embedding = if shard.embedding { Some(Arc::new(loader.matrix(Role::TokenEmbedding)?)) } else { None };
    let blocks = shard
        .layers
        .iter()
        .map(|layer| loader.block(layer, &spec.layers[layer]))
        .collect::<Result<Vec<_>, LoadError>>()?;
    let head = if shard.head { Some(loader.head(spec, embedding.clone(), &widths)?) } else { None };
    let frequencies: Vec<_> = loader.ropes.into_iter().map(|(_, frequencies)| frequencies).collect();
    let workspace = workspace(&backend, spec, &widths, rows, &frequencies)?;
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
        width: widths.hidden as usize,
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

    fn matrix(&self, role: Role) -> Result<B::Matrix, LoadError> {
        let [matrix] =
            self.matrices(role, [self.info(role)?.dims.get(1).map_or(0, |rows| *rows as usize)])?;
        Ok(matrix)
    }

    fn experts(&self, role: Role) -> Result<B::Matrix, LoadError> {
        let info = self.info(role)?;
        let [width, rows, count] = info.dims[..] else {
            return Err(missing(role));
        };
        let shape = MatrixShape { kind: info.kind, rows: rows as usize, width: width as usize };
        self.backend.experts(shape, count as usize, &mut self.files.tensor(info))
    }

    /// Reads the matrices that lie one after another in a tensor, each with its number of rows.
    fn matrices<const N: usize>(&self, role: Role, rows: [usize; N]) -> Result<[B::Matrix; N], LoadError> {
        let info = self.info(role)?;
        if info.dims.get(1) != Some(&(rows.iter().sum::<usize>() as u64)) {
            return Err(missing(role));
        }
        let mut first = 0;
        let mut read = Vec::new();
        for rows in rows {
            let part = info.rows(first, rows as u64).ok_or_else(|| missing(role))?;
            first += rows as u64;
            let shape = MatrixShape { kind: part.kind, rows, width: part.dims[0] as usize };
            read.push(self.backend.matrix(shape, &mut self.files.tensor(&part))?);
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
        let Attention::Grouped(attention) = &spec.attention;
        let attention_norm = self.norm(spec.attention_norm, role(LayerRole::AttentionNorm))?;
        let attention = self.attention(layer, attention)?;
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
        Ok(NormPart { norm, weight: self.vector(role)? })
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

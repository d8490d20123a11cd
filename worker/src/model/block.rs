//! One transformer block, composed from the parts that its spec names.

use std::sync::Arc;

use brigade_shard::spec::{Activation, Experts, Norm, RopePairing, Temperature, Weighing};

use super::latent::{LatentBuffers, LatentPart};
use super::router;
use crate::backend::{AttentionShape, Backend, BackendError, Batch, Routes};

/// Buffers that all blocks of a stage compute in, `[rows, width]` each.
pub(super) struct Workspace<B: Backend> {
    /// The residual stream.
    pub(super) hidden: B::Rows,
    pub(super) normed: B::Rows,
    /// Output of a block's half, before it is added to the residual stream.
    pub(super) projected: B::Rows,
    pub(super) queries: B::Rows,
    pub(super) keys: B::Rows,
    pub(super) values: B::Rows,
    pub(super) attended: B::Rows,
    pub(super) gate: B::Rows,
    pub(super) up: B::Rows,
    pub(super) experts: Option<ExpertBuffers<B>>,
    pub(super) latent: Option<LatentBuffers<B>>,
    /// Cosines and sines of the step's positions, for each kind of rope that the stage has.
    pub(super) angles: Vec<(B::Rows, B::Rows)>,
}

/// What mixtures of experts need besides.
pub(super) struct ExpertBuffers<B: Backend> {
    /// The router's scores, `[rows, experts]`.
    pub(super) scores: B::Rows,
    /// The outputs of the experts taken, `[routes, hidden]`.
    pub(super) routed: B::Rows,
    pub(super) routes: Routes,
    pub(super) host: Vec<f32>,
}

/// One transformer block on a device.
pub(super) struct Block<B: Backend> {
    pub(super) attention_norm: NormPart<B>,
    pub(super) attention: AttentionKind<B>,
    pub(super) attention_post_norm: Option<NormPart<B>>,
    /// Norm of the feed-forward's input; `None` where both halves read the attention's.
    pub(super) feed_forward_norm: Option<NormPart<B>>,
    pub(super) feed_forward: FeedForwardPart<B>,
    pub(super) feed_forward_post_norm: Option<NormPart<B>>,
}

pub(super) struct NormPart<B: Backend> {
    pub(super) norm: Norm,
    /// Number of weights.
    pub(super) width: usize,
    pub(super) weight: B::Vector,
}

pub(super) enum AttentionKind<B: Backend> {
    Grouped(AttentionPart<B>),
    Latent(LatentPart<B>),
}

pub(super) struct AttentionPart<B: Backend> {
    pub(super) shape: AttentionShape,
    pub(super) key_width: usize,
    pub(super) turn: Option<Turn>,
    pub(super) query: Arc<B::Matrix>,
    pub(super) key: Arc<B::Matrix>,
    pub(super) value: Arc<B::Matrix>,
    pub(super) biases: Option<Biases<B>>,
    pub(super) head_norms: Option<HeadNorms<B>>,
    pub(super) temperature: Option<Temperature>,
    pub(super) sinks: Option<B::Vector>,
    pub(super) output: Arc<B::Matrix>,
    pub(super) output_bias: Option<B::Vector>,
    pub(super) cache: B::Cache,
}

/// How queries and keys are turned.
pub(super) struct Turn {
    pub(super) pairing: RopePairing,
    /// Which of the workspace's angles.
    pub(super) angles: usize,
}

pub(super) struct Biases<B: Backend> {
    pub(super) query: B::Vector,
    pub(super) key: B::Vector,
    pub(super) value: B::Vector,
}

pub(super) struct HeadNorms<B: Backend> {
    pub(super) norm: Norm,
    /// Whether heads are turned before they are normalised, not after.
    pub(super) after_turn: bool,
    pub(super) query: B::Vector,
    pub(super) key: B::Vector,
}

pub(super) enum FeedForwardPart<B: Backend> {
    Gated(GatedPart<B>),
    Experts {
        experts: Experts,
        router: Arc<B::Matrix>,
        /// What is added to the experts' gates for choosing; empty where there is nothing.
        selection_bias: Vec<f32>,
        /// Those of all experts, one after another, and so the others.
        gates: Arc<B::Matrix>,
        ups: Arc<B::Matrix>,
        downs: Arc<B::Matrix>,
        biases: Option<ExpertBiases<B>>,
        /// The network that all positions take besides.
        shared: Option<GatedPart<B>>,
    },
}

/// A gated network.
pub(super) struct GatedPart<B: Backend> {
    pub(super) activation: Activation,
    pub(super) gate: Arc<B::Matrix>,
    pub(super) up: Arc<B::Matrix>,
    pub(super) down: Arc<B::Matrix>,
}

pub(super) struct ExpertBiases<B: Backend> {
    pub(super) router: B::Vector,
    /// Those of all experts, one after another, and so the others.
    pub(super) gates: B::Vector,
    pub(super) ups: B::Vector,
    pub(super) downs: B::Vector,
}

impl<B: Backend> Block<B> {
    /// Adds the block's two halves to the residual stream.
    pub(super) fn run(
        &mut self,
        backend: &mut B,
        batch: &Batch,
        w: &mut Workspace<B>,
    ) -> Result<(), BackendError> {
        self.attention_norm.run(backend, w)?;
        match &mut self.attention {
            AttentionKind::Grouped(attention) => attention.run(backend, batch, w)?,
            AttentionKind::Latent(attention) => attention.run(backend, batch, w)?,
        }
        if let Some(norm) = &self.attention_post_norm {
            norm.run_on_output(backend, w)?;
        }
        backend.add(&mut w.hidden, &w.projected)?;
        if let Some(norm) = &self.feed_forward_norm {
            norm.run(backend, w)?;
        }
        self.feed_forward.run(backend, w)?;
        if let Some(norm) = &self.feed_forward_post_norm {
            norm.run_on_output(backend, w)?;
        }
        backend.add(&mut w.hidden, &w.projected)
    }
}

impl<B: Backend> NormPart<B> {
    /// From the residual stream to a half's input.
    fn run(&self, backend: &B, w: &mut Workspace<B>) -> Result<(), BackendError> {
        backend.norm(self.norm, &w.hidden, &self.weight, &mut w.normed)
    }

    /// On rows that have no other use; the norm's weights are as many as their channels.
    pub(super) fn run_in_place(&self, backend: &B, rows: &mut B::Rows) -> Result<(), BackendError> {
        backend.norm_parts(self.norm, rows, self.width, &self.weight)
    }

    /// On a half's output.
    fn run_on_output(&self, backend: &B, w: &mut Workspace<B>) -> Result<(), BackendError> {
        self.run_in_place(backend, &mut w.projected)
    }
}

impl<B: Backend> AttentionPart<B> {
    fn run(&mut self, backend: &mut B, batch: &Batch, w: &mut Workspace<B>) -> Result<(), BackendError> {
        backend.linear(
            &w.normed,
            &mut [(&self.query, &mut w.queries), (&self.key, &mut w.keys), (&self.value, &mut w.values)],
        )?;
        if let Some(biases) = &self.biases {
            backend.add_bias(&mut w.queries, &biases.query)?;
            backend.add_bias(&mut w.keys, &biases.key)?;
            backend.add_bias(&mut w.values, &biases.value)?;
        }
        if let Some(norms) = self.head_norms.as_ref().filter(|norms| !norms.after_turn) {
            norms.run(backend, self.key_width, w)?;
        }
        if let Some(turn) = &self.turn {
            let (cos, sin) = &w.angles[turn.angles];
            backend.rope(&mut w.queries, self.key_width, turn.pairing, cos, sin)?;
            backend.rope(&mut w.keys, self.key_width, turn.pairing, cos, sin)?;
        }
        if let Some(norms) = self.head_norms.as_ref().filter(|norms| norms.after_turn) {
            norms.run(backend, self.key_width, w)?;
        }
        if let Some(temperature) = &self.temperature {
            let factors: Vec<f32> = batch.positions().map(|position| temperature.factor(position)).collect();
            backend.scale_rows(&mut w.queries, &factors)?;
        }
        backend.store(&mut self.cache, batch, &w.keys, &w.values)?;
        backend.attend(&self.cache, batch, self.shape, self.sinks.as_ref(), &w.queries, &mut w.attended)?;
        backend.linear(&w.attended, &mut [(&self.output, &mut w.projected)])?;
        match &self.output_bias {
            Some(bias) => backend.add_bias(&mut w.projected, bias),
            None => Ok(()),
        }
    }
}

impl<B: Backend> HeadNorms<B> {
    fn run(&self, backend: &B, key_width: usize, w: &mut Workspace<B>) -> Result<(), BackendError> {
        backend.norm_parts(self.norm, &mut w.queries, key_width, &self.query)?;
        backend.norm_parts(self.norm, &mut w.keys, key_width, &self.key)
    }
}

impl<B: Backend> FeedForwardPart<B> {
    fn run(&self, backend: &mut B, w: &mut Workspace<B>) -> Result<(), BackendError> {
        match self {
            FeedForwardPart::Gated(part) => {
                part.run(backend, &w.normed, &mut w.gate, &mut w.up, &mut w.projected)
            }
            FeedForwardPart::Experts {
                experts,
                router,
                selection_bias,
                gates,
                ups,
                downs,
                biases,
                shared,
            } => {
                let Some(ExpertBuffers { scores, routed, routes, host }) = &mut w.experts else {
                    let reason = "the workspace was made for a model without experts".to_owned();
                    return Err(BackendError { operation: "run experts", reason });
                };
                backend.linear(&w.normed, &mut [(router, scores)])?;
                if let Some(biases) = biases {
                    backend.add_bias(scores, &biases.router)?;
                }
                let on_host = backend.host(scores, host)?;
                router::choose(experts, selection_bias, on_host, routes);
                let mut products = [(&**gates, &mut w.gate), (&**ups, &mut w.up)];
                backend.expert_linear(&w.normed, routes, experts.count, &mut products)?;
                if experts.routing.weighing == Weighing::Inputs {
                    // A product of an input times a factor is the input's product times that factor.
                    backend.scale_rows(&mut w.gate, &routes.weights)?;
                    backend.scale_rows(&mut w.up, &routes.weights)?;
                    routes.weights.fill(1.0);
                }
                if let Some(biases) = biases {
                    backend.add_expert_bias(&mut w.gate, routes, &biases.gates)?;
                    backend.add_expert_bias(&mut w.up, routes, &biases.ups)?;
                }
                backend.gate(&mut w.gate, &w.up, experts.activation)?;
                backend.expert_linear(&w.gate, routes, experts.count, &mut [(downs, routed)])?;
                if let Some(biases) = biases {
                    backend.add_expert_bias(routed, routes, &biases.downs)?;
                }
                backend.combine(routed, routes, &mut w.projected)?;
                if let Some(shared) = shared {
                    // The experts' own outputs have been added up, so that their buffer is free.
                    shared.run(backend, &w.normed, &mut w.gate, &mut w.up, routed)?;
                    backend.add(&mut w.projected, routed)?;
                }
                Ok(())
            }
        }
    }
}

impl<B: Backend> GatedPart<B> {
    /// From `input`, `[rows, hidden]`, to `out`, likewise; `gate` and `up` are what it computes in.
    fn run(
        &self,
        backend: &mut B,
        input: &B::Rows,
        gate: &mut B::Rows,
        up: &mut B::Rows,
        out: &mut B::Rows,
    ) -> Result<(), BackendError> {
        backend.linear(input, &mut [(&self.gate, &mut *gate), (&self.up, &mut *up)])?;
        backend.gate(gate, up, self.activation)?;
        backend.linear(gate, &mut [(&self.down, out)])
    }
}

//! What a model computes, as typed parts that a generic block is composed from.
//!
//! A family is a parser that fills a [`ModelSpec`] from a file's metadata, and a table of tensor names; the code that
//! runs a model matches on these parts and never on a family.

/// Everything that must be known to run a model, apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The model's own name (`general.name`), or the architecture's where it has none.
    pub name: String,
    /// The family whose tensor names the file uses.
    pub family: Family,
    /// Width of the hidden state that passes from layer to layer.
    pub hidden: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Longest context that the model was trained for, in tokens.
    pub context_length: usize,
    /// Factor on the token embedding's rows; 1 in most families.
    pub embedding_scale: f32,
    /// One entry per transformer block, in order.
    pub layers: Vec<LayerSpec>,
    /// Further blocks at the end of the file, which predict tokens beyond the next and are not run.
    pub skipped_layers: usize,
    /// What turns the last hidden state into logits.
    pub head: HeadSpec,
}

/// A family of models that share tensor names and metadata keys (`general.architecture`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2 and 3.x, Mistral, Mixtral, SmolLM.
    Llama,
    /// Qwen 1.5, 2 and 2.5.
    Qwen2,
    /// Qwen 3, without experts.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Phi-3, Phi-3.5 and Phi-4-mini.
    Phi3,
    /// Gemma 3, text.
    Gemma3,
    /// Command R and R+.
    CommandR,
    /// Command R7B and A.
    Cohere2,
    /// gpt-oss.
    GptOss,
    /// Llama 4, text.
    Llama4,
    /// GLM 4.5 and 4.6.
    Glm4Moe,
    /// DeepSeek V2, V3 and R1, Kimi K2.
    DeepSeek2,
}

/// One transformer block.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Norm of the attention's input.
    pub attention_norm: Norm,
    /// How positions look at each other.
    pub attention: Attention,
    /// Norm of the attention's output, before it joins the residual stream.
    pub attention_post_norm: Option<Norm>,
    /// What the feed-forward reads.
    pub residual: Residual,
    /// What happens to each position alone.
    pub feed_forward: FeedForward,
    /// Norm of the feed-forward's output, before it joins the residual stream.
    pub feed_forward_post_norm: Option<Norm>,
}

/// The order in which a layer's halves join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Residual {
    /// The feed-forward reads the stream after the attention has joined it, through a norm of its own.
    Sequential {
        /// Norm of the feed-forward's input.
        feed_forward_norm: Norm,
    },
    /// The feed-forward reads what the attention reads.
    Parallel,
}

/// A normalisation, with one weight per channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// x / sqrt(mean(x^2) + epsilon) * weight.
    Rms {
        /// Added to the mean square.
        epsilon: f32,
    },
    /// (x - mean(x)) / sqrt(variance(x) + epsilon) * weight.
    Layer {
        /// Added to the variance.
        epsilon: f32,
    },
}

/// The kind of attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Query heads in groups that share a key and value head each.
    Grouped(GroupedAttention),
    /// Query heads that all read one compressed form of keys and values.
    Latent(LatentAttention),
}

impl Attention {
    /// How queries and keys are turned, if they are.
    pub fn rope(&self) -> Option<&Rope> {
        match self {
            Attention::Grouped(attention) => attention.rope.as_ref(),
            Attention::Latent(attention) => Some(&attention.rope),
        }
    }
}

/// Multi-head latent attention (DeepSeek V2, arXiv 2405.04434).
///
/// Each position has one latent vector, from which every head's keys and values follow by a matrix of its own, and one
/// short key that is turned, for all heads. Only these two are cached: a head's key matrix is applied to its queries
/// instead, and its value matrix to the weighted sum of latent vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentAttention {
    /// Query heads.
    pub heads: usize,
    /// Width of the latent vector.
    pub rank: usize,
    /// Channels of a query head that meet the latent vector and know no positions; the rope's width follows them.
    pub plain_width: usize,
    /// Width of a head's values.
    pub value_width: usize,
    /// Factor on the scores before the softmax.
    pub scale: f32,
    /// How queries are made.
    pub query: LatentQuery,
    /// Norm of the latent vector.
    pub norm: Norm,
    /// Rotary position embedding of the turned channels.
    pub rope: Rope,
    /// How the heads' key and value matrices lie in the file.
    pub layout: LatentLayout,
}

impl LatentAttention {
    /// Values that the cache keeps for a position: the turned key and the latent vector.
    pub fn cached_width(&self) -> usize {
        self.rope.width + self.rank
    }
}

/// How the queries of [`LatentAttention`] are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LatentQuery {
    /// By one matrix.
    Direct,
    /// By two, with a norm between them.
    Compressed {
        /// Width between the two.
        rank: usize,
        /// The norm.
        norm: Norm,
    },
}

/// How the key and value matrices of the heads of [`LatentAttention`] lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentLayout {
    /// In two tensors; the keys' matrices are transposed, ready for queries.
    Split,
    /// In one: for every head the rows that make its keys, then those that make its values.
    Joined,
}

/// Grouped-query attention: `heads / kv_heads` query heads read one key and value head.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedAttention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a query and of a key head.
    pub key_width: usize,
    /// Width of a value head.
    pub value_width: usize,
    /// Factor on the scores before the softmax.
    pub scale: f32,
    /// How queries, keys and values lie in the file.
    pub projections: Projections,
    /// Norm of every query and key head.
    pub head_norm: Option<HeadNorm>,
    /// Rotary position embedding of queries and keys; a layer without it does not know positions.
    pub rope: Option<Rope>,
    /// Factor on the queries that grows with their position.
    pub temperature: Option<Temperature>,
    /// Which positions a position sees.
    pub visibility: Visibility,
    /// Whether each query head has one more score, the same for all positions, that takes its share of the softmax and
    /// gives nothing.
    pub sinks: bool,
    /// Whether the attention's output has a bias.
    pub output_bias: bool,
}

/// Which positions a position sees, all of them its own or before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// All of them.
    All,
    /// So many, its own and those right before it.
    Window(usize),
    /// Those from the last multiple of so many on.
    Chunk(usize),
}

impl Visibility {
    /// The first position that `position` sees.
    pub fn first(self, position: usize) -> usize {
        match self {
            Visibility::All => 0,
            Visibility::Window(window) => (position + 1).saturating_sub(window),
            Visibility::Chunk(chunk) => position - position % chunk.max(1),
        }
    }
}

/// A factor on queries that keeps attention sharp over many positions:
/// 1 + `scale` * ln(floor((position + 1) / `period`) + 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Positions for which the factor stays the same; above 0.
    pub period: usize,
    /// How fast it grows.
    pub scale: f32,
}

impl Temperature {
    /// The factor on the query at `position`.
    pub fn factor(&self, position: usize) -> f32 {
        let periods = (position + 1) / self.period.max(1);
        (1.0 + f64::from(self.scale) * (periods as f64).ln_1p()) as f32
    }
}

/// How the matrices that make queries, keys and values lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Three matrices.
    Separate {
        /// Whether each has a bias.
        bias: bool,
    },
    /// One matrix, whose rows are those of the queries, then the keys, then the values.
    Fused,
}

/// A norm of single heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadNorm {
    /// Before the head is turned, with weights.
    Weighted {
        /// The norm.
        norm: Norm,
        /// Whether every head has weights of its own.
        per_head: bool,
    },
    /// After the head is turned, with the weight 1 for every channel.
    Plain {
        /// The norm.
        norm: Norm,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// How many channels of a head are rotated, from its first; even.
    pub width: usize,
    /// Which channels form a pair.
    pub pairing: RopePairing,
    /// Base of the frequencies: pair `i` turns by `position * base^(-2i / width)`.
    pub base: f32,
    /// How the frequencies are slowed for contexts longer than those first trained on.
    pub scaling: RopeScaling,
    /// What divides the frequencies.
    pub divisors: RopeDivisors,
    /// Factor on the cosines and sines.
    pub magnitude: f32,
}

/// How rope is stretched to contexts longer than those that a model was first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        /// Above 0.
        factor: f32,
    },
    /// YaRN (arXiv 2309.00071): pairs that turn more than `beta_fast` times within the original context keep their
    /// frequency, those that turn less than `beta_slow` times are slowed by `factor`, and between the two lies a ramp.
    Yarn {
        /// By how much the context was stretched; at least 1.
        factor: f32,
        /// The context before it was stretched, in tokens.
        original_context: usize,
        /// Turns from which on a pair keeps its frequency.
        beta_fast: f32,
        /// Turns up to which a pair is slowed by the whole factor.
        beta_slow: f32,
        /// Whether the ramp is widened so that it begins and ends at whole pairs.
        whole_pairs: bool,
    },
}

/// What divides the frequencies of a rope: tensors of `[width / 2]`, f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeDivisors {
    /// Nothing.
    None,
    /// The same for all contexts.
    Fixed,
    /// One tensor for contexts of up to `short_context` tokens, and another for longer ones. The context is the one that
    /// the model is run with, not a sequence's length.
    ByContext {
        /// The longest context that takes the short divisors.
        short_context: usize,
    },
}

/// Which channels of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Neighbours: (0, 1), (2, 3), ... (GGUF's llama layout).
    Adjacent,
    /// Halves: (0, width / 2), (1, width / 2 + 1), ... (NEOX).
    Halves,
}

/// The kind of feed-forward network of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForward {
    /// down(activation(gate(x)) * up(x)).
    Gated {
        /// Width of gate and up.
        width: usize,
        /// The function on the gate.
        activation: Activation,
        /// Whether gate and up lie in one matrix, gate's rows first.
        fused: bool,
    },
    /// Many gated networks, of which each position takes the few that its router likes best.
    Experts(Experts),
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many each position takes; at most `count`.
    pub used: usize,
    /// Width of an expert's gate and up.
    pub width: usize,
    /// The function on the gate.
    pub activation: Activation,
    /// Which are taken, and how much each counts.
    pub routing: Routing,
    /// Width of a gated network that every position takes besides, with the same activation.
    pub shared_width: Option<usize>,
    /// Whether the router and every matrix of an expert have a bias.
    pub biases: bool,
}

/// How a router's scores become a choice of experts with weights.
///
/// Those with the highest gates are taken, and an expert's weight is its gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// What makes gates of scores.
    pub gating: Gating,
    /// Whether a bias for each expert is added to the gates for choosing; the weights do without it.
    pub selection_bias: bool,
    /// Limits the choice to the best groups of experts.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights of those taken are divided by their sum.
    pub renormalised: bool,
    /// Factor on the weights in the end.
    pub scale: f32,
    /// What the weights are factors on.
    pub weighing: Weighing,
}

/// What the weights of the experts taken are factors on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighing {
    /// Their outputs.
    Outputs,
    /// Their inputs.
    Inputs,
}

/// What makes gates of the router's scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// The softmax over all experts.
    Softmax,
    /// Each expert's sigmoid.
    Sigmoid,
}

/// Experts in groups of equal size, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many there are; divides the number of experts, and leaves at least two to each.
    pub count: usize,
    /// How many a position may choose from; together they hold as many experts as it takes.
    pub used: usize,
    /// What makes a group better than others.
    pub merit: GroupMerit,
}

/// How good a group of experts is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupMerit {
    /// As good as its best expert.
    Best,
    /// As good as its two best experts together.
    TwoBest,
}

/// What happens to the gate of a feed-forward network before it is multiplied with the other half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
    Gelu,
    /// x * sigmoid(1.702 x) of a gate of at most 7; what it gates is kept between -7 and 7, and 1 is added to it.
    ClampedSwish,
}

/// The end of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadSpec {
    /// Norm of the last hidden state.
    pub norm: Norm,
    /// Whether the output matrix is the token embedding (no `output.weight` in the file).
    pub tied: bool,
    /// Factor on the logits; 1 in most families.
    pub logit_scale: f32,
}

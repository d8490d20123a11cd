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
    /// One entry per transformer block, in order.
    pub layers: Vec<LayerSpec>,
    /// What turns the last hidden state into logits.
    pub head: HeadSpec,
}

/// A family of models that share tensor names and metadata keys (`general.architecture`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2 and 3.x, Mistral, SmolLM.
    Llama,
}

/// One transformer block.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Norm of the attention's input.
    pub attention_norm: Norm,
    /// How positions look at each other.
    pub attention: Attention,
    /// Norm of the feed-forward's input.
    pub feed_forward_norm: Norm,
    /// What happens to each position alone.
    pub feed_forward: FeedForward,
}

/// A normalisation, with one weight per channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// x / sqrt(mean(x^2) + epsilon) * weight.
    Rms {
        /// Added to the mean square.
        epsilon: f32,
    },
}

/// The kind of attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Query heads in groups that share a key and value head each.
    Grouped(GroupedAttention),
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
    /// Rotary position embedding of queries and keys.
    pub rope: Rope,
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
    /// Positions are multiplied by this (1 / `rope.scaling.factor`); 1 where the file scales nothing.
    pub position_scale: f32,
    /// Whether the tensor `rope_freqs.weight` (`[width / 2]`, f32) divides the frequencies.
    pub frequency_divisors: bool,
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
    },
}

/// A scalar function inside the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
}

/// The end of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadSpec {
    /// Norm of the last hidden state.
    pub norm: Norm,
    /// Whether the output matrix is the token embedding (no `output.weight` in the file).
    pub tied: bool,
}

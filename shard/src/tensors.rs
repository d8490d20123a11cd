//! Which tensor plays which role, checked against what the model computes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::kernels::Kernels;
use crate::layers::Shard;
use crate::model_file::{Format, Header, TensorInfo};
use crate::spec::{
    Attention, FeedForward, GroupedAttention, HeadNorm, LatentAttention, LatentLayout, LatentQuery,
    LayerSpec, ModelSpec, Projections, Residual, RopeDivisors,
};
use crate::tensor_type::TensorType;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// One row per token id: `[hidden, vocab]` in ggml's order.
    TokenEmbedding,
    /// Weights of the norm before the output matrix: `[hidden]`.
    OutputNorm,
    /// From hidden state to logits: `[hidden, vocab]`; a model with a tied head has none.
    Output,
    /// Divisors of the rope frequencies: `[rope width / 2]`, f32.
    RopeFrequencies,
    /// Divisors of the rope frequencies in a long context: `[rope width / 2]`, f32.
    RopeLong,
    /// Divisors of the rope frequencies in a short context: `[rope width / 2]`, f32.
    RopeShort,
    /// A tensor of one layer.
    Layer(usize, LayerRole),
}

/// What a layer's tensor is for. Shapes are in ggml's order: `[inputs, outputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerRole {
    /// Weights of the norm before attention: `[hidden]`.
    AttentionNorm,
    /// `[hidden, heads * key width]`.
    Query,
    /// `[hidden, kv heads * key width]`.
    Key,
    /// `[hidden, kv heads * value width]`.
    Value,
    /// Queries, keys and values one after another: `[hidden, (heads + kv heads) * key width + kv heads * value width]`.
    QueryKeyValue,
    /// `[heads * key width]`.
    QueryBias,
    /// `[kv heads * key width]`.
    KeyBias,
    /// `[kv heads * value width]`.
    ValueBias,
    /// The first of two matrices that make latent attention's queries: `[hidden, query rank]`.
    QueryDown,
    /// Weights of the norm between the two: `[query rank]`.
    QueryDownNorm,
    /// The second of the two: `[query rank, heads * (plain width + rope width)]`.
    QueryUp,
    /// Makes the latent vector and then the turned key: `[hidden, rank + rope width]`.
    LatentDown,
    /// Weights of the latent vector's norm: `[rank]`.
    LatentNorm,
    /// Each head's key matrix, transposed: `[plain width, rank, heads]`.
    KeyUp,
    /// Each head's value matrix: `[rank, value width, heads]`.
    ValueUp,
    /// Each head's key and value matrix: `[rank, heads * (plain width + value width)]`.
    KeyValueUp,
    /// Weights of the norm of a query head: `[key width]`, or `[key width, heads]`.
    QueryNorm,
    /// Weights of the norm of a key head: `[key width]`, or `[key width, kv heads]`.
    KeyNorm,
    /// A score of each query head that belongs to no position: `[heads]`, f32.
    Sinks,
    /// `[heads * value width, hidden]`.
    AttentionOutput,
    /// `[hidden]`.
    AttentionOutputBias,
    /// Weights of the norm after attention: `[hidden]`.
    AttentionPostNorm,
    /// Weights of the norm before the feed-forward: `[hidden]`.
    FeedForwardNorm,
    /// `[hidden, feed-forward width]`.
    Gate,
    /// `[hidden, feed-forward width]`.
    Up,
    /// Gate and up one after another: `[hidden, 2 * feed-forward width]`.
    GateUp,
    /// `[feed-forward width, hidden]`.
    Down,
    /// Scores of the experts: `[hidden, experts]`.
    Router,
    /// `[experts]`.
    RouterBias,
    /// `[hidden, expert width, experts]`.
    ExpertGates,
    /// `[expert width, experts]`, f32.
    ExpertGateBiases,
    /// `[hidden, expert width, experts]`.
    ExpertUps,
    /// `[expert width, experts]`, f32.
    ExpertUpBiases,
    /// `[expert width, hidden, experts]`.
    ExpertDowns,
    /// What is added to the experts' gates for choosing: `[experts]`.
    SelectionBias,
    /// Of the network that all positions share: `[hidden, shared width]`.
    SharedGate,
    /// `[hidden, shared width]`.
    SharedUp,
    /// `[shared width, hidden]`.
    SharedDown,
    /// `[hidden, experts]`, f32.
    ExpertDownBiases,
    /// Weights of the norm after the feed-forward: `[hidden]`.
    FeedForwardPostNorm,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::TokenEmbedding => f.write_str("token embedding"),
            Role::OutputNorm => f.write_str("output norm"),
            Role::Output => f.write_str("output"),
            Role::RopeFrequencies => f.write_str("rope frequencies"),
            Role::RopeLong => f.write_str("rope divisors of long contexts"),
            Role::RopeShort => f.write_str("rope divisors of short contexts"),
            Role::Layer(layer, role) => write!(f, "layer {layer} {role:?}"),
        }
    }
}

/// A file whose tensors are not those of the model it describes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TensorError {
    /// A tensor that the model needs is absent.
    #[error("the file has no tensor `{name}`, which the model needs: fetch or convert it again")]
    Missing { name: String },
    /// A tensor's shape is not what the hyper-parameters ask for.
    #[error("tensor `{name}` has the shape {found:?}, wanted {wanted:?}")]
    Shape { name: String, found: Vec<u64>, wanted: Vec<u64> },
    /// A tensor's type cannot play its role.
    #[error("tensor `{name}` is {found}, wanted {wanted}")]
    Type { name: String, found: TensorType, wanted: &'static str },
    /// The file has tensors that the model's family does not know; running it without them would give wrong answers.
    #[error("the file has {count} tensors that are not known for its architecture: {}", names.join(", "))]
    Unread { count: usize, names: Vec<String> },
}

/// Tensors that only layers which predict further tokens have.
const SKIPPED_LAYER_TENSORS: [&str; 6] =
    ["eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head_head", "shared_head_norm"];

/// How many unread tensors an error names.
const NAMED_UNREAD: usize = 8;

/// Every tensor of a model by its role.
#[derive(Clone, Debug)]
pub struct TensorTable {
    tensors: BTreeMap<Role, TensorInfo>,
    tied: bool,
}

impl TensorTable {
    /// Finds the tensor of every role that `spec` has, and checks their shapes and types.
    ///
    /// # Errors
    /// Where a tensor is missing, has another shape or an impossible type, or the file has tensors without a role.
    pub fn new(header: &Header, spec: &ModelSpec) -> Result<TensorTable, TensorError> {
        let mut tensors = BTreeMap::new();
        let mut read = BTreeSet::new();
        for (role, wanted) in shapes(spec) {
            let name = spec.family.tensor_name(role);
            let Some(tensor) = header.tensor(&name) else {
                return Err(TensorError::Missing { name: header.tensor_name(&name) });
            };
            let name = tensor.name.clone();
            if tensor.dims != wanted {
                return Err(TensorError::Shape { name, found: tensor.dims.clone(), wanted });
            }
            check_type(role, tensor, header.format())?;
            tensors.insert(role, tensor.clone());
            read.insert(name);
        }
        let skipped: BTreeSet<String> =
            skipped_names(spec).iter().map(|name| header.tensor_name(name)).collect();
        let unread = header.tensors().iter().map(|tensor| &tensor.name);
        let unread = unread.filter(|name| !read.contains(*name) && !skipped.contains(*name));
        let unread: Vec<String> = unread.cloned().collect();
        if !unread.is_empty() {
            let names = unread.iter().take(NAMED_UNREAD).cloned().collect();
            return Err(TensorError::Unread { count: unread.len(), names });
        }
        Ok(TensorTable { tensors, tied: spec.head.tied })
    }

    /// The tensor that plays `role`; `None` where the model has none, such as the output of a tied head.
    pub fn get(&self, role: Role) -> Option<&TensorInfo> {
        self.tensors.get(&role)
    }

    /// The same tensors in the types and sizes that they take on a device with these kernels, where those of other types are
    /// turned into their [stand-ins](TensorType::stand_in): for counting, since no file has them so.
    #[must_use]
    pub fn standing_in(&self, kernels: Kernels) -> TensorTable {
        let mut table = self.clone();
        for tensor in table.tensors.values_mut().filter(|tensor| !kernels.has(tensor.kind)) {
            let width = tensor.dims.first().copied().unwrap_or_default();
            let sized = |kind: TensorType| Some((kind, kind.bytes_of(tensor.values())?));
            if let Some((kind, bytes)) = tensor.kind.stand_in(width).and_then(sized) {
                (tensor.kind, tensor.bytes) = (kind, bytes);
            }
        }
        table
    }

    /// How many times as large as in its file a part of the model is where its tensors [stand in](Self::standing_in) for those of
    /// the file: the most of all layers and ends.
    pub(crate) fn growth(&self, kernels: Kernels) -> f64 {
        let standing_in = self.standing_in(kernels);
        let mut parts: BTreeMap<Role, [u64; 2]> = BTreeMap::new();
        for ((role, filed), stood_in) in self.iter().zip(standing_in.tensors.values()) {
            let part = match role {
                Role::Layer(layer, _) => Role::Layer(layer, LayerRole::AttentionNorm),
                end => end,
            };
            let [before, after] = parts.entry(part).or_default();
            *before += filed.bytes.0;
            *after += stood_in.bytes.0;
        }
        let growths =
            parts.values().filter(|part| part[0] > 0).map(|[before, after]| *after as f64 / *before as f64);
        growths.fold(1.0, f64::max)
    }

    /// The role whose tensor is the matrix from hidden state to logits.
    pub fn head_role(&self) -> Role {
        if self.tied { Role::TokenEmbedding } else { Role::Output }
    }

    /// The tensors of one layer.
    pub fn layer(&self, layer: usize) -> impl Iterator<Item = (LayerRole, &TensorInfo)> {
        let first = Role::Layer(layer, LayerRole::AttentionNorm);
        self.tensors.range(first..).map_while(move |(role, tensor)| match role {
            Role::Layer(of, role) if *of == layer => Some((*role, tensor)),
            _ => None,
        })
    }

    /// All tensors with their roles.
    pub fn iter(&self) -> impl Iterator<Item = (Role, &TensorInfo)> {
        self.tensors.iter().map(|(role, tensor)| (*role, tensor))
    }

    /// The tensors that a shard holds, each once: its layers', the rope frequencies where it has layers, and those of
    /// the ends it holds. A tied head has the token embedding.
    pub fn of(&self, shard: &Shard) -> Vec<(Role, &TensorInfo)> {
        self.iter().filter(|(role, _)| self.holds(shard, *role)).collect()
    }

    fn holds(&self, shard: &Shard, role: Role) -> bool {
        match role {
            Role::TokenEmbedding => shard.embedding || (shard.head && self.tied),
            Role::OutputNorm | Role::Output => shard.head,
            Role::RopeFrequencies | Role::RopeLong | Role::RopeShort => !shard.layers.is_empty(),
            Role::Layer(layer, _) => shard.layers.iter().contains(&layer),
        }
    }
}

/// The names that tensors of the skipped layers may have: those of the last layer that is run, and their own.
fn skipped_names(spec: &ModelSpec) -> BTreeSet<String> {
    let Some(last) = spec.layers.last() else {
        return BTreeSet::new();
    };
    let first = spec.layers.len();
    let names = |layer| {
        let roles = layer_shapes(last, 1).into_iter().map(|(role, _)| role);
        let usual = roles.map(move |role| spec.family.tensor_name(Role::Layer(layer, role)));
        let own = SKIPPED_LAYER_TENSORS.iter().map(move |name| format!("blk.{layer}.nextn.{name}.weight"));
        usual.chain(own)
    };
    (first..first + spec.skipped_layers).flat_map(names).collect()
}

/// Every role of the model with the shape that its tensor must have, in ggml's order: `[inputs, outputs]`.
pub fn shapes(spec: &ModelSpec) -> Vec<(Role, Vec<u64>)> {
    let (hidden, vocab) = (spec.hidden as u64, spec.vocab as u64);
    let mut shapes = vec![(Role::TokenEmbedding, vec![hidden, vocab]), (Role::OutputNorm, vec![hidden])];
    if !spec.head.tied {
        shapes.push((Role::Output, vec![hidden, vocab]));
    }
    let ropes = spec.layers.iter().filter_map(|layer| layer.attention.rope());
    let mut divisors: Vec<Role> = Vec::new();
    for rope in ropes {
        let roles: &[Role] = match rope.divisors {
            RopeDivisors::None => &[],
            RopeDivisors::Fixed => &[Role::RopeFrequencies],
            RopeDivisors::ByContext { .. } => &[Role::RopeLong, Role::RopeShort],
        };
        for &role in roles {
            if !divisors.contains(&role) {
                divisors.push(role);
                shapes.push((role, vec![rope.width as u64 / 2]));
            }
        }
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        let shape = |(role, shape)| (Role::Layer(index, role), shape);
        shapes.extend(layer_shapes(layer, hidden).into_iter().map(shape));
    }
    shapes
}

/// Every role of a layer with the shape that its tensor must have, in the order of computation.
fn layer_shapes(layer: &LayerSpec, hidden: u64) -> Vec<(LayerRole, Vec<u64>)> {
    let norm = || vec![hidden];
    let mut shapes = vec![(LayerRole::AttentionNorm, norm())];
    match &layer.attention {
        Attention::Grouped(attention) => grouped_shapes(attention, hidden, &mut shapes),
        Attention::Latent(attention) => latent_shapes(attention, hidden, &mut shapes),
    }
    if layer.attention_post_norm.is_some() {
        shapes.push((LayerRole::AttentionPostNorm, norm()));
    }
    if let Residual::Sequential { .. } = layer.residual {
        shapes.push((LayerRole::FeedForwardNorm, norm()));
    }
    match layer.feed_forward {
        FeedForward::Gated { width, fused, .. } => {
            let width = width as u64;
            match fused {
                true => shapes.push((LayerRole::GateUp, vec![hidden, 2 * width])),
                false => {
                    shapes.extend([LayerRole::Gate, LayerRole::Up].map(|role| (role, vec![hidden, width])))
                }
            }
            shapes.push((LayerRole::Down, vec![width, hidden]));
        }
        FeedForward::Experts(experts) => {
            let (count, width) = (experts.count as u64, experts.width as u64);
            shapes.extend([
                (LayerRole::Router, vec![hidden, count]),
                (LayerRole::ExpertGates, vec![hidden, width, count]),
                (LayerRole::ExpertUps, vec![hidden, width, count]),
                (LayerRole::ExpertDowns, vec![width, hidden, count]),
            ]);
            if experts.routing.selection_bias {
                shapes.push((LayerRole::SelectionBias, vec![count]));
            }
            if let Some(width) = experts.shared_width.map(|width| width as u64) {
                shapes.extend([
                    (LayerRole::SharedGate, vec![hidden, width]),
                    (LayerRole::SharedUp, vec![hidden, width]),
                    (LayerRole::SharedDown, vec![width, hidden]),
                ]);
            }
            if experts.biases {
                shapes.extend([
                    (LayerRole::RouterBias, vec![count]),
                    (LayerRole::ExpertGateBiases, vec![width, count]),
                    (LayerRole::ExpertUpBiases, vec![width, count]),
                    (LayerRole::ExpertDownBiases, vec![hidden, count]),
                ]);
            }
        }
    }
    if layer.feed_forward_post_norm.is_some() {
        shapes.push((LayerRole::FeedForwardPostNorm, norm()));
    }
    shapes
}

fn grouped_shapes(attention: &GroupedAttention, hidden: u64, shapes: &mut Vec<(LayerRole, Vec<u64>)>) {
    let product = |a: usize, b: usize| a as u64 * b as u64;
    let query = product(attention.heads, attention.key_width);
    let key = product(attention.kv_heads, attention.key_width);
    let value = product(attention.kv_heads, attention.value_width);
    match attention.projections {
        Projections::Separate { bias } => {
            for (matrix, vector, width) in [
                (LayerRole::Query, LayerRole::QueryBias, query),
                (LayerRole::Key, LayerRole::KeyBias, key),
                (LayerRole::Value, LayerRole::ValueBias, value),
            ] {
                shapes.push((matrix, vec![hidden, width]));
                if bias {
                    shapes.push((vector, vec![width]));
                }
            }
        }
        Projections::Fused => shapes.push((LayerRole::QueryKeyValue, vec![hidden, query + key + value])),
    }
    if let Some(HeadNorm::Weighted { per_head, .. }) = attention.head_norm {
        let shape = |heads: usize| match per_head {
            true => vec![attention.key_width as u64, heads as u64],
            false => vec![attention.key_width as u64],
        };
        shapes.push((LayerRole::QueryNorm, shape(attention.heads)));
        shapes.push((LayerRole::KeyNorm, shape(attention.kv_heads)));
    }
    if attention.sinks {
        shapes.push((LayerRole::Sinks, vec![attention.heads as u64]));
    }
    let output = vec![product(attention.heads, attention.value_width), hidden];
    shapes.push((LayerRole::AttentionOutput, output));
    if attention.output_bias {
        shapes.push((LayerRole::AttentionOutputBias, vec![hidden]));
    }
}

/// Whether the role is that of numbers whose every use is in f32, and which GGUF files have in no other type.
fn is_always_f32(role: Role) -> bool {
    use LayerRole::*;
    match role {
        Role::RopeFrequencies | Role::RopeLong | Role::RopeShort => true,
        Role::Layer(_, role) => matches!(role, Sinks | ExpertGateBiases | ExpertUpBiases | ExpertDownBiases),
        _ => false,
    }
}

fn latent_shapes(attention: &LatentAttention, hidden: u64, shapes: &mut Vec<(LayerRole, Vec<u64>)>) {
    let [heads, rank, plain, value, turned] =
        [attention.heads, attention.rank, attention.plain_width, attention.value_width, attention.rope.width]
            .map(|count| count as u64);
    let query = heads * (plain + turned);
    match attention.query {
        LatentQuery::Direct => shapes.push((LayerRole::Query, vec![hidden, query])),
        LatentQuery::Compressed { rank, .. } => {
            let rank = rank as u64;
            shapes.push((LayerRole::QueryDown, vec![hidden, rank]));
            shapes.push((LayerRole::QueryDownNorm, vec![rank]));
            shapes.push((LayerRole::QueryUp, vec![rank, query]));
        }
    }
    shapes.push((LayerRole::LatentDown, vec![hidden, rank + turned]));
    shapes.push((LayerRole::LatentNorm, vec![rank]));
    match attention.layout {
        LatentLayout::Split => {
            shapes.push((LayerRole::KeyUp, vec![plain, rank, heads]));
            shapes.push((LayerRole::ValueUp, vec![rank, value, heads]));
        }
        LatentLayout::Joined => shapes.push((LayerRole::KeyValueUp, vec![rank, heads * (plain + value)])),
    }
    shapes.push((LayerRole::AttentionOutput, vec![heads * value, hidden]));
}

/// Whether the role is that of numbers that are added or multiplied one by one, which are kept as f32.
fn is_vector(role: Role) -> bool {
    match role {
        Role::TokenEmbedding | Role::Output => false,
        Role::OutputNorm | Role::RopeFrequencies | Role::RopeLong | Role::RopeShort => true,
        Role::Layer(_, role) => role.is_vector(),
    }
}

impl LayerRole {
    /// Whether the tensor holds norms' weights, biases or sinks, and not matrices.
    pub fn is_vector(self) -> bool {
        use LayerRole::*;
        match self {
            AttentionNorm | QueryBias | KeyBias | ValueBias | QueryNorm | KeyNorm => true,
            AttentionPostNorm | FeedForwardNorm | FeedForwardPostNorm => true,
            Sinks | AttentionOutputBias | RouterBias | SelectionBias => true,
            QueryDownNorm | LatentNorm => true,
            ExpertGateBiases | ExpertUpBiases | ExpertDownBiases => true,
            Query | Key | Value | QueryKeyValue | AttentionOutput | Gate | Up | GateUp | Down => false,
            QueryDown | QueryUp | LatentDown | KeyUp | ValueUp | KeyValueUp => false,
            Router | ExpertGates | ExpertUps | ExpertDowns | SharedGate | SharedUp | SharedDown => false,
        }
    }

    /// Whether the tensor holds a part for every expert, of which a row takes those of its own experts.
    pub(crate) fn is_per_expert(self) -> bool {
        use LayerRole::*;
        matches!(
            self,
            ExpertGates | ExpertGateBiases | ExpertUps | ExpertUpBiases | ExpertDowns | ExpertDownBiases
        )
    }
}

fn check_type(role: Role, tensor: &TensorInfo, format: Format) -> Result<(), TensorError> {
    let (fits, wanted) = match role {
        role if is_always_f32(role) && format == Format::Gguf => (tensor.kind == TensorType::F32, "F32"),
        role if is_vector(role) => (tensor.kind.is_plain_float(), "F32, F16 or BF16"),
        _ => {
            (tensor.kind.is_plain_float() || tensor.kind.is_quantised(), "a floating-point or quantised type")
        }
    };
    if fits {
        Ok(())
    } else {
        Err(TensorError::Type { name: tensor.name.clone(), found: tensor.kind, wanted })
    }
}

//! Which tensor plays which role, checked against what the model computes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::gguf::{Header, TensorInfo};
use crate::layers::Shard;
use crate::spec::{Attention, FeedForward, LayerSpec, ModelSpec};
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
    /// `[heads * value width, hidden]`.
    AttentionOutput,
    /// Weights of the norm before the feed-forward: `[hidden]`.
    FeedForwardNorm,
    /// `[hidden, feed-forward width]`.
    Gate,
    /// `[hidden, feed-forward width]`.
    Up,
    /// `[feed-forward width, hidden]`.
    Down,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::TokenEmbedding => f.write_str("token embedding"),
            Role::OutputNorm => f.write_str("output norm"),
            Role::Output => f.write_str("output"),
            Role::RopeFrequencies => f.write_str("rope frequencies"),
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
                return Err(TensorError::Missing { name });
            };
            if tensor.dims != wanted {
                return Err(TensorError::Shape { name, found: tensor.dims.clone(), wanted });
            }
            check_type(role, tensor)?;
            tensors.insert(role, tensor.clone());
            read.insert(name);
        }
        let unread = header.tensors().iter().map(|tensor| &tensor.name).filter(|name| !read.contains(*name));
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

    /// The role whose tensor is the matrix from hidden state to logits.
    pub fn head_role(&self) -> Role {
        if self.tied { Role::TokenEmbedding } else { Role::Output }
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
            Role::RopeFrequencies => !shard.layers.is_empty(),
            Role::Layer(layer, _) => shard.layers.iter().contains(&layer),
        }
    }
}

/// Every role of the model with the shape that its tensor must have.
fn shapes(spec: &ModelSpec) -> Vec<(Role, Vec<u64>)> {
    let (hidden, vocab) = (spec.hidden as u64, spec.vocab as u64);
    let mut shapes = vec![(Role::TokenEmbedding, vec![hidden, vocab]), (Role::OutputNorm, vec![hidden])];
    if !spec.head.tied {
        shapes.push((Role::Output, vec![hidden, vocab]));
    }
    let rope = spec.layers.iter().map(|layer| match &layer.attention {
        Attention::Grouped(attention) => &attention.rope,
    });
    if let Some(rope) = rope.into_iter().find(|rope| rope.frequency_divisors) {
        shapes.push((Role::RopeFrequencies, vec![rope.width as u64 / 2]));
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        for role in spec.family.layer_roles() {
            shapes.push((Role::Layer(index, *role), layer_shape(*role, layer, hidden)));
        }
    }
    shapes
}

fn layer_shape(role: LayerRole, layer: &LayerSpec, hidden: u64) -> Vec<u64> {
    let Attention::Grouped(attention) = &layer.attention;
    let FeedForward::Gated { width, .. } = layer.feed_forward;
    let width = width as u64;
    let product = |a: usize, b: usize| a as u64 * b as u64;
    match role {
        LayerRole::AttentionNorm | LayerRole::FeedForwardNorm => vec![hidden],
        LayerRole::Query => vec![hidden, product(attention.heads, attention.key_width)],
        LayerRole::Key => vec![hidden, product(attention.kv_heads, attention.key_width)],
        LayerRole::Value => vec![hidden, product(attention.kv_heads, attention.value_width)],
        LayerRole::AttentionOutput => vec![product(attention.heads, attention.value_width), hidden],
        LayerRole::Gate | LayerRole::Up => vec![hidden, width],
        LayerRole::Down => vec![width, hidden],
    }
}

fn check_type(role: Role, tensor: &TensorInfo) -> Result<(), TensorError> {
    let (fits, wanted) = match role {
        Role::RopeFrequencies => (tensor.kind == TensorType::F32, "F32"),
        Role::OutputNorm | Role::Layer(_, LayerRole::AttentionNorm | LayerRole::FeedForwardNorm) => {
            (tensor.kind.is_plain_float(), "F32, F16 or BF16")
        }
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

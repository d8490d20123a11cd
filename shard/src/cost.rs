//! What a model's parts cost: bytes of weights, cache and workspace, and arithmetic per token.
//!
//! The memory formulas are a contract: a worker allocates what [`Cost::memory`] says and nothing else that grows with
//! the model, so that a plan which fits on paper fits in the machine.

use serde::{Deserialize, Serialize};

use crate::kernels::Kernels;
use crate::layers::{LayerRange, Shard};
use crate::model_file::TensorInfo;
use crate::spec::{Attention, FeedForward, LatentAttention, LatentQuery, ModelSpec, Visibility};
pub use crate::staging::STAGED_LAYERS;
use crate::staging::staged_bytes;
use crate::tensor_type::TensorType;
use crate::tensors::{Role, TensorTable};
use crate::units::Bytes;

/// Tokens in one page of the KV cache. Small enough that a short sequence wastes little, large enough that a page's
/// keys fill several cache lines per head.
pub const PAGE_TOKENS: u32 = 32;
/// Rows whose logits exist at the same time: the head is computed in blocks of this many rows, since a whole chunk's
/// logits would take more memory than its layers.
pub const HEAD_BLOCK_ROWS: u32 = 16;
/// Bytes that a worker keeps for every 32 values of the quantised copy of its matrix products' inputs: the values, their
/// scale, and the sums of both halves as integers and times the scale.
pub const QUANTISED_BYTES_PER_32: u64 = 48;
/// Frames of hidden states that a stage holds at a time: one arriving and one leaving.
pub const FRAME_BUFFERS: u64 = 2;
/// Bytes of an f32.
const F32_BYTES: u64 = 4;

/// What a stage makes room for besides its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Tokens that the cache holds, over all sequences together; whole pages are allocated.
    pub cache_tokens: u32,
    /// Longest sequence, in tokens.
    pub context: u32,
    /// Most rows in one step.
    pub step_rows: u32,
    /// Most sequences at a time. They share `cache_tokens`, so that their number takes no memory of its own.
    pub sequences: u32,
    /// Bytes of a cached value: 2 for f16, 4 for f32.
    pub cache_value_bytes: u32,
}

/// What a stage takes of its worker's budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageBytes {
    /// Tensors, as in the file.
    pub weights: Bytes,
    /// KV cache.
    pub cache: Bytes,
    /// Activations, scores, logits and frame buffers.
    pub workspace: Bytes,
}

impl StageBytes {
    /// All of it.
    pub fn total(&self) -> Bytes {
        self.weights + self.cache + self.workspace
    }
}

/// The widths that a stage's buffers are made for, each the largest of all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Hidden state.
    pub hidden: u64,
    /// All query heads together.
    pub query: u64,
    /// All key heads together.
    pub key: u64,
    /// All value heads together.
    pub value: u64,
    /// Output of all heads together.
    pub attention: u64,
    /// What latent attention needs besides: queries before and after their compression, the turned key, and what goes
    /// into and comes out of the heads' own matrices; 0 where there is none.
    pub latent: u64,
    /// Feed-forward: where there are experts, of all together that a row takes, or of the network that all rows share.
    pub feed_forward: u64,
    /// Scores of the experts and outputs of those that a row takes; 0 where there are none.
    pub experts: u64,
    /// Number of query heads.
    pub heads: u64,
    /// Number of token ids.
    pub vocab: u64,
}

/// What one layer costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerCost {
    /// Its tensors.
    pub weights: Bytes,
    /// Of these, the matrices: what is read again for every step where the layer is streamed.
    pub matrices: Bytes,
    /// What the matrices take of a buffer that streamed layers pass through.
    pub staged: Bytes,
    /// Weight bytes that are read to compute one row.
    pub active: Bytes,
    /// Floating-point operations of its matrix products for one row: two per weight.
    pub flops: u64,
    /// Values that the cache keeps for one token: keys and values of all heads, or what latent attention makes both of.
    pub cache_values: u64,
    /// What a device must be able to compute to hold it.
    pub needs: Kernels,
}

/// What one end of a model costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndCost {
    /// Its tensors; for a tied head that is the token embedding too.
    pub weights: Bytes,
    /// Weight bytes that are read to compute one row.
    pub active: Bytes,
    /// Floating-point operations for one row.
    pub flops: u64,
    /// What a device must be able to compute to hold it.
    pub needs: Kernels,
}

/// Weights of one type that every row is multiplied with, or those of the experts that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// How they are stored.
    pub kind: TensorType,
    /// Their number; of experts that of all.
    pub weights: u64,
    /// `None` where every row is multiplied with all of them.
    pub experts: Option<ExpertShare>,
}

/// How many of a layer's experts a row takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShare {
    /// How many there are; above 0.
    pub count: u64,
    /// How many a row takes.
    pub used: u64,
}

impl ExpertShare {
    /// How many different experts `rows` rows take together, where every expert is as likely as another:
    /// `E (1 - (1 - k / E)^rows)`.
    pub fn distinct(self, rows: f64) -> f64 {
        let (count, used) = (self.count.max(1) as f64, self.used as f64);
        count * (1.0 - (1.0 - (used / count).min(1.0)).powf(rows))
    }
}

/// What attention costs for every cached position that a row sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionCost {
    /// Values that the cache keeps for the position.
    pub cached_values: u64,
    /// Multiplications, each with its addition, of all query heads with its key and its value.
    pub multiply_adds: u64,
    /// The most positions that a row sees; `None` where it sees all before it.
    pub window: Option<u64>,
}

/// What a layer computes for every row: the parts of [`LayerCost::active`] and [`LayerCost::flops`] by how fast they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerWork {
    /// By type, no two alike.
    pub products: Vec<Product>,
    /// Beside the products.
    pub attention: AttentionCost,
    /// Values that are read and written beside the products for a row: norms, rope, gates and the residual stream.
    pub passed_values: u64,
    /// Values that go into products and come out of them for a row; those of experts once for each that a row takes.
    pub framed_values: u64,
}

/// What every part of a model costs.
#[derive(Clone, Debug)]
pub struct Cost {
    layers: Vec<LayerCost>,
    work: Vec<LayerWork>,
    head_product: Option<Product>,
    embedding: EndCost,
    head: EndCost,
    /// What embedding and head share where the head is tied; counted once on a shard with both.
    shared: Bytes,
    rope: Bytes,
    widths: Widths,
    context_length: u32,
    /// How many times as large a part is, at most, on a card that turns types that it lacks into others.
    growth: f64,
}

/// Bytes of buffers that a stage computes in, beside weights and cache.
///
/// With `R` = [`Room::step_rows`], all of them f32 unless said otherwise:
/// - activations: `R x (3 hidden + query + key + value + attention + latent + 2 feed-forward + experts)` for the residual
///   stream, its norm, a product's output, the attention's inputs and output, gate and up, the router's scores and the outputs
///   of the experts taken;
/// - the quantised copy of the widest input of a matrix product: `R` rows of blocks of 32 values,
///   [`QUANTISED_BYTES_PER_32`] bytes each;
/// - scores of one row: `heads x context`;
/// - [`FRAME_BUFFERS`] frames of `R x hidden`;
/// - with the head, `2 x` [`HEAD_BLOCK_ROWS`] ` x vocab`: a block's logits, and the same once more for sorting and
///   log-probabilities.
pub fn workspace_bytes(widths: &Widths, room: &Room, head: bool) -> Bytes {
    let rows = u64::from(room.step_rows);
    let row_values = 3 * widths.hidden
        + widths.query
        + widths.key
        + widths.value
        + widths.attention
        + widths.latent
        + 2 * widths.feed_forward
        + widths.experts;
    let widest = widths.widest_input();
    let activations = Bytes(row_values * F32_BYTES) * rows;
    let quantised = Bytes(widest.div_ceil(32) * QUANTISED_BYTES_PER_32) * rows;
    let scores = Bytes(widths.heads * F32_BYTES) * u64::from(room.context);
    let frames = Bytes(widths.hidden * F32_BYTES * FRAME_BUFFERS) * rows;
    let head_rows = if head { 2 * u64::from(HEAD_BLOCK_ROWS) } else { 0 };
    let logits = Bytes(widths.vocab * F32_BYTES) * head_rows;
    activations + quantised + scores + frames + logits
}

/// Bytes of a cache that keeps `values` values per token: whole pages of [`PAGE_TOKENS`].
pub fn cache_bytes(values: u64, room: &Room) -> Bytes {
    let tokens = u64::from(room.cache_tokens).next_multiple_of(u64::from(PAGE_TOKENS));
    Bytes(values) * u64::from(room.cache_value_bytes) * tokens
}

impl Cost {
    /// What the parts of the model `spec` cost with the tensors in `table`.
    pub fn new(spec: &ModelSpec, table: &TensorTable) -> Cost {
        let size = |role| table.get(role).map_or(Bytes::ZERO, |tensor| tensor.bytes);
        let needs = |role| table.get(role).map_or(Kernels::NONE, |tensor| Kernels::NONE.with(tensor.kind));
        let embedding_bytes = size(Role::TokenEmbedding);
        let head_matrix = size(table.head_role());
        let head_flops = 2 * spec.hidden as u64 * spec.vocab as u64;
        let norm = size(Role::OutputNorm);
        let head_product = |tensor: &TensorInfo| Product {
            kind: tensor.kind,
            weights: spec.hidden as u64 * spec.vocab as u64,
            experts: None,
        };
        Cost {
            layers: (0..spec.layers.len()).map(|layer| layer_cost(spec, table, layer)).collect(),
            work: (0..spec.layers.len()).map(|layer| layer_work(spec, table, layer)).collect(),
            head_product: table.get(table.head_role()).map(head_product),
            embedding: EndCost {
                weights: embedding_bytes,
                active: Bytes(embedding_bytes.0 / (spec.vocab as u64).max(1)),
                flops: 0,
                needs: needs(Role::TokenEmbedding),
            },
            head: EndCost {
                weights: head_matrix + norm,
                active: head_matrix + norm,
                flops: head_flops,
                needs: needs(table.head_role()),
            },
            shared: if spec.head.tied { embedding_bytes } else { Bytes::ZERO },
            rope: [Role::RopeFrequencies, Role::RopeLong, Role::RopeShort].into_iter().map(size).sum(),
            widths: Widths::of(spec),
            context_length: u32::try_from(spec.context_length).unwrap_or(u32::MAX),
            growth: table.growth(Kernels::CANDLE),
        }
    }

    /// What of a device's `budget` can be planned with. Where it turns weights into larger ones while it reads them, that is so
    /// much less as the part of the model that grows the most does: a stage that fits it in its file's bytes fits the budget as it
    /// lies on the device.
    pub(crate) fn budget_of(&self, kernels: Kernels, budget: Bytes) -> Bytes {
        match kernels.converts() && self.growth > 1.0 {
            true => Bytes((budget.0 as f64 / self.growth) as u64),
            false => budget,
        }
    }

    /// One entry per layer.
    pub fn layers(&self) -> &[LayerCost] {
        &self.layers
    }

    /// What layers compute, one entry per layer.
    pub fn work(&self) -> &[LayerWork] {
        &self.work
    }

    /// Token ids, each of which has a logit.
    pub fn vocab(&self) -> u64 {
        self.widths.vocab
    }

    /// The output matrix.
    pub fn head_product(&self) -> Option<Product> {
        self.head_product
    }

    /// The token embedding.
    pub fn embedding(&self) -> EndCost {
        self.embedding
    }

    /// The output norm and matrix.
    pub fn head(&self) -> EndCost {
        self.head
    }

    /// The widths of the stages' buffers.
    pub fn widths(&self) -> &Widths {
        &self.widths
    }

    /// The longest context that the model was trained for, in tokens.
    pub fn context_length(&self) -> u32 {
        self.context_length
    }

    /// Number of layers.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The shard that is the whole model.
    pub fn whole(&self) -> Shard {
        let layers = LayerRange { start: 0, end: self.layers.len() };
        Shard { layers, embedding: true, head: true }
    }

    /// Weight bytes of a shard.
    pub fn weights(&self, shard: &Shard) -> Bytes {
        let layers: Bytes = self.held(shard).map(|layer| layer.weights).sum();
        layers + self.weights_beside_layers(shard)
    }

    /// What a device must be able to compute to hold a shard.
    pub fn needs(&self, shard: &Shard) -> Kernels {
        let layers = self.held(shard).fold(Kernels::NONE, |needs, layer| needs.and(layer.needs));
        let embedding = if shard.embedding { self.embedding.needs } else { Kernels::NONE };
        let head = if shard.head { self.head.needs } else { Kernels::NONE };
        layers.and(embedding).and(head)
    }

    /// What a stage that holds `shard` takes of its worker's budget.
    pub fn memory(&self, shard: &Shard, room: &Room) -> StageBytes {
        StageBytes {
            weights: self.weights(shard),
            cache: cache_bytes(self.held(shard).map(|layer| layer.cache_values).sum(), room),
            workspace: workspace_bytes(&self.widths, room, shard.head),
        }
    }

    /// The layers of a shard that are read again for every step where its last `streamed_layers` may be: none where the
    /// buffers for them would take no less than they do.
    pub fn streamed(&self, shard: &Shard, streamed_layers: usize) -> LayerRange {
        let layers = self.last_layers(shard, streamed_layers);
        let (matrices, staged) = self.staging(layers);
        if staged < matrices { layers } else { LayerRange { start: layers.end, end: layers.end } }
    }

    /// The same as [`memory`](Self::memory) where the last `streamed_layers` of the shard are read again for every step:
    /// of these, vectors stay, and matrices pass through [`STAGED_LAYERS`] buffers as large as the largest needs.
    pub fn memory_streaming(&self, shard: &Shard, streamed_layers: usize, room: &Room) -> StageBytes {
        let (matrices, staged) = self.staging(self.streamed(shard, streamed_layers));
        let memory = self.memory(shard, room);
        StageBytes { weights: memory.weights.saturating_sub(matrices) + staged, ..memory }
    }

    /// Bytes of the matrices of some layers, and of the buffers that they would pass through.
    fn staging(&self, layers: LayerRange) -> (Bytes, Bytes) {
        let layers = &self.layers[layers.iter()];
        let matrices = layers.iter().map(|layer| layer.matrices).sum();
        let largest = layers.iter().map(|layer| layer.staged).max().unwrap_or(Bytes::ZERO);
        (matrices, largest * STAGED_LAYERS)
    }

    /// The last so many layers of a shard.
    fn last_layers(&self, shard: &Shard, count: usize) -> LayerRange {
        let end = shard.layers.end.min(self.layers.len());
        LayerRange { start: end.saturating_sub(count).max(shard.layers.start.min(end)), end }
    }

    /// Weight bytes of a shard that belong to none of its layers: the ends it holds and the rope frequencies.
    pub(crate) fn weights_beside_layers(&self, shard: &Shard) -> Bytes {
        let mut bytes = Bytes::ZERO;
        if shard.embedding {
            bytes += self.embedding.weights;
        }
        if shard.head {
            bytes += self.head.weights;
        }
        if shard.embedding && shard.head {
            bytes = bytes.saturating_sub(self.shared);
        }
        if !shard.layers.is_empty() {
            bytes += self.rope;
        }
        bytes
    }

    fn held(&self, shard: &Shard) -> impl Iterator<Item = &LayerCost> {
        let end = shard.layers.end.min(self.layers.len());
        self.layers[shard.layers.start.min(end)..end].iter()
    }
}

impl Widths {
    /// The largest widths of any layer of `spec`.
    pub fn of(spec: &ModelSpec) -> Widths {
        let mut widths = Widths {
            hidden: spec.hidden as u64,
            query: 0,
            key: 0,
            value: 0,
            attention: 0,
            latent: 0,
            feed_forward: 0,
            experts: 0,
            heads: 0,
            vocab: spec.vocab as u64,
        };
        for layer in &spec.layers {
            let raise = |field: &mut u64, value: usize| *field = (*field).max(value as u64);
            match &layer.attention {
                Attention::Grouped(attention) => {
                    raise(&mut widths.query, attention.heads * attention.key_width);
                    raise(&mut widths.key, attention.kv_heads * attention.key_width);
                    raise(&mut widths.value, attention.kv_heads * attention.value_width);
                    raise(&mut widths.attention, attention.heads * attention.value_width);
                    raise(&mut widths.heads, attention.heads);
                }
                Attention::Latent(attention) => {
                    let cached = attention.cached_width();
                    raise(&mut widths.query, attention.heads * cached);
                    raise(&mut widths.key, cached);
                    raise(&mut widths.value, attention.rank);
                    raise(&mut widths.attention, attention.heads * attention.rank);
                    raise(&mut widths.latent, LatentWidths::of(attention).sum());
                    raise(&mut widths.heads, attention.heads);
                }
            }
            match layer.feed_forward {
                FeedForward::Gated { width, .. } => raise(&mut widths.feed_forward, width),
                FeedForward::Experts(experts) => {
                    raise(&mut widths.feed_forward, experts.used * experts.width);
                    raise(&mut widths.feed_forward, experts.shared_width.unwrap_or(0));
                    raise(&mut widths.experts, experts.count + experts.used * spec.hidden);
                }
            }
        }
        widths
    }

    /// The widest input of a matrix product.
    pub fn widest_input(&self) -> u64 {
        // What latent attention takes besides is wider than any one of its inputs.
        self.hidden.max(self.attention).max(self.feed_forward).max(self.latent)
    }
}

/// The widths of the buffers that latent attention needs besides those of all attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatentWidths {
    /// Queries between the two matrices that make them; 0 where one does.
    pub compressed: usize,
    /// All query heads together, before their plain channels meet the key matrices.
    pub query: usize,
    /// Input of the heads' key matrices, and later output of their value matrices.
    pub heads: usize,
    /// The turned key.
    pub turned: usize,
}

impl LatentWidths {
    /// Those of one layer.
    pub fn of(attention: &LatentAttention) -> LatentWidths {
        let compressed = match attention.query {
            LatentQuery::Direct => 0,
            LatentQuery::Compressed { rank, .. } => rank,
        };
        LatentWidths {
            compressed,
            query: attention.heads * (attention.plain_width + attention.rope.width),
            heads: attention.heads * attention.plain_width.max(attention.value_width),
            turned: attention.rope.width,
        }
    }

    /// The larger of each.
    pub fn max(self, other: LatentWidths) -> LatentWidths {
        LatentWidths {
            compressed: self.compressed.max(other.compressed),
            query: self.query.max(other.query),
            heads: self.heads.max(other.heads),
            turned: self.turned.max(other.turned),
        }
    }

    fn sum(self) -> usize {
        self.compressed + self.query + self.heads + self.turned
    }
}

fn layer_cost(spec: &ModelSpec, table: &TensorTable, layer: usize) -> LayerCost {
    let mut cost = LayerCost::default();
    for (role, tensor) in table.layer(layer) {
        // Of the experts' tensors, a row reads the share of those that it takes.
        let (taken, of) = match &spec.layers[layer].feed_forward {
            FeedForward::Experts(experts) if role.is_per_expert() => {
                (experts.used as u64, experts.count as u64)
            }
            _ => (1, 1),
        };
        // Vectors are kept as f32, whatever the file has.
        let resident = if role.is_vector() { Bytes(4 * tensor.values()) } else { tensor.bytes };
        cost.weights += resident;
        cost.active += Bytes(resident.0 / of * taken);
        if !role.is_vector() {
            cost.matrices += tensor.bytes;
            cost.staged += staged_bytes(tensor);
            cost.flops += 2 * (tensor.values() / of) * taken;
            cost.needs = cost.needs.with(tensor.kind);
        }
    }
    cost.cache_values = match &spec.layers[layer].attention {
        Attention::Grouped(attention) => attention.kv_heads * (attention.key_width + attention.value_width),
        Attention::Latent(attention) => attention.cached_width(),
    } as u64;
    cost
}

/// Values that pass per value of the hidden state: two norms read and write it, and two additions read twice and write.
const PASSED_PER_HIDDEN: u64 = 10;
/// Values that pass per value of queries and keys: rope reads and writes them.
const PASSED_PER_TURNED: u64 = 2;
/// Values that pass per value of gates: they and the other input are read, and the product is written.
const PASSED_PER_GATE: u64 = 3;

/// Values that a layer reads and writes for every row beside its products: of a hidden state of `hidden` values, queries and
/// keys of which rope turns `turned`, and `gates` gates.
pub const fn passed_values(hidden: u64, turned: u64, gates: u64) -> u64 {
    PASSED_PER_HIDDEN * hidden + PASSED_PER_TURNED * turned + PASSED_PER_GATE * gates
}

fn layer_work(spec: &ModelSpec, table: &TensorTable, layer: usize) -> LayerWork {
    let of = &spec.layers[layer];
    let mut products: Vec<Product> = Vec::new();
    let mut framed_values = 0;
    for (role, tensor) in table.layer(layer).filter(|(role, _)| !role.is_vector()) {
        let experts = match &of.feed_forward {
            FeedForward::Experts(experts) if role.is_per_expert() => {
                Some(ExpertShare { count: experts.count as u64, used: experts.used as u64 })
            }
            _ => None,
        };
        let sides = tensor.dims.iter().take(2).sum::<u64>();
        framed_values += sides * experts.map_or(1, |experts| experts.used);
        match products.iter_mut().find(|product| (product.kind, product.experts) == (tensor.kind, experts)) {
            Some(product) => product.weights += tensor.values(),
            None => products.push(Product { kind: tensor.kind, weights: tensor.values(), experts }),
        }
    }
    let (attention, turned) = match &of.attention {
        Attention::Grouped(a) => (
            AttentionCost {
                cached_values: (a.kv_heads * (a.key_width + a.value_width)) as u64,
                multiply_adds: (a.heads * (a.key_width + a.value_width)) as u64,
                window: match a.visibility {
                    Visibility::All => None,
                    // Of a chunk a row sees half on average.
                    Visibility::Window(most) => Some(most as u64),
                    Visibility::Chunk(most) => Some(most.div_ceil(2) as u64),
                },
            },
            (a.heads + a.kv_heads) * a.key_width,
        ),
        Attention::Latent(a) => (
            AttentionCost {
                cached_values: a.cached_width() as u64,
                multiply_adds: (a.heads * (a.cached_width() + a.rank)) as u64,
                window: None,
            },
            (a.heads + 1) * a.rope.width,
        ),
    };
    let gates = match of.feed_forward {
        FeedForward::Gated { width, .. } => width,
        FeedForward::Experts(experts) => experts.used * experts.width + experts.shared_width.unwrap_or(0),
    };
    let passed_values = passed_values(spec.hidden as u64, turned as u64, gates as u64);
    LayerWork { products, attention, passed_values, framed_values }
}

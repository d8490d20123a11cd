//! What the parsers of several families share.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use crate::model_file::Header;
use crate::spec::{
    Activation, Experts, Gating, GroupedAttention, Projections, Rope, RopeDivisors, RopePairing, RopeScaling,
    Routing, Visibility, Weighing,
};

/// The context that a scaled rope was first made for; divisors by context and YaRN need it.
pub(super) const ORIGINAL_CONTEXT: &str = "rope.scaling.original_context_length";
/// Base of the rope frequencies where a file may leave it out.
const DEFAULT_ROPE_BASE: f32 = 10_000.0;
/// Bounds on what a file may ask for: a few times the largest public model's.
pub(super) const MAX_HIDDEN: u64 = 1 << 20;
const MAX_LAYERS: u64 = 1 << 12;
pub(super) const MAX_HEADS: u64 = 1 << 14;
pub(super) const MAX_HEAD_WIDTH: u64 = 1 << 14;
pub(super) const MAX_FEED_FORWARD: u64 = 1 << 22;
pub(super) const MAX_EXPERTS: u64 = 1 << 14;
pub(super) const MAX_CONTEXT: u64 = 1 << 30;
const MAX_VOCAB: u64 = 1 << 24;

/// Keys that say nothing about the computation: `vocab_size` repeats the embedding's shape.
pub(super) const HARMLESS: [&str; 2] = ["vocab_size", "rope.scaling.finetuned"];

/// The sizes that every model has.
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) context: usize,
}

/// Reads the sizes that every model has, and refuses models that do not generate text from left to right.
pub(super) fn sizes(keys: &Hyperparameters<'_>) -> Result<Sizes, SpecError> {
    if keys.flag("attention.causal")? == Some(false) {
        return Err(keys.unsupported("attention.causal", false, ": the model does not generate text"));
    }
    if let Some(pooling @ 1..) = keys.count("pooling_type", 0..=u64::MAX)? {
        return Err(keys.unsupported("pooling_type", pooling, ": the model does not generate text"));
    }
    Ok(Sizes {
        hidden: keys.required("embedding_length", 1..=MAX_HIDDEN)?,
        layers: keys.required("block_count", 1..=MAX_LAYERS)?,
        context: keys.required("context_length", 1..=MAX_CONTEXT)?,
    })
}

/// How many layers at the end predict tokens beyond the next; they are not run.
pub(super) fn skipped_layers(keys: &Hyperparameters<'_>, sizes: &Sizes) -> Result<usize, SpecError> {
    let last = sizes.layers - 1;
    match keys.count("nextn_predict_layers", 0..=last as u64)? {
        None if keys.header.tensor(&format!("blk.{last}.nextn.eh_proj.weight")).is_some() => {
            Err(keys.missing("nextn_predict_layers"))
        }
        layers => Ok(layers.unwrap_or(0)),
    }
}

/// Refuses a mixture of experts.
pub(super) fn refuse_experts(keys: &Hyperparameters<'_>) -> Result<(), SpecError> {
    match keys.count("expert_count", 0..=u64::MAX)? {
        Some(experts @ 1..) => {
            Err(keys.unsupported("expert_count", experts, ": mixtures of experts cannot be run"))
        }
        _ => Ok(()),
    }
}

/// How many experts there are, and how many of them a position takes; `None` where the file has none.
pub(super) fn expert_counts(keys: &Hyperparameters<'_>) -> Result<Option<(usize, usize)>, SpecError> {
    let used = keys.count("expert_used_count", 0..=MAX_EXPERTS)?;
    let Some(count @ 1..) = keys.count("expert_count", 0..=MAX_EXPERTS)? else {
        return Ok(None);
    };
    let used = used.ok_or_else(|| keys.missing("expert_used_count"))?;
    if !(1..=count).contains(&used) {
        let wanted = format!("it must be between 1 and the number of experts, {count}");
        return Err(keys.invalid("expert_used_count", used, &wanted));
    }
    Ok(Some((count, used)))
}

/// The experts, weighted by their softmax, renormalised; `None` where the file has none. `width` is the key of an
/// expert's width.
pub(super) fn softmax_experts(keys: &Hyperparameters<'_>, width: &str) -> Result<Option<Experts>, SpecError> {
    let Some((count, used)) = expert_counts(keys)? else {
        return Ok(None);
    };
    Ok(Some(Experts {
        count,
        used,
        width: keys.required(width, 1..=MAX_FEED_FORWARD)?,
        activation: Activation::Silu,
        routing: Routing {
            gating: Gating::Softmax,
            selection_bias: false,
            groups: None,
            renormalised: true,
            scale: 1.0,
            weighing: Weighing::Outputs,
        },
        shared_width: None,
        biases: false,
    }))
}

/// Refuses a sliding window in a family that has none. A window that no context reaches past hides nothing.
pub(super) fn refuse_window(keys: &Hyperparameters<'_>, context: usize) -> Result<(), SpecError> {
    match keys.count("attention.sliding_window", 0..=u64::MAX)? {
        Some(window @ 1..) if window < context => {
            Err(keys.unsupported("attention.sliding_window", window, ": only full attention is"))
        }
        _ => Ok(()),
    }
}

/// A positive number of positions that a window shows.
pub(super) fn window(keys: &Hyperparameters<'_>) -> Result<usize, SpecError> {
    keys.required("attention.sliding_window", 1..=MAX_CONTEXT)
}

/// The same, where there may be none.
pub(super) fn optional_window(keys: &Hyperparameters<'_>) -> Result<Option<usize>, SpecError> {
    keys.count("attention.sliding_window", 1..=MAX_CONTEXT)
}

/// The epsilon of the norms, below 1.
pub(super) fn epsilon(keys: &Hyperparameters<'_>, name: &str) -> Result<f32, SpecError> {
    let epsilon = keys.number(name)?.ok_or_else(|| keys.missing(name))?;
    if !(0.0..1.0).contains(&epsilon) {
        return Err(keys.invalid(name, epsilon, "it must be at least 0 and below 1"));
    }
    Ok(epsilon)
}

/// The widths of every layer's feed-forward.
pub(super) fn feed_forward_widths(
    keys: &Hyperparameters<'_>,
    layers: usize,
) -> Result<Vec<usize>, SpecError> {
    let widths = keys.per_layer("feed_forward_length", 1..=MAX_FEED_FORWARD, layers)?;
    widths.ok_or_else(|| keys.missing("feed_forward_length"))
}

/// The heads of a model's grouped attention.
pub(super) struct Heads {
    /// Query heads, and key and value heads, of each layer.
    pub(super) counts: Vec<(usize, usize)>,
    pub(super) key_width: usize,
    pub(super) value_width: usize,
}

impl Heads {
    /// Attention of `(query heads, key and value heads)` as it is without what makes families differ: three matrices
    /// without biases, the usual factor on the scores, no norms, no rope, and sight of all positions.
    pub(super) fn attention(&self, (heads, kv_heads): (usize, usize)) -> GroupedAttention {
        GroupedAttention {
            heads,
            kv_heads,
            key_width: self.key_width,
            value_width: self.value_width,
            scale: 1.0 / (self.key_width as f32).sqrt(),
            projections: Projections::Separate { bias: false },
            head_norm: None,
            rope: None,
            temperature: None,
            visibility: Visibility::All,
            sinks: false,
            output_bias: false,
        }
    }
}

/// Keys of grouped attention that the files of a family may always state.
pub(super) const KV_HEADS: &str = "attention.head_count_kv";
pub(super) const KEY_WIDTH: &str = "attention.key_length";
pub(super) const VALUE_WIDTH: &str = "attention.value_length";

/// Reads the heads; the keys `stated` must be there, others have a default.
pub(super) fn heads(keys: &Hyperparameters<'_>, sizes: &Sizes, stated: &[&str]) -> Result<Heads, SpecError> {
    let heads = keys.per_layer("attention.head_count", 1..=MAX_HEADS, sizes.layers)?;
    let heads = heads.ok_or_else(|| keys.missing("attention.head_count"))?;
    let kv_heads = keys.per_layer(KV_HEADS, 1..=MAX_HEADS, sizes.layers)?;
    let key_width = keys.count(KEY_WIDTH, 1..=MAX_HEAD_WIDTH)?;
    let value_width = keys.count(VALUE_WIDTH, 1..=MAX_HEAD_WIDTH)?;
    let found = [
        (KV_HEADS, kv_heads.is_some()),
        (KEY_WIDTH, key_width.is_some()),
        (VALUE_WIDTH, value_width.is_some()),
    ];
    if let Some((name, _)) = found.iter().find(|(name, found)| !found && stated.contains(name)) {
        return Err(keys.missing(name));
    }
    let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
    // Where the file states no width, that of the first layer's heads holds for all.
    let default_width = sizes.hidden / heads[0];
    let unstated = found.iter().find(|(name, found)| !found && *name != KV_HEADS);
    if let Some((name, _)) = unstated.filter(|_| !sizes.hidden.is_multiple_of(heads[0])) {
        let (hidden, name) = (sizes.hidden, keys.full_name(name));
        let wanted = format!("it must divide the hidden width {hidden}, since the file has no `{name}`");
        return Err(keys.invalid("attention.head_count", heads[0], &wanted));
    }
    let counts = heads.into_iter().zip(kv_heads).map(|(heads, kv_heads)| {
        if !heads.is_multiple_of(kv_heads) {
            let wanted = format!("it must divide the number of query heads, {heads}");
            return Err(keys.invalid("attention.head_count_kv", kv_heads, &wanted));
        }
        Ok((heads, kv_heads))
    });
    Ok(Heads {
        counts: counts.collect::<Result<_, _>>()?,
        key_width: key_width.unwrap_or(default_width),
        value_width: value_width.unwrap_or(default_width),
    })
}

/// The base of the rope frequencies under `name`; `None` where the key is absent.
pub(super) fn rope_base(keys: &Hyperparameters<'_>, name: &str) -> Result<Option<f32>, SpecError> {
    match keys.number(name)? {
        Some(base) if base <= 0.0 => Err(keys.invalid(name, base, "it must be above 0")),
        base => Ok(base),
    }
}

/// The base of the rope frequencies in a family whose files always state it.
pub(super) fn stated_rope_base(keys: &Hyperparameters<'_>) -> Result<(), SpecError> {
    rope_base(keys, "rope.freq_base")?.map(|_| ()).ok_or_else(|| keys.missing("rope.freq_base"))
}

/// Turns of a pair within the original context between which YaRN's ramp lies, where a file states none.
const YARN_BETA_FAST: f32 = 32.0;
const YARN_BETA_SLOW: f32 = 1.0;

/// Rope as most families have it. Cosine and sine have the file's factor, and YaRN's own
/// [magnitude](yarn_magnitude) on top.
pub(super) fn rope(
    keys: &Hyperparameters<'_>,
    key_width: usize,
    pairing: RopePairing,
) -> Result<Rope, SpecError> {
    let width = keys.count("rope.dimension_count", 1..=MAX_HEAD_WIDTH)?.unwrap_or(key_width);
    if !width.is_multiple_of(2) || width > key_width {
        let wanted = format!("it must be even and at most the width of a key head, {key_width}");
        return Err(keys.invalid("rope.dimension_count", width, &wanted));
    }
    let scaling = rope_scaling(keys)?;
    let magnitude = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    if magnitude <= 0.0 {
        return Err(keys.invalid("rope.scaling.attn_factor", magnitude, "it must be above 0"));
    }
    Ok(Rope {
        width,
        pairing,
        base: rope_base(keys, "rope.freq_base")?.unwrap_or(DEFAULT_ROPE_BASE),
        scaling,
        divisors: match keys.header.tensor("rope_freqs.weight") {
            Some(_) => RopeDivisors::Fixed,
            None => RopeDivisors::None,
        },
        magnitude: magnitude * yarn_magnitude(scaling, 1.0),
    })
}

/// The factor `1 + 0.1 multiplier ln(factor)` that YaRN wants on attention; 1 for other scalings.
pub(super) fn yarn_magnitude(scaling: RopeScaling, multiplier: f32) -> f32 {
    match scaling {
        RopeScaling::Yarn { factor, .. } => 1.0 + 0.1 * multiplier * factor.ln(),
        RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
    }
}

/// Refuses YaRN in a family that does not use it.
pub(super) fn refuse_yarn(keys: &Hyperparameters<'_>, rope: &Rope) -> Result<(), SpecError> {
    match rope.scaling {
        RopeScaling::Yarn { .. } => {
            Err(keys.unsupported("rope.scaling.type", "yarn", ": only `none` and `linear` are"))
        }
        RopeScaling::None | RopeScaling::Linear { .. } => Ok(()),
    }
}

/// Refuses YaRN, and a factor on cosine and sine, in a family that has neither.
pub(super) fn refuse_rope_magnitude(keys: &Hyperparameters<'_>, rope: &Rope) -> Result<(), SpecError> {
    refuse_yarn(keys, rope)?;
    match rope.magnitude {
        1.0 => Ok(()),
        factor => Err(keys.unsupported("rope.scaling.attn_factor", factor, "")),
    }
}

/// How frequencies are slowed. `rope.scaling.factor` is `rope.scale_linear` in older files; without a type it is linear.
fn rope_scaling(keys: &Hyperparameters<'_>) -> Result<RopeScaling, SpecError> {
    let stated = keys.number("rope.scaling.factor")?;
    let factor = stated.or(keys.number("rope.scale_linear")?);
    let original = keys.count(ORIGINAL_CONTEXT, 0..=u64::from(u32::MAX))?;
    let valid = |factor: f32| factor > 0.0 && (1.0 / factor).is_finite();
    match keys.text("rope.scaling.type")? {
        Some("none") => Ok(RopeScaling::None),
        Some("linear") if factor.is_none() => Err(keys.missing("rope.scaling.factor")),
        kind @ (None | Some("linear")) => match factor {
            // Files write 0 for no scaling.
            None | Some(0.0) => Ok(RopeScaling::None),
            Some(factor) if !valid(factor) => {
                Err(keys.invalid("rope.scaling.factor", factor, "it must be above 0"))
            }
            // Linear scaling has no use for the original context, so that this file lost the name of its scaling.
            Some(_) if kind.is_none() && original.is_some() => Err(keys.missing("rope.scaling.type")),
            Some(factor) => Ok(RopeScaling::Linear { factor }),
        },
        Some("yarn") => yarn(keys, stated, original),
        Some(other) => {
            Err(keys.unsupported("rope.scaling.type", other, ": only `none`, `linear` and `yarn` are"))
        }
    }
}

/// Reads YaRN, whose files state the factor and the original context.
fn yarn(
    keys: &Hyperparameters<'_>,
    factor: Option<f32>,
    original_context: Option<usize>,
) -> Result<RopeScaling, SpecError> {
    let factor = factor.ok_or_else(|| keys.missing("rope.scaling.factor"))?;
    if factor < 1.0 {
        return Err(keys.invalid("rope.scaling.factor", factor, "YaRN wants at least 1"));
    }
    let original_context = original_context.ok_or_else(|| keys.missing(ORIGINAL_CONTEXT))?;
    if original_context == 0 {
        return Err(keys.invalid(ORIGINAL_CONTEXT, 0, "YaRN wants at least 1"));
    }
    let beta_fast = keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(YARN_BETA_FAST);
    let beta_slow = keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(YARN_BETA_SLOW);
    for (name, beta) in
        [("rope.scaling.yarn_beta_fast", beta_fast), ("rope.scaling.yarn_beta_slow", beta_slow)]
    {
        if beta <= 0.0 {
            return Err(keys.invalid(name, beta, "it must be above 0"));
        }
    }
    // GGUF files do not say; the reader of safetensors does.
    let whole_pairs = keys.flag("rope.scaling.yarn_whole_pairs")?.unwrap_or(true);
    Ok(RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, whole_pairs })
}

/// The number of token ids: the rows of the embedding, which the vocabulary must agree with.
pub(super) fn vocab(header: &Header) -> Result<usize, SpecError> {
    let name = "token_embd.weight";
    let error = |problem| SpecError::Tensor { name: header.tensor_name(name), problem };
    let tensor = header.tensor(name).ok_or_else(|| error("is missing".to_owned()))?;
    let &[_, rows] = tensor.dims.as_slice() else {
        return Err(error(format!("has the shape {:?}, wanted a matrix", tensor.dims)));
    };
    if rows > MAX_VOCAB {
        return Err(error(format!("has {rows} rows, at most {MAX_VOCAB} are possible")));
    }
    match header.array_len("tokenizer.ggml.tokens")? {
        Some(tokens) if tokens != rows => {
            Err(error(format!("has {rows} rows, but the vocabulary has {tokens} tokens")))
        }
        _ => Ok(rows as usize),
    }
}

/// Whether the output matrix is the token embedding: the file has no other.
pub(super) fn tied(header: &Header) -> bool {
    header.tensor("output.weight").is_none()
}

/// The model's own name, or its architecture's.
pub(super) fn name(header: &Header, architecture: &str) -> Result<String, SpecError> {
    Ok(header.str("general.name")?.unwrap_or(architecture).to_owned())
}

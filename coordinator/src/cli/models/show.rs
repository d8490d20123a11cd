//! `brigade models show`: what a model's files hold.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use brigade_shard::cost::Cost;
use brigade_shard::model_file::Header;
use brigade_shard::spec::{
    Activation, Attention, Experts, FeedForward, Gating, GroupedAttention, HeadNorm, LatentAttention,
    LayerSpec, ModelSpec, Norm, Projections, Residual, Rope, RopeDivisors, RopeScaling, Routing, Visibility,
    Weighing,
};
use brigade_shard::template::{TemplateError, TemplateSource};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorTable;
use brigade_shard::tokenizer::Tokenizer;
use brigade_shard::units::Bytes;
use clap::Args;

use super::StoreOptions;
use crate::cli::FAILED;
use crate::cli::options::{model_file_in, model_id};
use crate::render::{
    EndToken, LayerKind, ModelCard, SpecCard, StatedCard, TemplateCard, TokenizerCard, TypeCard, render_model,
};
use crate::template::{ChatRenderer, own_program};

/// Bytes of a cached value where nothing else is asked for.
const CACHE_VALUE_BYTES: u64 = 2;

/// Flags of `brigade models show`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the model can be served, 1 it cannot.\n\nExample: brigade models show SmolLM2.gguf"
)]
pub struct ShowArgs {
    /// The model: a GGUF file, the first part of a split one, a directory of safetensors, or a name that `brigade models
    /// ls` shows; only headers are read
    #[arg(env = "BRIGADE_MODEL", hide_env = true)]
    model: PathBuf,

    #[command(flatten)]
    store: StoreOptions,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shows what the model's headers say.
pub(super) async fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let path = model_file_in(&args.model, args.store.find().as_ref())?;
    let header =
        Header::open(&path).with_context(|| format!("failed to read the model {}", args.model.display()))?;
    let card = card(&path, &header).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&card)?)?;
    } else {
        out.write_all(render_model(&card).as_bytes())?;
    }
    Ok(if card.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Everything that the header says of the model at `path`.
async fn card(path: &Path, header: &Header) -> anyhow::Result<ModelCard> {
    let mut problems = Vec::new();
    let mut unusual = Vec::new();
    let spec = ModelSpec::from_header(header).map_err(|error| error.to_string());
    let computed = spec.and_then(|spec| {
        let table = TensorTable::new(header, &spec).map_err(|error| error.to_string())?;
        Ok((spec, table))
    });
    let computed = computed.map_err(|problem| problems.push(problem)).ok();
    let tokenizer = Tokenizer::from_header(header);
    let tokenizer = tokenizer.map_err(|error| problems.push(error.to_string())).ok();
    let template = match &tokenizer {
        None => None,
        Some(tokenizer) => match TemplateSource::from_header(header, tokenizer) {
            Err(TemplateError::Missing) => None,
            Err(error) => {
                problems.push(error.to_string());
                None
            }
            Ok(source) => {
                let bytes = source.source.len();
                let checked = ChatRenderer::new(own_program()?, source)?.check().await;
                checked.map_err(|error| problems.push(error.to_string())).ok().map(|()| bytes)
            }
        },
    };
    if let Some((spec, _)) = &computed {
        unusual.extend(unusual_parts(spec));
    }
    let unknown = header.unknown_keys();
    if !unknown.is_empty() {
        unusual.push(format!("keys that are not known and change nothing here: {}", unknown.join(", ")));
    }
    let text = |key| header.str(key).ok().flatten().unwrap_or_default().to_owned();
    let architecture = text("general.architecture");
    let number = |key: &str| header.u64(&format!("{architecture}.{key}")).ok().flatten();
    Ok(ModelCard {
        model: model_id(path),
        name: text("general.name"),
        stated: StatedCard {
            layers: number("block_count"),
            hidden: number("embedding_length"),
            context: number("context_length"),
        },
        architecture,
        files: header.parts().to_vec(),
        file_bytes: header.file_bytes(),
        fingerprint: header.fingerprint().to_string(),
        parameters: header.tensors().iter().map(|tensor| tensor.values()).sum(),
        active_parameters: computed.as_ref().map_or(0, |(spec, table)| active_parameters(spec, table)),
        spec: computed.as_ref().map(|(spec, table)| spec_card(spec, table)),
        types: types(header),
        tokenizer: tokenizer.as_ref().map(|tokenizer| tokenizer_card(header, tokenizer)),
        template: template.map(|bytes| TemplateCard { bytes }),
        unusual,
        problems,
    })
}

fn types(header: &Header) -> Vec<TypeCard> {
    let mut types: BTreeMap<TensorType, TypeCard> = BTreeMap::new();
    for tensor in header.tensors() {
        let card = types.entry(tensor.kind).or_insert_with(|| TypeCard {
            kind: tensor.kind.to_string(),
            tensors: 0,
            values: 0,
            bytes: Bytes::ZERO,
        });
        card.tensors += 1;
        card.values += tensor.values();
        card.bytes += tensor.bytes;
    }
    let mut types: Vec<TypeCard> = types.into_values().collect();
    types.sort_by_key(|card| std::cmp::Reverse(card.bytes));
    types
}

fn tokenizer_card(header: &Header, tokenizer: &Tokenizer) -> TokenizerCard {
    let token = |id| EndToken { id, text: tokenizer.token_text(id).unwrap_or_default().to_owned() };
    let text = |key| header.str(key).ok().flatten().unwrap_or_default();
    let kind = match text("tokenizer.ggml.model") {
        "gpt2" => format!("byte-level BPE, split as `{}`", text("tokenizer.ggml.pre")),
        "llama" => "SentencePiece".to_owned(),
        "" => "as in `tokenizer.json`".to_owned(),
        other => other.to_owned(),
    };
    TokenizerCard {
        kind,
        tokens: tokenizer.vocab_size(),
        begins_with: tokenizer.bos_to_add().map(token),
        ends_at: tokenizer.end_ids().iter().map(|id| token(*id)).collect(),
    }
}

/// Weights that a token is multiplied with: half its floating-point operations.
fn active_parameters(spec: &ModelSpec, table: &TensorTable) -> u64 {
    flops_per_token(&Cost::new(spec, table)) / 2
}

fn flops_per_token(cost: &Cost) -> u64 {
    cost.layers().iter().map(|layer| layer.flops).sum::<u64>() + cost.head().flops
}

fn spec_card(spec: &ModelSpec, table: &TensorTable) -> SpecCard {
    let cost = Cost::new(spec, table);
    let mut kinds: Vec<LayerKind> = Vec::new();
    for (index, layer) in spec.layers.iter().enumerate() {
        let (attention, feed_forward) = (attention_words(layer), feed_forward_words(&layer.feed_forward));
        match kinds.iter_mut().find(|kind| kind.attention == attention && kind.feed_forward == feed_forward) {
            Some(kind) => kind.layers.push(index),
            None => kinds.push(LayerKind { layers: vec![index], attention, feed_forward }),
        }
    }
    let cache_values: u64 = cost.layers().iter().map(|layer| layer.cache_values).sum();
    let active = cost.layers().iter().map(|layer| layer.active).sum::<Bytes>();
    SpecCard {
        hidden: spec.hidden,
        vocab: spec.vocab,
        context: spec.context_length,
        layers: spec.layers.len(),
        kinds,
        cache_bytes_per_token: Bytes(cache_values * CACHE_VALUE_BYTES),
        weight_bytes: cost.weights(&cost.whole()),
        active_bytes: active + cost.head().active + cost.embedding().active,
        flops_per_token: flops_per_token(&cost),
    }
}

fn attention_words(layer: &LayerSpec) -> String {
    let mut words = match &layer.attention {
        Attention::Grouped(attention) => grouped_words(attention),
        Attention::Latent(attention) => latent_words(attention),
    };
    if layer.residual == Residual::Parallel {
        words.push_str(", beside the feed-forward");
    }
    words
}

fn grouped_words(attention: &GroupedAttention) -> String {
    let GroupedAttention { heads, kv_heads, key_width, value_width, .. } = attention;
    let widths =
        if key_width == value_width { key_width.to_string() } else { format!("{key_width}/{value_width}") };
    let mut words = match heads == kv_heads {
        true => format!("{heads} heads of {widths}"),
        false => format!("{heads} query heads on {kv_heads} key/value heads of {widths}"),
    };
    words.push_str(&match attention.visibility {
        Visibility::All => ", all positions".to_owned(),
        Visibility::Window(window) => format!(", window of {window}"),
        Visibility::Chunk(chunk) => format!(", chunks of {chunk}"),
    });
    if attention.sinks {
        words.push_str(" and sinks");
    }
    words.push_str(match attention.head_norm {
        None => "",
        Some(HeadNorm::Weighted { .. }) => ", norms of queries and keys",
        Some(HeadNorm::Plain { .. }) => ", norms of queries and keys without weights",
    });
    let input_bias = matches!(attention.projections, Projections::Separate { bias: true });
    words.push_str(match (input_bias, attention.output_bias) {
        (false, false) => "",
        (true, false) => ", biases on queries, keys and values",
        (false, true) => ", a bias on its output",
        (true, true) => ", biases",
    });
    if attention.temperature.is_some() {
        words.push_str(", queries that sharpen with their position");
    }
    words.push_str(
        &attention.rope.as_ref().map_or(", no rope".to_owned(), |rope| rope_words(rope, *key_width)),
    );
    words
}

fn latent_words(attention: &LatentAttention) -> String {
    let LatentAttention { heads, rank, plain_width, value_width, rope, .. } = attention;
    let width = plain_width + rope.width;
    let mut words =
        format!("{heads} heads of {width}/{value_width} on a latent vector of {rank}, all positions");
    words.push_str(&rope_words(rope, width));
    words
}

fn rope_words(rope: &Rope, key_width: usize) -> String {
    let mut words = format!(", rope base {}", rope.base);
    if rope.width != key_width {
        words.push_str(&format!(" on {} channels", rope.width));
    }
    match rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => words.push_str(&format!(" stretched {factor} times")),
        RopeScaling::Yarn { factor, original_context, .. } => {
            words.push_str(&format!(" stretched {factor} times from {original_context} by YaRN"));
        }
    }
    words.push_str(match rope.divisors {
        RopeDivisors::None => "",
        RopeDivisors::Fixed => " with divisors",
        RopeDivisors::ByContext { .. } => " with divisors by context",
    });
    words
}

fn feed_forward_words(feed_forward: &FeedForward) -> String {
    match feed_forward {
        FeedForward::Gated { width, activation, .. } => {
            format!("feed-forward of {width}, {}", activation_word(*activation))
        }
        FeedForward::Experts(Experts { count, used, width, activation, biases, shared_width, routing }) => {
            let biases = if *biases { ", with biases" } else { "" };
            let activation = activation_word(*activation);
            let groups = routing
                .groups
                .map_or(String::new(), |groups| format!(" from {} of {} groups", groups.used, groups.count));
            let shared = shared_width.map_or(String::new(), |width| format!(" and a shared one of {width}"));
            let routing = routing_words(routing);
            format!(
                "{count} experts of {width}, {used} for each token{groups}{shared}, {activation}{biases}{routing}"
            )
        }
    }
}

/// How a router differs from one whose weights are a softmax's.
fn routing_words(routing: &Routing) -> String {
    let mut words = String::new();
    if routing.gating == Gating::Sigmoid {
        words.push_str(", sigmoid gates");
    }
    if routing.selection_bias {
        words.push_str(", chosen with a bias");
    }
    if routing.scale != 1.0 {
        words.push_str(&format!(", weights times {}", routing.scale));
    }
    if routing.weighing == Weighing::Inputs {
        words.push_str(", weights on the inputs");
    }
    words
}

fn activation_word(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "SiLU",
        Activation::Gelu => "GELU",
        Activation::ClampedSwish => "clamped swish",
    }
}

/// What differs from a llama, beyond what the layers' kinds say.
fn unusual_parts(spec: &ModelSpec) -> Vec<String> {
    let mut parts = Vec::new();
    if spec.head.tied {
        parts.push("the output matrix is the token embedding: a pipeline holds it at both ends".to_owned());
    }
    if spec.embedding_scale != 1.0 {
        parts.push(format!("the embedding is multiplied by {}", spec.embedding_scale));
    }
    if spec.head.logit_scale != 1.0 {
        parts.push(format!("the logits are multiplied by {}", spec.head.logit_scale));
    }
    if matches!(spec.head.norm, Norm::Layer { .. }) {
        parts.push("LayerNorm instead of RMS norm".to_owned());
    }
    if spec.skipped_layers > 0 {
        let layers = spec.skipped_layers;
        parts.push(format!("{layers} layers at the end predict tokens beyond the next and are not run"));
    }
    let any = |part: fn(&LayerSpec) -> bool| spec.layers.iter().any(part);
    if any(|layer| layer.attention_post_norm.is_some() || layer.feed_forward_post_norm.is_some()) {
        parts.push("norms after attention and feed-forward".to_owned());
    }
    parts
}

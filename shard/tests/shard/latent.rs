//! DeepSeek: latent attention in both layouts, its experts, the layers that are skipped, and what all of it takes.

use brigade_shard::cost::{Cost, LatentWidths, Room, Widths};
use brigade_shard::family::SpecError;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::spec::{
    Attention, ExpertGroups, FeedForward, Gating, GroupMerit, LatentAttention, LatentLayout, LatentQuery,
    ModelSpec, RopeScaling,
};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::{LayerRole, Role, TensorError, TensorTable};
use brigade_shard::units::Bytes;

use crate::gguf_writer::{Gguf, Meta, OnDisk};

const HIDDEN: u64 = 64;
const VOCAB: u64 = 40;
const HEADS: u64 = 3;
const RANK: u64 = 32;
const QUERY_RANK: u64 = 48;
const PLAIN: u64 = 16;
const TURNED: u64 = 8;
const VALUE: u64 = 24;
const EXPERTS: u64 = 9;
const EXPERT_WIDTH: u64 = 40;
const FEED_FORWARD: u64 = 96;

/// A V3 of a dense layer, and then layers with experts, of which the last `further` predict further tokens.
fn v3(layers: u32, further: u32) -> Gguf {
    let mut file = Gguf::default()
        .key("general.architecture", "deepseek2")
        .tensor("token_embd.weight", &[HIDDEN, VOCAB], TensorType::F32)
        .tensor("output_norm.weight", &[HIDDEN], TensorType::F32)
        .tensor("output.weight", &[HIDDEN, VOCAB], TensorType::F32);
    for (key, value) in [
        ("context_length", Meta::U32(4096)),
        ("embedding_length", Meta::U32(HIDDEN as u32)),
        ("block_count", Meta::U32(layers)),
        ("feed_forward_length", Meta::U32(FEED_FORWARD as u32)),
        ("attention.head_count", Meta::U32(HEADS as u32)),
        ("attention.head_count_kv", Meta::U32(1)),
        ("attention.key_length", Meta::U32((RANK + TURNED) as u32)),
        ("attention.value_length", Meta::U32(RANK as u32)),
        ("attention.key_length_mla", Meta::U32((PLAIN + TURNED) as u32)),
        ("attention.value_length_mla", Meta::U32(VALUE as u32)),
        ("attention.kv_lora_rank", Meta::U32(RANK as u32)),
        ("attention.q_lora_rank", Meta::U32(QUERY_RANK as u32)),
        ("attention.layer_norm_rms_epsilon", Meta::F32(1e-6)),
        ("rope.dimension_count", Meta::U32(TURNED as u32)),
        ("rope.freq_base", Meta::F32(10000.0)),
        ("rope.scaling.type", "yarn".into()),
        ("rope.scaling.factor", Meta::F32(40.0)),
        ("rope.scaling.original_context_length", Meta::U32(128)),
        ("rope.scaling.yarn_log_multiplier", Meta::F32(0.1)),
        ("leading_dense_block_count", Meta::U32(1)),
        ("expert_count", Meta::U32(EXPERTS as u32)),
        ("expert_used_count", Meta::U32(2)),
        ("expert_shared_count", Meta::U32(2)),
        ("expert_feed_forward_length", Meta::U32(EXPERT_WIDTH as u32)),
        ("expert_weights_scale", Meta::F32(2.5)),
        ("expert_weights_norm", true.into()),
        ("expert_gating_func", Meta::U32(2)),
        ("expert_group_count", Meta::U32(3)),
        ("expert_group_used_count", Meta::U32(2)),
        ("nextn_predict_layers", Meta::U32(further)),
    ] {
        file = file.key(&format!("deepseek2.{key}"), value);
    }
    for layer in 0..layers {
        for (name, dims) in attention().into_iter().chain(feed_forward(layer > 0)) {
            file = file.tensor(&format!("blk.{layer}.{name}"), &dims, TensorType::F32);
        }
    }
    for layer in layers - further..layers {
        let name = |name: &str| format!("blk.{layer}.nextn.{name}.weight");
        file = file.tensor(&name("eh_proj"), &[2 * HIDDEN, HIDDEN], TensorType::F32).tensor(
            &name("enorm"),
            &[HIDDEN],
            TensorType::F32,
        );
    }
    file
}

fn attention() -> Vec<(&'static str, Vec<u64>)> {
    vec![
        ("attn_norm.weight", vec![HIDDEN]),
        ("attn_q_a.weight", vec![HIDDEN, QUERY_RANK]),
        ("attn_q_a_norm.weight", vec![QUERY_RANK]),
        ("attn_q_b.weight", vec![QUERY_RANK, HEADS * (PLAIN + TURNED)]),
        ("attn_kv_a_mqa.weight", vec![HIDDEN, RANK + TURNED]),
        ("attn_kv_a_norm.weight", vec![RANK]),
        ("attn_k_b.weight", vec![PLAIN, RANK, HEADS]),
        ("attn_v_b.weight", vec![RANK, VALUE, HEADS]),
        ("attn_output.weight", vec![HEADS * VALUE, HIDDEN]),
        ("ffn_norm.weight", vec![HIDDEN]),
    ]
}

fn feed_forward(experts: bool) -> Vec<(&'static str, Vec<u64>)> {
    if !experts {
        return vec![
            ("ffn_gate.weight", vec![HIDDEN, FEED_FORWARD]),
            ("ffn_up.weight", vec![HIDDEN, FEED_FORWARD]),
            ("ffn_down.weight", vec![FEED_FORWARD, HIDDEN]),
        ];
    }
    vec![
        ("ffn_gate_inp.weight", vec![HIDDEN, EXPERTS]),
        ("exp_probs_b.bias", vec![EXPERTS]),
        ("ffn_gate_exps.weight", vec![HIDDEN, EXPERT_WIDTH, EXPERTS]),
        ("ffn_up_exps.weight", vec![HIDDEN, EXPERT_WIDTH, EXPERTS]),
        ("ffn_down_exps.weight", vec![EXPERT_WIDTH, HIDDEN, EXPERTS]),
        ("ffn_gate_shexp.weight", vec![HIDDEN, 2 * EXPERT_WIDTH]),
        ("ffn_up_shexp.weight", vec![HIDDEN, 2 * EXPERT_WIDTH]),
        ("ffn_down_shexp.weight", vec![2 * EXPERT_WIDTH, HIDDEN]),
    ]
}

/// The same model as older files have it.
fn joined(layers: u32) -> Gguf {
    let mut file = v3(layers, 0)
        .without("deepseek2.attention.key_length_mla")
        .without("deepseek2.attention.value_length_mla")
        .key("deepseek2.attention.head_count_kv", HEADS as u32)
        .key("deepseek2.attention.key_length", (PLAIN + TURNED) as u32)
        .key("deepseek2.attention.value_length", VALUE as u32);
    for layer in 0..layers {
        let name = |name: &str| format!("blk.{layer}.attn_{name}_b.weight");
        file = file.without_tensor(&name("k")).without_tensor(&name("v"));
        file = file.tensor(&name("kv"), &[RANK, HEADS * (PLAIN + VALUE)], TensorType::F32);
    }
    file
}

fn read(file: &Gguf) -> Result<(ModelSpec, TensorTable), String> {
    let disk = OnDisk::new(file);
    let header = disk.header();
    let spec = ModelSpec::from_header(&header).map_err(|error: SpecError| error.to_string())?;
    let table = TensorTable::new(&header, &spec).map_err(|error: TensorError| error.to_string())?;
    Ok((spec, table))
}

fn latent(spec: &ModelSpec) -> &LatentAttention {
    match &spec.layers[1].attention {
        Attention::Latent(attention) => attention,
        Attention::Grouped(_) => panic!("a DeepSeek has latent attention"),
    }
}

#[test]
fn both_layouts_are_the_same_attention() {
    let (new, _) = read(&v3(3, 0)).unwrap();
    let (old, _) = read(&joined(3)).unwrap();
    let attention = latent(&new);
    assert_eq!(
        (attention.heads, attention.rank, attention.plain_width, attention.value_width),
        (3, 32, 16, 24)
    );
    assert!(matches!(attention.query, LatentQuery::Compressed { rank: 48, .. }));
    assert_eq!((attention.layout, latent(&old).layout), (LatentLayout::Split, LatentLayout::Joined));
    assert_eq!(&LatentAttention { layout: LatentLayout::Joined, ..attention.clone() }, latent(&old));
    // YaRN leaves cosine and sine alone, and raises the scores' factor by the square of its magnitude.
    let magnitude = 1.0 + 0.1 * 40f32.ln();
    assert!((attention.scale - magnitude * magnitude / 24f32.sqrt()).abs() < 1e-6, "{}", attention.scale);
    assert_eq!((attention.rope.magnitude, attention.rope.width), (1.0, 8));
    assert!(matches!(attention.rope.scaling, RopeScaling::Yarn { factor: 40.0, original_context: 128, .. }));
}

#[test]
fn experts_are_gated_as_the_file_says() {
    let experts = |file: &Gguf| match read(file).unwrap().0.layers[1].feed_forward {
        FeedForward::Experts(experts) => experts,
        FeedForward::Gated { .. } => panic!("the second layer has experts"),
    };
    let v3 = experts(&v3(3, 0));
    assert_eq!((v3.count, v3.used, v3.width, v3.shared_width), (9, 2, 40, Some(80)));
    assert_eq!(v3.routing.groups, Some(ExpertGroups { count: 3, used: 2, merit: GroupMerit::TwoBest }));
    assert_eq!((v3.routing.gating, v3.routing.selection_bias), (Gating::Sigmoid, true));
    assert_eq!((v3.routing.renormalised, v3.routing.scale), (true, 2.5));

    let v2 = joined(3)
        .without("deepseek2.expert_gating_func")
        .without("deepseek2.expert_weights_norm")
        .without("deepseek2.expert_group_count")
        .without("deepseek2.expert_group_used_count")
        .without_tensor("blk.1.exp_probs_b.bias")
        .without_tensor("blk.2.exp_probs_b.bias");
    let v2 = experts(&v2);
    assert_eq!((v2.routing.gating, v2.routing.selection_bias), (Gating::Softmax, false));
    assert_eq!((v2.routing.renormalised, v2.routing.groups), (false, None));
}

#[test]
fn layers_that_predict_further_tokens_are_known_and_not_run() {
    let (spec, table) = read(&v3(3, 1)).unwrap();
    assert_eq!((spec.layers.len(), spec.skipped_layers), (2, 1));
    assert_eq!(table.get(Role::Layer(2, LayerRole::AttentionNorm)), None);
    let stranger = v3(3, 1).tensor("blk.2.nextn.extra.weight", &[HIDDEN], TensorType::F32);
    assert!(read(&stranger).unwrap_err().contains("blk.2.nextn.extra.weight"));
    let unnamed = v3(3, 1).without("deepseek2.nextn_predict_layers");
    assert!(read(&unnamed).unwrap_err().contains("no `deepseek2.nextn_predict_layers`"));
}

#[test]
fn what_contradicts_itself_is_refused_by_key() {
    for (key, value, expected) in [
        ("attention.head_count_kv", Meta::U32(3), "must be 1"),
        ("attention.key_length", Meta::U32(24), "must be 40"),
        ("attention.value_length", Meta::U32(24), "must be 32"),
        ("rope.dimension_count", Meta::U32(24), "below the width of a key head"),
        ("rope.scaling.type", "linear".into(), "only `none` and `yarn`"),
        ("rope.scaling.yarn_log_multiplier", Meta::F32(0.0), "above 0"),
        ("leading_dense_block_count", Meta::U32(4), "between 0 and 3"),
        ("expert_gating_func", Meta::U32(3), "sigmoid"),
        ("expert_group_count", Meta::U32(4), "divide"),
        ("expert_group_count", Meta::U32(9), "at least two in each group"),
        ("expert_group_used_count", Meta::U32(4), "at most 3"),
        ("expert_used_count", Meta::U32(7), "hold the 7 experts"),
        ("nextn_predict_layers", Meta::U32(3), "between 0 and 2"),
        ("attention.temperature_scale", Meta::F32(0.1), "not known"),
    ] {
        let message = read(&v3(3, 0).key(&format!("deepseek2.{key}"), value)).unwrap_err();
        let named = message.contains(key) || key == "expert_used_count";
        assert!(named && message.contains(expected), "{key}: {message}");
    }
}

#[test]
fn the_cache_keeps_latent_vectors_and_a_row_reads_its_own_experts() {
    const ROOM: Room =
        Room { cache_tokens: 64, context: 64, step_rows: 8, sequences: 1, cache_value_bytes: 2 };
    for file in [v3(3, 0), joined(3)] {
        let (spec, table) = read(&file).unwrap();
        let cost = Cost::new(&spec, &table);
        let layer = cost.layers()[1];
        assert_eq!(layer.cache_values, RANK + TURNED);
        let shard = Shard::of(LayerRange { start: 0, end: 3 }, 3);
        assert_eq!(cost.memory(&shard, &ROOM).cache, Bytes(3 * 64 * 2 * (RANK + TURNED)));

        let attention = HIDDEN * QUERY_RANK
            + QUERY_RANK * HEADS * (PLAIN + TURNED)
            + HIDDEN * (RANK + TURNED)
            + RANK * HEADS * (PLAIN + VALUE)
            + HEADS * VALUE * HIDDEN;
        let experts = HIDDEN * EXPERTS + 3 * HIDDEN * EXPERT_WIDTH * (2 + 2);
        assert_eq!(layer.flops, 2 * (attention + experts));
        let vectors = 2 * HIDDEN + QUERY_RANK + RANK + EXPERTS;
        assert_eq!(layer.active, Bytes(4 * (attention + experts + vectors)));

        let widths = Widths::of(&spec);
        assert_eq!((widths.query, widths.key), (HEADS * (RANK + TURNED), RANK + TURNED));
        assert_eq!((widths.value, widths.attention), (RANK, HEADS * RANK));
        let latent = LatentWidths::of(latent(&spec));
        assert_eq!((latent.compressed, latent.query, latent.heads, latent.turned), (48, 72, 72, 8));
        assert_eq!(widths.latent, 48 + 72 + 72 + 8);
    }
}

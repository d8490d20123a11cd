//! From metadata to a spec, and from the spec to tensors.

use brigade_shard::family::SpecError;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::spec::{
    Attention, FeedForward, GroupedAttention, ModelSpec, Norm, Rope, RopeDivisors, RopePairing, RopeScaling,
    Temperature, Visibility,
};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::{LayerRole, Role, TensorError, TensorTable};

use crate::gguf_writer::{Gguf, Meta, OnDisk};
use crate::tiny_llama::{self, FEED_FORWARD, HIDDEN, KV, VOCAB};

fn spec_of(file: &Gguf) -> Result<ModelSpec, SpecError> {
    let disk = OnDisk::new(file);
    ModelSpec::from_header(&disk.header())
}

fn attention(spec: &ModelSpec, layer: usize) -> &GroupedAttention {
    match &spec.layers[layer].attention {
        Attention::Grouped(attention) => attention,
        Attention::Latent(_) => panic!("layer {layer} has latent attention"),
    }
}

fn rope(attention: &GroupedAttention) -> &Rope {
    attention.rope.as_ref().unwrap()
}

fn table_of(file: &Gguf) -> Result<TensorTable, TensorError> {
    let disk = OnDisk::new(file);
    let header: Header = disk.header();
    TensorTable::new(&header, &ModelSpec::from_header(&header).unwrap())
}

#[test]
fn a_llama_file_is_read_whole() {
    let spec = spec_of(&tiny_llama::file(3)).unwrap();
    assert_eq!((spec.name.as_str(), spec.hidden, spec.vocab), ("tiny", HIDDEN as usize, VOCAB as usize));
    assert_eq!((spec.context_length, spec.layers.len()), (256, 3));
    assert!(spec.head.tied);
    let attention = attention(&spec, 2);
    assert_eq!((attention.heads, attention.kv_heads), (4, 2));
    assert_eq!((attention.key_width, attention.value_width, attention.scale), (16, 16, 0.25));
    let rope = attention.rope.as_ref().unwrap();
    assert_eq!((rope.width, rope.pairing, rope.base), (16, RopePairing::Adjacent, 10000.0));
    assert_eq!((rope.scaling, rope.divisors), (RopeScaling::None, RopeDivisors::None));
    assert_eq!(spec.head.norm, Norm::Rms { epsilon: 1e-5 });
    assert!(!spec_of(&tiny_llama::untied(1)).unwrap().head.tied);
}

#[test]
fn what_a_file_leaves_out_has_its_familys_default() {
    let file = tiny_llama::file(1)
        .without("llama.attention.head_count_kv")
        .without("llama.rope.dimension_count")
        .without("llama.rope.freq_base")
        .without("general.name");
    let spec = spec_of(&file).unwrap();
    let attention = attention(&spec, 0);
    assert_eq!((attention.kv_heads, rope(attention).width, rope(attention).base), (4, 16, 10000.0));
    assert_eq!(spec.name, "llama");
}

#[test]
fn layers_may_differ_in_heads_and_widths() {
    let file = tiny_llama::file(2)
        .key("llama.attention.head_count_kv", Meta::I32s(vec![2, 4]))
        .key("llama.feed_forward_length", Meta::I32s(vec![96, 64]));
    let spec = spec_of(&file).unwrap();
    assert_eq!((attention(&spec, 0).kv_heads, attention(&spec, 1).kv_heads), (2, 4));
    let width = |layer: usize| match spec.layers[layer].feed_forward {
        FeedForward::Gated { width, .. } => width,
        FeedForward::Experts(experts) => experts.width,
    };
    assert_eq!((width(0), width(1)), (96, 64));
    // The second layer's tensors are still those of the first one's shape.
    let error = table_of(&file).unwrap_err();
    assert!(matches!(&error, TensorError::Shape { name, .. } if name == "blk.1.attn_k.weight"), "{error}");
}

#[test]
fn heads_may_be_wider_than_their_share_of_the_hidden_state() {
    let file = tiny_llama::file(1)
        .key("llama.attention.key_length", 24)
        .key("llama.attention.value_length", 8)
        .key("llama.rope.dimension_count", 24);
    let spec = spec_of(&file).unwrap();
    let attention = attention(&spec, 0);
    assert_eq!((attention.key_width, attention.value_width, rope(attention).width), (24, 8, 24));
    assert_eq!(attention.scale, 1.0 / 24f32.sqrt());
    let error = table_of(&file).unwrap_err();
    let wanted = TensorError::Shape {
        name: "blk.0.attn_q.weight".to_owned(),
        found: vec![HIDDEN, HIDDEN],
        wanted: vec![HIDDEN, 96],
    };
    assert_eq!(error, wanted);
}

#[test]
fn linear_rope_scaling_divides_positions() {
    let scaled = |kind: &str, key: &str, factor: f32| {
        let file = tiny_llama::file(1).key("llama.rope.scaling.type", kind).key(key, factor);
        rope(attention(&spec_of(&file).unwrap(), 0)).scaling
    };
    let linear = |factor| RopeScaling::Linear { factor };
    assert_eq!(scaled("linear", "llama.rope.scaling.factor", 4.0), linear(4.0));
    assert_eq!(scaled("linear", "llama.rope.scale_linear", 2.0), linear(2.0));
    assert_eq!(scaled("none", "llama.rope.scaling.factor", 4.0), RopeScaling::None);
    assert_eq!(scaled("linear", "llama.rope.scaling.factor", 0.0), RopeScaling::None);
}

#[test]
fn yarn_has_its_magnitude_and_default_betas() {
    let yarn = || {
        tiny_llama::file(1)
            .key("llama.rope.scaling.type", "yarn")
            .key("llama.rope.scaling.factor", 4.0)
            .key("llama.rope.scaling.original_context_length", 64)
    };
    let read = |file: &Gguf| rope(attention(&spec_of(file).unwrap(), 0)).clone();
    let rope = read(&yarn());
    let scaling = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        whole_pairs: true,
    };
    assert_eq!((rope.scaling, rope.magnitude), (scaling, 1.0 + 0.1 * 4f32.ln()));
    let rope = read(
        &yarn().key("llama.rope.scaling.attn_factor", 0.5).key("llama.rope.scaling.yarn_beta_fast", 16.0),
    );
    let scaling = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 64,
        beta_fast: 16.0,
        beta_slow: 1.0,
        whole_pairs: true,
    };
    assert_eq!((rope.scaling, rope.magnitude), (scaling, 0.5 * (1.0 + 0.1 * 4f32.ln())));
    for key in ["type", "factor", "original_context_length"].map(|key| format!("llama.rope.scaling.{key}")) {
        let message = spec_of(&yarn().without(&key)).unwrap_err().to_string();
        assert!(message.contains(&format!("no `{key}`")), "{message}");
    }
    for (key, value) in
        [("factor", 0.5), ("yarn_beta_slow", 0.0), ("attn_factor", 0.0), ("yarn_ext_factor", 1.0)]
    {
        let key = format!("llama.rope.scaling.{key}");
        let message = spec_of(&yarn().key(&key, value)).unwrap_err().to_string();
        assert!(message.contains(&key), "{message}");
    }
}

#[test]
fn rope_divisors_are_used_where_the_file_has_them() {
    let file = tiny_llama::file(2).tensor("rope_freqs.weight", &[8], TensorType::F32);
    assert_eq!(rope(attention(&spec_of(&file).unwrap(), 0)).divisors, RopeDivisors::Fixed);
    let table = table_of(&file).unwrap();
    let shard = Shard::of(LayerRange { start: 1, end: 2 }, 2);
    assert!(table.of(&shard).iter().any(|(role, _)| *role == Role::RopeFrequencies));
    let head_alone = Shard { layers: LayerRange { start: 2, end: 2 }, embedding: false, head: true };
    assert!(!table.of(&head_alone).iter().any(|(role, _)| *role == Role::RopeFrequencies));

    let wrong = tiny_llama::file(1).tensor("rope_freqs.weight", &[16], TensorType::F32);
    assert!(matches!(table_of(&wrong).unwrap_err(), TensorError::Shape { .. }));
    let wrong = tiny_llama::file(1).tensor("rope_freqs.weight", &[8], TensorType::F16);
    assert!(matches!(table_of(&wrong).unwrap_err(), TensorError::Type { .. }));
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let file = || tiny_llama::file(2);
    for (file, expected) in [
        (file().key("general.architecture", "mamba"), "`mamba` is not supported; these are: llama"),
        (file().without("general.architecture"), "no `general.architecture`"),
        (file().key("llama.expert_count", 8), "no `llama.expert_used_count`"),
        (file().key("llama.rope.scaling.type", "longrope"), "`llama.rope.scaling.type` is longrope"),
        (file().key("llama.attention.sliding_window", 128), "`llama.attention.sliding_window` is 128"),
        (file().key("llama.attention.causal", false), "`llama.attention.causal` is false"),
        (
            file().key("llama.attention.clamp_kqv", 8.0),
            "not known for its architecture: llama.attention.clamp_kqv",
        ),
        (file().key("llama.final_logit_softcapping", 30.0), "llama.final_logit_softcapping"),
    ] {
        let message = spec_of(&file).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected:?} in {message:?}");
    }
}

#[test]
fn every_needed_key_is_missed_by_name() {
    for key in [
        "llama.context_length",
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let message = spec_of(&tiny_llama::file(1).without(key)).unwrap_err().to_string();
        assert!(message.contains(&format!("no `{key}`")), "{message}");
    }
}

#[test]
fn impossible_values_are_refused_by_key() {
    for (key, value) in [
        ("llama.embedding_length", Meta::U32(0)),
        ("llama.embedding_length", Meta::U32((1 << 20) + 1)),
        ("llama.block_count", Meta::U32(0)),
        ("llama.block_count", Meta::U32(1 << 13)),
        ("llama.block_count", Meta::U64(u64::MAX)),
        ("llama.context_length", Meta::U32(0)),
        ("llama.feed_forward_length", Meta::U32(0)),
        ("llama.feed_forward_length", Meta::I32s(vec![96])),
        ("llama.feed_forward_length", Meta::I32s(vec![96, -1])),
        ("llama.attention.head_count", Meta::U32(0)),
        ("llama.attention.head_count", Meta::U32(5)),
        ("llama.attention.head_count_kv", Meta::U32(3)),
        ("llama.attention.head_count_kv", Meta::U32(0)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(-1.0)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::U32(1)),
        ("llama.rope.dimension_count", Meta::U32(15)),
        ("llama.rope.dimension_count", Meta::U32(18)),
        ("llama.rope.freq_base", Meta::F32(0.0)),
        ("llama.rope.freq_base", Meta::F32(f32::INFINITY)),
        ("llama.rope.scaling.factor", Meta::F32(-2.0)),
        ("llama.attention.key_length", Meta::U32(1 << 15)),
    ] {
        let message = spec_of(&tiny_llama::file(2).key(key, value.clone())).unwrap_err().to_string();
        assert!(message.contains(key), "{key} = {value:?}: {message}");
    }
}

#[test]
fn keys_that_say_nothing_about_the_computation_are_let_be() {
    let file = tiny_llama::file(1)
        .key("llama.vocab_size", 99)
        .key("llama.rope.scaling.finetuned", false)
        .key("llama.rope.scaling.original_context_length", 128)
        .key("llama.expert_count", 0)
        .key("llama.expert_used_count", 0)
        .key("llama.attention.sliding_window", 4096)
        .key("general.quantization_version", 2)
        .key("quantize.imatrix.file", "x")
        .key("other.thing", 1);
    assert!(spec_of(&file).is_ok());
}

#[test]
fn the_vocabulary_and_the_embedding_must_agree() {
    let file = tiny_llama::file(1).key("tokenizer.ggml.tokens", vec!["a", "b"]);
    let message = spec_of(&file).unwrap_err().to_string();
    assert!(message.contains("40 rows") && message.contains("2 tokens"), "{message}");
    let message = spec_of(&tiny_llama::file(1).without_tensor("token_embd.weight")).unwrap_err().to_string();
    assert!(message.contains("`token_embd.weight` is missing"), "{message}");
}

#[test]
fn tensors_are_found_by_role_and_checked() {
    let table = table_of(&tiny_llama::untied(2)).unwrap();
    let dims = |role| table.get(role).unwrap().dims.clone();
    assert_eq!(dims(Role::TokenEmbedding), [HIDDEN, VOCAB]);
    assert_eq!(dims(Role::Layer(1, LayerRole::Key)), [HIDDEN, KV]);
    assert_eq!(dims(Role::Layer(0, LayerRole::Down)), [FEED_FORWARD, HIDDEN]);
    assert_eq!(table.get(Role::Layer(2, LayerRole::Down)), None);
    assert_eq!(table.head_role(), Role::Output);
    assert_eq!(table_of(&tiny_llama::file(2)).unwrap().head_role(), Role::TokenEmbedding);
}

#[test]
fn missing_unread_and_impossible_tensors_are_named() {
    let missing = tiny_llama::file(2).without_tensor("blk.1.ffn_up.weight");
    assert_eq!(
        table_of(&missing).unwrap_err(),
        TensorError::Missing { name: "blk.1.ffn_up.weight".to_owned() }
    );
    let unread = tiny_llama::file(1).tensor("blk.0.attn_q.bias", &[HIDDEN], TensorType::F32);
    let message = table_of(&unread).unwrap_err().to_string();
    assert!(message.contains("1 tensors") && message.contains("blk.0.attn_q.bias"), "{message}");
    let beyond = tiny_llama::file(2).key("llama.block_count", 1);
    let message = table_of(&beyond).unwrap_err().to_string();
    assert!(message.contains("9 tensors") && message.contains("blk.1."), "{message}");
    let integers = tiny_llama::file(1).without_tensor("blk.0.attn_q.weight");
    let integers = integers.tensor("blk.0.attn_q.weight", &[HIDDEN, HIDDEN], TensorType::I8);
    assert!(matches!(table_of(&integers).unwrap_err(), TensorError::Type { found: TensorType::I8, .. }));
    let norm = tiny_llama::file(1).without_tensor("output_norm.weight");
    let norm = norm.tensor("output_norm.weight", &[HIDDEN], TensorType::Q8_0);
    assert!(matches!(table_of(&norm).unwrap_err(), TensorError::Type { found: TensorType::Q8_0, .. }));
}

#[test]
fn every_cut_of_a_model_holds_every_tensor_and_no_other() {
    for file in [tiny_llama::file(4), tiny_llama::untied(4)] {
        let table = table_of(&file).unwrap();
        for cut in 1..4 {
            let first = Shard::of(LayerRange { start: 0, end: cut }, 4);
            let last = Shard::of(LayerRange { start: cut, end: 4 }, 4);
            let mut roles: Vec<Role> =
                [first, last].iter().flat_map(|shard| table.of(shard)).map(|(r, _)| r).collect();
            roles.sort();
            let shared = if table.head_role() == Role::TokenEmbedding { 1 } else { 0 };
            assert_eq!(roles.len(), file.tensors.len() + shared);
            roles.dedup();
            assert_eq!(roles.len(), file.tensors.len());
        }
        let whole = Shard::of(LayerRange { start: 0, end: 4 }, 4);
        assert_eq!(table.of(&whole).len(), file.tensors.len());
    }
}

#[test]
fn visibility_and_temperature_follow_their_formulas() {
    let first = |visibility: Visibility, positions: [usize; 5]| positions.map(|at| visibility.first(at));
    assert_eq!(first(Visibility::All, [0, 1, 7, 8, 9000]), [0; 5]);
    assert_eq!(first(Visibility::Window(8), [0, 7, 8, 9, 9000]), [0, 0, 1, 2, 8993]);
    assert_eq!(first(Visibility::Chunk(8), [0, 7, 8, 15, 9001]), [0, 0, 8, 8, 9000]);
    let temperature = Temperature { period: 8192, scale: 0.1 };
    let factors = [0, 8190, 8191, 16382, 16383, 1_000_000].map(|position| temperature.factor(position));
    // ln 2, ln 3 and ln(122 + 1).
    let wanted = [1.0, 1.0, 1.0693147, 1.0693147, 1.1098612, 1.4812184];
    assert_eq!(factors, wanted);
}

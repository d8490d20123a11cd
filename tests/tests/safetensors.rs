//! Every family in safetensors, on tiny random models that Hugging Face's transformers have run: what it computes,
//! wherever it is cut, chats with it, and what is said of directories that lack a part.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::{fs, iter};

use brigade_proto::control::CacheDtype;
use brigade_shard::model_file::Header;
use brigade_shard::spec::{Attention, ModelSpec, Norm, Temperature};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorTable;
use brigade_tests::chain::Chain;
use brigade_tests::cluster::{Cluster, Up};
use brigade_tests::reference::{self, Distance};
use brigade_worker::weights::{LoadProgress, ModelFiles, TensorSource};
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest distance from the log-probabilities of transformers, which compute in F32 with whatever weights. The cache is
/// F32, too: the rounding of another one decides between experts that a router likes all but alike.
const BOUND: f64 = 0.002;

#[derive(Deserialize)]
struct Variant {
    name: String,
    flags: String,
    paths: Vec<Scored>,
}

#[derive(Deserialize)]
struct Scored {
    path: Vec<u32>,
    exact: Vec<Option<f64>>,
}

impl Variant {
    /// The model's directory, made by its generator.
    fn made(&self, folder: &Path) -> PathBuf {
        make(&folder.join(&self.name), &self.flags)
    }

    /// A model of the same values, none of them in blocks, which our products compute with as they are.
    fn made_without_blocks(&self, folder: &Path) -> PathBuf {
        let widened = if self.has_blocks() { " --widened" } else { "" };
        make(&folder.join(&self.name).join("widened"), &format!("{}{widened}", self.flags))
    }

    fn has_blocks(&self) -> bool {
        self.flags.contains("--mxfp4")
    }

    /// Where our scores are too far from the exact ones.
    fn complaint(&self, found: &[Vec<f64>]) -> Option<String> {
        let mut distance = Distance::default();
        // The first token of a path has nothing before it.
        let after = |scores: &Vec<f64>| iter::once(None).chain(scores.iter().copied().map(Some)).collect();
        let found: Vec<Vec<Option<f64>>> = found.iter().map(after).collect();
        for (found, scored) in found.iter().zip(&self.paths) {
            distance.add(found, &scored.exact);
        }
        println!("{:14} mean {:.6}, largest {:.6}", self.name, distance.mean(), distance.largest);
        if distance.largest <= BOUND {
            return None;
        }
        let far = |(a, b): (&Option<f64>, &Option<f64>)| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() > BOUND,
            _ => false,
        };
        let first = found.iter().zip(&self.paths).find_map(|(found, scored)| {
            let token = found.iter().zip(&scored.exact).position(far)?;
            Some(format!("token {token} of the path of {}", scored.path.len()))
        });
        Some(format!("{} ({}): first difference at {first:?}", self.name, self.flags))
    }
}

/// Makes a model in `folder`, as the generator's flags say, and gives the folder back.
fn make(folder: &Path, flags: &str) -> PathBuf {
    reference::make("make_safetensors.py", folder, flags);
    folder.to_owned()
}

fn variants() -> Vec<Variant> {
    #[derive(Deserialize)]
    struct Document {
        variants: Vec<Variant>,
    }
    reference::read::<Document>("safetensors.json").variants
}

fn read(folder: &Path) -> Result<ModelSpec, String> {
    let header = Header::open(folder).map_err(|error| error.to_string())?;
    let spec = ModelSpec::from_header(&header).map_err(|error| error.to_string())?;
    TensorTable::new(&header, &spec).map_err(|error| error.to_string())?;
    Ok(spec)
}

#[test]
fn every_family_computes_what_transformers_compute_wherever_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for variant in variants() {
        let scores = scores_wherever_cut(&variant, &variant.made_without_blocks(folder.path()));
        wrong.extend(variant.complaint(&scores));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The scores of a variant's paths by `model`, which are the same bits in one stage, two, and one for each layer.
fn scores_wherever_cut(variant: &Variant, model: &Path) -> Vec<Vec<f64>> {
    let layers = read(model).unwrap().layers.len();
    let header = Header::open(model).unwrap();
    let mut first = None;
    for layers_of_each in [layers, layers.div_ceil(2), 1] {
        let of_path = |scored: &Scored| {
            let mut chain = Chain::load(&header, layers_of_each, scored.path.len(), CacheDtype::F32);
            assert_eq!(chain.stages(), layers.div_ceil(layers_of_each));
            chain.scores(&scored.path, 1)
        };
        let scores: Vec<Vec<f64>> = variant.paths.iter().map(of_path).collect();
        let cut = format!("{} in stages of {layers_of_each}", variant.name);
        assert_eq!(first.get_or_insert_with(|| scores.clone()), &scores, "{cut}");
    }
    first.unwrap_or_default()
}

/// The values of a tensor of experts, be it of BF16 or MXFP4, as they are read for the weights.
fn values(folder: &Path, name: &str) -> Vec<f32> {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let header = Header::open(folder).unwrap();
    let progress = LoadProgress::new();
    let files = ModelFiles::open(&header, &progress).unwrap();
    let info = header.tensor(name).unwrap();
    let mut bytes = vec![0; info.bytes.0 as usize];
    // In parts that are neither rows nor blocks.
    for (part, out) in bytes.chunks_mut(1001).enumerate() {
        files.tensor(info).read_at(part as u64 * 1001, out).unwrap();
    }
    match info.kind {
        TensorType::BF16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
            .collect(),
        TensorType::MXFP4 => {
            let value = |code: u8, scale: u8| {
                let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                sign * MAGNITUDES[usize::from(code & 7)] * (f32::from(scale) - 127.0).exp2()
            };
            let block = |block: &[u8; 17]| {
                let halves = [0, 4].map(|shift| block.map(|byte| value(byte >> shift & 15, block[0])));
                [&halves[0][1..], &halves[1][1..]].concat()
            };
            bytes.as_chunks().0.iter().flat_map(block).collect()
        }
        kind => panic!("{name} is {kind}"),
    }
}

/// Largest mean distance that rounded activations make, which products with blocks have.
const BOUND_WITH_BLOCKS: f64 = 0.1;

#[test]
fn experts_in_blocks_have_the_values_of_the_file_wherever_the_model_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    for variant in variants().iter().filter(|variant| variant.has_blocks()) {
        let (model, widened) = (variant.made(folder.path()), variant.made_without_blocks(folder.path()));
        for name in ["blk.0.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"] {
            let (found, wanted) = (values(&model, name), values(&widened, name));
            assert!(wanted.iter().any(|value| *value < 0.0), "{name} has values");
            assert!(found == wanted, "{name} of {}", variant.name);
        }
        let mut distance = Distance::default();
        for (found, scored) in scores_wherever_cut(variant, &model).iter().zip(&variant.paths) {
            let found: Vec<Option<f64>> = iter::once(None).chain(found.iter().copied().map(Some)).collect();
            distance.add(&found, &scored.exact);
        }
        println!("{} with rounded activations: mean {:.4}", variant.name, distance.mean());
        assert!(distance.mean() < BOUND_WITH_BLOCKS, "{}: {distance:?}", variant.name);
    }
}

fn variant(name: &str) -> Variant {
    variants().into_iter().find(|variant| variant.name == name).unwrap()
}

fn config(folder: &Path) -> serde_json::Map<String, Value> {
    let text = fs::read(folder.join("config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn set_config(folder: &Path, config: &serde_json::Map<String, Value>) {
    fs::write(folder.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
}

/// Keys that a configuration may leave out, since they say nothing about the computation, or the class that they are
/// written for has a value of its own that published files rely on.
fn may_be_missing(family: &str, key: &str) -> bool {
    let harmless = ["model_type", "torch_dtype", "dtype", "use_cache", "initializer_range"];
    let ids = ["bos_token_id", "eos_token_id", "pad_token_id"];
    match key {
        _ if harmless.contains(&key) || ids.contains(&key) => true,
        "attention_bias" | "use_sliding_window" | "max_window_layers" | "rope_scaling" => true,
        "decoder_sparse_step" | "mlp_only_layers" => true,
        // What the class does in any case, or newer files repeat.
        "moe_layer_freq" | "scoring_func" | "ep_size" | "aux_loss_alpha" | "seq_aux" => true,
        // An activation's constant, and what older files repeat.
        "swiglu_limit" | "experts_per_token" | "output_router_logits" => true,
        "quantization_config" => family == "gpt_oss",
        // Lists that repeat what a number says, the number beside a list, what newer files derive, and other parts of the
        // model.
        "moe_layers" | "layer_types" | "for_llm_compressor" => family == "llama4",
        "no_rope_layers" | "no_rope_layer_interval" => family == "llama4",
        "attn_temperature_tuning" | "floor_scale" | "attn_scale" => family == "llama4",
        "vision_config" | "boi_token_index" | "eoi_token_index" | "image_token_index" => {
            matches!(family, "llama4" | "gemma3_text")
        }
        "mm_tokens_per_image" => family == "gemma3_text",
        "qk_head_dim" | "head_dim" | "rope_interleave" | "topk_method" => family == "deepseek_v3",
        // Without it every layer sees everything.
        "sliding_window" => !matches!(family, "gemma3_text" | "cohere2" | "gpt_oss"),
        "rope_theta" => family == "llama",
        "rope_parameters" => family == "llama",
        // Its value is that of a Phi-3 without such a part; factors that ask for the other one would miss it.
        "partial_rotary_factor" | "original_max_position_embeddings" => family == "phi3",
        // Without norms; a model that has them has tensors that say so.
        "use_qk_norm" => family == "cohere",
        // Untied is the rule but for Gemma and Cohere.
        "tie_word_embeddings" => true,
        _ => false,
    }
}

#[test]
fn every_setting_that_is_missing_or_misspelt_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for variant in variants() {
        let model = variant.made(folder.path());
        let whole = config(&model);
        let family = variant.flags.split_whitespace().next().unwrap();
        for key in whole.keys() {
            let mut without = whole.clone();
            let value = without.remove(key).unwrap();
            set_config(&model, &without);
            // Where a Llama does not state them, others follow, which the tensors contradict.
            let in_tensors = family == "llama" && ["head_dim", "num_key_value_heads"].contains(&key.as_str());
            let normed = variant.name == "cohere-norms" && key == "use_qk_norm";
            match read(&model) {
                Err(message) if message.contains(key.as_str()) => {}
                Err(message) if in_tensors && message.contains("_proj.weight") => {}
                Err(message) if normed => assert!(message.contains("q_norm.weight"), "{message}"),
                Ok(_) if may_be_missing(family, key) => {}
                // Without groups they say nothing.
                Ok(_)
                    if variant.name == "deepseek2-lite"
                        && ["n_group", "topk_group"].contains(&key.as_str()) => {}
                // What a stretched rope, or one with a part of the head, lacks without them.
                Err(message) if may_be_missing(family, key) && message.contains("rope") => {}
                Err(message) if key == "tie_word_embeddings" && message.contains("lm_head.weight") => {}
                outcome => wrong.push(format!("{} without `{key}`: {outcome:?}", variant.name)),
            }
            let misspelt = format!("{}Q", &key[..key.len() - 1]);
            let mut with = without;
            with.insert(misspelt.clone(), value);
            set_config(&model, &with);
            match read(&model) {
                Err(message) if message.contains(key.as_str()) || message.contains(&misspelt) => {}
                Err(message) if may_be_missing(family, key) && message.contains("rope") => {}
                Err(message) if key == "tie_word_embeddings" && message.contains("lm_head.weight") => {}
                outcome => wrong.push(format!("{} with `{misspelt}`: {outcome:?}", variant.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A file of tensors taken apart: its header and its data.
fn taken_apart(path: &Path) -> (serde_json::Map<String, Value>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
}

fn put_together(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_tensor_that_is_missing_or_misspelt_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for variant in variants().iter().filter(|variant| !variant.flags.contains("--shards")) {
        let model = variant.made(folder.path());
        let file = model.join("model.safetensors");
        let (whole, data) = taken_apart(&file);
        // Layers that are not run may lack what they like, and other parts than the text are not looked into.
        let further = format!("model.layers.{}.", read(&model).unwrap().layers.len());
        let elsewhere = |name: &str| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            ["vision_model.", "vision_tower.", "multi_modal"].iter().any(|start| name.starts_with(start))
        };
        for name in whole.keys().filter(|name| *name != "__metadata__") {
            let mut header = whole.clone();
            let entry = header.remove(name).unwrap();
            put_together(&file, &Value::from(header.clone()).to_string(), &data);
            match read(&model) {
                Err(message) if message.contains(name.as_str()) => {}
                Ok(_) if name.starts_with(&further) || elsewhere(name) => {}
                outcome => wrong.push(format!("{} without `{name}`: {outcome:?}", variant.name)),
            }
            let misspelt = format!("{}Q", &name[..name.len() - 1]);
            header.insert(misspelt.clone(), entry);
            put_together(&file, &Value::from(header).to_string(), &data);
            match read(&model) {
                Err(message) if message.contains(name.as_str()) || message.contains(&misspelt) => {}
                Ok(_) if elsewhere(name) => {}
                outcome => wrong.push(format!("{} with `{misspelt}`: {outcome:?}", variant.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is said of a directory.
fn said(folder: &Path) -> String {
    read(folder).expect_err("a damaged directory is refused")
}

#[test]
fn settings_that_change_the_computation_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("llama", "architectures", json!(["OtherForCausalLM"]), "OtherForCausalLM"),
        ("llama", "hidden_act", json!("gelu"), "`hidden_act` is \"gelu\""),
        ("llama", "attention_bias", json!(true), "`attention_bias`"),
        ("llama", "quantization_config", json!({"quant_method": "gptq", "bits": 4}), "gptq"),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "dynamic", "factor": 2.0}),
            "`rope_scaling.rope_type` is dynamic",
        ),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 2.0, "beta": 1}),
            "rope_scaling.beta",
        ),
        ("llama", "rope_scaling", json!({"rope_type": "linear", "factor": -2.0}), "rope_scaling.factor"),
        ("llama", "rope_scaling", json!({"factor": 2.0}), "rope_scaling.rope_type"),
        ("llama", "vocab_size", json!(511), "`vocab_size`"),
        ("llama", "num_attention_heads", json!(0), "num_attention_heads"),
        ("llama", "num_hidden_layers", json!(-1), "num_hidden_layers"),
        ("llama", "hidden_size", json!(u64::MAX), "hidden_size"),
        ("qwen2", "use_sliding_window", json!(true), "use_sliding_window"),
        ("qwen3moe", "norm_topk_prob", json!(false), "norm_topk_prob"),
        ("qwen3moe", "mlp_only_layers", json!([0]), "mlp_only_layers"),
        ("gemma3", "final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("gemma3", "sliding_window_pattern", json!(5), "sliding_window_pattern"),
        ("cohere2", "layer_types", json!(vec!["full_attention"; 5]), "layer_types"),
        ("deepseek2", "norm_topk_prob", json!(true), "`norm_topk_prob` is true"),
        ("deepseek2", "topk_method", json!("noaux_tc"), "`topk_method` is \"noaux_tc\""),
        ("deepseek2", "num_key_value_heads", json!(1), "num_key_value_heads"),
        (
            "deepseek2",
            "rope_scaling",
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7}),
            "rope_scaling.mscale_all_dim",
        ),
        ("deepseek3", "scoring_func", json!("softmax"), "`scoring_func`"),
        ("deepseek3", "routed_scaling_factor", json!(0.0), "routed_scaling_factor"),
        ("deepseek3", "num_nextn_predict_layers", json!(0), "model.layers.3."),
        ("deepseek3", "quantization_config", json!({"quant_method": "fp8"}), "fp8"),
        ("gpt-oss", "swiglu_limit", json!(6.0), "`swiglu_limit` is 6.0"),
        ("gpt-oss", "experts_per_token", json!(2), "experts_per_token"),
        ("gpt-oss", "attention_bias", json!(false), "attention_bias"),
        ("gpt-oss", "layer_types", json!(vec!["sliding_attention"; 5]), "layer_types"),
        ("gpt-oss", "intermediate_size", json!(96), "mlp.experts.gate_up_proj"),
        ("gpt-oss", "quantization_config", json!({"quant_method": "fp8"}), "fp8"),
        ("llama4", "no_rope_layers", json!([1, 0, 0, 1, 1]), "`no_rope_layers`"),
        ("llama4", "no_rope_layers", json!([1, 0]), "each of the 5 layers"),
        ("llama4", "moe_layers", json!([0, 1]), "`moe_layers`"),
        ("llama4", "attn_temperature_tuning", json!("yes"), "attn_temperature_tuning"),
        ("llama4", "attention_chunk_size", Value::Null, "attention_chunk_size"),
        ("llama4-part", "text_config", json!(7), "text_config"),
        ("llama4-part", "tie_word_embeddings", json!(true), "tie_word_embeddings"),
        ("llama4-part", "audio_config", json!({}), "audio_config"),
        ("gemma3-part", "audio_config", json!({}), "audio_config"),
        ("gemma3-part", "text_config", json!({"hidden_size": 96}), "num_hidden_layers"),
        ("glm4moe", "attention_bias", json!(false), "self_attn.q_proj.bias"),
        ("glm4moe", "use_qk_norm", json!(true), "self_attn.q_norm.weight"),
        ("glm4moe", "partial_rotary_factor", json!(1.5), "partial_rotary_factor"),
    ];
    for (name, key, value, word) in cases {
        let model = variant(name).made(folder.path());
        let mut config = config(&model);
        config.insert(key.to_owned(), value);
        set_config(&model, &config);
        let message = said(&model);
        assert!(message.contains(word), "{name} with another `{key}`: {message}");
    }
}

#[test]
fn settings_of_published_files_that_change_nothing_are_taken_with_that_value_only() {
    let folder = tempfile::tempdir().unwrap();
    for (name, key, value, other) in [
        ("qwen3moe-new", "shared_expert_intermediate_size", json!(0), json!(64)),
        ("qwen3moe-new", "use_qk_norm", json!(true), json!(false)),
        ("qwen3moe-new", "qkv_bias", json!(false), json!(true)),
        ("phi3", "mlp_bias", json!(false), json!(true)),
        ("phi3", "lm_head_bias", json!(false), json!(true)),
        ("phi3", "full_attn_mod", json!(1), json!(2)),
        ("phi3", "interpolate_factor", json!(1), json!(4)),
        ("cohere2", "layer_switch", json!(4), json!(3)),
    ] {
        let model = variant(name).made(folder.path());
        let mut config = config(&model);
        // Of the oldest Cohere 2, that number is all that says which layers have windows.
        config.remove("sliding_window_pattern");
        let plain = variant(name).made(&folder.path().join("plain"));
        config.insert(key.to_owned(), value);
        set_config(&model, &config);
        assert_eq!(read(&model), read(&plain), "{name} with `{key}`");
        config.insert(key.to_owned(), other);
        set_config(&model, &config);
        assert!(said(&model).contains(key), "{name} with another `{key}`: {}", said(&model));
    }
}

#[test]
fn llama_4_relies_on_what_its_class_does_where_published_files_say_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = variant("llama4").made(folder.path());
    let whole = config(&model);
    let temperature = |tuning: Value| {
        let mut config = whole.clone();
        for key in ["attn_temperature_tuning", "floor_scale", "attn_scale"] {
            config.remove(key);
        }
        config.insert("no_rope_layers".to_owned(), json!([]));
        config.insert("attn_temperature_tuning".to_owned(), tuning);
        set_config(&model, &config);
        let spec = read(&model).unwrap();
        let blind: Vec<_> = spec.layers.iter().map(|layer| layer.attention.rope().is_none()).collect();
        assert_eq!(blind, [false, false, false, true, false]);
        match &spec.layers[3].attention {
            Attention::Grouped(attention) => attention.temperature,
            Attention::Latent(_) => None,
        }
    };
    let usual = Some(Temperature { period: 8192, scale: 0.1 });
    assert_eq!(temperature(Value::Null), usual);
    assert_eq!(temperature(json!(4)), usual);
    assert_eq!(temperature(json!(0)), None);
}

#[test]
fn gemma_3_as_a_part_relies_on_what_its_class_does_where_published_files_say_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = variant("gemma3-part").made(folder.path());
    let whole = config(&model);
    let without = |key: &str| {
        let mut config = whole.clone();
        let settings = config["text_config"].as_object_mut().unwrap();
        settings.remove(key).unwrap_or_else(|| panic!("`{key}` is not stated"));
        set_config(&model, &config);
        read(&model)
    };
    assert_eq!(without("max_position_embeddings").unwrap().context_length, 131_072);
    let spec = without("rms_norm_eps").unwrap();
    assert_eq!(spec.layers[0].attention_norm, Norm::Rms { epsilon: 1e-6 });
    match &without("query_pre_attn_scalar").unwrap().layers[0].attention {
        Attention::Grouped(attention) => assert_eq!(attention.scale, 1.0 / 16.0),
        Attention::Latent(_) => panic!("latent attention"),
    }
    // What the tensors contradict.
    for (key, wanted) in [
        ("num_attention_heads", "[96, 256]"),
        ("num_key_value_heads", "[96, 128]"),
        ("head_dim", "[96, 1024]"),
        ("vocab_size", "262208"),
    ] {
        let message = without(key).unwrap_err();
        assert!(message.contains(wanted), "without `{key}`: {message}");
    }
    for key in ["hidden_size", "num_hidden_layers", "intermediate_size", "sliding_window"] {
        let message = without(key).unwrap_err();
        assert!(message.contains(key), "without `{key}`: {message}");
    }
}

#[test]
fn damaged_directories_are_refused_and_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let model = variant("mistral").made(folder.path());
    let file = model.join("model.safetensors");
    let (whole, data) = taken_apart(&file);
    let bytes = fs::read(&file).unwrap();
    let entry = |dtype: &str, shape: Value, start: u64, end: u64| {
        let mut header = whole.clone();
        header.insert(
            "model.norm.weight".to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}),
        );
        Value::from(header).to_string()
    };
    let stated = whole["model.norm.weight"]["data_offsets"].clone();
    let (start, end) = (stated[0].as_u64().unwrap(), stated[1].as_u64().unwrap());
    let twice = Value::from(whole.clone()).to_string();
    let twice = format!("{{\"model.norm.weight\":{},{}", whole["model.norm.weight"], &twice[1..]);
    for (header, word) in [
        (entry("F8_E4M3", json!([96]), start, start + 96), "F8_E4M3"),
        (entry("X7", json!([96]), start, end), "X7"),
        (entry("F32", json!([95]), start, end), "model.norm.weight"),
        (entry("F32", json!([u64::MAX, 2]), start, end), "overflows"),
        (entry("F32", json!([0]), start, start), "none may be 0"),
        (entry("F32", json!([96, 1, 1, 1, 1]), start, end), "at most 4 dimensions"),
        (entry("F32", json!([96]), start - 8, end - 8), "overlap"),
        (entry("F32", json!([96]), u64::MAX - 384, u64::MAX), "cut off"),
        (entry("F32", json!([96]), end, start), "model.norm.weight"),
        (twice, "appears twice"),
        ("[]".to_owned(), "table of tensors"),
    ] {
        put_together(&file, &header, &data);
        let message = said(&model);
        assert!(message.contains(word) && message.contains("model"), "{word}: {message}");
    }
    for (bytes, word) in [
        (&bytes[..bytes.len() - 1], "cut off"),
        (&bytes[..100], "cut off"),
        (&bytes[..7], "cut off"),
        (&[0xff; 64][..], "past the limit"),
    ] {
        fs::write(&file, bytes).unwrap();
        assert!(said(&model).contains(word), "{word}: {}", said(&model));
    }
    fs::remove_file(&file).unwrap();
    assert!(said(&model).contains("model.safetensors.index.json"), "{}", said(&model));

    let model = variant("mixtral").made(folder.path());
    fs::write(model.join("model.safetensors"), &bytes).unwrap();
    assert!(said(&model).contains("both"), "{}", said(&model));
    fs::remove_file(model.join("model.safetensors")).unwrap();
    fs::remove_file(model.join("model-00002-of-00003.safetensors")).unwrap();
    assert!(said(&model).contains("model-00002-of-00003.safetensors"), "{}", said(&model));
    let index = json!({"weight_map": {"a": "../secret"}}).to_string();
    fs::write(model.join("model.safetensors.index.json"), index).unwrap();
    assert!(said(&model).contains("weight_map.a"), "{}", said(&model));

    fs::write(model.join("config.json"), "{\"a\": 1, \"a\": 2}").unwrap();
    assert!(said(&model).contains("twice"), "{}", said(&model));
    fs::remove_file(model.join("config.json")).unwrap();
    assert!(said(&model).contains("config.json"), "{}", said(&model));
    fs::write(model.join("some.gguf"), "GGUF").unwrap();
    assert!(said(&model).contains("some.gguf"), "{}", said(&model));
}

/// A chat with a model, as transformers write it for the model.
#[derive(Deserialize)]
struct Chat {
    flags: String,
    /// What chat_template.jinja holds; where there is none, the template is in tokenizer_config.json.
    template: Option<String>,
    messages: Value,
    ids: Vec<u32>,
    /// The ids that generation_config.json names as ends.
    ends: Vec<u32>,
}

fn chats() -> Vec<Chat> {
    #[derive(Deserialize)]
    struct Document {
        chats: Vec<Chat>,
    }
    reference::read::<Document>("json-tokenizers.json").chats
}

/// What a chat request with these further settings is answered.
async fn answer(cluster: &Cluster, chat: &Chat, settings: Value) -> Value {
    let mut request = settings;
    request["model"] = cluster.client.model().await.into();
    request["messages"] = chat.messages.clone();
    // The greedy path of a random model may be one token for ever.
    request["seed"] = json!(7);
    request["return_token_ids"] = json!(true);
    cluster.client.post("/v1/chat/completions", &request).await.ok()
}

fn drawn(answer: &Value) -> Vec<u64> {
    let ids = answer["choices"][0]["token_ids"].as_array();
    ids.unwrap_or_else(|| panic!("no token_ids in {answer:#}")).iter().filter_map(Value::as_u64).collect()
}

#[tokio::test]
async fn a_chat_is_written_as_transformers_do_and_ends_where_the_directory_says() {
    let folder = tempfile::tempdir().unwrap();
    for (at, chat) in chats().iter().enumerate() {
        let model = make(&folder.path().join(at.to_string()), &chat.flags);
        if let Some(template) = &chat.template {
            fs::write(model.join("chat_template.jinja"), template).unwrap();
        }
        let up = || Up::new(&model).workers(2).memory("96MiB").args(["--ctx", "256"]).start();

        let cluster = up();
        let endless = answer(&cluster, chat, json!({"max_tokens": 16, "ignore_eos": true})).await;
        assert_eq!(endless["prompt_token_ids"], json!(chat.ids), "{}: {endless:#}", chat.flags);
        assert_eq!(endless["choices"][0]["finish_reason"], "length", "{}: {endless:#}", chat.flags);
        let path = drawn(&endless);
        assert_eq!(path.len(), 16, "{}", chat.flags);
        for end in &chat.ends {
            let likely = json!({"max_tokens": 16, "logit_bias": {end.to_string(): 100}});
            let ended = answer(&cluster, chat, likely).await;
            assert_eq!(ended["choices"][0]["finish_reason"], "stop", "{} at {end}: {ended:#}", chat.flags);
            assert_eq!(drawn(&ended), [u64::from(*end)], "{}: {ended:#}", chat.flags);
            assert_eq!(ended["choices"][0]["message"]["content"], "", "{}: {ended:#}", chat.flags);
        }
        cluster.stop();

        // The first token that did not come before, but for the first one, is an end now.
        let last = (1..path.len()).find(|at| !path[..*at].contains(&path[*at]));
        let last = last.unwrap_or_else(|| panic!("{}: one token for ever, {path:?}", chat.flags));
        let ends = json!({"eos_token_id": [path[last]]}).to_string();
        fs::write(model.join("generation_config.json"), ends).unwrap();
        let cluster = up();
        let ended = answer(&cluster, chat, json!({"max_tokens": 16})).await;
        assert_eq!(ended["choices"][0]["finish_reason"], "stop", "{}: {ended:#}", chat.flags);
        assert_eq!(drawn(&ended), path[..=last], "{}: {ended:#}", chat.flags);
        cluster.stop();
    }
}

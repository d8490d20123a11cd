//! Layers that are read from the disk again for every step: they change no bit of any family and no word of a cluster's
//! answer, take what is said of memory, and are as fast as the disk.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use brigade_proto::control::CacheDtype;
use brigade_shard::cost::Cost;
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;
use brigade_tests::chain::Chain;
use brigade_tests::cluster::{Cluster, Up, brigade};
use brigade_tests::process::run_measured;
use brigade_tests::{reference, setup};
use brigade_worker::offload;
use serde::Deserialize;
use serde_json::Value;

/// Positions that a model gets room for; the paths are shorter.
const CONTEXT: usize = 256;

/// What a process may take beyond its weights and cache: the program itself, its stacks and workspace.
const FIXED_OVERHEAD: u64 = 48 << 20;

/// Of what the disk and the processor allow together, the least that decoding is to reach where it is measured.
const LEAST_SHARE: f64 = 0.6;

#[derive(Deserialize)]
struct Document {
    variants: Vec<Variant>,
}

#[derive(Deserialize)]
struct Variant {
    name: String,
    flags: String,
    paths: Vec<Scored>,
}

#[derive(Deserialize)]
struct Scored {
    path: Vec<u32>,
}

impl Variant {
    /// Its flags without the seed: of models that differ in nothing else, one is enough.
    fn kind(&self) -> String {
        self.flags.split("--seed").next().unwrap_or_default().trim().to_owned()
    }

    fn made(&self, generator: &str, at: PathBuf) -> Header {
        make(generator, &at, &self.flags);
        Header::open(&at).unwrap()
    }
}

fn make(generator: &str, at: &Path, flags: &str) {
    let output = Command::new(setup::python())
        .arg(setup::repository().join("tests/reference").join(generator))
        .arg(at)
        .args(flags.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{flags}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compares all logits of a model's longest path.
fn compare(variant: &Variant, header: &Header) {
    let path = &variant.paths.iter().max_by_key(|scored| scored.path.len()).unwrap().path;
    let logits = |chain: &mut Chain, step_rows: usize| {
        let mut all = Vec::new();
        chain.run(path, step_rows, 0, |_, logits| all.push(logits.to_vec()));
        all
    };
    let whole = logits(&mut Chain::load(header, usize::MAX, CONTEXT, CacheDtype::F16), path.len() / 3);
    let mut streaming = Chain::streaming(header, CONTEXT, CacheDtype::F16);
    // The prompt in parts, and token by token as an answer is made.
    for step_rows in [path.len() / 3, 1] {
        let found = logits(&mut streaming, step_rows);
        assert_eq!((whole.len(), found.len()), (path.len(), path.len()));
        let first = whole.iter().zip(&found).position(|(whole, found)| whole != found);
        assert_eq!(first, None, "{}, {step_rows} tokens a step: the first token that differs", variant.name);
    }
}

/// One of each kind, from a file of references.
fn variants(references: &str) -> Vec<Variant> {
    let mut kinds = BTreeSet::new();
    let all = reference::read::<Document>(references).variants;
    all.into_iter().filter(|variant| kinds.insert(variant.kind())).collect()
}

#[test]
fn every_family_gives_the_same_bits_from_the_disk() {
    let folder = tempfile::tempdir_in(setup::target_folder()).unwrap();
    let variants = variants("families.json");
    assert!(variants.len() >= 15, "{} variants", variants.len());
    for variant in variants {
        let file = folder.path().join(format!("{}.gguf", variant.name));
        compare(&variant, &variant.made("make_family.py", file));
    }
}

#[test]
fn every_layout_of_safetensors_gives_the_same_bits_from_the_disk() {
    let folder = tempfile::tempdir_in(setup::target_folder()).unwrap();
    let variants = variants("safetensors.json");
    assert!(variants.len() >= 10, "{} variants", variants.len());
    for variant in variants {
        let directory = folder.path().join(&variant.name);
        compare(&variant, &variant.made("make_safetensors.py", directory));
    }
}

/// Measures a model whose last layers are streamed; what `bench` writes of it.
fn bench(model: &Path, streamed: usize, arguments: &[&str]) -> Value {
    let mut bench = Command::new(&setup::programs().worker);
    bench.arg("bench").arg(model).args(["-o", "json", "--offload", &streamed.to_string()]).args(arguments);
    let run = run_measured(&mut bench);
    assert_eq!(run.code, Some(0), "{}", run.output);
    let document: Value = serde_json::from_str(&run.output).unwrap();
    document[0].clone()
}

#[test]
fn a_model_of_98_mb_takes_the_memory_of_its_ends_and_of_two_layers() {
    let model = setup::smollm2();
    let header = Header::open(model).unwrap();
    let spec = ModelSpec::from_header(&header).unwrap();
    let cost = Cost::new(&spec, &TensorTable::new(&header, &spec).unwrap());
    let matrices: u64 = cost.layers().iter().map(|layer| layer.matrices.0).sum();
    let staged = 2 * cost.layers().iter().map(|layer| layer.staged.0).max().unwrap();
    let weights = cost.weights(&cost.whole()).0 - matrices + staged;
    let record = bench(model, spec.layers.len(), &["-p", "64", "-n", "8", "-r", "2"]);
    let limit = weights + record["cache_size"].as_u64().unwrap() + FIXED_OVERHEAD;
    // Up to the end of its measurements: the memory's own speed is measured afterwards, and takes more.
    let peak = record["peak_resident"].as_u64().unwrap();
    let file = std::fs::metadata(model).unwrap().len();
    println!(
        "peak resident {:.1} MiB, limit {:.1} MiB, file {:.1} MiB",
        peak as f64 / (1 << 20) as f64,
        limit as f64 / (1 << 20) as f64,
        file as f64 / (1 << 20) as f64
    );
    assert_eq!(record["resident_limit"], limit);
    assert!(limit < file, "the limit says nothing: it is {limit}, and the file has {file} bytes");
    assert!(peak <= limit, "{peak} bytes were resident, and {limit} are allowed");
}

/// What a command says of a cluster.
fn said(command: &str, cluster: &Cluster, arguments: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let output =
        brigade(&home).args([command, "--url", cluster.client.url()]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An answer of the real model that is always the same.
fn answer(cluster: &Cluster) -> String {
    let settings = ["--max-tokens", "32", "--temperature", "0", "SmolLM2-135M-Instruct.Q4_1"];
    said("run", cluster, &[&settings[..], &["What is a bucket?"]].concat())
}

#[test]
fn clusters_with_too_little_memory_stream_and_answer_as_one_box_that_holds_all() {
    let up = |workers: usize, memory: &str| {
        let cluster = Up::new(setup::smollm2()).workers(workers).memory(memory);
        cluster.args(["--ctx", "512", "--parallel", "1", "--offload"])
    };
    let whole = up(1, "256MiB").start();
    let wanted = answer(&whole);
    whole.stop();
    assert!(wanted.split_whitespace().count() > 5, "{wanted}");
    for (workers, memory, bytes) in [(1, "64MiB", 64 << 20), (2, "48MiB", 48 << 20)] {
        let cluster = up(workers, memory).start();
        assert_eq!(answer(&cluster), wanted, "{workers} of {memory}");
        let status: Value = serde_json::from_str(&said("status", &cluster, &["--json"])).unwrap();
        let stages = status["stages"].as_array().unwrap();
        assert_eq!(stages.len(), workers, "{status:#}");
        // The same cut, planned anew, streams as many layers.
        let layers =
            |stage: &Value| stage["layer_end"].as_u64().unwrap() - stage["layer_start"].as_u64().unwrap();
        let split: Vec<String> = stages.iter().map(|stage| layers(stage).to_string()).collect();
        let model = setup::smollm2().to_str().unwrap();
        let plan = [model, "--ctx", "512", "--parallel", "1", "--split", &split.join(","), "--json"];
        let plan: Value = serde_json::from_str(&said("plan", &cluster, &plan)).unwrap();
        let streamed = plan["streamed"].as_array().unwrap();
        println!("{workers} of {memory}: {streamed:?}");
        assert!(streamed.iter().any(|stage| stage["layers"].as_u64().unwrap() > 0), "{plan:#}");
        let sum = |all: &[Value], what: &str| all.iter().filter_map(|one| one[what].as_u64()).sum::<u64>();
        assert_eq!(sum(stages, "streamed_layers"), sum(streamed, "layers"), "{status:#} {plan:#}");
        for (served, planned) in stages.iter().zip(plan["stages"].as_array().unwrap()) {
            for what in ["weight_bytes", "cache_bytes", "workspace_bytes"] {
                assert_eq!(served[what], planned[what], "{what} of {served:#}");
            }
            let taken =
                ["weight_bytes", "cache_bytes", "workspace_bytes"].map(|what| served[what].as_u64().unwrap());
            assert!(taken.iter().sum::<u64>() <= bytes, "{served:#}");
        }
        let resident: u64 = stages.iter().map(|stage| stage["weight_bytes"].as_u64().unwrap()).sum();
        assert!(
            resident < status["model"]["weight_bytes"].as_u64().unwrap(),
            "nothing is streamed: {status:#}"
        );
        cluster.stop();
    }
}

#[test]
#[ignore = "a measurement: wants a quiet machine, and 400 MB on its disk"]
fn decoding_is_as_fast_as_the_processor_or_the_disk() {
    let folder = tempfile::tempdir_in(setup::target_folder()).unwrap();
    let made = folder.path().join("model.gguf");
    let model = match std::env::var_os("BRIGADE_OFFLOAD_MODEL") {
        Some(model) => PathBuf::from(model),
        None => {
            let shape =
                "--hidden 1024 --layers 24 --heads 16 --kv-heads 4 --head-dim 64 --ffn 4096 --type q8_0";
            make("make_tiny.py", &made, shape);
            std::fs::File::open(&made).unwrap().sync_all().unwrap();
            made
        }
    };
    let header = Header::open(&model).unwrap();
    let spec = ModelSpec::from_header(&header).unwrap();
    let cost = Cost::new(&spec, &TensorTable::new(&header, &spec).unwrap());
    let layers = spec.layers.len();
    let speed = |streamed| {
        let record = bench(&model, streamed, &["-p", "0", "-n", "16", "-r", "3"]);
        // The median of the repetitions, in tokens per second.
        let mut samples: Vec<f64> = serde_json::from_value(record["samples_ts"].clone()).unwrap();
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    let most = std::fs::metadata(&model).unwrap().len().min(256 << 20);
    let disk = || offload::measure_file(&model, most).unwrap();
    let whole = speed(0);
    println!("| layers streamed | bytes | disk | predicted tokens/s | measured | share |");
    println!("|---|---|---|---|---|---|");
    let mut shares = Vec::new();
    for streamed in [0, layers / 4, layers / 2, layers] {
        let bytes: u64 = cost.layers()[layers - streamed..].iter().map(|layer| layer.matrices.0).sum();
        let before = disk();
        let measured = speed(streamed);
        let rate = (before.bytes_per_s + disk().bytes_per_s) / 2.0;
        let predicted = 1.0 / (1.0 / whole).max(bytes as f64 / rate);
        println!(
            "| {streamed} of {layers} | {:.0} MB | {:.2} GB/s{} | {predicted:.2} | {measured:.2} | {:.2} |",
            bytes as f64 / 1e6,
            rate / 1e9,
            if before.direct { "" } else { " through the cache" },
            measured / predicted
        );
        shares.push(measured / predicted);
    }
    assert!(shares.iter().all(|share| *share >= LEAST_SHARE), "{shares:?}");
}

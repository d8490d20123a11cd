//! Every family on tiny random models that llama.cpp has run: what it computes, wherever it is cut, and what it says of
//! files that lack a part.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;
use brigade_tests::cluster::Up;
use brigade_tests::reference::{self, Distance};
use brigade_tests::setup;
use serde::Deserialize;

/// Largest distance of a model with F32 weights from llama.cpp's log-probabilities.
const FLOAT_BOUND: f64 = 0.02;
/// The same for a family with GELU, which llama.cpp takes from a table in half precision.
const FLOAT_BOUND_WITH_GELU: f64 = 0.03;
/// Mean distance of a quantised model from the exact, against llama.cpp's own.
const QUANTISED_BOUND: f64 = 1.25;
/// Most stages that a model is cut into; one variant has 64 layers.
const MOST_STAGES: usize = 8;

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
    llama_cpp: Vec<Option<f64>>,
}

impl Variant {
    fn family(&self) -> &str {
        self.flags.split_whitespace().next().unwrap()
    }

    /// The architecture in the file: Mixtral is a llama with experts.
    fn architecture(&self) -> &str {
        if self.family() == "mixtral" { "llama" } else { self.family() }
    }

    fn is_quantised(&self) -> bool {
        self.flags.contains("--type q")
    }

    fn float_bound(&self) -> f64 {
        if self.family().starts_with("gemma") { FLOAT_BOUND_WITH_GELU } else { FLOAT_BOUND }
    }

    /// The model's file, made by its generator.
    fn file(&self, folder: &Path) -> PathBuf {
        let file = folder.join(format!("{}.gguf", self.name));
        let output = Command::new(setup::python())
            .arg(setup::repository().join("tests/reference/make_family.py"))
            .arg(&file)
            .args(self.flags.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        file
    }

    /// Where our scores are too far from the exact ones.
    fn complaint(&self, found: &[Vec<Option<f64>>]) -> Option<String> {
        let (mut ours, mut theirs) = (Distance::default(), Distance::default());
        for (found, scored) in found.iter().zip(&self.paths) {
            ours.add(found, &scored.exact);
            theirs.add(&scored.llama_cpp, &scored.exact);
        }
        println!(
            "{:16} mean {:.4} (llama.cpp {:.4}), largest {:.4} (llama.cpp {:.4})",
            self.name,
            ours.mean(),
            theirs.mean(),
            ours.largest,
            theirs.largest
        );
        let near = match self.is_quantised() {
            true => ours.mean() <= QUANTISED_BOUND * theirs.mean(),
            false => ours.largest <= self.float_bound(),
        };
        if near {
            return None;
        }
        let far = |(a, b): (&Option<f64>, &Option<f64>)| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() > self.float_bound(),
            _ => false,
        };
        let first = found.iter().zip(&self.paths).find_map(|(found, scored)| {
            let token = found.iter().zip(&scored.exact).position(far)?;
            Some(format!("token {token} of the path of {}", scored.path.len()))
        });
        Some(format!("{} ({}): first difference at {first:?}", self.name, self.flags))
    }
}

fn variants() -> Vec<Variant> {
    #[derive(Deserialize)]
    struct Document {
        variants: Vec<Variant>,
    }
    reference::read::<Document>("families.json").variants
}

fn read(file: &Path) -> Result<ModelSpec, String> {
    let header = Header::open(file).map_err(|error| error.to_string())?;
    let spec = ModelSpec::from_header(&header).map_err(|error| error.to_string())?;
    TensorTable::new(&header, &spec).map_err(|error| error.to_string())?;
    Ok(spec)
}

/// Defines a test of each family, so that they run side by side and one can be run alone.
macro_rules! families {
    ($($name:ident: $family:literal),* $(,)?) => {
        mod every_family_computes_what_llama_cpp_computes_wherever_it_is_cut {
            $(
                #[tokio::test]
                async fn $name() {
                    super::computes_what_llama_cpp_computes($family).await;
                }
            )*
        }

        const TESTED: &[&str] = &[$($family),*];
    };
}

families! {
    llama: "llama",
    mixtral: "mixtral",
    qwen2: "qwen2",
    qwen3: "qwen3",
    qwen3moe: "qwen3moe",
    phi3: "phi3",
    gemma3: "gemma3",
    command_r: "command-r",
    cohere2: "cohere2",
}

#[test]
fn every_family_with_references_has_its_test() {
    let all: BTreeSet<String> = variants().iter().map(|variant| variant.family().to_owned()).collect();
    assert_eq!(all, TESTED.iter().map(|family| (*family).to_owned()).collect());
}

async fn computes_what_llama_cpp_computes(family: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for variant in variants().iter().filter(|variant| variant.family() == family) {
        let file = variant.file(folder.path());
        let layers = read(&file).unwrap().layers.len();
        let mut first = None;
        for stages in [1, 2, layers.min(MOST_STAGES)] {
            let cluster = Up::new(&file).workers(stages).memory("96MiB").args(["--ctx", "256"]).start();
            let status = cluster.client.status().await;
            assert_eq!(status["stages"].as_array().map(Vec::len), Some(stages), "{status:#}");
            let mut scores = Vec::new();
            for scored in &variant.paths {
                scores.push(cluster.client.score(&scored.path).await);
            }
            cluster.stop();
            match &first {
                None => first = Some(scores),
                Some(first) => assert_eq!(&scores, first, "{} in {stages} stages", variant.name),
            }
        }
        wrong.extend(variant.complaint(&first.unwrap()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Keys that a file may leave out, since its family has a value for it or the key says nothing about the computation.
fn may_be_missing(variant: &Variant, key: &str) -> bool {
    let family = variant.family();
    match key {
        "vocab_size" => true,
        "rope.scaling.type" => !variant.flags.contains("--yarn"),
        "rope.scaling.attn_factor" => family != "phi3",
        "attention.sliding_window" => family == "phi3",
        // Without it the file is one without experts, whose tensors are then missed.
        "expert_count" => family == "mixtral",
        // Llama files may leave them out: as many as query heads, and the base of Llama 2.
        "attention.head_count_kv" | "rope.freq_base" => matches!(family, "llama" | "mixtral"),
        // The file's value is that which follows from the heads' width.
        "rope.dimension_count" => family == "cohere2",
        _ => false,
    }
}

/// Replaces a name in a header by another of the same length.
fn renamed(file: &[u8], name: &str, other: &str) -> Vec<u8> {
    assert_eq!(name.len(), other.len());
    let mut needle = (name.len() as u64).to_le_bytes().to_vec();
    needle.extend(name.as_bytes());
    let at = file.windows(needle.len()).position(|window| window == needle).unwrap() + 8;
    let mut renamed = file.to_vec();
    renamed[at..at + other.len()].copy_from_slice(other.as_bytes());
    renamed
}

#[test]
fn every_key_and_tensor_that_is_missing_or_misspelt_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for variant in variants().iter().filter(|variant| variant.name.ends_with("-f32")) {
        let path = variant.file(folder.path());
        let file = std::fs::read(&path).unwrap();
        let header = Header::open(&path).unwrap();
        let prefix = format!("{}.", variant.architecture());
        let damaged = folder.path().join("damaged.gguf");
        let mut check = |name: &str, other: &str, words: [&str; 2]| {
            std::fs::write(&damaged, renamed(&file, name, other)).unwrap();
            match read(&damaged) {
                Err(message) if words.iter().any(|word| message.contains(word)) => {}
                outcome => wrong.push(format!("{} with `{name}` as `{other}`: {outcome:?}", variant.name)),
            }
        };
        for (key, _) in header.metadata().filter(|(key, _)| key.starts_with(&prefix)) {
            let misspelt = format!("{}Q", &key[..key.len() - 1]);
            check(key, &misspelt, [key, &misspelt]);
            let name = &key[prefix.len()..];
            if !may_be_missing(variant, name) {
                let elsewhere = format!("{}.{name}", "x".repeat(prefix.len() - 1));
                check(key, &elsewhere, [key, key]);
            }
        }
        for name in header.tensors().iter().map(|tensor| &tensor.name) {
            let misspelt = format!("{}Q", &name[..name.len() - 1]);
            check(name, &misspelt, [name, &misspelt]);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Every family on tiny random models that llama.cpp has run: what it computes, wherever it is cut, and what it says of
//! files that lack a part.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use brigade_proto::control::CacheDtype;
use brigade_shard::model_file::{Header, Place};
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;
use brigade_tests::chain::Chain;
use brigade_tests::cluster::Up;
use brigade_tests::reference::{self, Distance};
use serde::Deserialize;

/// Largest distance of a model with F32 weights from llama.cpp's log-probabilities.
const FLOAT_BOUND: f64 = 0.02;
/// The same for a family with GELU, which llama.cpp takes from a table in half precision.
const FLOAT_BOUND_WITH_GELU: f64 = 0.03;
/// Mean distance of a quantised model from the exact, against llama.cpp's own.
const QUANTISED_BOUND: f64 = 1.25;
/// Positions that a model gets room for; the paths are shorter.
const CONTEXT: usize = 256;
/// Most workers that a model is cut over; one variant has 64 layers, and is cut into as many stages within one process.
const MOST_WORKERS: usize = 8;

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
        match self.family() {
            "mixtral" => "llama",
            family if family.starts_with("deepseek") => "deepseek2",
            family => family,
        }
    }

    /// How keys and values are kept. The exact reference keeps them in F32, and so does a model of F32 weights, which is
    /// compared with nothing else: rounding them would decide near-ties of routers.
    fn kv_dtype(&self) -> &str {
        if self.is_quantised() { "f16" } else { "f32" }
    }

    fn is_quantised(&self) -> bool {
        self.flags.contains("--type q")
    }

    /// The flags without the seed. Variants that share them are judged together: with experts, rounding now and then
    /// makes a router choose another one, which moves a single model's distance by more than the kernels do.
    fn pool(&self) -> String {
        let words: Vec<&str> = self.flags.split_whitespace().collect();
        let seed = words.iter().position(|word| *word == "--seed");
        let kept = words.iter().enumerate().filter(|(i, _)| seed.is_none_or(|at| *i != at && *i != at + 1));
        kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
    }

    fn float_bound(&self) -> f64 {
        if self.family().starts_with("gemma") { FLOAT_BOUND_WITH_GELU } else { FLOAT_BOUND }
    }

    /// The model's file, made by its generator.
    fn file(&self, folder: &Path) -> PathBuf {
        let file = folder.join(format!("{}.gguf", self.name));
        reference::make("make_family.py", &file, &self.flags);
        file
    }

    /// Where our scores are first too far from the exact ones.
    fn first_difference(&self, found: &[Vec<Option<f64>>]) -> Option<String> {
        let far = |(a, b): (&Option<f64>, &Option<f64>)| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() > self.float_bound(),
            _ => false,
        };
        found.iter().zip(&self.paths).find_map(|(found, scored)| {
            let token = found.iter().zip(&scored.exact).position(far)?;
            Some(format!(
                "{}: first difference at token {token} of the path of {}",
                self.name,
                scored.path.len()
            ))
        })
    }
}

/// A variant with our scores of its paths.
type Scores<'a> = (&'a Variant, Vec<Vec<Option<f64>>>);

/// What is to be said of the variants of one pool, if our scores are too far from the exact ones.
fn complaint(pool: &str, members: &[Scores<'_>]) -> Option<String> {
    let (mut ours, mut theirs) = (Distance::default(), Distance::default());
    for (variant, found) in members {
        let (mut our, mut their) = (Distance::default(), Distance::default());
        for (found, scored) in found.iter().zip(&variant.paths) {
            for distance in [&mut ours, &mut our] {
                distance.add(found, &scored.exact);
            }
            for distance in [&mut theirs, &mut their] {
                distance.add(&scored.llama_cpp, &scored.exact);
            }
        }
        let Variant { name, .. } = variant;
        print!("{name:20} mean {:.4} (llama.cpp {:.4}), ", our.mean(), their.mean());
        println!("largest {:.4} (llama.cpp {:.4})", our.largest, their.largest);
    }
    let quantised = members.iter().any(|(variant, _)| variant.is_quantised());
    if quantised && members.len() > 1 {
        println!("{pool}: mean {:.4} (llama.cpp {:.4})", ours.mean(), theirs.mean());
    }
    let near = match quantised {
        true => ours.mean() <= QUANTISED_BOUND * theirs.mean(),
        false => members.iter().all(|(variant, _)| ours.largest <= variant.float_bound()),
    };
    let first = members.iter().find_map(|(variant, found)| variant.first_difference(found));
    (!near).then(|| {
        format!(
            "{pool}: mean {:.4} (llama.cpp {:.4}), largest {:.4}; {}",
            ours.mean(),
            theirs.mean(),
            ours.largest,
            first.unwrap_or_default()
        )
    })
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
    llama4: "llama4",
    deepseek_v2_lite: "deepseek-v2-lite",
    deepseek_v2: "deepseek-v2",
    deepseek_v3: "deepseek-v3",
    glm4moe: "glm4moe",
    gpt_oss: "gpt-oss",
}

#[test]
fn every_family_with_references_has_its_test() {
    let all: BTreeSet<String> = variants().iter().map(|variant| variant.family().to_owned()).collect();
    assert_eq!(all, TESTED.iter().map(|family| (*family).to_owned()).collect());
}

async fn computes_what_llama_cpp_computes(family: &str) {
    let folder = tempfile::tempdir().unwrap();
    let variants = variants();
    let mut pools: BTreeMap<String, Vec<Scores<'_>>> = BTreeMap::new();
    for variant in variants.iter().filter(|variant| variant.family() == family) {
        let file = variant.file(folder.path());
        let layers = read(&file).unwrap().layers.len();
        let pool = pools.entry(variant.pool()).or_default();
        // Programs and cuts are the same for all seeds, so that one model is enough for them.
        if !pool.is_empty() {
            let header = Header::open(&file).unwrap();
            let mut chain = Chain::load(&header, usize::MAX, CONTEXT, CacheDtype::F16);
            let scores = |path: &[u32]| {
                [None].into_iter().chain(chain.scores(path, 1).into_iter().map(Some)).collect()
            };
            pool.push((variant, variant.paths.iter().map(|scored| &scored.path[..]).map(scores).collect()));
            continue;
        }
        let mut first = None;
        for stages in [1, 2, layers.min(MOST_WORKERS)] {
            let context = CONTEXT.to_string();
            let arguments = ["--ctx", &context, "--kv-dtype", variant.kv_dtype()];
            let cluster = Up::new(&file).workers(stages).memory("96MiB").args(arguments).start();
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
        pool.push((variant, first.unwrap()));
    }
    let wrong: Vec<String> = pools.iter().filter_map(|(pool, members)| complaint(pool, members)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_stage_for_every_layer_gives_the_bits_of_one_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut pools = BTreeSet::new();
    for variant in variants().iter().filter(|variant| pools.insert(variant.pool())) {
        let header = Header::open(&variant.file(folder.path())).unwrap();
        let path = &variant.paths.iter().max_by_key(|scored| scored.path.len()).unwrap().path;
        let logits = |chain: &mut Chain, step_rows: usize| {
            let mut all = Vec::new();
            chain.run(path, step_rows, 0, |_, logits| all.push(logits.to_vec()));
            all
        };
        let mut whole = Chain::load(&header, usize::MAX, CONTEXT, CacheDtype::F16);
        let whole = logits(&mut whole, path.len() / 3);
        let mut cut = Chain::load(&header, 1, CONTEXT, CacheDtype::F16);
        // The prompt in parts, and token by token as an answer is made.
        for step_rows in [path.len() / 3, 1] {
            let found = logits(&mut cut, step_rows);
            assert_eq!((whole.len(), found.len()), (path.len(), path.len()));
            let first = whole.iter().zip(&found).position(|(whole, found)| whole != found);
            let cut = format!("{} in {} stages, {step_rows} tokens a step", variant.name, cut.stages());
            assert_eq!(first, None, "{cut}: the first token that differs");
        }
    }
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
        // There is no feed-forward besides the experts.
        "feed_forward_length" => family == "gpt-oss",
        // Llama files may leave them out: as many as query heads, and the base of Llama 2.
        "attention.head_count_kv" | "rope.freq_base" => matches!(family, "llama" | "mixtral"),
        // The file's value is that which follows from the heads' width.
        "rope.dimension_count" => family == "cohere2",
        _ => false,
    }
}

/// Tensors that a file may leave out.
fn tensor_may_be_missing(variant: &Variant, name: &str) -> bool {
    match name {
        // The embedding then does its work.
        "output.weight" => variant.family() != "gpt-oss",
        // Only files whose rope was stretched in this way have it, and no key says that they were.
        "rope_freqs.weight" => true,
        // Nothing of the layers that predict tokens beyond the next is read.
        name => variant.flags.contains("--further") && name.starts_with("blk.3."),
    }
}

/// A GGUF file, of which the header is damaged and the data left out.
struct Damaged {
    header: Vec<u8>,
    bytes: u64,
    path: PathBuf,
}

impl Damaged {
    fn new(path: &Path, header: &Header) -> Damaged {
        let file = std::fs::read(path).unwrap();
        let starts = header.tensors().iter().map(|tensor| match tensor.pieces[0].place {
            Place::File { offset, .. } => offset as usize,
            Place::Stated(_) => panic!("a GGUF file holds its tensors"),
        });
        let data = starts.min().unwrap();
        let bytes = file.len() as u64;
        Damaged { header: file[..data].to_vec(), bytes, path: path.with_extension("damaged") }
    }

    /// Where a name stands, after its length.
    fn position(&self, name: &str) -> usize {
        let mut needle = (name.len() as u64).to_le_bytes().to_vec();
        needle.extend(name.as_bytes());
        self.header.windows(needle.len()).position(|window| window == needle).unwrap() + 8
    }

    /// What is said of the file with `name` replaced by `other`, which is as long.
    fn renamed(&self, name: &str, other: &str) -> Result<ModelSpec, String> {
        assert_eq!(name.len(), other.len());
        let at = self.position(name);
        let mut header = self.header.clone();
        header[at..at + other.len()].copy_from_slice(other.as_bytes());
        self.read(&header)
    }

    /// What is said of the file without the entry of tensor `name`: its name, dimensions, type and offset.
    fn without_tensor(&self, name: &str) -> Result<ModelSpec, String> {
        let at = self.position(name);
        let number = |at: usize, size: usize| {
            self.header[at..at + size].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
        };
        let dimensions = number(at + name.len(), 4) as usize;
        let end = at + name.len() + 4 + 8 * dimensions + 4 + 8;
        let mut header = [&self.header[..at - 8], &self.header[end..]].concat();
        header[8..16].copy_from_slice(&(number(8, 8) - 1).to_le_bytes());
        self.read(&header)
    }

    fn read(&self, header: &[u8]) -> Result<ModelSpec, String> {
        std::fs::write(&self.path, header).unwrap();
        std::fs::File::options().write(true).open(&self.path).unwrap().set_len(self.bytes).unwrap();
        read(&self.path)
    }
}

#[test]
fn every_key_and_tensor_that_is_missing_or_misspelt_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for variant in variants().iter().filter(|variant| variant.name.ends_with("-f32")) {
        let path = variant.file(folder.path());
        let header = Header::open(&path).unwrap();
        let prefix = format!("{}.", variant.architecture());
        let damaged = Damaged::new(&path, &header);
        let mut check = |what: String, outcome: Result<ModelSpec, String>, words: [&str; 2]| match outcome {
            Err(message) if words.iter().any(|word| message.contains(word)) => {}
            outcome => wrong.push(format!("{} {what}: {outcome:?}", variant.name)),
        };
        for (key, _) in header.metadata().filter(|(key, _)| key.starts_with(&prefix)) {
            let misspelt = format!("{}Q", &key[..key.len() - 1]);
            check(format!("with `{misspelt}`"), damaged.renamed(key, &misspelt), [key, &misspelt]);
            let name = &key[prefix.len()..];
            if !may_be_missing(variant, name) {
                let elsewhere = format!("{}.{name}", "x".repeat(prefix.len() - 1));
                check(format!("without `{key}`"), damaged.renamed(key, &elsewhere), [key, key]);
            }
        }
        for name in header.tensors().iter().map(|tensor| &tensor.name) {
            let misspelt = format!("{}Q", &name[..name.len() - 1]);
            check(format!("with `{misspelt}`"), damaged.renamed(name, &misspelt), [name, &misspelt]);
            if !tensor_may_be_missing(variant, name) {
                check(format!("without `{name}`"), damaged.without_tensor(name), [name, name]);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Models at their real size, without their weights: read, planned and priced from the header alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use brigade_tests::process::{Run, run_measured};
use brigade_tests::setup;
use serde_json::Value;

/// Longest time from the start of a command to its end.
const DEADLINE: Duration = Duration::from_secs(1);
/// Most memory that a command takes.
const MEMORY: u64 = 200_000_000;
/// Times that a command may try to keep the deadline on a machine that does other things too.
const TRIES: usize = 10;

/// Four machines with 192 GB of unified memory each.
const CLUSTER: &str = r#"
[[device]]
name = "studio-1"
memory = "144GB"
bandwidth_gbps = 800
tflops = 27
[[device]]
name = "studio-2"
memory = "144GB"
bandwidth_gbps = 800
tflops = 27
[[device]]
name = "studio-3"
memory = "144GB"
bandwidth_gbps = 800
tflops = 27
[[device]]
name = "studio-4"
memory = "144GB"
bandwidth_gbps = 800
tflops = 27
"#;

struct Giant {
    model: &'static str,
    architecture: &'static str,
    layers: u64,
    /// Weights and weights that one token is multiplied with, as published.
    parameters: f64,
    active: f64,
    /// Size of the published Q4_K_M file, in bytes.
    published_bytes: f64,
    /// Values in the cache for a token and layer.
    cache_values: u64,
    /// What is said of its layers.
    words: &'static [&'static str],
}

const GIANTS: [Giant; 2] = [
    Giant {
        model: "llama-405b",
        architecture: "llama",
        layers: 126,
        parameters: 405.9e9,
        active: 405.9e9,
        published_bytes: 243.1e9,
        cache_values: 2 * 8 * 128,
        words: &["128 query heads on 8 key/value heads of 128", "rope base 500000 with divisors"],
    },
    Giant {
        model: "deepseek-r1",
        architecture: "deepseek2",
        layers: 61,
        parameters: 671e9,
        // 37 G with the embedding, of which a token reads one row.
        active: 36.6e9,
        published_bytes: 404.4e9,
        cache_values: 512 + 64,
        words: &[
            "on a latent vector of 512",
            "256 experts of 2048, 8 for each token from 4 of 8 groups and a shared one of 2048",
            "sigmoid gates, chosen with a bias, weights times 2.5",
        ],
    },
];

fn header(folder: &Path, giant: &Giant) -> PathBuf {
    let file = folder.join(format!("{}.gguf", giant.model));
    let script = setup::repository().join("tests/reference/make_true_size.py");
    let output = Command::new(setup::python()).arg(script).arg(&file).arg(giant.model).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    file
}

/// Runs `brigade` within the deadline and the memory, and reads what it prints.
fn within_bounds(arguments: &[&str]) -> Value {
    let run = || run_measured(Command::new(&setup::programs().brigade).args(arguments));
    let mut last: Run = run();
    for _ in 1..TRIES {
        if last.time <= DEADLINE {
            break;
        }
        last = run();
    }
    let words = &arguments[..2];
    println!("{words:?}: {:.2} s, {:.0} MB", last.time.as_secs_f64(), last.peak_resident_bytes as f64 / 1e6);
    assert_eq!(last.code, Some(0), "{words:?}: {}", last.output);
    assert!(last.time <= DEADLINE, "{words:?} took {:?}", last.time);
    assert!(last.peak_resident_bytes <= MEMORY, "{words:?} took {} bytes", last.peak_resident_bytes);
    serde_json::from_str(&last.output).unwrap()
}

/// Whether two amounts are within a share of each other.
fn near(a: f64, b: f64, share: f64) -> bool {
    (a - b).abs() <= share * b
}

#[test]
fn giants_are_read_planned_and_priced_from_their_headers() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = folder.path().join("cluster.toml");
    std::fs::write(&cluster, CLUSTER).unwrap();
    let cluster = cluster.to_str().unwrap();
    for giant in GIANTS {
        let file = header(folder.path(), &giant);
        let file = file.to_str().unwrap();

        let card = within_bounds(&["models", "show", file, "--json"]);
        assert_eq!(card["architecture"], giant.architecture);
        assert_eq!(card["spec"]["layers"], giant.layers);
        let number = |name: &str| card[name].as_f64().unwrap();
        assert!(near(number("parameters"), giant.parameters, 0.005), "{}", card["parameters"]);
        assert!(near(number("active_parameters"), giant.active, 0.01), "{}", card["active_parameters"]);
        assert!(near(number("file_bytes"), giant.published_bytes, 0.005), "{}", card["file_bytes"]);
        let cache = 2 * giant.cache_values * giant.layers;
        assert_eq!(card["spec"]["cache_bytes_per_token"], cache, "{}", giant.model);
        let kinds = card["spec"]["kinds"].to_string();
        for word in giant.words {
            assert!(kinds.contains(word), "{word} in {kinds}");
        }

        let plan = within_bounds(&[
            "plan",
            file,
            "--cluster",
            cluster,
            "--ctx",
            "16384",
            "--parallel",
            "1",
            "--json",
        ]);
        let stages = plan["stages"].as_array().unwrap();
        let bytes = |name: &str| stages.iter().map(|stage| stage[name].as_f64().unwrap()).sum::<f64>();
        // No tensor is left out, and only the ends could be there twice.
        assert!(near(bytes("weight_bytes"), giant.published_bytes, 0.01), "{}", bytes("weight_bytes"));
        assert_eq!(bytes("cache_bytes"), (cache * 16384) as f64);
        for stage in stages {
            let taken =
                ["weight_bytes", "cache_bytes", "workspace_bytes"].map(|name| stage[name].as_u64().unwrap());
            assert!(taken.iter().sum::<u64>() <= 144_000_000_000, "{stage}");
        }
        // One stream is bound by reading the active weights: the plan must not promise more, nor much less.
        let limit = 800e9 / (giant.active * giant.published_bytes / giant.parameters);
        let decode = plan["decode_tokens_per_s"].as_f64().unwrap();
        assert!(decode <= limit * 1.02 && decode >= limit * 0.8, "{decode} tokens/s, the limit is {limit}");
        println!(
            "{}: {} stages, {decode:.2} tokens/s predicted (memory allows {limit:.2})",
            giant.model,
            stages.len()
        );
    }
}

#[test]
fn giants_are_planned_on_cards_too() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = folder.path().join("cards.toml");
    std::fs::write(&cluster, CLUSTER.replace("tflops = 27", "tflops = 27\ndevice = \"metal\"")).unwrap();
    for giant in GIANTS {
        let file = header(folder.path(), &giant);
        let mut plan = Command::new(&setup::programs().brigade);
        let output = plan.arg("plan").arg(&file).arg("--cluster").arg(&cluster).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", giant.model);
    }
}

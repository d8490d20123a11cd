//! The rules of the house that a compiler does not hold.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use brigade_tests::setup::repository;
use serde_json::Value;

/// A file longer than this holds two concepts.
const LONGEST_FILE: usize = 800;

/// Every Rust file of the repository, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in ["shard", "proto", "worker", "coordinator", "tests"] {
        collect(&repository().join(folder), &mut found);
    }
    assert!(found.len() > 30, "only {} Rust files found", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path.strip_prefix(repository()).unwrap().to_owned(), text));
        }
    }
}

fn hold(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The workspace's packages with the names of what they depend on, development apart.
fn dependencies() -> Vec<(String, BTreeSet<String>)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().clone();
        let used = all.into_iter().filter(|dependency| dependency["kind"].is_null());
        used.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
    };
    packages.iter().map(|package| (package["name"].as_str().unwrap().to_owned(), of(package))).collect()
}

#[test]
fn arrows_between_crates_run_one_way() {
    for (package, dependencies) in dependencies() {
        let allowed: &[&str] = match package.as_str() {
            "brigade-shard" => &[],
            "brigade-proto" => &["brigade-shard"],
            "brigade-worker" | "brigade-coordinator" => &["brigade-shard", "brigade-proto"],
            "brigade-tests" => &["brigade-shard", "brigade-proto", "brigade-worker", "brigade-coordinator"],
            "brigade-kernel-tests" => &[],
            other => panic!("{other} has no place in the house yet: add it here and to ARCHITECTURE.md"),
        };
        let ours = dependencies.iter().filter(|name| name.starts_with("brigade-"));
        let wrong =
            ours.filter(|name| !allowed.contains(&name.as_str())).map(|name| format!("{package} -> {name}"));
        hold("shard <- proto <- {worker, coordinator} <- tests", wrong.collect());
    }
}

#[test]
fn only_the_worker_knows_candle_and_shard_stays_pure() {
    for (package, dependencies) in dependencies() {
        if package != "brigade-worker" {
            let candle = dependencies.iter().find(|name| name.starts_with("candle"));
            assert_eq!(candle, None, "{package} depends on candle");
        }
        if package == "brigade-shard" {
            for banned in ["tokio", "quinn", "tonic", "axum", "candle-core", "tracing"] {
                assert!(!dependencies.contains(banned), "shard is pure, but depends on {banned}");
            }
        }
    }
}

#[test]
fn protobuf_types_stay_in_proto() {
    let outside = sources().into_iter().filter(|(path, text)| {
        !path.starts_with("proto")
            && !path.starts_with("tests")
            && (text.contains("prost::") || text.contains("::pb::"))
    });
    hold(
        "protobuf types stop at the edge of proto",
        outside.map(|(path, _)| path.display().to_string()).collect(),
    );
}

#[test]
fn pure_decisions_read_no_clock_and_start_no_task() {
    let pure = |path: &Path| {
        let folders = [
            "shard/src",
            "coordinator/src/scheduler",
            "coordinator/src/deployment",
            "coordinator/src/health",
            "worker/src/lifecycle",
        ];
        let files = [
            "coordinator/src/events/between.rs",
            "coordinator/src/membership.rs",
            "coordinator/src/store/choice.rs",
            "coordinator/src/store/ledger.rs",
            "coordinator/src/store/names.rs",
            "coordinator/src/store/source.rs",
            "coordinator/src/store/spans.rs",
            "worker/src/lifecycle.rs",
            "worker/src/cache.rs",
        ];
        let listed = folders.iter().any(|folder| path.starts_with(folder))
            || files.iter().any(|file| path == Path::new(file));
        listed
            && !path.ends_with("tests.rs")
            && !path.parent().is_some_and(|folder| folder.ends_with("tests"))
    };
    let mut broken = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| pure(path)) {
        for (number, line) in text.lines().enumerate() {
            let banned =
                ["Instant::now", "SystemTime::now", "tokio::spawn", "tokio::time", "async fn", "println!"];
            if banned.iter().any(|word| line.contains(word)) && !line.trim_start().starts_with("//") {
                broken.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    hold("decisions are pure: time comes from outside, and nothing is awaited", broken);
}

#[test]
fn every_module_says_its_concept() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//!"));
    hold("each file opens with `//!`", silent.map(|(path, _)| path.display().to_string()).collect());
}

#[test]
fn no_file_is_a_drawer() {
    let drawer = |path: &Path| {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        ["utils", "util", "helpers", "helper", "common", "misc"].contains(&stem.as_str())
    };
    let drawers = sources()
        .into_iter()
        .filter(|(path, _)| drawer(path) || path.iter().any(|part| drawer(Path::new(part))));
    hold("no utils, helpers or common", drawers.map(|(path, _)| path.display().to_string()).collect());
}

#[test]
fn no_file_holds_two_concepts_by_its_length() {
    let long = sources().into_iter().map(|(path, text)| (path, text.lines().count()));
    let long = long.filter(|(_, lines)| *lines > LONGEST_FILE);
    hold(
        "files stay under 800 lines",
        long.map(|(path, lines)| format!("{}: {lines}", path.display())).collect(),
    );
}

#[test]
fn exceptions_to_lints_give_their_reason() {
    let mut broken = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("#[allow("))
        {
            broken.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
        }
    }
    hold("`#[expect(lint, reason = ...)]`, never `#[allow]`", broken);
}

#[test]
fn only_devices_depend_on_their_features() {
    let gated = sources().into_iter().filter(|(path, text)| {
        let named = text.contains("feature = \"cuda\"") || text.contains("feature = \"metal\"");
        let allowed = ["worker/src/device", "worker/src/candle_backend"];
        named && !path.ends_with("tidy.rs") && !allowed.iter().any(|folder| path.starts_with(folder))
    });
    hold(
        "cuda and metal are the affair of worker/src/device and of candle's backend",
        gated.map(|(path, _)| path.display().to_string()).collect(),
    );
}

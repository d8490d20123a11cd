//! `brigade-worker selftest`: what it compares, what it tells, and how it ends.

use std::collections::BTreeSet;
use std::process::Command;

use brigade_shard::kernels::Kernels;
use brigade_shard::tensor_type::TensorType;
use brigade_worker::cli::Device;
use brigade_worker::selftest::{SelftestArgs, run};
use brigade_worker::settings::Machine;
use brigade_worker::tiny::{FAMILIES, KINDS};
use serde_json::Value;

use super::tiny_model::TinyModel;

fn args() -> SelftestArgs {
    let device: Device = "cpu".parse().unwrap();
    SelftestArgs { device, model: None, threads: None, no_speed: true, json: true }
}

fn text(args: &SelftestArgs) -> (bool, String) {
    let mut out = Vec::new();
    let passed = run(args, &Machine::here(), &mut out).unwrap();
    (passed, String::from_utf8(out).unwrap())
}

#[test]
fn candle_on_the_processor_passes_every_check_against_our_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    TinyModel::wide(TensorType::Q4K).write(&file);
    let (passed, report) = text(&SelftestArgs { model: Some(file), ..args() });
    let report: Value = serde_json::from_str(&report).unwrap();
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        println!("{} {} {}: {}", check["what"], check["name"], check["type"], check["difference"]);
    }
    assert!(passed && report["passed"] == true, "{report:#}");
    // Two kinds of kernels were compared, and not one with itself.
    assert!(report["tested"].as_str().unwrap().contains("candle"), "{report}");
    let differ = checks.iter().filter(|check| check["difference"].as_f64().unwrap() > 0.0).count();
    assert!(differ > checks.len() / 2, "{differ} of {} differ at all", checks.len());

    let named = |what: &str, field: &str| -> BTreeSet<String> {
        let of = checks.iter().filter(|check| check["what"] == what);
        of.filter_map(|check| check[field].as_str().map(str::to_owned)).collect()
    };
    let kinds: BTreeSet<String> = KINDS.iter().map(|(kind, _)| kind.name().to_owned()).collect();
    assert_eq!(named("kernel", "type"), kinds);
    assert!(TensorType::all().filter(|kind| Kernels::CPU.has(*kind)).all(|kind| kinds.contains(kind.name())));
    let families: BTreeSet<String> = FAMILIES.iter().map(|family| family.name.to_owned()).collect();
    assert_eq!(named("family", "name"), families);
    assert_eq!(named("model", "name").len(), 1);
    assert!(report["speeds"].is_null());
}

#[test]
fn the_program_prints_tables_with_speeds_and_ends_with_its_verdict() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade-worker"));
        let output = command.arg("selftest").args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = run(&["--threads", "2"]);
    println!("{out}");
    assert_eq!(code, Some(0), "{out}{err}");
    for words in [
        "| Q4_K    | Q4_K ",
        "| IQ4_XS  | Q6_K ",
        "deepseek-v3 F32",
        "memory gives",
        "A hop over loopback",
        "checks passed",
    ] {
        assert!(out.contains(words), "`{words}` is not in {out}");
    }
    let (code, out, err) = run(&["--device", "cuda:0"]);
    if !cfg!(feature = "cuda") {
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains("feature `cuda`"), "{err}");
    }
    let (code, _, err) = run(&["--device", "tpu"]);
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn a_model_that_is_none_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.gguf");
    std::fs::write(&file, "no model").unwrap();
    let error = run(&SelftestArgs { model: Some(file), ..args() }, &Machine::here(), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("text.gguf"), "{error}");
}

//! `tests/bench/compare.py` judges what two programs say; here two scripts stand in for them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use brigade_tests::setup;
use serde_json::Value;

/// A gigabyte per token, of 25 a second: 92% of them are 23 tokens.
const OURS: &str = r#"cat <<'JSON'
[{"avg_ts": 100.0},
 {"avg_ts": 20.0, "bytes_per_token": 1e9, "memory_bytes_per_s": 25e9, "load_ms": 275.0, "read_file_ms": 150.0,
  "peak_resident": 104857600, "resident_limit": 125829120, "model_size": 73400320, "cpu_info": "a processor"}]
JSON
"#;

/// With one thread llama.cpp decodes 18 tokens and reads a prompt as fast; with two it decodes 30 and reads faster.
const LLAMA: &str = r#"case "$*" in
  *__version__*) echo 0.3.36 ;;
  *"--threads 1"*) echo '{"prompt_ts": 100.0, "decode_ts": 18.0, "load_ms": 500.0, "peak_resident": 209715200}' ;;
  *) echo '{"prompt_ts": 101.0, "decode_ts": 30.0, "load_ms": 500.0, "peak_resident": 209715200}' ;;
esac
"#;

fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn compare(work: &Path, arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(setup::python());
    command.arg(setup::repository().join("tests/bench/compare.py")).arg("--work").arg(work);
    command.arg("--llama-venv").arg(work.join("venv")).arg("--worker").arg(work.join("worker"));
    let output = command.args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn what_must_hold_is_judged_by_the_medians_of_the_rounds() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path();
    script(&work.join("worker"), OURS);
    script(&work.join("venv/bin/python"), LLAMA);
    // It is there already, so that none is made.
    std::fs::write(work.join("llama-1b-q4_0.gguf"), "").unwrap();
    let two = std::thread::available_parallelism().unwrap().get() > 1;
    let threads = if two { "1,2" } else { "1" };
    let (ended, table, said) =
        compare(work, &["--files", "llama-1b-q4_0", "--threads", threads, "--rounds", "2"]);
    assert!(ended, "{said}");

    let results: Value =
        serde_json::from_str(&std::fs::read_to_string(work.join("results.json")).unwrap()).unwrap();
    let items = results["items"].as_array().unwrap();
    assert_eq!(items.len(), if two { 2 } else { 1 });
    for item in items {
        let summary = &item["summary"];
        let number = |part: &str, key: &str| summary[part][key].as_f64().unwrap();
        let holds = |part: &str| summary[part]["holds"].as_bool().unwrap();
        assert_eq!(item["rounds"].as_array().unwrap().len(), 2);
        assert_eq!(number("decode", "share"), 0.8, "{summary:#}");
        assert!(holds("memory"), "{summary:#}");
        // 1.2 times 150 ms, and 100 ms.
        assert!((number("load", "wanted") - 280.0).abs() < 1e-9 && holds("load"), "{summary:#}");
        if item["threads"] == 1 {
            // 1.1 times 18 is less than what memory gives.
            assert!((number("decode", "wanted") - 19.8).abs() < 1e-9, "{summary:#}");
            assert!(holds("decode") && holds("prompt"), "{summary:#}");
        } else {
            assert!((number("decode", "wanted") - 23.0).abs() < 1e-9, "{summary:#}");
            assert!(!holds("decode") && !holds("prompt"), "{summary:#}");
        }
    }
    assert_eq!(
        table.matches('✗').count(),
        if two { 3 } else { 1 },
        "two that fail, and what the mark means: {table}"
    );
    assert!(
        table.contains("| llama-1b-q4_0 | 1 | 25.0 | 100.0 | 100.0 | 1.00 (1.00 to 1.00) | 20.00 | 18.00 "),
        "{table}"
    );
}

#[test]
fn a_comparison_that_cannot_be_made_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path();
    script(&work.join("worker"), OURS);
    script(&work.join("venv/bin/python"), "echo 0.1.0");
    for (arguments, reason) in [
        (["--files", "llama-1b-q4_0"], "0.1.0"),
        (["--files", "gpt-17"], "gpt-17"),
        (["--threads", "0"], "threads"),
        (["--rounds", "0"], "rounds"),
    ] {
        let (ended, _, said) = compare(work, &arguments);
        assert!(!ended && said.contains(reason), "{arguments:?}: {said}");
    }
}

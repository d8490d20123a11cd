//! `brigade-worker bench` on a tiny model: its three forms of report agree, and what is wrong is said.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::tiny_model::TinyModel;
use brigade_shard::model_file::Place;
use brigade_shard::units::Bytes;
use brigade_worker::bench::{self, BenchError};
use brigade_worker::cli::{Command, parse};
use brigade_worker::settings::Machine;
use serde_json::Value;

/// What `brigade-worker bench MODEL` with further arguments writes, or why it does not.
fn run(model: &Path, arguments: &str) -> Result<String, BenchError> {
    let words = ["brigade-worker".into(), "bench".into(), model.as_os_str().to_owned()];
    let words = words.into_iter().chain(arguments.split_whitespace().map(OsString::from));
    let Command::Bench(args) = parse(words).unwrap().command else { panic!("not `bench`") };
    let mut out = Vec::new();
    bench::run(&args, &Machine { memory: Bytes::mib(1024), ..Machine::here() }, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn model() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::q4_1().write(&path);
    (folder, path)
}

#[test]
fn json_says_what_was_measured_and_its_figures_agree() {
    let (_folder, path) = model();
    let text = run(&path, "-p 40 -n 6 -d 0,10 --pg 33,5 -t 1,2 -b 16 -r 2 -o json --read-file").unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let records = report.as_array().unwrap();
    let tests: Vec<[u64; 4]> = records
        .iter()
        .map(|record| ["n_threads", "n_prompt", "n_gen", "n_depth"].map(|key| record[key].as_u64().unwrap()))
        .collect();
    let of_threads = |threads| {
        [
            [threads, 40, 0, 0],
            [threads, 0, 6, 0],
            [threads, 33, 0, 0],
            [threads, 0, 5, 33],
            [threads, 40, 0, 10],
            [threads, 0, 6, 10],
            [threads, 33, 0, 10],
            [threads, 0, 5, 43],
        ]
    };
    assert_eq!(tests, [of_threads(1), of_threads(2)].concat());
    let file = std::fs::metadata(&path).unwrap().len();
    for record in records {
        let number = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key}: {record:#}"));
        let tokens = number("n_prompt") + number("n_gen");
        let samples = record["samples_ns"].as_array().unwrap();
        let speeds: Vec<f64> = samples.iter().map(|ns| tokens * 1e9 / ns.as_f64().unwrap()).collect();
        assert_eq!(speeds.len(), 2);
        let mean = (speeds[0] + speeds[1]) / 2.0;
        assert!((number("avg_ts") / mean - 1.0).abs() < 1e-3, "{record:#}");
        assert!(number("memory_bytes_per_s") > 1e8 && number("load_ms") > 0.0, "{record:#}");
        assert!(number("read_file_ms") > 0.0, "{record:#}");
        assert_eq!(number("file_size"), file as f64);
        assert!(number("model_size") < file as f64);
        assert!(number("peak_resident") > number("model_size"), "{record:#}");
        assert_eq!(
            number("resident_limit"),
            number("model_size") + number("cache_size") + (48u64 << 20) as f64
        );
        if number("n_gen") == 0.0 {
            assert!(record["bytes_per_token"].is_null() && record["memory_share"].is_null(), "{record:#}");
            continue;
        }
        let bytes_per_s = number("bytes_per_token") * number("avg_ts");
        assert!((number("read_bytes_per_s") / bytes_per_s - 1.0).abs() < 1e-9, "{record:#}");
        let share = bytes_per_s / number("memory_bytes_per_s");
        assert!((number("memory_share") / share - 1.0).abs() < 1e-9, "{record:#}");
    }
}

#[test]
fn a_token_reads_all_weights_but_most_of_the_embedding_and_what_is_cached() {
    let (_folder, path) = model();
    let text = run(&path, "-p 0 -n 1 -d 0,31,32 -r 1 -t 1 -o json --no-warmup").unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let bytes: Vec<f64> =
        report.as_array().unwrap().iter().map(|record| record["bytes_per_token"].as_f64().unwrap()).collect();
    let model = TinyModel::q4_1();
    // Keys and values of f16, and the head is the embedding, of which the token's own row is read once more.
    let cached = |positions: u32| {
        f64::from(positions) * (model.layers * model.kv_heads * (model.hidden / model.heads) * 4) as f64
    };
    let weights = report[0]["model_size"].as_f64().unwrap();
    let row = bytes[0] - weights - cached(1);
    assert!(row > 0.0 && row < weights / 10.0, "{bytes:?}");
    assert_eq!(bytes[1] - bytes[0], cached(31));
    assert_eq!(bytes[2] - bytes[1], cached(1));
}

#[test]
fn sequences_that_decode_together_read_the_weights_once() {
    let (_folder, path) = model();
    let text = run(&path, "-p 5 -n 3 -d 0,40 --streams 1,3 -r 1 -t 1 -o json").unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let tests: Vec<[u64; 4]> = (0..6)
        .map(|i| ["n_prompt", "n_gen", "n_depth", "streams"].map(|key| report[i][key].as_u64().unwrap()))
        .collect();
    let wanted = [[5, 0, 0, 1], [0, 3, 0, 1], [0, 3, 0, 3], [5, 0, 40, 1], [0, 3, 40, 1], [0, 3, 40, 3]];
    assert_eq!(tests, wanted);
    let number = |i: usize, key: &str| report[i][key].as_f64().unwrap();
    for (alone, together) in [(1, 2), (4, 5)] {
        let tokens_per_s = 9e9 / report[together]["samples_ns"][0].as_f64().unwrap();
        assert!((number(together, "avg_ts") / tokens_per_s - 1.0).abs() < 1e-3, "{report:#}");
        // Two of three tokens read what is cached of their sequence, and no weights.
        let saved = number(alone, "bytes_per_token") - number(together, "bytes_per_token");
        let weights =
            number(alone, "bytes_per_token") - number(1, "bytes_per_token") + number(1, "model_size");
        assert!(saved > 0.6 * number(1, "model_size") && saved < weights, "{report:#}");
    }

    let markdown = run(&path, "-p 0 -n 2 --streams 3 -r 1 -t 1").unwrap();
    assert!(markdown.contains(" 3 x tg2 "), "{markdown}");
}

#[test]
fn csv_has_a_field_for_each_name_and_markdown_a_cell_for_each_column() {
    let (_folder, path) = model();
    let csv = run(&path, "-p 8 -n 2 -r 1 -t 1 -o csv").unwrap();
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 3, "{csv}");
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{csv}");
    let speed = lines[0].iter().position(|name| *name == "avg_ts").unwrap();
    assert!(lines[1..].iter().all(|line| line[speed].parse::<f64>().unwrap() > 0.0), "{csv}");

    let markdown = run(&path, "-p 8 -n 2 -r 1 -t 1 -d 4").unwrap();
    let rows: Vec<&str> = markdown.lines().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 4, "{markdown}");
    assert!(rows.iter().all(|row| row.matches('|').count() == rows[0].matches('|').count()), "{markdown}");
    assert!(rows[2].contains(" pp8 @ d4 ") && rows[3].contains(" tg2 @ d4 "), "{markdown}");
    assert!(rows[3].contains('%') && !rows[2].contains('%'), "{markdown}");
    assert!(markdown.contains("loaded in") && markdown.contains("memory at most"), "{markdown}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    let (folder, path) = model();
    let failure = |path: &Path, arguments: &str| run(path, arguments).unwrap_err();
    assert!(failure(&path, "-p 0 -n 0").is_usage());
    assert!(failure(&path, "-p 4294967295 -n 0 -d 1").is_usage());
    assert!(failure(&path, "-p 4294967295 -n 0").is_usage());

    let long = failure(&path, "-p 4000000000 -n 0");
    assert!(matches!(long, BenchError::TooLittleMemory { .. }) && !long.is_usage(), "{long}");
    assert!(long.to_string().contains("1.0 GiB"), "{long}");

    let text = folder.path().join("text.gguf");
    std::fs::write(&text, "not a model, but long enough to be one").unwrap();
    let wrong = failure(&text, "");
    assert!(matches!(wrong, BenchError::File(_)) && wrong.to_string().contains("text.gguf"), "{wrong}");
    let missing = failure(&folder.path().join("missing.gguf"), "");
    assert!(missing.to_string().contains("missing.gguf"), "{missing}");

    let header = TinyModel::q4_1().write(&path);
    let Place::File { offset, .. } = header.tensor("token_embd.weight").unwrap().pieces[0].place else {
        panic!()
    };
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // Scales that are no numbers.
    file.write_all_at(&[0xff; 34 * 40], offset).unwrap();
    let damaged = failure(&path, "-p 200 -n 0 -r 1 --no-warmup");
    assert!(damaged.to_string().contains("no numbers"), "{damaged}");

    for arguments in
        ["-r 0", "-t 0", "--streams 0", "-b 0", "-p x", "--pg 512", "-o xml", "--device tpu", "--frobnicate"]
    {
        let words = ["brigade-worker", "bench", "m.gguf"].into_iter().chain(arguments.split(' '));
        assert!(parse(words.map(OsString::from)).is_err(), "{arguments}");
    }
}

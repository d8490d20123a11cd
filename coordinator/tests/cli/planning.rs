//! `brigade plan` for machines that are only written down: the catalogues, the examples, the verdict and what one more
//! device would bring.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{Outcome, run};

/// The example cluster files.
fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/clusters");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    files
}

/// The words of a command line, of which some stand in double quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('"').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(ToOwned::to_owned));
        }
    }
    words
}

/// The command line in an example's comment, without the program's name.
fn command_of(example: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(example).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("#   brigade ")).unwrap();
    words(line)
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// Eight layers of 2.5 MiB, and a cluster file.
fn home(cluster: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    crate::tiny_model::write_model(&home.path().join("tiny.gguf"), 8);
    std::fs::write(home.path().join("cluster.toml"), cluster).unwrap();
    home
}

const TWO: &str = "[[device]]\nname = 'studio'\nmemory = '20MiB'\nbandwidth_gbps = 80\ntflops = 2\nprice_usd = 100\n\
                   loaded_watts = 50\nidle_watts = 5\n\
                   [[device]]\nname = 'mini'\nmemory = '20MiB'\nbandwidth_gbps = 40\ntflops = 1\n\
                   [economics]\nstreams = 2\nelectricity_usd_per_kwh = 0.3\nhours_per_day = 8\n";

#[test]
fn every_example_is_planned_as_its_comment_says() {
    let examples = examples();
    assert!(examples.len() >= 3, "{examples:?}");
    for example in examples {
        let mut args = command_of(&example);
        let folder = example.parent().unwrap();
        let args: Vec<&str> = args.iter_mut().map(|arg| arg.as_str()).collect();
        let people = run(folder, &args);
        assert_eq!(people.code, Some(0), "{}: {people:?}", example.display());
        println!("{}", people.out);
        for line in [
            "\npredicted ",
            "\nprompt ",
            "\npower ",
            "\nenergy ",
            "\nprice ",
            "\ntokens ",
            "\npaid back ",
            "\nverdict ",
        ] {
            assert!(people.out.contains(line), "{line} in {}", people.out);
        }
        let report = json(&run(folder, &[&args[..], &["--json"]].concat()));
        let stages = report["stages"].as_array().unwrap();
        assert!(!stages.is_empty(), "{report}");
        assert!(report["forecast"]["one_stream_tokens_per_s"].as_f64().unwrap() > 0.0, "{report}");
        assert!(report["economics"]["earned_back"]["when"].is_string(), "{report}");
    }
}

#[test]
fn the_catalogues_are_listed_with_their_sources() {
    let home = tempfile::tempdir().unwrap();
    for (which, name) in [("devices", "RTX 5090"), ("links", "10GbE"), ("models", "Llama 3.1 405B")] {
        let people = run(home.path(), &["plan", "--list", which]);
        assert_eq!(people.code, Some(0), "{people:?}");
        assert!(people.out.contains(name) && people.out.contains("SOURCE"), "{}", people.out);
        let listed = json(&run(home.path(), &["plan", "--list", which, "--json"]));
        let rows = listed[which].as_array().unwrap();
        assert!(rows.iter().any(|row| row["name"] == name), "{listed}");
        assert!(rows.iter().all(|row| !row["source"].as_str().unwrap().is_empty()), "{listed}");
    }
    let devices = run(home.path(), &["plan", "--catalogue", "devices"]);
    assert!(devices.out.contains("disagrees  RTX 5090: fp16_tflops is 380"), "{}", devices.out);
    let wrong = run(home.path(), &["plan", "--list", "cables"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
}

#[test]
fn unknown_names_come_with_the_nearest() {
    let home = home("[[device]]\ntype = 'RTX 509'\n");
    let model = run(home.path(), &["plan", "Lama 3.1 405B", "--cluster", "cluster.toml"]);
    assert_eq!(model.code, Some(1), "{model:?}");
    assert!(model.err.contains("Llama 3.1 405B") && model.err.contains("--list models"), "{}", model.err);
    let device = run(home.path(), &["plan", "tiny.gguf", "--cluster", "cluster.toml"]);
    assert_eq!(device.code, Some(2), "{device:?}");
    for words in ["cluster.toml", "[[device]] `RTX 509`", "RTX 5090", "--list devices"] {
        assert!(device.err.contains(words), "{words} in {}", device.err);
    }
    std::fs::write(home.path().join("cluster.toml"), format!("{TWO}[links]\ndefault = '10GbR'\n")).unwrap();
    let link = run(home.path(), &["plan", "tiny.gguf", "--cluster", "cluster.toml"]);
    assert_eq!(link.code, Some(2), "{link:?}");
    assert!(link.err.contains("[links]") && link.err.contains("10GbE"), "{}", link.err);
    let file = run(home.path(), &["plan", "./models/Llama 3.1 405B"]);
    assert!(
        file.err.contains("failed to open the model") && file.err.contains("No such file"),
        "{}",
        file.err
    );
}

#[test]
fn a_model_of_the_catalogue_is_planned_like_a_file() {
    let home = home("[[device]]\ntype = 'RTX 5090'\n");
    let args = ["plan", "llama-3.1-8b", "--cluster", "cluster.toml", "--ctx", "4096", "--json"];
    let report = json(&run(home.path(), &args));
    assert_eq!((report["verdict"]["kind"].as_str(), report["layers"].as_u64()), (Some("one-box"), Some(32)));
    assert_eq!(report["devices"][0]["catalogue"], "RTX 5090");
    let coarse = json(&run(home.path(), &[&["plan", "Llama 3.1 8B:Q2_K"], &args[2..]].concat()));
    let bytes = |report: &Value| report["weight_bytes"].as_u64().unwrap();
    assert!(bytes(&coarse) < bytes(&report), "{coarse}");
}

#[test]
fn where_nothing_holds_the_model_the_verdict_is_told_and_the_command_fails() {
    let small = TWO.replace("20MiB", "8MiB");
    let home = home(&small);
    let args = ["plan", "tiny.gguf", "--cluster", "cluster.toml", "--ctx", "256", "--parallel", "1"];
    let people = run(home.path(), &args);
    assert_eq!((people.code, people.out.as_str()), (Some(1), ""), "{people:?}");
    assert!(
        people.err.contains("failed to place tiny on 2 workers") && people.err.contains("MiB more"),
        "{}",
        people.err
    );
    let outcome = run(home.path(), &[&args[..], &["--json"]].concat());
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let report = json(&outcome);
    assert_eq!(report["verdict"]["kind"], "not-at-all");
    assert!(report["verdict"]["missing_bytes"].as_u64().unwrap() > 0, "{report}");
    assert!(report.get("stages").is_none(), "{report}");
}

#[test]
fn what_a_device_may_read_again_lets_it_hold_more() {
    let one = TWO.split("[[device]]\nname = 'mini'").next().unwrap();
    let home = home(one);
    let args =
        ["plan", "tiny.gguf", "--cluster", "cluster.toml", "--ctx", "256", "--parallel", "1", "--json"];
    let without = run(home.path(), &args);
    assert_eq!(without.code, Some(1), "{without:?}");
    let silent = run(home.path(), &[&args[..], &["--offload"]].concat());
    assert_eq!(silent.code, Some(1), "nobody says how fast: {silent:?}");
    let report = json(&run(home.path(), &[&args[..], &["--offload", "--offload-rate", "2GB/s"]].concat()));
    assert_eq!(report["verdict"]["kind"], "one-box-with-offload");
    assert!(report["streamed"][0]["layers"].as_u64().unwrap() > 0, "{report}");
    let wrong = run(home.path(), &[&args[..], &["--offload", "--offload-rate", "fast"]].concat());
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.err.contains("7GB/s"), "{}", wrong.err);
}

#[test]
fn workers_on_this_machine_offload_at_a_rate_that_is_said() {
    let home = home(TWO);
    let args = ["plan", "tiny.gguf", "--memory", "16MiB", "--ctx", "256", "--parallel", "1"];
    assert_eq!(run(home.path(), &args).code, Some(1));
    let outcome = run(home.path(), &[&args[..], &["--offload"]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(
        outcome.out.contains("\noffload ") && outcome.out.contains("read again, 2 GB/s"),
        "{}",
        outcome.out
    );
    assert!(outcome.out.contains("one box with offload: w1 reads"), "{}", outcome.out);
}

#[test]
fn economics_are_reckoned_for_their_own_number_of_streams() {
    let home = home(TWO);
    let args = ["plan", "tiny.gguf", "--cluster", "cluster.toml", "--ctx", "256", "--parallel", "4"];
    let report = json(&run(home.path(), &[&args[..], &["--json"]].concat()));
    assert_eq!(report["economics"]["streams"], 2);
    let people = run(home.path(), &args);
    assert!(people.out.contains("for 2 streams together"), "{}", people.out);
    assert!(people.out.contains("without mini (unknown)"), "{}", people.out);
    let prompt = run(home.path(), &[&args[..], &["--prompt", "96"]].concat());
    assert!(prompt.out.contains("first token of a 96-token prompt"), "{}", prompt.out);
}

#[test]
fn one_more_device_is_shown_with_what_it_brings_for_its_price() {
    let home = home(&TWO.replace("20MiB", "8MiB"));
    let args = ["plan", "tiny.gguf", "--cluster", "cluster.toml", "--ctx", "256", "--parallel", "1"];
    let one = run(home.path(), &[&args[..], &["--what-if", "RTX 5090, RTX 4090"]].concat());
    assert_eq!(one.code, Some(1), "nothing holds it yet: {one:?}");
    assert!(
        one.out.contains("What one more device would bring") && one.out.contains("RTX 4090"),
        "{}",
        one.out
    );
    let all = json(&run(home.path(), &[&args[..], &["--json", "--what-if"]].concat()));
    let rows = all["what_if"].as_array().unwrap();
    assert!(rows.len() > 5, "the whole catalogue: {all}");
    assert!(rows[0]["many_streams"]["after"].as_f64().unwrap() > 0.0, "{all}");
    let wrong = run(home.path(), &[&args[..], &["--what-if", "RTX 509"]].concat());
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.err.contains("RTX 5090"), "{}", wrong.err);
}

#[test]
fn workers_on_this_machine_are_meant_where_they_are_named_whatever_the_url() {
    let home = home(TWO);
    let nobody = ["--url", "http://127.0.0.1:1"];
    let live = run(home.path(), &[&["plan", "tiny.gguf"][..], &nobody].concat());
    assert_eq!(live.code, Some(1), "{live:?}");
    assert!(live.err.contains("no coordinator answers"), "{}", live.err);
    let local = run(
        home.path(),
        &[&["plan", "tiny.gguf", "--workers", "1", "--memory", "64MiB"][..], &nobody].concat(),
    );
    assert_eq!(local.code, Some(0), "{local:?}");
    assert!(local.out.contains("1 worker on this machine"), "{}", local.out);
}

#[test]
fn claims_need_no_model() {
    let home = tempfile::tempdir().unwrap();
    let people = run(home.path(), &["plan", "--claims"]);
    assert_eq!(people.code, Some(0), "{people:?}");
    assert!(people.out.contains("above the limit"), "{}", people.out);
    let claims = json(&run(home.path(), &["plan", "--claims", "--json"]));
    assert!(claims.is_object(), "{claims}");
}

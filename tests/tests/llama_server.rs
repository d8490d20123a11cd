//! A cluster measured against llama.cpp behind an OpenAI-compatible server: the one of `llama-cpp-python`.
//!
//! Its environment is made once, with `BRIGADE_LLAMA_SERVER=1`, by compiling llama.cpp. Where that was not asked for or cannot
//! be done, the test is reported as ignored, never as passed.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use brigade_tests::cluster::brigade;
use brigade_tests::process::Process;
use brigade_tests::setup;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// How long the server may take to load the model and listen.
const LISTENS: Duration = Duration::from_secs(60);
/// Tokens of a stream: enough to have a speed.
const TOKENS: &str = "24";

fn main() {
    let arguments = Arguments::from_args();
    // Nothing is compiled only to list tests.
    let python = if arguments.list { Err("it was only asked for".to_owned()) } else { setup::llama_server() };
    if let (Err(reason), false) = (&python, arguments.list) {
        println!("llama.cpp's server is not here, so this test is skipped: {reason}");
    }
    let skip = python.is_err() && !arguments.list;
    let test = move || against_llama_cpp(&python?);
    let trial = Trial::test("a_cluster_is_compared_with_llama_cpp", test).with_ignored_flag(skip);
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

fn against_llama_cpp(python: &Path) -> Result<(), Failed> {
    let mut server = Command::new(python);
    server.args(["-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", "0", "--model"]);
    server.arg(setup::smollm2()).args(["--n_ctx", "512", "--n_threads", "1"]);
    let mut server = Process::start(&mut server);
    let url = server.wait_for("address", LISTENS, |line| {
        let address = line.split_once("running on http://")?.1;
        Some(format!("http://{}", address.split_whitespace().next()?))
    });

    let found = compare(&url, &["--json"])?;
    let found: Value = serde_json::from_slice(&found.stdout)?;
    let sides = found["sides"].as_array().ok_or("a comparison has sides")?;
    let kinds: Vec<&str> = sides.iter().filter_map(|side| side["kind"].as_str()).collect();
    if kinds != ["one-box", "cluster", "other"] || sides[2]["name"] != url.as_str() {
        return Err(format!("the sides are {kinds:?}: {found:#}").into());
    }
    for side in sides {
        let decode = &side["figures"][0];
        println!("{}: {} tokens/s", side["name"], decode["mean"]);
        if decode["what"] != "decode" || !decode["mean"].as_f64().is_some_and(|mean| mean > 0.0) {
            return Err(format!("a side was not measured: {found:#}").into());
        }
    }
    println!("{}", found["left_out"]);

    let table = String::from_utf8(compare(&url, &[])?.stdout)?;
    println!("{table}");
    for title in ["one box: w", "cluster: w", &url] {
        if !table.contains(title) {
            return Err(format!("`{title}` is missing in\n{table}").into());
        }
    }
    Ok(())
}

/// Compares one box and two workers of this machine with the server at `url`, on one stream.
fn compare(url: &str, more: &[&str]) -> Result<Output, Failed> {
    let home = tempfile::tempdir()?;
    let mut program = brigade(&home);
    program.arg("compare").arg(setup::smollm2()).args([
        "--workers",
        "2",
        "--memory",
        "300MiB",
        "--threads",
        "1",
    ]);
    program.args(["--ctx", "512", "--rounds", "1", "--streams", "1", "-p", "0", "-n", TOKENS]);
    let output = program.args(["--against", url, "--seed", "7"]).args(more).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program:?} ended with {}: {said}", output.status).into());
    }
    Ok(output)
}

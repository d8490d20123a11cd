//! What `brigade plan` says of a cluster, and what `brigade compare` measures on it: both name the same way, for one stream
//! and for many.
//!
//! A comparison that cannot tell its sides apart agrees with any plan. So two of the cases are such that one side is several
//! times as fast, and there both must say so.

use std::process::Command;
use std::time::Duration;

use brigade_shard::plan::WORTHWHILE_GAIN;
use brigade_tests::cluster::{Up, brigade};
use brigade_tests::network::{Network, serve_with};
use brigade_tests::setup;
use brigade_tests::wires::Conditions;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// How long a packet is under way on a slow link: a step around two workers takes some times as long as on one.
const ONE_WAY: Duration = Duration::from_millis(15);
/// Sequences that decode at the same time where there are many, and that plans are made for.
const MANY: u32 = 4;
/// Rounds of a comparison, and tokens of each of its streams: enough that intervals part where sides are far apart.
const ROUNDS: &str = "4";
const TOKENS: &str = "24";
/// Within this workers have told what their links take.
const HEARTBEATS: Duration = Duration::from_millis(2500);
/// How often a case is tried, each time with workers that measure themselves anew: one that was disturbed while it did so
/// is planned with wrongly for as long as it is there.
const ATTEMPTS: usize = 2;

fn main() {
    let possible = Network::make_bad(0, Conditions::delay(ONE_WAY)).map(drop);
    if let Err(reason) = &possible {
        println!("slow links cannot be made here, so their test is skipped: {reason}");
    }
    let trials = vec![
        Trial::test("a_contradiction_is_seen", contradiction),
        Trial::test("both_agree_where_either_of_two_equal_boxes_suffices", equal_boxes),
        Trial::test("both_split_where_one_box_would_read_from_its_disk", from_the_disk),
        Trial::test("neither_splits_over_a_slow_link", over_a_slow_link).with_ignored_flag(possible.is_err()),
    ];
    // Each has the machine to itself.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

/// Which way is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    OneBox,
    Cluster,
}

/// What both say of so many streams.
#[derive(Debug)]
struct Said {
    streams: u32,
    planned: Better,
    /// `None` where the measurement leaves it open.
    measured: Option<Better>,
}

impl Said {
    /// Whether both name the same way, and it is `clear` where it is said to be.
    fn agrees(&self, clear: Option<Better>) -> bool {
        let agree = self.measured.is_none_or(|measured| measured == self.planned);
        agree && clear.is_none_or(|clear| self.measured == Some(clear))
    }
}

/// What a plan's verdict names.
fn planned(report: &Value) -> Result<Better, Failed> {
    match report["verdict"]["kind"].as_str() {
        Some("one-box" | "one-box-with-offload") => Ok(Better::OneBox),
        Some("cluster") => Ok(Better::Cluster),
        _ => Err(format!("a plan says {}", report["verdict"]).into()),
    }
}

/// What a comparison's verdict names for so many streams. Where its intervals hold gains of which some are worth more
/// machines and some are not, it is open which way a plan should take.
fn measured(comparison: &Value, streams: u32) -> Result<Option<Better>, Failed> {
    let which = if streams == 1 { "split_for_one_stream" } else { "split_for_many_streams" };
    let better = match &comparison["verdict"][which] {
        Value::Null => return Ok(None),
        Value::Bool(true) => Better::Cluster,
        Value::Bool(false) => Better::OneBox,
        other => return Err(format!("a comparison's {which} is {other}").into()),
    };
    let interval = |side: usize| {
        let figures = comparison["sides"][side]["figures"].as_array()?;
        let is_wanted = |figure: &&Value| figure["what"] == "decode" && figure["streams"] == streams;
        let interval = &figures.iter().find(is_wanted)?["interval"];
        Some((interval[0].as_f64()?, interval[1].as_f64()?))
    };
    let (Some((one_low, one_high)), Some((low, high))) = (interval(0), interval(1)) else {
        return Err(format!("without intervals a comparison says {better:?}: {comparison:#}").into());
    };
    let is_open = low / one_high <= WORTHWHILE_GAIN && WORTHWHILE_GAIN <= high / one_low;
    Ok(Some(better).filter(|_| !is_open))
}

/// Asks a cluster that serves for both. `command` makes the program with a command and the cluster's address.
fn ask(command: &dyn Fn(&str) -> Command, context: &str) -> Result<Vec<Said>, Failed> {
    // Links are known when they have carried something and a heartbeat has told of it.
    json_of(command("bench").args(["-p", "0", "-n", "16", "--streams", "1", "-r", "1"]))?;
    std::thread::sleep(HEARTBEATS);
    let mut plans = Vec::new();
    for (streams, objective) in [(1, "one-stream"), (MANY, "many-streams")] {
        let mut plan = command("plan");
        plan.arg(setup::smollm2()).args(["--ctx", context, "--parallel", &MANY.to_string()]);
        let report = json_of(plan.args(["--objective", objective]))?;
        println!("  planned for {streams}: {}", report["verdict"]["sentence"]);
        plans.push((streams, planned(&report)?));
    }
    let streams = format!("1,{MANY}");
    let comparison = json_of(command("compare").args([
        "--rounds",
        ROUNDS,
        "--streams",
        &streams,
        "-p",
        "0",
        "-n",
        TOKENS,
    ]))?;
    println!("  measured: {}", comparison["verdict"]["text"]);
    let said = |(streams, planned)| -> Result<Said, Failed> {
        Ok(Said { streams, planned, measured: measured(&comparison, streams)? })
    };
    plans.into_iter().map(said).collect()
}

/// What a command writes with `--json`.
fn json_of(command: &mut Command) -> Result<Value, Failed> {
    let output = command.arg("--json").output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} ended with {}: {said}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Tries a case until both agree; where one way is `clear`, both must name it.
fn agree(clear: Option<Better>, case: impl Fn() -> Result<Vec<Said>, Failed>) -> Result<(), Failed> {
    let mut seen = Vec::new();
    for attempt in 1..=ATTEMPTS {
        let said = case()?;
        for Said { streams, planned, measured } in &said {
            println!("  attempt {attempt}, {streams} streams: planned {planned:?}, measured {measured:?}");
        }
        if said.iter().all(|said| said.agrees(clear)) {
            return Ok(());
        }
        seen.push(said);
    }
    Err(format!("plan and comparison differ, or miss what is clear ({clear:?}), every time: {seen:?}").into())
}

/// Two workers of this machine with so much memory each; drafts are off, which no plan reckons with.
fn on_this_machine(memory: &str, context: &str, more: &[&str]) -> Result<Vec<Said>, Failed> {
    let settings = ["--ctx", context, "--parallel", &MANY.to_string(), "--no-speculation"];
    let cluster = Up::new(setup::smollm2()).workers(2).memory(memory).measured_anew().args(settings);
    let cluster = cluster.args(more.iter().copied()).start();
    let home = tempfile::tempdir()?;
    let command = |command: &str| {
        let mut program = brigade(&home);
        program.args([command, "--url", cluster.client.url()]);
        program
    };
    let said = ask(&command, context)?;
    cluster.stop();
    Ok(said)
}

/// Of one stream alone: with several, two workers of a machine that others use, too, are now faster than one and now slower.
fn equal_boxes() -> Result<(), Failed> {
    agree(None, || {
        let said = on_this_machine("300MiB", "512", &[])?;
        Ok(said.into_iter().filter(|said| said.streams == 1).collect())
    })
}

/// The cache of the long context fills most of one box, which reads nearly all layers for every step; two hold all.
fn from_the_disk() -> Result<(), Failed> {
    agree(Some(Better::Cluster), || on_this_machine("224MiB", "2048", &["--offload"]))
}

fn over_a_slow_link() -> Result<(), Failed> {
    agree(Some(Better::OneBox), || {
        let network = Network::make_bad(3, Conditions::delay(ONE_WAY))?;
        let home = tempfile::tempdir()?;
        let settings = ["--parallel", &MANY.to_string(), "--no-speculation"];
        let (coordinator, workers, url) = serve_with(&network, home.path(), 2, "300MiB", &settings);
        let command = |command: &str| {
            let mut program = network.host(0, &setup::programs().brigade, home.path());
            program.args([command, "--url", &url]);
            program
        };
        let said = ask(&command, "512")?;
        drop((workers, coordinator));
        Ok(said)
    })
}

/// The cases would fail if plans said otherwise.
fn contradiction() -> Result<(), Failed> {
    let figure = |low: f64, high: f64| json!([{ "what": "decode", "streams": 1, "interval": [low, high] }]);
    let comparison = |split: Value, one: (f64, f64), cluster: (f64, f64)| {
        let sides = json!([{ "figures": figure(one.0, one.1) }, { "figures": figure(cluster.0, cluster.1) }]);
        json!({ "verdict": { "split_for_one_stream": split }, "sides": sides })
    };
    let agrees = |plan: &str, comparison: &Value, clear| -> Result<bool, Failed> {
        let planned = planned(&json!({ "verdict": { "kind": plan } }))?;
        Ok(Said { streams: 1, planned, measured: measured(comparison, 1)? }.agrees(clear))
    };
    let pays = comparison(json!(true), (9.0, 10.0), (20.0, 21.0));
    let does_not = comparison(json!(false), (20.0, 21.0), (9.0, 10.0));
    let hardly = comparison(json!(false), (9.9, 10.0), (10.3, 10.6));
    let open = comparison(Value::Null, (9.0, 12.0), (10.0, 11.0));
    let found = [
        agrees("cluster", &pays, None)?,
        agrees("cluster", &pays, Some(Better::Cluster))?,
        agrees("one-box-with-offload", &does_not, Some(Better::OneBox))?,
        agrees("cluster", &hardly, None)?,
        agrees("cluster", &open, None)? && agrees("one-box", &open, None)?,
        !agrees("one-box", &pays, None)?,
        !agrees("one-box-with-offload", &pays, None)?,
        !agrees("cluster", &does_not, None)?,
        !agrees("cluster", &open, Some(Better::Cluster))?,
    ];
    match found.iter().position(|right| !right) {
        Some(place) => Err(format!("case {place} is judged wrongly").into()),
        None => Ok(()),
    }
}

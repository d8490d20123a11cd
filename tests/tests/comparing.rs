//! `brigade compare` on real processes, and the pin that it needs: sides are measured in turns, the cluster is as it was
//! afterwards whatever happens to the command, and who is served is left alone.

use std::process::Output;
use std::time::{Duration, Instant};

use brigade_tests::cluster::{STOP, brigade};
use brigade_tests::http::Client;
use brigade_tests::process::Process;
use brigade_tests::serve::{Joined, Served};
use brigade_tests::setup;
use brigade_tests::stream::Streaming;
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// Within this a plan has changed, with workers that measure themselves beside others' tests.
const CHANGED: Duration = Duration::from_secs(120);
/// Within this a pin that nobody renews has ended, beside what the machine does otherwise.
const RUN_OUT: Duration = Duration::from_secs(60);
/// How often the coordinator is asked how it is.
const POLL: Duration = Duration::from_millis(20);
/// Enough for the whole model with its cache.
const WHOLE: &str = "300MiB";
/// Enough for a part of it.
const PART: &str = "128MiB";

/// Each test has the machine to itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

struct Cluster {
    served: Served,
    workers: Vec<Joined>,
    client: Client,
}

impl Cluster {
    /// A coordinator that waits for two workers, and workers with so much memory each.
    fn start(workers: &[(&str, &str)]) -> Cluster {
        let mut served = Served::start(&["--min-workers", "2", "--ctx", "512", "--parallel", "4"]);
        let workers: Vec<Joined> = workers.iter().map(|(name, memory)| served.join(name, memory)).collect();
        let client = served.client();
        Cluster { served, workers, client }
    }

    /// A program with the command and the cluster's address.
    fn command(&self, command: &str, arguments: &[&str]) -> std::process::Command {
        let mut program = brigade(&self.served.home);
        program.arg(command).args(["--url", self.client.url()]).args(arguments);
        program
    }

    /// A command's end.
    async fn run(&self, command: &str, arguments: &[&str]) -> Output {
        let mut program = self.command(command, arguments);
        tokio::task::spawn_blocking(move || program.output().expect("it starts")).await.expect("no defect")
    }

    /// A comparison that goes on for longer than any test.
    fn begin(&self) -> Process {
        let arguments = ["--rounds", "100", "--streams", "1", "-p", "0", "-n", "32"];
        Process::start(&mut self.command("compare", &arguments))
    }

    /// Waits for a status; what it is then.
    async fn until(&self, what: &str, limit: Duration, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.client.status().await;
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not {what}: {status:#}\n{}", self.served.process.output());
            tokio::time::sleep(POLL).await;
        }
    }

    /// An answer that runs for a while.
    async fn stream(&self) -> Streaming {
        let request = json!({ "prompt": "The bucket", "max_tokens": 500, "ignore_eos": true });
        let stream = Streaming::start(&self.client, &self.client.model().await, request).await;
        while stream.count() == 0 {
            tokio::time::sleep(POLL).await;
        }
        stream
    }

    async fn events(&self) -> String {
        self.client.get("/api/events").await.body.to_string()
    }
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

fn stages(status: &Value) -> usize {
    status["stages"].as_array().expect("a list").len()
}

fn serves(status: &Value, stages_wanted: usize) -> bool {
    status["phase"] == "serving" && stages(status) == stages_wanted && status["note"].is_null()
}

fn is_pinned(status: &Value) -> bool {
    status["pinned"].as_array().is_some_and(|names| !names.is_empty())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A side's figures of one kind, each with as many samples as there were rounds.
fn figures<'a>(side: &'a Value, what: &str, rounds: usize) -> Vec<&'a Value> {
    let all = side["figures"].as_array().expect("a list").iter();
    let found: Vec<&Value> = all.filter(|figure| figure["what"] == what).collect();
    for figure in &found {
        let samples: Vec<f64> = figure["samples"].as_array().expect("a list").iter().map(number).collect();
        assert!(samples.len() == rounds && samples.iter().all(|sample| *sample > 0.0), "{figure:#}");
        let (low, high) = (number(&figure["interval"][0]), number(&figure["interval"][1]));
        let mean = number(&figure["mean"]);
        assert!(low <= mean && mean <= high, "{figure:#}");
    }
    found
}

#[tokio::test]
async fn one_box_and_the_cluster_take_turns_and_the_cluster_is_as_before() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start(&[("anna", WHOLE), ("ben", WHOLE)]);
    let flags = ["--rounds", "2", "--streams", "1,4", "-p", "64", "-n", "32", "--seed", "7", "--json"];
    let output = cluster.run("compare", &flags).await;
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let status = cluster.client.status().await;
    assert!(!is_pinned(&status), "{status:#}");
    assert_eq!(status["pin_ended"], Value::Null, "it was taken back");

    let found: Value = serde_json::from_slice(&output.stdout).expect("--json writes JSON");
    println!("{found:#}");
    assert_eq!(
        (&found["rounds"], &found["seed"], &found["disturbed"]),
        (&json!(2), &json!(7), &json!(false))
    );
    let sides = found["sides"].as_array().expect("a list");
    let kinds: Vec<&Value> = sides.iter().map(|side| &side["kind"]).collect();
    assert_eq!(kinds, [&json!("one-box"), &json!("cluster")], "{found:#}");
    for (side, workers) in sides.iter().zip([1, 2]) {
        assert_eq!(side["plan"]["stages"].as_array().expect("a list").len(), workers, "{side:#}");
        let decode = figures(side, "decode", 2);
        let streams: Vec<&Value> = decode.iter().map(|figure| &figure["streams"]).collect();
        assert_eq!(streams, [&json!(1), &json!(4)], "{side:#}");
        assert_eq!((figures(side, "prompt", 2).len(), figures(side, "ttft", 2).len()), (1, 1), "{side:#}");
        let resident = side["resident"].as_array().expect("a list");
        assert!(resident.len() == workers && resident.iter().all(|each| number(&each[1]) > 1e6), "{side:#}");
        for shares in side["shares"].as_array().expect("a list") {
            let of_stages = shares["stages"].as_array().expect("a list");
            assert_eq!(of_stages.len(), workers, "{shares:#}");
            assert!(of_stages.iter().all(|stage| number(&stage["busy"]) > 0.0), "{shares:#}");
        }
    }
    assert!(!found["verdict"]["text"].as_str().expect("a text").is_empty());
    // What it drew was measured, or it is said that nothing tells it.
    let energy = sides.iter().all(|side| !figures(side, "energy", 2).is_empty());
    assert!(energy || found["left_out"].to_string().contains("joules per token"), "{found:#}");

    cluster.until("back on both", CHANGED, |status| serves(status, 2)).await;
    let events = cluster.events().await;
    assert!(events.contains("the plan is pinned to ") && events.contains(" is taken back"), "{events}");
    assert_eq!(cluster.client.metric("brigade_plan_failures_total").await, 0);
}

#[tokio::test]
async fn the_pin_is_gone_after_a_signal_and_after_the_command_was_killed() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start(&[("anna", WHOLE), ("ben", WHOLE)]);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let mut process = cluster.begin();
        cluster.until("pinned", CHANGED, is_pinned).await;
        if signal != libc::SIGTERM {
            // Otherwise on the way there.
            cluster.until("on one box", CHANGED, |status| serves(status, 1)).await;
        }
        process.signal(signal);
        let began = Instant::now();
        let (status, output) = process.wait(STOP);
        if signal == libc::SIGKILL {
            assert!(is_pinned(&cluster.client.status().await), "nobody can have taken it back yet");
            let status = cluster.until("run out", RUN_OUT, |status| !is_pinned(status)).await;
            let why = status["pin_ended"].as_str().unwrap_or_default();
            assert!(why.contains("it was not renewed in time"), "{status:#}");
            println!("  the pin of a killed command ended after {:.1?}", began.elapsed());
        } else {
            assert_eq!(status.code(), Some(130), "{output}");
            let status = cluster.client.status().await;
            assert!(!is_pinned(&status), "{status:#}");
        }
        cluster.until("back on both", CHANGED, |status| serves(status, 2)).await;
    }
    assert_eq!(cluster.client.metric("brigade_plan_failures_total").await, 0);
}

#[tokio::test]
async fn a_cluster_that_serves_others_is_left_alone() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start(&[("anna", WHOLE), ("ben", WHOLE)]);
    let stream = cluster.stream().await;
    let epoch = cluster.client.status().await["epoch"].clone();
    let short = ["-p", "0", "-n", "8", "--streams", "1"];
    for command in ["bench", "compare"] {
        let refused = cluster.run(command, &short).await;
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("the cluster serves others: 1 running and 0 waiting; request "), "{said}");
        assert!(said.contains("--force"), "{said}");
    }
    let forced = cluster.run("bench", &[&short[..], &["-r", "1", "--force", "--json"]].concat()).await;
    assert!(forced.status.success(), "{}", text(&forced.stderr));
    let document: Value = serde_json::from_slice(&forced.stdout).expect("--json writes JSON");
    assert_eq!(document["tests"][0]["disturbed"], true, "{document:#}");
    let status = cluster.client.status().await;
    assert_eq!((&status["epoch"], is_pinned(&status)), (&epoch, false), "{status:#}");
    let told = stream.end(CHANGED).await;
    assert!(told.done && told.tokens.len() == 500, "{told:?}");

    // What is told of requests may be a moment old.
    cluster.until("idle", CHANGED, |status| status["requests"]["running"] == 0).await;
    // One that comes between two rounds, or while one runs, ends the comparison.
    let mut process = cluster.begin();
    cluster.until("pinned", CHANGED, is_pinned).await;
    cluster.until("measured", CHANGED, |status| status["requests"]["running"] == 1).await;
    let stream = cluster.stream().await;
    let (status, output) = process.wait(CHANGED);
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("serve others") || output.contains("serves others"), "{output}");
    assert!(!is_pinned(&cluster.client.status().await), "{output}");
    let told = stream.end(CHANGED).await;
    assert!(told.done && told.tokens.len() == 500 && told.error.is_none(), "{told:?}");
}

#[tokio::test]
async fn a_pin_is_an_order_until_it_cannot_be_followed() {
    let _machine = MACHINE.lock().await;
    let mut cluster = Cluster::start(&[("anna", WHOLE), ("ben", WHOLE), ("carla", PART)]);
    let client = brigade_coordinator::client::Client::new(cluster.client.url(), None).expect("a URL");
    let refused = client.pin(&["carla".into()], &[], None).await.expect_err("it has no room").to_string();
    assert!(refused.contains("cannot be pinned to carla") && refused.contains("MiB more"), "{refused}");
    let refused = client.pin(&["dora".into()], &[], None).await.expect_err("nobody is called so").to_string();
    assert!(refused.contains("anna, ben, carla"), "{refused}");

    client.pin(&["ben".into()], &[], None).await.expect("it holds the model");
    let status = cluster.until("on ben", CHANGED, |status| serves(status, 1)).await;
    assert_eq!((&status["stages"][0]["name"], &status["pinned"]), (&json!("ben"), &json!(["ben"])));
    let shown = text(&cluster.run("status", &[]).await.stdout);
    assert!(shown.contains("pinned    to ben\n"), "{shown}");
    cluster.client.complete(json!({ "prompt": "The bucket", "max_tokens": 4 })).await;

    let both = ["ben".to_owned(), "anna".to_owned()];
    let refused = client.pin(&both, &[10, 21], None).await.expect_err("there are 30 layers").to_string();
    assert!(refused.contains("its 30 layers must be shared out"), "{refused}");
    client.pin(&both, &[10, 20], None).await.expect("they hold the model");
    let status = cluster.until("on both", CHANGED, |status| serves(status, 2)).await;
    assert_eq!(status["stages"][0]["layer_end"], 10, "{status:#}");

    let ben = cluster.workers.iter_mut().find(|worker| worker.name() == "ben").expect("a worker of ours");
    ben.kill();
    let status =
        cluster.until("without ben", CHANGED, |status| serves(status, 2) && !is_pinned(status)).await;
    let why = status["pin_ended"].as_str().unwrap_or_default();
    assert!(why.starts_with("the pin to ben, anna is given up: "), "{status:#}");
    assert!(
        cluster.events().await.contains("the pin to ben, anna is given up"),
        "{}",
        cluster.events().await
    );
    cluster.client.complete(json!({ "prompt": "The bucket", "max_tokens": 4 })).await;
    // Nothing is renewed that does not hold.
    let late =
        client.renew_pin(&["anna".into()], Duration::from_secs(9)).await.expect_err("it does not hold");
    assert!(late.to_string().contains("the pin to ben, anna is given up"), "{late}");
}

#[tokio::test]
async fn a_cluster_of_ones_own_is_compared_and_without_one_box_measured_alone() {
    let _machine = MACHINE.lock().await;
    let compare = async |memory: &str, more: &[&str]| {
        let home = tempfile::tempdir().expect("the temporary folder is writable");
        let mut program = brigade(&home);
        program.arg("compare").arg(setup::smollm2()).args(["--memory", memory, "--threads", "1"]);
        program.args(["--ctx", "512", "--rounds", "1", "--streams", "1", "-p", "0", "-n", "16"]).args(more);
        tokio::task::spawn_blocking(move || program.output().expect("it starts")).await.expect("no defect")
    };
    let whole = compare(WHOLE, &["--workers", "2"]).await;
    let said = text(&whole.stdout);
    assert!(whole.status.success(), "{said}{}", text(&whole.stderr));
    println!("{said}");
    assert!(said.contains("one box: w") && said.contains("cluster: w"), "{said}");

    let part = compare(PART, &["--workers", "2", "--json"]).await;
    assert!(part.status.success(), "{}", text(&part.stderr));
    let found: Value = serde_json::from_slice(&part.stdout).expect("--json writes JSON");
    let sides = found["sides"].as_array().expect("a list");
    assert_eq!((sides.len(), &sides[0]["kind"]), (1, &json!("cluster")), "{found:#}");
    let why = found["left_out"].to_string();
    assert!(why.contains("no worker holds the model alone") && why.contains("MiB more"), "{why}");
    assert_eq!(found["verdict"]["split_for_one_stream"], Value::Null, "{found:#}");

    let wrong = compare(WHOLE, &[]).await;
    let said = text(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(2), "{said}");
    assert!(said.contains("--workers N"), "{said}");
}

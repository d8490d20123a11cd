//! Plans that change by choice, on real processes: a worker joins while answers run, and one is drained. Every answer is
//! compared with what it is otherwise, token by token.

use std::process::Output;
use std::time::{Duration, Instant};

use brigade_tests::cluster::brigade;
use brigade_tests::http::Client;
use brigade_tests::serve::{Joined, Served};
use brigade_tests::stream::{Streaming, Told};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

/// Tokens of each answer: enough that the plan changes while they run.
const TOKENS: usize = 400;
/// Within this a plan has changed, with workers that start and measure themselves beside steps.
const CHANGED: Duration = Duration::from_secs(90);
/// Within this everything is over.
const END: Duration = Duration::from_secs(180);
/// Within this text goes on while a plan changes: what ran is replayed, and nothing is read.
const GOES_ON: Duration = Duration::from_secs(5);
/// How often the coordinator is asked how it is.
const POLL: Duration = Duration::from_millis(20);
/// How many times as long as it needs a worker takes for each step: they sleep half of the time, so that there are
/// processors left for what a plan is prepared by.
const STRETCH: &str = "2";
/// The same for workers that one which does not sleep makes much faster.
const SLOW: &str = "5";
/// Longest sequence, for four answers at a time.
const ROOM: [&str; 4] = ["--ctx", "1024", "--parallel", "4"];

/// Each test has the machine to itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

struct Cluster {
    served: Served,
    workers: Vec<Joined>,
    client: Client,
    model: String,
}

impl Cluster {
    /// A coordinator and workers with so much memory each, which it waits for.
    async fn start(names: &[&str], memory: &str, stretch: &str) -> Cluster {
        Cluster::with(names, memory, stretch, &ROOM).await
    }

    async fn with(names: &[&str], memory: &str, stretch: &str, room: &[&str]) -> Cluster {
        let least = names.len().to_string();
        let mut served = Served::start(&[&["--min-workers", &least], room].concat());
        let join = |name: &&str| served.join_stretched(name, memory, stretch);
        let workers: Vec<Joined> = names.iter().map(join).collect();
        let client = served.client();
        let model = client.model().await;
        Cluster { served, workers, client, model }
    }

    async fn streams(&self) -> Vec<Streaming> {
        let sampling = [
            json!({ "temperature": 0 }),
            json!({ "temperature": 0.8, "seed": 1 }),
            json!({ "temperature": 1.1, "seed": 2, "top_p": 0.9, "frequency_penalty": 0.4 }),
            json!({ "temperature": 0.7, "seed": 3, "repetition_penalty": 1.1 }),
        ];
        let mut streams = Vec::new();
        for (place, mut request) in sampling.into_iter().enumerate() {
            request["prompt"] =
                json!(format!("Chapter {place}. The bucket brigade stood from the river to the"));
            request["max_tokens"] = json!(TOKENS);
            request["ignore_eos"] = json!(true);
            streams.push(Streaming::start(&self.client, &self.model, request).await);
        }
        while streams.iter().any(|stream| stream.count() < 17) {
            tokio::time::sleep(POLL).await;
        }
        streams
    }

    /// Waits for a status; what it is then.
    async fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + CHANGED;
        loop {
            let status = self.client.status().await;
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not {what}: {status:#}\n{}", self.served.process.output());
            tokio::time::sleep(POLL).await;
        }
    }

    /// `brigade drain` with these arguments.
    async fn drain(&self, arguments: &[&str]) -> Output {
        let mut command = brigade(&self.served.home);
        command.arg("drain").args(arguments).args(["--url", self.client.url()]);
        tokio::task::spawn_blocking(move || command.output().expect("it starts")).await.expect("no defect")
    }

    fn worker(&mut self, name: &str) -> &mut Joined {
        self.workers.iter_mut().find(|worker| worker.name() == name).expect("a worker of ours")
    }
}

async fn ends(streams: Vec<Streaming>) -> Vec<Told> {
    let mut told = Vec::new();
    for stream in streams {
        told.push(stream.end(END).await);
    }
    told
}

/// The answers of a cluster that nothing happens to.
async fn undisturbed() -> &'static [Told] {
    static ANSWERS: OnceCell<Vec<Told>> = OnceCell::const_new();
    ANSWERS
        .get_or_init(|| async {
            let cluster = Cluster::start(&["anna", "ben"], "300MiB", STRETCH).await;
            let told = ends(cluster.streams().await).await;
            assert!(told.iter().all(|told| told.tokens.len() == TOKENS && told.done), "{told:?}");
            told
        })
        .await
}

fn check(found: &[Told], wanted: &[Told], since: Instant) -> Duration {
    for (place, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert_eq!(found.error, None, "stream {place}");
        assert_eq!(found.tokens, wanted.tokens, "stream {place}");
        assert_eq!((&found.text, found.done), (&wanted.text, true), "stream {place}");
    }
    found.iter().map(|told| told.longest_gap(since)).max().unwrap_or_default()
}

fn names(status: &Value) -> Vec<String> {
    let stages = status["stages"].as_array().expect("a list").iter();
    stages.map(|stage| stage["name"].as_str().expect("a name").to_owned()).collect()
}

fn state(status: &Value, name: &str) -> String {
    let workers = status["workers"].as_array().expect("a list").iter();
    let mut states = workers.filter(|worker| worker["name"] == name);
    states.next().expect("it is known")["state"].as_str().expect("a word").to_owned()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[tokio::test]
async fn plans_change_by_choice_and_no_answer_changes() {
    let _machine = MACHINE.lock().await;
    let wanted = undisturbed().await;

    let mut cluster = Cluster::start(&["anna", "ben"], "300MiB", SLOW).await;
    let streams = cluster.streams().await;
    let joined = Instant::now();
    // With one that does not sleep the plan is much better.
    cluster.workers.push(cluster.served.join("carla", "300MiB"));
    let status = cluster.until("changed", |status| status["moves"]["count"] == 1).await;
    println!("  the plan changed to {:?}: {}", names(&status), status["moves"]);
    assert!(names(&status).contains(&"carla".to_owned()), "{status:#}");
    let gap = check(&ends(streams).await, wanted, joined);
    println!("  longest gap {gap:.2?} when a worker joined");
    assert!(gap < GOES_ON, "text went on after {gap:?}");
    let status = cluster.client.status().await;
    let failures =
        (&status["recovery"]["count"], &status["requests"]["recovered"], &status["requests"]["moved"]);
    assert_eq!(failures, (&json!(0), &json!(0), &json!(4)), "{status:#}");
    assert_eq!(cluster.client.metric("brigade_plan_failures_total").await, 0);
    assert_eq!(cluster.client.metric("brigade_plan_moves_total").await, 1);
}

/// Nobody has said how long a context is to be, so that the cache takes all memory that is left. A third stage pays for as
/// many streams as are planned for.
#[tokio::test]
async fn a_worker_joins_where_no_memory_is_left_and_no_answer_changes() {
    let _machine = MACHINE.lock().await;
    let wanted = undisturbed().await;
    let mut cluster = Cluster::with(&["anna", "ben"], "150MiB", STRETCH, &["--parallel", "64"]).await;
    let streams = cluster.streams().await;
    let before = cluster.client.status().await;
    let joined = Instant::now();
    cluster.workers.push(cluster.served.join_stretched("carla", "150MiB", STRETCH));
    let status = cluster.until("changed", |status| status["moves"]["count"] == 1).await;
    assert!(!streams.iter().all(Streaming::has_ended), "the answers ended before it changed");
    let gap = check(&ends(streams).await, wanted, joined);
    println!("  longest gap {gap:.2?} when a worker joined where no memory was left");
    assert!(gap < GOES_ON, "text went on after {gap:?}");
    // Between the two, so that neither has to read anything.
    assert_eq!(names(&status), ["anna", "carla", "ben"], "{status:#}");
    let context = |status: &Value| status["context"].as_u64().expect("a number");
    assert!(context(&status) >= context(&before), "{status:#}");
    assert_eq!(cluster.client.metric("brigade_plan_failures_total").await, 0);
}

/// Of four stages the inner ones hold layers that none of three held, and there is no memory to read them beforehand.
#[tokio::test]
async fn a_plan_that_does_not_fit_beside_the_other_waits_until_nobody_asks() {
    let _machine = MACHINE.lock().await;
    let wanted = undisturbed().await;
    let names_before = ["anna", "ben", "carla"];
    let mut cluster = Cluster::with(&names_before, "130MiB", STRETCH, &["--parallel", "64"]).await;
    let streams = cluster.streams().await;
    let joined = Instant::now();
    cluster.workers.push(cluster.served.join_stretched("dora", "130MiB", STRETCH));
    let waits = |status: &Value| {
        let note = status["note"].as_str().unwrap_or_default();
        note.contains("once no request has come for 5 s") && note.contains("budget of 130.0 MiB")
    };
    cluster.until("waiting", waits).await;
    assert!(!streams.iter().all(Streaming::has_ended), "the answers ended before it was known");
    check(&ends(streams).await, wanted, joined);
    assert_eq!(cluster.client.status().await["moves"]["count"], 0, "it moved while answers ran");
    let quiet = Instant::now();
    let status = cluster.until("changed", |status| status["moves"]["count"] == 1).await;
    let served = cluster.until("serving", |status| status["phase"] == "serving").await;
    println!("  changed after {:.2?} without a request: {}", quiet.elapsed(), status["moves"]);
    assert_eq!(names(&served).len(), 4, "{served:#}");
    check(&ends(cluster.streams().await).await, wanted, Instant::now());
    assert_eq!(cluster.client.metric("brigade_plan_failures_total").await, 0);
}

#[tokio::test]
async fn a_drained_worker_may_be_unplugged_while_answers_run() {
    let _machine = MACHINE.lock().await;
    let wanted = undisturbed().await;
    let mut cluster = Cluster::start(&["anna", "ben", "carla"], "300MiB", STRETCH).await;
    let streams = cluster.streams().await;
    let begun = Instant::now();
    let output = cluster.drain(&["ben"]).await;
    let said = text(&output.stdout);
    assert!(output.status.success() && said.ends_with("ben is drained: it may be unplugged\n"), "{said}");
    let status = cluster.client.status().await;
    println!("  drained after {:.2?}: {}", begun.elapsed(), status["moves"]);
    assert_eq!(state(&status, "ben"), "drained", "{status:#}");
    assert!(!streams.iter().any(Streaming::has_ended), "the answers ended before it was drained");
    cluster.worker("ben").kill();
    let gap = check(&ends(streams).await, wanted, begun);
    println!("  longest gap {gap:.2?} when a worker was drained");
    assert!(gap < GOES_ON, "text went on after {gap:?}");
    let status = cluster.until("noticed", |status| state(status, "ben") == "lost").await;
    assert_eq!((names(&status).len(), &status["recovery"]["count"]), (2, &json!(0)), "{status:#}");
    assert_eq!(cluster.client.metric("brigade_plan_failures_total").await, 0);
    assert_eq!(cluster.client.metric("brigade_plan_moves_total").await, 1);

    // It comes back, and is not used before that is wished.
    cluster.worker("ben").restart();
    cluster.until("back", |status| state(status, "ben") == "drained").await;
    let output = cluster.drain(&["--undo", "ben"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    cluster.until("in use", |status| state(status, "ben") == "attached").await;

    let output = cluster.drain(&["dora"]).await;
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("anna, ben, carla"), "{said}");
}

#[tokio::test]
async fn a_worker_that_the_others_have_no_room_for_stays_in_use() {
    let _machine = MACHINE.lock().await;
    let cluster = Cluster::start(&["anna", "ben"], "160MiB", STRETCH).await;
    let output = cluster.drain(&["anna"]).await;
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("MiB more") && said.contains("stays in use"), "{said}");
    let status = cluster.client.status().await;
    assert_eq!((state(&status, "anna"), status["phase"].clone()), ("attached".into(), json!("serving")));
    let refused = cluster.client.post("/api/workers/anna/drain", &Value::Null).await.error(409);
    assert_eq!(refused["code"], "no_room");
}

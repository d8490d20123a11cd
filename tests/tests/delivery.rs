//! One machine has the file: workers that have none fetch just what their shards need, once, and whatever is damaged on the
//! way, in a cache or at its source is found.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::{Role, TensorTable};
use brigade_tests::cluster::brigade;
use brigade_tests::http::Client;
use brigade_tests::process::{is_running, peak_resident_bytes};
use brigade_tests::serve::{Joined, Served};
use brigade_tests::setup;
use brigade_tests::small_disk::SmallDisk;
use brigade_worker::telemetry::FIXED_OVERHEAD;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// What a worker that holds the whole model may use, and one that holds a third.
const WHOLE: &str = "400MiB";
/// Within this a heartbeat has told what has come.
const TOLD: Duration = Duration::from_secs(5);
/// Within this a worker that cannot load has said so.
const REFUSED: Duration = Duration::from_secs(30);
/// Within this a worker is drained that holds a third of a small model.
const MOVED: Duration = Duration::from_secs(60);
/// Of the bytes of a shard's tensors, the most that is fetched beyond them.
const MOST_BEYOND: f64 = 0.01;

fn main() {
    let no_mount = SmallDisk::obstacle().unwrap();
    if let Some(obstacle) = &no_mount {
        println!("no file system can be mounted here, so one test is skipped: {obstacle}");
    }
    let trials = vec![
        trial(
            "workers_without_the_file_fetch_just_their_shards_once",
            workers_without_the_file_fetch_just_their_shards_once,
        ),
        trial("a_new_plan_moves_only_what_changes_hands", a_new_plan_moves_only_what_changes_hands),
        trial(
            "a_flipped_byte_in_a_cache_is_found_and_fetched_again",
            a_flipped_byte_in_a_cache_is_found_and_fetched_again,
        ),
        trial(
            "a_file_that_has_rotted_since_its_hashes_were_signed_is_refused",
            a_file_that_has_rotted_since_its_hashes_were_signed_is_refused,
        ),
        trial(
            "a_file_that_was_written_to_is_not_given_as_what_it_was",
            a_file_that_was_written_to_is_not_given_as_what_it_was,
        ),
        trial(
            "a_model_of_the_same_header_and_other_weights_is_fetched_anew_where_it_differs",
            a_model_of_the_same_header_and_other_weights_is_fetched_anew_where_it_differs,
        ),
        trial(
            "a_live_worker_does_not_serve_what_the_file_was",
            a_live_worker_does_not_serve_what_the_file_was,
        ),
        trial(
            "a_full_disk_is_said_before_the_first_byte_and_others_serve_on",
            a_full_disk_is_said_before_the_first_byte_and_others_serve_on,
        )
        .with_ignored_flag(no_mount.is_some()),
    ];
    // Each has the machine to itself.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(test());
        Ok::<(), Failed>(())
    })
}

struct Model {
    header: Header,
    table: TensorTable,
}

impl Model {
    fn open(path: &Path) -> Model {
        let header = Header::open(path).unwrap();
        let spec = ModelSpec::from_header(&header).unwrap();
        let table = TensorTable::new(&header, &spec).unwrap();
        Model { header, table }
    }

    /// The shard of a stage, as the status tells it.
    fn shard(stage: &Value) -> Shard {
        let at = |key: &str| usize::try_from(stage[key].as_u64().unwrap()).unwrap();
        let layers = LayerRange { start: at("layer_start"), end: at("layer_end") };
        let is = |key: &str| stage[key].as_bool().unwrap();
        Shard { layers, embedding: is("embedding"), head: is("head") }
    }

    /// Bytes of the tensors of a stage.
    fn bytes(&self, stage: &Value) -> u64 {
        self.table.of(&Model::shard(stage)).iter().map(|(_, tensor)| tensor.bytes.0).sum()
    }

    /// Where in its file a tensor of a layer begins.
    fn offset(&self, wanted: impl Fn(&Role) -> bool) -> u64 {
        let (_, tensor) = self.table.iter().find(|(role, _)| wanted(role)).unwrap();
        match tensor.pieces[0].place {
            brigade_shard::model_file::Place::File { offset, .. } => offset,
            _ => panic!("a tensor of a file is in it"),
        }
    }
}

/// What every worker has got from others, once that is told.
async fn fetched(client: &Client, names: &[&str], is_told: impl Fn(&[u64]) -> bool) -> Vec<u64> {
    let deadline = Instant::now() + TOLD;
    loop {
        let status = client.get("/api/status").await.ok();
        let of = |name: &&str| {
            let mut workers = status["workers"].as_array().unwrap().iter();
            let worker = workers.find(|worker| worker["name"] == **name);
            worker.and_then(|worker| worker["fetched_bytes"].as_u64()).unwrap_or_default()
        };
        let fetched: Vec<u64> = names.iter().map(of).collect();
        if is_told(&fetched) || Instant::now() > deadline {
            return fetched;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn text(client: &Client) -> String {
    let answer =
        client.complete(json!({ "prompt": "The bucket brigade", "max_tokens": 24, "temperature": 0 })).await;
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

fn stages(status: &Value) -> Vec<Value> {
    status["stages"].as_array().unwrap().clone()
}

/// A copy of the real model that a test may damage.
fn copied(folder: &Path) -> PathBuf {
    let copy = folder.join("model.gguf");
    fs::copy(setup::smollm2(), &copy).unwrap();
    copy
}

/// Changes a byte of a file, and nothing that its directory says of it.
fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
    file.set_modified(written).unwrap();
}

/// Whether a command on models ends well, and what it says.
fn models(served: &Served, client: &Client, arguments: &[&str]) -> (bool, String) {
    let mut command = brigade(&served.home);
    let output = command.arg("models").args(arguments).args(["--url", client.url()]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn fingerprint(model: &Model) -> String {
    model.header.fingerprint().to_string()
}

fn empty() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn workers_without_the_file_fetch_just_their_shards_once() {
    let model = Model::open(setup::smollm2());
    let (names, nothing) = (["w1", "w2", "w3"], empty());
    let mut served = Served::start(&["--min-workers", "3", "--ctx", "512"]);
    let mut workers: Vec<Joined> =
        names.iter().map(|name| served.join_from(name, "120MiB", nothing.path())).collect();
    let client = served.client();
    let first = text(&client).await;
    let stages = stages(&client.get("/api/status").await.ok());
    assert_eq!(stages.len(), 3);
    let order: Vec<&str> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    let wanted: Vec<u64> = stages.iter().map(|stage| model.bytes(stage)).collect();
    let fetched_now =
        fetched(&client, &order, |all| all.iter().zip(&wanted).all(|(is, least)| is >= least)).await;
    for ((name, is), wanted) in order.iter().zip(&fetched_now).zip(&wanted) {
        let beyond = *is as f64 / *wanted as f64 - 1.0;
        println!("{name}: {is} bytes fetched for {wanted} of tensors, {:.2}% beyond", beyond * 100.0);
        assert!((0.0..MOST_BEYOND).contains(&beyond), "{name} fetched {is} bytes for {wanted}");
    }
    for worker in &workers {
        let peak = peak_resident_bytes(worker.process.id());
        let most = (120 << 20) + FIXED_OVERHEAD.0;
        println!("{}: {:.1} MiB resident at most", worker.name(), peak as f64 / f64::from(1 << 20));
        assert!(peak <= most, "{} had {peak} bytes resident, and may have {most}", worker.name());
    }
    // What they keep is listed and checked from the coordinator's machine, and is not removed while it is in use.
    let (_, listed) = models(&served, &client, &["ls", "--workers"]);
    assert!(names.iter().all(|name| listed.contains(name)), "{listed}");
    let (sound, checked) = models(&served, &client, &["verify", "--workers"]);
    assert!(sound && checked.matches("chunks are sound").count() == 3, "{checked}");
    let (removed, refused) = models(&served, &client, &["rm", "--workers=w2", &fingerprint(&model)]);
    assert!(!removed && refused.contains("is in use"), "{refused}");
    // All of it is started again, from what each of them has by now. A coordinator that went on would soon make a plan
    // over those that are back.
    workers.iter_mut().for_each(Joined::stop);
    served.kill();
    let mut served = served.restart(&client);
    let client = served.early_client();
    workers.iter_mut().for_each(Joined::restart);
    served.wait_until_serving(&client).await;
    assert_eq!(text(&client).await, first);
    let again = fetched(&client, &names, |all| all.iter().any(|bytes| *bytes > 0)).await;
    assert_eq!(again, [0; 3], "all of it is here");
    // And what a worker says that has the file.
    workers.iter_mut().for_each(Joined::stop);
    drop(workers);
    drop(served);
    let mut served = Served::start(&["--ctx", "512"]);
    let _worker = served.join("whole", WHOLE);
    let client = served.client();
    assert_eq!(text(&client).await, first);
}

async fn a_new_plan_moves_only_what_changes_hands() {
    let model = Model::open(setup::smollm2());
    let (names, nothing) = (["w1", "w2", "w3"], empty());
    let mut served = Served::start(&["--min-workers", "3", "--ctx", "512"]);
    let _workers: Vec<Joined> =
        names.iter().map(|name| served.join_from(name, WHOLE, nothing.path())).collect();
    let client = served.client();
    let first = text(&client).await;
    let before = stages(&client.get("/api/status").await.ok());
    assert_eq!(before.len(), 3);
    let answer = client.post("/api/workers/w2/drain", &json!({})).await;
    assert_eq!(answer.status, 200, "{:#}", answer.body);
    let deadline = Instant::now() + MOVED;
    let after = loop {
        let status = client.get("/api/status").await.ok();
        let drained = status["workers"].as_array().unwrap().iter().any(|worker| worker["state"] == "drained");
        if drained && status["phase"] == "serving" {
            break stages(&status);
        }
        assert!(Instant::now() < deadline, "w2 is not drained: {status:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(text(&client).await, first);
    // What a worker had or has, each tensor once.
    let held = |name: &str| -> u64 {
        let of_it = before.iter().chain(&after).filter(|stage| stage["name"] == name);
        let shards: Vec<Shard> = of_it.map(Model::shard).collect();
        let all = shards.iter().flat_map(|shard| model.table.of(shard));
        let tensors: BTreeMap<Role, u64> = all.map(|(role, tensor)| (role, tensor.bytes.0)).collect();
        tensors.values().sum()
    };
    let wanted: Vec<u64> = names.iter().map(|name| held(name)).collect();
    let fetched =
        fetched(&client, &names, |all| all.iter().zip(&wanted).all(|(is, least)| is >= least)).await;
    for ((name, is), wanted) in names.iter().zip(&fetched).zip(&wanted) {
        let beyond = *is as f64 / *wanted as f64 - 1.0;
        println!(
            "{name}: {is} bytes fetched over two plans for {wanted} of tensors, {:.2}% beyond",
            beyond * 100.0
        );
        assert!((0.0..MOST_BEYOND).contains(&beyond), "{name} fetched {is} bytes for {wanted}");
    }
}

async fn a_flipped_byte_in_a_cache_is_found_and_fetched_again() {
    let nothing = empty();
    let mut served = Served::start(&["--ctx", "512"]);
    let mut worker = served.join_from("w1", WHOLE, nothing.path());
    let client = served.client();
    let first = text(&client).await;
    let model = Model::open(setup::smollm2());
    worker.stop();
    let part = worker.cache().join(model.header.fingerprint().to_string()).join("part-0");
    let inside = |role: &Role| matches!(role, Role::Layer(7, _));
    flip(&part, model.offset(inside) + 100);
    worker.restart();
    served.wait_until_serving(&client).await;
    assert_eq!(text(&client).await, first);
    let told = worker.process.output();
    assert!(told.contains("is not what the coordinator has signed") && told.contains("blk.7."), "{told}");
    let again = fetched(&client, &["w1"], |all| all[0] > 1000).await;
    assert!(again[0] < 2 << 20, "one chunk was damaged, and {again:?} bytes were fetched");
    // It is whole again.
    let file = File::open(&part).unwrap();
    let (mut is, mut was) = ([0; 256], [0; 256]);
    file.read_exact_at(&mut is, model.offset(inside)).unwrap();
    File::open(setup::smollm2()).unwrap().read_exact_at(&mut was, model.offset(inside)).unwrap();
    assert_eq!(is, was);
}

async fn a_file_that_has_rotted_since_its_hashes_were_signed_is_refused() {
    let (folder, nothing) = (empty(), empty());
    let path = copied(folder.path());
    let model = Model::open(&path);
    let mut served = Served::start_model(&path, &["--ctx", "512"]);
    let mut first = served.join_from("w1", WHOLE, nothing.path());
    let client = served.client();
    text(&client).await;
    first.stop();
    flip(&path, model.offset(|role| matches!(role, Role::Layer(3, _))) + 17);
    let mut second = served.join_from("w2", WHOLE, nothing.path());
    let refused = |line: &str| line.contains("failed to load").then(|| line.to_owned());
    let told = second.process.wait_for("refusal", REFUSED, refused);
    for word in ["blk.3.", "came twice from the coordinator", "damaged", "brigade models verify"] {
        assert!(told.contains(word), "`{word}` is missing in: {told}");
    }
}

async fn a_file_that_was_written_to_is_not_given_as_what_it_was() {
    let (folder, nothing) = (empty(), empty());
    let path = copied(folder.path());
    let served = Served::start_model(&path, &["--ctx", "512"]);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[1], fs::metadata(&path).unwrap().len() - 1).unwrap();
    let mut worker = served.join_from("w1", WHOLE, nothing.path());
    let refused = |line: &str| line.contains("it cannot be fetched either").then(|| line.to_owned());
    let told = worker.process.wait_for("refusal", REFUSED, refused);
    assert!(told.contains("was written to since the coordinator read it"), "{told}");
}

async fn a_model_of_the_same_header_and_other_weights_is_fetched_anew_where_it_differs() {
    let (folder, nothing) = (empty(), empty());
    let path = copied(folder.path());
    let model = Model::open(&path);
    let mut served = Served::start_model(&path, &["--ctx", "512"]);
    let mut worker = served.join_from("w1", WHOLE, nothing.path());
    let client = served.client();
    text(&client).await;
    worker.stop();
    served.kill();
    // Another version of the model, exported to the same file.
    let changed = model.offset(|role| matches!(role, Role::Layer(5, _))) + 40;
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0x3c, 0x11], changed).unwrap();
    let mut served = served.restart(&client);
    let client = served.early_client();
    worker.restart();
    served.wait_until_serving(&client).await;
    let again = fetched(&client, &["w1"], |all| all[0] > 100_000).await;
    assert!(again[0] < 3 << 20, "one chunk is another one, and {again:?} bytes were fetched");
    let part = worker.cache().join(model.header.fingerprint().to_string()).join("part-0");
    let mut is = [0; 2];
    File::open(part).unwrap().read_exact_at(&mut is, changed).unwrap();
    assert_eq!(is, [0x3c, 0x11]);
}

async fn a_live_worker_does_not_serve_what_the_file_was() {
    let (folder, nothing) = (empty(), empty());
    let path = copied(folder.path());
    let model = Model::open(&path);
    let mut served = Served::start_model(&path, &["--ctx", "512"]);
    let mut worker = served.join_from("w1", WHOLE, nothing.path());
    let client = served.client();
    let before = text(&client).await;
    served.kill();
    // Another version of the model, exported to the same file, while the worker waits with the old one.
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let of_layer = |layer: usize| model.table.of(&Shard::of(LayerRange::new(layer, layer + 1).unwrap(), 30));
    for ((role, tensor), (other_role, other)) in of_layer(5).into_iter().zip(of_layer(20)) {
        if (tensor.kind, tensor.bytes) == (other.kind, other.bytes) {
            let mut weights = vec![0; tensor.bytes.0 as usize];
            file.read_exact_at(&mut weights, model.offset(|role| *role == other_role)).unwrap();
            file.write_all_at(&weights, model.offset(|at| *at == role)).unwrap();
        }
    }
    let mut served = served.restart(&client);
    let client = served.early_client();
    served.wait_until_serving(&client).await;
    let after = text(&client).await;
    assert!(is_running(worker.process.id()), "it stayed: {}", worker.process.output());
    worker.stop();
    served.kill();
    let mut fresh = Served::start_model(&path, &["--ctx", "512"]);
    let _worker = fresh.join_from("w2", WHOLE, nothing.path());
    let wanted = text(&fresh.client()).await;
    assert_eq!(after, wanted);
    assert_ne!(after, before, "the change shows");
}

async fn a_full_disk_is_said_before_the_first_byte_and_others_serve_on() {
    let (folder, nothing) = (empty(), empty());
    let small = SmallDisk::mount(&folder.path().join("small"), 40 << 20).unwrap();
    let mut served = Served::start(&["--ctx", "512"]);
    let environment = [("BRIGADE_CACHE".to_owned(), small.path().display().to_string())];
    let mut poor = served.join_from_with("poor", WHOLE, nothing.path(), &environment);
    let refused = |line: &str| line.contains("failed to load").then(|| line.to_owned());
    let told = poor.process.wait_for("refusal", REFUSED, refused);
    for word in ["are missing", "free some space", "--cache", "of weights are to be fetched"] {
        assert!(told.contains(word), "`{word}` is missing in: {told}");
    }
    let _whole = served.join("whole", WHOLE);
    let client = served.client();
    text(&client).await;
    // Nothing has come but what the model is.
    let got = fetched(&client, &["poor"], |all| all[0] > 0).await;
    assert!((1..1 << 20).contains(&got[0]), "{got:?}");
}

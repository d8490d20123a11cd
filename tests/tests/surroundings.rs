//! Faults of what processes live on: clients that read slowly or leave, memory that is refused, files that change, clocks
//! that are set. Every answer is compared with what it is without a fault, token by token.
//!
//! A plain run does a part of it, and names what it leaves out; `BRIGADE_FAULTS=all cargo test --release -p brigade-tests
//! --test surroundings` does all of it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_tests::http::Client;
use brigade_tests::process::{is_running, status_field};
use brigade_tests::serve::{Joined, Served};
use brigade_tests::setup;
use brigade_tests::stream::{Streaming, Told};
use brigade_tests::three::{CONTEXT, Cluster, END, POLL, check, ends, requests, undisturbed};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Within this a token follows on the one before while nothing is lost: a hundred times what it takes.
const LONGEST_GAP: Duration = Duration::from_secs(2);
/// Within this all is given back that clients had.
const GIVEN_BACK: Duration = Duration::from_secs(10);
/// Within this a worker says why it could not load.
const SAID: Duration = Duration::from_secs(5);
/// Within this, and the time to load, the rest serves without it.
const REST_SERVES: Duration = Duration::from_secs(10);
/// Within this a worker attaches.
const ATTACHED: Duration = Duration::from_secs(20);
/// How much a coordinator's memory may grow for a client that does not read: far above what one answer has.
const GROWTH_BYTES: u64 = 32 << 20;
/// Clients that leave, in a plain run and in a full one.
const CLIENTS: [usize; 2] = [200, 1000];
const CLIENTS_AT_A_TIME: usize = 16;
/// What a worker's address space may grow by: enough to read a header with its vocabulary, and less than the weights of
/// any shard.
const ROOM_BYTES: u64 = 24 << 20;
/// A clock is set by so much, forwards and backwards.
const CLOCK_SHIFT_S: i64 = 3600;

/// How the model's file of one worker is not the coordinator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Cut,
    Header,
    CutWhileLoaded,
}

fn main() {
    let all = std::env::var("BRIGADE_FAULTS").is_ok_and(|value| value == "all");
    let trial = |name: &str, part: bool, test: fn() -> Result<(), Failed>| {
        Trial::test(name, test).with_ignored_flag(!all && !part)
    };
    let mut trials = vec![
        trial("a_client_that_reads_a_byte_a_second_holds_up_nobody", true, slow_client),
        trial(
            "clients_that_leave_leave_nothing_behind",
            true,
            if all { || leaving_clients(CLIENTS[1]) } else { || leaving_clients(CLIENTS[0]) },
        ),
        trial("a_worker_that_gets_no_memory_says_so_and_the_rest_serves", true, || no_memory(false)),
        trial("a_worker_that_gets_no_memory_and_is_needed_is_named", false, || no_memory(true)),
        trial("a_file_that_is_cut_off_on_one_worker_is_named_and_fetched_instead", true, || {
            changed(Change::Cut)
        }),
        trial("a_file_with_another_header_on_one_worker_is_named_and_fetched_instead", false, || {
            changed(Change::Header)
        }),
        trial("a_file_that_is_cut_off_while_it_is_loaded_is_named_and_the_rest_serves", false, || {
            changed(Change::CutWhileLoaded)
        }),
        trial("clocks_that_are_set_change_nothing", false, clocks),
    ];
    let disk = Trial::test("a_disk_that_cannot_be_read_is_named_and_the_rest_serves", disk_error);
    trials.push(match BadDisk::missing() {
        None => disk.with_ignored_flag(!all),
        Some(missing) => {
            println!("skipped: no disk can be made that fails: {missing}");
            disk.with_ignored_flag(true)
        }
    });
    if !all {
        println!("a part of the faults; BRIGADE_FAULTS=all runs those that are ignored here, too");
    }
    // Each has the machine to itself.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test)
}

fn resident_bytes(process: u32) -> u64 {
    let kib: u64 = status_field(process, "VmRSS").trim_end_matches(" kB").parse().expect("a number of kB");
    kib * 1024
}

fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count)
}

/// The longest time between two tokens of any answer, and the tokens a second of all.
fn pace(told: &[Told]) -> (Duration, f64) {
    let first = told.iter().filter_map(|told| told.times.first().copied()).min().expect("a token came");
    let last = told.iter().filter_map(|told| told.times.last().copied()).max().expect("a token came");
    let gap = |told: &Told| told.longest_gap(told.times.first().copied().unwrap_or(first));
    let tokens: usize = told.iter().map(|told| told.tokens.len()).sum();
    let longest = told.iter().map(gap).max().unwrap_or_default();
    (longest, tokens as f64 / (last - first).as_secs_f64())
}

/// A client by hand, which reads when it is told to.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    /// Connects with a small window, so that little of an answer is under way.
    async fn connect(client: &Client) -> Raw {
        let address = client.url().trim_start_matches("http://").parse().expect("an address");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a size that every system has");
        let stream = socket.connect(address).await.expect("it accepts connections");
        Raw { stream, read: Vec::new() }
    }

    /// A streamed completion, as it is sent.
    fn request(client: &Client, model: &str, mut request: Value) -> Vec<u8> {
        request["model"] = model.into();
        request["stream"] = json!(true);
        request["return_token_ids"] = json!(true);
        let body = request.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            client.url().trim_start_matches("http://"),
            body.len()
        );
        (head + &body).into_bytes()
    }

    /// Reads `most` bytes or fewer; `false` at the end.
    async fn read(&mut self, most: usize) -> bool {
        let start = self.read.len();
        self.read.resize(start + most, 0);
        let read = self.stream.read(&mut self.read[start..]).await.unwrap_or_default();
        self.read.truncate(start + read);
        read > 0
    }

    /// What it was told, once it has read everything.
    fn told(&self) -> Told {
        let head = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head") + 4;
        let (mut rest, mut body) = (&self.read[head..], Vec::new());
        // Chunks: a length in hexadecimal, and so many bytes.
        while let Some(end) = rest.windows(2).position(|bytes| bytes == b"\r\n") {
            let len = str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
            let len = len.expect("a chunk begins with its length");
            body.extend(&rest[end + 2..][..len]);
            rest = &rest[end + 2 + len + 2..];
        }
        let mut told = Told::default();
        String::from_utf8_lossy(&body).lines().for_each(|line| told.take(line));
        told
    }
}

fn slow_client() -> Result<(), Failed> {
    run(async {
        let wanted = undisturbed(None).await;
        let cluster = Cluster::start("256MiB", &[]).await;
        let coordinator = cluster.served.process.id();
        let before = resident_bytes(coordinator);
        let mut requests = requests(None);
        let mut request = requests.pop().expect("there are four");
        // More to read than the system keeps for a connection.
        request["logprobs"] = json!(5);
        let mut slow = Raw::connect(&cluster.client).await;
        slow.stream.write_all(&Raw::request(&cluster.client, &cluster.model, request)).await?;
        let mut streams = Vec::new();
        for request in requests {
            streams.push(Streaming::start(&cluster.client, &cluster.model, request).await);
        }
        let (mut most, mut next) = (before, Instant::now());
        while !streams.iter().all(Streaming::has_ended) {
            if Instant::now() >= next {
                next += Duration::from_secs(1);
                slow.read(1).await;
            }
            most = most.max(resident_bytes(coordinator));
            tokio::time::sleep(POLL).await;
        }
        let told = ends(streams).await;
        check(&told, &wanted[..3])?;
        // Its own answer is computed, too, and holds no cache any more.
        let ended = Instant::now();
        while cluster.client.status().await["cache_tokens_reserved"] != 0 {
            if ended.elapsed() > GIVEN_BACK {
                return Err("the answer that nobody reads still holds cache".into());
            }
            tokio::time::sleep(POLL).await;
        }
        let by_the_byte = slow.read.len();
        while slow.read(65_536).await {}
        let (gap, speed) = pace(&told);
        println!(
            "  longest gap of the others {gap:.2?}; {speed:.1} tokens/s of three, {:.1} of four without; the coordinator grew \
             by {} KiB; {} bytes were left to read after {by_the_byte}",
            pace(wanted).1,
            (most - before) >> 10,
            slow.read.len() - by_the_byte
        );
        check(&[slow.told()], &wanted[3..])?;
        if gap > LONGEST_GAP {
            return Err(format!("the others waited {gap:?} for a token, {LONGEST_GAP:?} are promised").into());
        }
        if most - before > GROWTH_BYTES {
            return Err(format!("the coordinator's memory grew by {} bytes", most - before).into());
        }
        Ok(())
    })
}

/// So many clients connect, ask and leave.
fn leaving_clients(clients: usize) -> Result<(), Failed> {
    run(async move {
        let wanted = undisturbed(None).await;
        let cluster = Cluster::start("256MiB", &[]).await;
        let (client, coordinator) = (&cluster.client, cluster.served.process.id());
        client.status().await;
        let (files, memory) = (open_files(coordinator), resident_bytes(coordinator));
        let start = Instant::now();
        let slots = Arc::new(Semaphore::new(CLIENTS_AT_A_TIME));
        let mut all = JoinSet::new();
        for number in 0..clients {
            let slot = slots.clone().acquire_owned().await?;
            let (client, model) = (client.clone(), cluster.model.clone());
            all.spawn(async move {
                leave(number, &client, &model).await;
                drop(slot);
            });
        }
        while let Some(left) = all.join_next().await {
            left?;
        }
        let left = Instant::now();
        let status = loop {
            let status = client.status().await;
            let held = status["workers"].as_array().into_iter().flatten();
            let held: u64 = held.filter_map(|worker| worker["sequences"].as_u64()).sum();
            let requests = &status["requests"];
            let free = held == 0 && status["cache_tokens_reserved"] == 0;
            if free
                && requests["running"] == 0
                && requests["waiting"] == 0
                && open_files(coordinator) <= files
            {
                break status;
            }
            if left.elapsed() > GIVEN_BACK {
                let open = open_files(coordinator);
                return Err(
                    format!("workers hold {held} sequences, {open} files of {files}: {status:#}").into()
                );
            }
            tokio::time::sleep(POLL).await;
        };
        println!(
            "  {clients} clients in {:.1?}: {} requests cancelled, {} finished; all given back {:.2?} after the last; \
             {} open files, {files} before; {} KiB of memory more",
            left - start,
            status["requests"]["cancelled"],
            status["requests"]["finished"],
            left.elapsed(),
            open_files(coordinator),
            resident_bytes(coordinator).saturating_sub(memory) >> 10,
        );
        let asked = ["cancelled", "finished"].map(|how| status["requests"][how].as_u64().unwrap_or_default());
        if asked.iter().sum::<u64>() < clients as u64 / 4 {
            return Err(format!("few clients were heard: {:#}", status["requests"]).into());
        }
        if status["requests"]["failed"] != 0 {
            return Err(format!("requests have failed: {:#}", status["requests"]).into());
        }
        check(&ends(cluster.streams(None).await).await, wanted)
    })
}

/// One client that connects, asks and leaves, at a moment that follows from its number.
async fn leave(number: usize, client: &Client, model: &str) {
    let random = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let request = json!({
        "prompt": format!("Client {number} of the bucket brigade says that"),
        "max_tokens": 200, "ignore_eos": true, "temperature": 1, "seed": number,
    });
    let request = Raw::request(client, model, request);
    let mut raw = Raw::connect(client).await;
    let (wait, part) = (Duration::from_millis(random / 4 % 300), random as usize / 4 % request.len());
    // A server that ends first is no reason to stay.
    match random % 4 {
        0 => {
            let _ = raw.stream.write_all(&request[..part]).await;
        }
        1 => {
            let _ = raw.stream.write_all(&request).await;
        }
        2 => {
            let _ = raw.stream.write_all(&request).await;
            tokio::time::sleep(wait).await;
        }
        _ => {
            let _ = raw.stream.write_all(&request).await;
            while raw.read.len() < part * 16 && raw.read(1024).await {}
        }
    }
}

/// Limits a process's address space from outside; `None` takes the limit away.
fn limit_address_space(process: u32, bytes: Option<u64>) {
    let bytes = bytes.unwrap_or(libc::RLIM_INFINITY);
    // The hard limit stays where it is, so that it can be taken away again.
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is read from a structure that lives for the call, and no old one is asked for.
    let result = unsafe { libc::prlimit(process as i32, libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "failed to limit process {process}: {}", std::io::Error::last_os_error());
}

/// Waits until a worker says why it has no stage; the reason, and how long after it began to load that was.
fn reason_of(worker: &mut Joined) -> Result<(String, Duration), Failed> {
    let attached = |line: &str| line.contains("attached to the coordinator").then_some(());
    worker.process.wait_for("word that it is attached", ATTACHED, attached);
    let start = Instant::now();
    let reason =
        |line: &str| line.split_once("a stage cannot be used: ").map(|(_, reason)| reason.to_owned());
    let reason = worker.process.wait_for("reason", ATTACHED, reason);
    println!("  {} says: {reason}", worker.name());
    Ok((reason, start.elapsed()))
}

/// Checks that two others serve without a worker, which is still there.
async fn rest_serves(served: &mut Served, without: &Joined, failed: Instant) -> Result<(), Failed> {
    let client = served.client();
    let took = failed.elapsed();
    let status = client.status().await;
    let stages: Vec<&Value> =
        status["stages"].as_array().expect("a list").iter().map(|stage| &stage["name"]).collect();
    println!("  {stages:?} serve {took:.2?} later");
    if stages.len() != 2 || stages.iter().any(|name| **name == without.name()) {
        return Err(format!("{stages:?} serve").into());
    }
    if took > REST_SERVES {
        return Err(format!("the rest served after {took:?}, {REST_SERVES:?} are promised").into());
    }
    still_there(&status, without)?;
    let told =
        Streaming::start(&client, &client.model().await, requests(None).remove(0)).await.end(END).await;
    check(&[told], &undisturbed(None).await[..1])
}

fn still_there(status: &Value, worker: &Joined) -> Result<(), Failed> {
    let workers = status["workers"].as_array().expect("a list");
    let known = workers.iter().find(|known| known["name"] == worker.name());
    if !is_running(worker.process.id()) || known.is_none_or(|known| known["state"] != "attached") {
        return Err(format!("{} is gone:\n{}", worker.name(), worker.process.output()).into());
    }
    Ok(())
}

/// A worker gets less memory than its budget says; `needed` where the others cannot do without it.
fn no_memory(needed: bool) -> Result<(), Failed> {
    run(async move {
        let (memory, context) =
            if needed { ("72MiB", ["--ctx", "512", "--parallel", "4"]) } else { ("256MiB", CONTEXT) };
        let mut served = Served::start(&[&["--min-workers", "3"][..], &context].concat());
        let mut anna = served.join("anna", memory);
        anna.process.wait_for("word that it is attached", ATTACHED, |line| {
            line.contains("attached to the coordinator").then_some(())
        });
        let size = status_field(anna.process.id(), "VmSize");
        let size: u64 = size.trim_end_matches(" kB").parse().expect("VmSize is a number of kB");
        limit_address_space(anna.process.id(), Some(size * 1024 + ROOM_BYTES));
        let _others = ["ben", "carla"].map(|name| served.join(name, memory));
        anna.process.wait_for("word that it loads", ATTACHED, |line| line.contains("loading ").then_some(()));
        let loading = Instant::now();
        let (reason, _) = reason_of(&mut anna)?;
        let failed = Instant::now();
        if failed - loading > SAID {
            return Err(format!("it was said after {:?}, {SAID:?} are promised", failed - loading).into());
        }
        if !["asked for", "MiB", "of weights were read", "needs"].iter().all(|word| reason.contains(word)) {
            return Err(format!("what it needed and had is missing in: {reason}").into());
        }
        if !needed {
            return rest_serves(&mut served, &anna, failed).await;
        }
        let client = served.early_client();
        let told = loop {
            let status = client.status().await;
            let told = status["reason"].as_str().unwrap_or_default().to_owned();
            if told.contains("anna") && told.contains("asked for") {
                still_there(&status, &anna)?;
                break told;
            }
            if failed.elapsed() > SAID {
                return Err(format!("the coordinator does not say what is missing: {told}").into());
            }
            tokio::time::sleep(POLL).await;
        };
        println!("  the coordinator says: {told}");
        limit_address_space(anna.process.id(), None);
        let freed = Instant::now();
        served.client();
        println!("  it serves {:.2?} after there was memory", freed.elapsed());
        let model = client.model().await;
        let told = Streaming::start(&client, &model, requests(None).remove(0)).await.end(END).await;
        check(&[told], &undisturbed(None).await[..1])
    })
}

/// One worker's file is not what it was, or becomes so while it is loaded.
fn changed(change: Change) -> Result<(), Failed> {
    /// Loading may be done before the file is cut; then it is tried again.
    const TRIES: usize = 5;
    run(async move {
        for _ in 0..TRIES {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join(setup::smollm2().file_name().expect("a name"));
            std::fs::copy(setup::smollm2(), &path)?;
            let file = std::fs::File::options().read(true).write(true).open(&path)?;
            let whole = file.metadata()?.len();
            match change {
                Change::Cut => file.set_len(whole - 1_000_000)?,
                Change::Header => rename_model(&path)?,
                Change::CutWhileLoaded => {}
            }
            let mut served = Served::start(&[&["--min-workers", "3"][..], &CONTEXT].concat());
            let mut ben = served.join_from("ben", "256MiB", folder.path());
            let _others = ["anna", "carla"].map(|name| served.join(name, "256MiB"));
            if change == Change::CutWhileLoaded {
                let deadline = Instant::now() + ATTACHED;
                while !ben.process.output().contains("loading ") {
                    assert!(Instant::now() < deadline, "it does not load:\n{}", ben.process.output());
                    std::thread::yield_now();
                }
                file.set_len(1_000_000)?;
                served.client();
                if !ben.process.output().contains("a stage cannot be used") {
                    println!("  it was loaded before the file was cut");
                    continue;
                }
            }
            if change != Change::CutWhileLoaded {
                return fetched_instead(&mut served, &mut ben, &path).await;
            }
            let (reason, _) = reason_of(&mut ben)?;
            let failed = Instant::now();
            if !reason.contains(&*path.to_string_lossy()) {
                return Err(format!("the file is not named in: {reason}").into());
            }
            return rest_serves(&mut served, &ben, failed).await;
        }
        Err("the file was never cut in time".into())
    })
}

/// Checks that a worker whose own file is of no use says so, and serves with the others all the same.
async fn fetched_instead(served: &mut Served, worker: &mut Joined, path: &Path) -> Result<(), Failed> {
    let instead = |line: &str| line.contains("are fetched instead").then(|| line.to_owned());
    let told = worker.process.wait_for("word that it fetches what it lacks", ATTACHED, instead);
    println!("  {} says: {told}", worker.name());
    if !told.contains(&*path.to_string_lossy()) {
        return Err(format!("the file is not named in: {told}").into());
    }
    let client = served.client();
    let status = client.status().await;
    let stages = status["stages"].as_array().cloned().unwrap_or_default();
    if !stages.iter().any(|stage| stage["name"] == worker.name()) {
        return Err(format!("{} holds no stage: {status:#}", worker.name()).into());
    }
    let model = client.model().await;
    let told = Streaming::start(&client, &model, requests(None).remove(0)).await.end(END).await;
    check(&[told], &undisturbed(None).await[..1])
}

/// A file system on a loop device of which the second part of the model's file cannot be read.
struct BadDisk {
    folder: TempDir,
    mounted: bool,
}

impl BadDisk {
    /// Bytes of the whole disk, and of what is left of it.
    const SIZES: [u64; 2] = [192 << 20, 64 << 20];

    /// What making one needs and this machine lacks.
    fn missing() -> Option<&'static str> {
        if !rustix::process::geteuid().is_root() {
            return Some("that needs root");
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("there are no loop devices");
        }
        let tools = ["mkfs.ext4", "mount", "umount"];
        let lacks = |tool: &&str| Command::new(tool).arg("-V").output().is_err();
        tools
            .iter()
            .any(lacks)
            .then_some("mkfs.ext4, mount and umount are needed (packages e2fsprogs, mount)")
    }

    fn make() -> Result<BadDisk, Failed> {
        let mut disk = BadDisk { folder: tempfile::tempdir()?, mounted: false };
        let image = std::fs::File::create(disk.image())?;
        image.set_len(BadDisk::SIZES[0])?;
        std::fs::create_dir(disk.path())?;
        let command = |name: &str, arguments: &[&OsStr]| -> Result<(), Failed> {
            let output = Command::new(name).args(arguments).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            output.status.success().then_some(()).ok_or_else(|| format!("{name} failed: {said}").into())
        };
        let (image_path, path) = (disk.image(), disk.path());
        command("mkfs.ext4", &["-q".as_ref(), "-O".as_ref(), "^has_journal".as_ref(), image_path.as_ref()])?;
        let mount = |options: &str| {
            command("mount", &["-o".as_ref(), options.as_ref(), image_path.as_ref(), path.as_ref()])
        };
        mount("loop")?;
        disk.mounted = true;
        let copied = std::fs::copy(setup::smollm2(), disk.model());
        command("umount", &[path.as_ref()])?;
        disk.mounted = false;
        copied?;
        // What is mounted anew is not in the system's cache.
        mount("loop,ro")?;
        disk.mounted = true;
        image.set_len(BadDisk::SIZES[1])?;
        let read = std::fs::read(disk.model());
        match read.map_err(|error| error.raw_os_error()) {
            Err(Some(code)) if code == rustix::io::Errno::IO.raw_os_error() => Ok(disk),
            other => Err(format!("the disk can be read: {:?}", other.map(|bytes| bytes.len())).into()),
        }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn model(&self) -> PathBuf {
        self.path().join(setup::smollm2().file_name().expect("a name"))
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        if self.mounted {
            // Whoever still reads from it goes on to do so until they end.
            let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
        }
    }
}

/// The disk under one worker's file fails behind the file's header.
fn disk_error() -> Result<(), Failed> {
    run(async {
        let disk = BadDisk::make()?;
        let mut served = Served::start(&[&["--min-workers", "3"][..], &CONTEXT].concat());
        let mut ben = served.join_from("ben", "256MiB", &disk.path());
        let _others = ["anna", "carla"].map(|name| served.join(name, "256MiB"));
        let (reason, _) = reason_of(&mut ben)?;
        let failed = Instant::now();
        if !reason.contains(&*disk.model().to_string_lossy()) || !reason.contains("os error 5") {
            return Err(format!("the file and the disk's error are not named in: {reason}").into());
        }
        rest_serves(&mut served, &ben, failed).await
    })
}

/// Changes a byte of the model's name, which is a part of the header alone.
fn rename_model(path: &Path) -> Result<(), Failed> {
    let mut bytes = std::fs::read(path)?;
    let key = b"general.name";
    let at = bytes.windows(key.len()).position(|window| window == key).ok_or("no name in the header")?;
    // Behind the key: the value's type in 4 bytes, and its length in 8.
    bytes[at + key.len() + 12] ^= 1;
    std::fs::write(path, bytes)?;
    Ok(())
}

/// The clock that people read is set forwards and backwards under every process, while answers run.
fn clocks() -> Result<(), Failed> {
    /// In front of the C library's, for every process that it is loaded into.
    const SHIM: &str = r#"
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <stdint.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        static volatile int64_t *shift_s;
        __attribute__((constructor)) static void begin(void) {
            int file = open(getenv("CLOCK_SHIFT"), O_RDONLY);
            void *map = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
            if (map != MAP_FAILED) shift_s = map;
            close(file);
        }
        int clock_gettime(clockid_t clock, struct timespec *time) {
            int result = syscall(SYS_clock_gettime, clock, time);
            if (result == 0 && clock == CLOCK_REALTIME && shift_s) time->tv_sec += *shift_s;
            return result;
        }
    "#;
    run(async {
        let wanted = undisturbed(None).await;
        let folder = tempfile::tempdir()?;
        let [source, library, shift] = ["shim.c", "shim.so", "shift"].map(|name| folder.path().join(name));
        std::fs::write(&source, SHIM)?;
        let set = |seconds: i64| -> Result<(), Failed> {
            use std::os::unix::fs::FileExt;
            std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&shift)?
                .write_all_at(&seconds.to_le_bytes(), 0)?;
            Ok(())
        };
        set(0)?;
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status()?;
        if !built.success() {
            return Err("the C compiler that links Rust programs makes no library".into());
        }
        let (library, file) = (library.to_string_lossy(), shift.to_string_lossy());
        let environment = [("LD_PRELOAD", &*library), ("CLOCK_SHIFT", &*file)];
        let cluster = Cluster::start_in("256MiB", &[], &environment).await;
        let epoch = cluster.epoch().await;
        let created = async || {
            let request = json!({ "prompt": "Now", "max_tokens": 1 });
            cluster.client.complete(request).await["created"].as_i64().expect("a time")
        };
        let before = created().await;
        let start = Instant::now();
        let streams = cluster.streams(None).await;
        for (tokens, seconds) in [(17, CLOCK_SHIFT_S), (60, -CLOCK_SHIFT_S), (120, CLOCK_SHIFT_S), (200, 0)] {
            while streams.iter().any(|stream| stream.count() < tokens) {
                tokio::time::sleep(POLL).await;
            }
            set(seconds)?;
            // So that it is known to have been set.
            let moved = created().await - before - seconds;
            if !(0..=END.as_secs() as i64).contains(&moved) {
                return Err(format!("the clock was not set by {seconds} s: {moved}").into());
            }
        }
        let told = ends(streams).await;
        check(&told, wanted)?;
        let (gap, speed) = pace(&told);
        let status = cluster.client.status().await;
        println!(
            "  set four times within {:.1?}; longest gap {gap:.2?}; {speed:.1} tokens/s",
            start.elapsed()
        );
        if cluster.epoch().await != epoch || status["requests"]["recovered"] != 0 {
            return Err(format!("a plan was given up: {status:#}").into());
        }
        let lost = |worker: &&Value| worker["state"] != "attached";
        if status["workers"].as_array().into_iter().flatten().filter(lost).count() > 0 {
            return Err(format!("a worker counts as lost: {:#}", status["workers"]).into());
        }
        if gap > LONGEST_GAP {
            return Err(format!("a token took {gap:?}, {LONGEST_GAP:?} are promised").into());
        }
        Ok(())
    })
}

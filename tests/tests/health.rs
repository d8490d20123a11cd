//! A worker that is stopped, killed, slowed, filled or cut off shows it, with the reason, wherever people look, within five
//! seconds; and is well again once the cause is gone.
//!
//! Cutting a host off needs network namespaces, so root and iproute2; where they can't be made, that test is reported as
//! ignored. The dashboard is one of the places where there is a browser; where there is none, that is said.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brigade_tests::browser::{self, Browser};
use brigade_tests::cluster::brigade;
use brigade_tests::http::Client;
use brigade_tests::network::{Network, serve};
use brigade_tests::process::send_signal;
use brigade_tests::stream::Streaming;
use brigade_tests::terminal::Terminal;
use brigade_tests::three::{CONTEXT, Cluster, requests};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Within this it shows.
const SHOWN: Duration = Duration::from_secs(5);
/// Within this all is well again: a worker that was away attaches anew, and a stage's last steps are all good ones.
const WELL: Duration = Duration::from_secs(60);
/// How long it may take until it is known what is usual.
const SETTLED: Duration = Duration::from_secs(60);
/// Tokens from which on it is: some dozens of steps of every kind.
const SETTLED_TOKENS: u64 = 600;
/// How often people look.
const POLL: Duration = Duration::from_millis(100);
/// The size of the terminal that `brigade top` is in.
const ROWS: u16 = 50;
const COLUMNS: u16 = 200;
/// A slowed worker is stopped for the first of these, and goes on for the second, again and again.
const SLICES: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(10));

fn main() {
    let possible = Network::make(0);
    if let Err(reason) = &possible {
        println!("network namespaces cannot be made here, so no host is cut off: {reason}");
    }
    let skip = possible.is_err();
    drop(possible);
    let trials = vec![
        Trial::test("a_stopped_worker_is_unreachable", || run(stopped())),
        Trial::test("a_killed_worker_is_unreachable", || run(killed())),
        Trial::test("a_slowed_worker_is_slow", || run(slowed())),
        Trial::test("a_filled_cache_is_full", || run(filled())),
        Trial::test("a_worker_that_is_cut_off_is_unreachable", cut_off).with_ignored_flag(skip),
    ];
    // Each has the machine to itself.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test)
}

/// A cluster that is looked at.
struct Watched<'a> {
    client: Client,
    /// The `brigade` program, where it reaches the cluster.
    brigade: Box<dyn Fn() -> Command + 'a>,
    /// `brigade top`.
    top: Terminal,
    /// The dashboard; `None` where there is no browser.
    page: Option<Browser>,
}

impl<'a> Watched<'a> {
    /// Looks at a cluster with programs that `brigade` starts, from the network that this thread is in.
    async fn start(client: &Client, brigade: impl Fn() -> Command + 'a) -> Watched<'a> {
        let top = Terminal::start(brigade().args(["top", "--url", client.url()]), ROWS, COLUMNS);
        let page = match browser::missing() {
            None => {
                let page = Browser::start().await;
                page.open(client.url()).await;
                Some(page)
            }
            Some(missing) => {
                println!("  the dashboard is not looked at: {missing}");
                None
            }
        };
        Watched { client: client.clone(), brigade: Box::new(brigade), top, page }
    }

    /// Where it can be looked at.
    fn places(&self) -> Vec<Place> {
        let page = self.page.is_some().then_some(Place::Page);
        [Place::Api, Place::Table, Place::Top, Place::Metrics].into_iter().chain(page).collect()
    }

    async fn end(self) {
        if let Some(page) = self.page {
            page.quit().await;
        }
    }
}

/// Where people look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// `brigade top`.
    Top,
    /// The dashboard in a browser.
    Page,
    /// `/api/status`.
    Api,
    /// `brigade status`.
    Table,
    /// `/metrics`.
    Metrics,
}

impl Place {
    /// Whether a worker is seen to be in this state there, for a reason that says `why`; or what is seen instead.
    async fn shows(self, watched: &Watched<'_>, worker: &str, state: &str, why: &str) -> Result<(), String> {
        let seen = match self {
            Place::Api => {
                let status = watched.client.status().await;
                let workers = status["workers"].as_array().cloned().unwrap_or_default();
                let health =
                    workers.iter().find(|found| found["name"] == worker).map(|found| &found["health"]);
                let health = health.cloned().unwrap_or_default();
                let says = health["reason"].as_str().unwrap_or_default().contains(why);
                let advises = state == "ok" || health["advice"].is_string();
                (health["state"] == state && says && advises, health.to_string())
            }
            Place::Table => {
                let mut command = (watched.brigade)();
                command.args(["status", "--url", watched.client.url()]);
                let output = tokio::task::spawn_blocking(move || command.output()).await;
                let output = output.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                // The worker's name, its host's, and its health.
                let row = |line: &str| {
                    let mut words = line.split_whitespace();
                    words.next() == Some(worker) && words.nth(1) == Some(state)
                };
                let complains = |line: &str| {
                    let of_worker = line.starts_with(&format!("! {worker} {state}: "));
                    (of_worker || line.starts_with(&format!("! the cluster is {state}: ")))
                        && line.contains(why)
                };
                let says = state == "ok" || text.lines().any(complains);
                (text.lines().any(row) && says, text)
            }
            Place::Top => {
                let text = watched.top.text();
                let row = |line: &str| line.contains(worker) && line.contains(state);
                let says = state == "ok" || text.contains(why);
                (text.lines().any(row) && says, text)
            }
            Place::Page => {
                let page = watched.page.as_ref().ok_or("no browser")?;
                let card = format!(
                    "const card = [...document.querySelectorAll('[data-worker]')].find((card) => card.dataset.worker === \
                     '{worker}'); return card ? [card.dataset.state, card.innerText] : null"
                );
                let card = page.eval(&card).await;
                let says = state == "ok" || card[1].as_str().is_some_and(|text| text.contains(why));
                (card[0] == state && says, card.to_string())
            }
            Place::Metrics => {
                let text = watched.client.get("/metrics").await.body;
                let text = text.as_str().unwrap_or_default().to_owned();
                let (name, state) = (format!("name=\"{worker}\""), format!("state=\"{state}\""));
                let lines = text.lines().filter(|line| line.starts_with("brigade_worker_health{"));
                let of_worker: Vec<&str> = lines.filter(|line| line.contains(&name)).collect();
                let is_shown = of_worker.len() == 1 && of_worker[0].contains(&state);
                (is_shown && of_worker[0].ends_with("} 1.0"), of_worker.join("\n"))
            }
        };
        if seen.0 { Ok(()) } else { Err(seen.1) }
    }
}

/// Waits until a worker is seen to be so everywhere; the error is what is seen instead after `limit`.
async fn shown_everywhere(
    watched: &Watched<'_>,
    worker: &str,
    (state, why): (&str, &str),
    since: Instant,
    limit: Duration,
) -> Result<(), Failed> {
    let mut missing = watched.places();
    let mut times = Vec::new();
    loop {
        let mut instead = String::new();
        for place in std::mem::take(&mut missing) {
            match place.shows(watched, worker, state, why).await {
                Ok(()) => times.push(format!("{place:?} {:.1} s", since.elapsed().as_secs_f64())),
                Err(seen) => {
                    instead = format!("{place:?} shows\n{seen}");
                    missing.push(place);
                }
            }
        }
        if missing.is_empty() {
            println!("  {worker} is {state}: {}", times.join(", "));
            let reason = watched.client.status().await["workers"]
                .as_array()
                .and_then(|workers| workers.iter().find(|found| found["name"] == worker).cloned());
            println!("    {}", reason.unwrap_or_default()["health"]);
            return Ok(());
        }
        if since.elapsed() > limit {
            return Err(format!("{worker} is not {state} within {limit:?}: {instead}").into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until it is well again.
async fn well_everywhere(watched: &Watched<'_>, worker: &str) -> Result<(), Failed> {
    shown_everywhere(watched, worker, ("ok", ""), Instant::now(), WELL).await
}

/// Four answers at a time, one after the other.
struct Load {
    stop: Arc<AtomicBool>,
    streams: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(client: &Client, model: &str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = |request: Value| {
            let (client, model, stop) = (client.clone(), model.to_owned(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let stream = Streaming::start(&client, &model, request.clone()).await;
                    stream.end(WELL * 4).await;
                }
            })
        };
        Load { streams: requests(None).into_iter().map(answers).collect(), stop }
    }

    /// Waits until the stages have had something to do for a while.
    async fn settle(&self, client: &Client) -> Result<(), Failed> {
        let deadline = Instant::now() + SETTLED;
        loop {
            let status = client.status().await;
            if status["requests"]["generated_tokens"].as_u64().unwrap_or_default() >= SETTLED_TOKENS {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("too slow to be measured: {status:#}").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for the answers under way.
    async fn end(self) -> Result<(), Failed> {
        self.stop.store(true, Ordering::Relaxed);
        for stream in self.streams {
            stream.await?;
        }
        Ok(())
    }
}

async fn watched(cluster: &Cluster) -> Watched<'_> {
    Watched::start(&cluster.client, || brigade(&cluster.served.home)).await
}

/// The name and process of the worker in the middle.
async fn middle(cluster: &mut Cluster) -> (String, u32) {
    let worker = cluster.holder(1).await;
    (worker.name().to_owned(), worker.process.id())
}

async fn stopped() -> Result<(), Failed> {
    let mut cluster = Cluster::start("256MiB", &CONTEXT).await;
    let load = Load::start(&cluster.client, &cluster.model);
    load.settle(&cluster.client).await?;
    let (name, process) = middle(&mut cluster).await;
    let watched = watched(&cluster).await;
    well_everywhere(&watched, &name).await?;
    what_is_done_is_told(&cluster.client).await?;
    send_signal(process, libc::SIGSTOP);
    let shown = shown_everywhere(&watched, &name, ("unreachable", "heard"), Instant::now(), SHOWN).await;
    send_signal(process, libc::SIGCONT);
    shown?;
    well_everywhere(&watched, &name).await?;
    watched.end().await;
    load.end().await
}

/// Speed, shares, requests and the newest steps, while four answers run through three stages.
async fn what_is_done_is_told(client: &Client) -> Result<(), Failed> {
    let status = client.status().await;
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let rates = &status["rates"];
    let stages = status["stages"].as_array().cloned().unwrap_or_default();
    let shares: f64 = stages.iter().map(|stage| number(&stage["step_share"])).sum();
    let busy = |stage: &Value| number(&stage["busy"]) > 0.0 && number(&stage["decode_us_p99"]) > 0.0;
    let active = status["active"].as_array().cloned().unwrap_or_default();
    let known =
        |request: &Value| ["waiting", "prefill", "decode"].iter().any(|state| request["state"] == *state);
    let told = number(&rates["generated_tokens_per_s"]) > 0.0
        && number(&rates["ttft_ms_p50"]) > 0.0
        && number(&rates["itl_ms_p50"]) > 0.0
        && (shares - 1.0).abs() < 1e-6
        && stages.len() == 3
        && stages.iter().all(busy)
        && (1..=4).contains(&active.len())
        && active.iter().all(known);
    if !told {
        return Err(format!("something is missing in {status:#}").into());
    }
    let steps = async |after: u64| {
        let steps = client.get(&format!("/api/timeline?after={after}")).await.ok();
        let steps = steps.as_array().cloned().unwrap_or_default();
        steps.into_iter().map(|step| (step["step"].as_u64().unwrap_or_default(), step)).collect::<Vec<_>>()
    };
    let before = steps(0).await;
    let newest = before.last().map_or(0, |(number, _)| *number);
    tokio::time::sleep(POLL * 10).await;
    let after = steps(newest).await;
    let in_order = before.iter().chain(&after).map(|(number, _)| *number).is_sorted_by(|a, b| a < b);
    let whole = |(_, step): &(u64, Value)| {
        let took = number(&step["took_us"]);
        let ends = step["stages"].as_array().into_iter().flatten().map(|stage| {
            number(&stage["came_us"]) + number(&stage["queued_us"]) + number(&stage["computed_us"])
        });
        let ends: Vec<f64> = ends.collect();
        ends.len() == 3 && ends.is_sorted() && ends.iter().all(|end| *end <= took)
    };
    let all = before.iter().chain(&after);
    if before.is_empty() || after.is_empty() || !in_order || !all.clone().all(whole) {
        let wrong = all.filter(|step| !whole(step)).take(3).collect::<Vec<_>>();
        return Err(format!("{} steps, then {}; not whole: {wrong:?}", before.len(), after.len()).into());
    }
    Ok(())
}

async fn killed() -> Result<(), Failed> {
    let mut cluster = Cluster::start("256MiB", &CONTEXT).await;
    let load = Load::start(&cluster.client, &cluster.model);
    load.settle(&cluster.client).await?;
    let (name, _) = middle(&mut cluster).await;
    let (client, home) = (cluster.client.clone(), &cluster.served.home);
    let watched = Watched::start(&client, || brigade(home)).await;
    well_everywhere(&watched, &name).await?;
    let worker = cluster.workers.iter_mut().find(|worker| worker.name() == name);
    let worker = worker.ok_or("the worker is ours")?;
    worker.kill();
    shown_everywhere(&watched, &name, ("unreachable", "lost"), Instant::now(), SHOWN).await?;
    worker.restart();
    well_everywhere(&watched, &name).await?;
    watched.end().await;
    load.end().await
}

/// Stops a process for most of the time, as a limit on its processor time does. It goes on once this is dropped.
struct Brake {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Brake {
    fn on(process: u32) -> Brake {
        let stop = Arc::new(AtomicBool::new(false));
        let released = stop.clone();
        let thread = std::thread::spawn(move || {
            while !released.load(Ordering::Relaxed) {
                send_signal(process, libc::SIGSTOP);
                std::thread::sleep(SLICES.0);
                send_signal(process, libc::SIGCONT);
                std::thread::sleep(SLICES.1);
            }
        });
        Brake { stop, thread: Some(thread) }
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It could only fail to signal a process that is gone, and the test has failed then.
            let _ = thread.join();
        }
    }
}

async fn slowed() -> Result<(), Failed> {
    let mut cluster = Cluster::start("256MiB", &CONTEXT).await;
    let load = Load::start(&cluster.client, &cluster.model);
    load.settle(&cluster.client).await?;
    let (name, process) = middle(&mut cluster).await;
    let watched = watched(&cluster).await;
    well_everywhere(&watched, &name).await?;
    let brake = Brake::on(process);
    let shown = shown_everywhere(&watched, &name, ("slow", "of the step"), Instant::now(), SHOWN).await;
    drop(brake);
    shown?;
    well_everywhere(&watched, &name).await?;
    watched.end().await;
    load.end().await
}

async fn filled() -> Result<(), Failed> {
    let mut cluster = Cluster::start("256MiB", &["--ctx", "512", "--parallel", "1"]).await;
    let (name, _) = middle(&mut cluster).await;
    let watched = watched(&cluster).await;
    well_everywhere(&watched, &name).await?;
    let since = Instant::now();
    let mut streams = Vec::new();
    for place in 0..8 {
        let request = json!({
            "prompt": format!("Chapter {place}. The bucket brigade stood"), "max_tokens": 300, "ignore_eos": true,
        });
        streams.push(Streaming::start(&cluster.client, &cluster.model, request).await);
    }
    shown_everywhere(&watched, &name, ("full", "of 512 cache tokens are reserved"), since, SHOWN).await?;
    let health = cluster.client.get("/health").await;
    if health.status != 200 || health.body["health"]["state"] != "full" {
        return Err(
            format!("a full cluster still serves, and says that it is full: {:#}", health.body).into()
        );
    }
    for stream in streams {
        let told = stream.end(WELL * 2).await;
        if !told.done {
            return Err(format!("an answer broke off: {told:?}").into());
        }
    }
    well_everywhere(&watched, &name).await?;
    watched.end().await;
    Ok(())
}

fn cut_off() -> Result<(), Failed> {
    let network = Network::make(4)?;
    let home = tempfile::tempdir()?;
    let (_coordinator, workers, url) = serve(&network, home.path(), 3, &["--parallel", "4"]);
    let programs = brigade_tests::setup::programs();
    let cut = async || -> Result<(), Failed> {
        let client = Client::new(&url);
        let model = client.model().await;
        let watched = Watched::start(&client, || network.host(0, &programs.brigade, home.path())).await;
        let load = Load::start(&client, &model);
        load.settle(&client).await?;
        let status = client.status().await;
        let name = status["stages"][1]["name"].as_str().unwrap_or_default().to_owned();
        let host: usize = name.trim_start_matches("host").parse()?;
        well_everywhere(&watched, &name).await?;
        network.unplug(host)?;
        let since = Instant::now();
        let shown = shown_everywhere(&watched, &name, ("unreachable", "heard"), since, SHOWN).await;
        network.plug(host)?;
        shown?;
        well_everywhere(&watched, &name).await?;
        watched.end().await;
        load.end().await
    };
    network
        .at(0, || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(cut()))??;
    drop(workers);
    Ok(())
}

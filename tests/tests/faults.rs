//! Faults of real processes: workers that are killed or stopped while answers run. Every answer is compared with what it
//! is without a fault, token by token, and the time that recovery takes with what is promised.
//!
//! A plain run does a part of it, and names what it leaves out; `BRIGADE_FAULTS=all cargo test --release -p brigade-tests
//! --test faults` does all of it.

use std::time::{Duration, Instant};

use brigade_tests::serve::Joined;
use brigade_tests::stream::{Streaming, Told};
use brigade_tests::three::{Cluster, END, POLL, TOKENS, check, ends, requests, undisturbed};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// What the coordinator says of itself is at most so old.
const STATUS_AGE: Duration = Duration::from_millis(500);
/// Tokens of the prompts that are long: enough that they are being computed for a while.
const LONG_PROMPT: usize = 400;
/// Within this a killed process is noticed.
const DETECTED: Duration = Duration::from_secs(1);
/// Within this a stopped process is noticed.
const STOPPED_DETECTED: Duration = Duration::from_secs(5);
/// Within this, and the time to load, text goes on.
const GOES_ON: Duration = Duration::from_secs(5);
/// Within this text goes on after a worker is back without which there is too little memory.
const BACK: Duration = Duration::from_secs(10);

/// When a fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// When each answer has so many tokens.
    Tokens(usize),
    /// While the prompts are computed.
    Prompt,
    /// While the plan is loaded that makes up for another worker.
    Loading,
}

fn main() {
    let all = std::env::var("BRIGADE_FAULTS").is_ok_and(|value| value == "all");
    let mut trials = Vec::new();
    for stage in 0..3 {
        for moment in
            [Moment::Tokens(1), Moment::Tokens(17), Moment::Tokens(200), Moment::Prompt, Moment::Loading]
        {
            let part = matches!((stage, moment), (1, Moment::Tokens(17)) | (2, Moment::Prompt));
            let name = format!("stage_{stage}_is_killed_at_{}", in_words(moment));
            trials.push(Trial::test(name, move || killed(stage, moment)).with_ignored_flag(!all && !part));
        }
        let name = format!("stage_{stage}_is_stopped_for_20_s");
        let part = stage == 1;
        trials.push(Trial::test(name, move || stopped(stage)).with_ignored_flag(!all && !part));
    }
    trials.push(Trial::test("a_worker_that_nobody_can_stand_in_for_is_waited_for", waited_for));
    trials.push(Trial::test("the_coordinator_is_killed_and_started_again", coordinator_killed));
    if !all {
        println!("a part of the faults; BRIGADE_FAULTS=all runs those that are ignored here, too");
    }
    // Each has the machine to itself.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

fn in_words(moment: Moment) -> String {
    match moment {
        Moment::Tokens(tokens) => format!("token_{tokens}"),
        Moment::Prompt => "its_prompt".into(),
        Moment::Loading => "loading".into(),
    }
}

/// Prints where the time went, and checks it against what is promised; `late` is what the fault itself takes.
async fn check_times(
    cluster: &Cluster,
    told: &[Told],
    fault: Instant,
    detected: (Duration, Duration),
    late: Duration,
) -> Result<(), Failed> {
    let (detected, limit) = detected;
    let status = cluster.client.status().await;
    let part = |name: &str| status["recovery"][name].as_u64().unwrap_or_default();
    let gap = told.iter().map(|told| told.longest_gap(fault)).max().unwrap_or_default();
    println!(
        "  noticed after {detected:.2?}; detect {} ms, plan {} ms, load {} ms, replay {} ms; longest gap {gap:.2?}; \
         {} of {} requests recovered",
        part("detect_ms"),
        part("plan_ms"),
        part("load_ms"),
        part("replay_ms"),
        status["requests"]["recovered"],
        told.len(),
    );
    if detected > limit {
        return Err(format!("noticed after {detected:?}, {limit:?} are promised").into());
    }
    let allowed = late + GOES_ON + Duration::from_millis(part("load_ms"));
    if gap > allowed {
        return Err(format!("text went on after {gap:?}, {allowed:?} are promised").into());
    }
    Ok(())
}

fn run(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test)
}

fn killed(stage: usize, moment: Moment) -> Result<(), Failed> {
    run(async move {
        let prompt_tokens = (moment == Moment::Prompt).then_some(LONG_PROMPT);
        let wanted = undisturbed(prompt_tokens).await;
        if moment == Moment::Loading {
            return killed_while_loading(stage, wanted).await;
        }
        let mut cluster = Cluster::start("256MiB", &[]).await;
        let epoch = cluster.epoch().await;
        let streams = cluster.streams(prompt_tokens).await;
        match moment {
            Moment::Tokens(tokens) => {
                while streams.iter().any(|stream| stream.count() < tokens) {
                    tokio::time::sleep(POLL).await;
                }
            }
            Moment::Prompt | Moment::Loading => {
                // Some of the prompts' tokens are computed, and some are not.
                let computed = || async {
                    cluster.client.status().await["requests"]["prompt_tokens"].as_u64().expect("a count")
                };
                while computed().await < LONG_PROMPT as u64 {
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        let holder = cluster.holder(stage).await;
        let fault = Instant::now();
        holder.kill();
        let before: Vec<usize> = streams.iter().map(Streaming::count).collect();
        let detected = cluster.noticed(epoch, fault, DETECTED).await;
        println!("  stage {stage} was killed when the answers had {before:?} tokens");
        let told = ends(streams).await;
        check(&told, wanted)?;
        // Long prompts take their time, and more of it with a worker less.
        let prompts = wanted.iter().map(Told::first_token).max().unwrap_or_default() * 2;
        let late = if prompt_tokens.is_some() { prompts } else { Duration::ZERO };
        check_times(&cluster, &told, fault, (detected, DETECTED), late).await
    })
}

/// Kills one worker, and while the next plan is loaded a second one, which holds a stage of that.
async fn killed_while_loading(stage: usize, wanted: &[Told]) -> Result<(), Failed> {
    let mut cluster = Cluster::start("256MiB", &[]).await;
    let epoch = cluster.epoch().await;
    let streams = cluster.streams(None).await;
    while streams.iter().any(|stream| stream.count() < 17) {
        tokio::time::sleep(POLL).await;
    }
    let first = Instant::now();
    cluster.holder(stage).await.kill();
    let detected = cluster.noticed(epoch, first, DETECTED).await;
    let next = loop {
        let status = cluster.client.status().await;
        if status["phase"] == "loading" {
            break status;
        }
        if first.elapsed() > END || status["phase"] == "serving" {
            return Err(format!("no loading was seen; it is {}", status["phase"]).into());
        }
    };
    let second = Instant::now();
    cluster.holder(stage % 2).await.kill();
    println!("  a stage of plan {} was killed while it was loaded", next["epoch"]);
    let told = ends(streams).await;
    check(&told, wanted)?;
    check_times(&cluster, &told, first, (detected, DETECTED), second - first).await
}

fn stopped(stage: usize) -> Result<(), Failed> {
    run(async move {
        let wanted = undisturbed(None).await;
        let mut cluster = Cluster::start("256MiB", &[]).await;
        let epoch = cluster.epoch().await;
        let streams = cluster.streams(None).await;
        while streams.iter().any(|stream| stream.count() < 17) {
            tokio::time::sleep(POLL).await;
        }
        let holder = cluster.holder(stage).await;
        let fault = Instant::now();
        holder.process.signal(libc::SIGSTOP);
        let stopped = holder.name().to_owned();
        let detected = cluster.noticed(epoch, fault, STOPPED_DETECTED).await;
        let told = ends(streams).await;
        check(&told, wanted)?;
        check_times(&cluster, &told, fault, (detected, STOPPED_DETECTED), STOPPED_DETECTED).await?;
        let status = cluster.client.status().await;
        let state = |status: &Value| {
            let workers = status["workers"].as_array().expect("a list").clone();
            workers.into_iter().find(|worker| worker["name"] == stopped.as_str()).expect("it is known")["state"]
                .clone()
        };
        let lost: Vec<&Value> = status["workers"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|worker| worker["state"] == "lost")
            .collect();
        if lost.len() != 1 || state(&status) != "lost" {
            return Err(format!("{stopped} alone was stopped: {:#}", status["workers"]).into());
        }
        tokio::time::sleep(Duration::from_secs(20).saturating_sub(fault.elapsed())).await;
        let holder = cluster.workers.iter_mut().find(|worker| worker.name() == stopped).expect("ours");
        holder.process.signal(libc::SIGCONT);
        let back = Instant::now();
        while state(&cluster.client.status().await) != "attached" {
            if back.elapsed() > BACK {
                return Err(
                    format!("{stopped} does not come back:\n{}", cluster.served.process.output()).into()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        println!("  {stopped} is back {:.2?} after it was continued", back.elapsed());
        // What it still had to say of the old plan changes nothing.
        let told = ends(cluster.streams(None).await).await;
        check(&told, wanted)
    })
}

/// With so little memory that all three are needed, answers are parked until the lost one is back.
fn waited_for() -> Result<(), Failed> {
    run(async move {
        let wanted = undisturbed(None).await;
        let mut cluster = Cluster::start("72MiB", &["--ctx", "512", "--parallel", "4"]).await;
        let epoch = cluster.epoch().await;
        let streams = cluster.streams(None).await;
        while streams.iter().any(|stream| stream.count() < 17) {
            tokio::time::sleep(POLL).await;
        }
        let fault = Instant::now();
        cluster.holder(1).await.kill();
        let detected = cluster.noticed(epoch, fault, DETECTED).await;
        // Long enough that a comment keeps the streams alive.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let status = cluster.client.status().await;
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        if status["phase"] != "waiting" || !reason.contains("MiB more") {
            return Err(format!("nothing is missing: {reason}").into());
        }
        if !streams.iter().all(|stream| !stream.so_far().comments.is_empty()) {
            return Err("no comment has kept the streams alive".into());
        }
        let gone = cluster.workers.iter_mut().find(|worker| !is_alive(worker)).expect("one was killed");
        let back = Instant::now();
        gone.restart();
        let told = ends(streams).await;
        check(&told, wanted)?;
        let went_on = told.iter().map(|told| told.longest_gap(fault)).max().unwrap_or_default();
        let after = went_on.saturating_sub(back - fault);
        println!("  text went on {after:.2?} after the worker was started again");
        if after > BACK {
            return Err(format!("text went on after {after:?}, {BACK:?} are promised").into());
        }
        check_times(&cluster, &told, fault, (detected, DETECTED), back - fault + BACK).await
    })
}

/// Whoever asks again with the same key gets the rest, and no worker reads a weight again.
fn coordinator_killed() -> Result<(), Failed> {
    run(async move {
        let wanted = undisturbed(None).await;
        let mut cluster = Cluster::start("256MiB", &[]).await;
        let model = cluster.model.clone();
        let client = cluster.client.clone();
        let key = |place: usize| format!("answer-{place}");
        let mut streams = Vec::new();
        for (place, request) in requests(None).into_iter().enumerate() {
            streams.push(Streaming::start_kept(&client, &model, request, &key(place), Told::default()).await);
        }
        while streams.iter().any(|stream| stream.count() < 17) {
            tokio::time::sleep(POLL).await;
        }
        let fault = Instant::now();
        cluster.served = cluster.served.kill_and_restart(&client);
        let before = ends(streams).await;
        if before.iter().any(|told| told.done || told.tokens.len() >= TOKENS) {
            return Err("an answer had ended before the coordinator was killed".into());
        }
        cluster.served.wait_until_serving(&client).await;
        let serving = fault.elapsed();
        let counts: Vec<usize> = before.iter().map(|told| told.tokens.len()).collect();
        let mut streams = Vec::new();
        for (place, (request, before)) in requests(None).into_iter().zip(before).enumerate() {
            streams.push(Streaming::start_kept(&client, &model, request, &key(place), before).await);
        }
        let told = ends(streams).await;
        check(&told, wanted)?;
        let gap = told.iter().map(|told| told.longest_gap(fault)).max().unwrap_or_default();
        println!(
            "  killed when the answers had {counts:?} tokens; served again after {serving:.2?}, text went on after {gap:.2?}"
        );
        if gap > GOES_ON {
            return Err(format!("text went on after {gap:?}, {GOES_ON:?} are promised").into());
        }
        for worker in &cluster.workers {
            let output = worker.process.output();
            let loads = output.lines().filter(|line| line.contains("loading ")).count();
            if loads != 1 {
                return Err(format!("{} has read weights {loads} times:\n{output}", worker.name()).into());
            }
        }
        // An answer that has ended is told again as it was, and nothing is computed for it.
        let drawn = || async {
            tokio::time::sleep(STATUS_AGE).await;
            client.status().await["requests"]["generated_tokens"].clone()
        };
        let before = drawn().await;
        let again =
            Streaming::start_kept(&client, &model, requests(None).remove(0), &key(0), Told::default()).await;
        check(&[again.end(END).await], &wanted[..1])?;
        if drawn().await != before {
            return Err("an answer that was kept was generated again".into());
        }
        Ok(())
    })
}

fn is_alive(worker: &Joined) -> bool {
    brigade_tests::process::is_running(worker.process.id())
}

//! Coordinator and workers on hosts of their own: network namespaces with addresses of their own, joined by a bridge, or by
//! links that are as bad as a test wants them.
//!
//! Namespaces need root and iproute2, bad links TUN devices. Where they can't be made, the tests are reported as ignored,
//! never as passed. A plain run does a part, and names what it leaves out; `BRIGADE_FAULTS=all` does all of it.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use brigade_tests::cluster::{Up, brigade};
use brigade_tests::http::Client;
use brigade_tests::network::{Network, serve};
use brigade_tests::setup;
use brigade_tests::stream::{Streaming, Told};
use brigade_tests::three::{check, ends, requests};
use brigade_tests::wires::Conditions;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// How long a packet is under way on a good network between machines: half of a round trip of 1 ms.
const ONE_WAY: Duration = Duration::from_micros(500);
/// Tokens of each of the four answers that are under way on a bad network.
const TOKENS: usize = 96;
/// Within this a token follows on the one before, however bad the network: less than it takes to think a worker lost.
const LONGEST_GAP: Duration = Duration::from_secs(4);

fn main() {
    let possible = Network::make(0);
    if let Err(reason) = &possible {
        println!("network namespaces cannot be made here, so these tests are skipped: {reason}");
    }
    let skip = possible.is_err();
    drop(possible);
    let bad = Network::make_bad(0, Conditions::delay(ONE_WAY));
    if let (Err(reason), false) = (&bad, skip) {
        println!("bad links cannot be made here, so their tests are skipped: {reason}");
    }
    let skip_bad = skip || bad.is_err();
    drop(bad);
    let all = std::env::var("BRIGADE_FAULTS").is_ok_and(|value| value == "all");
    if !all {
        println!("a part of the bad networks; BRIGADE_FAULTS=all runs those that are ignored here, too");
    }
    let good = Conditions::delay(ONE_WAY);
    let mut trials = vec![
        Trial::test("three_hosts_with_addresses_of_their_own_serve_one_model", three_hosts)
            .with_ignored_flag(skip),
        Trial::test("a_link_that_is_cut_is_blamed_and_no_worker", cut_link).with_ignored_flag(skip),
    ];
    for (name, conditions, part) in [
        ("a_network_that_loses_1_percent", good.loss(0.01), true),
        ("a_network_that_loses_5_percent", good.loss(0.05), false),
        ("a_network_with_a_delay_of_50_ms", Conditions::delay(Duration::from_millis(50)), false),
        ("a_network_of_10_mbit_per_s", good.bits_per_s(10e6), false),
    ] {
        let name = format!("{name}_is_served_through");
        // A plain run wants to know whether it works; how fast, the full one.
        let rounds = if all { 3 } else { 1 };
        let test = move || bad_network(conditions, rounds);
        trials.push(Trial::test(name, test).with_ignored_flag(skip_bad || !all && !part));
    }
    // Both make networks of the same names.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

fn three_hosts() -> Result<(), Failed> {
    let network = Network::make(3)?;
    let home = tempfile::tempdir()?;
    let programs = setup::programs();
    let model = setup::smollm2();
    let (mut coordinator, workers, url) = serve(&network, home.path(), 2, &[]);

    let question = [
        "run",
        "--max-tokens",
        "24",
        "--temperature",
        "0",
        "SmolLM2-135M-Instruct.Q4_1",
        "What is a bucket?",
    ];
    let answer = run(network.host(0, &programs.brigade, home.path()).args(question).args(["--url", &url]))?;
    let one_box = Up::new(model).memory("256MiB").args(["--ctx", "512"]).start();
    let alone = run(brigade(&home).args(question).args(["--url", one_box.client.url()]))?;
    one_box.stop();
    println!("{answer}");
    if answer.split_whitespace().count() < 5 || answer != alone {
        return Err(format!("three hosts say `{answer}`, one box says `{alone}`").into());
    }
    let status =
        run(network.host(0, &programs.brigade, home.path()).args(["status", "--json", "--url", &url]))?;
    let status: Value = serde_json::from_str(&status)?;
    let hop = status["stages"][0]["next_address"].as_str().unwrap_or_default().to_owned();
    let second_host = status["stages"][1]["name"].as_str().unwrap_or_default();
    let wanted = Network::address(if second_host == "host1" { 1 } else { 2 });
    println!("stage 0 passes its hidden states to {hop} ({second_host})");
    if !hop.starts_with(&format!("{wanted}:")) {
        return Err(format!("stage 0 passes its hidden states to {hop}, not to {wanted}: {status:#}").into());
    }

    let start = Instant::now();
    coordinator.signal(libc::SIGINT);
    let (ended, output) = coordinator.wait(Duration::from_secs(5));
    println!("the coordinator ended after {:?}", start.elapsed());
    if ended.code() != Some(0) {
        return Err(format!("the coordinator ended with {ended}:\n{output}").into());
    }
    drop(workers);
    Ok(())
}

/// Cuts the link between the first two stages while an answer runs; the coordinator still reaches both.
fn cut_link() -> Result<(), Failed> {
    /// Within this text goes on.
    const GOES_ON: Duration = Duration::from_secs(10);
    let network = Network::make(4)?;
    let home = tempfile::tempdir()?;
    let programs = setup::programs();
    let (coordinator, workers, url) = serve(&network, home.path(), 3, &[]);
    let status = || -> Result<Value, Failed> {
        let mut command = network.host(0, &programs.brigade, home.path());
        Ok(serde_json::from_str(&run(command.args(["status", "--json", "--url", &url]))?)?)
    };
    let names = |status: &Value| -> Vec<String> {
        let stages = status["stages"].as_array().cloned().unwrap_or_default();
        stages.iter().map(|stage| stage["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let question = ["run", "--max-tokens", "400", "--temperature", "0", "SmolLM2-135M-Instruct.Q4_1"];
    let ask = || {
        let mut command = network.host(0, &programs.brigade, home.path());
        command.args(question).args(["Tell a long story about a bucket.", "--url", &url]);
        command
    };
    let undisturbed = run(&mut ask())?;
    let generated = |status: &Value| status["requests"]["generated_tokens"].as_u64().unwrap_or_default();
    let before = generated(&status()?);
    let mut asked = ask();
    let answer = std::thread::spawn(move || run(&mut asked).map_err(|failed| format!("{failed:?}")));
    while generated(&status()?) < before + 20 {}
    let order = names(&status()?);
    let host = |name: &str| name.trim_start_matches("host").parse::<usize>().unwrap_or_default();
    let (one, other) = (host(&order[0]), host(&order[1]));
    network.cut(one, other)?;
    let cut = Instant::now();
    // What is under way still comes home.
    std::thread::sleep(Duration::from_secs(1));
    let stalled = generated(&status()?);
    let went_on = loop {
        let now = status()?;
        if generated(&now) > stalled {
            break cut.elapsed();
        }
        if cut.elapsed() > GOES_ON * 3 {
            return Err(format!("text does not go on: {now:#}\n{}", coordinator.output()).into());
        }
    };
    let said = answer.join().expect("running a program does not panic")?;
    let now = status()?;
    println!(
        "{} was cut from {}; text went on after {went_on:.2?}, over {:?}",
        order[0],
        order[1],
        names(&now)
    );
    println!("recovery: {}", now["recovery"]);
    if said != undisturbed {
        return Err(format!("with the link cut it says `{said}`, otherwise `{undisturbed}`").into());
    }
    let lost = now["workers"].as_array().into_iter().flatten().filter(|worker| worker["state"] == "lost");
    if lost.count() > 0 {
        return Err(format!("a worker is blamed: {:#}", now["workers"]).into());
    }
    let neighbours = names(&now);
    if neighbours.windows(2).any(|pair| pair.contains(&order[0]) && pair.contains(&order[1])) {
        return Err(format!("{neighbours:?} still uses the link").into());
    }
    if went_on > GOES_ON {
        return Err(format!("text went on after {went_on:?}, {GOES_ON:?} are promised").into());
    }
    drop(workers);
    Ok(())
}

/// Four answers at a time, on a good network and on a bad one in turn; nobody is lost, and all answers are the same.
fn bad_network(bad: Conditions, rounds: usize) -> Result<(), Failed> {
    let good = Conditions::delay(ONE_WAY);
    let network = Network::make_bad(4, good)?;
    let home = tempfile::tempdir()?;
    let (coordinator, workers, url) = serve(&network, home.path(), 3, &["--parallel", "4"]);
    let asked = async || -> Result<(), Failed> {
        let client = Client::new(&url);
        let model = client.model().await;
        let answers = async || {
            let mut streams = Vec::new();
            for mut request in requests(None) {
                request["max_tokens"] = json!(TOKENS);
                streams.push(Streaming::start(&client, &model, request).await);
            }
            ends(streams).await
        };
        let wanted = answers().await;
        let epoch = client.status().await["epoch"].clone();
        let mut speeds: [Vec<f64>; 2] = Default::default();
        let mut longest = Duration::ZERO;
        let before = network.packets();
        let mut between = (0, 0);
        for round in 0..rounds * 2 {
            let is_bad = round % 2 == 1;
            network.set(if is_bad { bad } else { good });
            let (start, packets) = (Instant::now(), network.packets());
            let told = answers().await;
            check(&told, &wanted)?;
            speeds[usize::from(is_bad)].push(speed(&told));
            if is_bad {
                longest =
                    told.iter().map(|told| told.longest_gap(start)).max().unwrap_or_default().max(longest);
                between.0 += network.packets().0 - packets.0;
                between.1 += network.packets().1 - packets.1;
            }
        }
        let [on_good, on_bad] = speeds.clone().map(median);
        println!(
            "  {on_bad:.1} tokens/s, of {on_good:.1} with a round trip of 1 ms alone: {:.0} %; each run: {speeds:.1?}",
            100.0 * on_bad / on_good
        );
        println!(
            "  longest gap {longest:.2?}; {} of {} packets were lost on the bad network, {} on the good one",
            between.1,
            between.0,
            network.packets().1 - before.1 - between.1
        );
        let status = client.status().await;
        for stage in status["stages"].as_array().into_iter().flatten() {
            println!("  {} -> next: round trip {} us", stage["name"], stage["next_rtt_us"]);
        }
        let not_attached = |worker: &&Value| worker["state"] != "attached";
        if status["workers"].as_array().into_iter().flatten().filter(not_attached).count() > 0 {
            return Err(format!("a worker counts as lost: {:#}", status["workers"]).into());
        }
        if status["epoch"] != epoch
            || status["requests"]["recovered"] != 0
            || status["recovery"]["count"] != 0
        {
            return Err(format!("a plan was given up: {status:#}\n{}", coordinator.output()).into());
        }
        if longest > LONGEST_GAP {
            return Err(format!("no token for {longest:?}, {LONGEST_GAP:?} are promised").into());
        }
        Ok(())
    };
    network
        .at(0, || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(asked()))??;
    drop(workers);
    Ok(())
}

/// Tokens a second of all answers together, from when the last of them began to when the first of them ended.
fn speed(told: &[Told]) -> f64 {
    let from = told.iter().filter_map(|told| told.times.first()).max();
    let to = told.iter().filter_map(|told| told.times.last()).min();
    let Some((from, to)) = from.zip(to).filter(|(from, to)| to > from) else {
        return 0.0;
    };
    let within = |told: &Told| told.times.iter().filter(|time| *time > from && *time <= to).count();
    told.iter().map(within).sum::<usize>() as f64 / (*to - *from).as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

fn run(command: &mut Command) -> Result<String, Failed> {
    let Output { status, stdout, stderr } = command.output()?;
    if !status.success() {
        return Err(format!("{command:?} ended with {status}: {}", String::from_utf8_lossy(&stderr)).into());
    }
    Ok(String::from_utf8(stdout)?)
}

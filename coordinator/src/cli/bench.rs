//! `brigade bench`: the speed of a running cluster.

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU32;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::connect::ConnectOptions;
use super::report::note;
use super::{INTERRUPTED, UsageError};
use crate::bench::{
    LeftOut, Prompts, Record, Report, SETTLE, Sampling, Setting, Test, TestKind, fitting, others, repeat,
    warm_up, write_json,
};
use crate::client::Client;
use crate::signals::Signals;
use crate::status::{ClusterStatus, Phase};

/// Most streams of a test: as many as a coordinator lets run and wait.
const MAX_STREAMS: i64 = 256;

/// Flags of `brigade bench`, with the names that llama-bench has for the same things.
#[derive(Debug, Args)]
#[command(
    after_help = "Every stream is a request of its own with a random prompt, over HTTP as from any client. Speeds \
                        are medians over the repetitions, of all streams together.\n\n\
                        Example: brigade bench --streams 1,8 -o json"
)]
pub struct BenchArgs {
    #[command(flatten)]
    connect: ConnectOptions,

    /// Prompt lengths to measure; 0 measures none
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<u32>,

    /// Numbers of tokens that each stream decodes; 0 measures none
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_value = "128", value_parser = parse_tokens)]
    n_gen: Vec<u32>,

    /// Tokens of the prompt before those that are decoded
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    n_depth: Vec<u32>,

    /// Numbers of streams that decode at the same time
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = clap::value_parser!(u32).range(1..=MAX_STREAMS))]
    streams: Vec<u32>,

    /// How often each test is repeated
    #[arg(short = 'r', long, value_name = "N", default_value = "3")]
    repetitions: NonZeroU32,

    /// Sampling temperature
    #[arg(long, value_name = "T", default_value = "1", value_parser = parse_temperature)]
    temperature: f64,

    /// Seed of prompts and sampling [default: another one each time, since a cluster may remember prompts]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// How the results are written
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "md")]
    output: OutputFormat,

    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    json: bool,

    /// The same as -o md
    #[arg(long, conflicts_with_all = ["output", "json"])]
    markdown: bool,

    /// Measure at once, without requests beforehand that do not count
    #[arg(long)]
    no_warmup: bool,

    /// Measure although the cluster serves others, whom that disturbs; what was measured is marked
    #[arg(long)]
    force: bool,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Markdown tables.
    Md,
    /// One object.
    Json,
}

impl BenchArgs {
    fn tests(&self) -> Result<Vec<Test>, UsageError> {
        let prompts = self.n_prompt.iter().filter(|tokens| **tokens > 0);
        let prompts = prompts.map(|tokens| Test { kind: TestKind::Prompt { tokens: *tokens }, streams: 1 });
        let mut tests: Vec<Test> = prompts.collect();
        for &depth in &self.n_depth {
            for &tokens in self.n_gen.iter().filter(|tokens| **tokens > 0) {
                let kind = TestKind::Decode { tokens, depth };
                tests.extend(self.streams.iter().map(|&streams| Test { kind, streams }));
            }
        }
        if tests.is_empty() {
            return Err(UsageError("nothing is left to measure: give -p or -n above 0".to_owned()));
        }
        Ok(tests)
    }

    fn format(&self) -> OutputFormat {
        if self.json { OutputFormat::Json } else { self.output }
    }
}

pub(super) fn parse_tokens(text: &str) -> Result<u32, String> {
    let tokens: Option<u32> = text.parse().ok().filter(|tokens| *tokens != 1);
    tokens.ok_or_else(|| "write 0, or at least 2: what is timed lies between two tokens".to_owned())
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    let temperature = text.parse().ok().filter(|t| (0.0..=2.0).contains(t));
    temperature.ok_or_else(|| "write a number from 0 to 2".to_owned())
}

/// Measures until all is done or a signal comes, which ends it at once.
pub(super) async fn bench(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let tests = args.tests()?;
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    tokio::select! {
        measured = measure(&args, &tests) => measured.map(|()| ExitCode::SUCCESS),
        // Requests under way end with their connections.
        () = signals.next() => Ok(ExitCode::from(INTERRUPTED)),
    }
}

async fn measure(args: &BenchArgs, tests: &[Test]) -> anyhow::Result<()> {
    let client = args.connect.client().await?;
    let status = serving(&client).await?;
    let (tests, left_out) = fitting(tests, &status).map_err(anyhow::Error::msg)?;
    let disturbed = served_beside(&client, args.force).await?;
    for LeftOut { reason, .. } in &left_out {
        note(&format!("left out: {reason}"));
    }
    let seed = match args.seed {
        Some(seed) => seed,
        None => getrandom::u64().context("the operating system gave no random number; give --seed N")?,
    };
    let repetitions = args.repetitions.get();
    let mut setting = Setting::new(client.url(), &status, repetitions, args.temperature, seed);
    setting.left_out = left_out;
    let sampling = Sampling { model: status.model.id.clone(), temperature: args.temperature, seed };
    let prompts = Prompts::new(seed, status.model.vocabulary);
    let mut bench = Bench { client, sampling, prompts, force: args.force, disturbed };
    if !args.no_warmup {
        warm_up(&bench.client, &tests, &bench.sampling, &mut bench.prompts).await?;
    }
    match args.format() {
        OutputFormat::Md => {
            let mut report = Report::new(std::io::stdout());
            for test in &tests {
                report.add(bench.record(test, repetitions).await?)?;
            }
            report.end(&setting)?;
        }
        OutputFormat::Json => {
            let mut records = Vec::new();
            for test in &tests {
                records.push(bench.record(test, repetitions).await?);
            }
            write_json(std::io::stdout().lock(), &setting, &records)?;
        }
    }
    Ok(())
}

/// The state of a cluster that serves.
async fn serving(client: &Client) -> anyhow::Result<ClusterStatus> {
    let status = client.status().await?;
    if status.phase == Phase::Serving {
        return Ok(status);
    }
    let reason = status.reason.as_deref().unwrap_or("its stages are not ready");
    anyhow::bail!(
        "{} is not served yet: {reason}; `brigade status --watch` shows when it is",
        status.model.id
    )
}

/// Whether the cluster serves others, where that may be.
///
/// # Errors
/// Where it does and may not, without `force`.
pub(super) async fn served_beside(client: &Client, force: bool) -> anyhow::Result<bool> {
    let others = others(client).await?;
    match others {
        Some(others) if !force => {
            anyhow::bail!("{others}; wait until it is quiet, or measure all the same with --force")
        }
        others => Ok(others.is_some()),
    }
}

struct Bench {
    client: Client,
    sampling: Sampling,
    prompts: Prompts,
    /// Whether others may be served meanwhile.
    force: bool,
    /// Whether some were before the first measurement.
    disturbed: bool,
}

impl Bench {
    /// Measures a test as often as wanted.
    async fn record(&mut self, test: &Test, repetitions: u32) -> anyhow::Result<Record> {
        let mut record = Record::new(test);
        record.disturbed = self.disturbed;
        for repetition in 0..repetitions {
            let progress = format!("{test}, {} stream(s): {} of {repetitions}", test.streams, repetition + 1);
            show_progress(Some(&progress));
            tokio::time::sleep(SETTLE).await;
            let before = serving(&self.client).await?;
            let measured = repeat(&self.client, test, &self.sampling, &mut self.prompts).await?;
            tokio::time::sleep(SETTLE).await;
            let after = self.client.status().await?;
            record.add(test, &measured, &before, &after)?;
            if record.disturbed && !self.force {
                show_progress(None);
                anyhow::bail!(
                    "the cluster began to serve others while {test} was measured; wait until it is quiet, or measure all \
                     the same with --force"
                );
            }
        }
        show_progress(None);
        Ok(record)
    }
}

/// Shows on a terminal what is being measured, or takes it away.
fn show_progress(text: Option<&str>) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        // A terminal that is gone has nobody to show it to.
        let _ = write!(err, "\r\x1b[K{}", text.unwrap_or_default()).and_then(|()| err.flush());
    }
}

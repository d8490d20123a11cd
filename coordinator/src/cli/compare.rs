//! `brigade compare`: one box against the cluster, measured in turns on the same machines.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::connect::{self, ConnectOptions};
use super::options::{ServingOptions, WorkerOptions, model_file, model_id, state_dir};
use super::report::note;
use super::{INTERRUPTED, UsageError, own};
use crate::client::Client;
use crate::compare::against::{Other, OtherSettings};
use crate::compare::history::History;
use crate::compare::{CompareSettings, Comparison, Lease, Opponent, compare as measure, report};
use crate::signals::Signals;

/// Most streams of a test: as many as a coordinator lets run and wait.
const MAX_STREAMS: i64 = 256;
/// Earlier comparisons that are listed.
const LISTED: usize = 50;
/// Most rounds: intervals become no narrower that anybody would wait for.
const MAX_ROUNDS: i64 = 100;

/// Flags of `brigade compare`.
#[derive(Debug, Args)]
#[command(
    after_help = "The plan is pinned to the worker that is predicted to be the fastest alone, then to the best cluster, in \
                  turns; at the end, also at Ctrl-C, the pin is taken back, and where this command is killed it ends by \
                  itself within seconds. Where nothing holds the model alone, the cluster is measured without a \
                  counterpart. A cluster that serves others is left alone.\n\n\
                  Example: brigade compare SmolLM2.gguf --workers 2 --rounds 5"
)]
pub struct CompareArgs {
    /// The model: one that a running coordinator serves, or, where none runs, the file to compare with workers of our own
    #[arg(env = "BRIGADE_MODEL", hide_env = true)]
    model: Option<PathBuf>,

    #[command(flatten)]
    connect: ConnectOptions,

    /// How often each side is measured
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=MAX_ROUNDS))]
    rounds: u32,

    /// Numbers of streams that decode at the same time
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = clap::value_parser!(u32).range(1..=MAX_STREAMS))]
    streams: Vec<u32>,

    /// Prompt lengths to measure; 0 measures none
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<u32>,

    /// How many tokens each stream decodes; 0 measures no decoding
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_parser = super::bench::parse_tokens)]
    n_gen: u32,

    /// Seed of prompts and sampling [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Measure although the cluster serves others, whom that disturbs; what was measured is marked
    #[arg(long)]
    force: bool,

    /// Write the comparison as JSON
    #[arg(long)]
    json: bool,

    /// Write the comparison as Markdown
    #[arg(long, conflicts_with = "json")]
    markdown: bool,

    /// Draw the comparison into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Write the comparison into this file, as a page of its own
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// List what was compared before, and measure nothing
    #[arg(long, conflicts_with_all = ["svg", "html", "force", "against", "seed"])]
    history: bool,

    /// Measure another server too, by the URL of its OpenAI API; may be given several times
    #[arg(long, value_name = "URL", value_parser = parse_server)]
    against: Vec<String>,

    /// The name of the model on the other servers [default: the first that they list]
    #[arg(long, value_name = "MODEL", requires = "against")]
    against_model: Option<String>,

    /// The key that the other servers ask for (BRIGADE_AGAINST_KEY keeps it off the command line)
    #[arg(
        long,
        env = "BRIGADE_AGAINST_KEY",
        value_name = "KEY",
        requires = "against",
        hide_env_values = true,
        hide_env = true
    )]
    against_key: Option<String>,

    /// The state directory in which comparisons are kept [default: brigade in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "BRIGADE_STATE", value_name = "DIR", hide_env = true)]
    state: Option<PathBuf>,

    #[command(flatten)]
    workers: WorkerOptions,

    #[command(flatten)]
    serving: ServingOptions,
}

fn parse_server(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).ok();
    let url = url.filter(|url| url.scheme() == "http" && url.has_host());
    url.map(|_| text.trim_end_matches('/').to_owned())
        .ok_or_else(|| "write it as http://HOST:PORT; https is not spoken".to_owned())
}

impl CompareArgs {
    fn settings(&self) -> anyhow::Result<CompareSettings> {
        let prompts: Vec<u32> = self.n_prompt.iter().copied().filter(|tokens| *tokens > 0).collect();
        if prompts.is_empty() && self.n_gen == 0 {
            return Err(UsageError("nothing is left to measure: give -p or -n above 0".to_owned()).into());
        }
        let mut streams = self.streams.clone();
        streams.sort_unstable();
        streams.dedup();
        let seed = match self.seed {
            Some(seed) => seed,
            None => getrandom::u64().context("the operating system gave no random number; give --seed N")?,
        };
        let (rounds, decode_tokens, force) = (self.rounds, self.n_gen, self.force);
        Ok(CompareSettings { rounds, streams, prompts, decode_tokens, seed, force })
    }
}

/// Compares, and takes the pin back, whatever happens.
pub(super) async fn compare(args: CompareArgs) -> anyhow::Result<ExitCode> {
    check_outputs(&args)?;
    if args.history {
        return list(&args);
    }
    let settings = args.settings()?;
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    if let Some(client) = find_running(&args).await? {
        return compare_on(client, &settings, &args, &mut signals).await;
    }
    let Some(model) = &args.model else {
        anyhow::bail!(
            "no coordinator runs on this machine; name one with --url http://HOST:PORT, or give a MODEL to compare with \
             workers of our own: brigade compare MODEL --workers 2"
        );
    };
    let model = model_file(model)?;
    if args.workers.workers < 2 {
        let text = "comparing one box with a cluster takes at least 2 workers: give --workers N";
        return Err(UsageError(text.to_owned()).into());
    }
    let compare = async |client, signals: &mut Signals| compare_on(client, &settings, &args, signals).await;
    own::with_cluster(&model, &args.workers, &args.serving, &mut signals, compare).await
}

/// The coordinator to measure; `None` where none runs here and none was named.
async fn find_running(args: &CompareArgs) -> anyhow::Result<Option<Client>> {
    let client = match &args.connect.url {
        Some(_) => args.connect.client().await?,
        None if connect::running(args.connect.api_key.as_deref()).await.is_empty() => return Ok(None),
        None => args.connect.client().await?,
    };
    let Some(model) = &args.model else { return Ok(Some(client)) };
    let names = [model.to_string_lossy().into_owned(), model_id(model)];
    let served = client.models().await?;
    if served.iter().any(|id| names.contains(id)) {
        return Ok(Some(client));
    }
    anyhow::bail!(
        "the coordinator at {} serves {}, not {}; leave MODEL out to compare what it serves, or stop it first: two clusters \
         on one machine disturb each other",
        client.url(),
        served.join(", "),
        names[0]
    )
}

/// Compares on the cluster that `client` speaks to, until it is done or a signal comes.
async fn compare_on(
    client: Client,
    settings: &CompareSettings,
    args: &CompareArgs,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let mut lease = Lease::new(client.clone());
    let mut progress = Progress::new();
    let mut tell = |what: &str| progress.tell(what);
    let compared = async {
        let mut opponents = opponents(&client, settings, args).await?;
        let compared = measure(&client, settings, &mut opponents, &mut lease, &mut tell).await?;
        anyhow::Ok(Some(compared))
    };
    let outcome = tokio::select! {
        compared = compared => compared,
        () = signals.next() => Ok(None),
    };
    drop(progress);
    tokio::select! {
        released = lease.release() => if let Err(error) = released {
            note(&format!("the pin could not be taken back, and ends by itself within seconds: {error}"));
        },
        () = signals.next() => return Ok(ExitCode::from(INTERRUPTED)),
    }
    match outcome? {
        Some(comparison) => {
            write(&comparison, args)?;
            keep(&comparison, args);
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// Refuses what this build cannot write, before anything is measured.
fn check_outputs(args: &CompareArgs) -> Result<(), UsageError> {
    for file in args.svg.iter().chain(&args.html) {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) || file.is_dir() {
            return Err(UsageError(format!(
                "{} cannot be written: give a file in a folder that is there",
                file.display()
            )));
        }
    }
    Ok(())
}

/// The other servers that flags name, each of which has answered once.
async fn opponents(
    client: &Client,
    settings: &CompareSettings,
    args: &CompareArgs,
) -> anyhow::Result<Vec<Opponent>> {
    if args.against.is_empty() {
        return Ok(Vec::new());
    }
    let vocabulary = client.status().await?.model.vocabulary;
    let mut opponents = Vec::new();
    for url in &args.against {
        let (model, api_key) = (args.against_model.clone(), args.against_key.clone());
        let asked =
            OtherSettings { model, api_key, vocabulary, seed: settings.seed, ..OtherSettings::default() };
        opponents.push(Opponent::new(Other::find(url, asked).await?));
    }
    Ok(opponents)
}

/// Writes a comparison as the flags ask.
fn write(comparison: &Comparison, args: &CompareArgs) -> anyhow::Result<()> {
    let text = match (args.json, args.markdown) {
        (true, _) => report::json(comparison).context("failed to write JSON")?,
        (false, true) => report::markdown(comparison),
        (false, false) => report::table(comparison),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    let pictures = [(&args.svg, report::svg as fn(&Comparison) -> String), (&args.html, report::html)];
    for (file, draw) in pictures {
        let Some(file) = file else { continue };
        std::fs::write(file, draw(comparison))
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(())
}

/// Keeps a comparison for later. That it cannot be kept is no reason to lose it.
fn keep(comparison: &Comparison, args: &CompareArgs) {
    let kept = state_dir(args.state.as_deref())
        .and_then(|dir| History::open(&dir)?.add(comparison).map_err(anyhow::Error::from));
    if let Err(error) = kept {
        note(&format!("the comparison was not kept: {error:#}"));
    }
}

/// Lists what was compared before.
fn list(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let history = History::open_to_read(&state_dir(args.state.as_deref())?)?;
    let entries = history.map_or_else(|| Ok(Vec::new()), |history| history.list(LISTED))?;
    let text = match args.json {
        true => report::history_json(&entries).context("failed to write JSON")?,
        false => report::history_table(&entries),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What is being done: one line that changes on a terminal, a line for each thing elsewhere.
struct Progress {
    on_terminal: bool,
    told: String,
}

impl Progress {
    fn new() -> Progress {
        Progress { on_terminal: std::io::stderr().is_terminal(), told: String::new() }
    }

    fn tell(&mut self, what: &str) {
        if self.told == what {
            return;
        }
        what.clone_into(&mut self.told);
        if self.on_terminal {
            let mut err = std::io::stderr();
            // A terminal that is gone has nobody to show it to.
            let _ = write!(err, "\r\x1b[K{what}").and_then(|()| err.flush());
        } else {
            note(what);
        }
    }
}

/// Whatever is written next begins on an empty line.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.on_terminal {
            let mut err = std::io::stderr();
            let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<CompareArgs, String> {
        let words = ["brigade", "compare"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Compare(args) => Ok(args),
            _ => Err("another command".to_owned()),
        }
    }

    #[test]
    fn what_is_measured_follows_from_the_flags() {
        let args = parse("m.gguf --rounds 5 --streams 8,1,8 -p 0 -n 64 --seed 7 --force").unwrap();
        let settings = args.settings().unwrap();
        assert_eq!(
            settings,
            CompareSettings {
                rounds: 5,
                streams: vec![1, 8],
                prompts: Vec::new(),
                decode_tokens: 64,
                seed: 7,
                force: true
            }
        );
        let usual = parse("").unwrap();
        let settings = usual.settings().unwrap();
        assert_eq!((settings.rounds, settings.prompts, settings.decode_tokens), (3, vec![512], 128));
        assert_eq!(settings.streams, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn wrong_flags_are_refused() {
        for wrong in [
            "--rounds 0",
            "--streams 0",
            "--streams 1,x",
            "-n 1",
            "--json --markdown",
            "--against host",
            "--against ftp://host",
            "--against https://host",
            "--against-model m",
            "--against-key k",
            "--history --svg a.svg",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse("-p 0 -n 0").unwrap().settings().unwrap_err().is::<UsageError>());
        let lost = parse("--svg /no/such/folder/a.svg").unwrap();
        assert!(check_outputs(&lost).unwrap_err().to_string().contains("/no/such/folder/a.svg"));
        let args = parse("--against http://a:1/ --against http://b/v1 --against-key k").unwrap();
        assert_eq!(args.against, ["http://a:1", "http://b/v1"]);
    }
}

//! `brigade models ls`, `verify` and `rm`: what is in the store.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use brigade_shard::units::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::caches::{self, OnWorkers};
use super::progress::Shown;
use super::{StoreOptions, until_signal};
use crate::caches::Deed;
use crate::cli::FAILED;
use crate::render::{Align, Table, age};
use crate::signals::Signals;
use crate::store::{Checkup, FileState, Form, Found, Record, Unfinished};

/// Flags of `brigade models ls`.
#[derive(Debug, Args)]
#[command(after_help = "Example: brigade models ls --workers")]
pub struct ListArgs {
    #[command(flatten)]
    store: StoreOptions,

    #[command(flatten)]
    on: OnWorkers,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `brigade models verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 all files are as they were pulled, 1 some are not.\n\nExample: brigade models verify SmolLM2-135M-Instruct-Q4_K_M"
)]
pub struct VerifyArgs {
    /// The model's name, as `brigade models ls` shows it [default: all that were pulled]; of a worker's, also its fingerprint
    name: Option<String>,

    #[command(flatten)]
    store: StoreOptions,

    #[command(flatten)]
    on: OnWorkers,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Flags of `brigade models rm`.
#[derive(Debug, Args)]
#[command(after_help = "Nothing is asked.\n\nExample: brigade models rm SmolLM2-135M-Instruct-Q4_K_M")]
pub struct RemoveArgs {
    /// The model's name, as `brigade models ls` shows it; of a worker's, also its fingerprint
    name: String,

    #[command(flatten)]
    store: StoreOptions,

    #[command(flatten)]
    on: OnWorkers,
}

/// Lists.
pub(super) async fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    if args.on.are_meant() {
        return caches::list(&args.on, args.json).await;
    }
    let store = args.store.open()?;
    let failed = || format!("failed to list the models in {}", store.root().display());
    let models = store.list().with_context(failed)?;
    let unfinished = store.unfinished().with_context(failed)?;
    let text = if args.json {
        let models: Vec<Value> = models.iter().map(model_in_json).collect();
        let unfinished: Vec<Value> = unfinished.iter().map(unfinished_in_json).collect();
        format!("{:#}\n", json!({"store": store.root(), "models": models, "unfinished": unfinished}))
    } else if models.is_empty() && unfinished.is_empty() {
        format!("no models in {}; `brigade models pull` brings one\n", store.root().display())
    } else {
        in_words(&models, &unfinished, SystemTime::now())
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn in_words(models: &[Found], unfinished: &[Unfinished], now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("WEIGHTS", Align::Left),
        ("FILES", Align::Right),
        ("PULLED", Align::Right),
        ("SOURCE", Align::Left),
    ]);
    for model in models {
        let (weights, pulled, source) = match &model.record {
            Some(record) => {
                let ago = now.saturating_sub(record.pulled_s);
                (weights_in_words(record), format!("{} ago", age(ago as f64)), record.source.clone())
            }
            None => ("-".to_owned(), "-".to_owned(), "put there by hand".to_owned()),
        };
        let (name, files) = (model.name.to_string(), model.files.to_string());
        table.row([name, model.bytes.to_string(), weights, files, pulled, source]);
    }
    let mut text = if table.is_empty() { String::new() } else { table.to_string() };
    for Unfinished { name, source, done, total } in unfinished {
        let of = total.map_or(String::new(), |total| format!(" of {total}"));
        text.push_str(&format!(
            "{name}: {done}{of} fetched; `brigade models pull {source}` goes on, `brigade models rm {name}` gives it up\n"
        ));
    }
    text
}

fn weights_in_words(record: &Record) -> String {
    match record.format {
        Form::Gguf => record.weights.clone(),
        Form::Safetensors => format!("{} (safetensors)", record.weights),
    }
}

fn model_in_json(model: &Found) -> Value {
    let record = model.record.as_ref();
    json!({
        "name": model.name,
        "path": model.path,
        "bytes": model.bytes,
        "files": model.files,
        "format": record.map(|record| record.format),
        "weights": record.map(|record| &record.weights),
        "source": record.map(|record| &record.source),
        "revision": record.and_then(|record| record.revision.as_ref()),
        "pulled_s": record.map(|record| record.pulled_s),
        "fingerprint": record.map(|record| record.fingerprint),
    })
}

fn unfinished_in_json(unfinished: &Unfinished) -> Value {
    let Unfinished { name, source, done, total } = unfinished;
    json!({"name": name, "source": source, "done_bytes": done, "total_bytes": total})
}

/// Compares files with their checksums.
pub(super) async fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    if args.on.are_meant() {
        return caches::act(&args.on, Deed::Verify, args.name.as_deref(), args.json).await;
    }
    let store = args.store.open()?;
    let models = match &args.name {
        Some(name) => vec![store.find(name).context("failed to verify")?],
        None => store.list().context("failed to verify")?,
    };
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let (shown, cancel) = (Shown::new(), CancellationToken::new());
    let mut checkups = Vec::new();
    let mut unknown = Vec::new();
    for model in models {
        let Some(record) = model.record else {
            unknown.push(model.name);
            continue;
        };
        let checkup = store.check(&record, &shown, &cancel);
        match until_signal(&mut signals, &cancel, checkup).await {
            Ok(checkup) => checkups.push(checkup.context("failed to verify")?),
            Err(code) => return Ok(code),
        }
    }
    shown.clear();
    let unsound =
        checkups.iter().any(|checkup| !checkup.is_sound()) || (args.name.is_some() && !unknown.is_empty());
    let text = if args.json {
        format!("{:#}\n", json!({"models": checkups, "unknown": unknown}))
    } else {
        let checked = checkups.iter().map(checkup_in_words);
        let unknown = unknown.iter().map(|name| {
            format!("{name}: not checked: `brigade models pull` did not bring it, so that nobody knows its checksums\n")
        });
        checked.chain(unknown).collect()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if unsound { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn checkup_in_words(checkup: &Checkup) -> String {
    let Checkup { name, source, files } = checkup;
    if checkup.is_sound() {
        return format!("{name}: sound\n");
    }
    let mut text = String::new();
    for file in files {
        let what = match &file.state {
            FileState::Sound => continue,
            FileState::Missing => "is missing".to_owned(),
            FileState::Size { wanted, found } => {
                format!("is of {} bytes, but should be of {}", found.0, wanted.0)
            }
            FileState::Contents { wanted, found } => {
                format!("is damaged: its SHA-256 should be {wanted}, but is {found}")
            }
            FileState::Unreadable { problem } => format!("cannot be checked: {problem}"),
        };
        text.push_str(&format!("{name}: {} {what}\n", file.path.display()));
    }
    text.push_str(&format!("{name}: `brigade models pull {source}` fetches what is damaged again\n"));
    text
}

/// Removes.
pub(super) async fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    if args.on.are_meant() {
        return caches::act(&args.on, Deed::Remove, Some(&args.name), false).await;
    }
    let store = args.store.open()?;
    let removed = store.remove(&args.name).with_context(|| format!("failed to remove {}", args.name))?;
    let mut text: String = removed.paths.iter().map(|path| format!("removed {}\n", path.display())).collect();
    let bytes: Bytes = removed.bytes;
    text.push_str(&format!("{bytes} freed\n"));
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

//! `brigade models pull`: brings a model into the store.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use brigade_shard::units::Bytes;
use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::progress::Shown;
use super::{StoreOptions, until_signal};
use crate::cli::UsageError;
use crate::signals::Signals;
use crate::store::{Checked, Digest, HubSettings, Patience, PullOptions, Pulled, Source};

/// Flags of `brigade models pull`.
#[derive(Debug, Args)]
#[command(
    after_help = "A model is brought whole and checked, or not at all. What was fetched before a pull ended early is kept, and the \
                  same command goes on. Of a model that is there, every file is checked, and what is damaged is fetched \
                  again.\n\nHF_TOKEN is a token for a hub's private and gated repositories, HF_ENDPOINT the URL of a mirror of it.\n\n\
                  Example: brigade models pull hf:bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M"
)]
pub struct PullArgs {
    /// Where from: a GGUF file, the first part of a split one, or a directory of safetensors; https://HOST/FILE.gguf; or
    /// hf:OWNER/REPOSITORY[@REVISION][:QUANTISATION], of which only the model's files are taken
    source: String,

    /// What to call the model [default: as its file or repository is called]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// The SHA-256 of the model's only file, where its server does not say it
    #[arg(long, value_name = "HEX")]
    sha256: Option<Digest>,

    #[command(flatten)]
    store: StoreOptions,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Pulls, and says what came of it.
pub(super) async fn pull(args: PullArgs) -> anyhow::Result<ExitCode> {
    let source = source(&args.source)?;
    let store = args.store.open()?;
    let variable = |name| std::env::var(name).ok();
    let hub = HubSettings::new(variable("HF_ENDPOINT").as_deref(), variable("HF_TOKEN"))
        .map_err(|error| UsageError(error.to_string()))?;
    let options =
        PullOptions { name: args.name.clone(), sha256: args.sha256, hub, patience: Patience::default() };
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let (shown, cancel) = (Shown::new(), CancellationToken::new());
    let pulled = store.pull(&source, &options, &shown, &cancel);
    let pulled = match until_signal(&mut signals, &cancel, pulled).await {
        Ok(pulled) => pulled,
        Err(code) => return Ok(code),
    };
    shown.clear();
    let pulled = pulled.with_context(|| format!("failed to pull {source}"))?;
    let text = if args.json { format!("{:#}\n", in_json(&pulled)) } else { in_words(&pulled) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Where from; `OWNER/REPOSITORY` without its `hf:` is no path of anything, and is told how it is written.
fn source(text: &str) -> anyhow::Result<Source> {
    let source: Source = text.parse().map_err(|error| UsageError(format!("{error}")))?;
    if let Source::Path(path) = &source
        && !path.exists()
        && !path.is_absolute()
        && format!("hf:{text}").parse::<Source>().is_ok()
        && !path.parent().is_some_and(|folder| folder != Path::new("") && folder.exists())
    {
        return Err(UsageError(format!(
            "there is no file {text}; a repository of a hub is written hf:{text}"
        ))
        .into());
    }
    Ok(source)
}

fn in_words(pulled: &Pulled) -> String {
    let Pulled { record, path, fetched } = pulled;
    let files = match record.files.len() {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    };
    let fetched = match *fetched {
        Bytes::ZERO => "which was there already".to_owned(),
        fetched if fetched == record.bytes() => "all fetched now".to_owned(),
        fetched => format!("of which {fetched} was fetched now"),
    };
    let mut text = format!("{}: {} in {files}, {fetched}\n", record.name, record.bytes());
    let unchecked = record.files.iter().filter(|file| file.checked == Checked::Size);
    for file in unchecked {
        text.push_str(&format!(
            "{}: nobody says what it should hold, so that its size and header alone were checked; its SHA-256 is {} \
             (--sha256 checks that)\n",
            file.name, file.sha256
        ));
    }
    text.push_str(&format!("{}\n", path.display()));
    text
}

fn in_json(pulled: &Pulled) -> serde_json::Value {
    let Pulled { record, path, fetched } = pulled;
    json!({
        "name": record.name,
        "path": path,
        "source": record.source,
        "revision": record.revision,
        "format": record.format,
        "weights": record.weights,
        "fingerprint": record.fingerprint,
        "bytes": record.bytes(),
        "fetched_bytes": fetched,
        "files": record.files,
    })
}

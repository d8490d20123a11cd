//! `brigade models`: the models on this machine, and what their files hold.

mod caches;
mod list;
mod progress;
mod pull;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::options::usual_store;
use super::{INTERRUPTED, UsageError};
use crate::signals::Signals;
use crate::store::Store;

/// What can be done with models.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Bring a model into the store: from a path, a web server or a hub of models
    Pull(pull::PullArgs),
    /// List the models in the store, and pulls that have not ended
    Ls(list::ListArgs),
    /// Show what a model's file says of itself, and whether it can be served
    Show(show::ShowArgs),
    /// Compare the files of models that were pulled with their checksums
    Verify(list::VerifyArgs),
    /// Remove a model that was pulled, or what has come of an unfinished pull
    Rm(list::RemoveArgs),
}

/// Which store.
#[derive(Clone, Debug, Args)]
pub struct StoreOptions {
    /// The directory of models [default: ~/.local/share/brigade/models, where workers look for them]
    #[arg(long, env = "BRIGADE_STORE", value_name = "DIR", hide_env = true)]
    store: Option<PathBuf>,
}

impl StoreOptions {
    /// The store; `None` where nobody says where it is.
    fn find(&self) -> Option<Store> {
        self.store.as_deref().map(Store::new).or_else(usual_store)
    }

    fn open(&self) -> anyhow::Result<Store> {
        self.find().ok_or_else(|| {
            UsageError("there is no place for models: give --store DIR, or set HOME".to_owned()).into()
        })
    }
}

/// Runs a command on models.
pub(super) async fn models(command: ModelsCommand) -> anyhow::Result<ExitCode> {
    match command {
        ModelsCommand::Pull(args) => pull::pull(args).await,
        ModelsCommand::Ls(args) => list::list(&args).await,
        ModelsCommand::Show(args) => show::show(&args).await,
        ModelsCommand::Verify(args) => list::verify(&args).await,
        ModelsCommand::Rm(args) => list::remove(&args).await,
    }
}

/// Runs what a first signal asks to end, and a second one ends at once.
async fn until_signal<T>(
    signals: &mut Signals,
    cancel: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, ExitCode> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = signals.next() => {
                if cancel.is_cancelled() {
                    return Err(ExitCode::from(INTERRUPTED));
                }
                cancel.cancel();
            }
        }
    }
}

//! `brigade up`: a coordinator and its workers on this machine, in one go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use brigade_proto::worker_processes::WorkerEvent;
use clap::Args;
use tokio::sync::watch;
use tokio::time::Instant;

use super::devices::{self, Local};
use super::host::{Embedded, EmbeddedPlace};
use super::options::{HttpOptions, ServingOptions, WorkerOptions, model_file};
use super::plan::check_memory;
use super::report::{Place, Reporter, local_event_line};
use crate::signals::Signals;
use crate::status::{ClusterStatus, Phase};

/// How long the cluster may stay without a plan, with all of its workers there, before it is given up: no other worker
/// will come, and a plan takes a moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a worker may die before anything was served: what kills it at every start kills the next one too.
const MAX_DEATHS: u32 = 5;

/// Flags of `brigade up`.
#[derive(Debug, Args)]
#[command(after_help = "Example: brigade up SmolLM2.gguf --workers 3 --memory 64MiB")]
pub struct UpArgs {
    /// The model: a GGUF file, the first part of a split one, or a directory of safetensors
    #[arg(env = "BRIGADE_MODEL", hide_env = true)]
    model: PathBuf,

    #[command(flatten)]
    workers: WorkerOptions,

    #[command(flatten)]
    pub(super) http: HttpOptions,

    #[command(flatten)]
    serving: ServingOptions,

    /// Where the coordinator keeps its identity [default: a temporary directory]
    #[arg(long, env = "BRIGADE_STATE", value_name = "DIR", hide_env = true)]
    state: Option<PathBuf>,
}

/// Serves until a signal or a failure that nothing here can mend.
pub(super) async fn up(args: UpArgs) -> anyhow::Result<ExitCode> {
    args.http.check()?;
    let model = model_file(&args.model)?;
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let local = devices::local(&args.workers).await?;
    let started = format!("starting a coordinator and {} for {}", devices::in_words(&local), model.display());
    let mut embedded =
        start(&model, &args.workers, local, &args.serving, &args.http, args.state.as_deref(), true).await?;
    let place = Place { url: embedded.host().url().to_owned(), needs_key: !args.http.api_key.is_empty() };
    let mut reporter = Reporter::new(Some(place));
    reporter.line(&started);
    let mut watcher = Watcher::new(&embedded);
    let outcome = tokio::select! {
        error = watcher.watch(&mut embedded, &mut reporter, false) => error.map(|()| ExitCode::SUCCESS),
        () = signals.next() => Ok(ExitCode::SUCCESS),
    };
    reporter.clear();
    if outcome.is_ok() {
        reporter.line("stopping");
    }
    let code = embedded.stop(&mut signals, ExitCode::SUCCESS).await;
    outcome.map(|_| code)
}

/// Checks that the model fits the workers, and starts them.
pub(super) async fn start(
    model: &Path,
    workers: &WorkerOptions,
    local: Local,
    serving: &ServingOptions,
    http: &HttpOptions,
    state: Option<&Path>,
    announce: bool,
) -> anyhow::Result<Embedded> {
    check_memory(model, workers, &local, serving)?;
    Embedded::start(model, workers, local, serving, http, EmbeddedPlace { state, announce }).await
}

/// Watches an embedded cluster and decides when it cannot go on.
pub(super) struct Watcher {
    status: watch::Receiver<Arc<ClusterStatus>>,
    workers: usize,
    /// Since when all workers have been there without a plan.
    stuck: Option<Instant>,
    deaths: Deaths,
}

impl Watcher {
    /// Watches `embedded`.
    pub(super) fn new(embedded: &Embedded) -> Watcher {
        Watcher {
            status: embedded.host().handle().subscribe(),
            workers: embedded.workers(),
            stuck: None,
            deaths: Deaths::default(),
        }
    }

    /// Reports what happens until the cluster fails, or, where `until_serving`, until it serves.
    pub(super) async fn watch(
        &mut self,
        embedded: &mut Embedded,
        reporter: &mut Reporter,
        until_serving: bool,
    ) -> anyhow::Result<()> {
        self.status.mark_changed();
        loop {
            tokio::select! {
                changed = self.status.changed() => {
                    changed.context("the cluster ended")?;
                    let status = self.status.borrow_and_update().clone();
                    if reporter.status(&status) && until_serving {
                        return Ok(());
                    }
                    if !reporter.has_served() {
                        self.check_stuck(&status)?;
                    }
                }
                event = next_event(embedded) => match event {
                    Happening::Local(event @ WorkerEvent::Fatal { .. }) => {
                        anyhow::bail!(local_event_line(&event));
                    }
                    Happening::Local(event) => {
                        reporter.local_event(&event);
                        if !reporter.has_served() {
                            self.deaths.count(&event)?;
                        }
                    }
                    Happening::Failed(error) => return Err(error),
                },
            }
        }
    }

    /// Fails where all workers have been there for a while and there is still no plan.
    fn check_stuck(&mut self, status: &ClusterStatus) -> anyhow::Result<()> {
        let attached = status.workers.iter().filter(|worker| worker.state == "attached").count();
        if status.phase != Phase::Waiting || attached < self.workers {
            self.stuck = None;
            return Ok(());
        }
        if self.stuck.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
            let reason = status.reason.as_deref().unwrap_or("no plan was found");
            anyhow::bail!("failed to serve {}: {reason}", status.model.id);
        }
        Ok(())
    }
}

/// How often each worker has died.
#[derive(Debug, Default)]
struct Deaths(BTreeMap<String, u32>);

impl Deaths {
    /// Fails where a worker dies again and again.
    fn count(&mut self, event: &WorkerEvent) -> anyhow::Result<()> {
        let WorkerEvent::Restarting { worker, ended, .. } = event else {
            return Ok(());
        };
        let deaths = self.0.entry(worker.clone()).or_default();
        *deaths += 1;
        if *deaths >= MAX_DEATHS {
            anyhow::bail!(
                "worker {worker} died {deaths} times before the model was served ({ended}); where the system killed it \
                 for want of memory, give it less with --memory, or a shorter --ctx"
            );
        }
        Ok(())
    }
}

/// Something that happened in an embedded cluster, apart from its status.
enum Happening {
    Local(WorkerEvent),
    Failed(anyhow::Error),
}

async fn next_event(embedded: &mut Embedded) -> Happening {
    let (events, host) = embedded.parts();
    tokio::select! {
        // Where all supervisors have ended there is a fatal event before, so that the end itself says nothing.
        Some(event) = events.recv() => Happening::Local(event),
        error = host.failed() => Happening::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_dies_again_and_again_is_given_up() {
        let died = |worker: &str| WorkerEvent::Restarting {
            worker: worker.to_owned(),
            ended: "signal: 9 (SIGKILL)".to_owned(),
            pause: Duration::from_secs(1),
        };
        let mut deaths = Deaths::default();
        deaths.count(&WorkerEvent::Line { worker: "w1".to_owned(), text: "hello".to_owned() }).unwrap();
        for _ in 1..MAX_DEATHS {
            deaths.count(&died("w1")).unwrap();
            deaths.count(&died("w2")).unwrap();
        }
        let error = deaths.count(&died("w2")).unwrap_err().to_string();
        assert!(error.contains("w2 died 5 times") && error.contains("SIGKILL"), "{error}");
    }
}

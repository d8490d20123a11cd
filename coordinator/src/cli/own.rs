//! A cluster of a command's own: started for it alone, and ended with it.

use std::path::Path;
use std::process::ExitCode;

use super::host::Embedded;
use super::options::{HttpOptions, ServingOptions, WorkerOptions};
use super::report::{Reporter, local_event_line, note};
use super::{INTERRUPTED, devices, up};
use crate::client::Client;
use crate::signals::Signals;

/// Starts a coordinator for `model` (absolute, checked) and its workers, does `what` once they serve, and ends them, whatever
/// happens. Where the cluster fails before, `what` is dropped.
pub(super) async fn with_cluster(
    model: &Path,
    workers: &WorkerOptions,
    serving: &ServingOptions,
    signals: &mut Signals,
    what: impl AsyncFnOnce(Client, &mut Signals) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    // Nobody else uses it: any free loopback port will do.
    let http = HttpOptions { http: ([127, 0, 0, 1], 0).into(), api_key: Vec::new(), log_prompts: false };
    let local = devices::local(workers).await?;
    let mut embedded = up::start(model, workers, local, serving, &http, None, false).await?;
    let outcome = once_serving(&mut embedded, signals, what).await;
    let code = embedded.stop(signals, ExitCode::SUCCESS).await;
    outcome.map(|outcome| if code == ExitCode::SUCCESS { outcome } else { code })
}

/// Waits until the cluster serves, and tells what happens to its workers then and meanwhile.
async fn once_serving(
    embedded: &mut Embedded,
    signals: &mut Signals,
    what: impl AsyncFnOnce(Client, &mut Signals) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let mut reporter = Reporter::new(None);
    let mut watcher = up::Watcher::new(embedded);
    let serving = tokio::select! {
        serving = watcher.watch(embedded, &mut reporter, true) => serving.map(|()| true),
        () = signals.next() => Ok(false),
    };
    reporter.clear();
    if !serving? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let client = Client::new(embedded.host().url(), None)?;
    let (events, host) = embedded.parts();
    let told = async {
        while let Some(event) = events.recv().await {
            note(&local_event_line(&event));
        }
        std::future::pending().await
    };
    tokio::select! {
        outcome = what(client, signals) => outcome,
        error = host.failed() => Err(error),
        never = told => never,
    }
}

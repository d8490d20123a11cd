//! `brigade drain`: empties a worker, so that it can be unplugged.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::connect::ConnectOptions;
use crate::client::Client;
use crate::render::drain_progress;
use crate::signals::Signals;

/// How often it is asked how far it is.
const POLL: Duration = Duration::from_millis(250);

/// Flags of `brigade drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "The plan moves away from the worker, and answers that run go on: weights are loaded on the others first, \
                  where there is room for them. No plan uses the worker then, also when it joins again, until it is taken \
                  back with --undo or the coordinator is restarted. Where the others have no room for the model without \
                  it, it stays in use.\n\nExample: brigade drain anna"
)]
pub struct DrainArgs {
    /// The worker's name, or its id
    worker: String,

    /// Take the worker back into use
    #[arg(long)]
    undo: bool,

    #[command(flatten)]
    connect: ConnectOptions,
}

/// Has a worker emptied, and waits until it is.
pub(super) async fn drain(args: DrainArgs) -> anyhow::Result<ExitCode> {
    let client = args.connect.client().await?;
    let id = client.drain(&args.worker, !args.undo).await?;
    let name = args.worker;
    if args.undo {
        say(&format!("{name} may be used again"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::listen()?;
    let ended = tokio::select! {
        ended = watch(&client, &id, &name) => ended?,
        () = signals.next() => {
            say(&format!("{name} is still being drained; `brigade status` shows how far it is"))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    say(&ended)?;
    Ok(ExitCode::SUCCESS)
}

/// Tells how far it is until the worker is empty; what to say then.
async fn watch(client: &Client, id: &str, name: &str) -> anyhow::Result<String> {
    let mut told = String::new();
    loop {
        let status = client.status().await?;
        let Some(worker) = status.workers.iter().find(|worker| worker.id == id) else {
            return Ok(format!("{name} is gone"));
        };
        match worker.state.as_str() {
            "drained" => return Ok(format!("{name} is drained: it may be unplugged")),
            "lost" => return Ok(format!("{name} is gone, and no plan will use it")),
            "draining" => {}
            _ => bail!("{name} was taken back into use meanwhile"),
        }
        let progress = drain_progress(&status, worker);
        if progress != told {
            say(&progress)?;
            told = progress;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

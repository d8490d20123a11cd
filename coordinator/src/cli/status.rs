//! `brigade status`: the health of a running cluster.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::connect::ConnectOptions;
use crate::client::Client;
use crate::render::render_status;
use crate::signals::Signals;

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Clears the terminal and goes to its top left corner.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Flags of `brigade status`.
#[derive(Debug, Args)]
#[command(after_help = "Example: brigade status --watch")]
pub struct StatusArgs {
    #[command(flatten)]
    connect: ConnectOptions,

    /// Look again every second until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// Print JSON, one line each time
    #[arg(long)]
    json: bool,
}

/// Shows the state once, or again and again.
pub(super) async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let client = args.connect.client().await?;
    if !args.watch {
        print(&client, &args).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::listen()?;
    loop {
        tokio::select! {
            shown = print(&client, &args) => shown?,
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn print(client: &Client, args: &StatusArgs) -> anyhow::Result<()> {
    let status = client.status().await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&status)?)?;
    } else {
        if args.watch && out.is_terminal() {
            out.write_all(CLEAR_SCREEN.as_bytes())?;
        }
        out.write_all(render_status(&status).as_bytes())?;
        if args.watch && !out.is_terminal() {
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(())
}

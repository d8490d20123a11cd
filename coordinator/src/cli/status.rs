//! `brigade status`: the health of a running cluster.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::connect::ConnectOptions;
use crate::client::Client;
use crate::render::{render_status, render_status_wide};
use crate::signals::Signals;

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Clears the terminal, once.
const CLEAR_SCREEN: &str = "\x1b[2J\x1b[3J";
/// Goes to its top left corner: what stands there is written over, so that nothing flickers.
const HOME: &str = "\x1b[H";
/// Clears what is left of a line.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears all below.
const CLEAR_BELOW: &str = "\x1b[J";

/// Flags of `brigade status`.
#[derive(Debug, Args)]
#[command(after_help = "Example: brigade status --watch")]
pub struct StatusArgs {
    #[command(flatten)]
    connect: ConnectOptions,

    /// Look again every second until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// Show more columns, and the links between workers
    #[arg(long)]
    wide: bool,

    /// Print JSON, one line each time
    #[arg(long)]
    json: bool,
}

/// Shows the state once, or again and again.
pub(super) async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let client = args.connect.client().await?;
    if !args.watch {
        print(&client, &args, false).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::listen()?;
    let mut first = true;
    loop {
        tokio::select! {
            shown = print(&client, &args, first) => shown?,
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        }
        first = false;
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Shows the state as it is now; for the `first` time, or in the place of the one before.
async fn print(client: &Client, args: &StatusArgs, first: bool) -> anyhow::Result<()> {
    let status = client.status().await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&status)?)?;
    } else {
        let text = if args.wide { render_status_wide(&status) } else { render_status(&status) };
        let text = match (args.watch, out.is_terminal()) {
            (false, _) => text,
            (true, false) => text + "\n",
            (true, true) => in_place(&text, first),
        };
        out.write_all(text.as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

/// Writes over what was shown before.
fn in_place(text: &str, first: bool) -> String {
    let clear = if first { CLEAR_SCREEN } else { "" };
    let lines = text.replace('\n', &format!("{CLEAR_LINE}\n"));
    format!("{clear}{HOME}{lines}{CLEAR_BELOW}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_written_over_and_the_screen_cleared_once() {
        assert_eq!(in_place("a\nb\n", true), "\x1b[2J\x1b[3J\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(in_place("a\n", false), "\x1b[Ha\x1b[K\n\x1b[J");
    }
}

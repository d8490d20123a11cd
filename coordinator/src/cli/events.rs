//! `brigade events`: what happened in a cluster.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use super::connect::ConnectOptions;
use super::options::parse_duration;
use crate::client::Client;
use crate::render::EventColumns;
use crate::signals::Signals;
use crate::status::{EventRecord, Severity};

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Most events that a coordinator lists at once.
const MOST_LISTED: usize = 10_000;

/// Flags of `brigade events`.
#[derive(Debug, Args)]
#[command(after_help = "Events are kept for 30 days in the coordinator's state directory.\n\n\
                  Example: brigade events --since 1h --severity warning")]
pub struct EventsArgs {
    #[command(flatten)]
    connect: ConnectOptions,

    /// Go on with what happens, until Ctrl-C
    #[arg(long, short)]
    watch: bool,

    /// Print JSON, a line for each event
    #[arg(long)]
    json: bool,

    /// Most events to begin with, the newest
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=MOST_LISTED as i64))]
    limit: u32,

    /// Only what happened since then, such as 10m, 1h or 7d ago
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,

    /// Only what concerns this worker, by its name
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,

    /// Only what matters at least so much
    #[arg(
        long,
        value_name = "SEVERITY",
        value_parser = PossibleValuesParser::new(Severity::ALL.map(Severity::as_str))
            .map(|word| Severity::parse(&word).unwrap_or_default())
    )]
    severity: Option<Severity>,
}

impl EventsArgs {
    /// Whether an event is asked for.
    fn wants(&self, event: &EventRecord, now_ms: u64) -> bool {
        let recent = self.since.is_none_or(|since| {
            let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            event.at_ms >= now_ms.saturating_sub(since)
        });
        let of_worker = self.worker.is_none() || event.worker == self.worker;
        recent && of_worker && self.severity.is_none_or(|least| event.severity >= least)
    }

    /// How many events must be looked at to find those asked for.
    fn looked_at(&self) -> usize {
        let all = self.since.is_none() && self.worker.is_none() && self.severity.is_none();
        if all { self.limit as usize } else { MOST_LISTED }
    }
}

/// Lists what happened, once or until a signal.
pub(super) async fn events(args: EventsArgs) -> anyhow::Result<ExitCode> {
    let client = args.connect.client().await?;
    let now = now_ms();
    let mut found = client.events(0, args.looked_at()).await?;
    let mut newest = found.last().map_or(0, |event| event.id);
    found.retain(|event| args.wants(event, now));
    found.drain(..found.len().saturating_sub(args.limit as usize));
    let columns = EventColumns::for_events(&found);
    if !args.json && (args.watch || !found.is_empty()) {
        write_out(&columns.header())?;
    } else if found.is_empty() && !args.json {
        write_out("no events\n")?;
    }
    print(&found, &columns, args.json)?;
    if !args.watch {
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::listen()?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        }
        tokio::select! {
            more = more(&client, &mut newest) => {
                let now = now_ms();
                let more: Vec<EventRecord> = more?.into_iter().filter(|event| args.wants(event, now)).collect();
                print(&more, &columns, args.json)?;
            }
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// What has happened since the event `newest`, which becomes the newest of these.
async fn more(client: &Client, newest: &mut u64) -> anyhow::Result<Vec<EventRecord>> {
    let more = client.events(*newest, MOST_LISTED).await?;
    *newest = more.last().map_or(*newest, |event| event.id);
    Ok(more)
}

fn print(events: &[EventRecord], columns: &EventColumns, json: bool) -> anyhow::Result<()> {
    let now = now_ms();
    let mut text = String::new();
    for event in events {
        if json {
            text.push_str(&serde_json::to_string(event)?);
            text.push('\n');
        } else {
            text.push_str(&columns.row(event, now));
        }
    }
    write_out(&text)
}

fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

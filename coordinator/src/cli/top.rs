//! `brigade top`: a running cluster in the terminal, until it is left.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use ratatui::crossterm::event::{self, Event};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::UsageError;
use super::connect::ConnectOptions;
use crate::client::{Client, ClientError};
use crate::signals::Signals;
use crate::top::{Input, Key, MOST_EVENTS, Poll, Screen, Top, draw, key_of};

/// How often the coordinator is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How often it is asked for events, in polls: each second.
const EVENTS_EVERY: u32 = 4;
/// How long an answer may take before the coordinator counts as gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the picture is drawn while nothing happens: often enough for a step to be seen moving.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);
/// How long the thread that reads keys waits for one, and with it how long leaving takes.
const KEY_WAIT: Duration = Duration::from_millis(50);
/// Keys that wait to be handled: more than are typed between two pictures.
const KEY_QUEUE: usize = 32;

/// Flags of `brigade top`.
#[derive(Debug, Args)]
#[command(
    after_help = "Keys: ? explains them, q leaves.\n\nExample: brigade top --url http://studio.local:7480"
)]
pub struct TopArgs {
    #[command(flatten)]
    connect: ConnectOptions,
}

/// What the terminal tells.
enum Told {
    Key(Key),
    Resized,
    /// It is gone.
    Gone,
}

/// Shows the cluster until `q`, or until a signal asks to end.
pub(super) async fn top(args: TopArgs) -> anyhow::Result<ExitCode> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let message = "`brigade top` draws on a terminal, and this is none: use `brigade status --watch`";
        return Err(UsageError(message.to_owned()).into());
    }
    let client = args.connect.client().await?;
    let mut signals = Signals::listen()?;
    let mut screen = Screen::open().context("failed to take the terminal")?;
    let stop = CancellationToken::new();
    let (sender, mut told) = mpsc::channel(KEY_QUEUE);
    let reader = read_keys(sender, stop.clone()).context("failed to start the thread that reads keys")?;
    let shown = tokio::select! {
        shown = show(&client, &mut screen, &mut told) => shown,
        () = signals.next() => Ok(()),
    };
    stop.cancel();
    // It ends within its wait for a key, and must not read those of the shell that comes next.
    drop(told);
    let ended = reader.join();
    drop(screen);
    shown.context("failed to draw on the terminal")?;
    anyhow::ensure!(ended.is_ok(), "the thread that reads keys failed, which is a defect");
    Ok(ExitCode::SUCCESS)
}

/// Draws, polls and takes keys, until one of them ends it.
async fn show(client: &Client, screen: &mut Screen, told: &mut mpsc::Receiver<Told>) -> std::io::Result<()> {
    let began = Instant::now();
    let mut top = Top::new(client.url());
    let mut polls = interval(POLL_INTERVAL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pictures = interval(DRAW_INTERVAL);
    pictures.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count: u32 = 0;
    // One question at a time; it goes on while keys are taken.
    let mut asked = None;
    loop {
        let answer = async {
            match asked.as_mut() {
                Some(asked) => std::pin::Pin::as_mut(asked).await,
                None => std::future::pending().await,
            }
        };
        let input = tokio::select! {
            answer = answer => {
                asked = None;
                match answer {
                    Ok(poll) => Input::Polled(Box::new(poll)),
                    Err(reason) => Input::Gone(reason),
                }
            }
            _ = polls.tick() => {
                if asked.is_none() {
                    let (step, event) = top.seen();
                    let with_events = count.is_multiple_of(EVENTS_EVERY);
                    count = count.wrapping_add(1);
                    asked = Some(Box::pin(ask(client, step, event, with_events)));
                }
                continue;
            }
            _ = pictures.tick() => Input::Tick,
            told = told.recv() => match told {
                Some(Told::Key(key)) => Input::Key(key),
                Some(Told::Resized) => Input::Tick,
                Some(Told::Gone) | None => return Ok(()),
            },
        };
        if !top.update(input, began.elapsed()) {
            return Ok(());
        }
        screen.draw(|frame| draw(&top, frame))?;
    }
}

/// Asks for what is new, in time; otherwise the reason, which needs no URL: that stands above it.
async fn ask(client: &Client, step: u64, event: u64, with_events: bool) -> Result<Poll, String> {
    let asking = async {
        let status = client.status().await?;
        let steps = client.timeline(step).await?;
        let events = if with_events { client.events(event, MOST_EVENTS).await? } else { Vec::new() };
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        Ok::<_, ClientError>(Poll { status, steps, events, at_ms })
    };
    match timeout(PATIENCE, asking).await {
        Ok(Err(ClientError::Unreachable { reason, .. })) => Err(reason),
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("It is silent".to_owned()),
    }
}

/// Reads the terminal's events in a thread of its own, since they can only be waited for.
fn read_keys(sender: mpsc::Sender<Told>, stop: CancellationToken) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        while !stop.is_cancelled() {
            let told = match event::poll(KEY_WAIT) {
                Ok(false) => continue,
                Ok(true) => match event::read() {
                    Ok(Event::Key(key)) => key_of(&key).map(Told::Key),
                    Ok(Event::Resize(..)) => Some(Told::Resized),
                    Ok(_) => None,
                    Err(_) => Some(Told::Gone),
                },
                Err(_) => Some(Told::Gone),
            };
            let gone = matches!(told, Some(Told::Gone));
            if told.is_some_and(|told| sender.blocking_send(told).is_err()) || gone {
                return;
            }
        }
    })
}

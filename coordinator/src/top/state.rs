//! What is shown, and what keys and answers of the coordinator make of it.

use std::collections::VecDeque;
use std::time::Duration;

use super::keys::Key;
use super::replay::Replay;
use crate::status::{
    ActiveRequest, ClusterStatus, EventRecord, HealthState, StageStatus, StepTrace, WorkerStatus,
};

/// Most events kept: several screens of them.
pub const MOST_EVENTS: usize = 200;
/// Readings kept for the lines: a minute, and as many as a wide terminal has columns.
const HISTORY: usize = 240;
/// Rows that a page key moves by.
const PAGE: usize = 10;
/// Longest filter, in characters: more than any row holds is a key held down.
const LONGEST_FILTER: usize = 64;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A key was pressed.
    Key(Key),
    /// The coordinator has answered.
    Polled(Box<Poll>),
    /// It does not answer, and why.
    Gone(String),
    /// Time has passed.
    Tick,
}

/// What was asked at once.
#[derive(Clone, Debug, Default)]
pub struct Poll {
    /// The cluster's state.
    pub status: ClusterStatus,
    /// Steps that came home since.
    pub steps: Vec<StepTrace>,
    /// Events that came since, oldest first.
    pub events: Vec<EventRecord>,
    /// The time of day, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Whether the coordinator answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// It has not been asked yet.
    #[default]
    New,
    /// It does.
    Live,
    /// It does not.
    Gone {
        /// Since when.
        since: Duration,
        /// Why.
        reason: String,
    },
}

/// A list that can be moved about in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    /// Stages.
    #[default]
    Stages,
    /// Workers.
    Workers,
    /// Requests.
    Requests,
    /// Events.
    Events,
}

impl Pane {
    /// All of them, in the order of Tab.
    pub const ALL: [Pane; 4] = [Pane::Stages, Pane::Workers, Pane::Requests, Pane::Events];
}

/// All that is shown.
#[derive(Clone, Debug, Default)]
pub struct Top {
    /// Where the coordinator is.
    pub url: String,
    /// Whether it answers.
    pub connection: Connection,
    /// Its last state; `None` before the first.
    pub status: Option<ClusterStatus>,
    /// The step that is shown on its way.
    pub replay: Option<Replay>,
    /// Generated tokens per second, the newest last.
    pub tokens_per_s: VecDeque<u64>,
    /// Mean time of the steps that came home, in microseconds, the newest last; 0 where none came.
    pub step_us: VecDeque<u64>,
    /// The pane that keys move in.
    pub pane: Pane,
    /// What rows must hold to be shown.
    pub filter: String,
    /// Whether the filter is being typed.
    pub typing: bool,
    /// Whether the keys are being explained.
    pub help: bool,
    /// Whether what is selected is shown in full.
    pub details: bool,
    /// Whether the picture stands still.
    pub paused: bool,
    /// The time at the last input.
    pub now: Duration,
    /// The time of day at the last answer.
    pub at_ms: u64,
    events: VecDeque<EventRecord>,
    selected: [usize; 4],
    last_step: u64,
    last_event: u64,
    polled: Option<Duration>,
}

impl Top {
    /// Nothing yet of the coordinator at `url`.
    pub fn new(url: &str) -> Top {
        Top { url: url.to_owned(), ..Top::default() }
    }

    /// The numbers of the last step and of the last event that have come: later ones are wanted.
    pub fn seen(&self) -> (u64, u64) {
        (self.last_step, self.last_event)
    }

    /// Takes what happened. Returns whether to go on.
    pub fn update(&mut self, input: Input, now: Duration) -> bool {
        self.now = now;
        match input {
            Input::Key(key) => return self.press(key),
            Input::Polled(poll) => self.take(*poll),
            Input::Gone(reason) => {
                let since = match self.connection {
                    Connection::Gone { since, .. } => since,
                    Connection::New | Connection::Live => now,
                };
                self.connection = Connection::Gone { since, reason };
            }
            Input::Tick => {}
        }
        true
    }

    /// The stages that the filter lets through.
    pub fn stages(&self) -> Vec<&StageStatus> {
        let stages = self.status.iter().flat_map(|status| &status.stages);
        stages.filter(|stage| self.shows(&[&stage.name, &stage.state, self.stage_word(stage)])).collect()
    }

    /// The workers that the filter lets through.
    pub fn workers(&self) -> Vec<&WorkerStatus> {
        let workers = self.status.iter().flat_map(|status| &status.workers);
        let shows = |worker: &&WorkerStatus| {
            let reason = worker.health.reason.as_deref().unwrap_or_default();
            self.shows(&[&worker.name, &worker.host, &worker.device, worker_word(worker), reason])
        };
        workers.filter(shows).collect()
    }

    /// The requests that the filter lets through.
    pub fn requests(&self) -> Vec<&ActiveRequest> {
        let requests = self.status.iter().flat_map(|status| &status.active);
        requests.filter(|request| self.shows(&[&request.state, &request.id.to_string()])).collect()
    }

    /// The events that the filter lets through, the newest first.
    pub fn events(&self) -> Vec<&EventRecord> {
        let shows = |event: &&EventRecord| {
            self.shows(&[&event.text, &event.kind, event.worker.as_deref().unwrap_or_default()])
        };
        self.events.iter().rev().filter(shows).collect()
    }

    /// The row that is selected in a pane of so many rows.
    pub fn selected(&self, pane: Pane, rows: usize) -> Option<usize> {
        rows.checked_sub(1).map(|last| self.selected[pane as usize].min(last))
    }

    /// The stage that is selected.
    pub fn selected_stage(&self) -> Option<&StageStatus> {
        let stages = self.stages();
        self.selected(Pane::Stages, stages.len()).map(|row| stages[row])
    }

    /// The worker that details are shown of: the one selected among workers, otherwise that of the selected stage.
    pub fn selected_worker(&self) -> Option<&WorkerStatus> {
        if self.pane == Pane::Workers {
            let workers = self.workers();
            return self.selected(Pane::Workers, workers.len()).map(|row| workers[row]);
        }
        self.worker_of(self.selected_stage()?)
    }

    /// The worker of a stage.
    pub fn worker_of(&self, stage: &StageStatus) -> Option<&WorkerStatus> {
        self.status.as_ref()?.workers.iter().find(|worker| worker.id == stage.worker)
    }

    /// How a stage is, in a word.
    pub fn stage_word<'a>(&self, stage: &'a StageStatus) -> &'a str {
        match stage.health.state {
            HealthState::Ok if stage.state != "active" => &stage.state,
            state => state.as_str(),
        }
    }

    fn shows(&self, texts: &[&str]) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    fn take(&mut self, poll: Poll) {
        self.connection = Connection::Live;
        if self.paused {
            return;
        }
        let Poll { status, steps, events, at_ms } = poll;
        // Another start of the coordinator counts its steps and tokens anew.
        let before = self.status.take().filter(|before| before.incarnation == status.incarnation);
        if before.is_none() {
            self.last_step = 0;
            self.replay = None;
        }
        let since = self.polled.map(|polled| self.now.saturating_sub(polled).as_secs_f64());
        if let (Some(before), Some(since)) = (before, since)
            && since > 0.0
        {
            let tokens = status.requests.generated_tokens.saturating_sub(before.requests.generated_tokens);
            remember(&mut self.tokens_per_s, (tokens as f64 / since).round() as u64);
            let mean = steps.iter().map(|step| u64::from(step.took_us)).sum::<u64>();
            remember(&mut self.step_us, mean.checked_div(steps.len() as u64).unwrap_or(0));
        }
        self.polled = Some(self.now);
        self.status = Some(status);
        self.at_ms = at_ms;
        self.last_step = steps.iter().map(|step| step.step).max().unwrap_or(0).max(self.last_step);
        self.last_event = events.iter().map(|event| event.id).max().unwrap_or(0).max(self.last_event);
        self.events.extend(events);
        let surplus = self.events.len().saturating_sub(MOST_EVENTS);
        self.events.drain(..surplus);
        // One that is on its way is shown to its end.
        if let Some(newest) = steps.into_iter().next_back()
            && self.replay.as_ref().is_none_or(|replay| replay.has_ended(self.now))
        {
            self.replay = Some(Replay::new(newest, self.now));
        }
    }

    fn press(&mut self, key: Key) -> bool {
        if key == Key::Interrupt {
            return false;
        }
        if self.typing {
            self.type_filter(key);
            return true;
        }
        if self.help {
            self.help = false;
            return true;
        }
        match key {
            Key::Char('q') => return false,
            Key::Escape if self.details => self.details = false,
            Key::Escape if !self.filter.is_empty() => self.filter.clear(),
            Key::Escape => return false,
            Key::Char('?' | 'h') => self.help = true,
            Key::Char('/') => self.typing = true,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Enter => self.details = !self.details,
            Key::Tab => self.pane = Pane::ALL[(self.pane as usize + 1) % Pane::ALL.len()],
            Key::BackTab => {
                self.pane = Pane::ALL[(self.pane as usize + Pane::ALL.len() - 1) % Pane::ALL.len()];
            }
            Key::Left => self.step(Pane::Stages, -1),
            Key::Right => self.step(Pane::Stages, 1),
            Key::Up | Key::Char('k') => self.step(self.pane, -1),
            Key::Down | Key::Char('j') => self.step(self.pane, 1),
            Key::PageUp => self.step(self.pane, -(PAGE as isize)),
            Key::PageDown => self.step(self.pane, PAGE as isize),
            Key::Home => self.step(self.pane, isize::MIN),
            Key::End => self.step(self.pane, isize::MAX),
            Key::Char(_) | Key::Backspace | Key::Interrupt => {}
        }
        true
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Char(character) if self.filter.chars().count() < LONGEST_FILTER => {
                self.filter.push(character);
            }
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.typing = false;
                self.filter.clear();
            }
            _ => {}
        }
    }

    /// Moves the selection in a pane, no farther than to its ends.
    fn step(&mut self, pane: Pane, by: isize) {
        let rows = match pane {
            Pane::Stages => self.stages().len(),
            Pane::Workers => self.workers().len(),
            Pane::Requests => self.requests().len(),
            Pane::Events => self.events().len(),
        };
        let at = self.selected(pane, rows).unwrap_or(0);
        self.selected[pane as usize] = at.saturating_add_signed(by).min(rows.saturating_sub(1));
    }
}

/// How a worker is, in a word.
pub(super) fn worker_word(worker: &WorkerStatus) -> &str {
    match (worker.health.state, worker.state.as_str()) {
        (HealthState::Ok, "attached") => HealthState::Ok.as_str(),
        (HealthState::Ok, state) => state,
        (state, _) => state.as_str(),
    }
}

fn remember(readings: &mut VecDeque<u64>, reading: u64) {
    if readings.len() == HISTORY {
        readings.pop_front();
    }
    readings.push_back(reading);
}

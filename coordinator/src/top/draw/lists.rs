//! The lists: stages, workers, requests and events.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Row, Table, TableState};

use super::border;
use super::text::{bar, holds, loading_word, share, word_color};
use crate::render::{age, microseconds};
use crate::status::{ActiveRequest, EventRecord, Health, HealthState, Severity, StageStatus, WorkerStatus};
use crate::top::state::{Pane, Top, worker_word};

/// Columns of a bar with its percentage.
const BAR: u16 = 11;

/// Columns: what stands above each, and how wide it is.
type Columns = &'static [(&'static str, u16)];

/// Columns of each list from the widest arrangement to the narrowest. The first cells of a row stand in all of them, and
/// what is narrow leaves out the last.
const STAGES: [Columns; 3] = [
    &[
        ("#", 3),
        ("WORKER", 12),
        ("HEALTH", 12),
        ("DECODE", 8),
        ("BUSY", BAR),
        ("MEMORY", BAR),
        ("HOLDS", 16),
        ("QUEUE", 8),
        ("SHARE", 5),
    ],
    &[("#", 3), ("WORKER", 10), ("HEALTH", 12), ("DECODE", 8), ("BUSY", BAR), ("MEMORY", BAR), ("HOLDS", 14)],
    &[("#", 2), ("WORKER", 12), ("HEALTH", 12), ("DECODE", 8)],
];
const WORKERS: [Columns; 2] = [
    &[
        ("WORKER", 14),
        ("HEALTH", 12),
        ("MEMORY", BAR),
        ("SEEN", 7),
        ("TEMP", 5),
        ("DEVICE", 10),
        ("HOST", 20),
    ],
    &[("WORKER", 12), ("HEALTH", 11), ("MEMORY", BAR)],
];
const REQUESTS: [Columns; 2] = [
    &[("REQUEST", 8), ("STATE", 10), ("ANSWER", 12), ("AGE", 8), ("PROMPT", 12)],
    &[("REQUEST", 8), ("STATE", 10), ("ANSWER", 10), ("AGE", 6)],
];
/// What happened takes the rest.
const EVENTS: [Columns; 1] = [&[("AGO", 7), ("KIND", 8), ("WHAT", 0)]];

/// One of the lists, with the row that is selected.
pub(super) fn pane(top: &Top, pane: Pane, frame: &mut Frame<'_>, area: Rect) {
    match pane {
        Pane::Stages => {
            let rows = top.stages().iter().map(|stage| stage_row(top, stage)).collect();
            let stages = top.stages();
            let all = stages.iter().map(|stage| (stage.name.as_str(), &stage.health)).collect();
            let about = about(all, top.selected(pane, stages.len()));
            list(top, pane, (" stages ", about), &STAGES, rows, frame, area);
        }
        Pane::Workers => {
            let workers = top.workers();
            let rows = workers.iter().map(|worker| worker_row(worker)).collect();
            let all = workers.iter().map(|worker| (worker.name.as_str(), &worker.health));
            let about = about(all.collect(), top.selected(pane, workers.len()));
            list(top, pane, (" workers ", about), &WORKERS, rows, frame, area);
        }
        Pane::Requests => {
            let rows = top.requests().iter().map(|request| request_row(request)).collect();
            list(top, pane, (" requests ", String::new()), &REQUESTS, rows, frame, area);
        }
        Pane::Events => {
            let rows = top.events().iter().map(|event| event_row(event, top.at_ms)).collect();
            list(top, pane, (" events ", String::new()), &EVENTS, rows, frame, area);
        }
    }
}

fn list(
    top: &Top,
    pane: Pane,
    (title, about): (&'static str, String),
    arrangements: &[Columns],
    rows: Vec<Row<'_>>,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    let mut block = Block::bordered().border_style(border(top, pane)).title(title);
    if !about.is_empty() {
        block = block.title_bottom(Line::from(format!(" {about} ")));
    }
    let room = block.inner(area).width;
    // Columns have one between them.
    let fits = |columns: &&Columns| columns.iter().map(|(_, width)| width + 1).sum::<u16>() <= room + 1;
    let columns = arrangements.iter().find(fits).or(arrangements.last()).copied().unwrap_or_default();
    let widths = columns.iter().map(|(_, width)| match width {
        0 => Constraint::Fill(1),
        width => Constraint::Length(*width),
    });
    let mut state = TableState::new().with_selected(top.selected(pane, rows.len()));
    let header = Row::new(columns.iter().map(|(name, _)| *name)).style(Style::new().fg(Color::DarkGray));
    let mut table = Table::new(rows, widths).header(header).block(block);
    if top.pane == pane {
        table = table.row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    }
    frame.render_stateful_widget(table, area, &mut state);
}

/// Why the chosen one is as it is; where that is fine, why the worst of all is.
fn about(all: Vec<(&str, &Health)>, at: Option<usize>) -> String {
    let chosen = at.and_then(|at| all.get(at)).map(|(_, health)| why(health));
    chosen.filter(|why| !why.is_empty()).unwrap_or_else(|| {
        let worst = all.iter().max_by_key(|(_, health)| health.state);
        let told = worst.filter(|(_, health)| health.state != HealthState::Ok);
        told.map(|(name, health)| format!("{name}: {}", why(health))).unwrap_or_default()
    })
}

/// Why something is as it is, and what to do about it.
fn why(health: &Health) -> String {
    match (&health.reason, &health.advice) {
        (Some(reason), Some(advice)) => format!("{reason}: {advice}"),
        (Some(text), None) | (None, Some(text)) => text.clone(),
        (None, None) => String::new(),
    }
}

fn stage_row<'a>(top: &Top, stage: &'a StageStatus) -> Row<'a> {
    let word = top.stage_word(stage);
    let held = stage.weight_bytes + stage.cache_bytes + stage.workspace_bytes;
    let budget = top.worker_of(stage).map_or(0, |worker| worker.budget_bytes);
    Row::new([
        Cell::from(stage.stage.to_string()),
        Cell::from(stage.name.as_str()),
        Cell::from(Span::styled(loading_word(word, stage), word_color(word))),
        Cell::from(microseconds(stage.decode_us_p50)),
        Cell::from(bar(stage.busy, BAR.into())),
        Cell::from(bar(share(held, budget), BAR.into())),
        Cell::from(holds(stage)),
        Cell::from(microseconds(stage.queued_us_p50)),
        Cell::from(format!("{:.0}%", stage.step_share * 100.0)),
    ])
}

fn worker_row(worker: &WorkerStatus) -> Row<'_> {
    let word = worker_word(worker);
    let card = worker.card.as_ref().and_then(|card| card.temperature_celsius);
    let temperature = card.or(worker.machine.temperature_celsius);
    Row::new([
        Cell::from(worker.name.as_str()),
        Cell::from(Span::styled(word, word_color(word))),
        Cell::from(bar(share(worker.resident_bytes, worker.budget_bytes), BAR.into())),
        Cell::from(age(worker.last_seen_s)),
        Cell::from(temperature.map_or_else(|| "-".to_owned(), |celsius| format!("{celsius:.0} C"))),
        Cell::from(worker.device.as_str()),
        Cell::from(worker.host.as_str()),
    ])
}

fn request_row(request: &ActiveRequest) -> Row<'_> {
    Row::new([
        Cell::from(request.id.to_string()),
        Cell::from(request.state.as_str()),
        Cell::from(format!("{}/{}", request.generated_tokens, request.max_tokens)),
        Cell::from(age(request.age_s)),
        Cell::from(format!("{}/{}", request.prompt_tokens_done, request.prompt_tokens)),
    ])
}

fn event_row(event: &EventRecord, now_ms: u64) -> Row<'_> {
    let color = match event.severity {
        Severity::Info => Color::Reset,
        Severity::Warning => Color::Yellow,
        Severity::Error => Color::Red,
    };
    let text = match &event.worker {
        Some(worker) if !event.text.contains(worker.as_str()) => format!("{worker}: {}", event.text),
        _ => event.text.clone(),
    };
    Row::new([
        Cell::from(age(now_ms.saturating_sub(event.at_ms) as f64 / 1e3)),
        Cell::from(event.kind.as_str()),
        Cell::from(Span::styled(text, color)),
    ])
}

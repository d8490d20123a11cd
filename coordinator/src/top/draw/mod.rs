//! Painting: the whole picture out of panes, arranged by the room there is.

mod details;
mod lists;
mod pipeline;
mod text;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Sparkline};

use self::text::health_color;
use super::state::{Connection, Pane, Top};
use crate::render::{age, microseconds};
use crate::status::{ClusterStatus, HealthState, Phase};

/// Less than this shows nothing.
const LEAST: (u16, u16) = (20, 5);
/// Less than this shows one pane at a time.
const SEVERAL_PANES: (u16, u16) = (60, 16);
/// From here on everything is shown at once.
const ALL_PANES: (u16, u16) = (110, 34);
/// Fewer rows leave none to say that the plan is pinned.
const ROOM_FOR_PIN: u16 = 10;
/// Rows of the two lines, borders included.
const LINES_HEIGHT: u16 = 4;
/// Widest popup, in columns.
const POPUP_WIDTH: u16 = 76;

/// Paints all of it.
pub fn draw(top: &Top, frame: &mut Frame<'_>) {
    let area = frame.area();
    let fits = |(width, height): (u16, u16)| area.width >= width && area.height >= height;
    if !fits(LEAST) {
        frame.render_widget("too small", area);
        return;
    }
    let pinned = top.status.as_ref().and_then(pin).filter(|_| area.height >= ROOM_FOR_PIN);
    let [head, message, pinning, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(pinned.is_some().into()),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(header(top), head);
    frame.render_widget(remark(top), message);
    if let Some(text) = pinned {
        frame.render_widget(Line::from(text).cyan(), pinning);
    }
    frame.render_widget(footer(top), foot);
    if top.status.is_some() {
        if fits(ALL_PANES) {
            all_panes(top, frame, body);
        } else if fits(SEVERAL_PANES) {
            several_panes(top, frame, body);
        } else {
            one_pane(top, frame, body);
        }
        if top.details && !fits(ALL_PANES) {
            let text = details::lines(top);
            popup(frame, area, " details ", text);
        }
    }
    if top.help {
        popup(frame, area, " keys ", help());
    }
}

fn one_pane(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let [strip, pane] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    pipeline::strip(top, frame, strip);
    lists::pane(top, top.pane, frame, pane);
}

fn several_panes(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let stages = top.stages().len() as u16 + 3;
    let lines = if area.height >= 20 { LINES_HEIGHT } else { 0 };
    let way = pipeline::height(top, area.width, 0);
    let rest = area.height.saturating_sub(lines + way);
    // Half of what is left, or less: what is below must be seen too.
    let stages = stages.min(rest.div_ceil(2).max(4));
    let [way, table, charts, below] = Layout::vertical([
        Constraint::Length(way),
        Constraint::Length(stages),
        Constraint::Length(lines),
        Constraint::Fill(1),
    ])
    .areas(area);
    pipeline::draw(top, frame, way);
    lists::pane(top, Pane::Stages, frame, table);
    if lines > 0 {
        charts_side_by_side(top, frame, charts);
    }
    // Whatever has the keys is shown; events stand beside it.
    let first = if matches!(top.pane, Pane::Requests) { Pane::Requests } else { Pane::Workers };
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(below);
    lists::pane(top, first, frame, left);
    lists::pane(top, Pane::Events, frame, right);
}

fn all_panes(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let way = pipeline::height(top, area.width, 2);
    let workers = top.workers().len() as u16 + 3;
    let stages = (top.stages().len() as u16 + 3).max(14);
    let left = area.height.saturating_sub(way + LINES_HEIGHT + 2);
    let stages = stages.min(left / 2);
    let workers = workers.min(left.saturating_sub(stages) / 2).max(4);
    let [way, middle, charts, machines, below] = Layout::vertical([
        Constraint::Length(way),
        Constraint::Length(stages),
        Constraint::Length(LINES_HEIGHT + 2),
        Constraint::Length(workers),
        Constraint::Fill(1),
    ])
    .areas(area);
    pipeline::draw(top, frame, way);
    let [table, more] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(middle);
    lists::pane(top, Pane::Stages, frame, table);
    let block = Block::bordered().title(" details ").border_style(quiet());
    frame.render_widget(Paragraph::new(details::lines(top)).block(block), more);
    charts_side_by_side(top, frame, charts);
    lists::pane(top, Pane::Workers, frame, machines);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(below);
    lists::pane(top, Pane::Requests, frame, left);
    lists::pane(top, Pane::Events, frame, right);
}

fn charts_side_by_side(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    let tokens = top.status.as_ref().map_or(0.0, |status| status.rates.generated_tokens_per_s);
    let title = format!(" {tokens:.1} tokens/s ");
    chart(frame, left, &title, top.tokens_per_s.iter().copied(), Color::Green);
    let step = top.step_us.iter().rev().find(|us| **us > 0).copied().unwrap_or(0);
    let title = format!(" step {} ", microseconds(step));
    chart(frame, right, &title, top.step_us.iter().copied(), Color::Yellow);
}

/// The newest readings, as many as there is room for, at the right.
fn chart(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    readings: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator,
    color: Color,
) {
    let block = Block::bordered().title(title.to_owned()).border_style(quiet());
    let room = usize::from(block.inner(area).width);
    let mut shown: Vec<u64> = readings.rev().take(room).collect();
    shown.resize(room, 0);
    shown.reverse();
    frame.render_widget(Sparkline::default().data(shown).style(color).block(block), area);
}

fn header(top: &Top) -> Line<'_> {
    let mut line = vec![" brigade ".black().on_green().bold(), " ".into()];
    let Some(status) = &top.status else {
        line.push(top.url.as_str().into());
        return Line::from(line);
    };
    let requests = &status.requests;
    line.push(status.model.id.as_str().bold());
    line.push(format!("  {}", status.phase.as_str()).into());
    let health = overall(status);
    line.push("  ".into());
    line.push(Span::styled(health.as_str(), health_color(health)));
    line.push(format!("  {} running", requests.running).into());
    line.push(format!("  {} waiting", requests.waiting).into());
    if top.paused {
        line.push("  ".into());
        line.push(" paused ".black().on_yellow());
    }
    let reserved = f64::from(status.cache_tokens_reserved) / f64::from(status.cache_tokens.max(1));
    line.push(format!("  cache {:.0}%", reserved * 100.0).into());
    line.push(format!("  {}", top.url).dark_gray());
    Line::from(line)
}

/// How it is as a whole.
fn overall(status: &ClusterStatus) -> HealthState {
    match (status.health.state, status.phase) {
        (HealthState::Ok, Phase::Loading | Phase::Connecting) => HealthState::Loading,
        (HealthState::Ok, Phase::Waiting | Phase::Stopping) => HealthState::Unreachable,
        (state, _) => state,
    }
}

/// What matters most, in a line.
fn remark(top: &Top) -> Line<'_> {
    if let Connection::Gone { since, reason } = &top.connection {
        let gone = age(top.now.saturating_sub(*since).as_secs_f64());
        let text = format!(" no answer for {gone}; trying again. {reason} ");
        return Line::from(text.white().on_red().bold());
    }
    let Some(status) = &top.status else {
        return Line::from(" asking the coordinator ...".dark_gray());
    };
    let health = &status.health;
    let advice = health.advice.as_ref().map(|advice| format!(": {advice}")).unwrap_or_default();
    let text = match (&health.reason, &status.reason, &status.note) {
        (Some(reason), _, _) => Some(format!(" {reason}{advice}")),
        (None, Some(text), _) | (None, None, Some(text)) => Some(format!(" {text}")),
        (None, None, None) => None,
    };
    if let Some(text) = text {
        return Line::from(Span::styled(text, health_color(overall(status))));
    }
    let predicted = &status.predicted;
    if predicted.decode_tokens_per_s > 0.0 {
        let (speed, bottleneck) = (predicted.decode_tokens_per_s, &predicted.bottleneck);
        return Line::from(
            format!(" predicted {speed:.1} tokens/s for one stream; {bottleneck}").dark_gray(),
        );
    }
    Line::default()
}

/// What the plan is pinned to, since when and by whom, or why it is no more; `None` where nothing is to be said.
fn pin(status: &ClusterStatus) -> Option<String> {
    if status.pinned.is_empty() {
        return status.pin_ended.as_ref().map(|why| format!(" pinned no more: {why}"));
    }
    let by = status.pinned_by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    Some(format!(" pinned to {} for {}{by}", status.pinned.join(", "), age(status.pinned_s)))
}

fn footer(top: &Top) -> Line<'_> {
    if top.typing {
        return Line::from(vec![" /".bold(), top.filter.as_str().into(), "_".rapid_blink()]);
    }
    let mut line = Vec::new();
    if !top.filter.is_empty() {
        line.push(format!(" only rows with `{}`, Esc shows all  ", top.filter).black().on_yellow());
    }
    for (key, does) in [
        ("q", "quit"),
        ("?", "keys"),
        ("/", "filter"),
        ("Tab", "pane"),
        ("arrows", "select"),
        ("Enter", "details"),
        ("p", "pause"),
    ] {
        line.push(format!(" {key}").bold());
        line.push(format!(" {does} ").dark_gray());
    }
    Line::from(line)
}

fn help() -> Vec<Line<'static>> {
    let keys = [
        ("q, Esc, Ctrl-C", "quit"),
        ("Tab, Shift-Tab", "next or previous pane"),
        ("up, down, j, k", "select in the pane; also PageUp, PageDown, Home, End"),
        ("left, right", "select a stage"),
        ("Enter", "details of the stage or worker: machine, card, links"),
        ("/", "show only rows that hold a text; Esc shows all again"),
        ("p, space", "stop the picture, and go on"),
        ("?, h", "these keys"),
    ];
    let mut lines: Vec<Line<'static>> =
        keys.map(|(key, does)| Line::from(vec![format!(" {key:<16}").bold(), does.into()])).into();
    lines.push(Line::default());
    lines.push(Line::from(" The dot on the pipeline is the newest step, slowed down to a second."));
    lines
}

fn popup(frame: &mut Frame<'_>, area: Rect, title: &'static str, text: Vec<Line<'_>>) {
    let width = POPUP_WIDTH.min(area.width);
    let height = (text.len() as u16 + 2).min(area.height);
    let place = area.centered(Constraint::Length(width), Constraint::Length(height));
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(title).border_style(Style::new().fg(Color::Cyan));
    frame.render_widget(Paragraph::new(text).block(block), place);
}

/// The border of a pane.
fn border(top: &Top, pane: Pane) -> Style {
    if top.pane == pane { Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD) } else { quiet() }
}

fn quiet() -> Style {
    Style::new().fg(Color::DarkGray)
}

//! The pipeline from left to right, with a step on its way through it.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};

use super::text::{bar, holds, loading_word, share, word_color};
use crate::render::microseconds;
use crate::status::StageStatus;
use crate::top::replay::Place;
use crate::top::state::Top;

/// Columns between two stages.
const ARROW: u16 = 3;
/// Fewest columns of a stage's box: less shows no name.
const NARROWEST: u16 = 12;
/// Widest box: more room is better left empty.
const WIDEST: u16 = 30;
/// Rows of a box with its borders.
const BOX_HEIGHT: u16 = 4;
/// Columns of a stage where there is no room for boxes: `[12]-`.
const CELL: usize = 5;

/// Rows that the pipeline takes in so many columns, with `more` rows in each box.
pub(super) fn height(top: &Top, width: u16, more: u16) -> u16 {
    if box_width(top, width).is_some() { BOX_HEIGHT + more } else { 1 }
}

/// Boxes with arrows between them, or a line where they have no room.
pub(super) fn draw(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let Some(width) = box_width(top, area.width) else {
        return strip(top, frame, area);
    };
    let place = place(top);
    let stages = stages(top);
    let arrow = |number: usize, x: u16| {
        let text = if place == Some(Place::Link(number)) { " \u{25cf}\u{25b6}" } else { " \u{2500}\u{25b6}" };
        let style = if place == Some(Place::Link(number)) { here() } else { Style::new().dark_gray() };
        (Span::styled(text, style), Rect { x, y: area.y + area.height / 2, width: ARROW, height: 1 })
    };
    let mut x = area.x;
    for (number, stage) in stages.iter().enumerate() {
        let (text, at) = arrow(number, x);
        frame.render_widget(text, at);
        x += ARROW;
        let at = Rect { x, y: area.y, width, height: area.height };
        stage_box(top, stage, number, place, frame, at);
        x += width;
    }
    if !stages.is_empty() {
        let (text, at) = arrow(stages.len(), x);
        frame.render_widget(text, at);
    }
}

/// All stages in one line; those around the selected one where not all have room.
pub(super) fn strip(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let place = place(top);
    let stages = stages(top);
    let room = (usize::from(area.width) / CELL).max(1);
    let selected = top.selected_stage().map(|stage| stage.stage);
    let at = stages.iter().position(|stage| Some(stage.stage) == selected).unwrap_or(0);
    let first = at.saturating_sub(room / 2).min(stages.len().saturating_sub(room));
    let mut line = Vec::new();
    for (number, stage) in stages.iter().enumerate().skip(first).take(room) {
        let is_here = matches!(place, Some(Place::Queued(n) | Place::Computing(n)) if n == number);
        let mut style = Style::new().fg(word_color(top.stage_word(stage)));
        if is_here {
            style = style.add_modifier(Modifier::REVERSED);
        }
        if Some(stage.stage) == selected {
            style = style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
        }
        line.push(Span::styled(format!("[{:>2}]", stage.stage), style));
        let linked = place == Some(Place::Link(number + 1));
        line.push(if linked { Span::styled("\u{25cf}", here()) } else { "\u{2500}".dark_gray() });
    }
    frame.render_widget(Line::from(line), area);
}

/// How wide each stage's box is; `None` where boxes have no room.
fn box_width(top: &Top, width: u16) -> Option<u16> {
    let count = u16::try_from(stages(top).len()).ok().filter(|count| *count > 0)?;
    let room = width.saturating_sub(count.saturating_add(1).saturating_mul(ARROW)) / count;
    (room >= NARROWEST).then_some(room.min(WIDEST))
}

fn stages(top: &Top) -> &[StageStatus] {
    top.status.as_ref().map_or(&[], |status| &status.stages)
}

/// Where the step is: with the stage that hangs, or where the replay has it.
fn place(top: &Top) -> Option<Place> {
    let stages = stages(top);
    if let Some(hung) = stages.iter().position(|stage| top.stage_word(stage) == "hung") {
        return Some(Place::Computing(hung));
    }
    let replay = top.replay.as_ref().filter(|replay| replay.trace().stages.len() == stages.len())?;
    replay.place(top.now)
}

fn stage_box(
    top: &Top,
    stage: &StageStatus,
    number: usize,
    place: Option<Place>,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    let word = top.stage_word(stage);
    let color = word_color(word);
    let mark = match place {
        Some(Place::Computing(n)) if n == number => "\u{25cf} ",
        Some(Place::Queued(n)) if n == number => "\u{25cb} ",
        _ => "",
    };
    let mut style = Style::new().fg(color);
    if !mark.is_empty() {
        style = style.add_modifier(Modifier::BOLD);
    }
    let mut title = Style::new();
    if top.selected_stage().is_some_and(|selected| selected.stage == stage.stage) {
        title = title.add_modifier(Modifier::REVERSED);
    }
    let title = Line::from(vec![
        Span::styled(mark, here()),
        Span::styled(format!("{} {}", stage.stage, stage.name), title),
    ]);
    let block = Block::bordered().border_style(style).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let width = usize::from(inner.width);
    let mut lines = vec![
        Line::from(vec![
            Span::styled(loading_word(word, stage), color),
            format!(" {}", holds(stage)).dark_gray(),
        ]),
        Line::from(bar(stage.busy, width)),
    ];
    let memory = top.worker_of(stage).map_or(0.0, |worker| share(worker.resident_bytes, worker.budget_bytes));
    lines.push(Line::from(format!("memory {:.0}%", memory * 100.0)));
    lines.push(Line::from(format!("decode {}", microseconds(stage.decode_us_p50))));
    let [text] = Layout::vertical([Constraint::Fill(1)]).areas(inner);
    frame.render_widget(Paragraph::new(lines), text);
}

/// Where the step is.
fn here() -> Style {
    Style::new().light_green().add_modifier(Modifier::BOLD)
}

//! One picture, for a README or a chat.

use super::chart::{self, CHART_CSS, HEIGHT, words};
use super::facts;
use super::markup::{Element, el};
use crate::compare::Comparison;

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 28.0;
/// Between two charts.
const GAP: f64 = 28.0;
/// The longest title, and the longest line below it, in characters.
const TITLE: usize = 78;
const LINE: usize = 124;
/// Most lines of the verdict; a longer one is cut.
const VERDICT_LINES: usize = 4;

/// The comparison as an SVG picture that asks for nothing else. It is light or dark as its reader's system is, with a
/// ground of its own, so that it can be read on any page.
pub fn svg(comparison: &Comparison) -> String {
    let inside = WIDTH - 2.0 * MARGIN;
    let mut body = el("g").with(words(0.0, 18.0, chart::cut(&title(comparison), TITLE)).class("title"));
    let mut y = 44.0;
    for line in verdict(comparison) {
        body = body.with(words(0.0, y, line));
        y += 18.0;
    }
    y += 8.0;
    let (legend, height) = chart::legend(comparison, inside);
    body = body.with(moved(legend, 0.0, y));
    y += height + 22.0;
    let panels = chart::panels(comparison);
    let (first, others) = panels.split_at(panels.len().min(1));
    for panel in first {
        body = body.with(moved(chart::draw(panel, comparison, inside), 0.0, y));
        y += HEIGHT + GAP;
    }
    if !others.is_empty() {
        let width = (inside - GAP * (others.len() - 1) as f64) / others.len() as f64;
        for (at, panel) in others.iter().enumerate() {
            let x = (width + GAP) * at as f64;
            body = body.with(moved(chart::draw(panel, comparison, width), x, y));
        }
        y += HEIGHT + GAP;
    }
    for line in chart::lines(&below(comparison), LINE) {
        body = body.with(words(0.0, y, line).class("muted"));
        y += 17.0;
    }
    let height = y + MARGIN;
    let picture = el("svg")
        .at("xmlns", "http://www.w3.org/2000/svg")
        .at("viewBox", format!("0 0 {WIDTH} {height}"))
        .at("width", WIDTH)
        .at("height", height)
        .class("chart")
        .at("role", "img")
        .at("aria-labelledby", "title desc")
        .with(el("title").at("id", "title").text(title(comparison)))
        .with(el("desc").at("id", "desc").text(description(comparison)))
        .with(el("style").style(CHART_CSS).style(PICTURE_CSS))
        .with(el("rect").class("ground").at("width", WIDTH).at("height", height).at("rx", 10))
        .with(moved(body, MARGIN, MARGIN));
    format!("{picture}\n")
}

const PICTURE_CSS: &str =
    ".ground{fill:var(--ground);stroke:var(--line)}.chart .title{font-size:19px;font-weight:650}
";

/// What the picture shows, in a line.
pub(super) fn title(comparison: &Comparison) -> String {
    let labels = facts::side_labels(comparison);
    let sides: Vec<String> = labels.iter().map(|label| chart::cut(label, 30)).collect();
    match sides.as_slice() {
        [] => comparison.model.clone(),
        sides => format!("{}: {}", comparison.model, sides.join(", ")),
    }
}

fn verdict(comparison: &Comparison) -> Vec<String> {
    let mut lines = chart::lines(&comparison.verdict.text, LINE);
    if lines.len() > VERDICT_LINES {
        lines.truncate(VERDICT_LINES);
        if let Some(last) = lines.last_mut() {
            *last = last.chars().take(LINE - 1).chain(['…']).collect();
        }
    }
    lines
}

/// How it was measured, below the charts.
fn below(comparison: &Comparison) -> String {
    let rounds = facts::plural(comparison.rounds, "round");
    let mut text = format!(
        "Means of {rounds}, the sides in turn, seed {}; {} UTC; Brigade {}.",
        comparison.seed,
        facts::date(comparison.began_unix_s),
        comparison.version
    );
    if comparison.disturbed {
        text.push_str(" Other requests ran meanwhile.");
    }
    text
}

/// All figures in words, for those who do not see the picture.
pub(super) fn description(comparison: &Comparison) -> String {
    let labels = facts::side_labels(comparison);
    let rows = facts::rows(comparison);
    let row = |row: &facts::Row<'_>| {
        let (mean, unit) = (facts::short(row.figure.mean), facts::unit(row.quantity));
        let predicted = row.figure.predicted.map(|value| format!(" (predicted {})", facts::short(value)));
        let name = facts::quantity_name(row.quantity);
        format!(" {name}, {}: {mean} {unit}{}.", labels[row.side], predicted.unwrap_or_default())
    };
    let figures: String = rows.iter().map(row).collect();
    format!("{}{figures}", comparison.verdict.text)
}

fn moved(drawn: Element, x: f64, y: f64) -> Element {
    el("g").at("transform", format!("translate({x:.1} {y:.1})")).with(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::markup::tags;
    use crate::compare::report::sample::{comparison, hostile};

    #[test]
    fn the_picture_is_whole_and_asks_for_nothing() {
        let mut comparison = comparison();
        comparison.sides[2].name = "another".to_owned();
        let picture = svg(&comparison);
        let tags = tags(&picture);
        assert_eq!(tags[..4], ["svg", "title", "desc", "style"]);
        let outside = picture.replace("http://www.w3.org/2000/svg", "");
        for banned in ["http", "url(", "@import", "href", "<script", "<image", "<foreignObject"] {
            assert!(!outside.contains(banned), "`{banned}` in the picture");
        }
        assert!(
            picture.contains("decode, 16 streams, cluster: 279 tokens/s (predicted 301)."),
            "in words, too"
        );
        assert!(picture.len() < 60_000, "{} bytes", picture.len());
    }

    #[test]
    fn names_stay_text() {
        let picture = svg(&hostile());
        let tags = tags(&picture);
        assert!(tags.iter().all(|tag| !["script", "img", "b"].contains(&tag.as_str())), "{tags:?}");
        assert!(picture.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "the name is there");
        assert!(!picture.contains('\u{1b}') && !picture.contains('\u{0}'));
    }

    #[test]
    fn a_comparison_of_nothing_is_a_picture_all_the_same() {
        let mut comparison = comparison();
        comparison.sides.clear();
        tags(&svg(&comparison));
    }
}

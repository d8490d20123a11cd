//! Charts: bars from 0 with confidence intervals and marks of what was predicted, and bars of how far predictions were off.

use super::facts;
use super::markup::{Element, el};
use crate::compare::{Comparison, Figure, Quantity, SideKind};

/// Colours in light and dark, those of the dashboard, and the parts of a chart. A side's colour is its kind's, so that it
/// is the same in every chart.
pub(super) const CHART_CSS: &str = "
:root{color-scheme:light dark;--ground:#ffffff;--text:#191d23;--muted:#566070;--line:#dde1e7;--track:#e9ecf0;--accent:#0a5fb4;
--box:#8793a3;--offload:#b39245;--cluster:#0a5fb4;--other1:#c2571a;--other2:#1c8069;--other3:#8a4fb0}
@media (prefers-color-scheme:dark){:root{--ground:#161a20;--text:#e3e7ed;--muted:#9aa5b4;--line:#2a313a;--track:#252b34;
--accent:#6db3ff;--box:#8894a5;--offload:#c9ab63;--cluster:#6db3ff;--other1:#f0965a;--other2:#57c2a6;--other3:#c193e6}}
.chart text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif;font-size:12px;fill:var(--text)}
.chart .name{font-size:14px;font-weight:600}
.chart .muted,.chart .tick{fill:var(--muted)}
.chart .value{font-size:11px}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .axis{stroke:var(--muted);stroke-width:1}
.chart .whisker{stroke:var(--text);stroke-width:1.25;fill:none}
.chart .predicted{stroke:var(--text);stroke-width:2;stroke-dasharray:4 2;fill:none}
.box{fill:var(--box)}.offload{fill:var(--offload)}.cluster{fill:var(--cluster)}
.other1{fill:var(--other1)}.other2{fill:var(--other2)}.other3{fill:var(--other3)}
";

/// Height of a chart of bars.
pub(super) const HEIGHT: f64 = 268.0;
/// Room for the title, above the highest tick.
const TOP: f64 = 56.0;
/// Room for the names of the groups.
const BOTTOM: f64 = 40.0;
/// Room for the ticks' numbers.
const LEFT: f64 = 42.0;
/// The widest bar.
const WIDEST_BAR: f64 = 54.0;
/// Width of a character of 11 or 12 pixels, as much as letters and digits take on average.
const CHARACTER: f64 = 6.4;

/// Width of a digit, with a little room around it: numbers above neighbouring bars must not touch.
const DIGIT: f64 = 7.0;

/// Height of a row of [`errors`].
const ROW: f64 = 21.0;
/// Room for the names of its rows.
const ROW_NAMES: f64 = 182.0;

/// A chart of quantities of one kind.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    /// The unit, and which direction is better.
    pub(super) unit: &'static str,
    /// What the groups differ by, below them.
    groups_are: &'static str,
    groups: Vec<Group>,
}

#[derive(Clone, Debug)]
struct Group {
    label: String,
    bars: Vec<Bar>,
}

#[derive(Clone, Debug)]
struct Bar {
    /// Which side, by its place.
    side: usize,
    figure: Figure,
}

/// The charts of a comparison: decoding, prompts, first tokens, energy; those of which nothing was measured are left out.
pub(super) fn panels(comparison: &Comparison) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for quantity in facts::quantities(comparison) {
        let (title, unit, groups_are, size) = kind(quantity);
        let group = Group { label: size.to_string(), bars: bars(comparison, quantity) };
        match panels.last_mut().filter(|panel| panel.title == title) {
            Some(panel) => panel.groups.push(group),
            None => panels.push(Panel { title, unit, groups_are, groups: vec![group] }),
        }
    }
    panels
}

/// The title of a quantity's chart, its unit with the better direction, what its groups differ by, and how much of that it
/// has.
fn kind(quantity: Quantity) -> (&'static str, &'static str, &'static str, u32) {
    let (at_once, of_prompt) = ("streams at the same time", "tokens of the prompt");
    match quantity {
        Quantity::Decode { streams } => {
            ("Decoding, all streams together", "tokens/s, more is better", at_once, streams)
        }
        Quantity::Prompt { tokens } => ("Prompts", "tokens/s, more is better", of_prompt, tokens),
        Quantity::Ttft { tokens } => ("Time to the first token", "ms, less is better", of_prompt, tokens),
        Quantity::Energy { streams } => {
            ("Energy of a decoded token", "J/token, less is better", at_once, streams)
        }
    }
}

fn bars(comparison: &Comparison, quantity: Quantity) -> Vec<Bar> {
    let sides = comparison.sides.iter().enumerate();
    sides
        .filter_map(|(side, of)| Some(Bar { side, figure: facts::figure_of(of, quantity)?.clone() }))
        .filter(|bar| bar.figure.mean.is_finite())
        .collect()
}

/// The class of each side, which is its colour.
pub(super) fn classes(comparison: &Comparison) -> Vec<&'static str> {
    let mut others = ["other1", "other2", "other3"].into_iter().cycle();
    let class = |kind| match kind {
        SideKind::OneBox => "box",
        SideKind::OneBoxWithOffload => "offload",
        SideKind::Cluster => "cluster",
        SideKind::Other => others.next().unwrap_or_default(),
    };
    comparison.sides.iter().map(|side| side.kind).map(class).collect()
}

/// Draws a chart in a box of `width` and [`HEIGHT`].
pub(super) fn draw(panel: &Panel, comparison: &Comparison, width: f64) -> Element {
    let (labels, classes) = (facts::side_labels(comparison), classes(comparison));
    let scale = Scale::from_zero(panel.highest());
    let (plot_width, plot_height) = (width - LEFT - 4.0, HEIGHT - TOP - BOTTOM);
    let y = |value: f64| TOP + plot_height * (1.0 - (value / scale.most).clamp(0.0, 1.0));
    let mut drawn = el("g")
        .with(words(0.0, 15.0, panel.title).class("name"))
        .with(words(0.0, 32.0, panel.unit).class("muted"));
    for tick in scale.ticks() {
        let class = if tick == 0.0 { "axis" } else { "grid" };
        drawn = drawn
            .with(line((LEFT, y(tick)), (width, y(tick))).class(class))
            .with(words(LEFT - 6.0, y(tick) + 4.0, scale.label(tick)).class("tick").at("text-anchor", "end"));
    }
    let group_width = plot_width / panel.groups.len() as f64;
    for (at, group) in panel.groups.iter().enumerate() {
        let middle = LEFT + 4.0 + group_width * (at as f64 + 0.5);
        let bar_width = (group_width * 0.78 / group.bars.len().max(1) as f64).min(WIDEST_BAR);
        let first = middle - bar_width * group.bars.len() as f64 / 2.0;
        for (place, bar) in group.bars.iter().enumerate() {
            let name = format!("{}: {}", labels[bar.side], facts::quantity_name(bar.figure.quantity));
            let x = first + bar_width * place as f64;
            drawn = drawn.with(draw_bar(bar, classes[bar.side], &name, (x, bar_width), y));
        }
        let below = words(middle, HEIGHT - BOTTOM + 17.0, &group.label).at("text-anchor", "middle");
        drawn = drawn.with(below);
    }
    let below = words(LEFT + 4.0 + plot_width / 2.0, HEIGHT - 5.0, panel.groups_are);
    drawn.with(below.class("muted").at("text-anchor", "middle"))
}

fn draw_bar(bar: &Bar, class: &str, name: &str, (x, width): (f64, f64), y: impl Fn(f64) -> f64) -> Element {
    let Figure { quantity, mean, interval, predicted, .. } = &bar.figure;
    let told = interval.map(|_| format!(", {}", facts::interval(&bar.figure))).unwrap_or_default();
    let foretold = predicted.map(|value| format!(", predicted {}", facts::short(value))).unwrap_or_default();
    let title = format!("{name}: {} {}{told}{foretold}", facts::short(*mean), facts::unit(*quantity));
    let (top, middle) = (y(*mean), x + width / 2.0);
    let body =
        el("rect").class(class).at("x", round(x + 1.0)).at("y", round(top)).at("width", round(width - 2.0));
    let mut drawn = el("g")
        .with(el("title").text(title))
        .with(body.at("height", round((y(0.0) - top).max(0.0))).at("rx", "1.5"));
    if let Some((from, to)) = interval {
        let (low, high) = (round(y(*from)), round(y(*to)));
        let half = (width * 0.18).min(5.0);
        let (left, right, middle) = (round(middle - half), round(middle + half), round(middle));
        let path = format!("M{middle} {low}V{high}M{left} {low}H{right}M{left} {high}H{right}");
        drawn = drawn.with(el("path").class("whisker").at("d", path));
    }
    if let Some(value) = predicted.filter(|value| value.is_finite()) {
        drawn = drawn.with(line((x, y(value)), (x + width, y(value))).class("predicted"));
    }
    let label = facts::short(*mean);
    if label.chars().count() as f64 * DIGIT <= width {
        let highest = [*mean, interval.map_or(0.0, |(_, to)| to), predicted.unwrap_or(0.0)];
        let above = y(highest.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max)) - 5.0;
        drawn = drawn.with(words(middle, above, label).class("value").at("text-anchor", "middle"));
    }
    drawn
}

impl Panel {
    /// The highest of what is drawn.
    fn highest(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        let values = bars.flat_map(|bar| {
            let high = bar.figure.interval.map_or(0.0, |(_, to)| to);
            [bar.figure.mean, high, bar.figure.predicted.unwrap_or(0.0)]
        });
        values.filter(|value| value.is_finite()).fold(0.0, f64::max)
    }
}

/// What colours and marks mean, in a line of `width`, with the height that it takes.
pub(super) fn legend(comparison: &Comparison, width: f64) -> (Element, f64) {
    let (labels, classes) = (facts::side_labels(comparison), classes(comparison));
    let mut drawn = el("g");
    let (mut x, mut y) = (0.0, 10.0);
    let figures = || comparison.sides.iter().flat_map(|side| &side.figures);
    let marks = [
        (figures().any(|figure| figure.interval.is_some()), "whisker", "95% interval of the mean"),
        (figures().any(|figure| figure.predicted.is_some()), "predicted", "predicted"),
    ];
    let sides = labels.iter().zip(classes).map(|(label, class)| (label.as_str(), class));
    let marks = marks.iter().filter(|(is_there, ..)| *is_there).map(|(_, class, label)| (*label, *class));
    for (label, class) in sides.chain(marks) {
        let label = cut(label, 40);
        let wide = 20.0 + label.chars().count() as f64 * CHARACTER + 18.0;
        if x > 0.0 && x + wide > width {
            (x, y) = (0.0, y + 20.0);
        }
        let sign = match class {
            "whisker" => {
                let (low, high) = (y + 2.0, y - 10.0);
                let path =
                    format!("M{0} {low}V{high}M{1} {low}H{2}M{1} {high}H{2}", x + 7.0, x + 3.0, x + 11.0);
                el("path").at("d", path)
            }
            "predicted" => line((x, y - 4.0), (x + 14.0, y - 4.0)),
            _ => el("rect").at("x", x + 1.0).at("y", y - 10.0).at("width", 12).at("height", 12).at("rx", 2),
        };
        drawn = drawn.with(sign.class(class)).with(words(x + 20.0, y, label));
        x += wide;
    }
    (drawn, y + 4.0)
}

/// Bars of how far predictions were above (to the right) or below what was measured, in percent, with the height of the
/// drawing; `None` where nothing was predicted.
pub(super) fn errors(comparison: &Comparison, width: f64) -> Option<(Element, f64)> {
    let classes = classes(comparison);
    let rows = facts::rows(comparison);
    let rows: Vec<_> =
        rows.iter().filter_map(|row| Some((row, facts::prediction_error(row.figure)?))).collect();
    let most = rows.iter().map(|(_, error)| error.abs()).fold(0.0, f64::max);
    // Errors of a few percent are not to look like large ones.
    let scale = Scale::from_zero((most * 100.0).max(10.0));
    let (middle, half) = (ROW_NAMES + (width - ROW_NAMES) / 2.0, (width - ROW_NAMES) / 2.0 - 44.0);
    let x = |percent: f64| middle + half * percent / scale.most;
    let height = 50.0 + ROW * rows.len() as f64;
    let mut drawn = el("g")
        .with(words(0.0, 15.0, "How far predictions were off").class("name"))
        .with(words(0.0, 32.0, "% of what was measured; to the right: predicted too much").class("muted"));
    for tick in [-scale.most, 0.0, scale.most] {
        let class = if tick == 0.0 { "axis" } else { "grid" };
        let sign = if tick > 0.0 { "+" } else { "" };
        let label = if tick == 0.0 { "0%".to_owned() } else { format!("{sign}{}%", scale.label(tick)) };
        drawn = drawn
            .with(line((x(tick), 44.0), (x(tick), height - 2.0)).class(class))
            .with(words(x(tick), height + 12.0, label).class("tick").at("text-anchor", "middle"));
    }
    let mut before = None;
    for (at, (row, error)) in rows.iter().enumerate() {
        let y = 48.0 + ROW * at as f64;
        let (zero, end) = (x(0.0), x(error * 100.0));
        if before.replace(row.quantity) != Some(row.quantity) {
            drawn = drawn.with(words(0.0, y + 13.0, facts::quantity_name(row.quantity)));
        }
        let bar = el("rect").class(classes[row.side]).at("x", round(zero.min(end))).at("y", round(y + 3.0));
        let (beside, anchor) = if *error < 0.0 { (end - 5.0, "end") } else { (end + 5.0, "start") };
        let value = words(beside, y + 13.0, facts::error_in_words(row.figure)).class("value");
        drawn = drawn
            .with(bar.at("width", round((end - zero).abs().max(0.5))).at("height", "13").at("rx", "1.5"))
            .with(value.at("text-anchor", anchor));
    }
    (!rows.is_empty()).then_some((drawn, height + 18.0))
}

/// An axis from 0 with round ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    most: f64,
    step: f64,
}

impl Scale {
    /// An axis of three to six ticks on which `highest` has its place.
    fn from_zero(highest: f64) -> Scale {
        let highest = if highest.is_finite() && highest > 0.0 { highest } else { 1.0 };
        let size = 10f64.powf((highest / 5.0).log10().floor());
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * size);
        let step = steps.into_iter().find(|step| highest / step <= 5.0).unwrap_or(10.0 * size);
        Scale { most: (highest / step).ceil() * step, step }
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        (0..=(self.most / self.step).round() as u32).map(move |tick| f64::from(tick) * self.step)
    }

    /// A tick's number, with as many digits as tell ticks apart.
    fn label(self, tick: f64) -> String {
        let digits = (0..12).find(|digits| {
            let shifted = self.step * 10f64.powi(*digits);
            (shifted - shifted.round()).abs() < 1e-6 * shifted
        });
        format!("{tick:.*}", digits.unwrap_or(12) as usize)
    }
}

/// Text in lines of at most `most` characters, broken between words where that is possible.
pub(super) fn lines(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let fits = most.saturating_sub(lines.last().map_or(0, |line| line.chars().count() + 1));
            let line = lines.last_mut().filter(|line| line.is_empty() || rest.len() <= fits);
            let Some(line) = line else {
                lines.push(String::new());
                continue;
            };
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(rest.drain(..rest.len().min(most.max(1))));
        }
    }
    lines
}

/// Text of at most so many characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// Text that begins at a place.
pub(super) fn words(x: f64, y: f64, text: impl std::fmt::Display) -> Element {
    el("text").at("x", round(x)).at("y", round(y)).text(text)
}

fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> Element {
    el("line").at("x1", round(x1)).at("y1", round(y1)).at("x2", round(x2)).at("y2", round(y2))
}

/// A tenth of a pixel is as exact as anybody sees.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample::comparison;

    #[test]
    fn axes_begin_at_0_and_hold_what_is_drawn() {
        for highest in [0.0, 1e-6, 0.07, 1.0, 9.99, 93.1, 278.8, 1103.0, 99_999.0, f64::NAN, f64::INFINITY] {
            let scale = Scale::from_zero(highest);
            let ticks: Vec<f64> = scale.ticks().collect();
            assert_eq!(ticks[0], 0.0, "{highest}: {scale:?}");
            assert!((3..=7).contains(&ticks.len()), "{highest}: {ticks:?}");
            assert!(!highest.is_finite() || scale.most >= highest, "{highest}: {scale:?}");
            let labels: std::collections::BTreeSet<String> =
                ticks.iter().map(|tick| scale.label(*tick)).collect();
            assert_eq!(labels.len(), ticks.len(), "{highest}: {labels:?}");
        }
    }

    #[test]
    fn a_bar_twice_as_high_stands_for_twice_as_much() {
        let comparison = comparison();
        let panel = &panels(&comparison)[0];
        let drawn = draw(panel, &comparison, 900.0).to_string();
        let heights: Vec<f64> = drawn
            .split("<rect class=\"")
            .skip(1)
            .map(|rect| rect.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        let means: Vec<f64> =
            panel.groups.iter().flat_map(|group| &group.bars).map(|bar| bar.figure.mean).collect();
        assert_eq!((heights.len(), means.len()), (15, 15));
        for (height, mean) in heights.iter().zip(&means) {
            let of_first = (height / heights[0]) / (mean / means[0]);
            assert!(
                (of_first - 1.0).abs() < 0.01,
                "{height} px for {mean}, {} px for {}",
                heights[0],
                means[0]
            );
        }
    }

    #[test]
    fn charts_are_of_what_was_measured_alone() {
        let mut comparison = comparison();
        assert_eq!(
            panels(&comparison).iter().map(|panel| panel.title).collect::<Vec<_>>(),
            ["Decoding, all streams together", "Prompts", "Time to the first token"]
        );
        for figure in comparison.sides.iter_mut().flat_map(|side| &mut side.figures) {
            figure.predicted = None;
        }
        assert!(errors(&comparison, 400.0).is_none());
        assert!(!legend(&comparison, 400.0).0.to_string().contains("predicted"));
    }

    #[test]
    fn lines_hold_at_most_so_many_characters() {
        assert_eq!(lines("one two three", 7), ["one two", "three"]);
        assert_eq!(lines("a verylongword b", 5), ["a", "veryl", "ongwo", "rd b"]);
        assert_eq!(lines("", 5), [""]);
        assert_eq!((cut("abcdef", 4), cut("abcd", 4)), ("abc…".to_owned(), "abcd".to_owned()));
    }
}

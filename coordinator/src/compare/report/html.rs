//! One page with all of it, as a file that needs nothing else.

use brigade_shard::units::Bytes;

use super::chart::{self, CHART_CSS, HEIGHT};
use super::facts::{self, LEGEND, SHARES_LEGEND};
use super::markup::{Element, el};
use super::svg;
use crate::compare::Comparison;

/// What the page may do: show itself.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Widths of a chart in pixels: in a column, or on a phone; and over the whole page.
const COLUMN: f64 = 420.0;
const PAGE: f64 = 900.0;

const PAGE_CSS: &str = "
*{box-sizing:border-box}
body{margin:0;padding:24px 16px 40px;background:var(--page);color:var(--text);
font:14px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif;font-variant-numeric:tabular-nums;
-webkit-text-size-adjust:100%}
:root{--page:#f5f6f8}
@media (prefers-color-scheme:dark){:root{--page:#0e1115}}
main{max-width:956px;margin:0 auto;display:grid;grid-template-columns:minmax(0,1fr);gap:16px}
h1{font-size:22px;line-height:1.25;letter-spacing:-.01em;margin:0;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 10px}
p{margin:0}
.muted{color:var(--muted)}
.small{font-size:12.5px}
.panel{background:var(--ground);border:1px solid var(--line);border-radius:10px;padding:16px}
.verdict{font-size:16px;border-left:4px solid var(--accent);overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:3px 16px;margin:0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
ul{margin:0;padding-left:20px;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:20px 36px}
.charts .wide{grid-column:1/-1}
.chart{display:block;width:100%;height:auto;overflow:visible}
.narrow-only{display:none}
.scroll{overflow-x:auto}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:5px 14px 5px 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:middle}
thead th{color:var(--muted);font-weight:500;font-size:12px}
tbody th{font-weight:500}
tbody tr.first th,tbody tr.first td{border-top:1px solid var(--muted)}
th:last-child,td:last-child{padding-right:0}
td.number,th.number{text-align:right}
.swatch{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:7px;vertical-align:-1px}
.swatch svg,.bar{display:block;width:100%;height:100%}
.bar{min-width:120px;height:12px}
.track{fill:var(--track)}
.weights,.busy{fill:var(--accent)}
.cache{fill:var(--accent);fill-opacity:.6}
.workspace{fill:var(--accent);fill-opacity:.3}
.resident{fill:var(--text)}
.sending{fill:var(--other1)}
.note{margin-top:10px}
summary{cursor:pointer}
@media (max-width:640px){
body{padding:12px 8px 24px}
.panel{padding:12px}
.charts{grid-template-columns:minmax(0,1fr)}
.wide-only{display:none}.narrow-only{display:block}
dl{grid-template-columns:minmax(0,1fr)}dd{margin-bottom:6px}
}
@media print{
:root{color-scheme:light;--page:#fff;--ground:#fff;--text:#000;--muted:#444;--line:#bbb;--track:#e4e4e4;--accent:#0a5fb4;
--box:#8793a3;--offload:#b39245;--cluster:#0a5fb4;--other1:#c2571a;--other2:#1c8069;--other3:#8a4fb0}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{padding:0;font-size:11px}
.panel{border:0;padding:4px 0}
h2,.chart,tr,.verdict{break-inside:avoid}
h2{break-after:avoid}
.scroll{overflow:visible}
table{font-size:10px}
th,td{padding-right:8px}
}
";

/// The comparison as a page of its own: no script, nothing from elsewhere, for screens from 360 pixels on and for paper.
pub fn html(comparison: &Comparison) -> String {
    let title = svg::title(comparison);
    let head = el("head")
        .with(el("meta").at("charset", "utf-8"))
        .with(el("meta").at("http-equiv", "Content-Security-Policy").at("content", POLICY))
        .with(el("meta").at("name", "viewport").at("content", "width=device-width, initial-scale=1"))
        .with(el("meta").at("name", "color-scheme").at("content", "light dark"))
        .with(el("title").text(format!("{title} · Brigade")))
        .with(el("style").style(CHART_CSS).style(PAGE_CSS));
    let main = el("main")
        .with(el("header").with(el("h1").text(title)))
        .with(el("p").class("panel verdict").text(&comparison.verdict.text))
        .with(notes(comparison))
        .all(charts(comparison))
        .all(figures(comparison))
        .all(predictions(comparison))
        .all(shares(comparison))
        .all(memory(comparison))
        .with(setting(comparison))
        .all(samples(comparison));
    let page = el("html").at("lang", "en").with(head).with(el("body").with(main));
    format!("<!doctype html>\n{page}\n")
}

/// A part of the page with its heading.
fn panel(title: &str) -> Element {
    el("section").class("panel").with(el("h2").text(title))
}

fn notes(comparison: &Comparison) -> Element {
    let notes = facts::notes(comparison);
    let items = notes.iter().map(|note| el("li").text(note));
    if notes.is_empty() {
        el("p").class("muted small").text("Nothing was left out.")
    } else {
        el("ul").class("small").all(items)
    }
}

fn charts(comparison: &Comparison) -> Option<Element> {
    let panels = chart::panels(comparison);
    let mut grid = el("div").class("charts");
    let (legend, height) = chart::legend(comparison, PAGE);
    grid = grid.with(picture(legend, (PAGE, height)).class("wide wide-only").at("aria-hidden", "true"));
    let (legend, height) = chart::legend(comparison, COLUMN);
    grid = grid.with(picture(legend, (COLUMN, height)).class("narrow-only").at("aria-hidden", "true"));
    for (at, panel) in panels.iter().enumerate() {
        let draw = |width| {
            let drawn = chart::draw(panel, comparison, width);
            let name = format!("{}, in {}. The table below has the figures.", panel.title, panel.unit);
            picture(drawn, (width, HEIGHT)).at("role", "img").at("aria-label", name)
        };
        if at == 0 {
            grid = grid.with(el("div").class("wide wide-only").with(draw(PAGE)));
            grid = grid.with(el("div").class("narrow-only").with(draw(COLUMN)));
        } else {
            grid = grid.with(el("div").with(draw(COLUMN)));
        }
    }
    (!panels.is_empty()).then(|| panel("Measured and predicted").with(grid))
}

/// A drawing as a picture that is as wide as its place.
fn picture(drawn: Element, (width, height): (f64, f64)) -> Element {
    let picture = el("svg").at("viewBox", format!("0 0 {width:.0} {height:.0}")).with(drawn);
    el("div").with(picture.class("chart"))
}

fn figures(comparison: &Comparison) -> Option<Element> {
    let (labels, classes) = (facts::side_labels(comparison), chart::classes(comparison));
    let rows = facts::rows(comparison);
    let mut body = el("tbody");
    let mut before = None;
    for row in &rows {
        let is_first = before.replace(row.quantity) != Some(row.quantity);
        let name = if is_first { facts::quantity_name(row.quantity) } else { String::new() };
        let measured = format!("{} {}", facts::short(row.figure.mean), facts::unit(row.quantity));
        let line = el("tr")
            .class(if is_first { "first" } else { "more" })
            // Rows below the first are of the same quantity, which a reader of one row is told as well.
            .with(if is_first { row_head(&name) } else { el("td").text("") })
            .with(el("td").with(swatch(classes[row.side])).text(&labels[row.side]))
            .with(number(measured))
            .with(number(facts::interval(row.figure)))
            .with(number(facts::ratio(row)))
            .with(el("td").text(facts::outcome(row)))
            .with(number(row.figure.predicted.map_or("-".to_owned(), facts::short)))
            .with(number(facts::error_in_words(row.figure)));
        body = body.with(line);
    }
    let columns = [
        ("What", false),
        ("Side", false),
        ("Measured", true),
        ("95% interval", true),
        ("Ratio", true),
        ("", false),
        ("Predicted", true),
        ("Error", true),
    ];
    let table = el("table").with(head(&columns)).with(body);
    let section = panel("Figures").with(scroll("Figures", table));
    (!rows.is_empty()).then(|| section.with(el("p").class("muted small note").text(LEGEND)))
}

fn predictions(comparison: &Comparison) -> Option<Element> {
    let (wide, height) = chart::errors(comparison, PAGE)?;
    let (narrow, _) = chart::errors(comparison, COLUMN)?;
    let name =
        "How far predictions were off, in percent of what was measured. The table above has the figures.";
    let draw = |drawn, width| picture(drawn, (width, height)).at("role", "img").at("aria-label", name);
    let section = panel("Predictions");
    Some(
        section
            .with(el("div").class("wide-only").with(draw(wide, PAGE)))
            .with(el("div").class("narrow-only").with(draw(narrow, COLUMN))),
    )
}

fn shares(comparison: &Comparison) -> Option<Element> {
    let (labels, classes) = (facts::side_labels(comparison), chart::classes(comparison));
    let loads = facts::shares(comparison);
    let mut body = el("tbody");
    let mut before = None;
    for (side, load) in &loads {
        for stage in &load.stages {
            let is_first = before.replace(load.quantity) != Some(load.quantity);
            let name = if is_first { facts::quantity_name(load.quantity) } else { String::new() };
            let bar = bar(1.0).with(part("busy", 0.0, stage.busy, (0.0, 8.0))).with(part(
                "sending",
                0.0,
                stage.wire,
                (9.0, 3.0),
            ));
            let line = el("tr")
                .class(if is_first { "first" } else { "more" })
                .with(if is_first { row_head(&name) } else { el("td").text("") })
                .with(el("td").with(swatch(classes[*side])).text(&labels[*side]))
                .with(el("td").text(&stage.worker))
                .with(el("td").with(bar))
                .with(number(facts::percent(stage.busy)))
                .with(number(facts::percent(stage.idle)))
                .with(number(facts::percent(stage.wire)))
                .with(number(facts::percent(load.wire)));
            body = body.with(line);
        }
    }
    let columns = [
        ("Load", false),
        ("Side", false),
        ("Worker", false),
        ("", false),
        ("Compute", true),
        ("Idle", true),
        ("Sending", true),
        ("Links", true),
    ];
    let table = el("table").with(head(&columns)).with(body);
    let section = panel("Where the stages' time went").with(scroll("Where the stages' time went", table));
    (!loads.is_empty()).then(|| section.with(el("p").class("muted small note").text(SHARES_LEGEND)))
}

fn memory(comparison: &Comparison) -> Option<Element> {
    let (labels, classes) = (facts::side_labels(comparison), chart::classes(comparison));
    let rows = facts::memory(comparison);
    let most = |row: &facts::MemoryRow| {
        row.budget.0.max(row.planned().0).max(row.resident.map_or(0, |bytes| bytes.0))
    };
    // One scale for all, so that bars can be compared.
    let whole = rows.iter().map(most).max().unwrap_or(0).max(1) as f64;
    let line = |row: &facts::MemoryRow| {
        let planned = |bytes: Bytes| facts::size((!row.holds.is_empty()).then_some(bytes));
        let share = |bytes: Bytes| bytes.0 as f64 / whole;
        let (weights, cache) = (share(row.weights), share(row.cache));
        let mut bar = bar(share(row.budget))
            .with(part("weights", 0.0, weights, (0.0, 12.0)))
            .with(part("cache", weights, cache, (0.0, 12.0)))
            .with(part("workspace", weights + cache, share(row.workspace), (0.0, 12.0)));
        if let Some(resident) = row.resident {
            bar = bar.with(part("resident", (share(resident) - 0.004).max(0.0), 0.008, (0.0, 12.0)));
        }
        el("tr")
            .with(row_head("").with(swatch(classes[row.side])).text(&labels[row.side]))
            .with(el("td").text(&row.worker))
            .with(el("td").text(&row.holds))
            .with(el("td").with(bar))
            .with(number(planned(row.weights)))
            .with(number(planned(row.cache)))
            .with(number(planned(row.planned())))
            .with(number(planned(row.budget)))
            .with(number(facts::size(row.resident)))
    };
    let columns = [
        ("Side", false),
        ("Worker", false),
        ("Holds", false),
        ("", false),
        ("Weights", true),
        ("Cache", true),
        ("Planned", true),
        ("Budget", true),
        ("Resident", true),
    ];
    let table = el("table").with(head(&columns)).with(el("tbody").all(rows.iter().map(line)));
    let legend = "Bars: weights, cache and workspace as they were planned, from dark to light, within the budget; the line is the \
                  most that the worker's process was seen to have resident.";
    let section = panel("Memory").with(scroll("Memory", table));
    (!rows.is_empty()).then(|| section.with(el("p").class("muted small note").text(legend)))
}

fn setting(comparison: &Comparison) -> Element {
    let mut facts = facts::setting(comparison);
    for (side, label) in comparison.sides.iter().zip(facts::side_labels(comparison)) {
        let Some(plan) = &side.plan else { continue };
        let stages = plan.stages.iter().map(|stage| format!("{}: {}", stage.worker, stage.shard));
        let stages = stages.collect::<Vec<String>>().join("; ");
        let context = format!("context {} tokens, cache {} tokens", plan.context, plan.cache_tokens);
        facts.push(("plan", format!("{label}: {} layers, {context}; {stages}", plan.layers)));
        if !plan.bottleneck.is_empty() {
            facts.push(("bottleneck", format!("{label}: {}", plan.bottleneck)));
        }
        facts.extend(plan.notes.iter().map(|note| ("note", format!("{label}: {note}"))));
    }
    let facts = facts.iter().flat_map(|(word, what)| [el("dt").text(word), el("dd").text(what)]);
    panel("What was compared").with(el("dl").all(facts))
}

/// Every round's values, so that nobody has to believe a mean.
fn samples(comparison: &Comparison) -> Option<Element> {
    let labels = facts::side_labels(comparison);
    let rows = facts::rows(comparison);
    let line = |row: &facts::Row<'_>| {
        let samples: Vec<String> = row.figure.samples.iter().map(|value| facts::short(*value)).collect();
        el("tr")
            .with(row_head(&facts::quantity_name(row.quantity)))
            .with(el("td").text(&labels[row.side]))
            .with(el("td").text(facts::unit(row.quantity)))
            .with(el("td").text(samples.join(", ")))
    };
    let columns = [("What", false), ("Side", false), ("Unit", false), ("Rounds, in order", false)];
    let table = el("table").with(head(&columns)).with(el("tbody").all(rows.iter().map(line)));
    let details = el("details").with(el("summary").text("Every round")).with(scroll("Every round", table));
    (!rows.is_empty()).then(|| el("section").class("panel").with(details))
}

fn head(columns: &[(&str, bool)]) -> Element {
    let cell = |(name, is_number): &(&str, bool)| {
        // A heading without words is none.
        let cell = if name.is_empty() { el("td") } else { el("th").at("scope", "col") };
        if *is_number { cell.class("number").text(name) } else { cell.text(name) }
    };
    el("thead").with(el("tr").all(columns.iter().map(cell)))
}

fn row_head(name: &str) -> Element {
    el("th").at("scope", "row").text(name)
}

fn number(text: String) -> Element {
    el("td").class("number").text(text)
}

/// A table that scrolls within the page where it is wider.
fn scroll(name: &str, table: Element) -> Element {
    el("div").class("scroll").at("tabindex", 0).at("role", "region").at("aria-label", name).with(table)
}

fn swatch(class: &str) -> Element {
    let square = el("svg").at("viewBox", "0 0 10 10").at("aria-hidden", "true");
    let square = square.with(el("rect").class(class).at("width", 10).at("height", 10));
    el("span").class("swatch").with(square)
}

/// A bar whose track is so long, as a share of its place.
fn bar(track: f64) -> Element {
    let bar = el("svg")
        .class("bar")
        .at("viewBox", "0 0 1000 12")
        .at("preserveAspectRatio", "none")
        .at("aria-hidden", "true");
    bar.with(part("track", 0.0, track, (0.0, 12.0)))
}

/// A part of a bar: where it begins and how long it is, as shares; and where and how high.
fn part(class: &str, from: f64, length: f64, (y, height): (f64, f64)) -> Element {
    let thousandths =
        |share: f64| if share.is_finite() { (share.clamp(0.0, 1.0) * 1000.0).round() } else { 0.0 };
    el("rect")
        .class(class)
        .at("x", thousandths(from))
        .at("width", thousandths(length))
        .at("y", y)
        .at("height", height)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::markup::tags;
    use crate::compare::report::sample::{comparison, hostile};

    #[test]
    fn the_page_is_whole_and_asks_for_nothing() {
        let page = html(&comparison());
        let tags = tags(&page);
        assert_eq!(tags[0], "html");
        assert_eq!(tags.iter().filter(|tag| *tag == "section").count(), 7, "{tags:?}");
        let outside = page.replace("http://other:8080", "");
        for banned in
            ["http:", "https:", "url(", "@import", "href", "src=", "<script", " style=", "onclick", "<link"]
        {
            assert!(!outside.contains(banned), "`{banned}` in the page");
        }
        assert!(page.contains("default-src &#39;none&#39;"), "it says so itself");
        for told in [
            "Do not split for one stream",
            "decode, 16 streams",
            "layers 16..30 + head",
            "91.2, 93.1, 95.0",
            "+15.6%",
            "seed 7",
        ] {
            assert!(page.contains(told), "`{told}` is missing");
        }
    }

    #[test]
    fn names_stay_text() {
        let page = html(&hostile());
        let tags = tags(&page);
        assert!(tags.iter().all(|tag| !["script", "img", "b"].contains(&tag.as_str())), "{tags:?}");
        assert_eq!(page.matches("</style>").count(), 1, "no name ends the style sheet");
        assert!(!page.contains("onerror=alert(1)>") && !page.contains('\u{1b}'));
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "the name is there");
    }

    #[test]
    fn parts_without_figures_are_left_out() {
        let mut comparison = comparison();
        comparison.sides.clear();
        let tags = tags(&html(&comparison));
        assert_eq!(tags.iter().filter(|tag| *tag == "section").count(), 1, "what was compared: {tags:?}");
    }
}

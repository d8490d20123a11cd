//! For a terminal.

use std::fmt::Write as _;

use super::facts::{self, LEGEND, SHARES_LEGEND};
use crate::compare::Comparison;
use crate::render::{Align, Table};

/// Longest name of a side in a column; what is longer is cut.
const LONGEST_SIDE: usize = 28;

/// The comparison as lines: the verdict, what was compared, the figures, memory, where stages' time went, and what to mind.
pub fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut line = |word: &str, what: &str| {
        // Names come from other machines. Writing to a String cannot fail.
        let clean: String = what.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let _ = writeln!(text, "{word:<12} {clean}");
    };
    line("verdict", &comparison.verdict.text);
    for (word, what) in facts::setting(comparison) {
        line(word, &what);
    }
    for note in facts::notes(comparison) {
        line("note", &note);
    }
    let labels: Vec<String> = facts::side_labels(comparison).iter().map(|label| cut(label)).collect();
    for part in [figures(comparison, &labels), memory(comparison, &labels), shares(comparison, &labels)] {
        if !part.is_empty() {
            let _ = write!(text, "\n{part}");
        }
    }
    let _ = write!(text, "\n{}", wrapped(LEGEND));
    if comparison.sides.iter().any(|side| !side.shares.is_empty()) {
        text.push_str(&wrapped(SHARES_LEGEND));
    }
    text
}

fn figures(comparison: &Comparison, labels: &[String]) -> Table {
    let mut table = Table::new(&[
        ("WHAT", Align::Left),
        ("SIDE", Align::Left),
        ("MEASURED", Align::Right),
        ("", Align::Left),
        ("95% INTERVAL", Align::Right),
        ("RATIO", Align::Right),
        ("", Align::Left),
        ("PREDICTED", Align::Right),
        ("ERROR", Align::Right),
    ]);
    let mut before = None;
    for row in facts::rows(comparison) {
        let is_first = before.replace(row.quantity) != Some(row.quantity);
        table.row([
            if is_first { facts::quantity_name(row.quantity) } else { String::new() },
            labels[row.side].clone(),
            facts::short(row.figure.mean),
            facts::unit(row.quantity).to_owned(),
            facts::interval(row.figure),
            facts::ratio(&row),
            facts::outcome(&row).to_owned(),
            row.figure.predicted.map_or("-".to_owned(), facts::short),
            facts::error_in_words(row.figure),
        ]);
    }
    table
}

fn memory(comparison: &Comparison, labels: &[String]) -> Table {
    let mut table = Table::new(&[
        ("MEMORY", Align::Left),
        ("WORKER", Align::Left),
        ("HOLDS", Align::Left),
        ("WEIGHTS", Align::Right),
        ("CACHE", Align::Right),
        ("PLANNED", Align::Right),
        ("BUDGET", Align::Right),
        ("RESIDENT", Align::Right),
    ]);
    let mut before = None;
    for row in facts::memory(comparison) {
        let is_first = before.replace(row.side) != Some(row.side);
        let planned = |bytes| facts::size((!row.holds.is_empty()).then_some(bytes));
        table.row([
            if is_first { labels[row.side].clone() } else { String::new() },
            row.worker.clone(),
            row.holds.clone(),
            planned(row.weights),
            planned(row.cache),
            planned(row.planned()),
            planned(row.budget),
            facts::size(row.resident),
        ]);
    }
    table
}

fn shares(comparison: &Comparison, labels: &[String]) -> Table {
    let mut table = Table::new(&[
        ("STAGES' TIME", Align::Left),
        ("SIDE", Align::Left),
        ("WORKER", Align::Left),
        ("COMPUTE", Align::Right),
        ("IDLE", Align::Right),
        ("SENDING", Align::Right),
        ("LINKS", Align::Right),
    ]);
    let mut before = None;
    for (side, load) in facts::shares(comparison) {
        for (at, stage) in load.stages.iter().enumerate() {
            let is_first = before.replace(load.quantity) != Some(load.quantity);
            let first = |text: String| if at == 0 { text } else { String::new() };
            table.row([
                if is_first { facts::quantity_name(load.quantity) } else { String::new() },
                first(labels[side].clone()),
                stage.worker.clone(),
                facts::percent(stage.busy),
                facts::percent(stage.idle),
                facts::percent(stage.wire),
                first(facts::percent(load.wire)),
            ]);
        }
    }
    table
}

fn cut(label: &str) -> String {
    match label.char_indices().nth(LONGEST_SIDE) {
        Some(_) => label.chars().take(LONGEST_SIDE - 1).chain(['…']).collect(),
        None => label.to_owned(),
    }
}

/// Text in lines of at most 100 characters.
fn wrapped(text: &str) -> String {
    super::chart::lines(text, 100).join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample::comparison;

    #[test]
    fn a_terminal_shows_figures_memory_and_time() {
        let text = table(&comparison());
        println!("{text}");
        assert!(text.starts_with("verdict      Do not split for one stream"), "{text}");
        let line = |begin: &str| {
            let found = text.lines().find(|line| line.starts_with(begin));
            found.unwrap_or_else(|| panic!("no line begins with {begin} in\n{text}")).to_owned()
        };
        let cells = |line: String| {
            line.split("  ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .map(str::to_owned)
                .collect::<Vec<String>>()
        };
        assert_eq!(
            cells(line("decode, 1 stream")),
            ["decode, 1 stream", "one box", "93.1", "tokens/s", "88.5 to 97.8", "-", "96.0", "+3.1%"]
        );
        assert!(text.contains("0.56x   worse "), "{text}");
        assert!(
            text.contains("no difference seen"),
            "the cluster's 4 streams are as fast as one box's\n{text}"
        );
        assert_eq!(
            cells(line("one box   anna")),
            [
                "one box",
                "anna",
                "embedding + layers 0..30 + head",
                "90.0 MiB",
                "60.0 MiB",
                "162.0 MiB",
                "256.0 MiB",
                "210.0 MiB"
            ]
        );
        assert!(text.contains("44.0%   56.0%      1.2%    3.1%"), "{text}");
        assert!(text.contains("note         left out: energy: no worker tells what it draws"), "{text}");
        let widest =
            text.lines().skip_while(|line| !line.starts_with("WHAT")).map(|line| line.chars().count()).max();
        assert!(widest <= Some(140), "{widest:?} characters in\n{text}");
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        let mut comparison = comparison();
        comparison.model = "m\u{1b}[2J".to_owned();
        comparison.sides[1].name = "cluster: \u{7}".to_owned();
        comparison.sides[1].resident.push(("evil\u{1b}]0;x".to_owned(), 1));
        let text = table(&comparison);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn nothing_measured_is_still_a_report() {
        let mut comparison = comparison();
        comparison.sides.clear();
        let text = table(&comparison);
        assert!(text.contains("verdict") && !text.contains("WHAT"), "{text}");
    }
}

//! For a README, an issue or a chat.

use std::fmt::Write as _;

use super::facts::{self, LEGEND, SHARES_LEGEND};
use crate::compare::Comparison;

/// The comparison as GitHub's Markdown: headings, tables and lists; names are shown as they are written.
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = format!("## {}, one box against a cluster\n\n", plain(&comparison.model));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "**{}**\n", plain(&comparison.verdict.text));
    for (word, what) in facts::setting(comparison) {
        let _ = writeln!(text, "- {word}: {}", plain(&what));
    }
    for note in facts::notes(comparison) {
        let _ = writeln!(text, "- {}", plain(&note));
    }
    let labels = facts::side_labels(comparison);
    figures(&mut text, comparison, &labels);
    memory(&mut text, comparison, &labels);
    shares(&mut text, comparison, &labels);
    text
}

fn figures(text: &mut String, comparison: &Comparison, labels: &[String]) {
    let rows = facts::rows(comparison);
    if rows.is_empty() {
        return;
    }
    text.push_str("\n### Measured and predicted\n\n");
    head(text, &["what", "side", "measured", "95% interval", "ratio", "", "predicted", "error"], 2);
    for row in rows {
        let measured = format!("{} {}", facts::short(row.figure.mean), facts::unit(row.quantity));
        let cells = [
            facts::quantity_name(row.quantity),
            labels[row.side].clone(),
            measured,
            facts::interval(row.figure),
            facts::ratio(&row),
            facts::outcome(&row).to_owned(),
            row.figure.predicted.map_or("-".to_owned(), facts::short),
            facts::error_in_words(row.figure),
        ];
        line(text, &cells);
    }
    let _ = writeln!(text, "\n{LEGEND}");
}

fn memory(text: &mut String, comparison: &Comparison, labels: &[String]) {
    let rows = facts::memory(comparison);
    if rows.is_empty() {
        return;
    }
    text.push_str("\n### Memory\n\n");
    let columns = ["side", "worker", "holds", "weights", "cache", "planned", "budget", "resident"];
    head(text, &columns, 3);
    for row in rows {
        let planned = |bytes| facts::size((!row.holds.is_empty()).then_some(bytes));
        let cells = [
            labels[row.side].clone(),
            row.worker.clone(),
            row.holds.clone(),
            planned(row.weights),
            planned(row.cache),
            planned(row.planned()),
            planned(row.budget),
            facts::size(row.resident),
        ];
        line(text, &cells);
    }
}

fn shares(text: &mut String, comparison: &Comparison, labels: &[String]) {
    let loads = facts::shares(comparison);
    if loads.is_empty() {
        return;
    }
    text.push_str("\n### Where the stages' time went\n\n");
    head(text, &["load", "side", "worker", "compute", "idle", "sending", "links"], 3);
    for (side, load) in loads {
        for stage in &load.stages {
            let cells = [
                facts::quantity_name(load.quantity),
                labels[side].clone(),
                stage.worker.clone(),
                facts::percent(stage.busy),
                facts::percent(stage.idle),
                facts::percent(stage.wire),
                facts::percent(load.wire),
            ];
            line(text, &cells);
        }
    }
    let _ = writeln!(text, "\n{SHARES_LEGEND}");
}

/// A table's head, of which the first `words` columns hold words and the others numbers.
fn head(text: &mut String, columns: &[&str], words: usize) {
    let rules = (0..columns.len()).map(|at| if at < words { "---" } else { "--:" });
    let rules: Vec<&str> = rules.collect();
    let _ = writeln!(text, "| {} |\n| {} |", columns.join(" | "), rules.join(" | "));
}

fn line(text: &mut String, cells: &[String]) {
    let cells: Vec<String> = cells.iter().map(|cell| plain(cell)).collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// Text that Markdown shows as it is: neither formatting nor markup, links or mentions come of it.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut before = ' ';
    for c in text.chars() {
        match c {
            c if c.is_control() => plain.push('?'),
            '&' => plain.push_str("&amp;"),
            '<' => plain.push_str("&lt;"),
            '>' => plain.push_str("&gt;"),
            // GitHub makes a mention of it even behind a backslash.
            '@' => plain.push_str("&#64;"),
            '\\' | '|' | '`' | '*' | '[' | ']' | '~' | '#' | '!' => plain.extend(['\\', c]),
            // Within a word it formats nothing.
            '_' if !before.is_alphanumeric() => plain.extend(['\\', c]),
            c => plain.push(c),
        }
        before = c;
    }
    // What looks like an address becomes a link otherwise.
    plain.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample::comparison;

    #[test]
    fn tables_have_as_many_cells_as_columns() {
        let mut comparison = comparison();
        comparison.sides[1].resident.push(("a|b\nc".to_owned(), 5));
        let text = markdown(&comparison);
        println!("{text}");
        let mut tables = 0;
        for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
            let cells = |line: &str| line.replace("\\|", "").matches('|').count();
            let columns = table.lines().next().map(cells);
            for line in table.lines() {
                assert_eq!(Some(cells(line)), columns, "{line}\n{text}");
            }
            tables += 1;
        }
        assert_eq!(tables, 3, "{text}");
        assert!(text.contains("**Do not split for one stream"), "{text}");
        assert!(text.contains("| decode, 1 stream | cluster | 52.0 tokens/s | 49.4 to 54.6 | 0.56x | worse | 60.1 | +15.6% |"), "{text}");
        assert!(text.contains("a\\|b?c"), "{text}");
    }

    #[test]
    fn names_format_nothing() {
        for (name, shown) in [
            ("<img src=x>", "&lt;img src=x&gt;"),
            ("[a](http://b)", "\\[a\\](http:&#47;&#47;b)"),
            ("*_`|@x", "\\*\\_\\`\\|&#64;x"),
            ("Q4_K_M", "Q4_K_M"),
            ("line\nbreak", "line?break"),
        ] {
            assert_eq!(plain(name), shown);
        }
    }
}

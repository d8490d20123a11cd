//! Earlier comparisons, one a line.

use super::facts::{date, percent, short};
use crate::compare::history::{HistoryEntry, HistorySide};
use crate::render::{Align, Table};

/// Earlier comparisons as a table, in the order given; a line for each side.
pub fn history_table(entries: &[HistoryEntry]) -> String {
    if entries.is_empty() {
        return "No comparison has been kept yet: `brigade compare` makes one.\n".to_owned();
    }
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("WHEN (UTC)", Align::Left),
        ("MODEL", Align::Left),
        ("SIDE", Align::Left),
        ("ONE STREAM", Align::Right),
        ("MOST STREAMS", Align::Right),
        ("PREDICTIONS OFF BY", Align::Right),
        ("SPLIT", Align::Left),
    ]);
    for entry in entries {
        for (at, side) in entry.sides.iter().enumerate() {
            let first = |text: String| if at == 0 { text } else { String::new() };
            table.row([
                first(entry.id.to_string()),
                first(date(entry.began_unix_s)),
                first(super::chart::cut(&entry.model, 40)),
                super::chart::cut(&side.name, 40),
                side.one_stream.map_or("-".to_owned(), short),
                most_streams(side),
                first(entry.prediction_error.map_or("-".to_owned(), percent)),
                first(split(entry)),
            ]);
        }
    }
    format!(
        "{table}\nDecoding in tokens/s; how much predictions were off on average; whether splitting was worth it.\n"
    )
}

/// Earlier comparisons as JSON.
///
/// # Errors
/// Where a figure cannot be written.
pub fn history_json(entries: &[HistoryEntry]) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(entries).map(|text| text + "\n")
}

fn most_streams(side: &HistorySide) -> String {
    side.most_streams
        .map_or("-".to_owned(), |most| format!("{} ({} streams)", short(most.tokens_per_s), most.streams))
}

/// Whether splitting was worth it, in a few words.
fn split(entry: &HistoryEntry) -> String {
    let words = match (entry.split_for_one_stream, entry.split_for_many_streams) {
        (Some(true), Some(true)) => "yes",
        (Some(false), Some(false)) => "no",
        (Some(false), Some(true)) => "for many streams",
        (Some(true), Some(false)) => "for one stream",
        (Some(true), None) => "for one stream; many: open",
        (Some(false), None) => "not for one stream; many: open",
        (None, Some(true)) => "for many streams; one: open",
        (None, Some(false)) => "not for many streams; one: open",
        (None, None) => "open",
    };
    if entry.disturbed { format!("{words} (disturbed)") } else { words.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample::{comparison, hostile};

    #[test]
    fn each_comparison_has_a_line_for_each_side() {
        let entries = [HistoryEntry::new(2, &comparison()), HistoryEntry::new(1, &hostile())];
        let text = history_table(&entries);
        println!("{text}");
        let cells = |line: &str| {
            line.split("   ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .map(str::to_owned)
                .collect::<Vec<String>>()
        };
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            cells(lines[1]),
            [
                "2",
                "2026-11-30 17:05",
                "SmolLM2-135M-Instruct.Q4_1",
                "one box: anna",
                "93.1",
                "202 (16 streams)",
                "6.1%",
                "for many streams"
            ]
        );
        assert_eq!(cells(lines[2]), ["cluster: anna, bert", "52.0", "279 (16 streams)"]);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(history_table(&[]).contains("`brigade compare`"));
        let read: Vec<HistoryEntry> = serde_json::from_str(&history_json(&entries).unwrap()).unwrap();
        assert_eq!(read, entries);
    }
}

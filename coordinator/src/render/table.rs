//! A table whose columns are as wide as their widest cell, and a bar that shows how full something is.

use std::fmt;

use brigade_shard::units::Bytes;

/// Spaces between two columns.
const GAP: usize = 3;

/// Width of a memory bar, in characters between its brackets.
const BAR_WIDTH: usize = 20;

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells under a header, shown without rules between them.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(columns: &[(&str, Align)]) -> Table {
        let columns = columns.iter().map(|(name, align)| ((*name).to_owned(), *align)).collect();
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row. Cells that are missing are empty, and those past the last column are dropped.
    ///
    /// Control characters, which could come from a worker's name, are shown as `?`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().map(|cell| without_controls(&cell)).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        for line in lines {
            let mut text = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                let padding = " ".repeat(width - cell.chars().count());
                match align {
                    Align::Left => text.extend([cell.as_str(), &padding]),
                    Align::Right => text.extend([padding.as_str(), cell]),
                }
                text.push_str(&" ".repeat(GAP));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// The same text with control characters, which could come from a worker's name, shown as `?`.
pub(super) fn without_controls(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A bar such as `[#########-----------]  45%` for `used` of `budget`.
pub fn memory_bar(used: Bytes, budget: Bytes) -> String {
    let share = if budget.0 == 0 { 1.0 } else { used.0 as f64 / budget.0 as f64 };
    // Only a full budget fills the bar, and only an unused one leaves it empty.
    let filled = match (share * BAR_WIDTH as f64).round() as usize {
        0 if used.0 > 0 => 1,
        n if n >= BAR_WIDTH && share < 1.0 => BAR_WIDTH - 1,
        n => n.min(BAR_WIDTH),
    };
    format!("[{}{}] {:>3.0}%", "#".repeat(filled), "-".repeat(BAR_WIDTH - filled), share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)]);
        assert!(table.is_empty());
        table.row(["a".to_owned(), "5 B".to_owned()]);
        table.row(["longer".to_owned(), "12.5 MiB".to_owned(), "é\u{1b}[2J".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME         SIZE   NOTE\n\
             a             5 B\n\
             longer   12.5 MiB   é?[2J\n"
        );
    }

    #[test]
    fn a_bar_is_full_only_at_the_budget() {
        assert_eq!(memory_bar(Bytes::mib(0), Bytes::mib(64)), "[--------------------]   0%");
        assert_eq!(memory_bar(Bytes::mib(1), Bytes::mib(640)), "[#-------------------]   0%");
        assert_eq!(memory_bar(Bytes::mib(32), Bytes::mib(64)), "[##########----------]  50%");
        assert_eq!(memory_bar(Bytes(999), Bytes(1000)), "[###################-] 100%");
        assert_eq!(memory_bar(Bytes(64), Bytes(64)), "[####################] 100%");
        assert_eq!(memory_bar(Bytes(100), Bytes(64)), "[####################] 156%");
    }
}

//! What stands on a terminal as a picture for documents: SVG, light on dark.

use std::fmt::Write;

use vt100::{Color, Screen};

/// Columns and rows of a cell, in the picture's units.
const CELL: (f32, f32) = (8.4, 18.0);
/// Room around the cells.
const MARGIN: f32 = 10.0;
/// What is written where no colour is asked for, and what it is written on.
const PLAIN: (&str, &str) = ("#d8dee9", "#11151c");
/// The 16 colours that have names, in the terminal's order.
const NAMED: [&str; 16] = [
    "#3b4252", "#e06c75", "#8ccf7e", "#e5c76b", "#67b0e8", "#c47fd5", "#6cbfbf", "#d8dee9", "#6b7489",
    "#ff7b85", "#a3e695", "#f2d98a", "#8ec5f0", "#d8a1e3", "#8fd6d6", "#ffffff",
];

/// The screen as SVG.
pub fn svg(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let (width, height) =
        (f32::from(columns) * CELL.0 + 2.0 * MARGIN, f32::from(rows) * CELL.1 + 2.0 * MARGIN);
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{}\"/>\n",
        PLAIN.1
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            column = run(screen, row, column, columns, &mut picture);
        }
    }
    picture.push_str("</svg>\n");
    picture
}

#[derive(Clone, PartialEq)]
struct Style {
    ink: String,
    paper: Option<String>,
    bold: bool,
}

/// Writes the cells from `column` on that look alike; the column behind them.
fn run(screen: &Screen, row: u16, column: u16, columns: u16, picture: &mut String) -> u16 {
    let style_at = |column| screen.cell(row, column).map(style);
    let first = style_at(column);
    let mut text = String::new();
    let mut end = column;
    while end < columns && style_at(end) == first {
        match screen.cell(row, end) {
            Some(cell) if cell.has_contents() => text.push_str(cell.contents()),
            _ => text.push(' '),
        }
        end += 1;
    }
    let Some(style) = first else { return end };
    let (x, y) = (MARGIN + f32::from(column) * CELL.0, MARGIN + f32::from(row) * CELL.1);
    let width = f32::from(end - column) * CELL.0;
    // Writing to a String cannot fail.
    if let Some(paper) = &style.paper {
        let _ = writeln!(
            picture,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{paper}\"/>",
            CELL.1
        );
    }
    let shown = text.trim_end();
    if !shown.is_empty() {
        let bold = if style.bold { " font-weight=\"bold\"" } else { "" };
        let length = shown.chars().count() as f32 * CELL.0;
        let shown = shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(
            picture,
            "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"{}\"{bold} textLength=\"{length:.1}\" \
             lengthAdjust=\"spacingAndGlyphs\" xml:space=\"preserve\">{shown}</text>",
            y + CELL.1 * 0.75,
            style.ink
        );
    }
    end
}

fn style(cell: &vt100::Cell) -> Style {
    let ink = color(cell.fgcolor(), PLAIN.0);
    let paper = color(cell.bgcolor(), PLAIN.1);
    let (ink, paper) = if cell.inverse() { (paper, ink) } else { (ink, paper) };
    Style { ink, paper: (paper != PLAIN.1).then_some(paper), bold: cell.bold() }
}

fn color(color: Color, plain: &str) -> String {
    match color {
        Color::Default => plain.to_owned(),
        Color::Idx(number) => NAMED.get(usize::from(number)).copied().unwrap_or(plain).to_owned(),
        Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
    }
}

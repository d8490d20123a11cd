//! Tables as comma-separated values: what this catalogue needs of them.

/// The rows of a table under its header line, each a list of as many cells as the header has; lines that begin with `#`
/// are left out. A cell in double quotes may hold commas, and a double quote as two of them.
///
/// # Errors
/// Where a row has not as many cells as the header, or a quote does not end in its line, with the line.
pub(super) fn rows(text: &str) -> Result<Vec<Vec<String>>, String> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let header = cells(lines.next().unwrap_or_default())?;
    lines
        .map(|line| {
            let cells = cells(line)?;
            if cells.len() == header.len() {
                Ok(cells)
            } else {
                Err(format!("`{line}` has {} cells, wanted {}", cells.len(), header.len()))
            }
        })
        .collect()
}

fn cells(line: &str) -> Result<Vec<String>, String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        let last = cells.len() - 1;
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cells[last].push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            letter => cells[last].push(letter),
        }
    }
    if quoted { Err(format!("a quote in `{line}` does not end")) } else { Ok(cells) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_may_be_quoted() {
        let text = "# a comment\nname,note\na,\"one, two\"\n\nb,\"say \"\"so\"\"\"\nc,\n";
        let wanted = [["a", "one, two"], ["b", "say \"so\""], ["c", ""]];
        assert_eq!(rows(text).unwrap(), wanted);
        assert!(rows("a,b\n1\n").unwrap_err().contains("1 cells"));
        assert!(rows("a\n\"1\n").is_err());
    }
}

//! Aligned tables. Cells come from configurations and guests: what a terminal would obey is made visible instead.

/// Blanks between two columns.
const GAP: &str = "  ";

/// Which side of its column a cell is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Renders a head line and rows. Rows shorter than the head have empty cells at their end.
pub(super) fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let cell = |row: &[String], index: usize| row.get(index).cloned().unwrap_or_default();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, (title, _))| {
            let widest = rows.iter().map(|row| cell(row, index).chars().count()).max();
            widest.unwrap_or(0).max(title.len())
        })
        .collect();
    let mut text = String::new();
    let titles: Vec<String> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(&rows) {
        let cells: Vec<String> = columns
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(index, ((_, align), width))| match align {
                Align::Left => format!("{:<width$}", cell(row, index)),
                Align::Right => format!("{:>width$}", cell(row, index)),
            })
            .collect();
        let line = cells.join(GAP);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A flag in a cell.
pub(super) fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// The text with control characters, and those that change the direction of writing, escaped.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        // Unicode's bidirectional controls and line separators are not `char::is_control`.
        let steers =
            matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || steers {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["web".to_owned(), "512".to_owned(), "Running".to_owned()],
            vec!["größer-name".to_owned(), "16384".to_owned()],
        ];
        let columns = [("NAME", Align::Left), ("MEM", Align::Right), ("STATE", Align::Left)];
        let expected = "\
NAME           MEM  STATE
web            512  Running
größer-name  16384
";
        assert_eq!(table(&columns, &rows), expected);
        assert_eq!(table(&columns, &[]), "NAME  MEM  STATE\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{202e}c"), "a\\u{1b}[2Jb\\n\\u{202e}c");
    }

    proptest! {
        #[test]
        fn one_line_per_row_whatever_is_in_it(rows in proptest::collection::vec(proptest::collection::vec(any::<String>(), 0..4), 0..6)) {
            let columns = [("A", Align::Left), ("B", Align::Right)];
            prop_assert_eq!(table(&columns, &rows).lines().count(), rows.len() + 1);
        }
    }
}

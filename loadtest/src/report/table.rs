//! Tables of text.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

/// No lines but one under the heads.
const PLAIN: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table with these column heads, at most `width` columns wide; columns whose head ends in `>` are right-aligned.
pub fn table(heads: &[&str], width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(PLAIN).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.set_header(heads.iter().map(|head| head.trim_end_matches('>')).collect::<Vec<_>>());
    for (column, head) in table.column_iter_mut().zip(heads) {
        if head.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table's lines, without what is blank at their ends.
pub fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Breaks a text into lines of at most `width` columns (of single-width characters), those after the first indented.
/// A word that is longer stands on a line of its own.
pub(super) fn wrap(text: &str, width: u16, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > usize::from(width) {
            lines += "\n";
            lines += &" ".repeat(indent);
            column = indent;
        } else if column > 0 {
            lines += " ";
            column += 1;
        }
        lines += word;
        column += length;
    }
    lines + "\n"
}

/// A text of the server's or of a file's without what would move a terminal's cursor or break its lines.
pub(super) fn tame(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_between_words() {
        assert_eq!(wrap("one two three", 8, 2), "one two\n  three\n");
        assert_eq!(wrap("  one\n two ", 80, 0), "one two\n");
        assert_eq!(wrap("averylongword b", 5, 1), "averylongword\n b\n");
        assert_eq!(wrap("", 5, 1), "\n");
    }

    #[test]
    fn control_characters_become_blanks() {
        assert_eq!(tame("a\x1b[31mb\r\nc"), "a [31mb  c");
    }
}

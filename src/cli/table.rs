//! Tables for people.

use std::io::Write;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

/// No lines but one under the heads.
const PLAIN: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table with these column heads; columns whose head ends in `>` are right-aligned.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(PLAIN).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(heads.iter().map(|head| head.trim_end_matches('>')).collect::<Vec<_>>());
    for (column, head) in table.column_iter_mut().zip(heads) {
        if head.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// FLOPs as `1.38e8`, the way papers write them.
pub(crate) fn flops(count: f64) -> String {
    if count == 0.0 { "0".to_owned() } else { format!("{count:.2e}") }
}

/// Prints to standard output; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: impl std::fmt::Display) -> std::io::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

//! Rows for people.

use std::fmt;

/// A table; every row has as many cells as the head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

// === impl Table ===

impl Table {
    /// Without rows.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { head: head.map(str::to_owned).into(), rows: Vec::new() }
    }

    /// One row more.
    pub fn push(&mut self, row: Vec<String>) {
        debug_assert_eq!(row.len(), self.head.len());
        self.rows.push(row);
    }

    /// Names of columns.
    pub fn head(&self) -> &[String] {
        &self.head
    }

    /// Cells by row.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// As comma-separated values (RFC 4180), the head first.
    pub fn csv(&self) -> String {
        let field = |text: &String| match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.clone(),
        };
        let line = |row: &Vec<String>| row.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
        std::iter::once(&self.head).chain(&self.rows).map(line).collect()
    }
}

impl fmt::Display for Table {
    /// As Markdown whose columns also stand below each other on a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |row: &Vec<String>| row.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
        let (head, rows) = (escaped(&self.head), self.rows.iter().map(escaped).collect::<Vec<_>>());
        let all = || std::iter::once(&head).chain(&rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let line = |f: &mut fmt::Formatter<'_>, row: &Vec<String>| {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Names to the left, numbers to the right.
                match column {
                    0 => write!(f, "| {cell:<width$} ")?,
                    _ => write!(f, "| {cell:>width$} ")?,
                }
            }
            writeln!(f, "|")
        };
        line(f, &head)?;
        for (column, width) in widths.iter().enumerate() {
            let right = if column == 0 { '-' } else { ':' };
            write!(f, "|{}{right}", "-".repeat(width + 1))?;
        }
        writeln!(f, "|")?;
        rows.iter().try_for_each(|row| line(f, row))
    }
}

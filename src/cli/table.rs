//! Rows under headings, as wide as they have to be.

use std::io::{self, Write};

use serde_json::Value as Json;

/// Cells as text, row by row.
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(headings: [&'static str; N]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Prints an answer as JSON, or the table in its place.
    pub(super) fn print_or(&self, as_json: bool, answer: &Json) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match as_json {
            true => writeln!(out, "{answer}")?,
            false => self.write(&mut out)?,
        }
        out.flush()
    }

    /// Writes headings and rows; the last column is not padded.
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            let heading = self.headings.get(column).map_or(0, |text| text.len());
            widest.max(heading)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let headings = self.headings.iter().map(|heading| (*heading).to_owned());
        line(to, &widths, &headings.collect::<Vec<_>>())?;
        for row in &self.rows {
            line(to, &widths, row)?;
        }
        Ok(())
    }
}

fn line(to: &mut impl Write, widths: &[usize], cells: &[String]) -> io::Result<()> {
    let padded = cells.iter().zip(widths);
    let text: Vec<String> = padded
        .map(|(cell, width)| format!("{cell:width$}"))
        .collect();
    writeln!(to, "{}", text.join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::Table;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["ID", "N"]);
        table.row(["é-long".into(), "1".into()]);
        table.row(["b".into(), "22".into()]);
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "ID      N\né-long  1\nb       22\n"
        );
    }
}

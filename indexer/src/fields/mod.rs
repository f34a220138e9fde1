//! The payload index of a segment: which rows match a filter.
//!
//! [`Growing`] takes rows while searches evaluate, [`Sealed`] is the same in bytes that are used
//! where they lie, [`Columns`] makes those from payloads or out of other sealed ones. Each gives a
//! [`RowSet`] that equals asking `Filter::matches_declared` row by row. [`plan`] decides what to do
//! with it: scan the rows, or walk the graph and take them alone. [`group`] fills groups of hits.
//!
//! # Units
//! A row costs, for each declared field: its number, 4 bytes (one bit for a value that one row in
//! 32 has); for each distinct value 12 bytes, or 8 if all are distinct, and the text's own bytes;
//! and 1, 2 or 4 bytes for up to 255, 65,535 or more distinct values, unless it holds lists. So a
//! unique number costs 16 bytes a row, a number of a thousand values 6, a boolean 1.3.

#[cfg(test)]
mod arbitrary;
mod columns;
pub mod group;
mod growing;
mod keyed;
mod layout;
pub mod plan;
mod ranks;
mod rows;
mod sealed;

pub use columns::Columns;
pub use growing::{Growing, TAIL_ROWS};
pub use layout::OpenError;
pub use rows::RowSet;
pub use sealed::{ReadError, Sealed};

/// How many rows match a filter. Rows that have ended are among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// At least.
    pub lower: usize,
    /// At most.
    pub upper: usize,
}

impl Estimate {
    fn exactly(rows: usize) -> Self {
        Self {
            lower: rows,
            upper: rows,
        }
    }

    /// Bounds for sets that share no row.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            lower: self.lower.saturating_add(other.lower),
            upper: self.upper.saturating_add(other.upper),
        }
    }

    fn at_most(self, rows: usize) -> Self {
        Self {
            lower: self.lower.min(rows),
            upper: self.upper.min(rows),
        }
    }

    fn not(self, rows: usize) -> Self {
        Self {
            lower: rows.saturating_sub(self.upper),
            upper: rows.saturating_sub(self.lower),
        }
    }

    /// Rows that every part matches: the parts together leave out no more than each alone.
    fn all(parts: impl Iterator<Item = Self>, rows: usize) -> Self {
        parts.fold(Self::exactly(rows), |so_far, part| Self {
            lower: (so_far.lower + part.lower).saturating_sub(rows),
            upper: so_far.upper.min(part.upper),
        })
    }

    fn any(parts: impl Iterator<Item = Self>, rows: usize) -> Self {
        let union = parts.fold(Self::default(), |so_far, part| Self {
            lower: so_far.lower.max(part.lower),
            upper: so_far.upper.saturating_add(part.upper),
        });
        union.at_most(rows)
    }
}

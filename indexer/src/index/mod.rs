//! Vector indexes: the seam between a segment and what finds near rows in it.
//!
//! A row is a number the segment hands out, rising from 0. An index only ever gets rows added:
//! one thread adds while any number search. A row that is dead stays, and is masked by the
//! `accept` predicate of a search; reusing its place would decay recall.

pub mod adjacency;
pub mod distance;
pub mod hnsw;
mod kernel;
pub mod packed;
mod prefetch;
pub mod rotation;
pub mod space;
pub mod target;
pub mod usearch_file;

use std::path::Path;

use shoal_runtime::ErrorKind;

use crate::index::usearch_file::ParseError;

/// A row near a query, with its distance in the collection's metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// The segment's row.
    pub row: u32,
    /// Smaller is nearer.
    pub distance: f32,
}

/// Finds near rows.
pub trait VectorIndex: Send + Sync {
    /// Adds a row. Called by one thread at a time, while others search; numbers rise, and may be
    /// passed over.
    ///
    /// # Errors
    /// [`IndexError::Backend`], out of memory for one.
    fn add(&self, row: u32, vector: &[f32]) -> Result<(), IndexError>;

    /// About the `beam` nearest rows that `accept` takes, nearest first.
    ///
    /// # Errors
    /// [`IndexError::Backend`].
    fn search(
        &self,
        query: &[f32],
        beam: usize,
        accept: Option<&dyn Fn(u32) -> bool>,
    ) -> Result<Vec<Near>, IndexError>;

    /// About the distances of rows, in their order.
    ///
    /// # Errors
    /// [`IndexError::NoRow`] if one is not there.
    fn measure(&self, query: &[f32], rows: &[u32]) -> Result<Vec<Near>, IndexError>;

    /// The index's own, perhaps rounded, copy of a row's vector.
    ///
    /// # Errors
    /// [`IndexError::NoRow`].
    fn vector(&self, row: u32) -> Result<Vec<f32>, IndexError>;

    /// Rows added.
    fn rows(&self) -> usize;

    /// Memory it holds.
    fn bytes(&self) -> usize;

    /// Its edges, for a segment of `rows` rows: one that was never added has none. Not while a row
    /// is being added.
    ///
    /// # Errors
    /// [`IndexError`].
    fn adjacency(&self, rows: u32) -> Result<adjacency::Adjacency, IndexError>;

    /// Writes it to a file. Not while a row is being added.
    ///
    /// # Errors
    /// [`IndexError::Backend`].
    fn save(&self, path: &Path) -> Result<(), IndexError>;
}

/// Why an index call failed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The library refused.
    #[error("vector index cannot {action}: {detail}")]
    Backend {
        /// What was tried.
        action: &'static str,
        /// The library's words.
        detail: String,
    },
    /// What it gave of itself does not read.
    #[error("vector index has edges that do not read")]
    Parse(#[from] ParseError),
    /// There is no such row.
    #[error("vector index has no row {row}")]
    NoRow {
        /// The row asked for.
        row: u32,
    },
}

impl IndexError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Backend { .. } => ErrorKind::Closed,
            Self::Parse(error) => error.kind(),
            Self::NoRow { .. } => ErrorKind::Bug,
        }
    }
}

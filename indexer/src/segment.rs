//! A segment: rows that were served at some time, and the graph that finds them.
//!
//! Rows are numbered from 0 in the order they came and never move. A row is visible to a search
//! at sequence `s` if `born <= s < died`: an update makes a new row and ends the old one at the
//! same sequence, so a search sees exactly one of them. The *growing* segment takes new rows;
//! its newest ones are only in the memtable until the builder has folded them into the graph.
//! A *sealed* one takes no more. Rows end, but are never taken out: compaction writes a new
//! segment of what is left.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use shoal_schemas::{Offset, PointId, Vector, Version, digest::RowHash};

use crate::{index::VectorIndex, rule::SourceIndex, wal::Position};

/// Number of a segment within its shard; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

/// Where a served point is: which row of which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment.
    pub segment: SegmentId,
    /// The row in it.
    pub row: u32,
}

/// The count of changes a shard has applied since it was opened. Searches see a state at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Sequence(pub u64);

/// A row that has not ended.
const ALIVE: u64 = u64::MAX;
/// A row that never expires.
const NEVER: i64 = i64::MAX;

/// Everything known of a row but its vector and payload, which stay in the shard's own log.
#[derive(Debug)]
pub struct Row {
    /// The point.
    pub id: PointId,
    /// Its version.
    pub version: Version,
    /// Where its record came from.
    pub source: SourceIndex,
    /// The record's offset there.
    pub offset: Offset,
    /// Its frame in the shard's own log.
    pub wal: Position,
    /// What it adds to the digest.
    pub hash: RowHash,
    /// From then on it is hidden.
    pub expires_at_ms: Option<i64>,
    born: u64,
    died: AtomicU64,
}

/// What a row is made of.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// See [`Row::id`].
    pub id: PointId,
    /// See [`Row::version`].
    pub version: Version,
    /// See [`Row::source`].
    pub source: SourceIndex,
    /// See [`Row::offset`].
    pub offset: Offset,
    /// See [`Row::wal`].
    pub wal: Position,
    /// See [`Row::hash`].
    pub hash: RowHash,
    /// See [`Row::expires_at_ms`].
    pub expires_at_ms: Option<i64>,
}

impl Row {
    /// A live row that is visible from `born` on.
    pub fn new(new: NewRow, born: Sequence) -> Self {
        Self {
            id: new.id,
            version: new.version,
            source: new.source,
            offset: new.offset,
            wal: new.wal,
            hash: new.hash,
            expires_at_ms: new.expires_at_ms,
            born: born.0,
            died: AtomicU64::new(ALIVE),
        }
    }

    /// What to make the same row of in another segment.
    pub fn again(&self) -> NewRow {
        NewRow {
            id: self.id.clone(),
            version: self.version,
            source: self.source,
            offset: self.offset,
            wal: self.wal,
            hash: self.hash,
            expires_at_ms: self.expires_at_ms,
        }
    }

    /// Whether a search at `at`, at wall time `now_ms`, may answer with it.
    pub fn is_visible(&self, at: Sequence, now_ms: i64) -> bool {
        self.born <= at.0
            && at.0 < self.died.load(Ordering::Acquire)
            && now_ms < self.expires_at_ms.unwrap_or(NEVER)
    }

    /// Whether it has ended, as of the newest change.
    pub fn is_dead(&self) -> bool {
        self.died.load(Ordering::Acquire) != ALIVE
    }

    /// Whether it lives on after `at`.
    pub fn outlives(&self, at: Sequence) -> bool {
        self.died.load(Ordering::Acquire) > at.0
    }

    /// Whether it was born at or before `at`.
    pub fn is_born_by(&self, at: Sequence) -> bool {
        self.born <= at.0
    }
}

/// Rows and their graph.
pub struct Segment {
    /// Its number.
    pub id: SegmentId,
    /// Finds rows below [`Self::folded`].
    pub graph: Arc<dyn VectorIndex>,
    rows: boxcar::Vec<Row>,
    folded: AtomicU32,
    dead: AtomicU32,
    expiring: AtomicU32,
}

impl Segment {
    /// An empty segment over an empty graph.
    pub fn new(id: SegmentId, graph: Arc<dyn VectorIndex>) -> Self {
        Self {
            id,
            graph,
            rows: boxcar::Vec::new(),
            folded: AtomicU32::new(0),
            dead: AtomicU32::new(0),
            expiring: AtomicU32::new(0),
        }
    }

    /// Adds a row. Only the shard's writer, or the builder of a segment nobody sees yet.
    pub fn push(&self, row: Row) -> u32 {
        if row.expires_at_ms.is_some() {
            self.expiring.fetch_add(1, Ordering::AcqRel);
        }
        let index = self.rows.push(row);
        u32::try_from(index).expect("a segment is sealed long before 2^32 rows")
    }

    /// A row, if there is one of that number.
    pub fn row(&self, row: u32) -> Option<&Row> {
        self.rows.get(usize::try_from(row).ok()?)
    }

    /// All rows so far, dead ones too.
    pub fn rows(&self) -> impl Iterator<Item = (u32, &Row)> {
        self.rows
            .iter()
            .filter_map(|(index, row)| Some((u32::try_from(index).ok()?, row)))
    }

    /// Number of rows so far, dead ones too.
    pub fn len(&self) -> u32 {
        u32::try_from(self.rows.count()).unwrap_or(u32::MAX)
    }

    /// Whether no row was ever added.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that have ended.
    pub fn dead(&self) -> u32 {
        self.dead.load(Ordering::Acquire)
    }

    /// Rows that have not ended.
    pub fn live(&self) -> u32 {
        self.len().saturating_sub(self.dead())
    }

    /// Rows below this are in the graph.
    pub fn folded(&self) -> u32 {
        self.folded.load(Ordering::Acquire)
    }

    /// Says that rows below `folded` are in the graph. Only the builder.
    pub fn set_folded(&self, folded: u32) {
        self.folded.store(folded, Ordering::Release);
    }

    /// Ends a row at `at`; false if it had ended or is not there. Only the shard's writer.
    pub fn end(&self, row: u32, at: Sequence) -> bool {
        let Some(row) = self.row(row) else {
            return false;
        };
        let ended = row
            .died
            .compare_exchange(ALIVE, at.0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if ended {
            self.dead.fetch_add(1, Ordering::AcqRel);
        }
        ended
    }

    /// Whether any row, dead or alive, has an expiry.
    pub fn has_expiring(&self) -> bool {
        self.expiring.load(Ordering::Acquire) > 0
    }

    /// Whether a graph search has to look at rows at all: none has ended, none can expire.
    pub fn is_all_alive(&self) -> bool {
        self.dead() == 0 && !self.has_expiring()
    }
}

/// How many rows a chunk of the memtable holds.
pub const CHUNK_ROWS: u32 = 256;

/// Vectors of consecutive rows of the growing segment.
pub struct Chunk {
    /// The segment the rows belong to.
    pub segment: SegmentId,
    /// The first of the rows.
    pub first_row: u32,
    vectors: boxcar::Vec<Vector>,
}

impl Chunk {
    /// An empty chunk for rows from `first_row` on.
    pub fn new(segment: SegmentId, first_row: u32) -> Self {
        Self {
            segment,
            first_row,
            vectors: boxcar::Vec::new(),
        }
    }

    /// Adds the next row's vector. Only the shard's writer, after the row itself.
    pub fn push(&self, vector: Vector) {
        self.vectors.push(vector);
    }

    /// A row's vector, if the chunk holds it.
    pub fn vector(&self, row: u32) -> Option<&Vector> {
        let at = row.checked_sub(self.first_row)?;
        self.vectors.get(usize::try_from(at).ok()?)
    }

    /// The row after the last one so far.
    pub fn end_row(&self) -> u32 {
        self.first_row + u32::try_from(self.vectors.count()).unwrap_or(CHUNK_ROWS)
    }

    /// Whether it takes no more rows.
    pub fn is_full(&self) -> bool {
        self.end_row() >= self.first_row + CHUNK_ROWS
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Offset, PointId, Version, digest::RowHash};

    use super::{NewRow, Row, Sequence};
    use crate::{rule::SourceIndex, wal::Position};

    #[test]
    fn a_row_is_visible_from_its_birth_to_its_end_and_not_after_it_expires() {
        let new = NewRow {
            id: PointId::new("a").unwrap(),
            version: Version::default(),
            source: SourceIndex(0),
            offset: Offset(0),
            wal: Position::new(0),
            hash: RowHash::default(),
            expires_at_ms: Some(1000),
        };
        let row = Row::new(new, Sequence(5));
        assert!(!row.is_visible(Sequence(4), 0));
        assert!(row.is_visible(Sequence(5), 999));
        assert!(!row.is_visible(Sequence(5), 1000));
    }
}

//! The rows of a segment that takes new ones, in memory, and the memtable's chunks.
//!
//! The newest rows are only in the memtable until the builder has folded them into the graph.
//! Vectors and payload stay in the shard's own log; what a delete or a refusal said is kept as
//! an entry, because no row says it.

use std::{
    iter,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use shoal_schemas::{Payload, PointId, Vector, filter::Fields};

use crate::{
    fields,
    index::live::Graph,
    segment::{
        ALIVE, NewRow, Row, SegmentId, Sequence,
        ends::{Age, BLOCK_ROWS, Block, Life},
        entries::Entry,
    },
    wal::Position,
};

/// A row and its life, which most looks at it are about: in one line of the cache.
#[repr(C)]
struct Kept {
    born: u64,
    died: AtomicU64,
    new: NewRow,
}

/// Rows in memory, with the graph of those below [`Growing::folded`].
pub struct Growing {
    /// Finds rows below [`Self::folded`].
    pub graph: Graph,
    /// Finds rows by their payload.
    pub fields: fields::Growing,
    /// Nothing of it stands before this place of the shard's own log.
    pub from: Position,
    rows: boxcar::Vec<Kept>,
    blocks: boxcar::Vec<Block>,
    entries: boxcar::Vec<Entry>,
    folded: AtomicU32,
    expiring: AtomicU32,
}

impl Growing {
    /// No rows, over an empty graph, whose frames will stand at `from` and behind.
    pub fn new(graph: Graph, fields: Fields, from: Position) -> Self {
        Self {
            graph,
            fields: fields::Growing::new(fields),
            from,
            rows: boxcar::Vec::new(),
            blocks: boxcar::Vec::new(),
            entries: boxcar::Vec::new(),
            folded: AtomicU32::new(0),
            expiring: AtomicU32::new(0),
        }
    }

    /// Adds a row that is visible from `born` on, with its payload as [`super::indexed`] has it.
    /// Only the shard's writer.
    pub fn push(&self, new: NewRow, payload: &Payload, born: Sequence) -> u32 {
        let number = self.push_row(new, born);
        self.fields.push(number, payload);
        number
    }

    fn push_row(&self, new: NewRow, born: Sequence) -> u32 {
        if new.expires_at_ms.is_some() {
            self.expiring.fetch_add(1, Ordering::AcqRel);
        }
        let block = self.len() / BLOCK_ROWS;
        if self.block(block).is_none() {
            self.blocks.push(Block::empty());
        }
        if let Some(block) = self.block(block) {
            block.note_birth(born, new.expires_at_ms);
        }
        let index = self.rows.push(Kept {
            born: born.0,
            died: AtomicU64::new(ALIVE),
            new,
        });
        u32::try_from(index).expect("a segment is sealed long before 2^32 rows")
    }

    /// Keeps what a record without a row said. Only the shard's writer.
    pub fn push_entry(&self, entry: Entry) {
        self.entries.push(entry);
    }

    /// What records without a row said, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(|(_, entry)| entry)
    }

    /// How many [`Self::entries`] there are.
    pub fn entry_count(&self) -> usize {
        self.entries.count()
    }

    /// A row, if there is one of that number.
    pub fn row(&self, row: u32) -> Option<Row<'_>> {
        let kept = self.kept(row)?;
        Some(Row {
            id: kept.new.id.as_str(),
            version: kept.new.version,
            source: kept.new.source,
            offset: kept.new.offset,
            wal: kept.new.wal,
            hash: kept.new.hash,
            expires_at_ms: kept.new.expires_at_ms,
            born: kept.born,
            died: kept.died.load(Ordering::Acquire),
        })
    }

    /// Whether a search at `at` may answer with a row: what [`Row::is_visible`] says, for less.
    #[inline]
    pub fn is_visible(&self, row: u32, at: Sequence, now_ms: i64) -> bool {
        // First of all: its birth is noted before it is there.
        if row >= self.len() {
            return false;
        }
        if let Some(block) = self.block(row / BLOCK_ROWS) {
            match (block.life(row, at), self.age(block, now_ms)) {
                (Life::Ended, _) | (_, Age::Expired) => return false,
                (Life::Lives, Age::Fresh) => return true,
                _ => {}
            }
        }
        let Some(kept) = self.kept(row) else {
            return false;
        };
        kept.born <= at.0
            && at.0 < kept.died.load(Ordering::Acquire)
            && kept
                .new
                .expires_at_ms
                .is_none_or(|expires| now_ms < expires)
    }

    /// Where a row's frame stands in the shard's own log.
    pub fn wal(&self, row: u32) -> Option<Position> {
        self.kept(row).map(|kept| kept.new.wal)
    }

    /// The id of a row.
    pub fn id(&self, row: u32) -> Option<&PointId> {
        self.kept(row).map(|kept| &kept.new.id)
    }

    /// Number of rows so far.
    pub fn len(&self) -> u32 {
        u32::try_from(self.rows.count()).unwrap_or(u32::MAX)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows below this are in the graph.
    pub fn folded(&self) -> u32 {
        self.folded.load(Ordering::Acquire)
    }

    /// Says that rows below `folded` are in the graph. Only the builder.
    pub fn set_folded(&self, folded: u32) {
        self.folded.store(folded, Ordering::Release);
    }

    /// Whether any row has an expiry.
    pub fn has_expiring(&self) -> bool {
        self.expiring.load(Ordering::Acquire) > 0
    }

    /// How old the rows of a block are.
    #[inline]
    pub(super) fn age(&self, block: &Block, now_ms: i64) -> Age {
        match self.has_expiring() {
            // They said so when they came.
            true => block.age(now_ms, iter::empty),
            false => Age::Fresh,
        }
    }

    /// When a row ended.
    pub(super) fn died(&self, row: u32) -> Option<&AtomicU64> {
        self.kept(row).map(|kept| &kept.died)
    }

    /// What is known of rows together.
    pub(super) fn block(&self, number: u32) -> Option<&Block> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    fn kept(&self, row: u32) -> Option<&Kept> {
        self.rows.get(usize::try_from(row).ok()?)
    }
}

/// How many rows a chunk of the memtable holds.
pub const CHUNK_ROWS: u32 = 256;

/// Vectors of consecutive rows of the growing segment; none for a row that rides.
pub struct Chunk {
    /// The segment the rows belong to.
    pub segment: SegmentId,
    /// The first of the rows.
    pub first_row: u32,
    vectors: boxcar::Vec<Option<Vector>>,
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

    /// Adds the next row's vector; `None` if it rides. Only the shard's writer, after the row
    /// itself.
    pub fn push(&self, vector: Option<Vector>) {
        self.vectors.push(vector);
    }

    /// What the chunk holds of a row, if it does: its vector, or that it rides.
    pub fn row(&self, row: u32) -> Option<Option<&Vector>> {
        let at = row.checked_sub(self.first_row)?;
        let vector = self.vectors.get(usize::try_from(at).ok()?)?;
        Some(vector.as_ref())
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

    use proptest::prelude::*;
    use shoal_schemas::{
        Dim, IndexParameters, Metric, Offset, Payload, PointId, Version, digest::RowHash,
        filter::Fields,
    };

    use super::Growing;
    use crate::{
        index::live::{Graph, Options},
        rule::SourceIndex,
        segment::{NewRow, Segment, SegmentId, Sequence},
        view::Moment,
        wal::Position,
    };

    fn segment() -> Segment {
        let graph = Graph::new(&Options {
            dim: Dim::try_from(2).unwrap(),
            metric: Metric::L2,
            parameters: IndexParameters::default(),
        });
        let growing = Growing::new(graph, Fields::new(), Position::START);
        Segment::growing(SegmentId(1), growing)
    }

    fn push(segment: &Segment, expires_at_ms: Option<i64>, born: Sequence) -> u32 {
        let new = NewRow {
            id: PointId::new("a").unwrap(),
            version: Version::default(),
            source: SourceIndex(0),
            offset: Offset(0),
            wal: Position::new(0),
            hash: RowHash::default(),
            expires_at_ms,
        };
        let growing = segment.as_growing().unwrap();
        growing.push(new, &Payload::default(), born)
    }

    #[test]
    fn a_row_is_visible_from_its_birth_to_its_end_and_not_after_it_expires() {
        let segment = segment();
        let number = push(&segment, Some(1000), Sequence(5));
        let row = segment.row(number).unwrap();
        assert!(!row.is_visible(Sequence(4), 0));
        assert!(row.is_visible(Sequence(5), 999));
        assert!(!row.is_visible(Sequence(5), 1000));
    }

    proptest! {
        #[test]
        fn rows_tell_together_what_each_of_them_tells(
            // Whether a row comes, or which of them ends.
            changes in proptest::collection::vec(proptest::option::of(any::<proptest::sample::Index>()), 1..400),
            // When a row expires that is among the first so many, and one that comes later.
            expiries in (proptest::option::of(0..3_i64), any::<proptest::sample::Index>(), proptest::option::of(0..3_i64)),
            moments in proptest::collection::vec((any::<proptest::sample::Index>(), 0..4_i64), 1..8),
            below in any::<proptest::sample::Index>(),
        ) {
            let segment = segment();
            let (first, until, later) = expiries;
            let until = until.index(changes.len());
            for (at, change) in changes.iter().enumerate() {
                let sequence = Sequence(at.try_into().unwrap());
                match change {
                    Some(ends) if !segment.is_empty() => {
                        let row = ends.index(segment.len().try_into().unwrap());
                        segment.end(row.try_into().unwrap(), sequence);
                    }
                    _ => {
                        push(&segment, if at < until { first } else { later }, sequence);
                    }
                }
            }
            let below = u32::try_from(below.index(changes.len() + 80)).unwrap();
            for (at, now_ms) in moments {
                let sequence = Sequence(at.index(changes.len()).try_into().unwrap());
                let rows = segment.rows().take_while(|(number, _)| *number < below);
                let of_each = rows.filter(|(_, row)| row.is_visible(sequence, now_ms));
                let of_each: Vec<u32> = of_each.map(|(number, _)| number).collect();
                let moment = Moment { sequence, now_ms };
                let together: Vec<u32> = segment.visible(below, moment).collect();
                prop_assert_eq!(&together, &of_each);
                let asked = (0..below).filter(|row| segment.is_visible(*row, moment));
                prop_assert_eq!(asked.collect::<Vec<u32>>(), of_each);
            }
        }
    }
}

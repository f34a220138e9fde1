//! What a search sees: the segments and memtable chunks of a moment, at one sequence.
//!
//! A view is immutable and replaced as a whole. The order of loads matters: first the sequence,
//! then the view. The writer publishes a chunk before it publishes the sequence of a row in it,
//! so every row born by the sequence is in the view; compaction notes the sequence from which on
//! its output is complete, and a search from before takes another look.

use std::sync::Arc;

use crate::segment::{
    Place, Row, Segment, SegmentId, Sequence, growing::Chunk, rides::newest_rider,
};

/// The segments and memtable of a moment.
pub struct View {
    /// Sealed segments, then the growing one.
    pub segments: Vec<Arc<Segment>>,
    /// Chunks of the memtable, oldest first; the last one takes new rows.
    pub chunks: Vec<Arc<Chunk>>,
    /// Rows that ended at or before this may be missing.
    pub complete_from: Sequence,
}

/// The moment a search is about.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Changes up to and including this one are seen.
    pub sequence: Sequence,
    /// Wall time, for expiry, milliseconds since the Unix epoch.
    pub now_ms: i64,
}

impl View {
    /// The growing segment.
    pub fn growing(&self) -> &Arc<Segment> {
        self.segments
            .last()
            .expect("a view is made with a growing segment and keeps one")
    }

    /// A segment by its number.
    pub fn segment(&self, id: SegmentId) -> Option<&Arc<Segment>> {
        self.segments.iter().find(|segment| segment.id == id)
    }

    /// The row at a place.
    pub fn row(&self, place: Place) -> Option<Row<'_>> {
        self.segment(place.segment)?.row(place.row)
    }

    /// The row that a search of a moment answers with where it meets the node of `row`: that one,
    /// or the one that rides on it by then.
    pub fn shown<'a>(
        &'a self,
        segment: &'a Segment,
        row: u32,
        moment: Moment,
    ) -> Option<(&'a Segment, u32)> {
        if segment.rides.is_rider(row) {
            return None;
        }
        if segment.is_visible(row, moment) {
            return Some((segment, row));
        }
        if !segment.rides.has_carriers() {
            return None;
        }
        let find = |id| self.segment(id).map(|segment| &**segment);
        // The one before it ended when it was born.
        let (rider, row) = newest_rider(segment, row, moment.sequence, find)?;
        rider.is_visible(row, moment).then_some((rider, row))
    }

    /// Visible points. Rows are looked at one by one only where some of 64 may have expired, and others not.
    pub fn count(&self, moment: Moment) -> u64 {
        let counts = self.segments.iter().map(|segment| {
            let visible = segment.visible(u32::MAX, moment);
            u64::try_from(visible.count()).unwrap_or(u64::MAX)
        });
        counts.sum()
    }

    /// The segments that a search looks into.
    pub fn searched(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.segments
            .iter()
            .filter(|segment| !segment.is_reclaimed())
    }

    /// Memory the graphs hold.
    pub fn graph_bytes(&self) -> u64 {
        let bytes = self.segments.iter().map(|segment| segment.graph_bytes());
        u64::try_from(bytes.sum::<usize>()).unwrap_or(u64::MAX)
    }

    /// Rows in the memtable that are in no graph yet, those of a segment that waits to be sealed too.
    pub fn memtable_rows(&self) -> u32 {
        let segments = self.segments.iter();
        let waiting = segments.map(|segment| segment.len().saturating_sub(segment.folded()));
        waiting.sum()
    }
}

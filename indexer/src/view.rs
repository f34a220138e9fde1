//! What a search sees: the segments and memtable chunks of a moment, at one sequence.
//!
//! A view is immutable and replaced as a whole. The order of loads matters: first the sequence,
//! then the view. The writer publishes a chunk before it publishes the sequence of a row in it,
//! so every row born by the sequence is in the view; compaction notes the sequence from which on
//! its output is complete, and a search from before takes another look.

use std::sync::Arc;

use crate::{
    index::{IndexError, Near, distance::Query},
    segment::{Chunk, Place, Row, Segment, SegmentId, Sequence},
    wal,
};

/// With fewer live rows than this many beams a segment is scanned, not walked.
const SCAN_BEAMS: usize = 2;
/// Rows scanned between two looks at whether anybody still waits: well below a millisecond.
const STOP_ROWS: u32 = 64;
/// A segment of more rows, dead ones counted, is walked all the same.
const SCAN_ROWS: u32 = 32_768;

/// The segments and memtable of a moment.
pub struct View {
    /// Sealed segments, then the growing one.
    pub segments: Vec<Arc<Segment>>,
    /// Chunks of the memtable, oldest first; the last one takes new rows.
    pub chunks: Vec<Arc<Chunk>>,
    /// Rows that ended at or before this may be missing.
    pub complete_from: Sequence,
}

/// A point found, still as its row.
#[derive(Clone, Copy)]
pub struct Found<'a> {
    /// Where it is.
    pub place: Place,
    /// Its row.
    pub row: &'a Row,
    /// Smaller is nearer.
    pub distance: f32,
}

/// The moment a search is about.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Changes up to and including this one are seen.
    pub sequence: Sequence,
    /// Wall time, for expiry, milliseconds since the Unix epoch.
    pub now_ms: i64,
}

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The graph refused.
    #[error("graph search failed")]
    Index(#[from] IndexError),
    /// The shard's own log does not give a row back.
    #[error("cannot read a row from the shard's log")]
    Log(#[source] wal::ReadError),
    /// A row in the shard's log does not read.
    #[error("row in the shard's log does not read")]
    Entry(#[from] crate::entry::EntryError),
    /// Nobody waits for it any more.
    #[error("it was stopped: its deadline is over or its caller gone")]
    Stopped,
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
    pub fn row(&self, place: Place) -> Option<&Row> {
        self.segment(place.segment)?.row(place.row)
    }

    /// The nearest `k` visible points, by (distance, id), found with beams of at least `beam`.
    ///
    /// # Errors
    /// [`SearchError::Index`].
    pub fn search(
        &self,
        query: &Query<'_>,
        k: usize,
        beam: usize,
        moment: Moment,
    ) -> Result<Vec<Found<'_>>, SearchError> {
        let beam = beam.max(k);
        let mut found = Vec::with_capacity(beam + 16);
        for segment in &self.segments {
            // Read before the graph is searched: rows below are in it, rows above are scanned.
            let folded = segment.folded();
            let near = self.search_graph(segment, query, beam, moment)?;
            found.extend(near.into_iter().filter_map(|near| {
                let row = segment.row(near.row)?;
                let seen = near.row < folded && row.is_visible(moment.sequence, moment.now_ms);
                seen.then_some(Found {
                    place: Place {
                        segment: segment.id,
                        row: near.row,
                    },
                    row,
                    distance: near.distance,
                })
            }));
            self.scan_chunks(segment, folded, query, moment, &mut found);
        }
        Ok(nearest(found, k))
    }

    fn search_graph(
        &self,
        segment: &Segment,
        query: &Query<'_>,
        beam: usize,
        moment: Moment,
    ) -> Result<Vec<Near>, IndexError> {
        if segment.graph.rows() == 0 {
            return Ok(Vec::new());
        }
        let accept = |row: u32| {
            segment
                .row(row)
                .is_some_and(|row| row.is_visible(moment.sequence, moment.now_ms))
        };
        let live = usize::try_from(segment.live()).unwrap_or(usize::MAX);
        if live <= beam.saturating_mul(SCAN_BEAMS) && segment.len() <= SCAN_ROWS {
            return scan_graph(segment, query, accept);
        }
        if segment.is_all_alive() {
            let near = segment.graph.search(query.components(), beam, None)?;
            // A search that was held up can meet rows from after its moment, and they crowd out
            // the ones it is to see.
            if near.iter().all(|near| accept(near.row)) {
                return Ok(near);
            }
        }
        segment
            .graph
            .search(query.components(), beam, Some(&accept))
    }

    fn scan_chunks<'a>(
        &'a self,
        segment: &'a Segment,
        from_row: u32,
        query: &Query<'_>,
        moment: Moment,
        found: &mut Vec<Found<'a>>,
    ) {
        for chunk in self.chunks.iter().filter(|c| c.segment == segment.id) {
            for number in from_row.max(chunk.first_row)..chunk.end_row() {
                let (Some(row), Some(vector)) = (segment.row(number), chunk.vector(number)) else {
                    break;
                };
                if row.is_visible(moment.sequence, moment.now_ms) {
                    found.push(Found {
                        place: Place {
                            segment: segment.id,
                            row: number,
                        },
                        row,
                        distance: query.distance(vector.as_slice()),
                    });
                }
            }
        }
    }

    /// The nearest `k` visible points by scanning every one, with vectors from the shard's log.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn search_exact(
        &self,
        query: &Query<'_>,
        k: usize,
        moment: Moment,
        log: &wal::Reader,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Found<'_>>, SearchError> {
        let mut found = Vec::new();
        for segment in &self.segments {
            for (number, row) in segment.rows() {
                if number % STOP_ROWS == 0 && stop() {
                    return Err(SearchError::Stopped);
                }
                if !row.is_visible(moment.sequence, moment.now_ms) {
                    continue;
                }
                let frame = log.read(row.wal).map_err(SearchError::Log)?;
                let vector = crate::entry::upsert_body(&frame)?.components();
                found.push(Found {
                    place: Place {
                        segment: segment.id,
                        row: number,
                    },
                    row,
                    distance: query.distance(&vector),
                });
            }
            // Keeps memory at a few times k however many rows there are.
            found = nearest(found, k);
        }
        Ok(nearest(found, k))
    }

    /// Visible points. Rows that can expire are looked at one by one only where there are any.
    pub fn count(&self, moment: Moment) -> u64 {
        let counts = self.segments.iter().map(|segment| {
            let visible = segment
                .rows()
                .filter(|(_, row)| row.is_visible(moment.sequence, moment.now_ms));
            u64::try_from(visible.count()).unwrap_or(u64::MAX)
        });
        counts.sum()
    }

    /// Memory the graphs hold.
    pub fn graph_bytes(&self) -> u64 {
        let bytes = self.segments.iter().map(|segment| segment.graph.bytes());
        u64::try_from(bytes.sum::<usize>()).unwrap_or(u64::MAX)
    }

    /// Rows in the memtable that are in no graph yet.
    pub fn memtable_rows(&self) -> u32 {
        let growing = self.growing();
        growing.len().saturating_sub(growing.folded())
    }
}

/// Looks at every row the graph holds: a graph may not lead to each of them, and a caller who
/// asks for about as many points as there are is to get them all.
fn scan_graph(
    segment: &Segment,
    query: &Query<'_>,
    accept: impl Fn(u32) -> bool,
) -> Result<Vec<Near>, IndexError> {
    let mut near = Vec::new();
    for row in (0..segment.folded()).filter(|row| accept(*row)) {
        let vector = segment.graph.vector(row)?;
        near.push(Near {
            row,
            distance: query.distance(&vector),
        });
    }
    Ok(near)
}

/// Sorts by (distance, id) and keeps `k`. A view never shows two rows of one id at one sequence.
fn nearest(mut found: Vec<Found<'_>>, k: usize) -> Vec<Found<'_>> {
    found.sort_unstable_by(|a, b| {
        let by_distance = a.distance.total_cmp(&b.distance);
        by_distance.then_with(|| a.row.id.cmp(&b.row.id))
    });
    found.truncate(k);
    found
}

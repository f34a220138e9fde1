//! What a search sees: the segments and memtable chunks of a moment, at one sequence.
//!
//! A view is immutable and replaced as a whole. The order of loads matters: first the sequence,
//! then the view. The writer publishes a chunk before it publishes the sequence of a row in it,
//! so every row born by the sequence is in the view; compaction notes the sequence from which on
//! its output is complete, and a search from before takes another look.

use std::{ops::Range, sync::Arc};

use shoal_runtime::ErrorKind;

use crate::{
    index::{IndexError, Near, distance::Query},
    segment::{Place, PointError, Row, Segment, SegmentId, Sequence, growing::Chunk},
    wal,
};

/// With fewer live rows than this many beams a segment is scanned, not walked.
const SCAN_BEAMS: usize = 2;
/// A segment of more rows, dead ones counted, is walked all the same.
const SCAN_ROWS: u32 = 32_768;
/// Candidates re-scored from exact vectors beyond the k asked for, at least.
///
/// Measured on 116,659 rows of 384 dimensions with codes of one byte: 5 more than k = 10 keep
/// recall@10 within 0.0002 of re-scoring 40, at every beam from 24 to 128.
const RESCORE_MORE: usize = 6;

/// Rows an exact search looks at before it drops the farther ones.
const EXACT_SLICE_ROWS: u32 = 4096;

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
    /// Its segment.
    pub segment: &'a Segment,
    /// Its row.
    pub row: Row<'a>,
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
    /// A row does not give its vector back.
    #[error("cannot read a candidate's vector")]
    Point(#[from] PointError),
}

impl SearchError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Index(error) => error.kind(),
            Self::Point(error) => error.kind(),
        }
    }
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

    /// The nearest `k` visible points, by (distance, id), found with beams of at least `beam`.
    ///
    /// Graphs are walked by their codes; the best candidates of all segments are then re-scored
    /// from the exact vectors, so that a distance does not depend on where a point happens to lie.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn search(
        &self,
        query: &Query<'_>,
        k: usize,
        beam: usize,
        moment: Moment,
        log: &wal::Reader,
    ) -> Result<Vec<Found<'_>>, SearchError> {
        let beam = beam.max(k);
        let want = k.saturating_add((k / 2).max(RESCORE_MORE));
        let mut coarse = Vec::new();
        let mut found = Vec::new();
        for segment in &self.segments {
            // Read before the graph is searched: rows below are in it, rows above are scanned.
            let folded = segment.folded();
            self.walk(
                segment,
                folded,
                query,
                beam.max(want),
                want,
                moment,
                log,
                &mut coarse,
                &mut found,
            )?;
            self.scan_chunks(segment, folded, query, moment, &mut found);
        }
        // What is exact already takes none of the places of what is not.
        coarse.sort_unstable_by(|a: &Found<'_>, b| a.distance.total_cmp(&b.distance));
        coarse.truncate(want);
        let mut vector = Vec::new();
        for mut one in coarse {
            one.segment.vector(one.place.row, log, &mut vector)?;
            one.distance = query.distance(&vector);
            found.push(one);
        }
        Ok(nearest(found, k))
    }

    /// Adds the candidates of one segment's graph: as the graph's codes see them to `coarse`, or
    /// to `exact` where so few rows live that each is looked at.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one search, inside it"
    )]
    fn walk<'a>(
        &'a self,
        segment: &'a Segment,
        folded: u32,
        query: &Query<'_>,
        beam: usize,
        want: usize,
        moment: Moment,
        log: &wal::Reader,
        coarse: &mut Vec<Found<'a>>,
        exact: &mut Vec<Found<'a>>,
    ) -> Result<(), SearchError> {
        if folded == 0 {
            return Ok(());
        }
        let accept = |row: u32| is_visible(segment, row, moment);
        let live = usize::try_from(segment.live()).unwrap_or(usize::MAX);
        if live <= beam.saturating_mul(SCAN_BEAMS) && segment.len() <= SCAN_ROWS {
            return scan_rows(segment, 0..folded, query, moment, log, exact);
        }
        // A walk passes over dead rows, which take places of its beam.
        let all = usize::try_from(segment.len()).unwrap_or(usize::MAX);
        let beam = beam.saturating_mul(all) / live.max(1);
        let mut near = None;
        if segment.is_all_alive() {
            let walked = segment.walk(query, beam, want, None)?;
            // A search that was held up can meet rows from after its moment, and they crowd out
            // the ones it is to see.
            near = walked.iter().all(|near| accept(near.row)).then_some(walked);
        }
        let near: Vec<Near> = match near {
            Some(near) => near,
            None => segment.walk(query, beam, want, Some(&accept))?,
        };
        for Near { row, distance } in near {
            if row < folded
                && let Some(found) = Found::at(segment, row, distance, moment)
            {
                coarse.push(found);
            }
        }
        Ok(())
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
                let Some(vector) = chunk.vector(number) else {
                    break;
                };
                let distance = query.distance(vector.as_slice());
                found.extend(Found::at(segment, number, distance, moment));
            }
        }
    }

    /// The nearest `k` visible points by scanning every one.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn search_exact(
        &self,
        query: &Query<'_>,
        k: usize,
        moment: Moment,
        log: &wal::Reader,
    ) -> Result<Vec<Found<'_>>, SearchError> {
        let mut found = Vec::new();
        for segment in &self.segments {
            for from in
                (0..segment.len()).step_by(usize::try_from(EXACT_SLICE_ROWS).unwrap_or(usize::MAX))
            {
                let rows = from..segment.len().min(from.saturating_add(EXACT_SLICE_ROWS));
                scan_rows(segment, rows, query, moment, log, &mut found)?;
                // Keeps memory at a few times k however many rows there are.
                found = nearest(found, k);
            }
        }
        Ok(found)
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
        let bytes = self.segments.iter().map(|segment| segment.graph_bytes());
        u64::try_from(bytes.sum::<usize>()).unwrap_or(u64::MAX)
    }

    /// Rows in the memtable that are in no graph yet.
    pub fn memtable_rows(&self) -> u32 {
        let growing = self.growing();
        growing.len().saturating_sub(growing.folded())
    }
}

impl<'a> Found<'a> {
    /// The row as found, if it is visible.
    fn at(segment: &'a Segment, number: u32, distance: f32, moment: Moment) -> Option<Self> {
        let row = segment.row(number)?;
        let visible = row.is_visible(moment.sequence, moment.now_ms);
        visible.then_some(Self {
            place: Place {
                segment: segment.id,
                row: number,
            },
            segment,
            row,
            distance,
        })
    }
}

fn is_visible(segment: &Segment, row: u32, moment: Moment) -> bool {
    match segment.as_sealed() {
        Some(sealed) => sealed.is_visible(row, moment.sequence, moment.now_ms),
        None => segment
            .row(row)
            .is_some_and(|row| row.is_visible(moment.sequence, moment.now_ms)),
    }
}

/// Looks at every one of `rows`: a graph may not lead to each of them, and a caller who asks
/// for about as many points as there are is to get them all.
fn scan_rows<'a>(
    segment: &'a Segment,
    rows: Range<u32>,
    query: &Query<'_>,
    moment: Moment,
    log: &wal::Reader,
    found: &mut Vec<Found<'a>>,
) -> Result<(), SearchError> {
    let mut vector = Vec::new();
    for number in rows {
        if is_visible(segment, number, moment) {
            segment.vector(number, log, &mut vector)?;
            found.extend(Found::at(segment, number, query.distance(&vector), moment));
        }
    }
    Ok(())
}

/// Sorts by (distance, id) and keeps `k`. A view never shows two rows of one id at one sequence.
fn nearest(mut found: Vec<Found<'_>>, k: usize) -> Vec<Found<'_>> {
    let order = |a: &Found<'_>, b: &Found<'_>| {
        let by_distance = a.distance.total_cmp(&b.distance);
        by_distance.then_with(|| a.row.id.cmp(b.row.id))
    };
    if found.len() > k {
        if let Some(last) = k.checked_sub(1) {
            found.select_nth_unstable_by(last, order);
        }
        found.truncate(k);
    }
    found.sort_unstable_by(order);
    found
}

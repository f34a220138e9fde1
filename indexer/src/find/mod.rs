//! Finding the rows nearest to a vector in the view of a moment, under a filter.
//!
//! Each segment is planned by itself ([`plan`]): its graph is walked, its matching rows are
//! scanned, or it is passed over. Graphs of which any live row will do are walked beside each other
//! (`together`), for the nearest of all rows lie in few of them. Walks and scans of codes give
//! candidates whose distances are near the exact ones; the best of all segments are then re-scored
//! from the exact vectors, so that a distance does not depend on where a point happens to lie. The
//! memtable is always scanned, exactly. A row that rides is found where its carrier's node is met
//! ([`View::shown`]), and nowhere else.

mod kept;
mod pooled;
mod together;
mod told;

use std::cmp::Ordering;

use shoal_runtime::ErrorKind;
use shoal_schemas::Filter;

use crate::{
    fields::{
        self, RowSet,
        plan::{self, COSTS, Plan},
    },
    find::{kept::Kept, together::Part},
    index::{
        Near,
        distance::Query,
        packed::{self, Accept},
    },
    segment::{Place, PointError, Row, Segment, SegmentId},
    view::{Moment, View},
    wal,
};

pub(crate) use self::told::Timer;
pub use self::{
    pooled::{Pooled, nearest_of_all},
    told::Told,
};

/// Rows measured before a scan asks whether to go on.
const SLICE_ROWS: usize = 4096;

/// Exact vectors read between two looks at whether anybody still waits: well below a millisecond.
const STOP_ROWS: usize = 64;

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

/// A candidate: what its row says is looked up once it is known to be among the nearest.
#[derive(Clone, Copy)]
struct Met<'a> {
    place: Place,
    segment: &'a Segment,
    distance: f32,
}

/// What is looked for.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The vector.
    pub query: &'a Query<'a>,
    /// How many rows.
    pub k: usize,
    /// How many candidates are re-scored, at least `k`.
    pub rescore: usize,
    /// How wide to walk.
    pub beam: usize,
    /// Whether every row is to be looked at.
    pub exact: bool,
    /// Which rows; a filter over indexed fields.
    pub filter: Option<&'a Filter>,
    /// The moment.
    pub moment: Moment,
    /// Where points of growing segments stand.
    pub log: &'a wal::Reader,
    /// Says that nobody waits for the answer any more.
    pub stop: &'a dyn Fn() -> bool,
    /// Whether it is told how long each step took.
    pub is_timed: bool,
}

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A row does not give its vector back.
    #[error("cannot read a candidate's vector")]
    Point(#[from] PointError),
    /// The payload index.
    #[error("payload index fails")]
    Fields(#[from] fields::ReadError),
    /// The caller stopped waiting.
    #[error("search was given up, nobody waits for it any more")]
    Stopped,
}

impl SearchError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Point(error) => error.kind(),
            Self::Fields(error) => error.kind(),
            Self::Stopped => ErrorKind::Retry,
        }
    }
}

/// The nearest `k` visible points that match, by (distance, id), and what was done to find them.
///
/// # Errors
/// [`SearchError`].
pub fn nearest<'a>(
    view: &'a View,
    wanted: &Wanted<'_>,
    told: &mut Told,
) -> Result<Vec<Found<'a>>, SearchError> {
    let Candidates { coarse, mut exact } = Candidates::of(view, wanted, told)?;
    let timer = Timer::start_if(wanted.is_timed);
    let mut vector = Vec::new();
    // What is exact already takes none of the places of what is not.
    for (at, one) in coarse.nearest().into_iter().enumerate() {
        if at.is_multiple_of(STOP_ROWS) && (wanted.stop)() {
            return Err(SearchError::Stopped);
        }
        exact.push(one.measured(wanted, &mut vector)?);
    }
    let nearest = exact.first(wanted.k);
    let found = nearest.iter().filter_map(Met::found).collect();
    told.rescore_us += timer.micros();
    Ok(found)
}

/// What was found in a view, before exact distances are computed.
struct Candidates<'a> {
    /// Found by codes.
    coarse: Kept<'a>,
    /// Found by exact vectors.
    exact: Kept<'a>,
}

impl<'a> Candidates<'a> {
    /// Looks through all segments of a view.
    fn of(view: &'a View, wanted: &Wanted<'_>, told: &mut Told) -> Result<Self, SearchError> {
        let timer = Timer::start_if(wanted.is_timed);
        // Of all segments first: a row that is met in one may lie in another.
        let mut sets = Vec::new();
        if let Some(filter) = wanted.filter {
            for segment in &view.segments {
                told.estimated += count(segment.estimate(filter)?.upper);
                let set = segment.matches(filter)?;
                *told.matches.get_or_insert(0) += count(set.len());
                sets.push((segment.id, set));
            }
        }
        told.plan_us += timer.micros();
        let want = wanted.rescore.max(wanted.k);
        let mut search = Search {
            view,
            wanted,
            sets: &sets,
            want,
            coarse: Kept::new(want, by_distance),
            exact: Kept::new(want.max(wanted.beam), by_distance_then_id),
            vector: Vec::new(),
            told,
        };
        let mut parts = Vec::new();
        for segment in &view.segments {
            parts.extend(search.segment(segment)?);
        }
        search.together(parts)?;
        let Search { coarse, exact, .. } = search;
        Ok(Self { coarse, exact })
    }
}

/// A search under way.
struct Search<'a, 'w> {
    view: &'a View,
    wanted: &'w Wanted<'w>,
    /// With a filter, the rows of each segment that match.
    sets: &'w [(SegmentId, RowSet)],
    /// How many candidates are re-scored.
    want: usize,
    /// Found by codes.
    coarse: Kept<'a>,
    /// Found by exact vectors: those that may be answered with, and as many as tell walks how far to go.
    exact: Kept<'a>,
    vector: Vec<f32>,
    told: &'w mut Told,
}

impl<'a, 'w> Search<'a, 'w> {
    /// Looks through a segment, or says how its graph is to be walked beside others.
    fn segment(&mut self, segment: &'a Segment) -> Result<Option<Part<'a>>, SearchError> {
        let timer = self.timer();
        // Read before the graph is searched: rows below are in it, rows above are scanned.
        let folded = segment.folded();
        let set = self.set(segment.id);
        let plan = self.plan(segment, folded, set);
        self.told.plan_us += timer.micros();
        let timer = self.timer();
        let mut part = None;
        match plan {
            Plan::Skip => {}
            Plan::Scan => self.scan(segment, folded, set)?,
            Plan::Walk(walk) => {
                part = Part::of(segment, folded, set, walk);
                if part.is_none() {
                    self.walk(segment, folded, set, walk)?;
                }
            }
        }
        self.scan_memtable(segment, folded);
        self.told.search_us += timer.micros();
        Ok(part)
    }

    fn timer(&self) -> Timer {
        Timer::start_if(self.wanted.is_timed)
    }

    fn set(&self, segment: SegmentId) -> Option<&'w RowSet> {
        set_of(self.sets, segment)
    }

    /// The matching rows of a segment that a search meets in others, at most.
    fn riders_that_match(&self, segment: &Segment) -> usize {
        if !segment.rides.has_carriers() {
            return 0;
        }
        let riders = self
            .view
            .segments
            .iter()
            .filter(|one| one.rides.has_riders());
        let matches = riders.filter_map(|one| self.set(one.id)).map(RowSet::len);
        // One that has ended may be visible to this search still.
        matches
            .sum::<usize>()
            .min(size(segment.rides.carrying().max(1)))
    }

    /// How to look through the rows of a segment's graph.
    fn plan(&self, segment: &Segment, folded: u32, set: Option<&RowSet>) -> Plan {
        let rows = size(segment.nodes().min(folded));
        if rows == 0 {
            return Plan::Skip;
        }
        let live = size(segment.live_in_graph(folded));
        let beam = self.wanted.beam.max(self.want);
        let is_scanned = self.wanted.exact || !segment.has_edges();
        let Some(set) = set else {
            // One that has ended may be visible to this search still.
            let live = live.max(1);
            let segment = plan::Segment {
                rows,
                looked: rows,
                live,
                matches: live,
                vector_bytes: segment.code_bytes(),
            };
            return match is_scanned {
                true => Plan::Scan,
                false => Plan::new(segment, self.want, beam, &COSTS),
            };
        };
        let matches = set.len().saturating_add(self.riders_that_match(segment));
        if is_scanned && matches > 0 {
            return Plan::Scan;
        }
        // Dead rows match like live ones: that as many match as live says nothing of any.
        let is_every_row = set.len() >= size(segment.len()) && !segment.rides.has_carriers();
        let segment = plan::Segment {
            rows,
            looked: matches.min(rows),
            live,
            matches: matches.min(rows),
            vector_bytes: segment.code_bytes(),
        };
        match Plan::new(segment, self.want, beam, &COSTS) {
            Plan::Walk(walk) => Plan::Walk(plan::Walk {
                is_filtered: !is_every_row,
                ..walk
            }),
            other => other,
        }
    }

    fn walk(
        &mut self,
        segment: &'a Segment,
        folded: u32,
        set: Option<&RowSet>,
        walk: plan::Walk,
    ) -> Result<(), SearchError> {
        let (view, sets, moment) = (self.view, self.sets, self.wanted.moment);
        let query = self.wanted.query;
        let own = set.filter(|_| walk.is_filtered);
        let own = own.map(|set| set.clone().for_walk());
        // So many have to be met for the walk to count.
        let want = match own.is_some() {
            true => self.want.max(walk.enough),
            false => self.want,
        };
        let accept = |row: u32| {
            let Some((shown, number)) = view.shown(segment, row, moment) else {
                return false;
            };
            own.as_ref().is_none_or(|own| match shown.id == segment.id {
                true => own.contains(number),
                false => takes(sets, shown, number),
            })
        };
        let mut near = None;
        if own.is_none() && segment.is_all_alive() {
            let walked = segment.walk(query, walk.beam, want, None);
            // A search that was held up can meet rows from after its moment, and they crowd out
            // the ones it is to see.
            let is_of_moment = walked.near.iter().all(|near| accept(near.row));
            near = is_of_moment.then_some(walked);
        }
        let walked = match near {
            Some(near) => near,
            None => {
                let accept = Accept {
                    takes: &accept,
                    max_distances: walk.max_visits,
                };
                segment.walk(query, walk.beam, want, Some(accept))
            }
        };
        self.take(segment, folded, set, walk, walked)
    }

    /// Takes what a walk has found, unless a scan is to find more.
    fn take(
        &mut self,
        segment: &'a Segment,
        folded: u32,
        set: Option<&RowSet>,
        walk: plan::Walk,
        walked: packed::Walk,
    ) -> Result<(), SearchError> {
        let (view, moment) = (self.view, self.wanted.moment);
        self.told.distances += count(walked.distances);
        match set.is_some() && walk.is_filtered {
            true => self.told.filtered += 1,
            false => self.told.walked += 1,
        }
        if walked.is_cut || walk.is_starved(walked.near.len()) {
            return self.scan(segment, folded, set);
        }
        for Near { row, distance } in walked.near {
            if row < folded
                && let Some(met) = Met::at(view, segment, row, distance, moment)
            {
                self.coarse.push(met);
            }
        }
        Ok(())
    }

    /// Looks at every visible row of a graph, or at those of a set.
    fn scan(
        &mut self,
        segment: &'a Segment,
        folded: u32,
        set: Option<&RowSet>,
    ) -> Result<(), SearchError> {
        self.told.scanned += 1;
        match set {
            None => {
                let moment = self.wanted.moment;
                // A row that has ended may carry one that lives.
                let carriers = segment.rides.carriers();
                let carriers =
                    carriers.filter(|row| *row < folded && !segment.is_visible(*row, moment));
                // One that rides is found at its carrier.
                let own = segment.visible(folded, moment);
                let own = own.filter(|row| !segment.rides.is_rider(*row));
                self.scan_rows(segment, own.chain(carriers))
            }
            Some(set) => {
                let own = set.iter().take_while(|row| *row < folded);
                let carriers = self.carriers_of_matches(segment);
                let others = carriers
                    .into_iter()
                    .filter(|row| *row < folded && !set.contains(*row));
                self.scan_rows(segment, own.chain(others))
            }
        }
    }

    /// The rows of a segment on which ones ride that match, each once.
    fn carriers_of_matches(&self, segment: &Segment) -> Vec<u32> {
        if !segment.rides.has_carriers() {
            return Vec::new();
        }
        let mut rows = Vec::new();
        for (id, set) in self.sets {
            let Some(riders) = self.view.segment(*id).filter(|one| one.rides.has_riders()) else {
                continue;
            };
            for rider in set.iter().filter(|row| riders.rides.is_rider(*row)) {
                if !riders.is_visible(rider, self.wanted.moment) {
                    continue;
                }
                match riders.rides.carrier(rider) {
                    Some(carrier) if carrier.segment == segment.id => rows.push(carrier.row),
                    Some(carrier) if self.view.segment(carrier.segment).is_some() => {}
                    // It has moved to a segment that this view does not have yet.
                    _ => return segment.rides.carriers().collect(),
                }
            }
        }
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    fn scan_rows(
        &mut self,
        segment: &'a Segment,
        mut rows: impl Iterator<Item = u32>,
    ) -> Result<(), SearchError> {
        loop {
            let slice: Vec<u32> = rows.by_ref().take(SLICE_ROWS).collect();
            if slice.is_empty() {
                return Ok(());
            }
            if (self.wanted.stop)() {
                return Err(SearchError::Stopped);
            }
            match self.wanted.exact {
                true => self.scan_exactly(segment, &slice)?,
                false => self.scan_codes(segment, slice),
            }
        }
    }

    /// Measures rows by their codes, and looks whether those are to be seen that are near enough: that is in
    /// another place of memory. Where a filter gives the rows and most have ended it is looked first, for that
    /// takes less than a distance.
    fn scan_codes(&mut self, segment: &'a Segment, mut rows: Vec<u32>) {
        if !self.sets.is_empty() && segment.live() < segment.len() / 2 {
            rows.retain(|row| self.matching(segment, *row).is_some());
        }
        let measured = segment.measure(self.wanted.query, &rows);
        self.told.distances += count(measured.len());
        for Near { row, distance } in measured {
            if self.coarse.may_take(distance)
                && let Some(met) = self.matching(segment, row)
            {
                self.coarse.push(Met { distance, ..met });
            }
        }
    }

    fn scan_exactly(&mut self, segment: &'a Segment, rows: &[u32]) -> Result<(), SearchError> {
        let wanted = self.wanted;
        for (at, row) in rows.iter().enumerate() {
            if at.is_multiple_of(STOP_ROWS) && (wanted.stop)() {
                return Err(SearchError::Stopped);
            }
            let Some(found) = self.matching(segment, *row) else {
                continue;
            };
            self.told.distances += 1;
            let found = found.measured(wanted, &mut self.vector)?;
            self.exact.push(found);
        }
        Ok(())
    }

    /// Measures the rows of a segment that no graph has yet.
    ///
    /// As with codes it is looked only of those near enough whether they are to be seen; but a filter, which
    /// leaves few rows as a rule, is asked before.
    fn scan_memtable(&mut self, segment: &'a Segment, folded: u32) {
        for chunk in self.view.chunks.iter().filter(|c| c.segment == segment.id) {
            for row in folded.max(chunk.first_row)..chunk.end_row() {
                let Some(vector) = chunk.row(row) else {
                    break;
                };
                let Some(vector) = vector else {
                    continue;
                };
                if !self.sets.is_empty() && self.matching(segment, row).is_none() {
                    continue;
                }
                let distance = self.wanted.query.distance(vector.as_slice());
                self.told.distances += 1;
                if self.exact.may_take(distance)
                    && let Some(met) = self.matching(segment, row)
                {
                    self.exact.push(Met { distance, ..met });
                }
            }
        }
    }

    /// What a search may answer with that meets a row, its distance not measured yet.
    fn matching(&self, segment: &'a Segment, row: u32) -> Option<Met<'a>> {
        let found = Met::at(self.view, segment, row, 0.0, self.wanted.moment)?;
        takes(self.sets, found.segment, found.place.row).then_some(found)
    }
}

impl<'a> Met<'a> {
    /// What is found at a row's node, if anything.
    fn at(
        view: &'a View,
        segment: &'a Segment,
        row: u32,
        distance: f32,
        moment: Moment,
    ) -> Option<Self> {
        let (segment, number) = view.shown(segment, row, moment)?;
        Some(Self {
            place: Place {
                segment: segment.id,
                row: number,
            },
            segment,
            distance,
        })
    }

    /// The same with its exact distance.
    fn measured(mut self, wanted: &Wanted<'_>, vector: &mut Vec<f32>) -> Result<Self, SearchError> {
        self.segment.vector(self.place.row, wanted.log, vector)?;
        self.distance = wanted.query.distance(vector);
        Ok(self)
    }

    fn row(&self) -> Option<Row<'a>> {
        self.segment.row(self.place.row)
    }

    fn id(&self) -> &'a str {
        self.row().map_or("", |row| row.id)
    }

    fn found(&self) -> Option<Found<'a>> {
        Some(Found {
            place: self.place,
            segment: self.segment,
            row: self.row()?,
            distance: self.distance,
        })
    }
}

fn set_of(sets: &[(SegmentId, RowSet)], segment: SegmentId) -> Option<&RowSet> {
    let set = sets.iter().find(|(id, _)| *id == segment);
    set.map(|(_, set)| set)
}

/// Whether a row matches; every row does where there is no filter.
fn takes(sets: &[(SegmentId, RowSet)], segment: &Segment, row: u32) -> bool {
    set_of(sets, segment.id).is_none_or(|set| set.contains(row))
}

fn by_distance(a: &Met<'_>, b: &Met<'_>) -> Ordering {
    a.distance.total_cmp(&b.distance)
}

/// The order of answers. A view never shows two rows of one id at one sequence.
fn by_distance_then_id(a: &Met<'_>, b: &Met<'_>) -> Ordering {
    by_distance(a, b).then_with(|| a.id().cmp(b.id()))
}

fn size(rows: u32) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;

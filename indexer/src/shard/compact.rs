//! Compaction: live rows of segments with many dead ones move into a new segment.
//!
//! The builder makes the new segment beside the old ones, from rows alive when it starts; searches
//! go on in the old ones. Then the writer moves the catalog over, a slice a turn, ending a row in
//! both when its point changes meanwhile, and at last replaces the old segments in the view.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    catalog::CatalogError,
    index::IndexError,
    segment::{Place, Row, Segment, SegmentId, Sequence},
    shard::{Shared, builder},
    view::View,
};

/// Rows the writer moves over a turn: well under a millisecond of work.
const SLICE_ROWS: u32 = 512;

/// A new segment that is to take the place of old ones.
pub struct Compacted {
    /// The new segment, its graph complete.
    pub output: Arc<Segment>,
    /// Where each of its rows came from, by row.
    pub origins: Vec<Place>,
    /// Each old row's number in the new segment, if it was alive.
    pub moved: HashMap<SegmentId, Vec<Option<u32>>>,
}

/// Which sealed segments are worth rebuilding together now; empty if none.
pub fn choose(shared: &Shared, view: &View) -> Vec<Arc<Segment>> {
    let engine = &shared.spec.engine;
    let (_, sealed) = view
        .segments
        .split_last()
        .expect("a view keeps a growing segment");
    let ready = |segment: &&Arc<Segment>| segment.folded() == segment.len();
    let is_worn = |segment: &Segment| is_worn(engine, segment);
    let small = engine.seal_rows / 2;
    let small_ones = sealed.iter().filter(ready).filter(|s| s.live() < small);
    let worn = sealed.iter().filter(ready).any(|segment| is_worn(segment));
    // One small segment beside a big one is normal; several are worth a merge.
    if !worn && small_ones.clone().count() < 4 {
        return Vec::new();
    }
    // Worn ones first, so that a small one in front cannot crowd them out for ever.
    let (worn_ones, others): (Vec<_>, Vec<_>) =
        sealed.iter().filter(ready).partition(|s| is_worn(s));
    let small_ones = others.into_iter().filter(|s| s.live() < small);
    let mut chosen: Vec<Arc<Segment>> = Vec::new();
    let mut rows = 0u32;
    for segment in worn_ones.into_iter().chain(small_ones) {
        let with_it = rows.saturating_add(segment.live());
        if chosen.is_empty() || with_it <= engine.seal_rows {
            rows = with_it;
            chosen.push(segment.clone());
        }
    }
    // Rebuilding one segment that is not worn would change nothing.
    match chosen.as_slice() {
        [only] if !is_worn(only) => Vec::new(),
        _ => chosen,
    }
}

/// Whether so many rows of a segment are dead that it is to be rebuilt.
pub fn is_worn(engine: &crate::config::EngineConfig, segment: &Segment) -> bool {
    segment.dead() >= engine.compact_dead_rows
        && f64::from(segment.dead()) >= f64::from(segment.len()) * engine.compact_dead_share
}

/// Builds the new segment. Between rows `meanwhile` keeps the memtable moving.
///
/// # Errors
/// [`IndexError`]; nothing has changed then.
pub fn build(
    shared: &Shared,
    id: SegmentId,
    inputs: &[Arc<Segment>],
    mut meanwhile: impl FnMut() -> Result<builder::Go, IndexError>,
) -> Result<Option<Compacted>, IndexError> {
    let output = Arc::new(Segment::new(id, shared.new_graph()?));
    let mut origins = Vec::new();
    let mut moved = HashMap::new();
    for input in inputs {
        let mut numbers = Vec::new();
        for (number, row) in input.rows() {
            if row.is_dead() {
                numbers.push(None);
                continue;
            }
            let vector = input.graph.vector(number)?;
            // Everything before is in the output's past: it was alive, so it is from the start.
            let new = output.push(Row::new(row.again(), Sequence::default()));
            output.graph.add(new, &vector)?;
            numbers.push(Some(new));
            origins.push(Place {
                segment: input.id,
                row: number,
            });
            if meanwhile()? == builder::Go::Stop {
                return Ok(None);
            }
        }
        moved.insert(input.id, numbers);
    }
    output.set_folded(output.len());
    Ok(Some(Compacted {
        output,
        origins,
        moved,
    }))
}

/// A compaction whose rows the writer is moving over.
pub struct Moving {
    compacted: Compacted,
    next_row: u32,
}

impl Moving {
    /// Starts: rows that ended while the new segment was built end there too.
    pub fn start(shared: &Shared, compacted: Compacted, at: Sequence) -> Self {
        for (number, origin) in (0u32..).zip(&compacted.origins) {
            let ended = shared
                .segment(origin.segment)
                .and_then(|segment| segment.row(origin.row).map(Row::is_dead));
            if ended != Some(false) {
                compacted.output.end(number, at);
            }
        }
        shared.moving.store(Some(compacted.output.clone()));
        Self {
            compacted,
            next_row: 0,
        }
    }

    /// The same row in the other segment, if there is one.
    pub fn twin(&self, place: Place) -> Option<Place> {
        if place.segment == self.compacted.output.id {
            let row = usize::try_from(place.row).ok()?;
            return self.compacted.origins.get(row).copied();
        }
        let numbers = self.compacted.moved.get(&place.segment)?;
        let row = (*numbers.get(usize::try_from(place.row).ok()?)?)?;
        Some(Place {
            segment: self.compacted.output.id,
            row,
        })
    }

    /// Moves a slice of the catalog over; true once all of it is.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn advance(&mut self, shared: &Shared) -> Result<bool, CatalogError> {
        let output = &self.compacted.output;
        let end = output.len().min(self.next_row.saturating_add(SLICE_ROWS));
        for number in self.next_row..end {
            let Some(row) = output.row(number).filter(|row| !row.is_dead()) else {
                continue;
            };
            let mut state = shared.catalog.read(row.id.as_str())?;
            let place = Place {
                segment: output.id,
                row: number,
            };
            if state.place.and_then(|old| self.twin(old)) == Some(place) {
                state.place = Some(place);
                shared.catalog.put(row.id.clone(), state);
            }
        }
        self.next_row = end;
        Ok(end == output.len())
    }

    /// Replaces the old segments in the view.
    pub fn finish(self, shared: &Shared) {
        let Compacted { output, moved, .. } = self.compacted;
        let complete_from = Sequence(shared.applied.load(Ordering::Acquire));
        shared.change_view(|view| {
            let kept = view
                .segments
                .iter()
                .filter(|segment| !moved.contains_key(&segment.id))
                .cloned();
            let mut segments: Vec<_> = (!output.is_empty())
                .then(|| output.clone())
                .into_iter()
                .collect();
            segments.extend(kept);
            View {
                segments,
                chunks: view.chunks.clone(),
                complete_from,
            }
        });
        shared.moving.store(None);
    }
}

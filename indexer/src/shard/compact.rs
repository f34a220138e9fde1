//! Compaction: live rows of segments with many dead ones move into a new segment.
//!
//! The builder makes the new segment beside the old ones, from rows alive when it starts; searches
//! go on in the old ones. Then the writer moves the catalog over, a slice a turn, ending a row in
//! both when its point changes meanwhile, and at last replaces the old segments in the view.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use shoal_schemas::PointId;

use crate::{
    catalog::CatalogError,
    index::{adjacency::Adjacency, packed, space::Space},
    segment::{
        Place, Segment, SegmentId, Sequence,
        entries::Entry,
        seal::{self, Origin, SealError, Sealer},
        sealed::Sealed,
    },
    shard::Shared,
    view::View,
};

/// Rows the writer moves over a turn: well under a millisecond of work.
const SLICE_ROWS: u32 = 512;
/// Rows read or written in the time that one takes to be folded.
const READ_ROWS: u32 = 32;
/// Rows whose edges are taken over in that time.
const ADOPT_ROWS: u32 = 16;

/// A new segment that is to take the place of old ones.
pub struct Compacted {
    /// The new segment's number.
    pub id: SegmentId,
    /// The new segment; `None` if no row was left.
    pub output: Option<Arc<Segment>>,
    /// Deletes and refusals that no segment holds then.
    pub entries: Vec<Entry>,
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
    let ready = |segment: &&Arc<Segment>| segment.as_sealed().is_some();
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

/// Writes the segment that takes the place of a growing one which takes no more rows.
///
/// `None` if `meanwhile` ended the work.
///
/// # Errors
/// [`SealError`]; nothing has changed then.
pub fn seal(
    shared: &Shared,
    segment: &Arc<Segment>,
    mut meanwhile: impl FnMut() -> Result<bool, SealError>,
) -> Result<Option<Arc<Segment>>, SealError> {
    let Some(growing) = segment.as_growing() else {
        return Ok(None);
    };
    let adjacency = growing.graph.adjacency()?;
    let entries: Vec<Entry> = growing.entries().cloned().collect();
    let origins = (0..segment.len()).map(|row| Origin {
        segment: segment.clone(),
        row,
        alive: segment.end_of(row).is_none(),
    });
    let origins: Vec<Origin> = origins.collect();
    let mut meanwhile = paced(READ_ROWS, &mut meanwhile);
    let shape = shared.spec.shape();
    let Some(survey) = seal::survey(&shape, &origins, &shared.log, &mut meanwhile)? else {
        return Ok(None);
    };
    let folder = shared.spec.segment_folder(segment.id);
    let sealer = Sealer {
        folder: &folder,
        segment: segment.id.0,
        shape,
        origins: &origins,
        survey: &survey,
        adjacency: &adjacency,
        entries: &entries,
        log: &shared.log,
    };
    written(&sealer, meanwhile)
}

/// Writes a segment's folder and opens it.
fn written(
    sealer: &Sealer<'_>,
    meanwhile: impl FnMut() -> Result<bool, SealError>,
) -> Result<Option<Arc<Segment>>, SealError> {
    if !sealer.write(meanwhile)? {
        return Ok(None);
    }
    let sealed = Sealed::open(sealer.folder)?;
    let id = SegmentId(sealer.segment);
    Ok(Some(Arc::new(Segment::sealed(id, sealed))))
}

/// Calls `meanwhile` once for so many rows.
fn paced<'a>(
    rows: u32,
    meanwhile: &'a mut impl FnMut() -> Result<bool, SealError>,
) -> impl FnMut() -> Result<bool, SealError> + 'a {
    let mut passed = 0u32;
    move || {
        passed = passed.wrapping_add(1);
        match passed.is_multiple_of(rows) {
            true => meanwhile(),
            false => Ok(true),
        }
    }
}

/// Builds the new segment. Between rows `meanwhile` keeps the memtable moving, and ends the work
/// by saying no.
///
/// The largest input's edges are taken over as far as its rows are; the others' rows are inserted.
///
/// # Errors
/// [`SealError`]; nothing has changed then.
pub fn build(
    shared: &Shared,
    id: SegmentId,
    inputs: &[Arc<Segment>],
    mut meanwhile: impl FnMut() -> Result<bool, SealError>,
) -> Result<Option<Compacted>, SealError> {
    let mut inputs = inputs.to_vec();
    inputs.sort_by_key(|input| std::cmp::Reverse(input.live()));
    let mut origins = Vec::new();
    let mut moved = HashMap::new();
    let mut entries = Vec::new();
    for input in &inputs {
        // Looked at once: rows that end from here on are in the new segment, and end there too.
        let alive = (0..input.len()).map(|row| input.end_of(row).is_none());
        let mut numbers = Vec::new();
        for (row, alive) in (0u32..).zip(alive) {
            let new = u32::try_from(origins.len()).unwrap_or(u32::MAX);
            numbers.push(alive.then_some(new));
            if alive {
                let segment = input.clone();
                origins.push(Origin {
                    segment,
                    row,
                    alive,
                });
            }
        }
        moved.insert(input.id, numbers);
        if let Some(sealed) = input.as_sealed() {
            entries.extend(
                sealed
                    .entries()?
                    .into_iter()
                    .filter(|entry| is_needed(shared, entry)),
            );
        }
    }
    let places = origins.iter().map(|origin| Place {
        segment: origin.segment.id,
        row: origin.row,
    });
    let places: Vec<Place> = places.collect();
    let mut output = None;
    if !origins.is_empty() {
        let shape = shared.spec.shape();
        let mut reading = paced(READ_ROWS, &mut meanwhile);
        let Some(survey) = seal::survey(&shape, &origins, &shared.log, &mut reading)? else {
            return Ok(None);
        };
        drop(reading);
        let graph = Merge {
            shared,
            inputs: &inputs,
            moved: &moved,
            space: &survey.space,
        };
        let Some(adjacency) = graph.build(&mut meanwhile)? else {
            return Ok(None);
        };
        let folder = shared.spec.segment_folder(id);
        let sealer = Sealer {
            folder: &folder,
            segment: id.0,
            shape,
            origins: &origins,
            survey: &survey,
            adjacency: &adjacency,
            entries: &entries,
            log: &shared.log,
        };
        output = written(&sealer, paced(READ_ROWS, &mut meanwhile))?;
        if output.is_none() {
            return Ok(None);
        }
        entries.clear();
    }
    Ok(Some(Compacted {
        id,
        output,
        entries,
        origins: places,
        moved,
    }))
}

/// The graph of several segments' live rows.
struct Merge<'a> {
    shared: &'a Shared,
    /// The first one's edges are taken over.
    inputs: &'a [Arc<Segment>],
    moved: &'a HashMap<SegmentId, Vec<Option<u32>>>,
    space: &'a Space,
}

impl Merge<'_> {
    fn build(
        &self,
        mut meanwhile: &mut impl FnMut() -> Result<bool, SealError>,
    ) -> Result<Option<Adjacency>, SealError> {
        let rows: u32 = self.inputs.iter().map(|input| input.live()).sum();
        let options = packed::Options {
            space: self.space.clone(),
            parameters: self.shared.spec.collection.index,
            rows,
        };
        let mut vector = Vec::new();
        let mut code = Vec::new();
        let mut inputs = self.inputs.iter();
        let mut builder = match inputs.next().map(|first| (first, first.as_sealed())) {
            Some((first, Some(sealed))) => {
                let graph = sealed.graph();
                let is_coded_alike = graph.space().is_same(self.space);
                let adopt = packed::Adopt {
                    graph,
                    numbers: self.numbers(first),
                    code: |row, out: &mut Vec<u8>| {
                        if is_coded_alike {
                            out.extend_from_slice(graph.code(row).unwrap_or_default());
                            return Ok(graph.bias(row));
                        }
                        first.vector(row, &self.shared.log, &mut vector)?;
                        Ok(self.space.encode_row(&vector, out))
                    },
                };
                let mut looking = paced(ADOPT_ROWS, &mut meanwhile);
                match adopt.build(options, &mut looking)? {
                    Some(builder) => builder,
                    None => return Ok(None),
                }
            }
            _ => packed::Builder::new(options),
        };
        for input in inputs {
            for (row, number) in (0u32..).zip(self.numbers(input)) {
                if number.is_none() {
                    continue;
                }
                input.vector(row, &self.shared.log, &mut vector)?;
                code.clear();
                let bias = self.space.encode_row(&vector, &mut code);
                builder.insert(&code, bias);
                if !meanwhile()? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(builder.finish()))
    }

    /// Where an input's rows are in the new segment.
    fn numbers(&self, input: &Segment) -> &[Option<u32>] {
        self.moved.get(&input.id).map_or(&[], Vec::as_slice)
    }
}

/// Whether a rebuilt catalog would have to know an entry: its tombstone may still be in the topic,
/// and it is the latest word of its source about its id.
fn is_needed(shared: &Shared, entry: &Entry) -> bool {
    let now_ms = i64::try_from(shared.clock.now_ms()).unwrap_or(i64::MAX);
    let grace_ms = i64::try_from(shared.spec.collection.delete_retention_ms).unwrap_or(i64::MAX);
    let is_young = now_ms.saturating_sub(entry.applied_ms) < grace_ms;
    let is_latest = shared.catalog.read(entry.id.as_str()).map(|state| {
        let mut known = state.known.iter();
        known.any(|one| (one.source, one.offset) == (entry.latest.source, entry.latest.offset))
    });
    // One that cannot be looked up is kept.
    is_young && is_latest.unwrap_or(true)
}

/// A compaction whose rows the writer is moving over.
pub struct Moving {
    compacted: Compacted,
    next_row: u32,
}

impl Moving {
    /// Starts: rows that ended while the new segment was built end there too.
    pub fn start(shared: &Shared, compacted: Compacted, at: Sequence) -> Self {
        if let Some(output) = &compacted.output {
            for (number, origin) in (0u32..).zip(&compacted.origins) {
                let ended = shared
                    .segment(origin.segment)
                    .and_then(|segment| segment.row(origin.row).map(|row| row.is_dead()));
                if ended != Some(false) {
                    output.end(number, at);
                }
            }
        }
        shared.moving.store(compacted.output.clone());
        Self {
            compacted,
            next_row: 0,
        }
    }

    /// The same row in the other segment, if there is one.
    pub fn twin(&self, place: Place) -> Option<Place> {
        if place.segment == self.compacted.id {
            let row = usize::try_from(place.row).ok()?;
            return self.compacted.origins.get(row).copied();
        }
        let numbers = self.compacted.moved.get(&place.segment)?;
        let row = (*numbers.get(usize::try_from(place.row).ok()?)?)?;
        Some(Place {
            segment: self.compacted.id,
            row,
        })
    }

    /// Moves a slice of the catalog over; true once all of it is.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn advance(&mut self, shared: &Shared) -> Result<bool, CatalogError> {
        let Some(output) = &self.compacted.output else {
            return Ok(true);
        };
        let end = output.len().min(self.next_row.saturating_add(SLICE_ROWS));
        for number in self.next_row..end {
            let Some(row) = output.row(number).filter(|row| !row.is_dead()) else {
                continue;
            };
            let mut state = shared.catalog.read(row.id)?;
            let place = Place {
                segment: output.id,
                row: number,
            };
            if state.place.and_then(|old| self.twin(old)) == Some(place)
                && let Ok(id) = PointId::new(row.id)
            {
                state.place = Some(place);
                shared.catalog.put(id, state);
            }
        }
        self.next_row = end;
        Ok(end == output.len())
    }

    /// Replaces the old segments in the view.
    pub fn finish(self, shared: &Shared) {
        let Compacted {
            output,
            moved,
            entries,
            ..
        } = self.compacted;
        let complete_from = Sequence(shared.applied.load(Ordering::Acquire));
        shared.change_view(|view| {
            let kept = view
                .segments
                .iter()
                .filter(|segment| !moved.contains_key(&segment.id));
            View {
                segments: output.iter().chain(kept).cloned().collect(),
                chunks: view.chunks.clone(),
                complete_from,
            }
        });
        let view = shared.view.load();
        if let Some(growing) = view.growing().as_growing() {
            for entry in entries {
                growing.push_entry(entry);
            }
        }
        shared.moving.store(None);
    }
}

//! Compaction: live rows of segments with many dead ones move into a new segment.
//!
//! The builder makes the new segment beside the old ones, from rows alive when it starts; searches
//! go on in the old ones. Then the writer moves the catalog over, a slice a turn, ending a row in
//! both when its point changes meanwhile, and at last replaces the old segments in the view.
//!
//! A row that rides on one of the old segments takes that one's place, whichever segment it is in:
//! it has a node of its own then. One of an old segment whose carrier stays where it is rides on.

use std::{collections::HashMap, sync::Arc};

use shoal_schemas::PointId;

use crate::{
    catalog::CatalogError,
    segment::{
        Place, Segment, SegmentId, Sequence,
        entries::Entry,
        seal::{self, Origin, SealError, Sealer},
        sealed::Sealed,
    },
    shard::{
        Shared,
        mending::{Mending, vector_of},
        merge::Merge,
    },
    view::View,
};

/// Rows the writer moves over a turn: well under a millisecond of work.
const SLICE_ROWS: usize = 512;
/// Rows read or written in the time that one takes to be folded.
pub(super) const READ_ROWS: u32 = 32;
/// Rows looked for, when edges are mended, in that time.
pub(super) const MEND_ROWS: u32 = 4;

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
    /// Each old row's number in the new segment, if it was alive or one rode on it.
    pub moved: HashMap<SegmentId, Vec<Option<u32>>>,
    /// The new numbers of rows that rode on old ones, wherever they are.
    pub adopted: HashMap<Place, u32>,
    /// New rows that ride on ones of segments that stay.
    pub riding: Vec<(u32, Place)>,
    /// The new segment's rows, in the order of their ids.
    by_id: Vec<u32>,
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
    let small_ones = sealed.iter().filter(ready).filter(|s| left(s) < small);
    let worn = sealed.iter().filter(ready).any(|segment| is_worn(segment));
    // One small segment beside a big one is normal; several are worth a merge.
    if !worn && small_ones.clone().count() < 4 {
        return Vec::new();
    }
    // Worn ones first, so that a small one in front cannot crowd them out for ever.
    let (worn_ones, others): (Vec<_>, Vec<_>) =
        sealed.iter().filter(ready).partition(|s| is_worn(s));
    let small_ones = others.into_iter().filter(|s| left(s) < small);
    let mut chosen: Vec<Arc<Segment>> = Vec::new();
    let mut rows = 0u32;
    for segment in worn_ones.into_iter().chain(small_ones) {
        let with_it = rows.saturating_add(left(segment));
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

/// Rows that a new segment would hold of an old one, at most.
fn left(segment: &Segment) -> u32 {
    segment.live().saturating_add(segment.rides.carrying())
}

/// Whether so many rows of a segment, or nodes of its graph, are of no use any more that it is to
/// be rebuilt. A dead row that carries another is of use.
pub fn is_worn(engine: &crate::config::EngineConfig, segment: &Segment) -> bool {
    segment.wear().into_iter().any(|(wasted, all)| {
        wasted >= engine.compact_dead_rows
            && f64::from(wasted) >= f64::from(all) * engine.compact_dead_share
    })
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
    let mut mending = Mending {
        goes_on: paced(MEND_ROWS, &mut meanwhile),
        vector: |row: u32, out: &mut Vec<f32>| vector_of(shared, segment, row, out),
    };
    let is_mended = growing.graph.mend(&mut mending)?;
    drop(mending);
    if !is_mended {
        return Ok(None);
    }
    let adjacency = growing.graph.adjacency(segment.len());
    let entries: Vec<Entry> = growing.entries().cloned().collect();
    let origins = (0..segment.len()).map(|row| Origin {
        segment: segment.clone(),
        row,
        alive: segment.end_of(row).is_none(),
        is_node: !segment.rides.is_rider(row),
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
        nodes: None,
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
pub(super) fn paced<'a>(
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
    let (mut adopted, mut riding) = (HashMap::new(), Vec::new());
    let mut entries = Vec::new();
    for input in &inputs {
        let mut numbers = Vec::new();
        for row in 0..input.len() {
            // Looked at once: a row that ends from here on is in the new segment, and ends there too.
            let Some(taken) = take(shared, &inputs, input, row) else {
                numbers.push(None);
                continue;
            };
            let new = u32::try_from(origins.len()).unwrap_or(u32::MAX);
            if let Some(carrier) = taken.carrier {
                riding.push((new, carrier));
            }
            numbers.push(Some(new));
            let place = taken.place();
            if (place.segment, place.row) != (input.id, row) {
                adopted.insert(place, new);
            }
            origins.push(Origin {
                is_node: taken.carrier.is_none(),
                segment: taken.segment,
                row: taken.row,
                alive: true,
            });
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
            origins: &origins,
            space: &survey.space,
        };
        let Some(built) = graph.build(&mut meanwhile)? else {
            return Ok(None);
        };
        let folder = shared.spec.segment_folder(id);
        let sealer = Sealer {
            folder: &folder,
            segment: id.0,
            shape,
            origins: &origins,
            survey: &survey,
            adjacency: &built.edges,
            nodes: Some(&built.coded),
            entries: &entries,
            log: &shared.log,
        };
        output = written(&sealer, paced(READ_ROWS, &mut meanwhile))?;
        if output.is_none() {
            return Ok(None);
        }
        entries.clear();
    }
    let by_id = output.as_deref().map(by_id).unwrap_or_default();
    Ok(Some(Compacted {
        id,
        output,
        by_id,
        entries,
        origins: places,
        moved,
        adopted,
        riding,
    }))
}

/// A segment's rows as the catalog has their ids: side by side there, they are looked up for less.
fn by_id(segment: &Segment) -> Vec<u32> {
    let ids = segment.rows().map(|(number, row)| (row.id, number));
    let mut ids: Vec<(&str, u32)> = ids.collect();
    ids.sort_unstable();
    ids.into_iter().map(|(_, number)| number).collect()
}

/// What a new segment holds for a row of an old one.
struct Taken {
    segment: Arc<Segment>,
    row: u32,
    /// On which it rides on.
    carrier: Option<Place>,
}

impl Taken {
    fn place(&self) -> Place {
        Place {
            segment: self.segment.id,
            row: self.row,
        }
    }
}

/// Takes a row that is alive, or the one that rides on it. Nothing if there is neither, and
/// nothing for a row that rides on one of the old segments: that one brings it.
fn take(shared: &Shared, inputs: &[Arc<Segment>], input: &Arc<Segment>, row: u32) -> Option<Taken> {
    if input.end_of(row).is_some() {
        let (segment, row) = live_rider(shared, input, row)?;
        let carrier = None;
        return Some(Taken {
            segment,
            row,
            carrier,
        });
    }
    let carrier = input.rides.carrier(row);
    let is_brought = |place: Place| inputs.iter().any(|one| one.id == place.segment);
    (!carrier.is_some_and(is_brought)).then(|| Taken {
        segment: input.clone(),
        row,
        carrier,
    })
}

/// The row that rides on one that has ended.
fn live_rider(shared: &Shared, segment: &Segment, row: u32) -> Option<(Arc<Segment>, u32)> {
    let newest = || segment.rides.riders(row).next();
    let mut place = newest()?;
    loop {
        let rider = shared.segment(place.segment)?;
        if rider.end_of(place.row).is_none() {
            return Some((rider, place.row));
        }
        // One that takes its place was there before it ended.
        let again = newest()?;
        if again == place {
            return None;
        }
        place = again;
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
    /// How many rows were moved over.
    moved: usize,
}

impl Moving {
    /// Starts: rows that ended while the new segment was built end there too, and one that rides
    /// on them since does so there as well.
    pub fn start(shared: &Shared, compacted: Compacted, at: Sequence) -> Self {
        if let Some(output) = &compacted.output {
            for (number, carrier) in &compacted.riding {
                output.rides.ride(*number, *carrier);
            }
            for (number, origin) in (0u32..).zip(&compacted.origins) {
                let segment = shared.segment(origin.segment);
                let lives = segment.as_ref().is_some_and(|segment| {
                    let row = segment.row(origin.row);
                    row.is_some_and(|row| !row.is_dead())
                });
                if lives {
                    continue;
                }
                output.end(number, at);
                let carrier = segment.and_then(|segment| segment.rides.carrier(origin.row));
                let carrier = carrier.unwrap_or(*origin);
                // One that rides on a segment that stays does not concern the new one.
                let is_node = !output.rides.is_rider(number);
                let old = shared.segment(carrier.segment).filter(|_| is_node);
                let rider = old.and_then(|old| live_rider(shared, &old, carrier.row));
                if let Some((segment, row)) = rider {
                    let place = Place {
                        segment: output.id,
                        row: number,
                    };
                    segment.rides.ride(row, place);
                    let rider = Place {
                        segment: segment.id,
                        row,
                    };
                    output.rides.carry(number, rider);
                    output.rides.take_up();
                }
            }
        }
        shared.moving.store(compacted.output.clone());
        Self {
            compacted,
            moved: 0,
        }
    }

    /// Whether a place is in the new segment.
    pub fn is_new(&self, place: Place) -> bool {
        place.segment == self.compacted.id
    }

    /// The same point's row in the other segment, if there is one.
    pub fn twin(&self, place: Place) -> Option<Place> {
        let compacted = &self.compacted;
        let row = usize::try_from(place.row).ok()?;
        if self.is_new(place) {
            return compacted.origins.get(row).copied();
        }
        let numbers = compacted.moved.get(&place.segment);
        let number = numbers.and_then(|numbers| *numbers.get(row)?);
        let number = number.or_else(|| compacted.adopted.get(&place).copied())?;
        Some(Place {
            segment: compacted.id,
            row: number,
        })
    }

    /// Whether it ends rows of segments that stay, so that the change has to have a sequence of
    /// its own.
    pub fn ends_others(&self) -> bool {
        !self.compacted.adopted.is_empty()
    }

    /// Moves a slice of the catalog over; true once all of it is.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn advance(&mut self, shared: &Shared) -> Result<bool, CatalogError> {
        let Some(output) = &self.compacted.output else {
            return Ok(true);
        };
        let left = self.compacted.by_id.get(self.moved..).unwrap_or_default();
        let slice = left.get(..SLICE_ROWS).unwrap_or(left);
        for number in slice.iter().copied() {
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
        self.moved += slice.len();
        Ok(slice.len() == left.len())
    }

    /// Replaces the old segments in the view, which is complete from `complete_from` on: the
    /// sequence that is shown, or one that is shown next.
    pub fn finish(self, shared: &Shared, complete_from: Sequence) {
        let Compacted {
            id,
            output,
            moved,
            entries,
            adopted,
            riding,
            ..
        } = self.compacted;
        // In the old view the row is found where it was until then, in the new one from then on
        // where it is.
        for place in adopted.into_keys() {
            if let Some(segment) = shared.segment(place.segment) {
                segment.end(place.row, complete_from);
            }
        }
        for (row, carrier) in riding {
            let is_alive = output
                .as_ref()
                .is_some_and(|output| output.end_of(row).is_none());
            if let Some(segment) = shared.segment(carrier.segment).filter(|_| is_alive) {
                segment.rides.carry(carrier.row, Place { segment: id, row });
            }
        }
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

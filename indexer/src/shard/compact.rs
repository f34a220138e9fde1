//! Compaction: live rows of segments with many dead ones move into a new segment.
//!
//! The builder makes the new segment beside the old ones, from rows alive when it starts; searches
//! go on in the old ones. Then the writer moves the catalog over, a slice a turn, ending a row in
//! both when its point changes meanwhile, and at last replaces the old segments in the view.
//!
//! A row that rides on one of the old segments takes that one's place, whichever segment it is in:
//! it has a node of its own then. One of an old segment whose carrier stays where it is rides on.
//!
//! A row whose point expired a while ago is reclaimed ([`crate::segment::wear`]): it moves to a segment of
//! such rows, without its point, and rides on none.

use std::{collections::HashMap, sync::Arc};

use shoal_schemas::PointId;

use crate::{
    catalog::CatalogError,
    config::EngineConfig,
    segment::{
        Place, Segment, SegmentId, Sequence,
        entries::Entry,
        seal::{self, Origin, SealError, Sealer},
        sealed::Sealed,
        wear::GRACE_MS,
    },
    shard::{
        Shared,
        mending::{Mending, vector_of},
        merge::Merge,
        outputs::Outputs,
        taking::{Taking, live_rider},
    },
    view::View,
};

/// Rows the writer moves over a turn: well under a millisecond of work.
const SLICE_ROWS: usize = 512;
/// Rows read or written in the time that one takes to be folded.
pub(super) const READ_ROWS: u32 = 32;
/// Rows looked for, when edges are mended, in that time.
pub(super) const MEND_ROWS: u32 = 4;
/// So many small segments are worth a merge.
const SMALL_ONES: usize = 4;
/// A segment that several were merged into is larger than each by about this factor.
const MERGED: u32 = 4;

/// New segments that are to take the place of old ones.
pub struct Compacted {
    /// The new segments; none if no row was left.
    pub outputs: Outputs,
    /// Deletes and refusals that no segment holds then.
    pub entries: Vec<Entry>,
    /// Where each of its rows came from, by row.
    pub origins: Vec<Place>,
    /// Each old row's number in the new segments, if it was alive or one rode on it.
    pub moved: HashMap<SegmentId, Vec<Option<u32>>>,
    /// The new numbers of rows that rode on old ones, wherever they are.
    pub adopted: HashMap<Place, u32>,
    /// New rows that ride on ones of segments that stay, or rode and are reclaimed.
    pub riding: Vec<(u32, Place)>,
    /// The new rows, in the order of their ids: as the catalog has them, they are looked up for less.
    by_id: Vec<u32>,
}

/// Which sealed segments are worth rebuilding together now; empty if none.
pub fn choose(shared: &Shared, view: &View) -> Vec<Arc<Segment>> {
    let engine = &shared.spec.engine;
    let expired_by_ms = expired_by_ms(shared);
    let (_, sealed) = view
        .segments
        .split_last()
        .expect("a view keeps a growing segment");
    let is_worn = |segment: &Segment| is_worn(engine, segment, expired_by_ms);
    let ready = sealed.iter().filter(|one| one.as_sealed().is_some());
    let (reclaimed, holding): (Vec<_>, Vec<_>) = ready.partition(|one| one.is_reclaimed());
    let small = engine.seal_rows / 2;
    let left = |segment: &Segment| left(segment, expired_by_ms);
    // More of them come for ever, and are written again only with others of about their size. That is little work:
    // not to be put off by any that there is.
    let size = |segment: &Segment| left(segment).checked_ilog(MERGED).unwrap_or(0);
    let sizes = reclaimed.iter().filter(|one| left(one) < small);
    let mut sizes: Vec<u32> = sizes.map(|one| size(one)).collect();
    sizes.sort_unstable();
    let many = sizes
        .chunk_by(|one, next| one == next)
        .find(|alike| alike.len() >= SMALL_ONES);
    let many = many.and_then(|alike| alike.first().copied());
    let is_alike = |one: &Segment| left(one) < small && many == Some(size(one));
    let chosen = choose_of(&reclaimed, engine.seal_rows, is_worn, is_alike);
    match chosen.is_empty() {
        false => chosen,
        true => choose_of(&holding, engine.seal_rows, is_worn, |one| left(one) < small),
    }
}

/// Those of some segments that are worth rebuilding together: any that are worn, with small ones as far as there is
/// room; several small ones.
fn choose_of(
    segments: &[&Arc<Segment>],
    most_rows: u32,
    is_worn: impl Fn(&Segment) -> bool,
    is_small: impl Fn(&Segment) -> bool,
) -> Vec<Arc<Segment>> {
    // Worn ones first, so that a small one in front cannot crowd them out for ever.
    let (worn, others): (Vec<_>, Vec<_>) = segments.iter().copied().partition(|one| is_worn(one));
    let small: Vec<_> = others.into_iter().filter(|one| is_small(one)).collect();
    // One small segment beside a big one is normal; several are worth a merge.
    if worn.is_empty() && small.len() < SMALL_ONES {
        return Vec::new();
    }
    let is_worn = !worn.is_empty();
    let mut chosen: Vec<Arc<Segment>> = Vec::new();
    let mut rows = 0u32;
    for segment in worn.into_iter().chain(small) {
        // Those that are reclaimed are written, too.
        let with_it = rows.saturating_add(kept(segment));
        if chosen.is_empty() || with_it <= most_rows {
            rows = with_it;
            chosen.push(segment.clone());
        }
    }
    // Rebuilding one segment that is not worn would change nothing.
    match chosen.len() {
        1 if !is_worn => Vec::new(),
        _ => chosen,
    }
}

/// Rows of new segments for those of an old one, at most.
fn kept(segment: &Segment) -> u32 {
    segment.live().saturating_add(segment.rides.carrying())
}

/// Rows that hold their points in a new segment of those of an old one, at most.
fn left(segment: &Segment, expired_by_ms: i64) -> u32 {
    let [(wasted, all), _] = segment.wear(expired_by_ms);
    all.saturating_sub(wasted)
}

/// Whether so many rows of a segment, or nodes of its graph, are of no use any more that it is to
/// be rebuilt. A dead row that carries another is of use, one that had expired by then is not.
pub fn is_worn(engine: &EngineConfig, segment: &Segment, expired_by_ms: i64) -> bool {
    let wear = segment.wear(expired_by_ms);
    wear.into_iter().any(|(wasted, all)| {
        wasted > 0
            && wasted >= engine.compact_dead_rows
            && f64::from(wasted) >= f64::from(all) * engine.compact_dead_share
    })
}

/// Points that expired by then are reclaimed.
pub fn expired_by_ms(shared: &Shared) -> i64 {
    shared.now_ms().saturating_sub(GRACE_MS)
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
        is_reclaimed: false,
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

/// Builds the new segments. Between rows `meanwhile` keeps the memtable moving, and ends the work
/// by saying no.
///
/// The largest input's edges are taken over as far as its rows are; the others' rows are inserted.
///
/// # Errors
/// [`SealError`]; nothing has changed then.
pub fn build(
    shared: &Shared,
    next_segment: impl Fn() -> SegmentId,
    inputs: &[Arc<Segment>],
    mut meanwhile: impl FnMut() -> Result<bool, SealError>,
) -> Result<Option<Compacted>, SealError> {
    let mut inputs = inputs.to_vec();
    let expired_by_ms = expired_by_ms(shared);
    inputs.sort_by_cached_key(|input| std::cmp::Reverse(left(input, expired_by_ms)));
    let (mut taking, mut entries) = (Taking::default(), Vec::new());
    for input in &inputs {
        taking.take_all(shared, &inputs, input);
        if let Some(sealed) = input.as_sealed() {
            entries.extend(
                sealed
                    .entries()?
                    .into_iter()
                    .filter(|entry| is_needed(shared, entry)),
            );
        }
    }
    let Taking {
        origins,
        moved,
        adopted,
        riding,
        first_reclaimed,
        ..
    } = taking.finish();
    let (holding, reclaimed) = origins.split_at(first_reclaimed);
    let shape = shared.spec.shape();
    let mut reading = paced(READ_ROWS, &mut meanwhile);
    let Some(survey) = seal::survey(&shape, holding, &shared.log, &mut reading)? else {
        return Ok(None);
    };
    drop(reading);
    let mut outputs = Outputs::default();
    let mut write = |origins: &[Origin], is_reclaimed| {
        let graph = Merge {
            shared,
            inputs: &inputs,
            moved: &moved,
            // None of those that are reclaimed is a node.
            origins: if is_reclaimed { &[] } else { origins },
            space: &survey.space,
        };
        let Some(built) = graph.build(&mut meanwhile)? else {
            return Ok(false);
        };
        let id = next_segment();
        let folder = shared.spec.segment_folder(id);
        let sealer = Sealer {
            folder: &folder,
            segment: id.0,
            shape: shape.clone(),
            origins,
            is_reclaimed,
            survey: &survey,
            adjacency: &built.edges,
            nodes: Some(&built.coded),
            entries: &std::mem::take(&mut entries),
            log: &shared.log,
        };
        let output = written(&sealer, paced(READ_ROWS, &mut meanwhile))?;
        let is_written = output.is_some();
        outputs.extend(output);
        Ok::<_, SealError>(is_written)
    };
    let parts = [(holding, false), (reclaimed, true)].into_iter();
    let mut parts = parts.filter(|(origins, _)| !origins.is_empty());
    let is_written = parts.try_fold(true, |so_far, (origins, is_reclaimed)| {
        Ok(so_far && write(origins, is_reclaimed)?)
    });
    if !matches!(is_written, Ok(true)) {
        outputs.discard();
        return is_written.map(|_| None);
    }
    let places = origins.iter().map(|origin| Place {
        segment: origin.segment.id,
        row: origin.row,
    });
    Ok(Some(Compacted {
        by_id: outputs.by_id(),
        outputs,
        entries,
        origins: places.collect(),
        moved,
        adopted,
        riding,
    }))
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
    /// Starts: rows that ended while the new segments were built end there too, and one that rides
    /// on them since does so there as well. `None` if one rides on a row that was reclaimed meanwhile: it
    /// would be found by no node of the new segments, which are of no use then.
    pub fn start(shared: &Shared, compacted: Compacted, at: Sequence) -> Option<Self> {
        let outputs = &compacted.outputs;
        let place_of = |number: u32| {
            let origin = compacted.origins.get(usize::try_from(number).ok()?)?;
            Some((origin, outputs.row(number)?))
        };
        let lives = |origin: &Place| {
            let segment = shared.segment(origin.segment);
            segment.is_some_and(|segment| segment.end_of(origin.row).is_none())
        };
        // One that rides on a segment that stays, as this row did, does not concern the new ones.
        let rider_of = |origin: &Place| {
            let segment = shared.segment(origin.segment);
            let carrier = segment.and_then(|segment| segment.rides.carrier(origin.row));
            let carrier = carrier.unwrap_or(*origin);
            let old = compacted.moved.contains_key(&carrier.segment);
            let old = shared.segment(carrier.segment).filter(|_| old);
            old.and_then(|old| live_rider(shared, &old, carrier.row))
        };
        let mut rows = (0u32..).map_while(place_of);
        let is_lost = rows.any(|(origin, (output, _))| {
            output.is_reclaimed() && !lives(origin) && rider_of(origin).is_some()
        });
        if is_lost {
            outputs.discard();
            return None;
        }
        for (number, carrier) in &compacted.riding {
            if let Some((output, row)) = outputs.row(*number) {
                output.rides.ride(row, *carrier);
            }
        }
        for (origin, (output, new)) in (0u32..).map_while(place_of) {
            if lives(origin) {
                continue;
            }
            output.end(new, at);
            if let Some((segment, row)) = rider_of(origin) {
                let place = Place {
                    segment: output.id,
                    row: new,
                };
                segment.rides.ride(row, place);
                let rider = Place {
                    segment: segment.id,
                    row,
                };
                output.rides.carry(new, rider);
                output.rides.take_up();
            }
        }
        shared.moving.store(Arc::new(outputs.clone()));
        Some(Self {
            compacted,
            moved: 0,
        })
    }

    /// Whether a place is in a new segment.
    pub fn is_new(&self, place: Place) -> bool {
        self.compacted.outputs.get(place.segment).is_some()
    }

    /// The same point's row in the other segment, if there is one.
    pub fn twin(&self, place: Place) -> Option<Place> {
        let compacted = &self.compacted;
        if let Some(number) = compacted.outputs.number(place) {
            let number = usize::try_from(number).ok()?;
            return compacted.origins.get(number).copied();
        }
        let row = usize::try_from(place.row).ok()?;
        let numbers = compacted.moved.get(&place.segment);
        let number = numbers.and_then(|numbers| *numbers.get(row)?);
        let number = number.or_else(|| compacted.adopted.get(&place).copied())?;
        compacted.outputs.place(number)
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
        let left = self.compacted.by_id.get(self.moved..).unwrap_or_default();
        let slice = left.get(..SLICE_ROWS).unwrap_or(left);
        for number in slice.iter().copied() {
            let found = self.compacted.outputs.row(number);
            let row = found.and_then(|(output, row)| output.row(row));
            let Some(row) = row.filter(|row| !row.is_dead()) else {
                continue;
            };
            let place = self.compacted.outputs.place(number);
            let mut state = shared.catalog.read(row.id)?;
            if state.place.and_then(|old| self.twin(old)) == place
                && let Ok(id) = PointId::new(row.id)
            {
                state.place = place;
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
            outputs,
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
        for (number, carrier) in riding {
            let Some((output, row)) = outputs.row(number) else {
                continue;
            };
            let is_alive = output.end_of(row).is_none();
            let segment = output.id;
            if let Some(carrying) = shared.segment(carrier.segment).filter(|_| is_alive) {
                match output.is_reclaimed() {
                    true => carrying.rides.set_down(),
                    false => carrying.rides.carry(carrier.row, Place { segment, row }),
                }
            }
            if output.is_reclaimed() {
                output.rides.dismount(row, is_alive);
            }
        }
        shared.change_view(|view| {
            let kept = view
                .segments
                .iter()
                .filter(|segment| !moved.contains_key(&segment.id));
            View {
                segments: outputs.iter().chain(kept).cloned().collect(),
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
        shared.moving.store(Arc::default());
    }
}

#[cfg(test)]
#[path = "amid_tests.rs"]
mod tests;

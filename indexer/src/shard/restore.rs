//! The parts of a recovery: segments from their files, the table of sources, the catalog.

use std::{collections::HashMap, fs, ops::ControlFlow, path::Path, sync::Arc};

use shoal_runtime::{ErrorKind, chain};
use shoal_schemas::{Payload, PointId, RegionName, TopicId, Vector};
use tracing::{info, warn};

use crate::{
    catalog::{Catalog, IdState, Sled, Store},
    entry::{self, Entry, EntryError, Stamp},
    index::{live::Graph, packed::Aligned},
    rule::{Latest, Says, SourceIndex, resolve},
    segment::{
        Place, Segment, SegmentId,
        files::{self, FileError, FileMark, io_error},
        growing::{Chunk, Growing},
        indexed,
        sealed::Sealed,
    },
    shard::{
        SourceSpec, Spec,
        checkpoint::{self, CheckpointError, Kept, Manifest, SegmentFiles},
        growing_file,
        recover::OpenError,
        riders_file,
        writer::WriteError,
    },
    wal::{self, Position, Wal},
};

/// The segments of a checkpoint, with the memtable of what was not folded.
pub(super) struct Restored {
    /// Oldest first, the growing one last.
    pub(super) segments: Vec<Arc<Segment>>,
    /// Vectors of rows that are in no graph yet.
    pub(super) chunks: Vec<Arc<Chunk>>,
}

/// Reads the segments a checkpoint names.
///
/// # Errors
/// [`CheckpointError`] if a file is not what the manifest says.
pub(super) fn restore_segments(
    spec: &Spec,
    manifest: &Manifest,
    log: &wal::Reader,
) -> Result<Restored, CheckpointError> {
    let mut segments = Vec::with_capacity(manifest.segments.len());
    let mut chunks: Vec<Arc<Chunk>> = Vec::new();
    for stored in &manifest.segments {
        let id = SegmentId(stored.id);
        let segment = match &stored.kept {
            Kept::Sealed {
                manifest,
                mask_file,
            } => {
                let folder = spec.segment_folder(id);
                files::verify(&folder, manifest)?;
                let segment = Segment::sealed(id, Sealed::open(&folder)?);
                if let Some(mask) = mask_file {
                    checkpoint::apply_mask(&segment, &folder, mask)?;
                }
                segment
            }
            Kept::Growing { folded, .. } => {
                let segment = restore_growing(spec, stored, log)?;
                // Less than was stored, where the graph is not of use.
                let folded = segment.folded().min(*folded);
                for number in folded..stored.rows {
                    let vector = match segment.rides.is_rider(number) {
                        true => None,
                        false => Some(read_vector(spec, &segment, number, log)?),
                    };
                    match chunks.last().filter(|c| c.segment == id && !c.is_full()) {
                        Some(chunk) => chunk.push(vector),
                        None => {
                            let chunk = Chunk::new(id, number);
                            chunk.push(vector);
                            chunks.push(Arc::new(chunk));
                        }
                    }
                }
                segment
            }
        };
        if (segment.len(), segment.dead()) != (stored.rows, stored.dead) {
            let detail = format!(
                "segment {} has {} rows and {} of them ended, the manifest says {} and {}",
                stored.id,
                segment.len(),
                segment.dead(),
                stored.rows,
                stored.dead
            );
            return Err(files::damaged(&spec.checkpoint_folder(), detail).into());
        }
        segments.push(Arc::new(segment));
    }
    for (stored, carrier) in manifest.segments.iter().zip(&segments) {
        if let Some(mark) = &stored.riders_file {
            restore_riders(spec, (stored, mark), carrier, &segments)?;
        }
    }
    for segment in segments.iter().filter(|one| one.as_growing().is_some()) {
        let mut rows = segment.rows().filter(|(_, row)| !row.is_dead());
        let is_lost = |row| segment.rides.is_rider(row) && segment.rides.carrier(row).is_none();
        if let Some((row, _)) = rows.find(|(row, _)| is_lost(*row)) {
            let detail = format!("row {row} of segment {} rides on none", segment.id.0);
            return Err(files::damaged(&spec.checkpoint_folder(), detail).into());
        }
    }
    Ok(Restored { segments, chunks })
}

/// Reads which rows ride on those of a segment.
fn restore_riders(
    spec: &Spec,
    (stored, mark): (&SegmentFiles, &FileMark),
    carrier: &Segment,
    segments: &[Arc<Segment>],
) -> Result<(), CheckpointError> {
    let folder = match &stored.kept {
        Kept::Sealed { .. } => spec.segment_folder(carrier.id),
        Kept::Growing { .. } => spec.growing_folder(carrier.id),
    };
    for (row, place) in riders_file::read(&folder, mark)? {
        let rider = segments.iter().find(|one| one.id == place.segment);
        let lives = |segment: &Segment, row| segment.row(row).is_some_and(|row| !row.is_dead());
        let Some(rider) = rider.filter(|rider| row < carrier.len() && lives(rider, place.row))
        else {
            let detail = format!(
                "row {} of segment {} is to ride on row {row}, and does not live",
                place.row, place.segment.0
            );
            return Err(files::damaged(&folder.join(&mark.name), detail).into());
        };
        let segment = carrier.id;
        rider.rides.ride(place.row, Place { segment, row });
        carrier.rides.carry(row, place);
        carrier.rides.take_up();
    }
    Ok(())
}

fn restore_growing(
    spec: &Spec,
    stored: &SegmentFiles,
    log: &wal::Reader,
) -> Result<Segment, CheckpointError> {
    let Kept::Growing {
        folded,
        from,
        graph_file,
        rows_file,
        ..
    } = &stored.kept
    else {
        unreachable!("only asked for a segment that takes rows");
    };
    let id = SegmentId(stored.id);
    let folder = spec.growing_folder(id);
    let options = spec.graph_options();
    let (mut graph, mut folded) = (Graph::new(&options), *folded);
    if let Some(mark) = graph_file {
        let path = files::verify(&folder, mark)?;
        let bytes = Aligned::copy_of(&fs::read(&path).map_err(io_error(&path))?);
        match Graph::load(bytes.as_ref(), &options) {
            Ok(loaded) => graph = loaded,
            // Of another version, for its bytes are those that were written. The vectors stand in the
            // shard's own log.
            Err(error) => {
                warn!(shard = %spec.label(), error = %chain(&error), "a graph is built anew");
                folded = 0;
            }
        }
    }
    let rows_path = files::verify(&folder, rows_file)?;
    let graph_rows = usize::try_from(graph.rows()).unwrap_or(usize::MAX);
    let fields = indexed::fields(&spec.collection);
    let growing = Growing::new(graph, fields.clone(), Position::new(*from));
    growing.set_folded(folded);
    let segment = Segment::growing(id, growing);
    growing_file::read(&rows_path, &segment, |row| {
        if fields.is_empty() {
            return Ok(Payload::default());
        }
        let unreadable = |error: String| files::damaged(&spec.wal_folder(), error);
        let frame = log.read(row.wal);
        let frame = frame.map_err(|error| unreadable(chain(&error).to_string()))?;
        let payload = entry::upsert_body(&frame).and_then(|body| body.payload());
        let payload = payload.map_err(|error| unreadable(error.to_string()))?;
        Ok(indexed::payload(&fields, row.id.as_str(), &payload).into_owned())
    })?;
    let nodes = (0..folded).filter(|row| !segment.rides.is_rider(*row));
    let nodes = nodes.count();
    if graph_rows != nodes {
        let detail = format!("graph has {graph_rows} rows, {nodes} of them are folded");
        return Err(files::damaged(&rows_path, detail).into());
    }
    Ok(segment)
}

fn read_vector(
    spec: &Spec,
    segment: &Segment,
    number: u32,
    log: &wal::Reader,
) -> Result<Vector, CheckpointError> {
    let damaged =
        |detail: String| CheckpointError::from(files::damaged(&spec.wal_folder(), detail));
    let row = segment
        .row(number)
        .ok_or_else(|| damaged(format!("segment has no row {number}")))?;
    let frame = log
        .read(row.wal)
        .map_err(|error| damaged(chain(&error).to_string()))?;
    let body = entry::upsert_body(&frame).map_err(|error| damaged(error.to_string()))?;
    Vector::new(
        &body.components(),
        spec.collection.dim,
        spec.collection.metric,
    )
    .map_err(|error| damaged(error.to_string()))
}

/// Every source the shard has had, in the order of their indexes, each with its topic where that is known; new ones are
/// written down.
pub(super) fn source_table(
    spec: &Spec,
    manifest: Option<&Manifest>,
    wal: &mut Wal,
    from: Position,
    shard: &str,
) -> Result<(Vec<SourceSpec>, Vec<Option<TopicId>>), OpenError> {
    let known = manifest
        .map(|one| one.sources.as_slice())
        .unwrap_or_default();
    let mut table: Vec<SourceSpec> = known
        .iter()
        .map(|one| SourceSpec {
            source: one.source.clone(),
            region: one.region.clone(),
        })
        .collect();
    let mut topics: Vec<_> = known.iter().map(|one| one.topic_id.clone()).collect();
    let reader = wal.reader();
    let scanned = reader
        .for_each(from, reader.end(), |_, frame| {
            match Entry::decode(frame) {
                Ok(Entry::Source(index, source, region)) => {
                    if usize::from(index.0) == table.len() {
                        table.push(SourceSpec { source, region });
                        topics.push(None);
                    }
                }
                Ok(Entry::Topic(index, topic)) => {
                    if let Some(known) = topics.get_mut(usize::from(index.0)) {
                        *known = Some(topic);
                    }
                }
                Ok(_) => {}
                Err(error) => return ControlFlow::Break(error),
            }
            ControlFlow::Continue(())
        })
        .map_err(|source| OpenError::Read {
            shard: shard.to_owned(),
            source,
        })?;
    if let ControlFlow::Break(source) = scanned {
        return Err(OpenError::Entry {
            shard: shard.to_owned(),
            source,
        });
    }
    let mut buffer = Vec::new();
    for wanted in &spec.sources {
        if table.iter().any(|one| one.source == wanted.source) {
            continue;
        }
        let index = SourceIndex(u16::try_from(table.len()).unwrap_or(u16::MAX));
        entry::encode_source(index, &wanted.source, &wanted.region, &mut buffer);
        let written = wal.append(&[&buffer]).and_then(|_| wal.flush());
        written.map_err(|source| OpenError::Replay {
            shard: shard.to_owned(),
            source: WriteError::Append(source),
        })?;
        table.push(wanted.clone());
        topics.push(None);
    }
    Ok((table, topics))
}

/// Opens the catalog, and rebuilds it if it is not of the checkpoint.
///
/// # Errors
/// [`OpenError`].
pub(super) fn open_catalog(
    spec: &Spec,
    manifest: Option<&Manifest>,
    log: &wal::Reader,
    restored: &Restored,
    sources: &[SourceSpec],
) -> Result<Catalog, OpenError> {
    let shard = spec.label();
    let folder = spec.catalog_folder();
    let catalog_error = |source| OpenError::Catalog {
        shard: shard.clone(),
        source,
    };
    let store = match Sled::open(&folder) {
        Ok(store) => store,
        // Held by a shard that is closing, or the disk is full.
        Err(error) if error.kind() == ErrorKind::Retry => return Err(catalog_error(error)),
        Err(error) => {
            // The log's lock is ours, so nobody else has the folder open: it is damaged.
            warn!(shard, error = %error, "catalog does not open, it is rebuilt");
            remove_folder(&folder)?;
            Sled::open(&folder).map_err(catalog_error)?
        }
    };
    let found = store.checkpoint().map_err(catalog_error)?;
    if found.is_some() && found == manifest.map(|one| one.number) {
        return Ok(Catalog::new(Box::new(store)));
    }
    store.clear().map_err(catalog_error)?;
    let catalog = Catalog::new(Box::new(store));
    let Some(manifest) = manifest else {
        return Ok(catalog);
    };
    info!(shard, checkpoint = manifest.number, "catalog is rebuilt");
    let regions: Vec<_> = sources.iter().map(|one| one.region.clone()).collect();
    // A log that was cut does not know every id any more; one that was not also knows the records
    // of other regions that are not served.
    let mut states = match log.first() == Position::START {
        true => replay_rule(&shard, log, manifest.position(), &regions)?,
        false => HashMap::new(),
    };
    for segment in &restored.segments {
        learn_segment(segment, &regions, &mut states).map_err(|source| OpenError::Segment {
            shard: shard.clone(),
            source,
        })?;
    }
    for (id, state) in states {
        catalog.put(id, state);
    }
    catalog.freeze();
    catalog
        .store_frozen(manifest.number)
        .map_err(catalog_error)?;
    Ok(catalog)
}

/// Takes what a segment knows of ids: its live rows, and what records without a row said.
fn learn_segment(
    segment: &Segment,
    regions: &[RegionName],
    states: &mut HashMap<PointId, IdState>,
) -> Result<(), FileError> {
    let mut learn = |id: PointId, latest: Latest, row: Option<u32>| {
        let state = states.entry(id).or_default();
        // Segments are not in the order of their records: `resolve` takes the later offset.
        resolve(&mut state.known, latest, None, regions);
        if let Some(row) = row {
            state.place = Some(Place {
                segment: segment.id,
                row,
            });
        }
    };
    for (number, row) in segment.rows().filter(|(_, row)| !row.is_dead()) {
        let Ok(id) = PointId::new(row.id) else {
            continue;
        };
        let latest = Latest {
            source: row.source,
            offset: row.offset,
            version: row.version,
            says: Says::Live(row.wal),
        };
        learn(id, latest, Some(number));
    }
    match (segment.as_sealed(), segment.as_growing()) {
        (Some(sealed), _) => {
            for entry in sealed.entries()? {
                learn(entry.id, entry.latest, None);
            }
        }
        (None, growing) => {
            for entry in growing.iter().flat_map(|growing| growing.entries()) {
                learn(entry.id.clone(), entry.latest, None);
            }
        }
    }
    Ok(())
}

/// What the log up to a position says of every id, without its rows.
fn replay_rule(
    shard: &str,
    log: &wal::Reader,
    to: Position,
    regions: &[RegionName],
) -> Result<HashMap<PointId, IdState>, OpenError> {
    let mut states: HashMap<PointId, IdState> = HashMap::new();
    let mut take = |stamp: Stamp, id: &str, says: Says| -> Result<(), EntryError> {
        let id = PointId::new(id).map_err(|_| EntryError::Malformed {
            kind: 0,
            field: "id",
        })?;
        let incoming = Latest {
            source: stamp.source,
            offset: stamp.offset,
            version: stamp.version,
            says,
        };
        let state = states.entry(id).or_default();
        // What is served comes from the segments; only what is known of the id is wanted here.
        resolve(&mut state.known, incoming, None, regions);
        Ok(())
    };
    let ended = log
        .for_each(log.first(), to, |position, frame| {
            let taken = Entry::decode(frame).and_then(|entry| match entry {
                Entry::Upsert(stamp, id, _) => take(stamp, id, Says::Live(position)),
                Entry::Delete(stamp, id) => take(stamp, id, Says::Deleted),
                Entry::Contest(stamp, id) => take(stamp, id, Says::Contested),
                Entry::Source(..) | Entry::Progress(..) | Entry::Topic(..) => Ok(()),
            });
            match taken {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(error),
            }
        })
        .map_err(|source| OpenError::Read {
            shard: shard.to_owned(),
            source,
        })?;
    match ended {
        ControlFlow::Continue(()) => Ok(states),
        ControlFlow::Break(source) => Err(OpenError::Entry {
            shard: shard.to_owned(),
            source,
        }),
    }
}

fn remove_folder(folder: &Path) -> Result<(), OpenError> {
    fs::remove_dir_all(folder).map_err(|source| OpenError::File {
        path: folder.to_owned(),
        source,
    })
}

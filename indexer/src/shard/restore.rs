//! The parts of a recovery: segments from their files, the table of sources, the catalog.

use std::{collections::HashMap, fs, ops::ControlFlow, path::Path, sync::Arc};

use shoal_runtime::chain;
use shoal_schemas::{PointId, RegionName, Vector};
use tracing::{info, warn};

use crate::{
    catalog::{Catalog, CatalogError, IdState, Sled, Store},
    entry::{self, Entry, EntryError, Stamp},
    index::{VectorIndex, hnsw::Hnsw},
    rule::{Latest, Says, SourceIndex, resolve},
    segment::{Chunk, Place, Segment, SegmentId},
    shard::{
        SourceSpec, Spec,
        checkpoint::{self, CheckpointError, Manifest},
        recover::OpenError,
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
    for files in &manifest.segments {
        let id = SegmentId(files.id);
        let folder = spec.segment_folder(id);
        let graph_error = |source| CheckpointError::Graph {
            segment: files.id,
            source,
        };
        let graph: Arc<dyn VectorIndex> = match &files.graph_file {
            Some(mark) => {
                let path = checkpoint::verify_file(&folder, mark)?;
                Arc::new(Hnsw::load(&path, &spec.graph_options()).map_err(graph_error)?)
            }
            None => Arc::new(Hnsw::new(&spec.graph_options()).map_err(graph_error)?),
        };
        let rows_path = checkpoint::verify_file(&folder, &files.rows_file)?;
        let folded = usize::try_from(files.folded).unwrap_or(usize::MAX);
        let segment = Segment::new(id, graph);
        checkpoint::read_rows(&rows_path, &segment)?;
        let fits = segment.len() == files.rows && segment.graph.rows() == folded;
        if !fits {
            return Err(CheckpointError::Damaged {
                path: rows_path,
                detail: format!(
                    "segment has {} rows and {} in its graph, the manifest says {} and {}",
                    segment.len(),
                    segment.graph.rows(),
                    files.rows,
                    files.folded
                ),
            });
        }
        segment.set_folded(files.folded);
        for number in files.folded..files.rows {
            let vector = read_vector(spec, &segment, number, log)?;
            match chunks.last().filter(|c| c.segment == id && !c.is_full()) {
                Some(chunk) => chunk.push(vector),
                None => {
                    let chunk = Chunk::new(id, number);
                    chunk.push(vector);
                    chunks.push(Arc::new(chunk));
                }
            }
        }
        segments.push(Arc::new(segment));
    }
    Ok(Restored { segments, chunks })
}

fn read_vector(
    spec: &Spec,
    segment: &Segment,
    number: u32,
    log: &wal::Reader,
) -> Result<Vector, CheckpointError> {
    let damaged = |detail: String| CheckpointError::Damaged {
        path: spec.wal_folder(),
        detail,
    };
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

/// Every source the shard has had, in the order of their indexes; new ones are written down.
pub(super) fn source_table(
    spec: &Spec,
    manifest: Option<&Manifest>,
    wal: &mut Wal,
    from: Position,
    shard: &str,
) -> Result<Vec<SourceSpec>, OpenError> {
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
    let reader = wal.reader();
    let scanned = reader
        .for_each(from, reader.end(), |_, frame| {
            match Entry::decode(frame) {
                Ok(Entry::Source(index, source, region)) => {
                    if usize::from(index.0) == table.len() {
                        table.push(SourceSpec { source, region });
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
    }
    Ok(table)
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
        Err(CatalogError::Held) => return Err(catalog_error(CatalogError::Held)),
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
    info!(
        shard,
        checkpoint = manifest.number,
        "catalog is rebuilt from the log"
    );
    let regions: Vec<_> = sources.iter().map(|one| one.region.clone()).collect();
    let states = replay_rule(&shard, log, manifest.position(), &regions)?;
    let mut states = states;
    for segment in &restored.segments {
        for (number, row) in segment.rows().filter(|(_, row)| !row.is_dead()) {
            let state = states.entry(row.id.clone()).or_default();
            state.place = Some(Place {
                segment: segment.id,
                row: number,
            });
        }
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
                Entry::Source(..) | Entry::Progress(..) => Ok(()),
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

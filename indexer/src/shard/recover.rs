//! Recovery: from what a crash left to a shard that goes on where it was.
//!
//! The newest checkpoint gives segments, digest and offsets; the own log after it is replayed by
//! the same code that applies new records. A checkpoint that is damaged, or made with other graph
//! parameters, is left aside with a warning and the whole log is replayed: slower, never wrong.
//! The catalog counts only if it carries the checkpoint's number; otherwise it is rebuilt.

use std::{
    collections::HashMap,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, atomic::AtomicU64},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde::{Deserialize, Serialize};
use shoal_runtime::{ErrorKind, chain, clock::Clock};
use shoal_schemas::{
    CollectionName, Dim, Metric, Offset, Partition, Partitioner, PointId, RegionName, Vector,
    digest::Digest,
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    catalog::{Catalog, CatalogError, IdState, Sled, Store},
    entry::{self, Entry, EntryError, Stamp},
    index::{IndexError, VectorIndex, hnsw::Hnsw},
    rule::{Latest, Says, SourceIndex, resolve},
    segment::{Chunk, Place, Segment, SegmentId, Sequence},
    shard::{
        FolderError, Progress, Shared, SourceSpec, Spec,
        checkpoint::{self, CheckpointError, GraphShape, Manifest, Storer},
        lag::Lag,
        make_folder,
        writer::{SegmentNumbers, WriteError, Writer},
    },
    view::View,
    wal::{self, Position, Wal},
};

const IDENTITY_FILE: &str = "shard.json";
/// Frames replayed between two publications.
const REPLAY_TURN: u64 = 256;

/// Why a shard does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder.
    #[error("cannot open shard `{shard}`")]
    Folder {
        /// The shard.
        shard: String,
        /// Which folder.
        #[source]
        source: FolderError,
    },
    /// A file.
    #[error("cannot use `{}`", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's own.
        #[source]
        source: io::Error,
    },
    /// The folder holds another shard, or one of another definition.
    #[error(
        "folder `{}` holds a shard with other {field}; move it away to rebuild the shard from Kafka",
        .path.display()
    )]
    Identity {
        /// The shard's folder.
        path: PathBuf,
        /// What differs, with both values.
        field: String,
    },
    /// The own log.
    #[error("cannot open the log of shard `{shard}`")]
    Log {
        /// The shard.
        shard: String,
        /// The log's own.
        #[source]
        source: wal::OpenError,
    },
    /// The own log, when read.
    #[error("cannot read the log of shard `{shard}`")]
    Read {
        /// The shard.
        shard: String,
        /// The log's own.
        #[source]
        source: wal::ReadError,
    },
    /// A frame of the own log.
    #[error("the log of shard `{shard}` holds a frame that does not read")]
    Entry {
        /// The shard.
        shard: String,
        /// What is wrong.
        #[source]
        source: EntryError,
    },
    /// The catalog.
    #[error("cannot open the catalog of shard `{shard}`")]
    Catalog {
        /// The shard.
        shard: String,
        /// The catalog's own.
        #[source]
        source: CatalogError,
    },
    /// The checkpoint folder.
    #[error("cannot read the checkpoints of shard `{shard}`")]
    Checkpoint {
        /// The shard.
        shard: String,
        /// What is wrong.
        #[source]
        source: CheckpointError,
    },
    /// A graph.
    #[error("cannot make a graph for shard `{shard}`")]
    Index {
        /// The shard.
        shard: String,
        /// The index's own.
        #[source]
        source: IndexError,
    },
    /// Replaying.
    #[error("cannot replay the log of shard `{shard}`")]
    Replay {
        /// The shard.
        shard: String,
        /// The writer's own.
        #[source]
        source: WriteError,
    },
}

impl OpenError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Folder { .. } | Self::File { .. } => ErrorKind::Retry,
            Self::Identity { .. } => ErrorKind::Caller,
            Self::Log { source, .. } => source.kind(),
            Self::Read { source, .. } => source.kind(),
            Self::Entry { .. } | Self::Checkpoint { .. } => ErrorKind::Corrupt,
            Self::Catalog { source, .. } => source.kind(),
            Self::Index { source, .. } => source.kind(),
            Self::Replay { source, .. } => source.kind(),
        }
    }
}

/// A shard that is open: recovered up to its newest checkpoint, the rest still to be replayed.
pub struct Opened {
    /// The writer's half.
    pub writer: Writer,
    /// For the builder.
    pub storer: Storer,
    /// For the builder.
    pub numbers: SegmentNumbers,
    /// What is still to be replayed.
    replay: (Position, Position),
}

/// What the folder is of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    collection: CollectionName,
    shard: Partition,
    dim: Dim,
    metric: Metric,
    partitions: u32,
    partitioner: Partitioner,
    route_by_key_prefix: bool,
}

/// A segment as the checkpoint has it.
struct Restored {
    segments: Vec<Arc<Segment>>,
    chunks: Vec<Arc<Chunk>>,
}

/// Opens a shard's folder, making it if there is none.
///
/// # Errors
/// [`OpenError`], naming the file and what to do.
pub fn open(spec: Spec, clock: Arc<dyn Clock>) -> Result<Opened, OpenError> {
    let shard = spec.label();
    make_folder(&spec.folder).map_err(|source| OpenError::Folder {
        shard: shard.clone(),
        source,
    })?;
    check_identity(&spec)?;
    let wal_config = wal::Config {
        segment_bytes: spec.engine.wal_segment_bytes.as_u64(),
        // A frame is at most the decoded record: four bytes a component and the payload.
        max_frame_bytes: spec
            .collection
            .max_record_bytes
            .saturating_mul(4)
            .max(1 << 20),
    };
    let log_error = |source| OpenError::Log {
        shard: shard.clone(),
        source,
    };
    let (mut wal, opened) = Wal::open(&spec.wal_folder(), &wal_config).map_err(log_error)?;
    if opened.torn_bytes > 0 {
        info!(
            shard,
            torn_bytes = opened.torn_bytes,
            "torn tail of the log cut"
        );
    }
    let reader = wal.reader();
    let manifest = usable_manifest(&spec, &opened);
    let mut restored = None;
    let mut usable = None;
    if let Some(manifest) = manifest {
        match restore_segments(&spec, &manifest, &reader) {
            Ok(found) => {
                restored = Some(found);
                usable = Some(manifest);
            }
            Err(error) => {
                warn!(shard, error = %chain(&error), "checkpoint left aside, the whole log is replayed");
            }
        }
    }
    let manifest = usable;
    let replay_from = manifest.as_ref().map_or(opened.first, Manifest::position);
    let sources = source_table(&spec, manifest.as_ref(), &mut wal, replay_from, &shard)?;
    let index_error = |source| OpenError::Index {
        shard: shard.clone(),
        source,
    };
    let numbers = SegmentNumbers::new(manifest.as_ref().map_or(0, |one| one.next_segment));
    let restored = match restored.filter(|found| !found.segments.is_empty()) {
        Some(found) => found,
        None => {
            let graph = Hnsw::new(&spec.graph_options()).map_err(index_error)?;
            Restored {
                segments: vec![Arc::new(Segment::new(numbers.take(), Arc::new(graph)))],
                chunks: Vec::new(),
            }
        }
    };
    let catalog = open_catalog(&spec, manifest.as_ref(), &reader, &restored, &sources)?;
    let regions = sources.iter().map(|one| one.region.clone()).collect();
    let mut next = vec![Offset::default(); sources.len()];
    for (known, next) in manifest.iter().flat_map(|one| &one.sources).zip(&mut next) {
        *next = known.next;
    }
    let digest = manifest
        .as_ref()
        .map_or(Ok(Digest::default()), Manifest::digest);
    let digest = digest.map_err(|source| OpenError::Checkpoint {
        shard: shard.clone(),
        source,
    })?;
    let highest = checkpoint::highest_number(&spec.checkpoint_folder());
    let highest = highest.map_err(|source| OpenError::Checkpoint {
        shard: shard.clone(),
        source,
    })?;
    let (progress, _) = watch::channel(Arc::new(Progress::default()));
    let replay_to = wal.reader().end();
    let shared = Arc::new(Shared {
        lag: Lag::new(clock.clone(), sources.len()),
        catalog,
        log: wal.reader(),
        syncer: wal.syncer(),
        sources,
        clock,
        view: ArcSwap::from_pointee(View {
            segments: restored.segments,
            chunks: restored.chunks,
            complete_from: Sequence::default(),
        }),
        view_change: Mutex::new(()),
        applied: AtomicU64::new(0),
        moving: ArcSwapOption::empty(),
        progress,
        applied_log: Mutex::new((replay_from, next.clone())),
        durable: Mutex::new(next.clone()),
        work: Mutex::default(),
        work_changed: Condvar::new(),
        room: Condvar::new(),
        fold_limit: Mutex::new(None),
        wal_bytes: AtomicU64::new(wal.bytes_on_disk()),
        spec,
    });
    let mut writer = Writer {
        shared,
        wal,
        regions,
        next,
        digest,
        contested: manifest.as_ref().map_or(0, |one| one.contested),
        points: manifest.as_ref().map_or(0, |one| one.points),
        sequence: Sequence::default(),
        numbers: numbers.clone(),
        moving: None,
        checkpoint_number: highest,
        checkpoint_position: replay_from,
        checkpoint_running: false,
        buffer: Vec::new(),
        reordered: 0,
    };
    writer.publish();
    Ok(Opened {
        writer,
        storer: Storer::new(manifest.as_ref()),
        numbers,
        replay: (replay_from, replay_to),
    })
}

impl Opened {
    /// Replays what came after the checkpoint. The builder has to run by then.
    ///
    /// Returns the number of frames replayed; stops early, with what it has, once `stop` says so.
    ///
    /// # Errors
    /// [`OpenError::Replay`] and [`OpenError::Read`].
    pub fn replay(&mut self, stop: impl Fn() -> bool) -> Result<u64, OpenError> {
        let (from, to) = self.replay;
        let shard = self.writer.shared.spec.label();
        let log = self.writer.shared.log.clone();
        let writer = &mut self.writer;
        let mut frames = 0u64;
        let ended = log
            .for_each(from, to, |position, frame| {
                if let Err(error) = writer.apply_frame(position, frame) {
                    return ControlFlow::Break(Some(error));
                }
                frames += 1;
                if frames.is_multiple_of(REPLAY_TURN) {
                    writer.publish();
                    while writer.is_full() && !stop() {
                        writer.wait_for_room();
                    }
                }
                if stop() {
                    return ControlFlow::Break(None);
                }
                ControlFlow::Continue(())
            })
            .map_err(|source| OpenError::Read {
                shard: shard.clone(),
                source,
            })?;
        if let ControlFlow::Break(Some(source)) = ended {
            return Err(OpenError::Replay { shard, source });
        }
        writer.publish();
        Ok(frames)
    }
}

fn check_identity(spec: &Spec) -> Result<(), OpenError> {
    let path = spec.folder.join(IDENTITY_FILE);
    let file_error = |source| OpenError::File {
        path: path.clone(),
        source,
    };
    let collection = &spec.collection;
    let wanted = Identity {
        format: 1,
        collection: collection.name.clone(),
        shard: spec.shard,
        dim: collection.dim,
        metric: collection.metric,
        partitions: collection.partitions,
        partitioner: collection.partitioner,
        route_by_key_prefix: collection.route_by_key_prefix,
    };
    let wanted_bytes =
        serde_json::to_vec_pretty(&wanted).map_err(|error| file_error(io::Error::other(error)))?;
    match fs::read(&path) {
        Ok(bytes) => {
            let found: Option<Identity> = serde_json::from_slice(&bytes).ok();
            if found.as_ref() == Some(&wanted) {
                return Ok(());
            }
            Err(OpenError::Identity {
                path: spec.folder.clone(),
                field: format!("identity: {found:?}, wanted {wanted:?}"),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let temporary = path.with_extension("tmp");
            fs::write(&temporary, wanted_bytes)
                .and_then(|()| fs::rename(&temporary, &path))
                .map_err(file_error)
        }
        Err(error) => Err(file_error(error)),
    }
}

fn usable_manifest(spec: &Spec, log: &wal::Opened) -> Option<Manifest> {
    let folder = spec.checkpoint_folder();
    if !folder.exists() {
        return None;
    }
    let shard = spec.label();
    let manifest = match Manifest::newest(&folder) {
        Ok(manifest) => manifest?,
        Err(error) => {
            warn!(shard, error = %chain(&error), "checkpoint left aside, the whole log is replayed");
            return None;
        }
    };
    let shape = GraphShape {
        dim: spec.collection.dim,
        metric: spec.collection.metric,
        parameters: spec.collection.index,
    };
    if manifest.graph != shape {
        info!(shard, "graph parameters changed, the whole log is replayed");
        return None;
    }
    if manifest.position() > log.end || manifest.position() < log.first {
        warn!(
            shard,
            checkpoint_position = manifest.position().as_u64(),
            log_end = log.end.as_u64(),
            "checkpoint is not of this log, the whole log is replayed"
        );
        return None;
    }
    Some(manifest)
}

fn restore_segments(
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
fn source_table(
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

fn open_catalog(
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

//! Recovery: from what a crash left to a shard that goes on where it was.
//!
//! The newest checkpoint gives segments, digest and offsets; the own log after it is replayed by
//! the same code that applies new records. A checkpoint that is damaged, or made with other graph
//! parameters, is left aside with a warning and the whole log is replayed: slower, never wrong. A
//! log that was cut cannot be: the folder is set aside then, and the topic read from its beginning.
//! The catalog counts only if it carries the checkpoint's number; otherwise it is rebuilt.

use std::{
    fs::{self, File},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64},
    },
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use shoal_runtime::{
    ErrorKind, chain,
    clock::{Clock, Stopwatch},
};
use shoal_schemas::{
    ClusterId, CollectionName, Dim, Metric, Offset, Partition, Partitioner, digest::Digest,
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    catalog::CatalogError,
    entry::EntryError,
    index::live::Graph,
    segment::{Segment, Sequence, files::FileError, growing::Growing, indexed},
    shard::{
        FolderError, Progress, Shared, Spec,
        checkpoint::{self, CheckpointError, Manifest, Storer},
        held_back::HeldBack,
        lag::Lag,
        make_folder,
        restore::{Restored, open_catalog, restore_segments, source_table},
        topics::Topics,
        version::Named,
        writer::{SegmentNumbers, WriteError, Writer},
    },
    snapshot::Names,
    view::View,
    wal::{self, Position, Wal},
};

/// What a shard's folder says of itself.
pub(super) const IDENTITY_FILE: &str = "shard.json";
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
    #[error("folder `{}` holds another shard: {field}", .path.display())]
    Identity {
        /// The shard's folder.
        path: PathBuf,
        /// What differs, with both values.
        field: String,
    },
    /// Neither a checkpoint nor the own log reaches back to the beginning.
    #[error("folder `{}` does not hold the shard whole: {why}", .path.display())]
    Incomplete {
        /// The shard's folder.
        path: PathBuf,
        /// What is missing.
        why: String,
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
    /// A segment, when the catalog is rebuilt from it.
    #[error("cannot read a segment of shard `{shard}`")]
    Segment {
        /// The shard.
        shard: String,
        /// Which file.
        #[source]
        source: FileError,
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
            Self::Incomplete { .. } | Self::Entry { .. } | Self::Checkpoint { .. } => {
                ErrorKind::Corrupt
            }
            Self::Catalog { source, .. } => source.kind(),
            Self::Segment { source, .. } => source.kind(),
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
    incarnation: Offset,
    cluster: ClusterId,
    partitions: u32,
    partitioner: Partitioner,
    route_by_key_prefix: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    split_keys: Vec<String>,
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
    // A log that is begun anew beside a checkpoint goes on where that one ends: a place in the log
    // names a record for good.
    let newest = Manifest::newest(&spec.checkpoint_folder()).ok().flatten();
    let wal_config = wal::Config {
        first: newest.as_ref().map_or(Position::START, Manifest::position),
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
                warn!(shard, error = %chain(&error), "checkpoint is left aside");
            }
        }
    }
    let manifest = usable;
    // Before anything is written to it.
    let is_new = manifest.is_none() && opened.first == opened.end;
    let held_back = HeldBack::of(&spec.folder, is_new);
    let held_back = held_back.map_err(|(path, source)| OpenError::File { path, source })?;
    if manifest.is_none() && opened.first != Position::START {
        return Err(OpenError::Incomplete {
            path: spec.folder.clone(),
            why: format!(
                "no checkpoint is of use and the log begins at {}",
                opened.first
            ),
        });
    }
    let replay_from = manifest.as_ref().map_or(opened.first, Manifest::position);
    let (sources, topics) = source_table(&spec, manifest.as_ref(), &mut wal, replay_from, &shard)?;
    let numbers = SegmentNumbers::new(manifest.as_ref().map_or(0, |one| one.next_segment));
    let restored = match restored.filter(|found| !found.segments.is_empty()) {
        Some(found) => found,
        None => {
            let graph = Graph::new(&spec.graph_options());
            let fields = indexed::fields(&spec.collection);
            let growing = Growing::new(graph, fields, replay_from);
            Restored {
                segments: vec![Arc::new(Segment::growing(numbers.take(), growing))],
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
    let heard_before_ms = match &manifest {
        Some(manifest) => manifest.taken_ms,
        None if is_new => clock.now_ms(),
        None => 0,
    };
    let (progress, _) = watch::channel(Arc::new(Progress::default()));
    let replay_to = wal.reader().end();
    let shared = Arc::new(Shared {
        fields: indexed::fields(&spec.collection),
        lag: Lag::new(clock.clone(), sources.len()),
        heard_before_ms: AtomicU64::new(heard_before_ms),
        held_back,
        catalog,
        log: wal.reader(),
        syncer: wal.syncer(),
        sources,
        topics: Topics::new(topics),
        clock,
        view: ArcSwap::from_pointee(View {
            segments: restored.segments,
            chunks: restored.chunks,
            complete_from: Sequence::default(),
        }),
        view_change: Mutex::new(()),
        applied: AtomicU64::new(0),
        moving: ArcSwap::default(),
        progress,
        named: Named::default(),
        applied_log: Mutex::new((replay_from, next.clone())),
        durable: Mutex::new(next.clone()),
        work: Mutex::default(),
        work_changed: Condvar::new(),
        room: Condvar::new(),
        fold_limit: Mutex::new(None),
        wal_bytes: AtomicU64::new(wal.bytes_on_disk()),
        unfit: Mutex::new(None),
        is_disk_full: AtomicBool::new(false),
        is_far_behind: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        names: Names::default(),
        save: Mutex::default(),
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
        checkpoint_failed: None,
        checkpoint_wanted: false,
        quiet: Stopwatch::start(),
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
    /// Returns the number of frames replayed; `None` if `stop` ended it early. What is in memory
    /// is of no moment then, and must not be stored.
    ///
    /// # Errors
    /// [`OpenError::Replay`] and [`OpenError::Read`].
    pub fn replay(&mut self, stop: impl Fn() -> bool) -> Result<Option<u64>, OpenError> {
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
                // Not held up by a full memtable: answers come sooner from a long scan than from a
                // short one that has to wait for the graph.
                if frames.is_multiple_of(REPLAY_TURN) {
                    writer.publish();
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
        match ended {
            ControlFlow::Break(Some(source)) => Err(OpenError::Replay { shard, source }),
            ControlFlow::Break(None) => Ok(None),
            ControlFlow::Continue(()) => {
                writer.publish();
                Ok(Some(frames))
            }
        }
    }
}

/// Which incarnation of its collection a shard's folder is of, and on which cluster; `None` if it does not say.
pub(crate) fn incarnation_in(folder: &Path) -> Option<(ClusterId, Offset)> {
    let bytes = fs::read(folder.join(IDENTITY_FILE)).ok()?;
    let found: Identity = serde_json::from_slice(&bytes).ok()?;
    Some((found.cluster, found.incarnation))
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
        incarnation: spec.incarnation,
        cluster: spec.home_cluster(),
        partitions: collection.partitions,
        partitioner: collection.partitioner,
        route_by_key_prefix: collection.route_by_key_prefix,
        split_keys: collection.split_keys.clone(),
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
                field: format!("{found:?}, wanted {wanted:?}"),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let temporary = path.with_extension("tmp");
            fs::write(&temporary, wanted_bytes)
                .and_then(|()| File::open(&temporary)?.sync_all())
                .and_then(|()| fs::rename(&temporary, &path))
                .and_then(|()| File::open(&spec.folder)?.sync_all())
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
            warn!(shard, error = %chain(&error), "checkpoint is left aside");
            return None;
        }
    };
    if manifest.graph != spec.shape() {
        info!(
            shard,
            "graph parameters changed, the checkpoint is left aside"
        );
        return None;
    }
    if manifest.position() > log.end || manifest.position() < log.first {
        warn!(
            shard,
            checkpoint_position = manifest.position().as_u64(),
            log_end = log.end.as_u64(),
            "checkpoint is not of this log, it is left aside"
        );
        return None;
    }
    Some(manifest)
}

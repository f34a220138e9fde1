//! One shard: one partition's points, durable and searchable.
//!
//! One thread writes ([`run`]): it polls, admits, appends to the shard's own log, applies. One
//! builder thread ([`builder`]) folds the memtable into the growing graph, stores checkpoints
//! and compacts. Any number of threads search; none of them waits for the other two. What they
//! share is [`Shared`]; what only the writer has is [`writer::Writer`].

mod answer;
mod behind;
pub mod buckets;
pub mod builder;
#[cfg(test)]
mod by_hand;
pub mod checkpoint;
pub mod compact;
mod cpu;
pub mod expired;
mod gone;
mod growing_file;
mod held_back;
pub mod lag;
mod leftover;
mod mending;
mod merge;
pub mod offline;
mod outputs;
pub mod pooled;
mod reading;
pub mod recover;
pub mod rescue;
mod restore;
mod riders_file;
mod riding;
mod room;
pub mod run;
pub mod save;
pub mod search;
mod taking;
mod tend;
mod topics;
mod turns;
mod version;
pub mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use shoal_runtime::clock::Clock;
use shoal_schemas::{
    ClusterId, Collection, IndexParameters, Offset, Partition, RegionName, Source, digest::Digest,
    filter::Fields,
};
use tokio::sync::watch;

use crate::{
    catalog::Catalog,
    config::EngineConfig,
    index::live,
    pressure::Pressure,
    segment::{Segment, SegmentId, Sequence, growing::Growing, indexed, seal::Shape},
    shard::outputs::Outputs,
    snapshot::Names,
    view::View,
    wal::{self, Position},
};

/// How far a shard has come, published once a batch. All parts belong to the same moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// First offset not yet applied, by source.
    pub next: Vec<Offset>,
    /// Digest of everything served and contested.
    pub digest: Digest,
    /// Ids whose newest record was refused.
    pub contested: u64,
    /// Served points, expired ones too.
    pub points: u64,
}

/// One stream into the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// The partition it reads.
    pub source: Source,
    /// The region its records were written in; decides between equal versions.
    pub region: RegionName,
}

/// What a shard is made with.
#[derive(Clone)]
pub struct Spec {
    /// The collection it belongs to.
    pub collection: Arc<Collection>,
    /// Its number.
    pub shard: Partition,
    /// Offset of the collection's definition in the control topic: dropped and made again, it is
    /// another collection.
    pub incarnation: Offset,
    /// Its home partition first, then mirrored ones.
    pub sources: Vec<SourceSpec>,
    /// The region this indexer stands in.
    pub region: RegionName,
    /// Its own folder.
    pub folder: PathBuf,
    /// Tuning.
    pub engine: EngineConfig,
    /// Whether the node has reached a limit.
    pub pressure: Arc<Pressure>,
    /// Whether another node owns the shard: dead letters are that one's to write.
    pub is_replica: bool,
    /// Whether another collection read the topic before this one: then dead letters are that one's to
    /// write, until it is dropped.
    pub is_follower: Arc<AtomicBool>,
}

impl Spec {
    /// A shard fed by its home topic alone, on the cluster of that id.
    pub fn of_home(
        collection: Arc<Collection>,
        shard: Partition,
        cluster: ClusterId,
        region: RegionName,
        folder: PathBuf,
        engine: EngineConfig,
    ) -> Self {
        let source = Source {
            cluster,
            topic: collection.topic().into(),
            partition: shard,
        };
        Self {
            collection,
            shard,
            incarnation: Offset::default(),
            sources: vec![SourceSpec {
                source,
                region: region.clone(),
            }],
            region,
            folder,
            engine,
            pressure: Arc::default(),
            is_replica: false,
            is_follower: Arc::default(),
        }
    }

    /// The shard's name in logs and labels.
    pub fn label(&self) -> String {
        format!("{}/{}", self.collection.name, self.shard)
    }

    /// The cluster of the home topic; a shard without a source has none.
    fn home_cluster(&self) -> ClusterId {
        let home = self.sources.first();
        home.map_or_else(|| ClusterId::from(""), |one| one.source.cluster.clone())
    }

    fn graph_options(&self) -> live::Options {
        live::Options {
            dim: self.collection.dim,
            metric: self.collection.metric,
            parameters: self.parameters(),
        }
    }

    /// The graph's, with the quantization said: what suits is for each version of Shoal to say.
    fn parameters(&self) -> IndexParameters {
        IndexParameters {
            quantization: Some(self.collection.quantization()),
            ..self.collection.index
        }
    }

    fn wal_folder(&self) -> PathBuf {
        self.folder.join("wal")
    }

    fn catalog_folder(&self) -> PathBuf {
        self.folder.join("catalog")
    }

    fn checkpoint_folder(&self) -> PathBuf {
        self.folder.join("checkpoint")
    }

    /// Where sealed segments stand.
    fn segments_root(&self) -> PathBuf {
        self.folder.join("segments")
    }

    fn segment_folder(&self, id: SegmentId) -> PathBuf {
        self.segments_root().join(format!("{:06}", id.0))
    }

    /// Where checkpoints keep segments that are growing.
    fn growing_root(&self) -> PathBuf {
        self.folder.join("growing")
    }

    fn growing_folder(&self, id: SegmentId) -> PathBuf {
        self.growing_root().join(format!("{:06}", id.0))
    }

    fn shape(&self) -> Shape {
        Shape {
            dim: self.collection.dim,
            metric: self.collection.metric,
            parameters: self.parameters(),
            fields: indexed::fields(&self.collection),
        }
    }
}

/// What the writer, the builder and the searches of a shard share.
pub struct Shared {
    /// What it was made with.
    pub spec: Spec,
    /// Every source the shard has ever had, in the order of their indexes.
    pub sources: Vec<SourceSpec>,
    /// Which topic each of them is.
    topics: topics::Topics,
    /// Payload fields that are indexed.
    pub fields: Fields,
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// Id to place. The writer writes.
    pub catalog: Catalog,
    /// Reads the shard's own log.
    pub log: wal::Reader,
    /// Makes the shard's own log durable.
    pub syncer: wal::Syncer,
    /// What lag is told from.
    pub lag: lag::Lag,
    /// What [`Shared::heard_ms`] was when the shard was last closed or killed.
    heard_before_ms: AtomicU64,
    held_back: held_back::HeldBack,
    view: ArcSwap<View>,
    view_change: Mutex<()>,
    applied: AtomicU64,
    /// Output of a compaction whose rows are being moved over; not in the view yet.
    moving: ArcSwap<Outputs>,
    progress: watch::Sender<Arc<Progress>>,
    named: version::Named,
    /// The newest position of the own log whose content is applied, with the offsets then.
    applied_log: Mutex<(Position, Vec<Offset>)>,
    durable: Mutex<Vec<Offset>>,
    work: Mutex<BuilderWork>,
    work_changed: Condvar,
    room: Condvar,
    /// A segment being stored, and the row from which on it is not folded meanwhile.
    fold_limit: Mutex<Option<(SegmentId, u32)>>,
    wal_bytes: AtomicU64,
    /// Why the shard cannot go on with what it holds, once that was seen: a sealed segment's file is damaged, or a topic
    /// was made anew.
    unfit: Mutex<Option<String>>,
    /// A write to the shard's own log has found no room, and none has been made since.
    is_disk_full: AtomicBool,
    /// The shard gives way until it has caught up, its builder too; see [`behind`].
    is_far_behind: AtomicBool,
    /// Nothing is written any more.
    closed: AtomicBool,
    /// What is known of its files in an object store.
    pub names: Names,
    /// Whether a moment is wanted for a copy.
    save: Mutex<save::Save>,
}

/// What the writer asks of the builder, and what the builder hands back.
#[derive(Default)]
struct BuilderWork {
    checkpoint: Option<checkpoint::Job>,
    /// How the last job ended, until the writer has seen it.
    checkpoint_done: Option<checkpoint::Done>,
    compacted: Option<compact::Compacted>,
    /// A segment that was sealed, to take the place of the growing one of its number.
    sealed: Option<Arc<Segment>>,
    /// The builder is making a segment, or the writer has not taken it over yet; a checkpoint
    /// would have to wait for it.
    compacting: bool,
    /// The growing segment is worth compacting: seal it early.
    seal_wanted: bool,
}

/// How long the writer and the builder wait before they look again by themselves.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Shared {
    /// The newest view and the sequence it may be searched at.
    pub fn moment(&self) -> (Arc<View>, Sequence) {
        loop {
            // In this order: see `view.rs`.
            let sequence = Sequence(self.applied.load(Ordering::Acquire));
            let view = self.view.load_full();
            if view.complete_from <= sequence {
                return (view, sequence);
            }
        }
    }

    /// How far the shard has come; changes once a batch.
    pub fn progress(&self) -> watch::Receiver<Arc<Progress>> {
        self.progress.subscribe()
    }

    /// First offset of each source that is not yet durable in the shard's own log.
    pub fn durable(&self) -> Vec<Offset> {
        lock(&self.durable).clone()
    }

    /// Makes what is applied durable, and says what that is: what may be committed to Kafka.
    ///
    /// # Errors
    /// [`wal::SyncError`]; the shard then takes no more writes.
    pub fn sync(&self) -> Result<Vec<Offset>, wal::SyncError> {
        let (position, next) = lock(&self.applied_log).clone();
        if self.syncer.durable() < position {
            self.syncer.sync()?;
        }
        // Another thread may have come further meanwhile.
        for (durable, next) in lock(&self.durable).iter_mut().zip(&next) {
            *durable = (*durable).max(*next);
        }
        Ok(next)
    }

    /// Wall time, in milliseconds, at which the shard last held everything the broker had, in this run or before it: 0 if
    /// that is not known. That of a new shard which has not held it yet is when it began to read.
    fn heard_ms(&self) -> u64 {
        let held_all_ms = self.lag.read().held_all_ms;
        held_all_ms.unwrap_or_else(|| self.heard_before_ms.load(Ordering::Relaxed))
    }

    /// Bytes of the shard's own log on disk.
    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes.load(Ordering::Relaxed)
    }

    /// Which source, if any, a topic of a cluster is.
    pub fn source_index(&self, cluster: &str, topic: &str) -> Option<usize> {
        self.sources
            .iter()
            .position(|one| &*one.source.cluster.0 == cluster && &*one.source.topic == topic)
    }

    /// Replaces the view by what `change` makes of it.
    fn change_view(&self, change: impl FnOnce(&View) -> View) {
        let _one_at_a_time = lock(&self.view_change);
        let changed = change(&self.view.load());
        self.view.store(Arc::new(changed));
    }

    /// The segment of a place, also while its rows are being moved over.
    pub(crate) fn segment(&self, id: SegmentId) -> Option<Arc<Segment>> {
        let view = self.view.load();
        if let Some(segment) = view.segment(id) {
            return Some(segment.clone());
        }
        self.moving.load().get(id).cloned()
    }

    fn work(&self) -> MutexGuard<'_, BuilderWork> {
        lock(&self.work)
    }

    /// Waits until there may be work for the builder, or until it is time to look again.
    fn wait_for_work(&self) {
        let guard = lock(&self.work);
        let _woken = self.work_changed.wait_timeout(guard, LOOK_AGAIN);
    }

    /// Waits until the memtable may have room, or until it is time to look again.
    fn wait_for_room(&self) {
        let guard = lock(&self.work);
        let _woken = self.room.wait_timeout(guard, LOOK_AGAIN);
    }

    /// An empty segment that takes rows whose frames stand at `from` and behind.
    fn new_segment(&self, id: SegmentId, from: Position) -> Arc<Segment> {
        let fields = indexed::fields(&self.spec.collection);
        let graph = live::Graph::new(&self.spec.graph_options());
        let growing = Growing::new(graph, fields, from);
        Arc::new(Segment::growing(id, growing))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("nothing panics while it holds a lock of a shard")
}

/// Makes a folder and those above it.
fn make_folder(path: &Path) -> Result<(), FolderError> {
    std::fs::create_dir_all(path).map_err(|source| FolderError {
        path: path.to_owned(),
        source,
    })
}

/// A folder that cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot use folder `{}`", .path.display())]
pub struct FolderError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

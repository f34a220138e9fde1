//! Shards in this process, fed by a log in memory: the engine alone, without broker and network.
//!
//! They run the code of `shoal indexer`, and are searched by what its gRPC service calls. The log
//! is filled with the same bytes a producer writes; it can be trimmed behind the shards.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use shoal_indexer::{
    config::EngineConfig,
    shard::{Shared, Spec, compact, run, search::Ask},
};
use shoal_runtime::{
    clock::{Clock, Stopwatch, System},
    tasks::Tasks,
};
use shoal_schemas::{
    ClusterId, Collection, Offset, Partition, Point, PointId, Record,
    avro::{self, Framing, NoRegistry},
    route::partition_of,
    v1,
};
use shoal_topic::{Cleanup, Cluster, TopicPartition, TopicSpec, memory::MemoryLog};
use tokio_util::sync::CancellationToken;

const CLUSTER: &str = "bench";
/// How often a state is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(3600);

/// A collection's topic, in memory.
pub(crate) struct Log {
    log: MemoryLog,
    cluster: Cluster,
    clock: Arc<dyn Clock>,
    pub(crate) collection: Collection,
    /// Keys and values written so far.
    pub(crate) record_bytes: u64,
}

/// A shard that runs.
pub(crate) struct Running {
    tasks: Tasks,
    cancel: CancellationToken,
    pub(crate) shared: Arc<Shared>,
    pub(crate) folder: PathBuf,
}

/// Default settings, but that a set smaller than what is sealed by itself is sealed too.
pub(crate) fn settings(rows: usize) -> EngineConfig {
    let usual = EngineConfig::default();
    let rows = u32::try_from(rows).unwrap_or(u32::MAX).max(1);
    EngineConfig {
        idle_seal_rows: usual.idle_seal_rows.min(rows),
        ..usual
    }
}

/// A question as these figures ask it: without vector and payload.
pub(crate) fn ask(vector: &[f32], k: usize, ef: usize) -> Ask {
    Ask {
        beam: Some(ef),
        ..Ask::nearest(vector.to_vec(), k)
    }
}

impl Log {
    pub(crate) fn new(collection: Collection) -> anyhow::Result<Self> {
        Self::by(collection, System::shared())
    }

    /// One whose shards take their time from a clock.
    pub(crate) fn by(collection: Collection, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let log = MemoryLog::new(CLUSTER, clock.clone());
        let cluster = log.cluster();
        let topic = collection.name.topic();
        for (name, cleanup) in [
            (format!("shoal.dlq.{topic}"), Cleanup::Delete),
            (topic, Cleanup::Compact),
        ] {
            cluster.admin.create_topic(&TopicSpec {
                name,
                partitions: collection.partitions,
                replication_factor: None,
                cleanup,
                settings: [].into(),
            })?;
        }
        Ok(Self {
            log,
            cluster,
            clock,
            collection,
            record_bytes: 0,
        })
    }

    fn at(&self, shard: u32) -> TopicPartition {
        TopicPartition {
            topic: self.collection.name.topic().into(),
            partition: Partition(shard),
        }
    }

    /// The shard that a producer would send a point to; another one refuses it.
    pub(crate) fn shard_of(&self, id: &str) -> anyhow::Result<u32> {
        Ok(partition_of(&self.collection, &PointId::new(id)?).0)
    }

    pub(crate) fn upsert(&mut self, shard: u32, id: &str, point: &Point) -> anyhow::Result<Offset> {
        let mut value = Vec::new();
        avro::encode(point, Framing::SingleObject, &mut value);
        self.append(shard, id, Some(value.into()))
    }

    pub(crate) fn delete(&mut self, shard: u32, id: &str) -> anyhow::Result<Offset> {
        self.append(shard, id, None)
    }

    fn append(&mut self, shard: u32, id: &str, value: Option<Bytes>) -> anyhow::Result<Offset> {
        let record = Record {
            key: Some(Bytes::copy_from_slice(id.as_bytes())),
            value,
            ..Record::default()
        };
        self.record_bytes += record.size_bytes() as u64;
        let mut sent = self.cluster.writer.send(&self.at(shard), &record)?;
        // It is in the log already, or was refused.
        match Pin::new(&mut sent).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(delivered) => Ok(delivered?.offset),
            Poll::Pending => bail!("the log in memory did not take a record at once"),
        }
    }

    pub(crate) fn end(&self, shard: u32) -> anyhow::Result<Offset> {
        let watermarks = self.cluster.admin.watermarks(&self.at(shard), PATIENCE)?;
        Ok(watermarks.high)
    }

    /// Forgets records below an offset that the shard has applied.
    pub(crate) fn trim(&self, shard: u32, below: Offset) {
        self.log.trim(&self.at(shard), below);
    }

    /// Starts a shard that keeps its files in `folder`.
    pub(crate) fn open(
        &self,
        shard: u32,
        folder: &Path,
        engine: EngineConfig,
    ) -> anyhow::Result<Running> {
        let cancel = CancellationToken::new();
        let tasks = Tasks::new(cancel.clone());
        let opened = Arc::new(OnceLock::new());
        let context = run::Context {
            spec: spec(&self.collection, shard, folder, engine),
            cluster: self.cluster.clone(),
            schemas: Arc::new(NoRegistry),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            snapshots: None,
            cancel: cancel.clone(),
            opened: opened.clone(),
        };
        tasks.spawn_thread(format!("shard {shard}"), move || run::run(context))?;
        let is_open = || opened.get().cloned();
        let shared = wait(&cancel, "the shard opens", is_open)?;
        Ok(Running {
            tasks,
            cancel,
            shared,
            folder: folder.to_owned(),
        })
    }

    /// Waits until everything that was written is searchable.
    pub(crate) fn wait_applied(&self, running: &Running) -> anyhow::Result<()> {
        let end = self.end(running.shared.spec.shard.0)?;
        running.wait("everything is applied", |_| running.next() >= end)
    }

    /// Waits until at most so many of the records written are not searchable.
    pub(crate) fn wait_near(&self, running: &Running, records: u64) -> anyhow::Result<()> {
        let end = self.end(running.shared.spec.shard.0)?;
        let near = Offset(end.0.saturating_sub(records));
        running.wait("all but a few are applied", |_| running.next() >= near)
    }

    /// Waits until everything that was written is in a graph.
    pub(crate) fn wait_folded(&self, running: &Running) -> anyhow::Result<()> {
        self.wait_applied(running)?;
        running.wait("everything is in a graph", |shared| {
            let (view, _) = shared.moment();
            let is_folded = |segment: &Arc<_>| is_folded(segment);
            view.segments.iter().all(is_folded)
        })
    }

    /// Waits until the shard has nothing left to do by itself: nothing to fold, seal or compact.
    pub(crate) fn wait_settled(&self, running: &Running) -> anyhow::Result<()> {
        self.wait_folded(running)?;
        running.wait("the shard comes to rest", is_settled)
    }
}

fn is_folded(segment: &Arc<shoal_indexer::segment::Segment>) -> bool {
    segment.folded() == segment.len()
}

fn is_settled(shared: &Shared) -> bool {
    let (view, _) = shared.moment();
    let engine = &shared.spec.engine;
    let growing = view.growing();
    let older = view.segments.iter().rev().skip(1);
    growing.len() < engine.idle_seal_rows
        && is_folded(growing)
        && !compact::is_worn(engine, growing, compact::expired_by_ms(shared))
        && older
            .map(|segment| segment.as_sealed())
            .all(|s| s.is_some())
        && compact::choose(shared, &view).is_empty()
}

pub(crate) fn spec(
    collection: &Collection,
    shard: u32,
    folder: &Path,
    engine: EngineConfig,
) -> Spec {
    Spec::of_home(
        Arc::new(collection.clone()),
        Partition(shard),
        ClusterId::from(CLUSTER),
        "local".parse().expect("`local` is a valid name"),
        folder.to_owned(),
        engine,
    )
}

impl Running {
    /// First offset that is not applied yet.
    pub(crate) fn next(&self) -> Offset {
        let progress = self.shared.progress();
        let next = progress.borrow().next.first().copied();
        next.unwrap_or_default()
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Shared) -> bool) -> anyhow::Result<()> {
        wait(&self.cancel, what, || is_so(&self.shared).then_some(()))
    }

    pub(crate) fn search(
        &self,
        vector: &[f32],
        k: usize,
        ef: usize,
    ) -> anyhow::Result<Vec<v1::Hit>> {
        Ok(self.shared.search(&ask(vector, k, ef))?)
    }

    /// How many distances a search computes.
    pub(crate) fn distances(&self, vector: &[f32], k: usize, ef: usize) -> anyhow::Result<u64> {
        let asked = Ask {
            explain: true,
            ..ask(vector, k, ef)
        };
        let answer = self.shared.answer(&asked, &|| false)?;
        let told = answer.explain.first().context("no plan is told")?;
        Ok(told.rows_scanned)
    }

    /// Its segments, for the reader of a figure: rows and dead rows of each, sealed or growing.
    pub(crate) fn segments(&self) -> String {
        let (view, _) = self.shared.moment();
        let each = view.segments.iter().filter(|segment| !segment.is_empty());
        let each = each.map(|segment| {
            let kind = segment.as_sealed().map_or("growing", |_| "sealed");
            format!("{kind} {} ({} dead)", segment.len(), segment.dead())
        });
        each.collect::<Vec<_>>().join(", ")
    }

    /// Fails unless the shard serves so many points.
    pub(crate) fn serves(&self, rows: usize) -> anyhow::Result<()> {
        let served = self.shared.live_points();
        ensure!(
            served == rows as u64,
            "the shard serves {served} points, {rows} are live"
        );
        Ok(())
    }

    /// Ends it in good order. Call it where blocking is allowed.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        self.cancel.cancel();
        drop(self.shared);
        let runtime = tokio::runtime::Handle::current();
        runtime.block_on(self.tasks.finish(PATIENCE))?;
        Ok(())
    }
}

fn wait<T>(
    cancel: &CancellationToken,
    what: &str,
    mut state: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let watch = Stopwatch::start();
    loop {
        if let Some(reached) = state() {
            return Ok(reached);
        }
        ensure!(!cancel.is_cancelled(), "the shard failed before {what}");
        ensure!(watch.elapsed() < PATIENCE, "gave up waiting until {what}");
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// A folder for shards that is gone afterwards.
pub(crate) fn folder() -> anyhow::Result<tempfile::TempDir> {
    tempfile::TempDir::with_prefix("shoal-bench-").context("no folder for shards")
}

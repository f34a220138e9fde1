//! A world of one shard: a log in memory, a folder, and what a test does to them.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use bytesize::ByteSize;
use futures::executor::block_on;
use shoal_indexer::{
    config::EngineConfig,
    shard::{
        Progress, Shared, Spec,
        run::{self, Context},
        search::Ask,
    },
    view::{Moment, View},
};
use shoal_runtime::{
    clock::{Clock, System},
    eventually,
    tasks::Tasks,
};
use shoal_schemas::{
    ClusterId, Collection, IndexParameters, Metric, Offset, Partition, Payload, Point,
    Quantization, Record, Vector,
    avro::{self, Framing, NoRegistry},
};
use shoal_topic::{Cleanup, Cluster, Start, TopicPartition, TopicSpec, memory::MemoryLog};
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const DIM: u32 = 8;
pub(crate) const TOPIC: &str = "embeddings.docs";

pub(crate) struct World {
    pub(crate) log: MemoryLog,
    pub(crate) cluster: Cluster,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) collection: Collection,
    pub(crate) engine: EngineConfig,
}

pub(crate) struct Live {
    pub(crate) tasks: Tasks,
    pub(crate) cancel: CancellationToken,
    pub(crate) shared: Arc<Shared>,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = System::shared();
        let log = MemoryLog::new("test-cluster", clock.clone());
        let cluster = log.cluster();
        for (name, cleanup) in [
            (TOPIC.to_owned(), Cleanup::Compact),
            (format!("shoal.dlq.{TOPIC}"), Cleanup::Delete),
        ] {
            cluster
                .admin
                .create_topic(&TopicSpec {
                    name,
                    partitions: 1,
                    replication_factor: None,
                    cleanup,
                    settings: [].into(),
                })
                .unwrap();
        }
        let mut collection = Collection::new(
            "docs".parse().unwrap(),
            DIM.try_into().unwrap(),
            Metric::Cosine,
            1,
        );
        collection.index = IndexParameters {
            quantization: Some(Quantization::F32),
            ..IndexParameters::default()
        };
        let engine = EngineConfig {
            batch_records: 16.try_into().unwrap(),
            memtable_rows: 256,
            seal_rows: 512,
            compact_dead_rows: 64,
            compact_dead_share: 0.33,
            checkpoint_bytes: ByteSize::kib(64),
            wal_segment_bytes: ByteSize::kib(64),
            ..EngineConfig::default()
        };
        Self {
            log,
            cluster,
            clock,
            folder: tempfile::tempdir().unwrap(),
            collection,
            engine,
        }
    }

    pub(crate) fn spec(&self, folder: &Path) -> Spec {
        Spec::of_home(
            Arc::new(self.collection.clone()),
            Partition(0),
            ClusterId::from("test-cluster"),
            "local".parse().unwrap(),
            folder.to_owned(),
            self.engine.clone(),
        )
    }

    pub(crate) fn open(&self) -> Live {
        self.open_in(&self.folder.path().join("live"))
    }

    pub(crate) fn open_in(&self, folder: &Path) -> Live {
        let cancel = CancellationToken::new();
        let tasks = Tasks::new(cancel.clone());
        let opened = Arc::new(OnceLock::new());
        let context = Context {
            spec: self.spec(folder),
            cluster: self.cluster.clone(),
            schemas: Arc::new(NoRegistry),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            snapshots: None,
            cancel: cancel.clone(),
            opened: opened.clone(),
        };
        tasks
            .spawn_thread("shard", move || run::run(context))
            .unwrap();
        let shared = eventually(DEADLINE, "the shard opens", || {
            assert!(!cancel.is_cancelled(), "the shard failed");
            opened.get().cloned()
        });
        Live {
            tasks,
            cancel,
            shared,
        }
    }

    pub(crate) fn send(&self, record: &Record) -> Offset {
        let to = TopicPartition {
            topic: TOPIC.into(),
            partition: Partition(0),
        };
        let sent = self.cluster.writer.send(&to, record).unwrap();
        block_on(sent).unwrap().offset
    }

    pub(crate) fn upsert(&self, id: &str, seed: u64) -> Offset {
        self.send(&self.record(id, seed))
    }

    pub(crate) fn upsert_with(&self, id: &str, seed: u64, payload: Payload) -> Offset {
        self.send(&self.record_with(id, seed, payload))
    }

    pub(crate) fn record(&self, id: &str, seed: u64) -> Record {
        self.record_with(id, seed, Payload::default())
    }

    pub(crate) fn record_with(&self, id: &str, seed: u64, payload: Payload) -> Record {
        self.record_of(id, &vector(seed), payload)
    }

    pub(crate) fn record_of(&self, id: &str, vector: &[f32], payload: Payload) -> Record {
        self.record_until(id, vector, payload, None)
    }

    /// The record of a point that expires, if it does.
    pub(crate) fn record_until(
        &self,
        id: &str,
        vector: &[f32],
        payload: Payload,
        until_ms: Option<u64>,
    ) -> Record {
        let metric = self.collection.metric;
        let point = Point {
            vector: Vector::new(vector, self.collection.dim, metric).unwrap(),
            payload,
            model: None,
            event_time_ms: None,
            expires_at_ms: until_ms.map(|until_ms| until_ms as i64),
        };
        let mut value = Vec::new();
        avro::encode(&point, Framing::SingleObject, &mut value);
        Record {
            key: Some(Bytes::copy_from_slice(id.as_bytes())),
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: 1_700_000_000_000,
        }
    }

    pub(crate) fn delete(&self, id: &str) -> Offset {
        self.send(&self.tombstone(id))
    }

    pub(crate) fn tombstone(&self, id: &str) -> Record {
        Record {
            key: Some(Bytes::copy_from_slice(id.as_bytes())),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        }
    }

    /// Where all records go.
    pub(crate) fn home(&self) -> TopicPartition {
        TopicPartition {
            topic: TOPIC.into(),
            partition: Partition(0),
        }
    }

    /// The record at an offset.
    pub(crate) fn read(&self, offset: Offset) -> Record {
        let from = TopicPartition {
            topic: TOPIC.into(),
            partition: Partition(0),
        };
        let start = [(from, Start::At(offset))];
        let mut reader = self.cluster.connect.open_reader(&start).unwrap();
        let fetched = reader.poll(1, DEADLINE).unwrap();
        fetched.records.into_iter().next().unwrap().record
    }

    pub(crate) fn end(&self) -> Offset {
        let partition = TopicPartition {
            topic: TOPIC.into(),
            partition: Partition(0),
        };
        let ends = self.cluster.admin.watermarks(&partition, DEADLINE);
        ends.unwrap().high
    }

    pub(crate) fn caught_up(&self, live: &Live) -> Arc<Progress> {
        let end = self.end();
        let progress = live.shared.progress();
        eventually(DEADLINE, "the shard applies everything", || {
            assert!(!live.cancel.is_cancelled(), "the shard failed");
            let now = progress.borrow().clone();
            (now.next.first() >= Some(&end)).then_some(now)
        })
    }
}

impl Live {
    pub(crate) fn close(self) {
        self.cancel.cancel();
        drop(self.shared);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(self.tasks.finish(DEADLINE)).unwrap();
    }

    pub(crate) fn nearest(&self, seed: u64, k: usize) -> Vec<String> {
        let hits = self.shared.search(&Ask::nearest(vector(seed), k));
        hits.unwrap().into_iter().map(|hit| hit.id).collect()
    }
}

/// Every node of a sealed graph that answers has the code of its vector, wherever that came from.
pub(crate) fn assert_coded(live: &Live) -> usize {
    let (view, _) = live.shared.moment();
    let (mut vector, mut seen) = (Vec::new(), 0);
    for segment in &view.segments {
        let Some(sealed) = segment.as_sealed() else {
            continue;
        };
        let graph = sealed.graph();
        for row in 0..segment.len() {
            let is_node = !segment.rides.is_rider(row) && !segment.is_reclaimed();
            if segment.end_of(row).is_some() || !is_node {
                continue;
            }
            segment.vector(row, &live.shared.log, &mut vector).unwrap();
            let mut code = Vec::new();
            let bias = graph.space().encode_row(&vector, &mut code);
            assert_eq!(graph.code(row), Some(code.as_slice()), "row {row}");
            assert_eq!(graph.bias(row).to_bits(), bias.to_bits(), "row {row}");
            seen += 1;
        }
    }
    seen
}

/// A direction that depends on the seed alone.
pub(crate) fn vector(seed: u64) -> Vec<f32> {
    components(seed, DIM)
}

/// The same with so many components.
pub(crate) fn components(seed: u64, dim: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..dim)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Writes `turns` rounds over `ids` ids: updates, and now and then a delete.
pub(crate) fn churn(world: &World, ids: u64, turns: u64) {
    for turn in 0..turns {
        for id in 0..ids {
            let name = format!("id-{id}");
            if (id + turn).is_multiple_of(7) {
                world.delete(&name);
            } else {
                world.upsert(&name, turn * ids + id);
            }
        }
    }
}

/// What a segment tells of its rows together is what each of them tells.
pub(crate) fn assert_visible(view: &View, moment: Moment) {
    let Moment { sequence, now_ms } = moment;
    for segment in &view.segments {
        let rows = segment.rows();
        let visible = rows.filter(|(_, row)| row.is_visible(sequence, now_ms));
        assert!(
            segment
                .visible(u32::MAX, moment)
                .eq(visible.map(|(number, _)| number))
        );
    }
}

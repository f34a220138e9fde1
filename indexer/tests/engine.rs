//! A shard's engine over a log in memory: what is served follows the log, through restarts,
//! seals, compactions and damage, and a search never sees half a change.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::as_conversions,
    reason = "small numbers made by the test itself"
)]
#![allow(missing_docs, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
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
};
use shoal_runtime::{
    clock::{Clock, System},
    eventually,
    tasks::Tasks,
};
use shoal_schemas::{
    ClusterId, Collection, IndexParameters, Metric, Offset, Partition, Payload, Point, PointId,
    Quantization, Record, Token, Vector, Version,
    avro::{self, Framing, NoRegistry},
    headers,
};
use shoal_topic::{Cleanup, Cluster, TopicPartition, TopicSpec, memory::MemoryLog};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);
const DIM: u32 = 8;
const TOPIC: &str = "embeddings.docs";

struct World {
    log: MemoryLog,
    cluster: Cluster,
    clock: Arc<dyn Clock>,
    folder: tempfile::TempDir,
    collection: Collection,
    engine: EngineConfig,
}

struct Live {
    tasks: Tasks,
    cancel: CancellationToken,
    shared: Arc<Shared>,
}

impl World {
    fn new() -> Self {
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
            quantization: Quantization::F32,
            ..IndexParameters::default()
        };
        let engine = EngineConfig {
            batch_records: 16.try_into().unwrap(),
            memtable_rows: 256,
            seal_rows: 512,
            compact_dead_rows: 64,
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

    fn spec(&self, folder: &Path) -> Spec {
        Spec::of_home(
            Arc::new(self.collection.clone()),
            Partition(0),
            ClusterId::from("test-cluster"),
            "local".parse().unwrap(),
            folder.to_owned(),
            self.engine.clone(),
        )
    }

    fn open(&self) -> Live {
        self.open_in(&self.folder.path().join("live"))
    }

    fn open_in(&self, folder: &Path) -> Live {
        let cancel = CancellationToken::new();
        let tasks = Tasks::new(cancel.clone());
        let opened = Arc::new(OnceLock::new());
        let context = Context {
            spec: self.spec(folder),
            cluster: self.cluster.clone(),
            schemas: Arc::new(NoRegistry),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
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

    fn send(&self, record: &Record) -> Offset {
        let to = TopicPartition {
            topic: TOPIC.into(),
            partition: Partition(0),
        };
        let sent = self.cluster.writer.send(&to, record).unwrap();
        block_on(sent).unwrap().offset
    }

    fn upsert(&self, id: &str, seed: u64) -> Offset {
        self.send(&self.record(id, seed))
    }

    fn record(&self, id: &str, seed: u64) -> Record {
        let point = Point {
            vector: Vector::new(&vector(seed), self.collection.dim, Metric::Cosine).unwrap(),
            payload: Payload::default(),
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
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

    fn delete(&self, id: &str) -> Offset {
        self.send(&Record {
            key: Some(Bytes::copy_from_slice(id.as_bytes())),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        })
    }

    fn end(&self) -> Offset {
        let partition = TopicPartition {
            topic: TOPIC.into(),
            partition: Partition(0),
        };
        let ends = self.cluster.admin.watermarks(&partition, DEADLINE);
        ends.unwrap().high
    }

    fn caught_up(&self, live: &Live) -> Arc<Progress> {
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
    fn close(self) {
        self.cancel.cancel();
        drop(self.shared);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(self.tasks.finish(DEADLINE)).unwrap();
    }

    fn nearest(&self, seed: u64, k: usize) -> Vec<String> {
        let hits = self.shared.search(&Ask {
            vector: vector(seed),
            k,
            beam: None,
            with_vector: false,
            with_payload: false,
            exact: false,
        });
        hits.unwrap().into_iter().map(|hit| hit.id).collect()
    }
}

/// A direction that depends on the seed alone.
fn vector(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..DIM)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Writes `turns` rounds over `ids` ids: updates, and now and then a delete.
fn churn(world: &World, ids: u64, turns: u64) {
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

#[test]
fn updates_replace_and_tombstones_remove() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.upsert("b", 2);
    world.caught_up(&live);
    assert_eq!(live.nearest(1, 1), ["a"]);
    world.upsert("a", 3);
    world.caught_up(&live);
    assert_eq!(live.nearest(3, 1), ["a"]);
    assert_eq!(live.nearest(1, 5).len(), 2);
    world.delete("a");
    let progress = world.caught_up(&live);
    assert_eq!(live.nearest(3, 5), ["b"]);
    assert_eq!(progress.points, 1);
    live.close();
}

#[test]
fn a_restarted_shard_and_a_rebuilt_one_equal_the_live_one() {
    let world = World::new();
    let live = world.open();
    churn(&world, 300, 8);
    let before = world.caught_up(&live);
    let found = live.nearest(7 * 300 + 11, 20);
    live.close();
    let again = world.open();
    let after = world.caught_up(&again);
    assert_eq!(before, after);
    assert_eq!(again.nearest(7 * 300 + 11, 20), found);
    // Only what came after the last checkpoint is in the memtable or replayed.
    churn(&world, 300, 1);
    let later = world.caught_up(&again);
    world.log.compact(TOPIC);
    let rebuilt = world.open_in(&world.folder.path().join("rebuilt"));
    let fresh = world.caught_up(&rebuilt);
    assert_eq!((later.digest, later.points), (fresh.digest, fresh.points));
    again.close();
    rebuilt.close();
}

#[test]
fn endless_updates_are_compacted_and_lose_no_point() {
    let world = World::new();
    let live = world.open();
    churn(&world, 200, 40);
    let progress = world.caught_up(&live);
    let rows = eventually(DEADLINE, "dead rows are compacted away", || {
        let (view, _) = live.shared.moment();
        let rows: u32 = view.segments.iter().map(|segment| segment.len()).sum();
        (rows < 200 * 6).then_some(rows)
    });
    assert!(u64::from(rows) >= progress.points);
    let last = |id: u64| {
        (0..40)
            .rev()
            .find(|turn| !(id + turn).is_multiple_of(7))
            .unwrap()
    };
    for id in 0..200 {
        let turn = last(id);
        let is_live = turn == 39;
        let name = format!("id-{id}");
        let found = live.nearest(turn * 200 + id, 1);
        assert_eq!(found.first() == Some(&name), is_live, "{name}");
        let stored = live
            .shared
            .points(std::slice::from_ref(&name), true)
            .unwrap();
        assert_eq!(stored.len(), usize::from(is_live));
        if let Some(point) = stored.first().and_then(|one| one.point.as_ref()) {
            assert_eq!(point.vector, vector(turn * 200 + id));
        }
    }
    live.close();
}

#[test]
fn a_search_during_updates_sees_every_id_exactly_once() {
    let world = World::new();
    let live = world.open();
    for id in 0..50 {
        world.upsert(&format!("id-{id}"), id);
    }
    world.caught_up(&live);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 1..120 {
                for id in 0..50 {
                    world.upsert(&format!("id-{id}"), turn * 50 + id);
                }
            }
            world.caught_up(&live);
            done.store(true, Ordering::Release);
        });
        let mut searches = 0u32;
        while !done.load(Ordering::Acquire) {
            let mut found = live.nearest(u64::from(searches), 60);
            found.sort();
            found.dedup();
            assert_eq!(found.len(), 50, "search {searches} missed or doubled an id");
            searches += 1;
        }
        assert!(searches > 10);
    });
    live.close();
}

#[test]
fn refused_records_are_contested_until_a_good_one_comes() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.upsert("b", 2);
    let bad = Record {
        value: Some(Bytes::from_static(b"\xc3\x01 not avro")),
        ..world.record("a", 1)
    };
    world.send(&bad);
    let contested = world.caught_up(&live);
    assert_eq!((contested.contested, contested.points), (1, 2));
    assert_eq!(
        live.nearest(1, 1),
        ["a"],
        "what was served goes on being served"
    );
    world.log.compact(TOPIC);
    let rebuilt = world.open_in(&world.folder.path().join("rebuilt"));
    let fresh = world.caught_up(&rebuilt);
    assert_eq!((fresh.contested, fresh.points), (1, 1));
    assert_eq!(fresh.digest, contested.digest);
    world.upsert("a", 5);
    let (settled, again) = (world.caught_up(&live), world.caught_up(&rebuilt));
    assert_eq!((settled.contested, settled.points), (0, 2));
    assert_eq!(settled.digest, again.digest);
    live.close();
    rebuilt.close();
}

#[test]
fn within_a_partition_the_later_offset_wins_whatever_its_version() {
    let world = World::new();
    let live = world.open();
    let versioned = |seed, version: u64| {
        let mut record = world.record("a", seed);
        let raw = Version::from_parts(version, 0).raw();
        let value = Bytes::from(raw.to_string());
        record.headers.push((headers::VERSION.to_owned(), value));
        record
    };
    world.send(&versioned(1, 900));
    world.send(&versioned(2, 100));
    let progress = world.caught_up(&live);
    assert_eq!(live.nearest(2, 1), ["a"]);
    world.log.compact(TOPIC);
    let rebuilt = world.open_in(&world.folder.path().join("rebuilt"));
    assert_eq!(world.caught_up(&rebuilt).digest, progress.digest);
    live.close();
    rebuilt.close();
}

fn files_below(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, suffix));
        } else if path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_lost_catalog_or_a_damaged_graph_costs_time_and_no_point() {
    let world = World::new();
    let folder = world.folder.path().join("live");
    let live = world.open();
    churn(&world, 250, 6);
    let before = world.caught_up(&live);
    live.close();
    let found = |live: &Live| live.nearest(5 * 250 + 3, 10);
    // The catalog is derived.
    fs::remove_dir_all(folder.join("catalog")).unwrap();
    let live = world.open();
    assert_eq!(world.caught_up(&live), before);
    let expected = found(&live);
    churn(&world, 250, 1);
    let before = world.caught_up(&live);
    live.close();
    // So is the checkpoint: its graphs carry checksums that usearch does not check.
    for graph in files_below(&folder.join("segments"), ".usearch") {
        let mut bytes = fs::read(&graph).unwrap();
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).unwrap() ^= 0x40;
        fs::write(&graph, bytes).unwrap();
    }
    let live = world.open();
    assert_eq!(world.caught_up(&live), before);
    assert_eq!(expected.len(), 10);
    let stored = live.shared.points(&["id-1".to_owned()], false).unwrap();
    assert_eq!(stored.len(), 1);
    live.close();
}

#[test]
fn a_token_is_waited_for_and_one_from_elsewhere_waits_for_its_key() {
    let world = World::new();
    let live = world.open();
    world.caught_up(&live);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let token = |cluster: &str, offset, version| Token {
        cluster: ClusterId::from(cluster),
        topic: TOPIC.into(),
        partition: Partition(0),
        offset,
        key: PointId::new("a").unwrap(),
        version,
    };
    let offset = world.upsert("a", 1);
    let written = Version::from_timestamp(1_700_000_000_000);
    for (cluster, version) in [("test-cluster", written), ("elsewhere", written)] {
        let waited = runtime.block_on(async {
            tokio::time::timeout(
                DEADLINE,
                live.shared.wait_for(&token(cluster, offset, version)),
            )
            .await
        });
        waited.unwrap().unwrap();
        assert_eq!(live.nearest(1, 1), ["a"]);
    }
    let newer = Version::from_parts(written.millis() + 1, 0);
    for token in [
        token("test-cluster", Offset(offset.0 + 1), written),
        token("elsewhere", offset, newer),
    ] {
        let waited = runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(50), live.shared.wait_for(&token)).await
        });
        assert!(
            waited.is_err(),
            "a write that is not there was not waited for"
        );
    }
    live.close();
}

#[test]
fn an_expired_point_is_hidden_and_stays_in_the_digest() {
    let world = World::new();
    let live = world.open();
    world.upsert("b", 2);
    let value = br#"{"vector":[1,2,3,4,5,6,7,8],"expires_at":1000}"#;
    world.send(&Record {
        value: Some(Bytes::from_static(value)),
        ..world.record("a", 1)
    });
    let progress = world.caught_up(&live);
    assert_eq!(progress.points, 2);
    assert_eq!(live.shared.live_points(), 1);
    assert_eq!(live.nearest(1, 5), ["b"]);
    assert!(
        live.shared
            .points(&["a".to_owned()], false)
            .unwrap()
            .is_empty()
    );
    let before = progress.digest;
    world.delete("a");
    assert_ne!(world.caught_up(&live).digest, before);
    live.close();
}

#[test]
fn a_broker_that_goes_away_is_waited_for_and_searches_go_on() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    world.log.set_down(true);
    assert_eq!(live.nearest(1, 1), ["a"]);
    world.log.set_down(false);
    world.upsert("b", 2);
    world.caught_up(&live);
    assert_eq!(live.nearest(2, 1), ["b"]);
    live.close();
}

#[test]
fn a_folder_of_another_definition_is_set_aside_and_the_shard_rebuilt() {
    let mut world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    live.close();
    world.collection.metric = Metric::L2;
    let live = world.open();
    world.caught_up(&live);
    assert_eq!(live.nearest(1, 1), ["a"]);
    live.close();
    let aside = world.folder.path().join("live.aside-0");
    assert!(aside.join("wal").exists(), "nothing is thrown away");
}

#[test]
fn a_topic_cut_below_the_shard_is_noticed_and_its_folder_set_aside() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    live.close();
    for seed in 2..6 {
        world.upsert("b", seed);
    }
    let home = TopicPartition {
        topic: TOPIC.into(),
        partition: Partition(0),
    };
    world.log.trim(&home, Offset(3));
    let live = world.open();
    let folder = world.folder.path().join("live.aside-0");
    eventually(DEADLINE, "the shard gives up its folder", || {
        folder.exists().then_some(())
    });
    live.close();
    // Its node takes it again, from the beginning.
    let live = world.open();
    world.caught_up(&live);
    assert_eq!(live.nearest(5, 2), ["b"]);
    live.close();
}

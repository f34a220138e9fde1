//! Feeds over the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::executor::block_on;
use shoal_runtime::{clock::System, eventually, tasks::Tasks};
use shoal_schemas::{
    Collection, Metric, Offset, Partition, PointId, Record,
    headers::{FED_BY, FED_FROM, VERSION},
    route,
};
use shoal_topic::{Cleanup, Cluster, Start, TopicPartition, TopicSpec, memory::MemoryLog};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Feed, Progress};

const DEADLINE: Duration = Duration::from_secs(20);

fn collection(name: &str, partitions: u32) -> Collection {
    let dim = 2.try_into().unwrap();
    Collection::new(name.parse().unwrap(), dim, Metric::L2, partitions)
}

struct World {
    log: MemoryLog,
    from: Collection,
    to: Collection,
}

/// A feed under way; dropping it ends it.
struct Running {
    cancel: CancellationToken,
    tasks: Tasks,
    progress: watch::Receiver<Progress>,
}

impl Running {
    async fn end(self) {
        self.cancel.cancel();
        self.tasks.cancel().cancel();
        self.tasks.finish(DEADLINE).await.unwrap();
    }
}

impl World {
    fn new() -> Self {
        let log = MemoryLog::new("memory", System::shared());
        let (from, to) = (collection("docs", 3), collection("docs-g2", 5));
        for one in [&from, &to] {
            let spec = TopicSpec {
                name: one.topic(),
                partitions: one.partitions,
                replication_factor: None,
                cleanup: Cleanup::Compact,
                settings: BTreeMap::new(),
            };
            log.cluster().admin.create_topic(&spec).unwrap();
        }
        Self { log, from, to }
    }

    fn cluster(&self) -> Cluster {
        self.log.cluster()
    }

    fn feed(&self) -> Running {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed).to_string();
        let (tasks, cancel) = (
            Tasks::new(CancellationToken::new()),
            CancellationToken::new(),
        );
        let feed = Feed::new(self.cluster(), self.from.clone(), self.to.clone(), &run);
        let progress = feed.spawn(&tasks, cancel.clone()).unwrap();
        Running {
            cancel,
            tasks,
            progress,
        }
    }

    /// Waits until everything the source holds is acknowledged in the target.
    fn fed(&self, running: &Running) -> Progress {
        let ends: Vec<Offset> = (self.partitions(&self.from).iter())
            .map(|at| self.cluster().admin.watermarks(at, DEADLINE).unwrap().high)
            .collect();
        eventually(DEADLINE, "the feed to have copied everything", || {
            let progress = running.progress.borrow().clone();
            assert_eq!(progress.failed, None);
            (progress.next == ends).then_some(progress)
        })
    }

    fn partitions(&self, of: &Collection) -> Vec<TopicPartition> {
        super::follow::partitions(of)
    }

    fn write(&self, to: &Collection, key: &str, value: Option<&str>, version: u64) {
        let id = PointId::new(key).unwrap();
        self.write_at(to, route::partition_of(to, &id), Some(key), value, version);
    }

    fn write_at(
        &self,
        to: &Collection,
        partition: Partition,
        key: Option<&str>,
        value: Option<&str>,
        version: u64,
    ) {
        let record = Record {
            key: key.map(|key| key.to_owned().into()),
            value: value.map(|value| Bytes::from(value.to_owned())),
            headers: vec![(VERSION.to_owned(), version.to_string().into())],
            timestamp_ms: 1_000,
        };
        let at = TopicPartition {
            topic: to.topic().into(),
            partition,
        };
        let sent = self.cluster().writer.send(&at, &record).unwrap();
        // A test does not yield between its writes.
        block_on(tokio::task::unconstrained(sent)).unwrap();
    }

    /// Everything a topic holds, partition by partition.
    fn all(&self, of: &Collection) -> Vec<(Partition, Record)> {
        let mut all = Vec::new();
        for at in self.partitions(of) {
            let starts = [(at.clone(), Start::Beginning)];
            let mut reader = self.cluster().connect.open_reader(&starts).unwrap();
            loop {
                let fetched = reader.poll(1000, DEADLINE).unwrap();
                let records = fetched.records.into_iter();
                all.extend(records.map(|one| (at.partition, one.record)));
                if !fetched.ends.is_empty() {
                    break;
                }
            }
        }
        all
    }

    /// The newest value of each key.
    fn newest(&self, of: &Collection) -> HashMap<String, Option<String>> {
        let all = self.all(of).into_iter();
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        all.map(|(_, record)| (text(record.key.unwrap()), record.value.map(text)))
            .collect()
    }
}

#[tokio::test]
async fn records_go_where_the_new_routing_says_as_they_are_and_in_order() {
    let world = World::new();
    for n in 0..200_u64 {
        let key = format!("k{}", n % 50);
        let value = format!("v{n}");
        let is_delete = n % 7 == 0;
        let value = (!is_delete).then_some(value.as_str());
        world.write(&world.from, &key, value, 1000 - n);
    }
    let running = world.feed();
    let progress = world.fed(&running);
    assert_eq!((progress.copied, progress.passed_over), (200, 0));
    // Writes go on while it is fed.
    world.write(&world.from, "k1", Some("later"), 5000);
    world.fed(&running);
    let copies = world.all(&world.to);
    assert_eq!(copies.len(), 201);
    for (partition, copy) in &copies {
        let key = std::str::from_utf8(copy.key.as_ref().unwrap()).unwrap();
        let id = PointId::new(key).unwrap();
        assert_eq!(*partition, route::partition_of(&world.to, &id));
        assert_eq!(copy.timestamp_ms, 1_000);
        assert!(copy.header(VERSION).is_some());
        let from = std::str::from_utf8(copy.header(FED_FROM).unwrap()).unwrap();
        let home = route::partition_of(&world.from, &id);
        assert!(
            from.starts_with(&format!("embeddings.docs/{home}/")),
            "{from}"
        );
    }
    assert_eq!(world.newest(&world.to), world.newest(&world.from));
    running.end().await;
}

#[tokio::test]
async fn a_feed_that_begins_anew_copies_nothing_twice() {
    let world = World::new();
    for n in 0..100_u64 {
        world.write(&world.from, &format!("k{}", n % 20), Some("old"), n);
    }
    let first = world.feed();
    world.fed(&first);
    first.end().await;
    for n in 0..10_u64 {
        world.write(&world.from, &format!("k{n}"), Some("new"), 200 + n);
    }
    // Of a compacted target, too: what is newest of a key is what counts.
    world.log.compact(&world.to.topic());
    let before = world.all(&world.to).len();
    let second = world.feed();
    let progress = world.fed(&second);
    assert_eq!((progress.copied, progress.passed_over), (10, 100));
    assert_eq!(world.all(&world.to).len(), before + 10);
    assert_eq!(world.newest(&world.to), world.newest(&world.from));
    second.end().await;
}

#[tokio::test]
async fn a_newer_direct_write_is_not_overwritten_by_an_older_copy() {
    let world = World::new();
    world.write(&world.to, "k", Some("direct"), 50);
    world.write(&world.from, "k", Some("older"), 40);
    world.write(&world.from, "other", Some("fed"), 41);
    let running = world.feed();
    world.fed(&running);
    let newest = world.newest(&world.to);
    assert_eq!(newest["k"].as_deref(), Some("direct"));
    assert_eq!(newest["other"].as_deref(), Some("fed"));
    world.write(&world.from, "k", Some("newer"), 60);
    world.fed(&running);
    assert_eq!(world.newest(&world.to)["k"].as_deref(), Some("newer"));
    running.end().await;
}

#[tokio::test]
async fn a_copy_that_came_behind_a_newer_direct_write_is_undone() {
    let world = World::new();
    world.write(&world.from, "k", Some("older"), 40);
    let first = world.feed();
    world.fed(&first);
    first.end().await;
    // As if the copy had been under way when it was written.
    let copy = world.all(&world.to).pop().unwrap();
    world.write(&world.to, "k", Some("direct"), 50);
    let at = TopicPartition {
        topic: world.to.topic().into(),
        partition: copy.0,
    };
    block_on(world.cluster().writer.send(&at, &copy.1).unwrap()).unwrap();
    assert_eq!(world.newest(&world.to)["k"].as_deref(), Some("older"));
    let second = world.feed();
    eventually(DEADLINE, "the direct write to be the newest again", || {
        (world.newest(&world.to)["k"].as_deref() == Some("direct")).then_some(())
    });
    second.end().await;
}

#[tokio::test]
async fn a_direct_write_that_others_have_followed_is_not_brought_back() {
    let world = World::new();
    world.write(&world.from, "k", Some("older"), 40);
    let first = world.feed();
    world.fed(&first);
    first.end().await;
    let (partition, late) = world.all(&world.to).pop().unwrap();
    world.write(&world.to, "k", Some("direct"), 50);
    let topic = world.to.topic().into();
    let at = TopicPartition { topic, partition };
    block_on(world.cluster().writer.send(&at, &late).unwrap()).unwrap();
    world.write(&world.to, "k", Some("newest"), 60);
    let before = world.all(&world.to).len();
    // However often it begins, with the late copy in the log.
    for _ in 0..3 {
        let again = world.feed();
        world.fed(&again);
        again.end().await;
        assert_eq!(world.newest(&world.to)["k"].as_deref(), Some("newest"));
        assert_eq!(world.all(&world.to).len(), before);
    }
}

#[tokio::test]
async fn what_the_sources_shards_refuse_for_its_place_is_passed_over() {
    let world = World::new();
    let id = PointId::new("k").unwrap();
    let home = route::partition_of(&world.from, &id);
    let elsewhere = Partition((home.0 + 1) % 3);
    world.write_at(&world.from, elsewhere, Some("k"), Some("stray"), 9);
    world.write(&world.from, "k", Some("right"), 1);
    let running = world.feed();
    let progress = world.fed(&running);
    assert_eq!((progress.copied, progress.passed_over), (1, 1));
    assert_eq!(world.newest(&world.to)["k"].as_deref(), Some("right"));
    running.end().await;
}

#[tokio::test]
async fn a_feed_goes_on_after_the_broker_was_away() {
    let world = World::new();
    world.write(&world.from, "a", Some("1"), 1);
    let running = world.feed();
    world.fed(&running);
    world.log.set_down(true);
    world.log.set_down(false);
    world.write(&world.from, "b", Some("2"), 2);
    world.fed(&running);
    assert_eq!(world.newest(&world.to), world.newest(&world.from));
    running.end().await;
}

#[tokio::test]
async fn deletes_that_the_source_has_no_more_of_are_made_up_for() {
    let world = World::new();
    for key in ["a", "b", "c"] {
        world.write(&world.from, key, Some("1"), 10);
    }
    let first = world.feed();
    world.fed(&first);
    first.end().await;
    // While nobody feeds: one is deleted, and Kafka keeps the delete no longer; one is written directly.
    world.write(&world.from, "a", None, 20);
    world.write(&world.from, "c", None, 20);
    world.log.compact_tombstones(&world.from.topic());
    assert!(!world.newest(&world.from).contains_key("a"));
    world.write(&world.to, "c", Some("direct"), 30);
    let second = world.feed();
    let progress = world.fed(&second);
    assert_eq!((progress.copied, progress.deleted), (1, 1));
    let newest = world.newest(&world.to);
    assert_eq!(newest["a"], None);
    assert_eq!(newest["b"].as_deref(), Some("1"));
    assert_eq!(newest["c"].as_deref(), Some("direct"));
    // What is written after that is newer.
    world.write(&world.from, "a", Some("again"), 40);
    world.fed(&second);
    assert_eq!(world.newest(&world.to)["a"].as_deref(), Some("again"));
    second.end().await;
    let third = world.feed();
    let progress = world.fed(&third);
    assert_eq!((progress.copied, progress.deleted), (0, 0));
    third.end().await;
}

#[tokio::test]
async fn an_older_copy_of_a_feed_that_was_overtaken_is_not_the_last_one() {
    let world = World::new();
    world.write(&world.from, "k", Some("older"), 40);
    let first = world.feed();
    world.fed(&first);
    first.end().await;
    let (partition, mut late) = world.all(&world.to).pop().unwrap();
    let by = late.headers.iter_mut().find(|(name, _)| name == FED_BY);
    by.unwrap().1 = "overtaken".into();
    world.write(&world.from, "k", Some("newer"), 50);
    let second = world.feed();
    world.fed(&second);
    let topic = world.to.topic().into();
    let at = TopicPartition { topic, partition };
    block_on(world.cluster().writer.send(&at, &late).unwrap()).unwrap();
    assert_eq!(world.newest(&world.to)["k"].as_deref(), Some("older"));
    eventually(DEADLINE, "the newer copy to be the last again", || {
        (world.newest(&world.to)["k"].as_deref() == Some("newer")).then_some(())
    });
    second.end().await;
}

#[tokio::test]
async fn a_source_that_was_made_anew_ends_the_feed() {
    let world = World::new();
    world.write(&world.from, "k", Some("1"), 1);
    let first = world.feed();
    world.fed(&first);
    first.end().await;
    let admin = world.cluster().admin;
    admin.delete_topic(&world.from.topic()).unwrap();
    let spec = TopicSpec {
        name: world.from.topic(),
        partitions: world.from.partitions,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: BTreeMap::new(),
    };
    admin.create_topic(&spec).unwrap();
    let second = world.feed();
    let failed = eventually(DEADLINE, "the feed to fail", || {
        second.progress.borrow().failed.clone()
    });
    assert!(failed.contains("was made anew"), "{failed}");
    assert_eq!(world.newest(&world.to)["k"].as_deref(), Some("1"));
    second.end().await;
}

//! Tests of making and dropping collections, on the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use shoal_runtime::{clock::System, tasks::Tasks};
use shoal_schemas::{
    Collection, CollectionName, FieldKind, IndexKind, Metric, Partition, Partitioner, Quantization,
    control::{Claim, Entry, Feed, Key},
};
use tokio_util::sync::CancellationToken;

use super::{
    AliasError, CreateError, DropError, Taken, create, drop, drop_alias, set_alias, topics,
};
use crate::{
    Cleanup, TopicSpec,
    control::{ControlHandle, ControlLog},
    memory::MemoryLog,
};

struct World {
    log: MemoryLog,
    control: ControlHandle,
    tasks: Tasks,
}

impl World {
    fn new() -> Self {
        let log = MemoryLog::new("memory", System::shared());
        ControlLog::ensure(&log.cluster(), None).unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let control = ControlLog::spawn(&log.cluster(), &tasks, System::shared()).unwrap();
        Self {
            log,
            control,
            tasks,
        }
    }

    fn describe(&self, topic: &str) -> Option<TopicSpec> {
        self.log.cluster().admin.describe_topic(topic).unwrap()
    }

    async fn create(&self, wanted: &Collection) -> Result<bool, CreateError> {
        let created = create(&self.log.cluster(), &self.control, wanted.clone()).await?;
        assert_eq!(&created.collection, wanted);
        Ok(created.created)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

fn docs() -> Collection {
    let name = "docs".parse().unwrap();
    let mut docs = Collection::new(name, 4.try_into().unwrap(), Metric::Cosine, 3);
    // As it is written down.
    docs.index.quantization = Some(docs.quantization());
    docs
}

/// What `kafka-topics --create` makes of a topic with one further setting.
fn foreign(partitions: u32, cleanup: Cleanup, settings: &[(&str, &str)]) -> TopicSpec {
    let settings = settings
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()));
    TopicSpec {
        name: docs().name.topic(),
        partitions,
        replication_factor: None,
        cleanup,
        settings: settings.collect::<BTreeMap<_, _>>(),
    }
}

#[tokio::test]
async fn a_collection_is_a_compacted_topic_a_dead_letter_topic_and_a_definition() {
    let world = World::new();
    assert!(world.create(&docs()).await.unwrap());
    let home = world.describe("embeddings.docs").unwrap();
    assert_eq!((home.partitions, home.cleanup), (3, Cleanup::Compact));
    assert_eq!(home.settings["delete.retention.ms"], "604800000");
    assert!(home.settings["max.message.bytes"].parse::<u32>().unwrap() > docs().max_record_bytes);
    let letters = world.describe("shoal.dlq.embeddings.docs").unwrap();
    assert_eq!((letters.partitions, letters.cleanup), (3, Cleanup::Delete));
    assert_eq!(letters.settings["retention.ms"], "1209600000");
    assert_eq!(world.control.snapshot().collections[&docs().name], docs());
}

#[tokio::test]
async fn an_equal_definition_is_no_error_and_mends_a_missing_topic() {
    let world = World::new();
    assert!(world.create(&docs()).await.unwrap());
    world
        .log
        .cluster()
        .admin
        .delete_topic("shoal.dlq.embeddings.docs")
        .unwrap();
    assert!(!world.create(&docs()).await.unwrap());
    assert!(world.describe("shoal.dlq.embeddings.docs").is_some());
}

#[tokio::test]
async fn a_quantization_that_is_not_said_is_written_down_and_goes_with_any() {
    let world = World::new();
    let mut silent = docs();
    silent.index.quantization = None;
    let cluster = world.log.cluster();
    let made = create(&cluster, &world.control, silent.clone()).await;
    assert_eq!(made.unwrap().collection, docs());
    let again = create(&cluster, &world.control, silent.clone()).await;
    assert_eq!(again.unwrap().collection, docs());
    silent.index.quantization = Some(Quantization::F16);
    let refused = create(&cluster, &world.control, silent).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("index.quantization is i8, asked for was f16"),
        "{refused}"
    );
}

#[tokio::test]
async fn another_definition_is_refused_with_every_difference() {
    let world = World::new();
    world.create(&docs()).await.unwrap();
    let mut other = docs();
    other.dim = 8.try_into().unwrap();
    other.partitioner = Partitioner::Crc32;
    other.index.m = 32;
    other.fields = [("year".to_owned(), FieldKind::Integer)].into();
    let refused = world.create(&other).await.unwrap_err().to_string();
    for difference in [
        "dim is 4, asked for was 8",
        "partitioner is murmur2, asked for was crc32",
        "index.m is 16, asked for was 32",
        "fields is none, asked for was year=integer",
    ] {
        assert!(refused.contains(difference), "{refused}");
    }
    assert_eq!(refused.matches("asked for was").count(), 4, "{refused}");
}

#[tokio::test]
async fn a_definition_out_of_range_makes_nothing() {
    let world = World::new();
    let mut wanted = docs();
    wanted.partitions = 0;
    let refused = world.create(&wanted).await.unwrap_err();
    assert!(matches!(refused, CreateError::Definition(_)), "{refused}");
    assert_eq!(world.describe("embeddings.docs"), None);
}

#[tokio::test]
async fn a_topic_that_does_not_fit_is_refused_with_every_fault_and_left_alone() {
    let world = World::new();
    let spec = foreign(
        5,
        Cleanup::Delete,
        &[
            ("delete.retention.ms", "86400000"),
            ("max.message.bytes", "1000"),
            ("message.timestamp.type", "LogAppendTime"),
        ],
    );
    world.log.cluster().admin.create_topic(&spec).unwrap();
    let before = world.describe("embeddings.docs");
    let refused = world.create(&docs()).await.unwrap_err();
    let CreateError::Misfit { topic, faults } = refused else {
        panic!("{refused}");
    };
    assert_eq!(topic, "embeddings.docs");
    let named = [
        "it has 5 partitions, the collection is defined with 3",
        "cleanup.policy is `delete`",
        "delete.retention.ms is 86400000",
        "max.message.bytes is 1000",
        "message.timestamp.type is `LogAppendTime`",
    ];
    assert_eq!(faults.len(), named.len(), "{faults:?}");
    for (fault, part) in faults.iter().zip(named) {
        assert!(fault.starts_with(part), "{part}: {fault}");
    }
    assert_eq!(world.describe("embeddings.docs"), before);
    assert!(world.control.snapshot().collections.is_empty());
}

#[test]
fn a_topic_that_also_deletes_by_age_is_refused() {
    let found = foreign(3, Cleanup::Compact, &[("cleanup.policy", "compact,delete")]);
    let faults = topics::home_faults(&found, &topics::home(&docs()), &docs());
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(
        faults[0].contains("its `delete` drops points by age"),
        "{faults:?}"
    );
}

#[tokio::test]
async fn a_topic_that_fits_is_adopted() {
    let world = World::new();
    let spec = foreign(
        3,
        Cleanup::Compact,
        &[
            ("delete.retention.ms", "604800000"),
            ("max.message.bytes", "1048588"),
        ],
    );
    world.log.cluster().admin.create_topic(&spec).unwrap();
    let before = world.describe("embeddings.docs");
    assert!(world.create(&docs()).await.unwrap());
    assert_eq!(world.describe("embeddings.docs"), before);
}

#[tokio::test]
async fn dropping_forgets_definition_and_claims_and_keeps_the_topic_unless_told() {
    let world = World::new();
    let docs = docs();
    let cluster = world.log.cluster();
    for delete_topics in [false, true] {
        world.create(&docs).await.unwrap();
        let claim = Entry::Shard(Claim {
            node: "a".into(),
            address: "127.0.0.1:1".into(),
            ready: true,
            next_offset: None,
            early: false,
        });
        let key = Key::Shard(docs.name.clone(), Partition(1));
        world.control.put(&key, &claim).await.unwrap();
        let key = Key::Replica(docs.name.clone(), Partition(1), "b".parse().unwrap());
        let put = world.control.put(&key, &claim).await.unwrap();
        world.control.wait_for(put, super::READ_BACK).await.unwrap();
        assert_eq!(world.control.snapshot().replicas.len(), 1);
        drop(&cluster, &world.control, &docs.name, delete_topics)
            .await
            .unwrap();
        let state = world.control.snapshot();
        assert!(
            state.collections.is_empty() && state.shards.is_empty() && state.replicas.is_empty(),
            "{state:?}"
        );
        assert_eq!(world.describe("embeddings.docs").is_none(), delete_topics);
        assert_eq!(
            world.describe("shoal.dlq.embeddings.docs").is_none(),
            delete_topics
        );
    }
}

#[tokio::test]
async fn dropping_what_is_not_there_names_what_is() {
    let world = World::new();
    world.create(&docs()).await.unwrap();
    let name: CollectionName = "dosc".parse().unwrap();
    let refused = drop(&world.log.cluster(), &world.control, &name, false)
        .await
        .unwrap_err();
    assert!(matches!(refused, DropError::Missing { .. }));
    assert_eq!(
        refused.to_string(),
        "collection `dosc` does not exist; there are: docs"
    );
}

#[tokio::test]
async fn a_broker_that_is_away_is_worth_a_retry() {
    let world = World::new();
    world.control.caught_up(super::READ_BACK).await.unwrap();
    world.log.set_down(true);
    let refused = world.create(&docs()).await.unwrap_err();
    assert_eq!(refused.kind(), shoal_runtime::ErrorKind::Retry, "{refused}");
}

/// A collection that reads the topic of `docs`.
fn reader(name: &str) -> Collection {
    Collection {
        name: name.parse().unwrap(),
        reads: Some(docs().name),
        ..docs()
    }
}

#[tokio::test]
async fn a_collection_may_read_anothers_topic_and_the_topic_goes_with_its_last_reader() {
    let world = World::new();
    let cluster = world.log.cluster();
    let mut second = reader("docs-g2");
    let refused = world.create(&second).await.unwrap_err();
    assert!(
        refused.to_string().contains("no collection has it"),
        "{refused}"
    );
    world.create(&docs()).await.unwrap();
    let mut other = second.clone();
    other.partitions = 4;
    let refused = world.create(&other).await.unwrap_err().to_string();
    assert!(
        refused.contains("partitions is 3, asked for was 4"),
        "{refused}"
    );
    // Whatever is of the index alone is free.
    second.index = second.index.of_kind(IndexKind::Flat);
    second.metric = Metric::L2;
    second.fields = [("year".to_owned(), FieldKind::Integer)].into();
    assert!(world.create(&second).await.unwrap());
    assert_eq!(world.describe("embeddings.docs-g2"), None);
    let mut third = reader("docs-g3");
    third.reads = Some(second.name.clone());
    let refused = world.create(&third).await.unwrap_err().to_string();
    assert!(refused.contains("reads that of `docs` itself"), "{refused}");

    let name = docs().name;
    let refused = drop(&cluster, &world.control, &name, true).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, DropError::Read { .. }), "{refused}");
    assert!(world.control.snapshot().collections.contains_key(&name));
    drop(&cluster, &world.control, &name, false).await.unwrap();
    // It reads on, and another one may join it.
    world.create(&reader("docs-g4")).await.unwrap();
    let fourth = reader("docs-g4").name;
    drop(&cluster, &world.control, &fourth, false)
        .await
        .unwrap();
    assert!(world.describe("embeddings.docs").is_some());
    drop(&cluster, &world.control, &second.name, true)
        .await
        .unwrap();
    assert_eq!(world.describe("embeddings.docs"), None);
    assert_eq!(world.describe("shoal.dlq.embeddings.docs"), None);
}

#[tokio::test]
async fn an_alias_stands_for_a_collection_and_shares_its_names() {
    let world = World::new();
    let control = &world.control;
    let [live, docs_name]: [CollectionName; 2] = ["live", "docs"].map(|name| name.parse().unwrap());
    let set = |taken| set_alias(control, &live, &docs_name, taken);
    let refused = set(Taken::Refuse).await.unwrap_err();
    assert!(matches!(refused, AliasError::Target { .. }), "{refused}");
    world.create(&docs()).await.unwrap();
    assert_eq!(set(Taken::Refuse).await.unwrap(), None);
    assert_eq!(set(Taken::Refuse).await.unwrap(), Some(docs_name.clone()));
    let state = control.snapshot();
    assert_eq!(state.resolve(&live), Some(&docs()));
    assert_eq!(state.written(&live), Some(&docs()));

    let mut named = docs();
    named.name = live.clone();
    let refused = world.create(&named).await.unwrap_err();
    assert!(matches!(refused, CreateError::Alias { .. }), "{refused}");
    let refused = drop(&world.log.cluster(), control, &docs_name, false).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, DropError::Aliased { .. }), "{refused}");
    let refused = set_alias(control, &docs_name, &docs_name, Taken::Refuse).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, AliasError::Taken { .. }), "{refused}");

    // A re-indexing has the name of a collection stand for the next one.
    world.create(&reader("docs-g2")).await.unwrap();
    let next = reader("docs-g2").name;
    let before = set_alias(control, &docs_name, &next, Taken::Shadow).await;
    assert_eq!(before.unwrap(), None);
    assert_eq!(
        control.snapshot().resolve(&docs_name),
        Some(&reader("docs-g2"))
    );
    drop_alias(control, &docs_name).await.unwrap();
    assert_eq!(control.snapshot().resolve(&docs_name), Some(&docs()));
    let refused = drop_alias(control, &docs_name).await.unwrap_err();
    assert!(matches!(refused, AliasError::Missing { .. }), "{refused}");
}

#[tokio::test]
async fn writes_for_a_collection_that_is_fed_go_to_where_it_is_fed_from() {
    let world = World::new();
    let control = &world.control;
    let mut fed = docs();
    fed.name = "docs-g2".parse().unwrap();
    fed.partitions = 5;
    fed.fed_by = Some(docs().name);
    world.create(&docs()).await.unwrap();
    world.create(&fed).await.unwrap();
    let key = Key::Feed(fed.name.clone());
    // Where writes go, and whether those that depend on a point wait.
    for (closing, moved, written, is_moving) in [
        (false, false, docs(), false),
        (true, false, docs(), true),
        (true, true, fed.clone(), true),
    ] {
        let from = docs().name;
        let feed = Entry::Feed(Feed {
            from,
            closing,
            moved,
        });
        let put = control.put(&key, &feed).await.unwrap();
        let state = control.wait_for(put, super::READ_BACK).await.unwrap();
        assert_eq!(state.resolve(&fed.name), Some(&fed));
        assert_eq!(state.written(&fed.name), Some(&written));
        // The old one by its own name stays where it is, and waits too.
        assert_eq!(state.written(&docs().name), Some(&docs()));
        for name in [&fed.name, &docs().name] {
            assert_eq!(state.is_moving(name), is_moving, "{name}");
        }
    }
    let put = control.remove(&key).await.unwrap();
    let state = control.wait_for(put, super::READ_BACK).await.unwrap();
    assert_eq!(state.written(&fed.name), Some(&fed));
    assert!(!state.is_moving(&fed.name) && !state.is_moving(&docs().name));
}

//! Tests of the publisher, on the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use shoal_runtime::{ErrorKind, clock::Manual};
use shoal_schemas::{
    Collection, Dim, Metric, Offset, Partitioner, Payload, Point, PointId, Record, Value, Vector,
    Version,
    avro::{Framing, NoRegistry},
    event,
    headers::{Meta, TraceParent},
    route,
};
use shoal_topic::{Cleanup, Start, TopicPartition, TopicSpec, WriteError, memory::MemoryLog};

use super::{PublishConfig, PublishError, Publisher};
use crate::trace;

const NOW_MS: u64 = 1_700_000_000_000;

pub(crate) fn collection(partitions: u32) -> Collection {
    let dim = Dim::try_from(4).unwrap();
    Collection::new("docs".parse().unwrap(), dim, Metric::Cosine, partitions)
}

pub(crate) fn point(first: f32) -> Point {
    let title = ("title".to_owned(), Value::String("x".to_owned()));
    Point {
        vector: Vector::new(
            &[first, 0.5, 0.0, -1.0],
            4.try_into().unwrap(),
            Metric::Cosine,
        )
        .unwrap(),
        payload: Payload([title].into()),
        model: None,
        event_time_ms: Some(5),
        expires_at_ms: None,
    }
}

pub(crate) fn id(text: &str) -> PointId {
    PointId::new(text).unwrap()
}

/// A log in memory with the topics of a collection.
pub(crate) fn log_for(collection: &Collection) -> MemoryLog {
    let log = MemoryLog::new("memory", Manual::at(NOW_MS));
    for (name, cleanup) in [
        (collection.name.topic(), Cleanup::Compact),
        (collection.name.dlq_topic(), Cleanup::Delete),
    ] {
        let spec = TopicSpec {
            name,
            partitions: collection.partitions,
            replication_factor: None,
            cleanup,
            settings: std::collections::BTreeMap::new(),
        };
        log.cluster().admin.create_topic(&spec).unwrap();
    }
    log
}

/// Everything in a topic: partition, offset, record.
pub(crate) fn records(log: &MemoryLog, topic: &str, partitions: u32) -> Vec<(u32, Offset, Record)> {
    let cluster = log.cluster();
    let mut all = Vec::new();
    for partition in 0..partitions {
        let at = TopicPartition {
            topic: topic.into(),
            partition: shoal_schemas::Partition(partition),
        };
        let mut reader = cluster
            .connect
            .open_reader(&[(at, Start::Beginning)])
            .unwrap();
        let mut ended = false;
        while !ended {
            let fetched = reader.poll(100, Duration::from_secs(1)).unwrap();
            ended = !fetched.ends.is_empty();
            all.extend(
                fetched
                    .records
                    .into_iter()
                    .map(|f| (partition, f.offset, f.record)),
            );
        }
    }
    all
}

async fn publisher(log: &MemoryLog, collection: &Collection, config: PublishConfig) -> Publisher {
    let clock = Manual::at(NOW_MS);
    Publisher::new(&log.cluster(), clock, collection.clone(), config)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_point_reads_back_from_the_partition_its_key_says() {
    for partitioner in [Partitioner::Murmur2, Partitioner::Crc32] {
        for framing in [Framing::SingleObject, Framing::Confluent { schema_id: 7 }] {
            let mut docs = collection(5);
            docs.partitioner = partitioner;
            let log = log_for(&docs);
            let config = PublishConfig {
                origin: Some("eu".parse().unwrap()),
                framing,
                versions: true,
            };
            let publisher = publisher(&log, &docs, config).await;
            for n in 0..20_u8 {
                let id = id(&format!("id-{n}"));
                let token = publisher
                    .publish(&id, &point(n.into()))
                    .await
                    .unwrap()
                    .await
                    .unwrap();
                assert_eq!(token.partition, route::partition_of(&docs, &id));
                assert_eq!((&*token.topic, &token.key), ("embeddings.docs", &id));
                assert_eq!(&*token.cluster.0, "memory");
            }
            let found = records(&log, "embeddings.docs", 5);
            assert_eq!(found.len(), 20);
            for (_, _, record) in found {
                let id = PointId::from_key(record.key.as_deref()).unwrap();
                let number: f32 = id.as_str().strip_prefix("id-").unwrap().parse().unwrap();
                let meta = Meta::decode(&record).unwrap();
                assert_eq!(meta.origin.unwrap().as_str(), "eu");
                assert_eq!(meta.version.millis(), NOW_MS);
                if framing == Framing::SingleObject {
                    let value = record.value.unwrap();
                    let read = event::decode_value(&id, &value, &docs, &NoRegistry).unwrap();
                    assert_eq!(read, point(number));
                } else {
                    assert_eq!(record.value.unwrap()[..5], [0, 0, 0, 0, 7]);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_delete_is_a_tombstone_with_a_version() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs, PublishConfig::default()).await;
    let upsert = publisher
        .publish(&id("a"), &point(1.0))
        .await
        .unwrap()
        .await
        .unwrap();
    let delete = publisher.delete(&id("a")).await.unwrap().await.unwrap();
    assert!(delete.version > upsert.version);
    let found = records(&log, "embeddings.docs", 1);
    assert_eq!(found[1].2.value, None);
    assert_eq!(Meta::decode(&found[1].2).unwrap().version, delete.version);
}

#[tokio::test]
async fn without_versions_the_timestamp_is_the_version() {
    let docs = collection(1);
    let log = log_for(&docs);
    let config = PublishConfig {
        versions: false,
        ..PublishConfig::default()
    };
    let publisher = publisher(&log, &docs, config).await;
    let token = publisher
        .publish(&id("a"), &point(1.0))
        .await
        .unwrap()
        .await
        .unwrap();
    let (_, _, record) = &records(&log, "embeddings.docs", 1)[0];
    assert!(record.headers.is_empty(), "{record:?}");
    assert_eq!(Meta::decode(record).unwrap().version, token.version);
    assert_eq!(token.version, Version::from_parts(NOW_MS, 0));
}

#[tokio::test]
async fn a_record_over_the_limit_is_refused_by_name_and_not_sent() {
    let mut docs = collection(1);
    docs.max_record_bytes = 256;
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs, PublishConfig::default()).await;
    let mut big = point(1.0);
    big.payload
        .0
        .insert("text".into(), Value::String("x".repeat(300)));
    let Err(refused) = publisher.publish(&id("big"), &big).await else {
        panic!("it was taken");
    };
    assert_eq!(refused.kind(), ErrorKind::Caller);
    let PublishError::TooLarge {
        record_bytes,
        limit_bytes: 256,
        ..
    } = refused
    else {
        panic!("{refused}");
    };
    assert!(
        refused.to_string().contains("`big`") && record_bytes > 300,
        "{refused}"
    );
    let long = id(&"k".repeat(257));
    assert!(publisher.prepare(&long, &point(1.0)).is_err());
    let _token = publisher
        .publish(&id("fits"), &point(1.0))
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!(records(&log, "embeddings.docs", 1).len(), 1);
}

#[tokio::test]
async fn a_vector_checked_for_another_collection_is_refused() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs, PublishConfig::default()).await;
    let vector = |values: &[f32], metric| Point {
        vector: Vector::new(
            values,
            u32::try_from(values.len()).unwrap().try_into().unwrap(),
            metric,
        )
        .unwrap(),
        ..point(1.0)
    };
    for odd in [
        vector(&[1.0, 2.0], Metric::Cosine),
        vector(&[0.0; 4], Metric::L2),
    ] {
        let refused = publisher.try_publish(&id("a"), &odd).err().unwrap();
        assert!(matches!(refused, PublishError::Vector { .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_full_queue_makes_publish_wait_and_loses_nothing() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs, PublishConfig::default()).await;
    log.set_down(true);
    let mut sent = Vec::new();
    let full = loop {
        match publisher.try_publish(&id(&format!("{}", sent.len())), &point(1.0)) {
            Ok(delivery) => sent.push(delivery),
            Err(error) => break error,
        }
    };
    assert!(
        full.is_queue_full() && full.kind() == ErrorKind::Retry,
        "{full}"
    );
    let last = id("last");
    let last_point = point(2.0);
    let mut waiting = Box::pin(publisher.publish(&last, &last_point));
    assert!((&mut waiting).now_or_never().is_none(), "it has to wait");
    log.set_down(false);
    let token = waiting.await.unwrap().await.unwrap();
    assert_eq!(usize::try_from(token.offset.0).unwrap(), sent.len());
    for (at, delivery) in sent.into_iter().enumerate() {
        let token = delivery.await.unwrap();
        assert_eq!(usize::try_from(token.offset.0).unwrap(), at);
    }
}

#[tokio::test]
async fn versions_rise_in_the_order_of_the_log_however_many_publish() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs, PublishConfig::default()).await;
    std::thread::scope(|scope| {
        for n in 0..4_u8 {
            let publisher = publisher.clone();
            scope.spawn(move || {
                for _ in 0..200 {
                    let _delivery = publisher
                        .try_publish(&id("same"), &point(n.into()))
                        .unwrap();
                }
            });
        }
    });
    let found = records(&log, "embeddings.docs", 1);
    assert_eq!(found.len(), 800);
    let versions: Vec<Version> = found
        .iter()
        .map(|(_, _, record)| Meta::decode(record).unwrap().version)
        .collect();
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]));
}

#[tokio::test]
async fn the_current_trace_goes_into_the_record() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs, PublishConfig::default()).await;
    let parent: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        .parse()
        .unwrap();
    let _traced = trace::scope(Some(parent), async {
        publisher.publish(&id("a"), &point(1.0)).await
    })
    .await
    .unwrap();
    let _untraced = publisher.publish(&id("b"), &point(1.0)).await.unwrap();
    let found = records(&log, "embeddings.docs", 1);
    assert_eq!(Meta::decode(&found[0].2).unwrap().trace, Some(parent));
    assert_eq!(Meta::decode(&found[1].2).unwrap().trace, None);
}

#[tokio::test]
async fn a_topic_that_is_gone_is_a_failed_delivery_that_names_the_point() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs, PublishConfig::default()).await;
    log.cluster().admin.delete_topic("embeddings.docs").unwrap();
    let failed = publisher
        .publish(&id("a"), &point(1.0))
        .await
        .unwrap()
        .await
        .unwrap_err();
    assert!(failed.to_string().contains("`a`"), "{failed}");
    let PublishError::Write { source, .. } = &failed else {
        panic!("{failed}");
    };
    assert!(matches!(source, WriteError::Missing { .. }), "{source}");
}

#[test]
fn a_publisher_and_its_deliveries_go_anywhere() {
    fn anywhere<T: Send + 'static>() {}
    anywhere::<Publisher>();
    anywhere::<super::Delivery>();
    fn shared<T: Sync>() {}
    shared::<Arc<Publisher>>();
}

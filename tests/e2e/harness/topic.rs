//! Records as any client might write them: chosen partition, chosen headers, chosen bytes.

use std::time::Duration;

use bytes::Bytes;
use shoal_runtime::eventually;
use shoal_schemas::{
    Collection, CollectionName, Offset, Partition, Point, PointId, Record, Vector,
    avro::{self, Framing},
    dlq::Entry,
    headers::VERSION,
    route,
};
use shoal_topic::{Cluster, Fetched, ReadError, Start, TopicPartition};

use super::{DEADLINE, wait};

/// A partition of a collection's topic.
pub(crate) fn partition(collection: &CollectionName, number: u32) -> TopicPartition {
    TopicPartition {
        topic: collection.topic().into(),
        partition: Partition(number),
    }
}

/// Where a key belongs.
pub(crate) fn home(collection: &Collection, id: &str) -> TopicPartition {
    let id = PointId::new(id).unwrap();
    partition(collection.home(), route::partition_of(collection, &id).0)
}

/// Appends one record and waits for its place.
#[track_caller]
pub(crate) fn append(cluster: &Cluster, to: &TopicPartition, record: &Record) -> Offset {
    let sent = cluster.writer.send(to, record).unwrap();
    wait(sent).unwrap().offset
}

/// The value of a point without payload, as our own producer writes it.
pub(crate) fn value(collection: &Collection, vector: &[f32]) -> Bytes {
    let point = point(collection, vector);
    let mut out = Vec::new();
    avro::encode(&point, Framing::SingleObject, &mut out);
    out.into()
}

/// A point without payload.
pub(crate) fn point(collection: &Collection, vector: &[f32]) -> Point {
    Point {
        vector: Vector::new(vector, collection.dim, collection.metric).unwrap(),
        payload: shoal_schemas::Payload::default(),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    }
}

/// A record with this key and value; `None` is a delete.
pub(crate) fn record(key: &str, value: Option<Bytes>, timestamp_ms: i64) -> Record {
    Record {
        key: Some(key.to_owned().into()),
        value,
        headers: Vec::new(),
        timestamp_ms,
    }
}

/// The same with an explicit version.
pub(crate) fn versioned(key: &str, value: Option<Bytes>, version: u64) -> Record {
    Record {
        headers: vec![(VERSION.to_owned(), version.to_string().into())],
        ..record(key, value, 1_700_000_000_000)
    }
}

/// Everything a topic's partition holds now, in order.
pub(crate) fn read(cluster: &Cluster, at: &TopicPartition) -> Vec<(Offset, Record)> {
    let starts = [(at.clone(), Start::Beginning)];
    let mut reader = cluster.connect.open_reader(&starts).unwrap();
    let mut all = Vec::new();
    eventually(DEADLINE, "the end of the partition", || {
        match reader.poll(10_000, Duration::from_millis(100)) {
            Ok(Fetched { records, ends }) => {
                all.extend(records.into_iter().map(|one| (one.offset, one.record)));
                (!ends.is_empty()).then_some(())
            }
            Err(ReadError::Unreachable { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    });
    all
}

/// Entries of a collection's dead-letter topic, in the order of their origin.
pub(crate) fn dead_letters(cluster: &Cluster, collection: &Collection) -> Vec<Entry> {
    let topic = collection.home().dlq_topic();
    let mut entries: Vec<Entry> = (0..collection.partitions)
        .flat_map(|number| {
            let at = TopicPartition {
                topic: topic.as_str().into(),
                partition: Partition(number),
            };
            read(cluster, &at)
        })
        .map(|(_, record)| Entry::decode(&record).unwrap())
        .collect();
    entries.sort_by_key(|entry| (entry.source.partition, entry.offset));
    entries
}

/// The next offset of each partition of a collection.
pub(crate) fn ends(cluster: &Cluster, collection: &Collection) -> Vec<u64> {
    (0..collection.partitions)
        .map(|number| {
            let at = partition(collection.home(), number);
            let ends = cluster.admin.watermarks(&at, Duration::from_secs(10));
            ends.unwrap().high.0
        })
        .collect()
}

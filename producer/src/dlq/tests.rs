//! Tests of dead letters, on the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use shoal_runtime::clock::Manual;
use shoal_schemas::{
    Collection, Offset, Partition, Reason, Record, Rejection, Source,
    avro::{NoRegistry, WriterSchemas},
    dlq, event, headers, json, route,
};
use shoal_topic::{TopicPartition, memory::MemoryLog};

use super::{Correction, Filter, Origin, RetryError, ScanError, list, retry, retry_all, show};
use crate::{
    PublishConfig, Publisher,
    publisher::tests::{collection, id, log_for, point, records},
};

struct World {
    docs: Collection,
    log: MemoryLog,
    publisher: Publisher,
    schemas: Arc<dyn WriterSchemas>,
}

impl World {
    async fn new(partitions: u32) -> Self {
        let docs = collection(partitions);
        let log = log_for(&docs);
        let clock = Manual::at(1_700_000_000_000);
        let config = PublishConfig::default();
        let publisher = Publisher::new(&log.cluster(), clock, docs.clone(), config)
            .await
            .unwrap();
        Self {
            docs,
            log,
            publisher,
            schemas: Arc::new(NoRegistry),
        }
    }

    /// Puts an entry there as a shard does.
    async fn refuse(&self, partition: u32, offset: u64, record: &Record, reason: Reason) {
        let source = Source {
            cluster: "memory".into(),
            topic: self.docs.name.topic().into(),
            partition: Partition(partition),
        };
        let rejection = Rejection::new(reason, format_args!("offset {offset}"));
        let entry = dlq::entry(record, &rejection, &source, Offset(offset), 1000 + offset);
        let to = TopicPartition {
            topic: self.docs.name.dlq_topic().into(),
            partition: Partition(partition),
        };
        self.log
            .cluster()
            .writer
            .send(&to, &entry)
            .unwrap()
            .await
            .unwrap();
    }

    async fn list(&self, filter: Filter) -> super::Listing {
        list(&self.log.cluster(), &self.docs.name, filter)
            .await
            .unwrap()
    }

    async fn show(&self, origin: &str) -> Option<dlq::Entry> {
        let origin: Origin = origin.parse().unwrap();
        show(&self.log.cluster(), &self.docs.name, &origin)
            .await
            .unwrap()
    }
}

fn json_record(key: &str, vector: &[f32]) -> Record {
    Record {
        key: Some(key.to_owned().into()),
        value: Some(serde_json::json!({ "vector": vector }).to_string().into()),
        headers: vec![
            (headers::VERSION.to_owned(), Bytes::from_static(b"1")),
            ("own".to_owned(), Bytes::from_static(b"kept")),
        ],
        timestamp_ms: 5,
    }
}

fn good(key: &str) -> Record {
    json_record(key, &[1.0, 2.0, 3.0, 4.0])
}

#[tokio::test]
async fn entries_are_listed_once_oldest_first_and_by_filter() {
    let world = World::new(2).await;
    for offset in 0..10 {
        let reason = if offset % 2 == 0 {
            Reason::NotFinite
        } else {
            Reason::TooLarge
        };
        let record = good(&format!("id-{offset}"));
        let partition = u32::try_from(offset % 2).unwrap();
        world.refuse(partition, offset, &record, reason).await;
        // A shard that starts over refuses it again.
        world.refuse(partition, offset, &record, reason).await;
    }
    let no_entry = TopicPartition {
        topic: world.docs.name.dlq_topic().into(),
        partition: Partition(0),
    };
    let sent = world
        .log
        .cluster()
        .writer
        .send(&no_entry, &good("x"))
        .unwrap();
    sent.await.unwrap();

    let all = world.list(Filter::default()).await;
    assert_eq!((all.matched, all.unreadable), (10, 1));
    let offsets: Vec<u64> = all
        .entries
        .iter()
        .map(|entry| entry.origin.offset.0)
        .collect();
    assert_eq!(offsets, (0..10).collect::<Vec<u64>>());
    let first = &all.entries[0];
    assert_eq!(first.origin.to_string(), "embeddings.docs/0/0");
    assert_eq!(
        (first.reason, first.detail.as_str()),
        (Reason::NotFinite, "offset 0")
    );
    assert_eq!((first.id.as_deref(), first.time_ms), (Some("id-0"), 1000));

    let newest = world
        .list(Filter {
            limit: 3,
            ..Filter::default()
        })
        .await;
    assert_eq!(
        (newest.matched, newest.entries[0].origin.offset),
        (10, Offset(7))
    );
    let by_reason = Filter {
        reason: Some(Reason::TooLarge),
        ..Filter::default()
    };
    assert_eq!(world.list(by_reason).await.matched, 5);
    let by_partition = Filter {
        partition: Some(Partition(1)),
        ..Filter::default()
    };
    assert_eq!(world.list(by_partition).await.matched, 5);
    let by_id = Filter {
        id: Some("id-4".into()),
        ..Filter::default()
    };
    assert_eq!(world.list(by_id).await.entries[0].origin.offset, Offset(4));
}

#[tokio::test]
async fn an_empty_or_missing_topic_is_told_apart() {
    let world = World::new(1).await;
    assert_eq!(world.list(Filter::default()).await.matched, 0);
    world
        .log
        .cluster()
        .admin
        .delete_topic(&world.docs.name.dlq_topic())
        .unwrap();
    let missing = list(&world.log.cluster(), &world.docs.name, Filter::default()).await;
    assert!(matches!(missing.unwrap_err(), ScanError::Missing { .. }));
}

#[tokio::test]
async fn one_entry_is_shown_with_its_content() {
    let world = World::new(2).await;
    world.refuse(0, 7, &good("a"), Reason::WrongPartition).await;
    world.refuse(1, 7, &good("b"), Reason::WrongPartition).await;
    for origin in ["1/7", "embeddings.docs/1/7"] {
        let entry = world.show(origin).await.unwrap();
        assert_eq!(entry.record, good("b"));
    }
    for origin in ["1/8", "other/1/7"] {
        assert_eq!(world.show(origin).await, None, "{origin}");
    }
    for text in ["", "7", "a/7", "0/-1", "0/"] {
        assert!(text.parse::<Origin>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_record_of_the_wrong_partition_is_put_back_into_the_right_one() {
    let world = World::new(4).await;
    let right = route::partition_of(&world.docs, &id("stray"));
    let wrong = (right.0 + 1) % 4;
    world
        .refuse(wrong, 3, &good("stray"), Reason::WrongPartition)
        .await;
    let entry = world.show(&format!("{wrong}/3")).await.unwrap();
    let token = retry(
        &entry,
        Correction::Unchanged,
        &world.publisher,
        &world.schemas,
    )
    .await
    .unwrap();
    assert_eq!((token.partition, token.key), (right, id("stray")));
    let found = records(&world.log, "embeddings.docs", 4);
    let (partition, _, record) = &found[0];
    assert_eq!((found.len(), *partition), (1, right.0));
    assert_eq!(record.value, good("stray").value);
    assert_eq!(record.header("own"), Some(&b"kept"[..]));
    let meta = headers::Meta::decode(record).unwrap();
    assert_eq!(meta.version, token.version);
    assert_eq!(meta.version.millis(), 1_700_000_000_000);
}

#[tokio::test]
async fn what_would_be_refused_again_needs_a_correction() {
    let world = World::new(1).await;
    world
        .refuse(0, 1, &json_record("a", &[1.0]), Reason::WrongDimension)
        .await;
    let entry = world.show("0/1").await.unwrap();
    let refused = retry(
        &entry,
        Correction::Unchanged,
        &world.publisher,
        &world.schemas,
    )
    .await;
    let RetryError::StillRefused { source, .. } = refused.unwrap_err() else {
        panic!("it was sent");
    };
    assert_eq!(source.reason, Reason::WrongDimension);
    assert!(records(&world.log, "embeddings.docs", 1).is_empty());

    let corrected = json::encode(&id("a"), &point(3.0)).to_string();
    let correction = Correction::Value(corrected.into());
    retry(&entry, correction, &world.publisher, &world.schemas)
        .await
        .unwrap();
    retry(&entry, Correction::Delete, &world.publisher, &world.schemas)
        .await
        .unwrap();
    let found = records(&world.log, "embeddings.docs", 1);
    let value = found[0].2.value.clone().unwrap();
    let read = event::decode_value(&id("a"), &value, &world.docs, &NoRegistry).unwrap();
    assert_eq!(read, point(3.0));
    assert_eq!(found[1].2.value, None);
}

#[tokio::test]
async fn a_refused_header_of_ours_is_written_anew() {
    let world = World::new(1).await;
    let mut record = good("a");
    record.headers = vec![(headers::VERSION.to_owned(), Bytes::from_static(b"nonsense"))];
    world.refuse(0, 1, &record, Reason::BadHeader).await;
    record.headers = vec![(headers::RESIDENCY.to_owned(), Bytes::new())];
    world.refuse(0, 2, &record, Reason::BadHeader).await;
    let entry = world.show("0/1").await.unwrap();
    retry(
        &entry,
        Correction::Unchanged,
        &world.publisher,
        &world.schemas,
    )
    .await
    .unwrap();
    let entry = world.show("0/2").await.unwrap();
    let refused = retry(
        &entry,
        Correction::Unchanged,
        &world.publisher,
        &world.schemas,
    )
    .await;
    assert!(matches!(
        refused.unwrap_err(),
        RetryError::StillRefused { .. }
    ));
}

#[tokio::test]
async fn a_record_without_a_usable_id_or_content_cannot_be_put_back() {
    let world = World::new(1).await;
    let mut keyless = good("");
    keyless.key = Some(Bytes::new());
    world.refuse(0, 1, &keyless, Reason::BadKey).await;
    world
        .refuse(0, 2, &good("eu-only"), Reason::Residency)
        .await;
    let entry = world.show("0/1").await.unwrap();
    let refused = retry(
        &entry,
        Correction::Unchanged,
        &world.publisher,
        &world.schemas,
    )
    .await;
    assert!(matches!(refused.unwrap_err(), RetryError::Key { .. }));
    let entry = world.show("0/2").await.unwrap();
    let refused = retry(&entry, Correction::Delete, &world.publisher, &world.schemas).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, RetryError::Withheld { .. }), "{refused}");
    let listed = world.list(Filter::default()).await;
    let withheld = listed
        .entries
        .iter()
        .find(|entry| entry.is_withheld)
        .unwrap();
    assert_eq!(withheld.value_bytes, 0);
    assert!(!format!("{withheld:?}").contains("eu-only"));
}

#[tokio::test]
async fn many_are_put_back_in_order_and_each_refusal_is_told() {
    let world = World::new(1).await;
    for offset in 0..30 {
        let key = format!("{}", offset % 7);
        let record = if offset % 10 == 9 {
            json_record(&key, &[1.0])
        } else {
            good(&key)
        };
        world
            .refuse(0, offset, &record, Reason::WrongPartition)
            .await;
    }
    let cluster = world.log.cluster();
    let retried = retry_all(
        &cluster,
        Filter::default(),
        &world.publisher,
        &world.schemas,
    )
    .await;
    assert!(retried.broke_off.is_none());
    assert_eq!((retried.done.len(), retried.refused.len()), (27, 3));
    let offsets: Vec<u64> = retried
        .done
        .iter()
        .map(|(_, token)| token.offset.0)
        .collect();
    assert_eq!(offsets, (0..27).collect::<Vec<u64>>());

    let filter = Filter {
        limit: 4,
        ..Filter::default()
    };
    // What was put back is done; what was not is tried again.
    let again = retry_all(&cluster, filter, &world.publisher, &world.schemas).await;
    assert_eq!((again.done.len(), again.refused.len()), (0, 3));
    let bounded = Filter {
        limit: 4,
        retried: true,
        ..Filter::default()
    };
    let bounded = retry_all(&cluster, bounded, &world.publisher, &world.schemas).await;
    assert_eq!((bounded.done.len(), bounded.broke_off.is_none()), (4, true));
}

#[tokio::test]
async fn what_was_put_back_is_listed_only_where_it_is_asked_for() {
    let world = World::new(2).await;
    for offset in 0..6 {
        let record = good(&format!("id-{offset}"));
        world.refuse(1, offset, &record, Reason::TooLarge).await;
    }
    for origin in ["1/2", "1/5"] {
        let entry = world.show(origin).await.unwrap();
        retry(
            &entry,
            Correction::Unchanged,
            &world.publisher,
            &world.schemas,
        )
        .await
        .unwrap();
    }
    let offsets = |listing: &super::Listing| -> Vec<(u64, bool)> {
        let entries = listing.entries.iter();
        entries
            .map(|entry| (entry.origin.offset.0, entry.is_retried))
            .collect()
    };
    // The limit counts what is listed.
    let left = world
        .list(Filter {
            limit: 2,
            ..Filter::default()
        })
        .await;
    assert_eq!(offsets(&left), [(3, false), (4, false)]);
    assert_eq!((left.matched, left.left_out, left.unreadable), (4, 2, 0));
    let all = world
        .list(Filter {
            limit: 2,
            retried: true,
            ..Filter::default()
        })
        .await;
    assert_eq!(offsets(&all), [(4, false), (5, true)]);
    assert_eq!((all.matched, all.left_out), (6, 0));
    // A record that is refused once more, at another offset, is another entry.
    world.refuse(1, 9, &good("id-5"), Reason::TooLarge).await;
    assert_eq!(world.list(Filter::default()).await.matched, 5);
    // One that was put back can be put back again, by name.
    assert!(world.show("1/5").await.is_some());
}

//! What only the log in memory can show: the broker's absence, compaction when told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use shoal_runtime::clock::{Manual, System};
use shoal_schemas::{Offset, Partition, Record};

use super::{MemoryLog, QUEUE_RECORDS};
use crate::{
    Cleanup, MembershipEvent, ReadError, Start, TopicPartition, TopicSpec, WriteError,
    conformance::{self, Fixture},
    park::block_on,
};

fn topic(log: &MemoryLog, name: &str, partitions: u32) -> TopicPartition {
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: std::collections::BTreeMap::new(),
    };
    log.cluster().admin.create_topic(&spec).unwrap();
    TopicPartition {
        topic: name.into(),
        partition: Partition(0),
    }
}

fn keyed(key: &str, value: Option<&str>) -> Record {
    Record {
        key: Some(key.to_owned().into()),
        value: value.map(|value| value.to_owned().into()),
        headers: Vec::new(),
        timestamp_ms: 0,
    }
}

#[test]
fn the_log_in_memory_conforms() {
    let log = MemoryLog::new("memory", System::shared());
    let compacting = log.clone();
    let fixture = Fixture {
        small_queue: log.cluster(),
        cluster: log.cluster(),
        compact: Some(Box::new(move |topic| compacting.compact(topic))),
    };
    conformance::all(&fixture, "memory");
}

#[test]
fn without_the_broker_everything_is_unreachable_and_nothing_is_lost() {
    let log = MemoryLog::new("memory", System::shared());
    let at = topic(&log, "t", 1);
    let cluster = log.cluster();
    let mut reader = cluster
        .connect
        .open_reader(&[(at.clone(), Start::Beginning)])
        .unwrap();
    log.set_down(true);
    let failed = reader.poll(10, Duration::ZERO).unwrap_err();
    assert!(matches!(failed, ReadError::Unreachable { .. }), "{failed}");
    assert!(cluster.admin.watermarks(&at, Duration::ZERO).is_err());
    let queued: Vec<_> = (0..QUEUE_RECORDS)
        .map(|i| {
            cluster
                .writer
                .send(&at, &keyed(&i.to_string(), Some("v")))
                .unwrap()
        })
        .collect();
    let refused = cluster
        .writer
        .send(&at, &keyed("x", None))
        .map(drop)
        .unwrap_err();
    assert!(matches!(refused, WriteError::QueueFull), "{refused}");
    log.set_down(false);
    for (expected, delivery) in (0_u64..).zip(queued) {
        assert_eq!(block_on(delivery).unwrap().offset, Offset(expected));
    }
    let fetched = reader.poll(2 * QUEUE_RECORDS, Duration::ZERO).unwrap();
    assert_eq!(fetched.records.len(), QUEUE_RECORDS);
}

#[test]
fn a_record_without_a_time_gets_the_clock_s() {
    let log = MemoryLog::new("memory", Manual::at(1_234));
    let at = topic(&log, "t", 1);
    let cluster = log.cluster();
    block_on(cluster.writer.send(&at, &keyed("k", Some("v"))).unwrap()).unwrap();
    let mut reader = cluster
        .connect
        .open_reader(&[(at, Start::Beginning)])
        .unwrap();
    let fetched = reader.poll(1, Duration::ZERO).unwrap();
    assert_eq!(fetched.records[0].record.timestamp_ms, 1_234);
}

#[test]
fn dropped_tombstones_leave_an_end_beyond_the_last_record() {
    let log = MemoryLog::new("memory", System::shared());
    let at = topic(&log, "t", 1);
    let cluster = log.cluster();
    for value in [Some("v"), None] {
        block_on(cluster.writer.send(&at, &keyed("k", value)).unwrap()).unwrap();
    }
    log.compact_tombstones("t");
    let mut reader = cluster
        .connect
        .open_reader(&[(at, Start::Beginning)])
        .unwrap();
    let fetched = reader.poll(10, Duration::ZERO).unwrap();
    assert_eq!(fetched.records, vec![]);
    assert_eq!(fetched.ends, vec![(0, Offset(2))]);
}

#[test]
fn below_what_retention_left_is_out_of_range() {
    let log = MemoryLog::new("memory", System::shared());
    let at = topic(&log, "t", 1);
    let cluster = log.cluster();
    for _ in 0..3 {
        block_on(cluster.writer.send(&at, &keyed("k", Some("v"))).unwrap()).unwrap();
    }
    log.trim(&at, Offset(2));
    let starts = [(at, Start::At(Offset(1)))];
    let mut reader = cluster.connect.open_reader(&starts).unwrap();
    let failed = reader.poll(10, Duration::ZERO).unwrap_err();
    assert!(
        matches!(
            failed,
            ReadError::OutOfRange {
                offset: Offset(1),
                ..
            }
        ),
        "{failed}"
    );
}

#[test]
fn a_member_thrown_out_loses_all_and_gets_it_again() {
    let log = MemoryLog::new("memory", System::shared());
    let at = topic(&log, "t", 1);
    let mut member = log.cluster().connect.join("g", &["t".to_owned()]).unwrap();
    let poll = |member: &mut Box<dyn crate::Membership>| member.poll(Duration::ZERO).unwrap();
    let ours = vec![at];
    assert_eq!(
        poll(&mut member),
        Some(MembershipEvent::Assigned(ours.clone()))
    );
    log.expire("g");
    assert_eq!(poll(&mut member), Some(MembershipEvent::Lost(ours.clone())));
    assert_eq!(poll(&mut member), Some(MembershipEvent::Assigned(ours)));
}

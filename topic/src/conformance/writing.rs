//! Checks of writers.

use std::collections::VecDeque;

use bytes::Bytes;
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Offset, Record};

use super::{DEADLINE, append, keyed, make, make_with, open, partition, read_records};
use crate::{Cluster, Delivery, Start, WriteError, park::block_on_for};

pub(super) fn a_delivery_names_its_place(cluster: &Cluster, name: &str) {
    let partitions = make(cluster, name, 2);
    assert_eq!(append(cluster, &partitions[0], &keyed("a", "1")), Offset(0));
    let delivery = cluster
        .writer
        .send(&partitions[1], &keyed("b", "1"))
        .unwrap();
    let found = block_on_for(delivery, DEADLINE)
        .expect("an acknowledgement")
        .unwrap();
    assert_eq!(
        found,
        Delivery {
            partition: partitions[1].partition,
            offset: Offset(0),
        }
    );
    // Nobody waits for this one; it is written all the same.
    drop(
        cluster
            .writer
            .send(&partitions[0], &keyed("c", "1"))
            .unwrap(),
    );
    assert_eq!(append(cluster, &partitions[0], &keyed("d", "1")), Offset(2));
}

pub(super) fn what_no_topic_takes_is_refused_by_name(cluster: &Cluster, name: &str) {
    let at = &make_with(cluster, name, 1, &[("max.message.bytes", "2000")])[0];
    let large = Record {
        key: Some(Bytes::from_static(b"large")),
        value: Some(Bytes::from(vec![1; 5000])),
        ..Record::default()
    };
    let refused = outcome(cluster, at, &large);
    assert!(
        matches!(&refused, WriteError::TooLarge { record_bytes: 5005, partition } if partition == at),
        "{refused}"
    );
    let keyless = Record {
        value: Some(Bytes::from_static(b"v")),
        ..Record::default()
    };
    let refused = outcome(cluster, at, &keyless);
    assert!(matches!(refused, WriteError::Refused { .. }), "{refused}");
    for absent in [partition(name, 9), partition(&format!("{name}.absent"), 0)] {
        let refused = outcome(cluster, &absent, &keyed("k", "v"));
        assert!(
            matches!(&refused, WriteError::Missing { partition } if *partition == absent),
            "{refused}"
        );
    }
    // The next good one is not held up.
    append(cluster, at, &keyed("k", "v"));
}

fn outcome(cluster: &Cluster, at: &crate::TopicPartition, record: &Record) -> WriteError {
    match cluster.writer.send(at, record) {
        Ok(delivery) => block_on_for(delivery, DEADLINE)
            .expect("an answer")
            .expect_err("a refusal"),
        Err(error) => error,
    }
}

pub(super) fn a_full_queue_refuses_and_loses_nothing(cluster: &Cluster, name: &str) {
    const RECORDS: usize = 2000;
    let at = &make(cluster, name, 1)[0];
    let watch = Stopwatch::start();
    let mut under_way = VecDeque::new();
    for i in 0..RECORDS {
        let record = keyed(&i.to_string(), "v");
        loop {
            match cluster.writer.send(at, &record) {
                Ok(delivery) => break under_way.push_back(delivery),
                Err(WriteError::QueueFull) => {
                    let earlier = under_way.pop_front().expect("a full queue holds something");
                    block_on_for(earlier, DEADLINE)
                        .expect("room in the queue")
                        .unwrap();
                }
                Err(other) => panic!("{other}"),
            }
            assert!(watch.elapsed() < DEADLINE, "stuck at record {i}");
        }
    }
    for delivery in under_way {
        block_on_for(delivery, DEADLINE)
            .expect("an acknowledgement")
            .unwrap();
    }
    let mut reader = open(cluster, at, Start::Beginning);
    let read = read_records(&mut *reader, RECORDS);
    for (expected, found) in (0..).zip(&read) {
        let expected: usize = expected;
        assert_eq!(
            found.record.key,
            Some(expected.to_string().into()),
            "in the order of the calls"
        );
    }
}

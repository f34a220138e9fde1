//! Checks of readers.

use bytes::Bytes;
use shoal_schemas::{Offset, Record};

use super::{
    DEADLINE, append, keyed, make, make_with, open, partition, read_failure, read_records,
    read_until,
};
use crate::{Cluster, ReadError, Start};

pub(super) fn records_come_back_in_order_as_they_were(cluster: &Cluster, name: &str) {
    let partitions = make(cluster, name, 2);
    let headers = vec![
        ("b".to_owned(), Bytes::from_static(b"2")),
        ("a".to_owned(), Bytes::new()),
        ("b".to_owned(), Bytes::from_static(&[0, 255])),
    ];
    let peculiar = [
        Record {
            key: Some(Bytes::from_static(b"tombstone")),
            value: None,
            headers: headers.clone(),
            timestamp_ms: 1_600_000_000_123,
        },
        Record {
            key: Some(Bytes::new()),
            value: Some(Bytes::new()),
            headers: Vec::new(),
            timestamp_ms: 1_600_000_000_124,
        },
        Record {
            key: Some(Bytes::from_static(&[0xff, 0, 0xfe])),
            value: Some(Bytes::from(vec![7; 100_000])),
            headers,
            timestamp_ms: 1_600_000_000_125,
        },
    ];
    for record in &peculiar {
        append(cluster, &partitions[1], record);
    }
    let sent: Vec<_> = (0..500)
        .map(|i| {
            let record = keyed(&format!("key-{i}"), &format!("value-{i}"));
            let to = &partitions[i % 2];
            cluster.writer.send(to, &record).unwrap()
        })
        .collect();
    for delivery in sent {
        crate::park::block_on_for(delivery, DEADLINE)
            .expect("an acknowledgement")
            .unwrap();
    }
    let starts: Vec<_> = partitions
        .iter()
        .map(|at| (at.clone(), Start::Beginning))
        .collect();
    let mut reader = cluster.connect.open_reader(&starts).unwrap();
    let read = read_records(&mut *reader, 503);
    let of = |source: usize| -> Vec<&crate::FetchedRecord> {
        read.iter()
            .filter(|record| record.source == source)
            .collect()
    };
    for source in [0, 1] {
        for (expected, record) in (0_u64..).zip(of(source)) {
            assert_eq!(record.offset, Offset(expected), "source {source}");
        }
    }
    for (expected, found) in peculiar.iter().zip(of(1)) {
        assert_eq!(*expected, found.record);
    }
    for (turn, found) in (0..).zip(&of(1)[3..]) {
        let number = turn * 2 + 1;
        assert_eq!(found.record.key, Some(format!("key-{number}").into()));
        assert_eq!(found.record.value, Some(format!("value-{number}").into()));
        assert!(
            found.record.timestamp_ms > 1_600_000_000_000,
            "the broker's own time"
        );
        assert_eq!(found.record.headers, vec![]);
    }
}

pub(super) fn everything_is_read_however_little_is_held(cluster: &Cluster, name: &str) {
    let at = &make(cluster, name, 1)[0];
    let large = "v".repeat(300 << 10);
    for i in 0..40 {
        let value = if i % 10 == 9 {
            &large[..]
        } else {
            &large[..2000]
        };
        append(cluster, at, &keyed(&format!("k{i}"), value));
    }
    let starts = [(at.clone(), Start::Beginning)];
    let mut reader = cluster.connect.open_reader_within(&starts, 1).unwrap();
    let read = read_records(&mut *reader, 40);
    let offsets = read.iter().map(|one| one.offset);
    assert!(offsets.eq((0..40).map(Offset)));
}

pub(super) fn a_start_is_explicit_and_never_jumps(cluster: &Cluster, name: &str) {
    let at = &make(cluster, name, 1)[0];
    for i in 0..5 {
        append(cluster, at, &keyed(&format!("k{i}"), "v"));
    }
    let mut reader = open(cluster, at, Start::At(Offset(3)));
    let read = read_records(&mut *reader, 2);
    assert_eq!(read[0].offset, Offset(3));

    let mut reader = open(cluster, at, Start::At(Offset(5)));
    let ended = read_until(&mut *reader, "the end", |all| !all.ends.is_empty());
    assert_eq!((ended.records.len(), ended.ends), (0, vec![(0, Offset(5))]));

    let mut reader = open(cluster, at, Start::At(Offset(99)));
    // Not once only: a caller that polls on must not take silence for calm.
    for _ in 0..2 {
        let failed = read_failure(&mut *reader, "out of range");
        match &failed {
            ReadError::OutOfRange { partition, offset } => {
                assert_eq!((partition, *offset), (at, Offset(99)));
            }
            other => panic!("wanted out of range, got {other}"),
        }
    }
}

pub(super) fn two_sources_of_one_number_are_told_apart(cluster: &Cluster, name: &str) {
    let home = make(cluster, name, 1).remove(0);
    let mirror = make(cluster, &format!("{name}.mirror"), 1).remove(0);
    append(cluster, &home, &keyed("k", "home"));
    append(cluster, &mirror, &keyed("k", "mirror"));
    append(cluster, &mirror, &keyed("k", "mirror"));
    let starts = [(home, Start::Beginning), (mirror, Start::At(Offset(1)))];
    let mut reader = cluster.connect.open_reader(&starts).unwrap();
    let all = read_until(&mut *reader, "both ends", |all| all.ends.len() == 2);
    let mut read: Vec<_> = all
        .records
        .iter()
        .map(|found| (found.source, found.offset, found.record.value.clone()))
        .collect();
    read.sort();
    assert_eq!(
        read,
        vec![
            (0, Offset(0), Some("home".into())),
            (1, Offset(1), Some("mirror".into())),
        ]
    );
    let mut ends = all.ends;
    ends.sort();
    assert_eq!(ends, vec![(0, Offset(1)), (1, Offset(2))]);
}

pub(super) fn ends_are_told_and_new_records_follow_them(cluster: &Cluster, name: &str) {
    let at = &make(cluster, name, 1)[0];
    let mut reader = open(cluster, at, Start::Beginning);
    let empty = read_until(&mut *reader, "the end of nothing", |all| {
        !all.ends.is_empty()
    });
    assert_eq!((empty.records.len(), empty.ends), (0, vec![(0, Offset(0))]));
    for turn in 0..3_u64 {
        append(cluster, at, &keyed("k", "v"));
        let next = read_until(&mut *reader, "the next end", |all| !all.ends.is_empty());
        assert_eq!(next.records.len(), 1);
        assert_eq!(next.records[0].offset, Offset(turn));
        assert_eq!(next.ends, vec![(0, Offset(turn + 1))]);
    }
}

pub(super) fn a_missing_topic_is_named(cluster: &Cluster, name: &str) {
    let absent = partition(name, 0);
    let mut reader = open(cluster, &absent, Start::Beginning);
    let failed = read_failure(&mut *reader, "the topic to be missed");
    assert!(
        matches!(&failed, ReadError::Missing { partition } if *partition == absent),
        "{failed}"
    );
}

pub(super) fn gaps_are_stepped_over(
    cluster: &Cluster,
    compact: &(dyn Fn(&str) + Send + Sync),
    name: &str,
) {
    let settings = [
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "100"),
        ("min.compaction.lag.ms", "0"),
    ];
    let at = &make_with(cluster, name, 1, &settings)[0];
    for i in 0..20 {
        append(cluster, at, &keyed("same", &i.to_string()));
    }
    append(cluster, at, &keyed("last", "v"));
    compact(name);
    let mut reader = open(cluster, at, Start::At(Offset(4)));
    let all = read_until(&mut *reader, "the end", |all| !all.ends.is_empty());
    let offsets: Vec<Offset> = all.records.iter().map(|record| record.offset).collect();
    assert!(offsets.is_sorted(), "{offsets:?}");
    // To compact, an implementation may have to append further records of other keys.
    assert_eq!(
        offsets[..2],
        [Offset(19), Offset(20)],
        "of a key only the newest is left"
    );
    let marks = cluster.admin.watermarks(at, DEADLINE).unwrap();
    assert_eq!(all.ends.last(), Some(&(0, marks.high)));
}

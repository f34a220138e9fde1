//! Golden values of both hashes, and what a stray record is told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::{
    crc32, explain_mismatch, first_partition_after, murmur2, partition_of, partitions_of_prefix,
};
use crate::{Collection, Metric, Partition, Partitioner, PointId, Reason};

fn collection(partitioner: Partitioner, by_prefix: bool) -> Collection {
    let mut collection = Collection::new(
        "docs".parse().unwrap(),
        2.try_into().unwrap(),
        Metric::L2,
        17,
    );
    collection.partitioner = partitioner;
    collection.route_by_key_prefix = by_prefix;
    collection
}

fn id(text: &str) -> PointId {
    PointId::new(text).unwrap()
}

/// From `UtilsTest.testMurmur2` of Apache Kafka's clients.
#[test]
fn murmur2_agrees_with_the_java_client() {
    let cases: [(&str, i32); 6] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ];
    for (key, hash) in cases {
        assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
    }
}

/// From librdkafka's `tests/0048-partitioner.c`, of 17 partitions.
#[test]
fn both_partitioners_agree_with_librdkafka() {
    let cases = [
        ("23456", 0xb1b4_51d7, 0x058d_780f),
        (
            "this is another string with more length to it perhaps",
            0xb015_0df7,
            0x4f77_03da,
        ),
        ("hejsan", 0xd077_037e, 0x5ec1_9395),
    ];
    for (key, crc, murmur) in cases {
        assert_eq!(crc32(key.as_bytes()), crc, "{key}");
        assert_eq!(murmur2(key.as_bytes()) & 0x7fff_ffff, murmur, "{key}");
        let by_crc = partition_of(&collection(Partitioner::Crc32, false), &id(key));
        let by_murmur = partition_of(&collection(Partitioner::Murmur2, false), &id(key));
        assert_eq!(by_crc, Partition(crc % 17), "{key}");
        assert_eq!(by_murmur, Partition(murmur % 17), "{key}");
    }
}

#[test]
fn a_prefix_routes_only_where_the_collection_says_so() {
    for partitioner in [Partitioner::Murmur2, Partitioner::Crc32] {
        let by_prefix = collection(partitioner, true);
        let by_key = collection(partitioner, false);
        let bare = partition_of(&by_prefix, &id("tenant-7"));
        for key in ["tenant-7/a", "tenant-7/b/c", "tenant-7/"] {
            assert_eq!(partition_of(&by_prefix, &id(key)), bare, "{key}");
        }
        let spread = (0..50).map(|n| partition_of(&by_key, &id(&format!("tenant-7/{n}"))));
        assert!(spread.into_iter().any(|partition| partition != bare));
    }
}

#[test]
fn a_stray_record_is_told_what_to_set() {
    let murmur = collection(Partitioner::Murmur2, false);
    let crc = collection(Partitioner::Crc32, false);
    let prefix = collection(Partitioner::Murmur2, true);
    let key = id("tenant-7/hejsan");
    let places = [
        partition_of(&murmur, &key),
        partition_of(&crc, &key),
        partition_of(&prefix, &key),
    ];
    assert_ne!(places[0], places[1]);
    assert_ne!(places[0], places[2]);

    let told = |collection, found| {
        let rejection = explain_mismatch(collection, &key, found);
        assert_eq!(rejection.reason, Reason::WrongPartition);
        rejection.detail
    };
    assert!(told(&murmur, places[1]).contains("partitioner=murmur2_random"));
    assert!(told(&murmur, places[1]).contains("declare the collection with crc32"));
    assert!(told(&crc, places[0]).contains("declare the collection with murmur2"));
    assert!(told(&prefix, places[0]).contains("before the first `/`"));
    let nowhere = (0..17)
        .map(Partition)
        .find(|place| !places.contains(place) && told(&murmur, *place).contains("no known"));
    assert!(nowhere.is_some());
}

fn ranged() -> Collection {
    let mut docs = collection(Partitioner::Murmur2, false);
    docs.partitions = 4;
    docs.split_keys = ["b", "cat/m", "d"].map(str::to_owned).into();
    docs.check().unwrap();
    docs
}

#[test]
fn a_range_holds_the_keys_from_its_split_key_up_to_the_next() {
    let docs = ranged();
    let cases = [
        ("a", 0),
        ("azz", 0),
        ("b", 1),
        ("cat/l", 1),
        ("cat/m", 2),
        ("cat0", 2),
        ("d", 3),
        ("é", 3),
    ];
    for (key, shard) in cases {
        assert_eq!(partition_of(&docs, &id(key)), Partition(shard), "{key}");
    }
    let of = |prefix| partitions_of_prefix(&docs, prefix);
    assert_eq!(of("cat"), Partition(1)..=Partition(2));
    assert_eq!(of("a"), Partition(0)..=Partition(0));
    assert_eq!(of("zebra"), Partition(3)..=Partition(3));
    assert_eq!(first_partition_after(&docs, "cat/n"), Partition(2));
    assert_eq!(first_partition_after(&docs, ""), Partition(0));
    let hashed = collection(Partitioner::Murmur2, false);
    assert_eq!(first_partition_after(&hashed, "zebra"), Partition(0));
}

#[test]
fn a_record_outside_its_range_is_told_where_it_belongs() {
    let docs = ranged();
    let told = |key: &str, found| explain_mismatch(&docs, &id(key), Partition(found)).detail;
    let middle = told("cat/a", 0);
    for part in [
        "partition 0",
        "belongs into 1",
        "from `b` up to `cat/m`",
        "split_keys",
    ] {
        assert!(middle.contains(part), "{middle}");
    }
    assert!(told("a", 3).contains("below `b`"), "{}", told("a", 3));
    assert!(told("x", 0).contains("from `d` on"), "{}", told("x", 0));
    let hashed = (0..100).map(|n| format!("a{n}")).find_map(|key| {
        let to = murmur2(key.as_bytes()) % 0x8000_0000 % 4;
        (to != 0).then(|| told(&key, to))
    });
    assert!(hashed.unwrap().contains("routed with murmur2"));
}

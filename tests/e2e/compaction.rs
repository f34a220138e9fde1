//! The state is a function of the compacted log: a shard rebuilt from what compaction left equals
//! the one that saw every record.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use shoal_runtime::{clock::Stopwatch, eventually};
use shoal_schemas::{
    Collection, Metric, Point, PointId, Reason, Record, Version,
    avro::{self, Framing},
    headers::VERSION,
};
use shoal_topic::{Cleanup, TopicSpec};

use crate::harness::{
    DEADLINE,
    model::Model,
    seed::Random,
    state::State,
    topic::{self, append, home, record, value, versioned},
    workload,
    world::{self, World, now_ms},
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 2;

/// A topic whose cleaner works as soon as it can.
fn eager(name: &str) -> TopicSpec {
    let settings = [
        ("segment.ms", "50"),
        ("segment.bytes", "1048576"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("min.compaction.lag.ms", "0"),
        ("max.compaction.lag.ms", "100"),
        ("delete.retention.ms", "1"),
        ("max.message.bytes", "2097152"),
    ];
    TopicSpec {
        name: name.to_owned(),
        partitions: PARTITIONS,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: settings
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    }
}

struct Writing<'a> {
    world: &'a World,
    model: Model,
}

impl Writing<'_> {
    fn collection(&self) -> &Collection {
        &self.model.collection
    }

    /// A good record with an explicit version, whatever earlier ones said.
    fn version(&mut self, id: &str, version: u64, random: &mut Random) {
        let vector = random.vector(DIM);
        let value = value(self.collection(), &vector);
        let to = home(self.collection(), id);
        append(
            &self.world.cluster,
            &to,
            &versioned(id, Some(value), version),
        );
        let point = topic::point(self.collection(), &vector);
        self.model.upsert(
            &PointId::new(id).unwrap(),
            Version::from_raw(version),
            &point,
        );
    }

    /// A good record without a version: its timestamp counts.
    fn stamped(&mut self, id: &str, timestamp_ms: i64, random: &mut Random) {
        let vector = random.vector(DIM);
        let value = value(self.collection(), &vector);
        let to = home(self.collection(), id);
        append(
            &self.world.cluster,
            &to,
            &record(id, Some(value), timestamp_ms),
        );
        let point = topic::point(self.collection(), &vector);
        self.model.upsert(
            &PointId::new(id).unwrap(),
            Version::from_timestamp(timestamp_ms),
            &point,
        );
    }

    fn tombstone(&mut self, id: &str) {
        let to = home(self.collection(), id);
        append(&self.world.cluster, &to, &record(id, None, now_ms()));
        self.model.delete(&PointId::new(id).unwrap());
    }

    /// A record of `id` that is refused, as its last one.
    fn refused(&mut self, id: &str, value: Bytes) {
        let to = home(self.collection(), id);
        append(&self.world.cluster, &to, &record(id, Some(value), now_ms()));
        self.model.contest(&PointId::new(id).unwrap());
    }

    /// A record of `id` in a partition where it does not belong.
    fn stray(&self, id: &str, value: Option<Bytes>) {
        let belongs = home(self.collection(), id).partition.0;
        let to = topic::partition(&self.collection().name, (belongs + 1) % PARTITIONS);
        append(&self.world.cluster, &to, &record(id, value, now_ms()));
    }
}

/// An id of each partition, for records that only make the log roll.
fn rollers(collection: &Collection) -> Vec<String> {
    let of = |partition: u32| {
        let mut names = (0..).map(|number| format!("roll-{number}"));
        names
            .find(|name| home(collection, name).partition.0 == partition)
            .unwrap()
    };
    (0..PARTITIONS).map(of).collect()
}

/// Writes until the cleaner has left one record a key and no old tombstone; reads the log to know.
fn force_compaction(writing: &mut Writing<'_>, gone: &BTreeSet<String>) {
    let mut random = Random::of(99);
    let rollers = rollers(writing.collection());
    let name = writing.collection().name.clone();
    let watch = Stopwatch::start();
    loop {
        for id in &rollers {
            // A segment is closed by a record that is so much younger than its first one.
            writing.stamped(id, now_ms(), &mut random);
        }
        let mut left = Vec::new();
        for number in 0..PARTITIONS {
            let records = topic::read(&writing.world.cluster, &topic::partition(&name, number));
            let mut by_key: BTreeMap<String, u32> = BTreeMap::new();
            for (_, record) in &records {
                let key = String::from_utf8(record.key.clone().unwrap().into()).unwrap();
                *by_key.entry(key).or_default() += 1;
            }
            left.extend(by_key.into_iter().filter(|(key, records)| {
                let is_roller = key.starts_with("roll-");
                !is_roller && (*records > 1 || gone.contains(key))
            }));
        }
        if left.is_empty() {
            return;
        }
        assert!(watch.elapsed() < DEADLINE, "the cleaner leaves {left:?}");
        // Lets the segment's time pass; the next record then rolls it.
        let started = Stopwatch::start();
        eventually(DEADLINE, "a segment's time to pass", || {
            (started.elapsed() > Duration::from_millis(60)).then_some(())
        });
    }
}

#[test]
fn a_shard_rebuilt_from_a_compacted_topic_has_the_digest_of_the_live_one() {
    let mut random = Random::from_environment("compaction");
    let world = World::new("compaction");
    world
        .cluster
        .admin
        .create_topic(&eager("embeddings.squeezed"))
        .unwrap();
    let mut wanted = Collection::new(
        "squeezed".parse().unwrap(),
        DIM.try_into().unwrap(),
        Metric::Cosine,
        PARTITIONS,
    );
    wanted.delete_retention_ms = 1;
    let collection = world.create(wanted);
    let live = world.indexer("live").small_engine().start();
    let mut writing = Writing {
        world: &world,
        model: Model::new(&collection),
    };

    // Plain points first, some of which get worse below.
    for number in 0..300 {
        writing.version(&format!("p-{number}"), 1_000_000 + number, &mut random);
    }
    // Versions that go down: the later offset wins all the same.
    for version in [900_000, 50, 49, 1] {
        for number in 0..30 {
            writing.version(&format!("p-{number}"), version, &mut random);
        }
    }
    // Two writes of one id in one millisecond, told apart by their place alone.
    let instant = 1_700_000_000_123;
    for number in 30..50 {
        writing.stamped(&format!("p-{number}"), instant, &mut random);
        writing.stamped(&format!("p-{number}"), instant, &mut random);
    }
    // A delete and an upsert in one millisecond.
    for number in 50..60 {
        let id = format!("p-{number}");
        let to = home(&collection, &id);
        append(&world.cluster, &to, &record(&id, None, instant));
        writing.stamped(&id, instant, &mut random);
    }
    // Every kind of refusal, over points that were good before, and over none.
    let good = value(&collection, &random.vector(DIM));
    let wrong_dim = {
        let dim = (DIM + 1).try_into().unwrap();
        let other = Collection::new("squeezed".parse().unwrap(), dim, Metric::Cosine, PARTITIONS);
        value(&other, &random.vector(DIM + 1))
    };
    let not_finite = not_finite(&good);
    let truncated = good.slice(..good.len() / 2);
    let zero = {
        let other = Collection {
            metric: Metric::L2,
            ..collection.clone()
        };
        let zeros = vec![0.0; usize::try_from(DIM).unwrap()];
        value(&other, &zeros)
    };
    for (at, bytes) in [&wrong_dim, &not_finite, &truncated, &zero]
        .into_iter()
        .enumerate()
    {
        for number in 0..5 {
            writing.refused(&format!("p-{}", 100 + at * 10 + number), bytes.clone());
            writing.refused(&format!("never-{at}-{number}"), bytes.clone());
        }
    }
    // A header that does not read.
    for number in 150..155 {
        let id = format!("p-{number}");
        let bad = Record {
            headers: vec![(VERSION.to_owned(), Bytes::from_static(b"soon"))],
            ..record(&id, Some(good.clone()), now_ms())
        };
        append(&world.cluster, &home(&collection, &id), &bad);
        writing.model.contest(&PointId::new(&id).unwrap());
    }
    // Refused and then good again, refused and then deleted: settled.
    for number in 160..170 {
        writing.refused(&format!("p-{number}"), truncated.clone());
        writing.version(&format!("p-{number}"), 7, &mut random);
    }
    let mut gone = BTreeSet::new();
    for number in 170..180 {
        let id = format!("p-{number}");
        writing.refused(&id, wrong_dim.clone());
        writing.tombstone(&id);
        gone.insert(id);
    }
    // Deleted, deleted twice, and deleted without having been there.
    for number in 180..200 {
        let id = format!("p-{number}");
        writing.tombstone(&id);
        if number % 2 == 0 {
            writing.tombstone(&id);
        }
        gone.insert(id);
    }
    writing.tombstone("nobody");
    gone.insert("nobody".to_owned());
    // Deleted, and then refused again: contested, with nothing served.
    for number in 200..205 {
        let id = format!("p-{number}");
        writing.tombstone(&id);
        writing.refused(&id, truncated.clone());
    }
    // Strays: in the partition where they are read they are nobody's.
    for number in 210..220 {
        writing.stray(&format!("p-{number}"), Some(good.clone()));
        writing.stray(&format!("p-{number}"), None);
        writing.stray(&format!("stray-{number}"), Some(good.clone()));
    }
    // Expired long ago, and soon.
    let soon = now_ms() + 2000;
    for (prefix, expires_at_ms) in [("old", 1_600_000_000_000), ("soon", soon)] {
        for number in 0..5 {
            let id = PointId::new(&format!("{prefix}-{number}")).unwrap();
            let point = Point {
                expires_at_ms: Some(expires_at_ms),
                ..workload::point(&writing.model, &mut random)
            };
            let mut bytes = Vec::new();
            avro::encode(&point, Framing::SingleObject, &mut bytes);
            let sent = versioned(id.as_str(), Some(bytes.into()), 77);
            append(&world.cluster, &home(&collection, id.as_str()), &sent);
            writing.model.upsert(&id, Version::from_raw(77), &point);
        }
    }

    let before = world.settled(&live, &collection);
    assert_eq!(before.digest, writing.model.digest());
    force_compaction(&mut writing, &gone);
    eventually(DEADLINE, "the last points to expire", || {
        (now_ms() > soon).then_some(())
    });
    let seen_all = world.settled(&live, &collection);
    assert_eq!(seen_all.digest, writing.model.digest());

    // From an empty disk, from the compacted log alone.
    let rebuilt = world.indexer("rebuilt").small_engine().start();
    let from_compacted = world.settled(&rebuilt, &collection);
    let told = |state: &State| (state.digest, state.contested, state.next.clone());
    assert_eq!(told(&from_compacted), told(&seen_all));
    // Where a refused record is all that compaction kept of an id, the old point is still served
    // by the shard that saw it, and is what "contested" warns of: 20 + 5 such ids.
    assert_eq!(seen_all.points - from_compacted.points, 25);
    assert_eq!(seen_all.contested, 4 * 5 * 2 + 5 + 5);

    // The one that saw everything is still the same after a restart, and what settles a
    // contested id settles it in both.
    live.child.terminate();
    let mut live = world.indexer("live").small_engine().start();
    assert_eq!(told(&world.settled(&live, &collection)), told(&seen_all));
    for at in 0..4 {
        for number in 0..5 {
            writing.version(&format!("p-{}", 100 + at * 10 + number), 5, &mut random);
            writing.version(&format!("never-{at}-{number}"), 5, &mut random);
        }
    }
    for number in (150..155).chain(200..205) {
        writing.tombstone(&format!("p-{number}"));
    }
    let settled_live = world.settled(&live, &collection);
    let settled_rebuilt = world.settled(&rebuilt, &collection);
    assert_eq!(settled_live, settled_rebuilt);
    assert_eq!(settled_live.contested, 0);
    writing.model.assert_is(&settled_live, now_ms());
    live.child.lives();
    for role in [&live, &rebuilt] {
        role.had_no_errors(&[]);
    }
    has_every_refusal_in_the_dead_letters(&world, &collection);
}

/// Each refusal is told once at least, with the place it stood at.
fn has_every_refusal_in_the_dead_letters(world: &World, collection: &Collection) {
    let mut by_reason: BTreeMap<Reason, BTreeSet<(u32, u64)>> = BTreeMap::new();
    for entry in topic::dead_letters(&world.cluster, collection) {
        let place = (entry.source.partition.0, entry.offset.0);
        by_reason
            .entry(entry.rejection.reason)
            .or_default()
            .insert(place);
    }
    let count = |reason: Reason| by_reason.get(&reason).map_or(0, BTreeSet::len);
    assert_eq!(count(Reason::WrongDimension), 20);
    assert_eq!(count(Reason::NotFinite), 10);
    assert_eq!(count(Reason::ZeroVector), 10);
    assert_eq!(count(Reason::Undecodable), 10 + 10 + 5);
    assert_eq!(count(Reason::BadHeader), 5);
    assert_eq!(count(Reason::WrongPartition), 30);
}

/// A good value whose first component is NaN.
pub(crate) fn not_finite(good: &Bytes) -> Bytes {
    let mut bytes = good.to_vec();
    // 2 magic + 8 fingerprint + 1 branch + the block's length (1 byte below 64 components).
    let first = 2 + 8 + 1 + 1;
    bytes[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes.into()
}

#[test]
fn a_second_indexer_from_the_beginning_equals_one_that_followed() {
    let world = World::new("replica");
    let collection = world.collection("twins", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(5);
    let first = world.indexer("first").small_engine().start();
    for _ in 0..4 {
        workload::churn(&publisher, &mut model, &mut random, 500, 1000);
        world.settled(&first, &collection);
    }
    let points = workload::points(&model, &mut random, "last", 10);
    world::publish(&publisher, &mut model, points);
    let second = world.indexer("second").start();
    let states = [&first, &second].map(|role| world.settled(role, &collection));
    assert_eq!(states[0], states[1]);
    model.assert_is(&states[0], now_ms());
}

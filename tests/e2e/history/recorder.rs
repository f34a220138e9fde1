//! What the clients of a run did, with the times of one clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use shoal_runtime::{clock::Stopwatch, eventually};
use shoal_schemas::{
    Collection, Metric, Payload, PointId, Value, avro::NoRegistry, event::decode_value,
    headers::Meta, route, v1,
};

use crate::{
    checker::{
        history::{
            Call, Content, Copy, Covered, History, Operation, Outcome, Place, Record, Run, Seen,
            Trouble,
        },
        mark,
    },
    harness::{DEADLINE, client, role::Role, state, topic, wait, world::World},
};

/// The field that tells who wrote a point last.
pub(super) const STAMP: &str = "stamp";
/// The field that tells who wrote its vector.
pub(super) const OF_VECTOR: &str = "of_vector";
/// Squared distances of whole numbers are exact.
pub(super) const METRIC: Metric = Metric::L2;

/// Takes down operations as they end. Shared by all clients.
pub(super) struct Recorder {
    watch: Stopwatch,
    run: Run,
    numbers: AtomicU64,
    stamps: AtomicU64,
    operations: Mutex<Vec<Operation>>,
    troubles: Mutex<Vec<Trouble>>,
}

/// An operation that has begun.
pub(super) struct Begun {
    number: u64,
    invoked_us: u64,
}

impl Recorder {
    /// For so many keys.
    pub(super) fn new(seed: u64, collection: &Collection, keys: usize) -> Self {
        let keys = (0..keys).map(|number| {
            let key = format!("k{number:02}");
            let id = PointId::new(&key).unwrap();
            (key, route::partition_of(collection, &id).0)
        });
        Self {
            watch: Stopwatch::start(),
            run: Run {
                seed,
                keys: keys.collect(),
                partitions: collection.partitions,
            },
            numbers: AtomicU64::new(0),
            stamps: AtomicU64::new(1),
            operations: Mutex::default(),
            troubles: Mutex::default(),
        }
    }

    pub(super) fn keys(&self) -> &BTreeMap<String, u32> {
        &self.run.keys
    }

    /// A stamp nobody had before.
    pub(super) fn stamp(&self) -> u64 {
        let stamp = self.stamps.fetch_add(1, Ordering::Relaxed);
        assert!(stamp < mark::STAMPS);
        stamp
    }

    /// The stamps so far are smaller.
    pub(super) fn stamps(&self) -> u64 {
        self.stamps.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self) -> Begun {
        Begun {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            invoked_us: self.now_us(),
        }
    }

    pub(super) fn end(
        &self,
        begun: Begun,
        process: u32,
        is_session: bool,
        call: Call,
        outcome: Outcome,
    ) {
        let operation = Operation {
            number: begun.number,
            process,
            is_session,
            invoked_us: begun.invoked_us,
            completed_us: self.now_us(),
            call,
            outcome,
        };
        self.operations.lock().unwrap().push(operation);
    }

    pub(super) fn trouble(&self, what: String) {
        let at_us = self.now_us();
        self.troubles.lock().unwrap().push(Trouble { at_us, what });
    }

    /// How many operations of each kind ended how.
    pub(super) fn tally(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let mut tally = BTreeMap::new();
        for operation in self.operations.lock().unwrap().iter() {
            let kind = match &operation.call {
                Call::Upsert { .. } => "upsert",
                Call::Patch { .. } => "patch",
                Call::Delete { .. } => "delete",
                Call::Search { .. } => "search",
                Call::Get { .. } => "get",
                Call::Count { .. } => "count",
            };
            let outcome = match &operation.outcome {
                Outcome::Written { .. } => "written",
                Outcome::Answered(_) => "answered",
                Outcome::Failed { .. } => "failed",
                Outcome::Refused { .. } => "refused",
                Outcome::Unknown { .. } => "unknown",
            };
            *tally.entry((kind, outcome)).or_default() += 1;
        }
        tally
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.watch.elapsed().as_micros()).unwrap()
    }

    /// Everything so far, with the topic as it is now and what these nodes hold of it: each group of them every shard.
    pub(super) fn history(
        &self,
        world: &World,
        collection: &Collection,
        groups: &[&[&Role]],
    ) -> History {
        let mut operations = self.operations.lock().unwrap().clone();
        operations.sort_by_key(|operation| operation.number);
        History {
            run: self.run.clone(),
            operations,
            records: records(world, collection),
            copies: groups
                .iter()
                .flat_map(|group| whole(group, collection))
                .collect(),
            troubles: self.troubles.lock().unwrap().clone(),
        }
    }
}

/// The topic, read back.
fn records(world: &World, collection: &Collection) -> Vec<Record> {
    let mut records = Vec::new();
    for partition in 0..collection.partitions {
        let at = topic::partition(&collection.name, partition);
        for (offset, record) in topic::read(&world.cluster, &at) {
            let key = String::from_utf8(record.key.clone().unwrap().into()).unwrap();
            let id = PointId::new(&key).unwrap();
            let version = Meta::decode(&record).unwrap().version.raw();
            let content = record.value.map(|value| {
                let point = decode_value(&id, &value, collection, &NoRegistry).unwrap();
                content(&point.payload, point.vector.as_slice())
            });
            records.push(Record {
                place: Place {
                    partition,
                    offset: offset.0,
                },
                key,
                version,
                content,
            });
        }
    }
    records
}

/// What these nodes hold, once they hold every shard between them: a group may still be sharing them out.
fn whole(group: &[&Role], collection: &Collection) -> Vec<Copy> {
    eventually(DEADLINE, "every shard to be held", || {
        let copies: Vec<Copy> = group
            .iter()
            .flat_map(|node| copies(node, collection))
            .collect();
        let shards: BTreeSet<u32> = copies.iter().map(|copy| copy.shard).collect();
        let partitions = usize::try_from(collection.partitions).unwrap();
        (shards.len() == partitions).then_some(copies)
    })
}

/// What a node serves of a collection's shards.
fn copies(node: &Role, collection: &Collection) -> Vec<Copy> {
    let grpc = node.settings.grpc;
    let statuses = state::statuses(grpc, collection).unwrap();
    let serving = statuses.iter().filter(|status| status.code == 0);
    let shards = serving.map(|status| v1::ShardAsk {
        shard: status.coverage.as_ref().unwrap().shard,
        at_least: Vec::new(),
    });
    let ask = v1::ShardScrollRequest {
        collection: collection.name.to_string(),
        shards: shards.collect(),
        limit: 10_000,
        with_vector: true,
        ..v1::ShardScrollRequest::default()
    };
    let answer = wait(async { client::shard(grpc).shard_scroll(ask).await });
    let shards = answer.unwrap().into_inner().shards.into_iter();
    let answered = shards.filter(|points| points.code == 0);
    answered
        .map(|points| Copy {
            node: node.settings.name.clone(),
            shard: points.coverage.unwrap().shard,
            points: points.points.into_iter().map(stored).collect(),
        })
        .collect()
}

fn content(payload: &Payload, vector: &[f32]) -> Content {
    let number = |name: &str| match payload.0.get(name) {
        Some(Value::Integer(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    Content {
        stamp: number(STAMP),
        of_vector: number(OF_VECTOR),
        vector: mark::stamp(vector),
    }
}

/// A hit as the history has it.
pub(super) fn hit(hit: v1::Hit) -> Seen {
    let payload = Payload::from_proto(hit.payload).unwrap();
    Seen {
        content: content(&payload, &hit.vector),
        key: hit.id,
        version: hit.version,
        distance: Some(hit.distance),
        place: None,
    }
}

/// A point as the history has it.
pub(super) fn stored(stored: v1::StoredPoint) -> Seen {
    let point = stored.point.unwrap();
    let payload = Payload::from_proto(point.payload).unwrap();
    Seen {
        content: content(&payload, &point.vector),
        key: point.id,
        version: stored.version,
        distance: None,
        place: Some(Place {
            partition: stored.partition,
            offset: stored.offset,
        }),
    }
}

/// Coverage as the history has it.
pub(super) fn covered(coverage: Option<v1::Coverage>) -> Vec<Covered> {
    let shards = coverage.unwrap().shards.into_iter();
    shards
        .map(|shard| Covered {
            shard: shard.shard,
            answered: shard.answered,
            node: shard.node,
            next_offset: shard.next_offset,
            lag_us: micros(shard.lag_seconds),
        })
        .collect()
}

/// Whole microseconds, cut.
fn micros(seconds: f64) -> u64 {
    let time = std::time::Duration::try_from_secs_f64(seconds).unwrap();
    u64::try_from(time.as_micros()).unwrap()
}

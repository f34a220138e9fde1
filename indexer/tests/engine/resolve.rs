//! Resolving partial and conditional changes: no update is lost, one of many wins, and whoever writes
//! straight to Kafka in between is neither overlooked nor undone.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use shoal_indexer::resolve::{
    Change, Deadline, Refusal, ResolveError, Resolver, Style, Target, Want,
};
use shoal_runtime::{
    clock::{Clock, Manual},
    eventually,
};
use shoal_schemas::{
    Condition, Metric, Patch, Payload, PointId, Record, Token, Value, Vector, Version,
    avro::Framing, headers::Meta, v1, vector::Dim,
};
use shoal_topic::{Cluster, TopicPartition, WriteError, Writer, writer::DeliveryFuture};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinSet};

use crate::world::{DEADLINE, Live, World, vector};

/// A writer that lets others go first, and holds acknowledgements back.
struct Meddling {
    inner: Arc<dyn Writer>,
    /// Written before the next records, one before each.
    before: Mutex<VecDeque<Record>>,
    /// The next acknowledgement waits for this.
    hold: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Writer for Meddling {
    fn send(&self, to: &TopicPartition, record: &Record) -> Result<DeliveryFuture, WriteError> {
        if let Some(first) = self.before.lock().unwrap().pop_front() {
            drop(self.inner.send(to, &first)?);
        }
        let delivery = self.inner.send(to, record)?;
        Ok(match self.hold.lock().unwrap().take() {
            None => delivery,
            Some(hold) => Box::pin(async move {
                let _released = hold.await;
                delivery.await
            }),
        })
    }

    fn cluster_id(&self) -> Result<shoal_schemas::ClusterId, WriteError> {
        self.inner.cluster_id()
    }
}

/// A world, an open shard, and a resolver for it.
struct Owner {
    world: World,
    live: Live,
    runtime: Runtime,
    resolver: Resolver,
    meddling: Arc<Meddling>,
}

impl Owner {
    fn new() -> Self {
        Self::of(World::new())
    }

    fn of(world: World) -> Self {
        let live = world.open();
        world.caught_up(&live);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let meddling = Arc::new(Meddling {
            inner: world.cluster.writer.clone(),
            before: Mutex::default(),
            hold: Mutex::default(),
        });
        let cluster = Cluster {
            writer: meddling.clone(),
            ..world.cluster.clone()
        };
        let in_flight = 64.try_into().unwrap();
        let (resolver, resolving) = Resolver::new(cluster, world.clock.clone(), in_flight);
        runtime.spawn(resolving.run(live.cancel.clone()));
        Self {
            world,
            live,
            runtime,
            resolver,
            meddling,
        }
    }

    fn asks(&self) -> Asks {
        Asks {
            resolver: self.resolver.clone(),
            target: Target {
                shared: self.live.shared.clone(),
                cancel: self.live.cancel.clone(),
            },
        }
    }

    fn ask(&self, change: Change) -> Result<Token, ResolveError> {
        self.runtime.block_on(self.asks().ask(change))
    }

    /// The point as it is served, once everything in the log is applied.
    fn point(&self, id: &str) -> Option<v1::StoredPoint> {
        self.world.caught_up(&self.live);
        let found = self.live.shared.points(&[id.to_owned()], true);
        found.unwrap().pop()
    }

    fn version(&self, id: &str) -> Version {
        Version::from_raw(self.point(id).unwrap().version)
    }

    fn close(self) {
        self.live.close();
        self.runtime.shutdown_timeout(DEADLINE);
    }
}

/// What a task needs to ask for changes.
#[derive(Clone)]
struct Asks {
    resolver: Resolver,
    target: Target,
}

impl Asks {
    async fn ask(&self, change: Change) -> Result<Token, ResolveError> {
        self.ask_within(change, DEADLINE).await
    }

    async fn ask_within(&self, change: Change, time: Duration) -> Result<Token, ResolveError> {
        let style = Style {
            framing: Framing::SingleObject,
            origin: Some("eu".parse().unwrap()),
            residency: Some(self.target.shared.spec.region.clone()),
            trace: None,
        };
        let deadline = Deadline::within(time);
        let taken = self
            .resolver
            .submit(self.target.clone(), change, style, deadline);
        taken.await?.outcome().await
    }

    fn field(&self, id: &str, name: &str) -> (Version, i64) {
        let found = self.target.shared.points(&[id.to_owned()], false).unwrap();
        let stored = &found[0];
        let point = stored.point.as_ref().unwrap();
        (Version::from_raw(stored.version), number(point, name))
    }
}

fn number(point: &v1::Point, name: &str) -> i64 {
    match Payload::from_proto(point.payload.clone())
        .unwrap()
        .0
        .get(name)
    {
        Some(Value::Integer(n)) => *n,
        None => 0,
        other => panic!("{other:?}"),
    }
}

fn set(id: &str, name: &str, n: i64) -> Change {
    let field = (name.to_owned(), Value::Integer(n));
    Change {
        id: PointId::new(id).unwrap(),
        want: Want::Patch(Patch {
            set: Payload([field].into()),
            ..Patch::default()
        }),
        condition: Condition::Always,
    }
}

fn only_if(version: Version, change: Change) -> Change {
    Change {
        condition: Condition::Version(version),
        ..change
    }
}

fn remove(id: &str, condition: Condition) -> Change {
    Change {
        id: PointId::new(id).unwrap(),
        want: Want::Write(None),
        condition,
    }
}

/// A record of a client that knows nothing of Shoal's headers.
fn foreign(world: &World, id: &str, seed: u64, field: &str) -> Record {
    let vector = vector(seed);
    let value = serde_json::json!({"vector": vector, "payload": {field: 1}});
    Record {
        value: Some(value.to_string().into()),
        ..world.record(id, seed)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn patches_of_one_id_by_many_at_once_lose_no_update() {
    const TASKS: i64 = 8;
    const ROUNDS: i64 = 12;
    let owner = Owner::new();
    owner.world.upsert("a", 7);
    owner.world.upsert("b", 8);
    owner.world.caught_up(&owner.live);
    owner.runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let asks = owner.asks();
            tasks.spawn(async move {
                for round in 1..=ROUNDS {
                    // A field of its own, without a condition.
                    let field = set("a", &format!("f{task}"), round);
                    let written = asks.ask(field).await.unwrap();
                    assert_eq!(asks.field("a", &format!("f{task}")).1, round);
                    assert!(asks.field("a", "none").0 >= written.version);
                    // A counter that all of them count up, by its version.
                    loop {
                        let (version, count) = asks.field("a", "count");
                        let counted = only_if(version, set("a", "count", count + 1));
                        match asks.ask(counted).await {
                            Ok(_) => break,
                            Err(ResolveError::Refused(Refusal::Condition { .. })) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    // Another point goes on beside it.
                    asks.ask(set("b", &format!("f{task}"), round))
                        .await
                        .unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    for (id, seed) in [("a", 7), ("b", 8)] {
        let point = owner.point(id).unwrap().point.unwrap();
        for task in 0..TASKS {
            assert_eq!(number(&point, &format!("f{task}")), ROUNDS, "{id} {task}");
        }
        assert_eq!(bits(&point.vector), bits(&vector(seed)), "the vector stays");
    }
    let counted = owner.point("a").unwrap().point.unwrap();
    assert_eq!(number(&counted, "count"), TASKS * ROUNDS);
    owner.close();
}

#[test]
fn exactly_one_of_many_that_want_the_same_version_wins() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    let race = |changes: Vec<Change>| {
        let outcomes: Vec<_> = owner.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for change in changes {
                let asks = owner.asks();
                tasks.spawn(async move { asks.ask(change).await });
            }
            tasks.join_all().await
        });
        let won: Vec<Token> = outcomes
            .into_iter()
            .filter_map(|outcome| match outcome {
                Ok(token) => Some(token),
                Err(ResolveError::Refused(Refusal::Condition { current, .. })) => {
                    assert!(current.is_some(), "the version there is now is told");
                    None
                }
                Err(error) => panic!("{error}"),
            })
            .collect();
        assert_eq!(won.len(), 1);
        won
    };
    for _ in 0..5 {
        let version = owner.version("a");
        let wanted = (0..16).map(|n| only_if(version, set("a", "winner", n)));
        let won = race(wanted.collect());
        assert_eq!(owner.version("a"), won[0].version);
        assert!(won[0].version > version);
    }
    // Of many that want to be the first, one is.
    let new = (0..8).map(|seed| Change {
        id: PointId::new("new").unwrap(),
        want: Want::Write(owner.world.record("new", seed).value),
        condition: Condition::Absent,
    });
    race(new.collect());
    owner.close();
}

#[test]
fn what_was_acknowledged_before_is_seen_and_headers_are_a_producer_s() {
    let owner = Owner::new();
    // Not waited for: the shard may be behind when the change is asked for.
    for seed in 0..200 {
        owner.world.upsert("a", seed);
    }
    let token = owner.ask(set("a", "n", 5)).unwrap();
    let stored = owner.point("a").unwrap();
    assert_eq!(
        (stored.offset, stored.version),
        (token.offset.0, token.version.raw())
    );
    let point = stored.point.unwrap();
    assert_eq!(number(&point, "n"), 5);
    assert_eq!(bits(&point.vector), bits(&vector(199)));
    let record = owner.world.read(token.offset);
    let meta = Meta::decode(&record).unwrap();
    assert_eq!(meta.version, token.version);
    assert_eq!(meta.origin.unwrap().to_string(), "eu");
    let region = owner.live.shared.spec.region.as_str();
    assert_eq!(meta.residency.as_deref(), Some(region));

    let refused = |change| match owner.ask(change) {
        Err(ResolveError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let missing = refused(set("nobody", "n", 1));
    assert!(matches!(missing, Refusal::Missing { .. }));
    let end = owner.world.end();
    let stale = Condition::Version(Version::from_raw(1));
    assert!(matches!(
        refused(remove("a", stale)),
        Refusal::Condition { .. }
    ));
    assert_eq!(owner.world.end(), end, "what is refused is not written");
    let now = Condition::Version(owner.version("a"));
    owner.ask(remove("a", now)).unwrap();
    assert_eq!(owner.point("a"), None);
    assert!(matches!(refused(set("a", "n", 1)), Refusal::Missing { .. }));
    owner.close();
}

#[test]
fn a_point_of_which_only_the_row_is_left_is_not_there() {
    let clock = Manual::at(1_700_000_000_000);
    let owner = Owner::of(World {
        clock: clock.clone(),
        ..World::new()
    });
    let world = &owner.world;
    let soon_ms = clock.now_ms() + 1000;
    for id in 0..100 {
        let until_ms = Some(soon_ms);
        let (id, payload) = (format!("id-{id}"), Payload::default());
        world.send(&world.record_until(&id, &vector(1), payload, until_ms));
    }
    world.caught_up(&owner.live);
    clock.advance(Duration::from_secs(300));
    eventually(DEADLINE, "they are reclaimed", || {
        let (view, _) = owner.live.shared.moment();
        let each = view
            .segments
            .iter()
            .map(|one| if one.is_reclaimed() { one.len() } else { 0 });
        (each.sum::<u32>() == 100).then_some(())
    });
    let refused = owner.ask(set("id-3", "n", 1)).unwrap_err();
    assert!(
        matches!(refused, ResolveError::Refused(Refusal::Missing { .. })),
        "{refused:?}"
    );
    owner.ask(remove("id-3", Condition::Absent)).unwrap();
    assert_eq!(world.caught_up(&owner.live).points, 99);
    owner.close();
}

#[test]
fn a_patch_is_made_on_top_of_a_record_that_came_between() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    owner.world.caught_up(&owner.live);
    // Two in a row: before the first record and before the one that mends it.
    for (seed, field) in [(2, "theirs"), (3, "theirs too")] {
        let record = foreign(&owner.world, "a", seed, field);
        owner.meddling.before.lock().unwrap().push_back(record);
    }
    let token = owner.ask(set("a", "mine", 4)).unwrap();
    let stored = owner.point("a").unwrap();
    assert_eq!(stored.offset, token.offset.0);
    let point = stored.point.unwrap();
    let fields = ["mine", "theirs", "theirs too"].map(|name| number(&point, name));
    assert_eq!(fields, [4, 0, 1], "each of theirs replaced the whole point");
    assert_eq!(bits(&point.vector), bits(&vector(3)));
    owner.close();
}

#[test]
fn a_condition_that_failed_after_all_leaves_the_other_s_record_as_it_was() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    let version = owner.version("a");
    let theirs = foreign(&owner.world, "a", 2, "theirs");
    let theirs = Record {
        timestamp_ms: theirs.timestamp_ms + 5,
        ..theirs
    };
    owner.meddling.before.lock().unwrap().push_back(theirs);
    let refused = owner
        .ask(only_if(version, set("a", "mine", 4)))
        .unwrap_err();
    let ResolveError::Refused(Refusal::Condition { current, .. }) = refused else {
        panic!("{refused:?}");
    };
    let point = owner.point("a").unwrap();
    assert_eq!(
        current.unwrap().raw(),
        point.version,
        "what is told is what is there"
    );
    let point = point.point.unwrap();
    assert_eq!(["mine", "theirs"].map(|name| number(&point, name)), [0, 1]);
    assert_eq!(bits(&point.vector), bits(&vector(2)));

    // The same where it was deleted in between.
    let now = owner.version("a");
    for condition in [Condition::Version(now), Condition::Always] {
        owner.world.upsert("a", 1);
        let condition = match condition {
            Condition::Version(_) => Condition::Version(owner.version("a")),
            other => other,
        };
        let gone = Record {
            value: None,
            ..owner.world.record("a", 1)
        };
        owner.meddling.before.lock().unwrap().push_back(gone);
        let mine = Change {
            condition,
            ..set("a", "mine", 4)
        };
        let refused = owner.ask(mine).unwrap_err();
        assert!(
            matches!(refused, ResolveError::Refused(Refusal::Missing { .. })),
            "{refused:?}"
        );
        assert_eq!(owner.point("a"), None, "what they deleted stays deleted");
    }
    owner.close();
}

#[test]
fn a_refused_record_in_between_is_nothing_to_make_a_change_on() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    let version = owner.version("a");
    let bad = Record {
        value: Some(bytes::Bytes::from_static(b"no point")),
        ..owner.world.record("a", 1)
    };
    owner.meddling.before.lock().unwrap().push_back(bad);
    owner.ask(only_if(version, set("a", "mine", 4))).unwrap();
    let point = owner.point("a").unwrap().point.unwrap();
    assert_eq!(number(&point, "mine"), 4);
    assert_eq!(owner.world.caught_up(&owner.live).contested, 0);
    owner.close();
}

#[test]
fn whoever_writes_between_every_time_is_told_of_in_the_end() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    owner.world.caught_up(&owner.live);
    for seed in 0..40 {
        let record = foreign(&owner.world, "a", seed, "theirs");
        owner.meddling.before.lock().unwrap().push_back(record);
    }
    let error = owner.ask(set("a", "mine", 4)).unwrap_err();
    assert!(matches!(error, ResolveError::Unknown { .. }), "{error}");
    owner.close();
}

#[test]
fn after_the_record_is_sent_a_deadline_says_unknown_and_before_it_says_nothing_was_written() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    owner.world.upsert("b", 1);
    owner.world.caught_up(&owner.live);
    let (release, hold) = oneshot::channel();
    *owner.meddling.hold.lock().unwrap() = Some(hold);
    let soon = Duration::from_millis(300);
    let asks = owner.asks();
    let first = owner
        .runtime
        .block_on(asks.ask_within(set("a", "first", 1), soon));
    assert!(
        matches!(first, Err(ResolveError::Unknown { .. })),
        "{first:?}"
    );
    // The next one of the id waits for what becomes of it; others do not.
    let second = owner
        .runtime
        .block_on(asks.ask_within(set("a", "second", 2), soon));
    assert!(
        matches!(second, Err(ResolveError::Late { .. })),
        "{second:?}"
    );
    owner.ask(set("b", "other", 1)).unwrap();
    release.send(()).unwrap();
    owner.ask(set("a", "third", 3)).unwrap();
    let point = owner.point("a").unwrap().point.unwrap();
    let fields = ["first", "second", "third"].map(|name| number(&point, name));
    assert_eq!(fields, [1, 0, 3]);
    owner.close();
}

#[test]
fn while_the_broker_is_away_nothing_is_written_and_it_works_again_afterwards() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    owner.world.caught_up(&owner.live);
    owner.world.log.set_down(true);
    let refused = owner.ask(set("a", "n", 1)).unwrap_err();
    assert!(matches!(refused, ResolveError::Broker(_)), "{refused:?}");
    owner.world.log.set_down(false);
    owner.ask(set("a", "n", 2)).unwrap();
    assert_eq!(number(&owner.point("a").unwrap().point.unwrap(), "n"), 2);
    owner.close();
}

#[test]
fn a_shard_that_is_let_go_of_ends_what_is_under_way() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    owner.world.caught_up(&owner.live);
    let (_never, hold) = oneshot::channel::<()>();
    *owner.meddling.hold.lock().unwrap() = Some(hold);
    let asks = owner.asks();
    let waiting = owner
        .runtime
        .spawn(async move { asks.ask(set("a", "n", 1)).await });
    eventually(DEADLINE, "the record to be sent", || {
        owner.meddling.hold.lock().unwrap().is_none().then_some(())
    });
    owner.live.cancel.cancel();
    let ended = owner.runtime.block_on(waiting).unwrap();
    assert!(
        matches!(ended, Err(ResolveError::Unknown { .. })),
        "{ended:?}"
    );
    owner.close();
}

#[test]
fn a_new_vector_is_found_and_an_old_one_is_not() {
    let owner = Owner::new();
    owner.world.upsert("a", 1);
    owner.world.upsert("b", 2);
    let dim = Dim::try_from(8).unwrap();
    let moved = Change {
        want: Want::Patch(Patch {
            vector: Some(Vector::new(&vector(5), dim, Metric::Cosine).unwrap()),
            ..Patch::default()
        }),
        ..set("a", "n", 1)
    };
    owner.ask(moved).unwrap();
    assert_eq!(owner.live.nearest(5, 1), ["a"]);
    assert_eq!(owner.live.nearest(2, 1), ["b"]);
    owner.close();
}

//! Two replica sets over real Kafka: one of them is stopped and killed under queries, and the two
//! hold the same; what is done once a shard is done by its owner.

use bytes::Bytes;
use shoal_runtime::eventually;
use shoal_schemas::{Collection, v1};

use crate::harness::{
    DEADLINE, client,
    model::Model,
    role::{Role, Settings},
    seed::Random,
    state::{self, State},
    steady::Steady,
    topic::{append, dead_letters, home, record},
    wait, workload,
    world::{World, now_ms},
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 4;

fn indexer(world: &World, name: &str) -> Settings {
    world
        .group_indexer(name)
        .small_engine()
        .with("KAFKA__SESSION_TIMEOUT", "6s")
        .with("INDEXER__DRAIN_TIMEOUT", "5s")
}

/// Waits until an indexer serves every shard.
fn serves(role: &Role, collection: &Collection) {
    eventually(DEADLINE, "every shard to be served", || {
        let statuses = state::statuses(role.settings.grpc, collection).ok()?;
        let serving = statuses.iter().filter(|status| status.code == 0).count();
        (serving == 4).then_some(())
    });
}

fn held(world: &World, role: &Role, collection: &Collection) -> State {
    state::settled(&[role.settings.grpc], &world.cluster, collection)
}

#[test]
fn a_replica_that_stops_or_dies_fails_no_query_and_both_hold_the_same() {
    let world = World::new("replicas");
    let collection = world.collection("twice", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::from_environment("replicas");
    let mut write = |model: &mut Model| workload::churn(&publisher, model, &mut random, 800, 800);
    write(&mut model);
    // Without groups: whether one that was stopped keeps its seat is not the question here.
    let owner = world.indexer("owner").small_engine().start();
    let settings = world.indexer("replica").small_engine();
    let settings = settings.with("INDEXER__REPLICA_SET", "b");
    let replica = settings.start();
    serves(&owner, &collection);
    serves(&replica, &collection);
    let first = held(&world, &owner, &collection);
    assert_eq!(held(&world, &replica, &collection), first);
    model.assert_is(&first, now_ms());

    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    eventually(DEADLINE, "the query node to see both", || {
        let ask = v1::GetCollectionRequest {
            name: "twice".to_owned(),
        };
        let mut collections = query.collections.clone();
        let found = wait(collections.get_collection(ask)).ok()?.into_inner();
        let both = |owner: &v1::ShardOwner| {
            let ready = owner.replicas.iter().filter(|one| one.ready);
            let sets: Vec<_> = ready.map(|one| one.set.as_str()).collect();
            owner.node == "owner" && sets == ["", "b"]
        };
        (found.shards.len() == 4 && found.shards.iter().all(both)).then_some(())
    });

    let steady = Steady::start(&query, &collection, None);
    steady.more(400);
    for role in [&owner, &replica] {
        let asked = role.metrics().sum("indexer_searches_total", &[]);
        assert!(asked > 0.0, "{} was never asked", role.settings.name);
    }
    replica.child.pause();
    steady.more(400);
    replica.child.resume();
    steady.more(100);
    owner.child.pause();
    steady.more(400);
    owner.child.resume();
    steady.more(100);
    replica.child.kill();
    steady.more(400);
    let replica = settings.start();
    serves(&replica, &collection);
    steady.more(100);
    steady.stop();
    let metrics = query_role.metrics();
    assert!(metrics.sum("query_hedges_total", &[]) > 0.0);
    assert!(metrics.sum("query_retries_total", &["unreachable"]) > 0.0);

    write(&mut model);
    let last = held(&world, &owner, &collection);
    assert_eq!(held(&world, &replica, &collection), last);
    model.assert_is(&last, now_ms());
    query_role.had_no_errors(&[]);
    replica.had_no_errors(&[]);
}

#[test]
fn what_is_done_once_a_shard_is_done_by_its_owner_alone() {
    let world = World::new("owners");
    let collection = world.collection("once", DIM, PARTITIONS);
    let owner = indexer(&world, "owner").start();
    let replica = indexer(&world, "replica").with("INDEXER__REPLICA_SET", "b");
    let replica = replica.start();
    serves(&owner, &collection);
    serves(&replica, &collection);
    let gateway_role = world.gateway("gateway").start();
    let gateway = client::Gateway::to(gateway_role.settings.grpc, gateway_role.settings.http);

    for n in 0..8 {
        let id = format!("p-{n}");
        let point = v1::Point {
            id: id.clone(),
            vector: vec![1.0; 16],
            ..v1::Point::default()
        };
        eventually(DEADLINE, "the gateway to know the collection", || {
            gateway.upsert("once", vec![point.clone()]).ok()
        });
        let patch = v1::PointPatch {
            id,
            vector: vec![2.0; 16],
            ..v1::PointPatch::default()
        };
        gateway.patch("once", patch).unwrap();
    }
    let resolved = |role: &Role| role.metrics().sum("indexer_resolves_total", &[]);
    assert!(resolved(&owner) >= 8.0);
    assert!(resolved(&replica) == 0.0);

    // Both refuse it, one of them writes it down.
    for n in 0..8 {
        let id = format!("bad-{n}");
        let bad = record(&id, Some(Bytes::from_static(b"{")), now_ms());
        append(&world.cluster, &home(&collection, &id), &bad);
    }
    let at_the_owner = held(&world, &owner, &collection);
    assert_eq!(held(&world, &replica, &collection), at_the_owner);
    assert_eq!(at_the_owner.contested, 8);
    assert_eq!(dead_letters(&world.cluster, &collection).len(), 8);
    owner.had_no_errors(&[]);
    replica.had_no_errors(&[]);
}

//! Query nodes without Kafka: their shard map comes from a file, or from a real etcd.

use shoal_runtime::eventually;
use shoal_schemas::{Collection, Offset, Partition, control::Claim, v1};
use shoal_topic::etcd::{Client, Config, Fenced, LeasedClaim};

use crate::harness::{
    DEADLINE, child, client,
    etcd::Etcd,
    model::Model,
    role::{Role, Settings},
    seed::Random,
    state,
    steady::Steady,
    wait, workload,
    world::World,
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 4;

fn on_ring(world: &World, name: &str) -> Settings {
    world
        .group_indexer(name)
        .small_engine()
        .with("INDEXER__OWNERSHIP__KIND", "ring")
        .with("INDEXER__OWNERSHIP__LEASE", "3s")
        .with("INDEXER__DRAIN_TIMEOUT", "5s")
}

/// A query node that could not reach a Kafka if it wanted to.
fn without_kafka(world: &World, name: &str, source: &str) -> Settings {
    world
        .query(name)
        .with("KAFKA__BOOTSTRAP", "127.0.0.1:1")
        .with("QUERY__MAP__SOURCE", source)
}

/// Waits until the control topic says that this node owns some of the shards, and they serve.
#[track_caller]
fn owns_some(world: &World, collection: &Collection, node: &str) {
    eventually(DEADLINE, &format!("{node} to own a shard"), || {
        let state = world.control.snapshot();
        let owner = |shard| state.owner(&collection.name, Partition(shard)).cloned();
        let owners: Vec<_> = (0..PARTITIONS).map(owner).collect::<Option<_>>()?;
        let are_ready = owners.iter().all(|(claim, _)| claim.ready);
        (are_ready && owners.iter().any(|(claim, _)| claim.node == node)).then_some(())
    });
}

/// Waits until no two of these nodes have the same shard any more.
#[track_caller]
fn are_handed_over(world: &World, collection: &Collection, roles: &[&Role]) {
    let addresses: Vec<_> = roles.iter().map(|role| role.settings.grpc).collect();
    state::settled(&addresses, &world.cluster, collection);
}

/// Waits until this node has been asked for something through the query node.
#[track_caller]
fn is_asked(role: &Role) {
    let searches = || role.metrics().sum("indexer_searches_total", &[]);
    let before = searches();
    eventually(DEADLINE, "the node to be asked", || {
        (searches() > before).then_some(())
    });
}

fn counts(query: &client::Query, model: &Model) {
    let expected = u64::try_from(model.points().len()).unwrap();
    let ask = v1::CountRequest {
        collection: model.collection.name.to_string(),
        read: client::at_least(&[]),
        ..v1::CountRequest::default()
    };
    eventually(DEADLINE, "every point to be counted", || {
        let counted = query.count(ask.clone()).ok()?;
        (counted.points == expected).then_some(())
    });
}

#[test]
fn a_query_node_follows_an_exported_file_while_shards_move() {
    let world = World::new("map-file");
    let collection = world.collection("filed", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    workload::churn(&publisher, &mut model, &mut Random::of(59), 500, 500);
    let first = on_ring(&world, "first").start();
    owns_some(&world, &collection, "first");

    let file = world.folder.join("map.json");
    let path = file.to_str().unwrap();
    let export = || child::succeed(&["map", "export", "--out", path], &world.variables());
    export();
    let checked = child::succeed(&["map", "check", path], &[]);
    assert!(checked.contains("1 collections, 4 claims"), "{checked}");
    let query_role = without_kafka(&world, "query", "file")
        .with("QUERY__MAP__PATH", path)
        .with("QUERY__MAP__POLL", "50ms")
        .start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    counts(&query, &model);

    // Shards move; until the file says so, the old map leads to the wrong node and the node says so.
    let second = on_ring(&world, "second").start();
    owns_some(&world, &collection, "second");
    are_handed_over(&world, &collection, &[&first, &second]);
    export();
    counts(&query, &model);
    let steady = Steady::start(&query, &collection, None);
    is_asked(&second);
    is_asked(&first);

    // A file that is broken changes nothing, and is told.
    std::fs::write(&file, "{").unwrap();
    let told = eventually(DEADLINE, "the broken file to be told", || {
        let (status, text) = client::get(query_role.settings.http, "/readyz");
        (status == 200 && text.contains("last good one")).then_some(text)
    });
    assert!(
        told.starts_with("ready\n") && told.contains("map.json"),
        "{told}"
    );
    assert_eq!(query_role.metrics().samples("query_map_stale", &[]), [1.0]);
    let (status, _, refused) = child::run(&["map", "check", path], &[]);
    assert!(
        !status.success() && refused.contains("does not read"),
        "{refused}"
    );
    steady.more(20);
    export();
    eventually(DEADLINE, "the good file to be read", || {
        let (_, text) = client::get(query_role.settings.http, "/readyz");
        (text == "ready\n").then_some(())
    });
    assert_eq!(query_role.metrics().samples("query_map_stale", &[]), [0.0]);
    steady.stop();

    let variables = [(
        "SHOAL_QUERY__GRPC_LISTEN".to_owned(),
        query_role.settings.grpc.to_string(),
    )];
    let vector = format!("{:?}", [0.5; 16]);
    let found = child::succeed(
        &["search", "filed", "--vector", &vector, "-k", "1"],
        &variables,
    );
    assert!(found.contains("id-"), "{found}");
    for role in [&first, &second, &query_role] {
        role.had_no_errors(&[]);
    }
}

#[test]
fn a_query_node_follows_etcd_while_shards_move_and_etcd_comes_and_goes() {
    let world = World::new("map-etcd");
    let mut etcd = Etcd::start(world.folder.join("etcd"));
    let endpoints = format!("[\"{}\"]", etcd.url());
    let collection = world.collection("kept", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(61);
    workload::churn(&publisher, &mut model, &mut random, 500, 500);
    let announced =
        |name| on_ring(&world, name).with("INDEXER__ANNOUNCE__ETCD__ENDPOINTS", &endpoints);
    let first = announced("first").start();
    let query_role = without_kafka(&world, "query", "etcd")
        .with("QUERY__MAP__ETCD__ENDPOINTS", &endpoints)
        .start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    counts(&query, &model);

    // Shards move under queries, none of which fails.
    let steady = Steady::start(&query, &collection, None);
    steady.more(20);
    let second = announced("second").start();
    owns_some(&world, &collection, "second");
    is_asked(&second);
    are_handed_over(&world, &collection, &[&first, &second]);
    eventually(DEADLINE, "the query node to know every owner", || {
        let ask = v1::GetCollectionRequest {
            name: "kept".to_owned(),
        };
        let mut collections = query.collections.clone();
        let known = wait(async move { collections.get_collection(ask).await }).ok()?;
        let state = world.control.snapshot();
        let is_newest = |owner: &v1::ShardOwner| {
            let newest = state.owner(&collection.name, Partition(owner.shard));
            newest.is_some_and(|(_, epoch)| epoch.0 == owner.epoch)
        };
        known
            .into_inner()
            .shards
            .iter()
            .all(is_newest)
            .then_some(())
    });

    // Without etcd the map stays as it was; with it, it goes on.
    etcd.kill();
    eventually(DEADLINE, "etcd to be missed", || {
        let (status, text) = client::get(query_role.settings.http, "/readyz");
        (status == 200 && text.contains("last good one")).then_some(())
    });
    steady.more(20);
    etcd.again();
    eventually(DEADLINE, "etcd to be read again", || {
        let (_, text) = client::get(query_role.settings.http, "/readyz");
        (text == "ready\n").then_some(())
    });
    steady.more(20);
    steady.stop();

    // A node dies: its shards are claimed by the other one, and the query node hears of it.
    second.child.kill();
    workload::churn(&publisher, &mut model, &mut random, 500, 500);
    counts(&query, &model);

    // What stands there is what the log says, and a stale owner takes nothing back.
    let config = Config {
        endpoints: vec![etcd.url()],
        ..Config::default()
    };
    let state = world.control.snapshot();
    let (claim, epoch) = state.owner(&collection.name, Partition(0)).unwrap().clone();
    let key = "shard/kept/0";
    wait(async {
        let client = Client::connect(&config).unwrap();
        let (pairs, _) = client.all().await.unwrap();
        let pair = pairs.iter().find(|pair| pair.key == key).unwrap();
        let there = LeasedClaim::decode(&pair.value).unwrap();
        assert_eq!((there.claim, there.epoch), (claim, epoch));
        let stale = LeasedClaim {
            claim: Claim {
                node: "second".into(),
                address: "127.0.0.1:1".into(),
                ready: true,
                next_offset: None,
                early: false,
            },
            epoch: Offset(epoch.0 - 1),
        };
        let lease = client.grant(60).await.unwrap();
        let outcome = client.claim(key, &stale, lease).await.unwrap();
        assert_eq!(outcome, Fenced::Overtaken);
        let outcome = client.remove(key, Some(stale.epoch)).await.unwrap();
        assert_eq!(outcome, Fenced::Overtaken);
        // Nor does one that has read less of the control topic take a definition away, or write its own.
        for value in [None, Some(b"{}".as_slice())] {
            let outcome = client.define("collection/kept", value, Offset(0)).await;
            assert_eq!(outcome.unwrap(), Fenced::Overtaken);
        }
    });

    // A collection that is dropped is gone there, too; one that is made comes.
    let more = world.collection("more", DIM, 1);
    let knows = |name: &str| {
        let ask = v1::GetCollectionRequest {
            name: name.to_owned(),
        };
        let mut collections = query.collections.clone();
        wait(async move { collections.get_collection(ask).await }).is_ok()
    };
    eventually(DEADLINE, "the new collection to be known", || {
        knows(more.name.as_str()).then_some(())
    });
    child::succeed(&["collection", "drop", "more"], &world.variables());
    eventually(DEADLINE, "the dropped collection to be gone", || {
        (!knows(more.name.as_str())).then_some(())
    });
    first.had_no_errors(&[]);
    query_role.had_no_errors(&[]);
}

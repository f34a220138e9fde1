//! Indexers on a ring, over real Kafka: few shards move when one comes or goes, no query notices a
//! hand-over, labels are kept, and a stale owner is fenced.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use shoal_runtime::eventually;
use shoal_schemas::{
    Collection, Metric, Offset, Partition,
    placement::{Labels, Member, Wanted, assign},
    route, v1,
};

use crate::{
    harness::{
        DEADLINE, client,
        model::Model,
        role::{Role, Settings},
        seed::Random,
        state,
        steady::Steady,
        workload,
        world::{World, now_ms},
    },
    rebalance::{all_is_served, shards},
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 8;

pub(crate) fn on_ring(world: &World, name: &str) -> Settings {
    world
        .group_indexer(name)
        .small_engine()
        .with("INDEXER__OWNERSHIP__KIND", "ring")
        .with("INDEXER__OWNERSHIP__LEASE", "3s")
        .with("INDEXER__DRAIN_TIMEOUT", "5s")
}

fn wanted(name: &str, labels: &[(&str, &str)]) -> Collection {
    let dim = DIM.try_into().unwrap();
    let mut wanted = Collection::new(name.parse().unwrap(), dim, Metric::Cosine, PARTITIONS);
    let labels = labels.iter();
    wanted.placement = labels
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    wanted
}

type Owners = BTreeMap<u32, (String, Offset)>;

/// The newest claims of a collection, once all of them say that they serve and are of these nodes.
#[track_caller]
fn owners(world: &World, collection: &Collection, nodes: &[&str]) -> Owners {
    eventually(DEADLINE, &format!("{nodes:?} to own every shard"), || {
        let state = world.control.snapshot();
        let owner = |shard| {
            let (claim, epoch) = state.owner(&collection.name, Partition(shard))?;
            claim.ready.then(|| (shard, (claim.node.clone(), *epoch)))
        };
        let owners: Owners = (0..PARTITIONS).map(owner).collect::<Option<_>>()?;
        let found: BTreeSet<&str> = owners.values().map(|(node, _)| node.as_str()).collect();
        let wanted: BTreeSet<&str> = nodes.iter().copied().collect();
        (found == wanted).then_some(owners)
    })
}

/// The node of each shard by the ring alone: of nodes which are alike, and serve no other collection.
fn given(collection: &Collection, nodes: &[&str]) -> Vec<Option<String>> {
    let member = |name: &&str| Member {
        name: (*name).to_owned(),
        labels: Labels::new(),
        weight: 1,
    };
    let members: Vec<_> = nodes.iter().map(member).collect();
    let shards: Vec<_> = (0..PARTITIONS)
        .map(|shard| Wanted {
            collection: collection.name.clone(),
            shard: Partition(shard),
            required: Labels::new(),
        })
        .collect();
    assign(&members, &shards).into_values().collect()
}

/// The same once each shard is where the ring puts it: between these nodes, which are alike, and of
/// no other collection.
#[track_caller]
fn settled(world: &World, collection: &Collection, nodes: &[&str]) -> Owners {
    let given = given(collection, nodes);
    eventually(
        DEADLINE,
        &format!("{nodes:?} to own what is theirs"),
        || {
            let found = owners(world, collection, nodes);
            let is_given = |((node, _), given): (&(String, Offset), &Option<String>)| {
                given.as_ref() == Some(node)
            };
            found.values().zip(&given).all(is_given).then_some(found)
        },
    )
}

fn moved(before: &Owners, after: &Owners) -> usize {
    let pairs = before.values().zip(after.values());
    pairs
        .filter(|((before, _), (after, _))| before != after)
        .count()
}

/// Everything that the model says is held by these indexers, each shard by one of them.
fn whole(world: &World, roles: &[&Role], model: &Model) {
    let addresses: Vec<_> = roles.iter().map(|role| role.settings.grpc).collect();
    let state = state::settled(&addresses, &world.cluster, &model.collection);
    model.assert_is(&state, now_ms());
}

#[test]
fn indexers_come_go_and_die_and_no_query_notices_a_hand_over() {
    let world = World::new("ring");
    let collection = world.create(wanted("ringed", &[]));
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(53);
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    let write = |model: &mut Model, random: &mut Random| {
        workload::churn(&publisher, model, random, 800, 800)
    };

    write(&mut model, &mut random);
    let first = on_ring(&world, "first").start();
    let alone = settled(&world, &collection, &["first"]);
    whole(&world, &[&first], &model);

    // A second and a third one come while queries go on: every query is answered by all shards.
    let steady = Steady::start(&query, &collection, None);
    steady.more(50);
    let second = on_ring(&world, "second").start();
    let two = settled(&world, &collection, &["first", "second"]);
    write(&mut model, &mut random);
    let third = on_ring(&world, "third").start();
    let three = settled(&world, &collection, &["first", "second", "third"]);
    steady.more(50);
    steady.stop();
    assert!(
        moved(&alone, &two) <= 5 && moved(&two, &three) <= 4,
        "{alone:?} {two:?} {three:?}"
    );
    for (shard, (_, epoch)) in &three {
        assert!(*epoch >= two[shard].1, "the newest claim owns");
    }
    whole(&world, &[&first, &second, &third], &model);

    // One is killed: after its lease the others have its shards, and no others moved.
    second.child.kill();
    write(&mut model, &mut random);
    let left = settled(&world, &collection, &["first", "third"]);
    for (shard, (node, _)) in &three {
        assert!(
            node == "second" || left[shard].0 == *node,
            "{three:?} {left:?}"
        );
    }
    whole(&world, &[&first, &third], &model);

    // One that stands still is passed over; when it goes on it takes nothing back by itself.
    third.child.pause();
    let told_before = third.child.logged().len();
    let taken = settled(&world, &collection, &["first"]);
    third.child.resume();
    let back = settled(&world, &collection, &["first", "third"]);
    for (shard, (node, epoch)) in &back {
        assert!(
            node == "first" || *epoch > taken[shard].1,
            "it claims anew: {back:?}"
        );
    }
    // It has found out first who is there.
    let told = eventually(DEADLINE, "its claims to be logged", || {
        let told = third.child.logged().split_off(told_before);
        let claims = |line: &Value| line["message"] == "shard claimed";
        told.iter().any(claims).then_some(told)
    });
    let first_of = |message: &str| told.iter().position(|line| line["message"] == message);
    let found = first_of("nodes of the ring changed");
    assert!(
        found.is_some() && found < first_of("shard claimed"),
        "{told:#?}"
    );
    whole(&world, &[&first, &third], &model);

    // One is asked to go: it says so, and its shards are taken without waiting for its lease.
    third.had_no_errors(&[]);
    third.child.terminate();
    settled(&world, &collection, &["first"]);
    write(&mut model, &mut random);
    whole(&world, &[&first], &model);
    first.had_no_errors(&[]);
    query_role.had_no_errors(&[]);
}

#[test]
fn an_indexer_without_weight_hands_over_what_it_has_and_fails_no_query() {
    let world = World::new("drain");
    let collection = world.create(wanted("drained", &[]));
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(59);
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    workload::churn(&publisher, &mut model, &mut random, 800, 800);
    let first = on_ring(&world, "first").start();
    owners(&world, &collection, &["first"]);

    // Killed, so that its claims stand, it goes on with what it has, although the ring gives it nothing any more.
    let drained = first.settings.clone().with("INDEXER__WEIGHT", "0");
    first.child.kill();
    let first = drained.start();
    whole(&world, &[&first], &model);
    all_is_served(&query, &model);
    let steady = Steady::start(&query, &collection, None);
    steady.more(50);
    let second = on_ring(&world, "second").start();
    workload::churn(&publisher, &mut model, &mut random, 800, 800);
    owners(&world, &collection, &["second"]);
    eventually(DEADLINE, "the first one to have nothing", || {
        shards(&first, &collection).is_empty().then_some(())
    });
    // Nobody notices when it goes.
    first.had_no_errors(&[]);
    first.child.terminate();
    steady.more(50);
    steady.stop();
    whole(&world, &[&second], &model);
    second.had_no_errors(&[]);
    query_role.had_no_errors(&[]);
}

#[test]
fn labels_decide_who_serves_a_shard_and_what_nobody_may_serve_is_said() {
    let world = World::new("labels");
    let hot = world.create(wanted("hot", &[("gpu", "true")]));
    let near = world.create(wanted("near", &[("region", "eu")]));
    let far = world.create(wanted("far", &[("region", "us")]));
    // A hot tenant among others: one whose shard the ring by itself gives to the other node.
    let mut tenants = wanted("tenants", &[]);
    tenants.route_by_key_prefix = true;
    let by_ring = given(&tenants, &["gpu", "plain"]);
    let shard_of = |tenant: &str| {
        let shards = route::partitions_of_prefix(&tenants, tenant);
        *shards.start()
    };
    let names = (0..1000).map(|number| format!("tenant-{number}"));
    let mut elsewhere = names.filter(|name| {
        let node = by_ring.get(usize::try_from(shard_of(name).0).unwrap());
        node.unwrap().as_deref() == Some("plain")
    });
    let busy = elsewhere.next().unwrap();
    let busy_shard = shard_of(&busy).0;
    tenants.tenant_placement = [(busy, [("gpu".to_owned(), "true".to_owned())].into())].into();
    let tenants = world.create(tenants);
    let gpu = on_ring(&world, "gpu")
        .with("INDEXER__LABELS", "{gpu=\"true\"}")
        .with("INDEXER__REGION", "eu")
        .start();
    let plain = on_ring(&world, "plain")
        .with("INDEXER__REGION", "eu")
        .start();
    owners(&world, &hot, &["gpu"]);
    owners(&world, &near, &["gpu", "plain"]);
    let found = owners(&world, &tenants, &["gpu", "plain"]);
    assert_eq!(found[&busy_shard].0, "gpu", "{found:?}");
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    let told = eventually(
        DEADLINE,
        "the shards that nobody may serve to be told",
        || {
            let refused = query.search(client::search("far", &[0.5; 16], 1)).err()?;
            let told = refused.message().to_owned();
            told.contains("region=us").then_some(told)
        },
    );
    assert!(told.contains("none of the 2"), "{told}");
    assert!(
        world
            .control
            .snapshot()
            .owner(&far.name, Partition(0))
            .is_none()
    );

    // The one that may comes.
    let us = on_ring(&world, "us")
        .with("INDEXER__LABELS", "{region=\"us\"}")
        .start();
    owners(&world, &far, &["us"]);
    owners(&world, &hot, &["gpu"]);
    let counted = eventually(DEADLINE, "every shard to be counted", || {
        let ask = v1::CountRequest {
            collection: "far".to_owned(),
            read: client::at_least(&[]),
            ..v1::CountRequest::default()
        };
        query.count(ask).ok()
    });
    assert_eq!(counted.points, 0);
    for role in [&gpu, &plain, &us] {
        role.had_no_errors(&[]);
    }
}

//! Changes of who serves what, under queries that want every shard: none of them fails.
//!
//! `tests/bench/run changes` does the same at 500 queries a second; a killed replica is in `replicas`.

use std::time::Duration;

use shoal_runtime::eventually;
use shoal_schemas::{Collection, v1};

use crate::{
    harness::{
        DEADLINE, client,
        model::Model,
        role::Role,
        seed::Random,
        state,
        steady::Steady,
        wait, workload,
        world::{World, now_ms},
    },
    rebalance::{settings, share},
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 4;
/// Four threads come to a few hundred queries a second, and leave the changes some processor time.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until the query node knows that these nodes serve every shard, the owners first.
fn is_known(query: &client::Query, collection: &Collection, nodes: &[&[&str]]) {
    eventually(DEADLINE, "the query node to know who serves", || {
        let ask = v1::GetCollectionRequest {
            name: collection.name.to_string(),
        };
        let mut collections = query.collections.clone();
        let found = wait(collections.get_collection(ask)).ok()?.into_inner();
        let is_served = |owner: &v1::ShardOwner| {
            let ready = owner.replicas.iter().filter(|one| one.ready);
            let names: Vec<_> = ready.map(|one| one.node.as_str()).collect();
            let fits = |(name, set): (&&str, &&[&str])| set.contains(name);
            names.len() == nodes.len() && names.iter().zip(nodes).all(fits)
        };
        (found.shards.len() == 4 && found.shards.iter().all(is_served)).then_some(())
    });
}

struct Bench {
    world: World,
    collection: Collection,
    model: Model,
    random: Random,
    query_role: Role,
    query: client::Query,
}

impl Bench {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let collection = world.collection("changing", DIM, PARTITIONS);
        let query_role = world.query("query").start();
        let mut bench = Self {
            model: Model::new(&collection),
            random: Random::from_environment(name),
            query: client::Query::to(query_role.settings.grpc, query_role.settings.http),
            query_role,
            collection,
            world,
        };
        bench.write();
        bench
    }

    fn write(&mut self) {
        let publisher = self.world.publisher(&self.collection);
        workload::churn(&publisher, &mut self.model, &mut self.random, 500, 500);
    }

    fn steady(&self) -> Steady {
        Steady::start(&self.query, &self.collection, Some(PAUSE))
    }

    /// What these hold between them is what was written.
    fn holds(&self, roles: &[&Role]) {
        let addresses: Vec<_> = roles.iter().map(|role| role.settings.grpc).collect();
        let state = state::settled(&addresses, &self.world.cluster, &self.collection);
        self.model.assert_is(&state, now_ms());
    }
}

#[test]
fn shards_that_move_within_a_group_fail_no_query() {
    let mut bench = Bench::new("moves");
    let indexer = |name: &str| settings(&bench.world, name);
    let names = ["first", "second", "third"];
    let [first, second, third] = names.map(indexer);
    let first = first.start();
    share(&[&first], &bench.collection, 4);
    is_known(&bench.query, &bench.collection, &[&["first"]]);
    let steady = bench.steady();
    steady.more(50);
    // There is no other replica: who has a shard answers for it until the next one does.
    let second = second.start();
    bench.write();
    share(&[&first, &second], &bench.collection, 2);
    bench.holds(&[&first, &second]);
    let third = third.start();
    bench.write();
    // Two, one and one.
    eventually(DEADLINE, "the third one to have a shard", || {
        let statuses = state::statuses(third.settings.grpc, &bench.collection).ok()?;
        statuses.iter().any(|status| status.code == 0).then_some(())
    });
    is_known(&bench.query, &bench.collection, &[&names]);
    bench.holds(&[&first, &second, &third]);
    steady.more(50);
    steady.stop();
    for role in [&first, &second, &third, &bench.query_role] {
        role.had_no_errors(&[]);
    }
}

#[test]
fn indexers_that_are_restarted_in_good_order_beside_replicas_fail_no_query() {
    let mut bench = Bench::new("restarts");
    let owner = settings(&bench.world, "owner");
    let copy = settings(&bench.world, "copy").with("INDEXER__REPLICA_SET", "b");
    let mut roles = [owner.start(), copy.start()];
    for role in &roles {
        share(&[role], &bench.collection, 4);
    }
    let both: [&[&str]; 2] = [&["owner"], &["copy"]];
    is_known(&bench.query, &bench.collection, &both);
    let steady = bench.steady();
    steady.more(50);
    for round in 0..4 {
        let [owner, copy] = roles;
        roles = match round % 2 {
            0 => [again(owner), copy],
            _ => [owner, again(copy)],
        };
        bench.write();
        for role in &roles {
            share(&[role], &bench.collection, 4);
        }
        is_known(&bench.query, &bench.collection, &both);
        steady.more(20);
    }
    steady.stop();
    for role in &roles {
        bench.holds(&[role]);
        role.had_no_errors(&[]);
    }
}

/// Ends an indexer in good order and starts it again.
fn again(role: Role) -> Role {
    let settings = role.settings.clone();
    role.had_no_errors(&[]);
    role.child.terminate();
    settings.start()
}

#[test]
fn an_owner_that_another_one_replaces_by_its_static_list_fails_no_query() {
    let mut bench = Bench::new("lists");
    // Every shard is on both lists while they overlap.
    let [old, new] = ["old", "new"].map(|name| bench.world.indexer(name).small_engine());
    let old = old.start();
    is_known(&bench.query, &bench.collection, &[&["old"]]);
    let steady = bench.steady();
    steady.more(50);
    let new = new.start();
    bench.write();
    is_known(&bench.query, &bench.collection, &[&["new"]]);
    steady.more(20);
    old.had_no_errors(&[]);
    old.child.terminate();
    bench.write();
    steady.more(50);
    steady.stop();
    bench.holds(&[&new]);
    new.had_no_errors(&[]);
}

//! Two indexers of one group: shards move between them and every point stays served.

use std::{collections::BTreeSet, net::SocketAddr};

use shoal_runtime::eventually;
use shoal_schemas::{Collection, v1};

use crate::harness::{
    DEADLINE, client,
    model::Model,
    role::{Role, Settings},
    seed::Random,
    state::{self, State},
    workload,
    world::{World, now_ms},
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 4;

/// Low enough for a test, and the least that Kafka allows.
pub(crate) fn settings(world: &World, name: &str) -> Settings {
    world
        .group_indexer(name)
        .small_engine()
        .with("KAFKA__SESSION_TIMEOUT", "6s")
        .with("INDEXER__DRAIN_TIMEOUT", "5s")
}

/// The shards a node serves.
pub(crate) fn shards(role: &Role, collection: &Collection) -> BTreeSet<u32> {
    let statuses = state::statuses(role.settings.grpc, collection).unwrap_or_default();
    let serving = statuses.iter().filter(|status| status.code == 0);
    serving
        .map(|status| status.coverage.as_ref().unwrap().shard)
        .collect()
}

fn addresses(roles: &[&Role]) -> Vec<SocketAddr> {
    roles.iter().map(|role| role.settings.grpc).collect()
}

/// Waits until these indexers, and no other, serve all shards between them.
pub(crate) fn share(roles: &[&Role], collection: &Collection, each: usize) {
    eventually(DEADLINE, "the shards to be shared out", || {
        let parts: Vec<_> = roles.iter().map(|role| shards(role, collection)).collect();
        let all: BTreeSet<u32> = parts.iter().flatten().copied().collect();
        let whole = all.len() == 4 && parts.iter().all(|part| part.len() == each);
        whole.then_some(())
    });
}

/// Waits until the query node counts every point through every shard, and sees what is there.
pub(crate) fn all_is_served(query: &client::Query, model: &Model) {
    let expected = u64::try_from(model.points().len()).unwrap();
    let ask = v1::CountRequest {
        collection: model.collection.name.to_string(),
        read: client::at_least(&[]),
        ..v1::CountRequest::default()
    };
    let mut last = None;
    eventually(DEADLINE, "every point to be counted", || {
        let counted = query.count(ask.clone());
        let is_whole = counted
            .as_ref()
            .is_ok_and(|counted| counted.points == expected);
        last = Some(counted);
        is_whole.then_some(())
    });
    let (id, (_, point)) = model.points().iter().next().unwrap();
    let ask = v1::SearchRequest {
        read: client::at_least(&[]),
        ..client::search(model.collection.name.as_str(), point.vector.as_slice(), 1)
    };
    let answer = query.search(ask).unwrap();
    assert_eq!(answer.hits[0].id, id.as_str());
}

fn whole(world: &World, roles: &[&Role], model: &Model) -> State {
    let state = state::settled(&addresses(roles), &world.cluster, &model.collection);
    model.assert_is(&state, now_ms());
    state
}

#[test]
fn shards_move_between_indexers_that_come_go_and_die_and_no_point_is_lost() {
    let world = World::new("rebalance");
    let collection = world.collection("moving", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::from_environment("rebalance");
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    let mut write = |model: &mut Model| workload::churn(&publisher, model, &mut random, 1500, 1500);

    write(&mut model);
    let first = settings(&world, "first").start();
    share(&[&first], &collection, 4);
    whole(&world, &[&first], &model);
    all_is_served(&query, &model);

    // A second one comes: half of the shards go over, while writes go on.
    let second = settings(&world, "second").launch();
    write(&mut model);
    share(&[&first, &second], &collection, 2);
    whole(&world, &[&first, &second], &model);
    all_is_served(&query, &model);

    // It is asked to go: its shards come back at once.
    second.had_no_errors(&[]);
    second.child.terminate();
    write(&mut model);
    share(&[&first], &collection, 4);
    whole(&world, &[&first], &model);
    all_is_served(&query, &model);

    // It comes back to its own disk, and dies: its shards come back when the group notices.
    let second = settings(&world, "second").start();
    share(&[&first, &second], &collection, 2);
    write(&mut model);
    second.child.kill();
    write(&mut model);
    share(&[&first], &collection, 4);
    whole(&world, &[&first], &model);
    all_is_served(&query, &model);

    // Hand-over one by one: every indexer is replaced in turn and no shard is left unserved.
    let third = settings(&world, "third").start();
    share(&[&first, &third], &collection, 2);
    first.had_no_errors(&[]);
    first.child.terminate();
    share(&[&third], &collection, 4);
    let fourth = settings(&world, "fourth").start();
    share(&[&third, &fourth], &collection, 2);
    third.child.terminate();
    write(&mut model);
    share(&[&fourth], &collection, 4);
    let moved = whole(&world, &[&fourth], &model);
    all_is_served(&query, &model);
    fourth.had_no_errors(&[]);
    query_role.had_no_errors(&[]);

    // What went through six hands equals what an indexer makes of the topic alone.
    fourth.child.terminate();
    let calm = world.indexer("calm").start();
    assert_eq!(whole(&world, &[&calm], &model), moved);
}

#[test]
fn an_indexer_that_is_killed_and_started_again_serves_its_shards_again() {
    let world = World::new("again");
    let collection = world.collection("again", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(31);
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    let settings = settings(&world, "only");
    for _ in 0..2 {
        let only = settings.start();
        workload::churn(&publisher, &mut model, &mut random, 500, 500);
        share(&[&only], &collection, 4);
        whole(&world, &[&only], &model);
        all_is_served(&query, &model);
        only.child.kill();
    }
    let only = settings.start();
    share(&[&only], &collection, 4);
    whole(&world, &[&only], &model);
    all_is_served(&query, &model);
}

#[test]
fn a_killed_indexer_serves_again_before_the_group_has_missed_it() {
    let world = World::new("kept");
    let collection = world.collection("kept", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(37);
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    // The group gives its shards to nobody, itself included, until long after this test's patience.
    let settings = settings(&world, "phoenix")
        .with("KAFKA__SESSION_TIMEOUT", "300s")
        .with("KAFKA__REBALANCE_TIMEOUT", "300s");
    let phoenix = settings.start();
    workload::churn(&publisher, &mut model, &mut random, 500, 500);
    whole(&world, &[&phoenix], &model);
    // A shard whose claim does not say yet that it serves is nobody's to go on with.
    eventually(DEADLINE, "every shard to be claimed as ready", || {
        let lines = phoenix.child.logged();
        let ready = lines
            .iter()
            .filter(|line| line["message"] == "shard claimed" && line["ready"] == true);
        (ready.count() == 4).then_some(())
    });
    phoenix.child.kill();
    workload::churn(&publisher, &mut model, &mut random, 500, 500);
    let phoenix = settings.start();
    whole(&world, &[&phoenix], &model);
    all_is_served(&query, &model);
    phoenix.had_no_errors(&[]);
    // The group still waits for the one that was killed, and answers to no word of the one that came back.
    phoenix.child.terminate();
}

#[test]
fn an_indexer_that_comes_back_beside_another_one_keeps_what_the_group_then_gives_it() {
    let world = World::new("beside");
    let collection = world.collection("beside", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(41);
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    let steady = settings(&world, "steady").start();
    let settings = settings(&world, "killed");
    let killed = settings.start();
    share(&[&steady, &killed], &collection, 2);
    workload::churn(&publisher, &mut model, &mut random, 500, 500);
    whole(&world, &[&steady, &killed], &model);
    killed.child.kill();
    workload::churn(&publisher, &mut model, &mut random, 500, 500);
    let back = settings.start();
    eventually(DEADLINE, "the group's word", || {
        let lines = back.child.logged();
        let claimed = lines
            .iter()
            .any(|line| line["message"] == "shard claimed" && line["ready"] == true);
        claimed.then_some(())
    });
    share(&[&steady, &back], &collection, 2);
    whole(&world, &[&steady, &back], &model);
    all_is_served(&query, &model);
    for role in [&steady, &back] {
        role.had_no_errors(&[]);
    }
}

#[test]
fn an_indexer_that_lost_its_seat_while_it_stood_still_serves_its_shards_again() {
    let world = World::new("seat");
    let collection = world.collection("seat", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    workload::churn(&publisher, &mut model, &mut Random::of(37), 300, 300);
    let first = settings(&world, "first").start();
    share(&[&first], &collection, 4);
    first.child.pause();
    // That another one gets the shards is how it shows that the seat is gone.
    let second = settings(&world, "second").start();
    share(&[&second], &collection, 4);
    second.child.terminate();
    first.child.resume();
    // It hears of the loss, lets go, and is given the same shards.
    share(&[&first], &collection, 4);
    whole(&world, &[&first], &model);
}

//! What a claim says of the shard it is made for: whether it is served, and how far it has come.

use shoal_indexer::Config;
use shoal_runtime::{
    clock::System,
    eventually,
    tasks::{Tasks, blocking},
};
use shoal_schemas::{Offset, Partition, v1};
use shoal_topic::control::ControlLog;
use tokio_util::sync::CancellationToken;

use crate::{DEADLINE, World, query, search, vector};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_a_shard_that_is_served_says_how_many_records_of_its_partition_are_applied() {
    let often = Config::default().probe_interval;
    let world = World::start_in(None, 2, 5, often, None).await;
    for (shard, applied) in [(0, 3), (1, 2)] {
        let claim = world.claim_of(shard, true).await;
        assert_eq!(claim.next_offset, Some(Offset(applied)), "shard {shard}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_let_go_is_claimed_as_not_ready_and_as_far_as_it_has_come() {
    let world = World::start(1).await;
    // More than its first claim says.
    world.put("id-1", vector(1)).await;
    let mut shown = search(vec![query(1, true)]);
    shown.shards = vec![v1::ShardAsk {
        shard: 0,
        at_least: vec![v1::Token {
            cluster_id: "test-cluster".into(),
            topic: world.name.topic(),
            offset: 1,
            key: "id-1".into(),
            ..v1::Token::default()
        }],
    }];
    let shown = world.shard().search_shards(shown).await.unwrap();
    let shown = shown.into_inner().shards.remove(0);
    assert_eq!(shown.code, 0, "{shown:?}");
    // The follower goes with the role, so another one looks.
    let tasks = Tasks::new(CancellationToken::new());
    let other = ControlLog::spawn(&world.log.cluster(), &tasks, System::shared()).unwrap();
    world.tasks.cancel().cancel();
    world.tasks.finish(DEADLINE).await.unwrap();
    let name = world.name.clone();
    let claim = blocking(move || {
        eventually(DEADLINE, "a claim that is not ready", || {
            let state = other.snapshot();
            let (claim, _) = state.owner(&name, Partition(0))?;
            let is_last = !claim.ready && claim.next_offset == Some(Offset(2));
            is_last.then(|| claim.clone())
        })
    });
    assert_eq!(claim.await.node, "node-1");
    tasks.cancel().cancel();
}

//! How much one connection carries, on the side of the callers and on that of the indexers.

use std::collections::HashSet;

use shoal_query::{Config, admission};

use crate::{
    indexer::Behaviour,
    world::{PATIENCE, World, collection, fill, ids, near_origin, wait, within},
};

const CALLS: u32 = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_holds_a_thousand_calls_on_both_sides() {
    let config = Config {
        admission: admission::Config {
            concurrent: CALLS,
            ..admission::Config::default()
        },
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 3);
    indexers[0].behave(Behaviour::Holds);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        let (mut client, request) = (world.search(), near_origin(&docs, 1));
        calls.spawn(async move { client.search(within(PATIENCE * 2, request)).await });
    }
    // None of them is answered before the last has come through both connections.
    let held = wait(
        || {
            let seen = indexers[0].seen();
            (seen.len() == usize::try_from(CALLS).unwrap()).then_some(seen)
        },
        "the indexer to hold every call",
    );
    let peers: HashSet<_> = held.iter().map(|seen| seen.peer.unwrap()).collect();
    assert_eq!(peers.len(), 1, "the query node asks over one connection");
    indexers[0].let_go();
    for answer in calls.join_all().await {
        assert_eq!(ids(&answer.unwrap().into_inner().hits), ["p0"]);
    }
}

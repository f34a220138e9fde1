//! Shards that move, nodes that vanish, connections that come and go, a control topic that is
//! not there yet.

use shoal_query::Config;
use shoal_schemas::Partition;
use tonic::Code;

use crate::{
    indexer::Behaviour,
    world::{PATIENCE, World, collection, fill, ids, near_origin, put_claim, wait},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_moved_meanwhile_is_asked_for_at_its_new_owner() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 20);
    let taker = world.indexer("taker").await;
    indexers[0]
        .node
        .hand_over(&docs.name, Partition(0), &taker.node);
    // The claim is written while the old owner is being asked: the query node cannot know.
    let (control, definition, by) = (world.control.clone(), docs.clone(), taker.clone());
    indexers[0].before_answer(Box::pin(async move {
        put_claim(&control, &definition, 0, &by, true).await;
    }));
    let answer = world
        .search()
        .search(near_origin(&docs, 20))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.hits.len(), 20);
    let coverage = answer.coverage.unwrap();
    assert_eq!((coverage.shards_asked, coverage.shards_answered), (2, 2));
    assert_eq!(coverage.shards[0].node, "taker");
    assert_eq!((indexers[0].seen().len(), taker.seen().len()), (1, 1));

    // From then on the old owner is left alone.
    world.search().search(near_origin(&docs, 1)).await.unwrap();
    assert_eq!((indexers[0].seen().len(), taker.seen().len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_no_other_node_claims_stays_missing() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 20);
    indexers[0].behave(Behaviour::FailsShards(9));
    let answer = world
        .search()
        .search(near_origin(&docs, 20))
        .await
        .unwrap()
        .into_inner();
    let coverage = answer.coverage.unwrap();
    assert_eq!(coverage.shards_answered, 1);
    assert_eq!(
        indexers[0].seen().len(),
        1,
        "the same node is not asked twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_an_address_where_nobody_is_costs_only_that_shard() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 20);
    let mut ghost = indexers[1].clone();
    // A port that was free a moment ago.
    let free = shoal_runtime::http::bind(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    ghost.address = free.local_addr().unwrap();
    drop(free);
    world.claim(&docs, 1, &ghost, true).await;
    let answer = world
        .search()
        .search(near_origin(&docs, 20))
        .await
        .unwrap()
        .into_inner();
    let coverage = answer.coverage.unwrap();
    assert_eq!(coverage.shards_answered, 1);
    let address = ghost.address.to_string();
    assert!(coverage.shards[1].error.contains(&address), "{coverage:?}");
    // And back again.
    world.claim(&docs, 1, &indexers[1], true).await;
    let answer = world
        .search()
        .search(near_origin(&docs, 20))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.hits.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_once_the_control_topic_is_read() {
    let world = World::start_with(Config::default(), false).await;
    let docs = collection("docs", 1);
    let refused = world
        .search()
        .search(near_origin(&docs, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("control topic"), "{refused}");
    let ready = world.http.get(world.url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("query: "));
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.channel());
    let question = tonic_health::pb::HealthCheckRequest::default();
    let told = health.check(question.clone()).await.unwrap().into_inner();
    assert_eq!(
        told.status(),
        tonic_health::ServingStatus::NotServing.into()
    );

    shoal_topic::control::ControlLog::ensure(&world.log.cluster(), None).unwrap();
    let readiness = world.readiness.clone();
    wait(
        || readiness.waiting().is_empty().then_some(()),
        "the control topic to be read",
    );
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 2);
    let answer = world
        .search()
        .search(near_origin(&docs, 1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&answer.hits), ["p0"]);
    let told = health.check(question).await.unwrap().into_inner();
    assert_eq!(told.status(), tonic_health::ServingStatus::Serving.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_stops_while_callers_stay_connected() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 2);
    let mut client = world.search();
    client.search(near_origin(&docs, 1)).await.unwrap();
    world.http.get(world.url("/healthz")).send().await.unwrap();
    world.tasks.cancel().cancel();
    world.tasks.finish(PATIENCE).await.unwrap();
    let gone = client.search(near_origin(&docs, 1)).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone}");
}

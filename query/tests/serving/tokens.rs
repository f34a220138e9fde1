//! Read your writes: tokens reach the shard that has to honour them, and never get lost.

use std::{sync::Arc, time::Duration};

use shoal_query::{
    Coordinator, QueryError,
    call::Call,
    client::memory::{Node, Nodes},
    coordinator::{HomeCluster, Limits},
    shard_map::{Maps, Replica, ShardMap},
};
use shoal_schemas::{Offset, Partition, Token, Version, control::Claim, route, v1};
use tonic::Code;

use crate::{
    indexer::Behaviour,
    world::{CLUSTER, PATIENCE, World, collection, fill, near_origin, read, within},
};

const SHORT: Duration = Duration::from_secs(1);

fn with(collection: &shoal_schemas::Collection, tokens: &[Token]) -> v1::SearchRequest {
    v1::SearchRequest {
        read: read(tokens, false),
        ..near_origin(collection, 100)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_to_its_shard_and_to_no_other() {
    let world = World::start().await;
    let docs = collection("docs", 3);
    let indexers = world.spread(&docs).await;
    let tokens = fill(&indexers, &docs, 30);
    let token = &tokens[17];
    world
        .search()
        .search(with(&docs, std::slice::from_ref(token)))
        .await
        .unwrap();
    for (shard, indexer) in (0..).zip(&indexers) {
        let asked = &indexer.seen()[0].shards[0];
        let expected = if token.partition == Partition(shard) {
            vec![token.to_proto()]
        } else {
            vec![]
        };
        assert_eq!(asked.at_least, expected, "shard {shard}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_abroad_goes_where_its_key_lives() {
    let world = World::start().await;
    let docs = collection("docs", 3);
    let indexers = world.spread(&docs).await;
    let token = &fill(&indexers, &docs, 30)[4];
    let abroad = Token {
        cluster: "abroad".into(),
        partition: Partition((token.partition.0 + 1) % 3),
        offset: Offset(0),
        ..token.clone()
    };
    world
        .search()
        .search(with(&docs, std::slice::from_ref(&abroad)))
        .await
        .unwrap();
    let lives = route::partition_of(&docs, &abroad.key);
    for (shard, indexer) in (0..).zip(&indexers) {
        let asked = indexer.seen()[0].shards[0].at_least.len();
        assert_eq!(asked == 1, lives == Partition(shard), "shard {shard}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_not_there_in_time_fails_the_call() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    let mut token = fill(&indexers, &docs, 10)[0].clone();
    token.offset = Offset(1_000);
    let tokens = [token.clone()];
    let refused = world
        .search()
        .search(within(SHORT, with(&docs, &tokens)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    assert!(refused.message().contains("offset 1000"), "{refused}");

    // So it is if the whole node hangs, for every verb.
    let owner = usize::try_from(token.partition.0).unwrap();
    indexers[owner].behave(Behaviour::Hangs);
    let refused = world
        .search()
        .search(within(SHORT, with(&docs, &tokens)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    let count = v1::CountRequest {
        collection: "docs".into(),
        read: read(&tokens, false),
        ..v1::CountRequest::default()
    };
    let refused = world
        .search()
        .count(within(SHORT, count))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_shard_is_gone_fails_the_call() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    let token = fill(&indexers, &docs, 10)[0].clone();
    let owner = usize::try_from(token.partition.0).unwrap();
    indexers[owner].behave(Behaviour::Fails(Code::Unavailable));
    let tokens = [token];
    let refused = world
        .search()
        .search(with(&docs, &tokens))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(world.search().search(with(&docs, &[])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_waits_for_a_token_of_a_shard_it_would_not_ask() {
    let world = World::start().await;
    let docs = collection("docs", 3);
    let indexers = world.spread(&docs).await;
    let tokens = fill(&indexers, &docs, 30);
    let wanted = &tokens[0];
    let mut other = tokens
        .iter()
        .find(|token| token.partition != wanted.partition)
        .unwrap()
        .clone();
    let get = |tokens: &[Token]| v1::GetRequest {
        collection: "docs".into(),
        ids: vec![wanted.key.to_string()],
        with_vector: false,
        read: read(tokens, false),
        ..v1::GetRequest::default()
    };
    let answer = world
        .search()
        .get(get(std::slice::from_ref(&other)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (answer.points.len(), answer.coverage.unwrap().shards_asked),
        (1, 2)
    );
    other.offset = Offset(1_000);
    let refused = world
        .search()
        .get(within(SHORT, get(&[other])))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_passed_over_while_the_cluster_is_unknown() {
    let docs = collection("docs", 1);
    let node = Node::new("a");
    node.host(&docs, Partition(0));
    let claim = Claim {
        node: "a".into(),
        address: "a:1".into(),
        ready: true,
        next_offset: None,
        early: false,
    };
    let claims = [(
        docs.name.clone(),
        Partition(0),
        Replica::owner(claim, Offset(0)),
    )];
    let (_keep, maps) = Maps::channel(ShardMap::new([docs.clone()], claims, true));
    let home = HomeCluster::default();
    let client = Arc::new(Nodes::default().with("a:1", node.clone()));
    let coordinator = Coordinator::new(Limits::default(), maps, client, home.clone());
    let (id, point) = (crate::world::id("p"), crate::world::point(&docs, 1.0));
    let (partition, offset) = node.upsert(&docs, &id, &point).unwrap();
    let token = Token {
        cluster: CLUSTER.into(),
        topic: docs.name.topic().into(),
        partition,
        offset,
        key: id,
        version: Version::default(),
        region: None,
    };
    let tokens = [token];
    let hasty = Call::within(Duration::from_millis(20));
    let refused = coordinator.search(with(&docs, &tokens), hasty).await;
    assert!(
        matches!(refused, Err(QueryError::HomeUnknown)),
        "{refused:?}"
    );
    let patient = Call::within(PATIENCE);
    let search = coordinator.search(with(&docs, &tokens), patient);
    let tell = async { home.set(CLUSTER.into()).unwrap() };
    let (answer, ()) = tokio::join!(search, tell);
    assert_eq!(answer.unwrap().hits.len(), 1);
}

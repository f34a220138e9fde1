//! Slow, failing and missing indexers: partial answers, errors where all are wanted, deadlines.

use std::time::Duration;

use shoal_query::Config;
use shoal_schemas::v1;
use tonic::Code;

use crate::{
    indexer::Behaviour,
    world::{World, collection, fill, near_origin, read, timed, within},
};

const SHORT: Duration = Duration::from_secs(1);

fn all(collection: &shoal_schemas::Collection) -> v1::SearchRequest {
    v1::SearchRequest {
        read: read(&[], true),
        ..near_origin(collection, 100)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_or_fails_costs_only_its_own_shards() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 30);
    for behaviour in [
        Behaviour::Hangs,
        Behaviour::Fails(Code::Internal),
        Behaviour::Fails(Code::Unavailable),
        Behaviour::Fails(Code::NotFound),
        Behaviour::FailsShards(13),
        Behaviour::FailsShards(9),
    ] {
        indexers[1].behave(behaviour);
        let request = within(SHORT, near_origin(&docs, 100));
        // The client itself gives up at its deadline, so any answer is one in time.
        let answer = world.search().search(request).await;
        let answer = answer
            .unwrap_or_else(|error| panic!("{behaviour:?}: {error}"))
            .into_inner();
        assert!(
            !answer.hits.is_empty() && answer.hits.len() < 30,
            "{behaviour:?}"
        );
        let coverage = answer.coverage.unwrap();
        assert_eq!(
            (coverage.shards_asked, coverage.shards_answered),
            (2, 1),
            "{behaviour:?}"
        );
        let [answered, missing] = &coverage.shards[..] else {
            panic!("{coverage:?}");
        };
        assert!(answered.answered && answered.error.is_empty());
        assert!(!missing.answered && !missing.error.is_empty());
        assert_eq!((missing.shard, missing.node.as_str()), (1, "node-1"));

        let refused = world
            .search()
            .search(within(SHORT, all(&docs)))
            .await
            .unwrap_err();
        assert_eq!(
            refused.code(),
            Code::Unavailable,
            "{behaviour:?}: {refused}"
        );
        assert!(refused.message().contains("shard 1"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_at_all_is_an_error_that_names_the_shards() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    for indexer in &indexers {
        indexer.behave(Behaviour::Fails(Code::Internal));
    }
    let refused = world
        .search()
        .search(near_origin(&docs, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    for name in ["shard 0", "shard 1", "planted"] {
        assert!(refused.message().contains(name), "{refused}");
    }
    let request = v1::CountRequest {
        collection: "docs".into(),
        read: None,
        ..v1::CountRequest::default()
    };
    let refused = world.search().count(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_nobody_serves_is_named() {
    let world = World::start().await;
    let docs = collection("docs", 3);
    world.define(&docs).await;
    let refused = world
        .search()
        .search(near_origin(&docs, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        refused.message().contains("no indexer has claimed"),
        "{refused}"
    );

    let indexer = world.indexer("a").await;
    for shard in [0, 1] {
        indexer.node.host(&docs, shoal_schemas::Partition(shard));
    }
    world.claim(&docs, 0, &indexer, true).await;
    world.claim(&docs, 1, &indexer, false).await;
    let answer = world
        .search()
        .search(near_origin(&docs, 1))
        .await
        .unwrap()
        .into_inner();
    let coverage = answer.coverage.unwrap();
    assert_eq!((coverage.shards_asked, coverage.shards_answered), (3, 1));
    assert!(
        coverage.shards[1].error.contains("does not serve it now"),
        "{coverage:?}"
    );
    assert!(
        coverage.shards[2].error.contains("no indexer has claimed"),
        "{coverage:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_get_what_is_left_of_the_callers_time() {
    let config = Config {
        default_deadline: Duration::from_secs(7),
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    world.search().search(near_origin(&docs, 1)).await.unwrap();
    let given = Duration::from_secs(3);
    world
        .search()
        .search(within(given, near_origin(&docs, 1)))
        .await
        .unwrap();
    let passed: Vec<Duration> = indexers[0]
        .seen()
        .iter()
        .map(|seen| {
            shoal_query::call::parse_grpc_timeout(seen.grpc_timeout.as_deref().unwrap()).unwrap()
        })
        .collect();
    let [by_default, by_caller] = passed[..] else {
        panic!("{passed:?}");
    };
    assert!(
        by_default > given && by_default < Duration::from_secs(7),
        "{by_default:?}"
    );
    assert!(
        by_caller > Duration::from_secs(2) && by_caller < given,
        "{by_caller:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_deadline_gets_the_default_one() {
    let config = Config {
        default_deadline: SHORT,
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    indexers[0].behave(Behaviour::Hangs);
    let (refused, took) = timed(world.search().search(near_origin(&docs, 1))).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    assert!(took < SHORT * 10, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_to_the_shards_under_a_new_span() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = tonic::Request::new(near_origin(&docs, 1));
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    world.search().search(request).await.unwrap();
    let body = serde_json::json!({ "vector": [0.0, 0.0, 0.0], "k": 1 });
    let sent = world
        .http
        .post(world.url("/v1/collections/docs/search"))
        .header("traceparent", traceparent)
        .json(&body)
        .send();
    assert_eq!(sent.await.unwrap().status(), 200);
    world.search().search(near_origin(&docs, 1)).await.unwrap();
    let seen: Vec<_> = indexers[0]
        .seen()
        .into_iter()
        .map(|seen| seen.traceparent)
        .collect();
    let [Some(grpc), Some(http), None] = &seen[..] else {
        panic!("{seen:?}");
    };
    for passed in [grpc, http] {
        assert!(
            passed.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
            "{passed}"
        );
        assert!(!passed.contains("b7ad6b7169203331"), "{passed}");
    }
    assert_ne!(grpc, http);
}

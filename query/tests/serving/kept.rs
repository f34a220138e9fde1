//! Answers that are kept, and equal calls that are asked once.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytesize::ByteSize;
use futures::{FutureExt as _, future::BoxFuture};
use shoal_query::{
    Config, Coordinator, cache,
    call::Call,
    client::{
        CallError, ShardCall, ShardClient,
        memory::{Node, Nodes},
    },
    coordinator::{HomeCluster, Limits},
    shard_map::{Maps, Replica, ShardMap},
};
use shoal_schemas::{Collection, Offset, Partition, control::Claim, v1};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    edge::{Edge, Region, region_of},
    indexer::{Behaviour, Indexer},
    stream::next,
    world::{World, collection, fill, id, ids, near_origin, point, read, wait},
};

const LONG: Duration = Duration::from_secs(3600);

fn keeping(ttl: Duration) -> Config {
    Config {
        cache: cache::Config {
            memory: ByteSize::mib(8),
            ttl,
            ..cache::Config::default()
        },
        ..Config::default()
    }
}

/// A query node that keeps answers, and one indexer a shard.
async fn world(ttl: Duration, shards: u32) -> (World, Collection, Vec<Indexer>) {
    let world = World::start_with(keeping(ttl), true).await;
    let docs = collection("docs", shards);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 20);
    // Nothing is kept before the cluster's id is known.
    world
        .until("answers to be kept", async || {
            search(&world, near_origin(&docs, 1)).await;
            let before = searched(&indexers);
            search(&world, near_origin(&docs, 1)).await;
            (searched(&indexers) == before).then_some(())
        })
        .await;
    (world, docs, indexers)
}

async fn search(world: &World, request: v1::SearchRequest) -> v1::SearchResponse {
    world.search().search(request).await.unwrap().into_inner()
}

fn searched(indexers: &[Indexer]) -> usize {
    indexers.iter().map(Indexer::searched).sum()
}

fn asked(indexers: &[Indexer]) -> usize {
    indexers.iter().map(|indexer| indexer.seen().len()).sum()
}

/// Puts a point where nothing is nearer to the origin, and says who has it.
fn put_nearest(indexers: &[Indexer], docs: &Collection, name: &str) -> usize {
    let nearest = point(docs, 0.1);
    let put = |one: &Indexer| one.node.upsert(docs, &id(name), &nearest).is_some();
    indexers.iter().position(put).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_answer_is_given_while_shards_say_that_it_holds_and_a_write_ends_that() {
    let (world, docs, indexers) = world(Duration::ZERO, 2).await;
    let first = search(&world, near_origin(&docs, 3)).await;
    let (before, calls) = (searched(&indexers), asked(&indexers));
    let again = search(&world, near_origin(&docs, 3)).await;
    assert_eq!(again.hits, first.hits);
    assert_eq!(again.coverage.as_ref().unwrap().age_ms, None);
    assert_eq!(searched(&indexers), before, "no shard searches");
    assert_eq!(asked(&indexers), calls + 2, "each is asked");

    let writer = put_nearest(&indexers, &docs, "new");
    let changed = search(&world, near_origin(&docs, 3)).await;
    assert_eq!(ids(&changed.hits)[0], "new");
    assert_eq!(searched(&indexers), before + 1, "only the one that changed");
    let of_writer = indexers[writer].searched();
    search(&world, near_origin(&docs, 3)).await;
    assert_eq!(indexers[writer].searched(), of_writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_question_gets_no_answer_that_was_kept_for_one() {
    let (world, docs, indexers) = world(LONG, 1).await;
    let ask = |change: fn(&mut v1::SearchRequest)| {
        let mut request = near_origin(&docs, 3);
        change(&mut request);
        request
    };
    let questions: [fn(&mut v1::SearchRequest); 6] = [
        |_| (),
        |one| one.k = 4,
        |one| one.vector[0] = 0.2,
        |one| one.with_payload = true,
        // Together with k not what another one wants.
        |one| one.offset = 3,
        |one| one.max_distance = Some(1.0),
    ];
    for question in questions {
        let before = searched(&indexers);
        let first = search(&world, ask(question)).await;
        assert_eq!(searched(&indexers), before + 1);
        assert_eq!(search(&world, ask(question)).await.hits, first.hits);
        assert_eq!(searched(&indexers), before + 1);
    }
    // What is explained was done just now.
    for _ in 0..2 {
        let before = searched(&indexers);
        let told = search(&world, ask(|one| one.explain = true)).await;
        assert_eq!((told.explain.len(), searched(&indexers)), (1, before + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_bounds_hold_with_kept_answers_as_without() {
    for ttl in [Duration::ZERO, LONG] {
        let (world, docs, indexers) = world(ttl, 2).await;
        search(&world, near_origin(&docs, 3)).await;
        let tokens = fill(&indexers, &docs, 1);
        put_nearest(&indexers, &docs, "new");
        let with_token = v1::SearchRequest {
            read: read(&tokens, false),
            ..near_origin(&docs, 3)
        };
        let shown = search(&world, with_token.clone()).await;
        assert_eq!(ids(&shown.hits)[0], "new", "ttl {ttl:?}");
        // One that is not applied yet fails the call, whatever is kept.
        let mut unborn = with_token;
        for token in unborn.read.iter_mut().flat_map(|read| &mut read.at_least) {
            token.offset += 1000;
        }
        let late = world.search().search(unborn).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        for indexer in &indexers {
            indexer.behave(Behaviour::Behind(60));
        }
        let bounded = v1::SearchRequest {
            read: Some(v1::ReadOptions {
                require_all: true,
                max_staleness_ms: Some(1),
                ..v1::ReadOptions::default()
            }),
            ..near_origin(&docs, 3)
        };
        let behind = loop {
            match world.search().search(bounded.clone()).await {
                // What was kept a moment ago, when nothing was behind.
                Ok(answer) => {
                    let coverage = answer.into_inner().coverage.unwrap();
                    assert!(coverage.age_ms.is_some_and(|age_ms| age_ms <= 1));
                }
                Err(refused) => break refused,
            }
        };
        assert_eq!(behind.code(), tonic::Code::Unavailable);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn within_its_time_a_kept_answer_is_given_without_asking_and_says_its_age() {
    let (world, docs, indexers) = world(LONG, 2).await;
    let first = search(&world, near_origin(&docs, 3)).await;
    let calls = asked(&indexers);
    put_nearest(&indexers, &docs, "new");
    let kept = search(&world, near_origin(&docs, 3)).await;
    assert_eq!(kept.hits, first.hits);
    let coverage = kept.coverage.unwrap();
    assert!(coverage.age_ms.is_some());
    assert_eq!((coverage.shards_asked, coverage.shards_answered), (2, 2));
    let batch = v1::SearchBatchRequest {
        collection: "docs".into(),
        queries: vec![v1::Query {
            vector: vec![0.1, 0.0, 0.0],
            k: 3,
            ..v1::Query::default()
        }],
        read: None,
    };
    let batched = world
        .search()
        .search_batch(batch)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        batched.results[0].hits, first.hits,
        "one query is one question"
    );
    assert_eq!(asked(&indexers), calls);
    // Over HTTP the age is told as well.
    let answer = world
        .http
        .post(world.url("/v1/collections/docs/search"))
        .json(&serde_json::json!({"vector": [0.1, 0.0, 0.0], "k": 3}))
        .send()
        .await
        .unwrap();
    let told: serde_json::Value = answer.json().await.unwrap();
    assert!(told["coverage"]["age_ms"].is_u64(), "{told}");
    assert_eq!(asked(&indexers), calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_answer_is_not_given_again_without_asking() {
    let (world, docs, indexers) = world(LONG, 2).await;
    indexers[1].behave(Behaviour::FailsShards(13));
    let request = near_origin(&docs, 7);
    let partial = search(&world, request.clone()).await.coverage.unwrap();
    assert_eq!((partial.shards_asked, partial.shards_answered), (2, 1));
    indexers[1].behave(Behaviour::Answers);
    let whole = search(&world, request).await.coverage.unwrap();
    assert_eq!((whole.shards_answered, whole.age_ms), (2, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_kept_with_their_second_questions() {
    let (world, docs, indexers) = world(Duration::ZERO, 2).await;
    let mut grouped = docs.clone();
    grouped.name = "grouped".parse().unwrap();
    grouped.fields = [("at".to_owned(), shoal_schemas::FieldKind::Float)].into();
    world.define(&grouped).await;
    for (shard, indexer) in (0..).zip(&indexers) {
        indexer.node.host(&grouped, Partition(shard));
        world.claim(&grouped, shard, indexer, true).await;
    }
    fill(&indexers, &grouped, 12);
    let request = v1::SearchRequest {
        group_by: Some(v1::GroupBy {
            field: "at".into(),
            group_size: 2,
        }),
        ..near_origin(&grouped, 3)
    };
    let first = search(&world, request.clone()).await;
    assert_eq!(first.groups.len(), 3);
    let before = searched(&indexers);
    assert_eq!(search(&world, request).await.groups, first.groups);
    assert_eq!(searched(&indexers), before);
}

/// Indexers in memory behind a gate.
struct Gated {
    nodes: Nodes,
    gate: Semaphore,
    asked: AtomicUsize,
}

macro_rules! gated {
    ($method:ident, $request:ident, $response:ident) => {
        fn $method<'a>(
            &'a self,
            address: &'a str,
            request: v1::$request,
            call: ShardCall,
        ) -> BoxFuture<'a, Result<v1::$response, CallError>> {
            Box::pin(async move {
                self.asked.fetch_add(1, Ordering::SeqCst);
                self.gate.acquire().await.unwrap().forget();
                self.nodes.$method(address, request, call).await
            })
        }
    };
}

impl ShardClient for Gated {
    gated!(search_shards, SearchShardsRequest, SearchShardsResponse);
    gated!(get_points, GetPointsRequest, GetPointsResponse);
    gated!(shard_status, ShardStatusRequest, ShardStatusResponse);
    gated!(count_points, CountPointsRequest, CountPointsResponse);
    gated!(shard_scroll, ShardScrollRequest, ShardScrollResponse);

    fn retain(&self, _addresses: &BTreeSet<String>) {}
}

#[tokio::test]
async fn equal_searches_under_way_are_asked_once_and_one_that_leaves_takes_no_other_along() {
    let docs = collection("docs", 1);
    let node = Node::new("a");
    node.host(&docs, Partition(0));
    node.upsert(&docs, &id("p"), &point(&docs, 1.0));
    let gated = Arc::new(Gated {
        nodes: Nodes::default().with("a", node),
        gate: Semaphore::new(0),
        asked: AtomicUsize::new(0),
    });
    let claim = Claim {
        node: "a".into(),
        address: "a".into(),
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
    let node = Coordinator::new(Limits::default(), maps, gated.clone(), home);
    let call = || Call::within(Duration::from_secs(60));
    let other = v1::SearchRequest {
        read: Some(v1::ReadOptions {
            require_all: true,
            ..v1::ReadOptions::default()
        }),
        ..near_origin(&docs, 2)
    };
    let mut context = Context::from_waker(Waker::noop());
    let asked = || gated.asked.load(Ordering::SeqCst);

    let mut second = pin!(node.search(near_origin(&docs, 2), call()));
    let mut third = pin!(node.search(near_origin(&docs, 2), call()));
    let mut different = pin!(node.search(other, call()));
    {
        let mut first = pin!(node.search(near_origin(&docs, 2), call()));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(third.as_mut().poll(&mut context).is_pending());
        assert_eq!(asked(), 1);
        assert!(different.as_mut().poll(&mut context).is_pending());
        assert_eq!(
            asked(),
            2,
            "what the caller insists on is part of the question"
        );
    }
    // The first has left; one of the others takes its place.
    assert!(third.as_mut().poll(&mut context).is_pending());
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert_eq!(asked(), 3);
    gated.gate.add_permits(3);
    for waiting in [third.as_mut(), second.as_mut()] {
        let found = waiting.await.unwrap();
        assert_eq!(ids(&found.hits), ["p"]);
    }
    assert!(matches!(
        different.as_mut().poll(&mut context),
        Poll::Ready(Ok(_))
    ));
    assert_eq!(asked(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_searches_under_way_at_an_edge_node_are_asked_of_the_region_once() {
    let docs = collection("docs", 1);
    let only = Region::start(&docs).await;
    let edge = Edge::over(&[only.named("only")]).await;
    let (release, released) = oneshot::channel::<()>();
    only.indexers[0].before_answer(released.map(drop).boxed());
    // Those of one stream are begun in the order in which they are sent.
    let (send, requests) = mpsc::channel(8);
    let requests = ReceiverStream::new(requests);
    let opened = edge.search().search_stream(requests).await;
    let mut answers = opened.unwrap().into_inner();
    let ask = |request_id: u64, k: u32| v1::SearchStreamRequest {
        request_id,
        call: Some(v1::search_stream_request::Call::Search(near_origin(
            &docs, k,
        ))),
        timeout_ms: 60_000,
    };
    for request_id in 1..=3 {
        send.send(ask(request_id, 3)).await.unwrap();
    }
    wait(
        || (only.asked() == 1).then_some(()),
        "the region to be asked",
    );
    // Once another one that was sent behind them is answered, all of them are under way.
    send.send(ask(9, 2)).await.unwrap();
    assert_eq!(next(&mut answers).await.0, 9);
    assert_eq!(only.asked(), 2);
    release.send(()).unwrap();
    let mut answered = Vec::new();
    for _ in 0..3 {
        let (request_id, outcome) = next(&mut answers).await;
        let v1::search_stream_response::Outcome::Response(found) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(ids(&found.hits), ["p0", "p1", "p2"]);
        assert_eq!(region_of(&found.coverage), "only");
        answered.push(request_id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3]);
    assert_eq!(only.asked(), 2, "one call for all three");
}

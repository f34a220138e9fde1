//! Several replicas of a shard: slow, dead, refusing and stale ones.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::FutureExt as _;
use shoal_query::{Config, admission, hedge};
use shoal_schemas::{Collection, v1};
use tokio::sync::{mpsc, oneshot};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    indexer::{Behaviour, Indexer},
    world::{PATIENCE, World, collection, fill, metrics, near_origin, timed, wait, within},
};

const POINTS: u16 = 20;
/// Longer than anything here takes that works.
const LONG: Duration = Duration::from_secs(20);

/// A query node that hedges soon, and two replicas of a collection that hold the same points.
async fn twins(partitions: u32, config: Config) -> (World, Collection, [Indexer; 2]) {
    let world = World::start_with(config, true).await;
    let docs = collection("docs", partitions);
    let twins = twins_of(&world, &docs).await;
    (world, docs, twins)
}

async fn twins_of(world: &World, docs: &Collection) -> [Indexer; 2] {
    world.define(docs).await;
    let owner = world.replica(docs, None).await;
    let other = world.replica(docs, Some("b")).await;
    for one in [&owner, &other] {
        fill(std::slice::from_ref(one), docs, POINTS);
    }
    [owner, other]
}

fn hedging_soon() -> Config {
    Config {
        hedge: hedge::Config {
            max_delay: Duration::from_millis(20),
            ..hedge::Config::default()
        },
        ..Config::default()
    }
}

fn without_hedges() -> Config {
    Config {
        hedge: hedge::Config {
            enabled: false,
            ..hedge::Config::default()
        },
        ..Config::default()
    }
}

fn everything(docs: &Collection, max_staleness_ms: Option<u64>) -> v1::SearchRequest {
    v1::SearchRequest {
        read: Some(v1::ReadOptions {
            require_all: true,
            max_staleness_ms,
            ..v1::ReadOptions::default()
        }),
        ..near_origin(docs, u32::from(POINTS))
    }
}

/// Asks for everything, which has to be answered.
async fn whole(world: &World, docs: &Collection) -> v1::Coverage {
    let request = within(LONG, everything(docs, None));
    let answer = world.search().search(request).await.unwrap().into_inner();
    assert_eq!(answer.hits.len(), usize::from(POINTS));
    answer.coverage.unwrap()
}

/// Asks again and again until a replica was asked; all of it has to be answered.
async fn until_asked(world: &World, docs: &Collection, indexer: &Indexer) {
    let before = indexer.seen().len();
    world
        .until("the replica to be asked", async || {
            whole(world, docs).await;
            (indexer.seen().len() > before).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_one_call_to_one_of_the_replicas_and_both_get_their_part() {
    let (world, docs, [owner, other]) = twins(4, Config::default()).await;
    for n in 1..=50 {
        let coverage = whole(&world, &docs).await;
        let nodes: Vec<_> = coverage.shards.iter().map(|shard| &shard.node).collect();
        assert!(nodes.iter().all(|node| *node == nodes[0]), "{nodes:?}");
        // A hedge may come on top where the machine stalls.
        assert!(owner.seen().len() + other.seen().len() >= n);
    }
    until_asked(&world, &docs, &owner).await;
    until_asked(&world, &docs, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hangs_is_hedged_found_out_left_alone_and_taken_up_again() {
    let (world, docs, [owner, other]) = twins(2, hedging_soon()).await;
    whole(&world, &docs).await;
    owner.behave(Behaviour::Hangs);
    let before = owner.seen().len();
    let ((), took) = timed(async {
        until_asked(&world, &docs, &owner).await;
        for _ in 0..300 {
            let coverage = whole(&world, &docs).await;
            assert!(coverage.shards.iter().all(|shard| shard.node == other.name));
        }
    })
    .await;
    let asked = owner.seen().len() - before;
    // Three times until it is found out, then now and then.
    let tries = usize::try_from(took.as_millis() / 500).unwrap();
    assert!((1..=3 + 1 + tries).contains(&asked), "{asked} in {took:?}");
    owner.behave(Behaviour::Answers);
    world
        .until("it to answer again", async || {
            let coverage = whole(&world, &docs).await;
            (coverage.shards[0].node == owner.name).then_some(())
        })
        .await;
}

/// Hedges that answered first, of all query nodes of this process.
fn hedges_won() -> u64 {
    let text = metrics().render();
    let name = "query_hedges_total{outcome=\"won\"} ";
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    found.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hedge_that_answers_first_ends_the_call_that_it_overtakes_at_its_server() {
    let (world, docs, replicas) = twins(1, hedging_soon()).await;
    let before = hedges_won();
    // Where the machine stalls, the hedge may come first and be the one that is held: then once more.
    world
        .until("a hedge to answer first", async || {
            let held_at = Arc::new(OnceLock::new());
            // Dropped with the call it is part of, as the server gives up what nobody awaits.
            let (held, mut given_up) = mpsc::channel::<()>(1);
            for one in &replicas {
                let (held, held_at, name) = (held.clone(), held_at.clone(), one.name.clone());
                let doing = async move {
                    let _held = held;
                    // Whoever is asked first never answers, the other one at once.
                    if held_at.set(name).is_ok() {
                        std::future::pending::<()>().await;
                    }
                };
                one.before_answer(doing.boxed());
            }
            drop(held);
            let mut search = world.search();
            // Longer than is waited for here, so that no call ends by itself.
            let request = within(PATIENCE * 4, everything(&docs, None));
            let answer = tokio::time::timeout(PATIENCE, search.search(request)).await;
            let answer = answer.expect("an answer in time").unwrap().into_inner();
            assert_eq!(answer.hits.len(), usize::from(POINTS));
            let shards = answer.coverage.unwrap().shards;
            let overtaken = held_at.get().expect("one is held");
            assert_ne!(shards[0].node, *overtaken);
            let closed = tokio::time::timeout(PATIENCE, given_up.recv()).await;
            assert_eq!(closed, Ok(None), "the call to `{overtaken}` is ended");
            (hedges_won() > before).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_not_hedged_with_a_copy_that_has_not_caught_up() {
    let (world, docs, [owner, early]) = twins(1, hedging_soon()).await;
    world.claim_early(&docs, 0, Some("b"), &early).await;
    let (go_on, held) = oneshot::channel::<()>();
    owner.before_answer(held.map(drop).boxed());
    let (mut search, request) = (world.search(), within(LONG, everything(&docs, None)));
    let meanwhile = async {
        let asked = async || (!owner.seen().is_empty()).then_some(());
        world.until("the owner to be asked", asked).await;
        // Of others that have caught up, asked later, one is hedged.
        let like = collection("like", 1);
        let others = twins_of(&world, &like).await;
        let is_first = Arc::new(OnceLock::new());
        for one in &others {
            let is_first = is_first.clone();
            let doing = async move {
                if is_first.set(()).is_ok() {
                    std::future::pending::<()>().await;
                }
            };
            one.before_answer(doing.boxed());
        }
        whole(&world, &like).await;
        assert!(early.seen().is_empty(), "{} calls", early.seen().len());
        go_on.send(()).unwrap();
    };
    let (answer, ()) = tokio::join!(search.search(request), meanwhile);
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.coverage.unwrap().shards[0].node, owner.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hangs_costs_half_of_the_time_where_hedging_is_off() {
    let (world, docs, [owner, other]) = twins(1, without_hedges()).await;
    other.behave(Behaviour::Hangs);
    let deadline = Duration::from_secs(2);
    let before = owner.seen().len() + other.seen().len();
    // Whoever is asked first, the other one answers.
    world
        .until("the one that hangs to be asked", async || {
            let request = within(deadline, everything(&docs, None));
            let answer = world.search().search(request).await.unwrap().into_inner();
            assert_eq!(answer.coverage.unwrap().shards[0].node, owner.name);
            (!other.seen().is_empty()).then_some(())
        })
        .await;
    assert!(owner.seen().len() + other.seen().len() > before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_replica_that_is_found_out_meanwhile_go_to_the_other_one_at_once() {
    let (world, docs, [owner, other]) = twins(1, without_hedges()).await;
    other.behave(Behaviour::Hangs);
    // By themselves they would wait for half of this.
    let deadline = PATIENCE * 4;
    let mut calls = tokio::task::JoinSet::new();
    let asked = || owner.seen().len() + other.seen().len();
    while other.seen().is_empty() {
        let before = asked();
        let (mut client, request) = (world.search(), everything(&docs, None));
        calls.spawn(async move { client.search(within(deadline, request)).await });
        wait(
            || (asked() > before).then_some(()),
            "the call to reach a replica",
        );
    }
    other.behave(Behaviour::Fails(Code::Unavailable));
    until_asked(&world, &docs, &other).await;
    let all = tokio::time::timeout(PATIENCE, calls.join_all());
    for answer in all.await.unwrap() {
        let coverage = answer.unwrap().into_inner().coverage.unwrap();
        assert_eq!(coverage.shards[0].node, owner.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_cannot_do_now_is_asked_of_the_other_one() {
    for behaviour in [
        Behaviour::Fails(Code::Unavailable),
        Behaviour::Fails(Code::NotFound),
        Behaviour::Fails(Code::ResourceExhausted),
        Behaviour::FailsShards(Code::FailedPrecondition.into()),
        Behaviour::FailsShards(Code::Unavailable.into()),
        Behaviour::FailsShards(Code::DataLoss.into()),
    ] {
        let (world, docs, [owner, other]) = twins(2, without_hedges()).await;
        other.behave(behaviour);
        until_asked(&world, &docs, &other).await;
        let coverage = whole(&world, &docs).await;
        assert!(
            coverage.shards.iter().all(|shard| shard.node == owner.name),
            "{behaviour:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_dead_fails_no_search() {
    let (world, docs, [owner, other]) = twins(2, without_hedges()).await;
    let mut ghost = other.clone();
    // A port that was free a moment ago.
    let free = shoal_runtime::http::bind(([127, 0, 0, 1], 0).into());
    ghost.address = free.await.unwrap().local_addr().unwrap();
    for shard in 0..2 {
        world.claim_in(&docs, shard, Some("b"), &ghost).await;
    }
    for _ in 0..50 {
        let coverage = whole(&world, &docs).await;
        assert!(coverage.shards.iter().all(|shard| shard.node == owner.name));
    }
    assert!(other.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_is_refused_or_fails_by_itself_is_asked_nobody_else() {
    let (world, docs, twins) = twins(1, without_hedges()).await;
    for (shard, told) in [
        (Code::InvalidArgument, Code::InvalidArgument),
        (Code::Unimplemented, Code::Unimplemented),
        (Code::Internal, Code::Unavailable),
    ] {
        let before: usize = twins.iter().map(|one| one.seen().len()).sum();
        for one in &twins {
            one.behave(Behaviour::FailsShards(shard.into()));
        }
        let refused = world.search().search(near_origin(&docs, 1)).await;
        assert_eq!(refused.unwrap_err().code(), told);
        let after: usize = twins.iter().map(|one| one.seen().len()).sum();
        assert_eq!(after, before + 1, "{shard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_on_staleness_is_kept_by_a_replica_or_the_answer_says_so() {
    let (world, docs, [owner, other]) = twins(2, Config::default()).await;
    owner.behave(Behaviour::Behind(9));
    for _ in 0..20 {
        let request = everything(&docs, Some(5000));
        let answer = world.search().search(request).await.unwrap().into_inner();
        assert_eq!(answer.hits.len(), usize::from(POINTS));
        let shards = answer.coverage.unwrap().shards;
        assert!(shards.iter().all(|shard| shard.node == other.name));
    }
    // It serves whoever accepts that much, or names no bound.
    world
        .until("the one behind to answer", async || {
            let request = everything(&docs, Some(10_000));
            let answer = world.search().search(request).await.unwrap().into_inner();
            let coverage = answer.coverage.unwrap();
            (coverage.shards[0].lag_seconds > 8.0).then_some(())
        })
        .await;
    other.behave(Behaviour::Behind(7));
    let refused = world.search().search(everything(&docs, Some(5000))).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(
        refused
            .message()
            .contains("s behind, the caller accepts 5.000 s"),
        "{refused}"
    );
    let zero = world.search().search(everything(&docs, Some(0))).await;
    let zero = zero.unwrap_err();
    assert_eq!(zero.code(), Code::InvalidArgument);
    assert!(zero.message().contains("max_staleness_ms is 0"), "{zero}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_a_fresh_replica_is_missing_from_a_partial_answer_over_http_too() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, POINTS);
    indexers[1].behave(Behaviour::Behind(9));
    let body = serde_json::json!({
        "vector": [0.1, 0.0, 0.0], "k": POINTS, "max_staleness_ms": 5000
    });
    let url = world.url("/v1/collections/docs/search");
    let answer = world.http.post(&url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer: serde_json::Value = answer.json().await.unwrap();
    let coverage = &answer["coverage"];
    assert_eq!(coverage["shards_answered"], 1);
    let why = coverage["shards"][1]["error"].as_str().unwrap();
    assert!(why.contains("node `node-1` is 9.000 s behind"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_what_a_node_takes_are_refused_with_a_time_to_wait() {
    let config = Config {
        admission: admission::Config {
            concurrent: 2,
            queue: 1,
        },
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, POINTS);
    indexers[0].behave(Behaviour::Hangs);
    let stuck = || {
        let (mut client, docs) = (world.search(), docs.clone());
        async move {
            let request = within(PATIENCE * 2, near_origin(&docs, 1));
            client
                .search(request)
                .await
                .map(tonic::Response::into_inner)
        }
    };
    let (first, second) = (stuck(), stuck());
    let held = world.tasks.clone();
    for one in [first, second] {
        held.spawn("stuck", async move {
            drop(one.await);
            Ok::<_, std::convert::Infallible>(())
        });
    }
    wait(
        || (indexers[0].seen().len() == 2).then_some(()),
        "both calls to hang",
    );
    indexers[0].behave(Behaviour::Answers);
    // One waits for its turn until its time is over; while it does, the next is refused.
    let waiting = {
        let (mut client, docs) = (world.search(), docs.clone());
        async move {
            // One that is asked about below may have come before it; then it is refused, and tries again.
            loop {
                let request = within(PATIENCE * 2, near_origin(&docs, 1));
                let answer = client.search(request).await;
                if !answer.is_err_and(|status| status.code() == Code::ResourceExhausted) {
                    break;
                }
            }
        }
    };
    held.spawn("waiting", async move {
        waiting.await;
        Ok::<_, std::convert::Infallible>(())
    });
    let refused = world
        .until("a call to be refused", async || {
            let request = within(Duration::from_millis(200), near_origin(&docs, 1));
            let refused = world.search().search(request).await.unwrap_err();
            (refused.code() == Code::ResourceExhausted).then_some(refused)
        })
        .await;
    let retry = refused.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.unwrap() >= Duration::from_millis(10));
    assert!(
        refused.message().contains("and 1 wait already"),
        "{refused}"
    );
    let body = serde_json::json!({ "vector": [0.1, 0.0, 0.0], "k": 1 });
    let url = world.url("/v1/collections/docs/search");
    let answer = world.http.post(&url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 429);
    let after: u64 = answer.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(after >= 1);
    let told: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(told["error"]["code"], "RESOURCE_EXHAUSTED");
    // Nor are recommendations and questions for all shards taken.
    let recommend = v1::RecommendRequest {
        collection: "docs".into(),
        positive: vec!["p1".into()],
        query: Some(v1::Query {
            k: 1,
            ..v1::Query::default()
        }),
        ..v1::RecommendRequest::default()
    };
    let refused = world.search().recommend(recommend).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let shards = v1::ShardsRequest {
        collection: "docs".into(),
    };
    let refused = world.search().shards(shards).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // Definitions are no searches.
    let found = world.http.get(world.url("/v1/collections/docs")).send();
    assert_eq!(found.await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_replicas_are_all_busy_is_a_reason_to_wait_and_no_failure() {
    let (world, docs, [owner, other]) = twins(1, Config::default()).await;
    for one in [&owner, &other] {
        one.behave(Behaviour::FailsShards(Code::ResourceExhausted.into()));
    }
    let request = within(LONG, near_origin(&docs, 1));
    let refused = world.search().search(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let retry = refused.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.is_some(), "{refused}");
    let body = serde_json::json!({ "vector": [0.1, 0.0, 0.0], "k": 1 });
    let url = world.url("/v1/collections/docs/search");
    let answer = world.http.post(&url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 429);
    assert!(answer.headers().contains_key("retry-after"));
}

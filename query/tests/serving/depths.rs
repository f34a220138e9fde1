//! Many shards: each is asked for about its share, and once more where that was not enough.

use std::time::Duration;

use shoal_schemas::{Collection, FieldKind, Metric, Point, Vector, route, v1};
use tonic::Code;

use crate::{
    indexer::{Behaviour, Indexer},
    world::{World, collection, fill, id, ids, near_origin, read, within},
};

const SHARDS: u32 = 8;
const K: u32 = 10;

/// Points of shard 0 at 0, 1, ..., and those of all others farther away.
async fn crowded(world: &World, near: u16) -> (Collection, Vec<Indexer>) {
    let docs = collection("docs", SHARDS);
    let indexers = world.spread(&docs).await;
    let (mut here, mut elsewhere) = (0_u16, 0_u16);
    for n in 0..400_u16 {
        let id = id(&format!("p{n}"));
        let is_here = route::partition_of(&docs, &id).0 == 0;
        if is_here && here == near {
            continue;
        }
        let at = match is_here {
            true => f32::from(here),
            false => f32::from(elsewhere) + 1000.0,
        };
        here += u16::from(is_here);
        elsewhere += u16::from(!is_here);
        let point = Point {
            vector: Vector::new(&[at, 0.0, 0.0], docs.dim, Metric::L2).unwrap(),
            payload: shoal_schemas::Payload::default(),
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
        };
        let held = indexers
            .iter()
            .find_map(|indexer| indexer.node.upsert(&docs, &id, &point));
        assert!(held.is_some());
    }
    assert_eq!(here, near);
    (docs, indexers)
}

fn distances(hits: &[v1::Hit]) -> Vec<f32> {
    hits.iter().map(|hit| hit.distance.sqrt().round()).collect()
}

fn calls(indexers: &[Indexer]) -> Vec<usize> {
    indexers.iter().map(|one| one.seen().len()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_holds_more_of_the_nearest_than_its_share_is_asked_again() {
    let world = World::start().await;
    let (docs, indexers) = crowded(&world, 20).await;
    let request = v1::SearchRequest {
        vector: vec![0.0, 0.0, 0.0],
        explain: true,
        read: read(&[], true),
        ..near_origin(&docs, K)
    };
    let answer = world.search().search(request.clone()).await.unwrap();
    let answer = answer.into_inner();
    let expected: Vec<f32> = (0..10).map(|at: u8| f32::from(at)).collect();
    assert_eq!(distances(&answer.hits), expected);
    assert_eq!(calls(&indexers), [2, 1, 1, 1, 1, 1, 1, 1]);
    let explained: Vec<u32> = answer.explain.iter().map(|one| one.shard).collect();
    assert_eq!(explained, (0..SHARDS).collect::<Vec<_>>(), "each once");
    // Pages go on where the first one ends.
    let after = v1::SearchRequest {
        offset: K,
        ..request
    };
    let answer = world.search().search(after).await.unwrap().into_inner();
    let expected: Vec<f32> = (10..20).map(|at: u8| f32::from(at)).collect();
    assert_eq!(distances(&answer.hits), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_has_named_all_it_has_is_not_asked_again() {
    let world = World::start().await;
    let (docs, indexers) = crowded(&world, 3).await;
    let request = v1::SearchRequest {
        vector: vec![0.0, 0.0, 0.0],
        ..near_origin(&docs, K)
    };
    let answer = world.search().search(request).await.unwrap().into_inner();
    assert_eq!(distances(&answer.hits)[..3], [0.0, 1.0, 2.0]);
    assert_eq!(answer.hits.len(), 10);
    assert_eq!(calls(&indexers), [1; 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_does_not_answer_again_counts_as_missing() {
    let world = World::start().await;
    let (docs, indexers) = crowded(&world, 20).await;
    // It answers the first time it is asked, and not the second.
    let crowded = indexers[0].clone();
    let fail_later = || {
        crowded.behave(Behaviour::Answers);
        let later = crowded.clone();
        crowded.before_answer(Box::pin(async move {
            later.behave(Behaviour::FailsShards(Code::Internal.into()));
        }));
    };
    fail_later();
    let request = |require_all| v1::SearchRequest {
        vector: vec![0.0, 0.0, 0.0],
        read: read(&[], require_all),
        ..near_origin(&docs, K)
    };
    let answer = world.search().search(request(false)).await.unwrap();
    let answer = answer.into_inner();
    let coverage = answer.coverage.unwrap();
    assert_eq!((coverage.shards_asked, coverage.shards_answered), (8, 7));
    assert!(!coverage.shards[0].answered);
    assert_eq!(answer.hits.len(), 10);
    assert!(ids(&answer.hits).iter().all(|id| id.starts_with('p')));
    fail_later();
    let refused = world.search().search(request(true)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(crowded.seen().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_answered_in_part_where_a_shard_has_taken_all_the_time() {
    let world = World::start().await;
    let mut docs = collection("docs", 3);
    docs.fields = [("at".to_owned(), FieldKind::Float)].into();
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 30);
    indexers[2].behave(Behaviour::Hangs);
    let request = v1::SearchRequest {
        group_by: Some(v1::GroupBy {
            field: "at".into(),
            group_size: 2,
        }),
        ..near_origin(&docs, 3)
    };
    let partly = within(Duration::from_secs(2), request.clone());
    let found = world.search().search(partly).await.unwrap().into_inner();
    assert_eq!(found.groups.len(), 3);
    let coverage = found.coverage.unwrap();
    assert_eq!(coverage.shards_asked, 3);
    let missing = coverage.shards.iter().filter(|shard| !shard.answered);
    assert!(missing.clone().count() > 0);
    assert!(missing.into_iter().all(|shard| !shard.error.is_empty()));

    // Who wants all is told that it is not.
    let all = v1::SearchRequest {
        read: read(&[], true),
        ..request
    };
    let all = within(Duration::from_secs(2), all);
    let refused = world.search().search(all).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

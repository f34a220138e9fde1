//! What an edge node makes of a region that is there and answers with an error: another one is asked
//! where that one cannot answer now, and nobody else where the call itself is refused.

use std::time::Duration;

use shoal_schemas::Collection;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    edge::{Edge, Region, region_of},
    indexer::Behaviour,
    world::{collection, near_origin, within},
};

/// Longer than anything here takes that works.
const LONG: Duration = Duration::from_secs(20);

/// Asks for the three nearest, which have to be answered, and says by which region.
async fn whole(edge: &Edge, docs: &Collection) -> String {
    let request = within(LONG, near_origin(docs, 3));
    let found = edge.search().search(request).await.unwrap().into_inner();
    assert_eq!(found.hits.len(), 3);
    region_of(&found.coverage).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_says_that_it_cannot_answer_now_is_passed_over() {
    let docs = collection("docs", 1);
    let (one, other) = (Region::start(&docs).await, Region::start(&docs).await);
    let edge = Edge::over(&[one.named("one"), other.named("other")]).await;
    for code in [Code::Unavailable, Code::ResourceExhausted] {
        // Which one is nearer may change just then, and then it is not asked at all: once more.
        one.world
            .until("the region that fails to be asked", async || {
                let nearest = whole(&edge, &docs).await;
                let near = match nearest.as_str() {
                    "one" => &one,
                    _ => &other,
                };
                near.indexers[0].behave(Behaviour::Fails(code));
                let direct = near.world.search().search(near_origin(&docs, 3)).await;
                assert_eq!(direct.unwrap_err().code(), code);
                let before = near.asked();
                assert_ne!(whole(&edge, &docs).await, nearest, "{code:?}");
                let was_asked = near.asked() > before;
                near.indexers[0].behave(Behaviour::Answers);
                was_asked.then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_region_refuses_for_good_is_asked_of_no_other() {
    let docs = collection("docs", 1);
    let (one, other) = (Region::start(&docs).await, Region::start(&docs).await);
    let edge = Edge::over(&[one.named("one"), other.named("other")]).await;
    for code in [Code::InvalidArgument, Code::Unimplemented] {
        for region in [&one, &other] {
            region.indexers[0].behave(Behaviour::FailsShards(code.into()));
        }
        let before = one.asked() + other.asked();
        let request = within(LONG, near_origin(&docs, 3));
        let refused = edge.search().search(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains("planted"), "{refused}");
        assert_eq!(one.asked() + other.asked(), before + 1, "{code:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_region_is_busy_each_is_asked_and_the_caller_is_told_to_wait() {
    let docs = collection("docs", 1);
    let (one, other) = (Region::start(&docs).await, Region::start(&docs).await);
    let edge = Edge::over(&[one.named("one"), other.named("other")]).await;
    for region in [&one, &other] {
        region.indexers[0].behave(Behaviour::Fails(Code::ResourceExhausted));
    }
    let request = within(LONG, near_origin(&docs, 3));
    let refused = edge.search().search(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let retry = refused.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.is_some(), "{refused}");
    assert_eq!((one.asked(), other.asked()), (1, 1));
}

//! Tests of writes under another name, and of those for a collection that is fed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use axum::body::Bytes;
use futures::stream;
use serde_json::{Value as Json, json};
use shoal_schemas::{
    Collection, CollectionName, Offset, Token,
    control::{Entry, Feed, Key},
    v1::{self, write_result::Outcome},
};
use shoal_topic::collections::{self, Taken};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Code;

use super::{
    Config,
    resolve_tests::{Owner, claim_of},
    tests::{World, upsert},
};
use crate::publisher::tests::point;

const DEADLINE: Duration = Duration::from_secs(20);

/// A collection with a topic of its own, and `docs` standing for it.
async fn replaced(world: &World) -> Collection {
    let mut next = world.docs.clone();
    next.name = "docs-g2".parse().unwrap();
    next.fed_by = Some(world.docs.name.clone());
    collections::create(&world.log.cluster(), &world.control, next.clone())
        .await
        .unwrap();
    let docs: CollectionName = "docs".parse().unwrap();
    collections::set_alias(&world.control, &docs, &next.name, Taken::Shadow)
        .await
        .unwrap();
    next
}

/// How far a feed is.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Open,
    Closing,
    Moved,
    Ended,
}

async fn feed(world: &World, to: &Collection, stage: Stage) -> Offset {
    let key = Key::Feed(to.name.clone());
    let put = if stage == Stage::Ended {
        world.control.remove(&key).await.unwrap()
    } else {
        let entry = Entry::Feed(Feed {
            from: world.docs.name.clone(),
            closing: stage != Stage::Open,
            moved: stage == Stage::Moved,
        });
        world.control.put(&key, &entry).await.unwrap()
    };
    world.control.wait_for(put, DEADLINE).await.unwrap();
    put
}

fn patch(name: &str) -> v1::PatchRequest {
    v1::PatchRequest {
        collection: name.to_owned(),
        points: vec![v1::PointPatch {
            id: "a".to_owned(),
            unset: vec!["x".to_owned()],
            ..v1::PointPatch::default()
        }],
    }
}

#[tokio::test]
async fn writes_under_an_alias_go_to_the_topic_of_what_it_stands_for() {
    let world = World::start(Config::default()).await;
    let live: CollectionName = "live".parse().unwrap();
    collections::set_alias(&world.control, &live, &world.docs.name, Taken::Refuse)
        .await
        .unwrap();
    let mut client = world.grpc().await;
    let sent = client.upsert(upsert("live", &[("a", &point(1.0))])).await;
    let tokens = sent.unwrap().into_inner().tokens;
    assert_eq!(tokens[0].topic, "embeddings.docs");
    assert_eq!(world.found().len(), 1);
    let refused = client.upsert(upsert("lvie", &[("a", &point(1.0))])).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused.message().contains("there are: docs, live"),
        "{refused}"
    );
}

#[tokio::test]
async fn writes_for_a_collection_that_is_fed_stay_in_the_old_topic_until_they_have_moved() {
    let world = World::start(Config::default()).await;
    let next = replaced(&world).await;
    let mut client = world.grpc().await;
    let mut topics = Vec::new();
    for stage in [Stage::Open, Stage::Closing, Stage::Moved, Stage::Ended] {
        feed(&world, &next, stage).await;
        let sent = client.upsert(upsert("docs", &[("a", &point(1.0))])).await;
        topics.push(sent.unwrap().into_inner().tokens[0].topic.clone());
    }
    let [old, new] = ["embeddings.docs", "embeddings.docs-g2"];
    assert_eq!(topics, [old, old, new, new]);
    assert_eq!(
        (world.found().len(), world.found_in("docs-g2").len()),
        (2, 2)
    );
}

#[tokio::test]
async fn a_patch_waits_for_the_end_of_a_feed_and_goes_to_the_new_owner() {
    let world = World::start(Config::default()).await;
    let next = replaced(&world).await;
    let mut tasks = JoinSet::new();
    let [old, new] = [Owner::willing(), Owner::willing()];
    for (collection, owner) in [(&world.docs, &old), (&next, &new)] {
        let at = owner.start(&mut tasks);
        for number in 0..2 {
            claim_of(&world, collection, number, at, true).await;
        }
    }
    let mut client = world.grpc().await;
    feed(&world, &next, Stage::Open).await;
    client.patch(patch("docs")).await.unwrap();
    assert_eq!((old.times_asked(), new.times_asked()), (1, 0));
    feed(&world, &next, Stage::Closing).await;
    let (answer, _) = tokio::join!(client.patch(patch("docs")), async {
        // Polled after the call has begun to wait, or before: it may not go to the old one either way.
        tokio::task::yield_now().await;
        feed(&world, &next, Stage::Ended).await
    });
    let result = answer.unwrap().into_inner().results.pop().unwrap();
    assert!(
        matches!(result.outcome, Some(Outcome::Token(_))),
        "{result:?}"
    );
    assert_eq!((old.times_asked(), new.times_asked()), (1, 1));

    // One that never ends is told: under every name, also when other writes have moved already, because
    // what was written just before that is still to be copied.
    let other: CollectionName = "other".parse().unwrap();
    collections::set_alias(&world.control, &other, &world.docs.name, Taken::Refuse)
        .await
        .unwrap();
    for stage in [Stage::Closing, Stage::Moved] {
        feed(&world, &next, stage).await;
        for name in ["docs", "docs-g2", "other"] {
            let mut short = tonic::Request::new(patch(name));
            short.set_timeout(Duration::from_millis(300));
            let refused = client.patch(short).await.unwrap_err();
            let told = [Code::Unavailable, Code::Cancelled, Code::DeadlineExceeded];
            assert!(told.contains(&refused.code()), "{refused}");
        }
    }
    assert_eq!((old.times_asked(), new.times_asked()), (1, 1));
}

#[tokio::test]
async fn a_long_body_goes_over_with_its_name() {
    let world = World::start(Config::default()).await;
    let (send, pieces) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    let body = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    });
    let sent = reqwest::Client::new().post(world.url("/v1/collections/docs/points"));
    let sent = sent.body(reqwest::Body::wrap_stream(body)).send();
    let line = |id: &str| {
        let line = json!({"id": id, "vector": [1, 0.5, 0, -1]}).to_string() + "\n";
        Ok(line.into())
    };
    let write = async {
        send.send(line("before")).await.unwrap();
        let written = tokio::time::timeout(DEADLINE, async {
            while world.found().is_empty() {
                tokio::task::yield_now().await;
            }
        });
        written.await.expect("the first line is written");
        replaced(&world).await;
        send.send(line("behind")).await.unwrap();
        drop(send);
    };
    let (answer, ()) = tokio::join!(sent, write);
    let told: Json = serde_json::from_str(&answer.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(told["points"], 2, "{told}");
    assert_eq!(
        (world.found().len(), world.found_in("docs-g2").len()),
        (1, 1)
    );
    // One of each topic, though both may be of the same partition.
    let tokens = told["tokens"].as_array().unwrap().iter();
    let topics: Vec<String> = tokens
        .map(|text| {
            let token: Token = text.as_str().unwrap().parse().unwrap();
            token.topic.to_string()
        })
        .collect();
    assert_eq!(topics, ["embeddings.docs", "embeddings.docs-g2"]);
}

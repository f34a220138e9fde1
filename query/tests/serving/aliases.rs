//! Aliases: a name stands for a collection from one call to the next, wherever a collection is named.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::{Value, json};
use shoal_schemas::v1;
use tokio::task::JoinSet;
use tonic::Code;

use crate::world::{World, collection, fill, ids, near_origin, read};

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_takes_an_alias_and_says_which_collection_answered() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    let tokens = fill(&indexers, &docs, 20);
    world.alias("live", &docs).await;
    let named = |coverage: Option<v1::Coverage>| {
        let coverage = coverage.unwrap();
        assert_eq!(coverage.shards_answered, coverage.shards_asked);
        assert_eq!(coverage.collection, "docs");
    };
    let mut search = world.search();
    let near = v1::SearchRequest {
        collection: "live".into(),
        read: read(&tokens, true),
        ..near_origin(&docs, 2)
    };
    let found = search.search(near.clone()).await.unwrap().into_inner();
    assert_eq!(ids(&found.hits), ["p0", "p1"]);
    named(found.coverage);
    let query = v1::Query {
        vector: near.vector,
        k: 3,
        ..v1::Query::default()
    };
    let batch = v1::SearchBatchRequest {
        collection: "live".into(),
        queries: vec![query.clone(), query],
        read: None,
    };
    let found = search.search_batch(batch).await.unwrap().into_inner();
    assert_eq!(found.results[1].hits.len(), 3);
    named(found.coverage);
    let like = v1::RecommendRequest {
        collection: "live".into(),
        positive: vec!["p5".into()],
        query: Some(v1::Query {
            k: 2,
            ..v1::Query::default()
        }),
        ..v1::RecommendRequest::default()
    };
    let found = search.recommend(like).await.unwrap().into_inner();
    assert_eq!(ids(&found.hits), ["p4", "p6"]);
    named(found.coverage);
    let get = v1::GetRequest {
        collection: "live".into(),
        ids: vec!["p7".into()],
        ..v1::GetRequest::default()
    };
    let found = search.get(get).await.unwrap().into_inner();
    assert_eq!(found.points.len(), 1);
    named(found.coverage);
    let count = v1::CountRequest {
        collection: "live".into(),
        ..v1::CountRequest::default()
    };
    let counted = search.count(count).await.unwrap().into_inner();
    assert_eq!(counted.points, 20);
    named(counted.coverage);
    let scroll = v1::ScrollRequest {
        collection: "live".into(),
        limit: 7,
        ..v1::ScrollRequest::default()
    };
    let page = search.scroll(scroll).await.unwrap().into_inner();
    assert_eq!(page.points.len(), 7);
    named(page.coverage);
    let shards = v1::ShardsRequest {
        collection: "live".into(),
    };
    let served = search.shards(shards).await.unwrap().into_inner();
    assert!(served.shards.iter().all(|shard| shard.answered));
    let get = v1::GetCollectionRequest {
        name: "live".into(),
    };
    let found = world.collections().get_collection(get).await.unwrap();
    assert_eq!(found.into_inner().collection.unwrap().name, "docs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_goes_to_and_fro_fails_no_search_and_mixes_no_answers() {
    let world = World::start().await;
    // Of another number of shards, and the one has a name of its own that the alias takes.
    let (old, new) = (collection("docs", 2), collection("docs-g2", 3));
    let indexers = world.spread(&old).await;
    fill(&indexers, &old, 10);
    let indexers = world.spread(&new).await;
    fill(&indexers, &new, 20);
    let (stop, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let (mut search, stop, answered) = (world.search(), stop.clone(), answered.clone());
        let ask = v1::SearchRequest {
            read: read(&[], true),
            ..near_origin(&old, 100)
        };
        callers.spawn(async move {
            let mut by_old = 0_u32;
            let mut by_new = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let found = search.search(ask.clone()).await.unwrap().into_inner();
                let by = found.coverage.unwrap().collection;
                match (by.as_str(), found.hits.len()) {
                    ("docs", 10) => by_old += 1,
                    ("docs-g2", 20) => by_new += 1,
                    other => panic!("{other:?}"),
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
            (by_old, by_new)
        });
    }
    for target in [&new, &old].into_iter().cycle().take(20) {
        world.alias("docs", target).await;
        let wanted = answered.load(Ordering::Relaxed) + 20;
        world
            .until("searches to be answered", async || {
                (answered.load(Ordering::Relaxed) >= wanted).then_some(())
            })
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    for (by_old, by_new) in callers.join_all().await {
        assert!(by_old > 0 && by_new > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_are_set_listed_and_dropped_over_grpc() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    world.define(&docs).await;
    let mut client = world.collections();
    let set = |name: &str, collection: &str| v1::SetAliasRequest {
        alias: Some(v1::Alias {
            name: name.into(),
            collection: collection.into(),
        }),
    };
    let first = client.set_alias(set("live", "docs")).await.unwrap();
    assert_eq!(first.into_inner().before, "");
    let again = client.set_alias(set("live", "docs")).await.unwrap();
    assert_eq!(again.into_inner().before, "docs");
    for (name, target, code, told) in [
        ("live", "nothing", Code::NotFound, "there are: docs"),
        (
            "more",
            "live",
            Code::NotFound,
            "an alias stands for a collection",
        ),
        ("docs", "docs", Code::FailedPrecondition, "is a collection"),
        ("Live", "docs", Code::InvalidArgument, "[a-z0-9]"),
    ] {
        let refused = client.set_alias(set(name, target)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(told), "{refused}");
    }
    world
        .until("the alias to be listed", async || {
            let mut client = world.collections();
            let all = client.list_aliases(v1::ListAliasesRequest {}).await.ok()?;
            let all = all.into_inner().aliases;
            (all.len() == 1 && all[0].collection == "docs").then_some(())
        })
        .await;

    // Neither a collection of that name, nor an end of the one it stands for.
    let wanted = v1::CreateCollectionRequest {
        collection: Some(collection("live", 1).to_proto()),
    };
    let refused = client.create_collection(wanted).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    let drop = v1::DropCollectionRequest {
        name: "docs".into(),
        delete_topic: false,
    };
    let refused = client.drop_collection(drop.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("alias `live`"), "{refused}");

    let name = v1::DropAliasRequest {
        name: "live".into(),
    };
    client.drop_alias(name.clone()).await.unwrap();
    let refused = client.drop_alias(name).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    client.drop_collection(drop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_are_set_listed_and_dropped_over_http() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    world.define(&docs).await;
    let url = world.url("/v1/aliases/live");
    let put = |body: Value| world.http.put(&url).json(&body).send();
    let set = put(json!({"collection": "docs"})).await.unwrap();
    assert_eq!(set.status(), 200);
    assert_eq!(set.json::<Value>().await.unwrap(), json!({"before": null}));
    for (body, status) in [
        (json!({"collection": "nothing"}), 404),
        (json!({"collection": "docs", "more": 1}), 400),
        (json!({}), 400),
    ] {
        assert_eq!(put(body).await.unwrap().status(), status);
    }
    let one = json!({"name": "live", "collection": "docs"});
    let found = world
        .until("the alias to be known", async || {
            let found = world.http.get(&url).send().await.unwrap();
            (found.status() == 200).then_some(found)
        })
        .await;
    assert_eq!(found.json::<Value>().await.unwrap(), one);
    let all = world.http.get(world.url("/v1/aliases")).send().await;
    let all: Value = all.unwrap().json().await.unwrap();
    assert_eq!(all, json!({"aliases": [one]}));
    let dropped = world.http.delete(&url).send().await.unwrap();
    assert_eq!(dropped.status(), 200);
    assert_eq!(world.http.delete(&url).send().await.unwrap().status(), 404);
}

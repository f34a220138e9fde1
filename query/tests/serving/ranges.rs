//! Collections that route by ranges of ids: only shards whose range can hold an answer are asked.

use serde_json::{Value as Json, json};
use shoal_schemas::{
    Collection, Partition,
    control::{Announcement, Entry, Key},
    v1,
};

use crate::{
    indexer::Indexer,
    world::{World, collection, id, ids, near_origin, point},
};

/// Four ranges; those of tenant `cat` are the second and the third.
fn ranged() -> Collection {
    let mut shop = collection("shop", 4);
    shop.split_keys = ["b", "cat/m", "d"].map(str::to_owned).into();
    shop
}

async fn opened(world: &World) -> (Collection, Vec<Indexer>) {
    let shop = ranged();
    let indexers = world.spread(&shop).await;
    let all = [
        "a/1",
        "ant",
        "bee/1",
        "cat/a",
        "cat/m",
        "cat/z",
        "catalogue",
        "dog/1",
    ];
    for (n, key) in (0_u8..).zip(all) {
        let point = point(&shop, f32::from(n));
        let mut put = (indexers.iter()).map(|one| one.node.upsert(&shop, &id(key), &point));
        assert!(put.any(|put| put.is_some()), "{key}");
    }
    (shop, indexers)
}

/// Which of the indexers, one a shard, were asked meanwhile.
fn asked(indexers: &[Indexer], before: &mut Vec<usize>) -> Vec<usize> {
    let now: Vec<usize> = indexers.iter().map(|one| one.seen().len()).collect();
    let asked = now.iter().zip(before.iter()).enumerate();
    let asked = asked.filter(|(_, (now, before))| now > before);
    let asked = asked.map(|(shard, _)| shard).collect();
    *before = now;
    asked
}

async fn post(world: &World, verb: &str, body: &Json) -> Json {
    let url = world.url(&format!("/v1/collections/shop/{verb}"));
    let answer = world
        .http
        .post(url)
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_asks_the_shards_whose_ranges_can_hold_it() {
    let world = World::start().await;
    let (shop, indexers) = opened(&world).await;
    let mut before = vec![0; 4];
    asked(&indexers, &mut before);
    let of_tenant = |tenant: &str| v1::SearchRequest {
        tenant: tenant.to_owned(),
        ..near_origin(&shop, 10)
    };
    let found = world
        .search()
        .search(of_tenant("cat"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&found.hits), ["cat/a", "cat/m", "cat/z"]);
    assert_eq!(found.coverage.unwrap().shards_asked, 2);
    assert_eq!(asked(&indexers, &mut before), [1, 2]);

    let found = world
        .search()
        .search(of_tenant("dog"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&found.hits), ["dog/1"]);
    assert_eq!(asked(&indexers, &mut before), [3]);

    let told = post(&world, "count", &json!({"tenant": "a"})).await;
    assert_eq!(told["points"], 1, "{told}");
    assert_eq!(asked(&indexers, &mut before), [0]);

    let got = post(&world, "get", &json!({"ids": ["cat/z", "ant"]})).await;
    assert_eq!(got["points"].as_array().unwrap().len(), 2, "{got}");
    assert_eq!(asked(&indexers, &mut before), [0, 2]);

    let found = world
        .search()
        .search(near_origin(&shop, 10))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.hits.len(), 8);
    assert_eq!(asked(&indexers, &mut before), [0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scroll_leaves_out_the_ranges_it_has_passed() {
    let world = World::start().await;
    let (_, indexers) = opened(&world).await;
    let mut before = vec![0; 4];
    asked(&indexers, &mut before);
    let mut after = String::new();
    let (mut all, mut shards) = (Vec::new(), Vec::new());
    loop {
        let page = post(&world, "scroll", &json!({"limit": 3, "after_id": after})).await;
        let points = page["points"].as_array().unwrap();
        let of_page = points
            .iter()
            .map(|one| one["point"]["id"].as_str().unwrap().to_owned());
        all.extend(of_page);
        shards.push(asked(&indexers, &mut before));
        match page["next_after_id"].as_str() {
            Some(next) if !next.is_empty() => next.clone_into(&mut after),
            _ => break,
        }
    }
    let expected = [
        "a/1",
        "ant",
        "bee/1",
        "cat/a",
        "cat/m",
        "cat/z",
        "catalogue",
        "dog/1",
    ];
    assert_eq!(all, expected);
    assert_eq!(shards[..2], [vec![0, 1, 2, 3], vec![1, 2, 3]]);
    assert!(
        shards[2..]
            .iter()
            .all(|shards| !shards.contains(&0) && !shards.contains(&1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_no_indexer_may_serve_is_told_in_coverage_and_among_the_shards() {
    let world = World::start().await;
    let mut shop = ranged();
    let gpu = [("gpu".to_owned(), "true".to_owned())];
    shop.tenant_placement = [("dog".to_owned(), gpu.into())].into();
    world.define(&shop).await;
    let indexer = world.indexer("plain").await;
    for shard in 0..3 {
        indexer.node.host(&shop, Partition(shard));
        world.claim(&shop, shard, &indexer, true).await;
    }
    let announced = Entry::Node(Announcement {
        address: indexer.address.to_string(),
        set: None,
        labels: [("region".to_owned(), "eu".to_owned())].into(),
        weight: 1,
        lease_ms: 10_000,
        beat: 1,
    });
    let key = Key::Node("plain".into());
    world.control.put(&key, &announced).await.unwrap();
    let told = world.until("the shard's trouble to be told", async || {
        let found = world.search().search(near_origin(&shop, 1)).await.unwrap();
        let coverage = found.into_inner().coverage.unwrap();
        let error = coverage.shards[3].error.clone();
        error.contains("none of the 1").then_some(error)
    });
    let told = told.await;
    assert!(told.contains("needs gpu=true"), "{told}");
    let url = world.url("/v1/collections/shop/shards");
    let answer = world
        .http
        .get(url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(answer.contains("needs gpu=true"), "{answer}");
}

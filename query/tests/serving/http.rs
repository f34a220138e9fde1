//! JSON over HTTP says what gRPC says.

use serde_json::{Value, json};
use shoal_schemas::v1;

use crate::world::{World, collection, fill, near_origin};

async fn post(world: &World, path: &str, body: &Value) -> Value {
    let answer = world
        .http
        .post(world.url(path))
        .json(body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.json().await.unwrap()
}

/// A float as JSON writes it: the fewest digits that read back.
fn shortest(number: f32) -> Value {
    serde_json::from_str(&number.to_string()).unwrap()
}

fn hit(hit: &v1::Hit) -> Value {
    json!({
        "id": hit.id,
        "distance": shortest(hit.distance),
        "version": hit.version.to_string(),
        "payload": { "at": hit.vector[0], "tags": ["a", "b"] },
        "vector": hit.vector,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_the_same_over_both() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 12);
    let request = v1::SearchRequest {
        with_payload: true,
        with_vector: true,
        ..near_origin(&docs, 5)
    };
    let over_grpc = world.search().search(request).await.unwrap().into_inner();
    let body = json!({
        "vector": [0.1, 0.0, 0.0], "k": 5, "with_payload": true, "with_vector": true,
        "ef": 50, "exact": true, "at_least": [], "require_all": true,
    });
    let over_http = post(&world, "/v1/collections/docs/search", &body).await;
    let expected: Vec<Value> = over_grpc.hits.iter().map(hit).collect();
    assert_eq!(over_http["hits"], json!(expected));
    let coverage = over_grpc.coverage.unwrap();
    assert_eq!(over_http["coverage"]["shards_asked"], coverage.shards_asked);
    assert_eq!(
        over_http["coverage"]["shards_answered"],
        coverage.shards_answered
    );
    for (told, shard) in over_http["coverage"]["shards"]
        .as_array()
        .unwrap()
        .iter()
        .zip(&coverage.shards)
    {
        assert_eq!(told["shard"], shard.shard);
        assert_eq!(told["node"], shard.node.as_str());
        assert_eq!(told["answered"], true);
        assert_eq!(told["next_offset"], shard.next_offset);
    }

    let bare = post(
        &world,
        "/v1/collections/docs/search",
        &json!({"vector": [0, 0, 0], "k": 1}),
    )
    .await;
    let keys: Vec<_> = bare["hits"][0]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(keys, ["distance", "id", "version"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_query_by_query() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 12);
    let body = json!({"queries": [
        {"vector": [11.0, 0.0, 0.0], "k": 2},
        {"vector": [0.0, 0.0, 0.0], "k": 1, "with_payload": true},
    ]});
    let answer = post(&world, "/v1/collections/docs/search/batch", &body).await;
    assert_eq!(answer["results"][0]["hits"][0]["id"], "p11");
    assert_eq!(answer["results"][0]["hits"][1]["id"], "p10");
    assert_eq!(answer["results"][1]["hits"][0]["payload"]["at"], 0.0);
    assert_eq!(answer["coverage"]["shards_answered"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn points_are_read_one_by_one_or_together() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    let tokens = fill(&indexers, &docs, 12);
    let slashed = crate::world::id("tenant/a b/7");
    let point = crate::world::point(&docs, 7.5);
    indexers
        .iter()
        .find_map(|indexer| indexer.node.upsert(&docs, &slashed, &point))
        .unwrap();

    let url = world.url("/v1/collections/docs/points/p3");
    let at_least = format!("{},{}", tokens[3], tokens[4]);
    let sent = world
        .http
        .get(format!("{url}?with_vector=true&at_least={at_least}"));
    let found: Value = sent.send().await.unwrap().json().await.unwrap();
    assert_eq!(found["point"]["id"], "p3");
    assert_eq!(found["point"]["vector"], json!([3.0, 0.0, 0.0]));
    assert_eq!(found["point"]["payload"]["tags"], json!(["a", "b"]));
    assert_eq!(found["point"]["model"], "test");
    assert_eq!(found["topic"], "embeddings.docs");
    assert_eq!(found["partition"], tokens[3].partition.0);
    let bare: Value = world
        .http
        .get(&url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(bare["point"].get("vector").is_none());

    for path in ["tenant/a%20b/7", "tenant%2Fa%20b%2F7"] {
        let url = world.url(&format!("/v1/collections/docs/points/{path}"));
        let found: Value = world
            .http
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_eq!(found["point"]["id"], "tenant/a b/7", "{path}");
    }

    let missing = world
        .http
        .get(world.url("/v1/collections/docs/points/nobody"))
        .send()
        .await
        .unwrap();
    assert_eq!(missing.status(), 404);
    let told: Value = missing.json().await.unwrap();
    assert_eq!(
        told["error"]["message"],
        "collection `docs` has no point `nobody`"
    );

    let body = json!({"ids": ["p2", "nobody", "p1"], "with_vector": true});
    let several = post(&world, "/v1/collections/docs/get", &body).await;
    let ids: Vec<_> = several["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["point"]["id"])
        .collect();
    assert_eq!(ids, ["p2", "p1"]);

    let answer = world
        .http
        .post(world.url("/v1/collections/docs/count"))
        .send()
        .await
        .unwrap();
    let count: Value = answer.json().await.unwrap();
    assert_eq!(
        (&count["points"], &count["contested"]),
        (&json!(13), &json!(0))
    );
}

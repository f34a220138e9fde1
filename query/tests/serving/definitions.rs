//! Collections are made, read and dropped, over gRPC and HTTP.

use serde_json::{Value, json};
use shoal_schemas::v1;
use tonic::Code;

use crate::world::{World, collection};

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_is_made_once_read_and_dropped_over_grpc() {
    let world = World::start().await;
    let mut client = world.collections();
    let wanted = || v1::CreateCollectionRequest {
        collection: Some(v1::Collection {
            name: "docs".into(),
            dim: 3,
            metric: v1::Metric::Cosine.into(),
            partitions: 2,
            partitioner: v1::Partitioner::Murmur2.into(),
            ..v1::Collection::default()
        }),
    };
    let made = client
        .create_collection(wanted())
        .await
        .unwrap()
        .into_inner();
    assert!(made.created);
    let again = client
        .create_collection(wanted())
        .await
        .unwrap()
        .into_inner();
    assert!(!again.created);
    assert_eq!(again.collection, made.collection);

    let mut other = wanted();
    other.collection.as_mut().unwrap().dim = 4;
    let refused = client.create_collection(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    assert!(
        refused.message().contains("dim is 3, asked for was 4"),
        "{refused}"
    );
    let mut bad = wanted();
    bad.collection.as_mut().unwrap().name = "Docs".into();
    let refused = client.create_collection(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("[a-z0-9]"), "{refused}");
    let refused = client
        .create_collection(v1::CreateCollectionRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");

    let name = || v1::GetCollectionRequest {
        name: "docs".into(),
    };
    let found = world
        .until("the collection to be known", async || {
            Some(
                world
                    .collections()
                    .get_collection(name())
                    .await
                    .ok()?
                    .into_inner(),
            )
        })
        .await;
    assert_eq!(found.collection, made.collection);
    assert_eq!(found.shards.len(), 2);
    assert!(found.shards.iter().all(|owner| owner.node.is_empty()));
    let listed = client
        .list_collections(v1::ListCollectionsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.collections, [made.collection.unwrap()]);

    let drop = |name: &str| v1::DropCollectionRequest {
        name: name.into(),
        delete_topic: true,
    };
    client.drop_collection(drop("docs")).await.unwrap();
    for name in ["docs", "Not A Name"] {
        let refused = client.drop_collection(drop(name)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
    }
    world
        .until("the collection to be gone", async || {
            let gone = world.collections().get_collection(name()).await.err()?;
            (gone.code() == Code::NotFound).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_is_made_read_and_dropped_over_http() {
    let world = World::start().await;
    let url = world.url("/v1/collections/docs");
    let put = |body: Value| world.http.put(&url).json(&body).send();
    let wanted = json!({"dim": 3, "metric": "cosine", "partitions": 2});
    let made = put(wanted.clone()).await.unwrap();
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await.unwrap();
    assert_eq!(made["created"], true);
    assert_eq!(made["collection"]["name"], "docs");
    assert_eq!(made["collection"]["index"]["quantization"], "i8");
    assert_eq!(put(wanted).await.unwrap().status(), 200);
    for (body, status, text) in [
        (
            json!({"dim": 9, "metric": "cosine", "partitions": 2}),
            409,
            "dim is 3",
        ),
        (
            json!({"dim": 1, "metric": "cosine", "partitions": 2}),
            400,
            "dimension is 1",
        ),
        (
            json!({"dim": 3, "metric": "l2", "partitions": 2, "index": {"kind": "flat", "m": 32}}),
            400,
            "a flat index has no graph",
        ),
        (
            json!({"dim": 3, "metric": "cosin", "partitions": 2}),
            400,
            "cosin",
        ),
        (
            json!({"dim": 3, "metric": "l2", "partitions": 0}),
            400,
            "partitions is 0",
        ),
        (
            json!({"name": "dogs", "dim": 3, "metric": "l2", "partitions": 2}),
            400,
            "`dogs`",
        ),
        (
            json!({"dim": 3, "metric": "l2", "partitions": 2, "shards": 1}),
            400,
            "shards",
        ),
    ] {
        let answer = put(body).await.unwrap();
        assert_eq!(answer.status(), status);
        let told = answer.text().await.unwrap();
        assert!(told.contains(text), "{told} lacks {text}");
    }

    let docs = collection("docs", 2);
    let indexer = world.indexer("a").await;
    world.claim(&docs, 1, &indexer, true).await;
    let found: Value = world
        .http
        .get(&url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(found["collection"], made["collection"]);
    assert_eq!(found["shards"][0]["node"], "");
    assert_eq!(found["shards"][1]["node"], "a");
    assert_eq!(found["shards"][1]["address"], indexer.address.to_string());
    let listed = world
        .http
        .get(world.url("/v1/collections"))
        .send()
        .await
        .unwrap();
    let listed: Value = listed.json().await.unwrap();
    assert_eq!(listed["collections"], json!([made["collection"]]));

    let dropped = world.http.delete(&url).send().await.unwrap();
    assert_eq!(dropped.status(), 200);
    world
        .until("the collection to be gone", async || {
            let gone = world.http.get(&url).send().await.unwrap();
            (gone.status() == 404).then_some(())
        })
        .await;
    assert_eq!(world.http.delete(&url).send().await.unwrap().status(), 404);
}

//! Bad input: every fault has its code and says what to do, over gRPC and HTTP alike.

use serde_json::json;
use shoal_query::Config;
use shoal_schemas::{Collection, Metric, v1};
use tonic::Code;

use crate::{
    indexer::Behaviour,
    world::{World, collection, fill, near_origin, read},
};

async fn refused(world: &World, request: v1::SearchRequest) -> (Code, String) {
    let error = world.search().search(request).await.unwrap_err();
    (error.code(), error.message().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_search_has_its_code_and_says_what_is_wrong() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let angles = Collection {
        metric: Metric::Cosine,
        ..collection("angles", 1)
    };
    world.spread(&docs).await;
    let indexers = world.spread(&angles).await;
    let good = || near_origin(&docs, 1);
    let token = v1::Token {
        cluster_id: "x".into(),
        topic: "embeddings.other".into(),
        ..v1::Token::default()
    };
    let strange = v1::ReadOptions {
        at_least: vec![token],
        require_all: false,
        max_staleness_ms: None,
    };
    let cases = [
        (
            v1::SearchRequest { k: 0, ..good() },
            Code::InvalidArgument,
            "k is 0, allowed are 1 to 10000",
        ),
        (
            v1::SearchRequest {
                k: 10_001,
                ..good()
            },
            Code::InvalidArgument,
            "k is 10001",
        ),
        (
            v1::SearchRequest {
                ef: 10_001,
                ..good()
            },
            Code::InvalidArgument,
            "ef is 10001",
        ),
        (
            v1::SearchRequest {
                vector: vec![1.0; 4],
                ..good()
            },
            Code::InvalidArgument,
            "vector has 4 components, the collection has 3",
        ),
        (
            v1::SearchRequest {
                vector: vec![],
                ..good()
            },
            Code::InvalidArgument,
            "0 components",
        ),
        (
            v1::SearchRequest {
                vector: vec![0.0, f32::NAN, 0.0],
                ..good()
            },
            Code::InvalidArgument,
            "component 1 is NaN",
        ),
        (
            v1::SearchRequest {
                vector: vec![0.0, 0.0, f32::INFINITY],
                ..good()
            },
            Code::InvalidArgument,
            "component 2 is inf",
        ),
        (
            v1::SearchRequest {
                vector: vec![0.0; 3],
                ..near_origin(&angles, 1)
            },
            Code::InvalidArgument,
            "all zeros",
        ),
        (
            v1::SearchRequest {
                collection: "nothing".into(),
                ..good()
            },
            Code::NotFound,
            "collection `nothing` does not exist; there are: angles, docs",
        ),
        (
            v1::SearchRequest {
                collection: String::new(),
                ..good()
            },
            Code::NotFound,
            "there are: angles, docs",
        ),
        (
            v1::SearchRequest {
                read: Some(strange),
                ..good()
            },
            Code::InvalidArgument,
            "token 0 is of topic `embeddings.other`",
        ),
    ];
    for (request, code, text) in cases {
        let (found, message) = refused(&world, request.clone()).await;
        assert_eq!(found, code, "{request:?}: {message}");
        assert!(message.contains(text), "{message:?} lacks {text:?}");
    }
    assert_eq!(
        indexers[0].seen().len(),
        0,
        "no shard is asked a bad question"
    );
    assert!(
        world
            .search()
            .search(v1::SearchRequest {
                vector: vec![0.0; 3],
                ..good()
            })
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_batches_gets_and_deadlines_are_refused() {
    let config = Config {
        max_batch_queries: 2,
        max_get_ids: 2,
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    world.spread(&docs).await;
    let query = v1::Query {
        vector: vec![0.0; 3],
        k: 1,
        ..v1::Query::default()
    };
    let short = v1::Query {
        vector: vec![0.0; 2],
        ..query.clone()
    };
    for (queries, text) in [
        (vec![], "number of queries is 0"),
        (
            vec![query.clone(); 3],
            "number of queries is 3, allowed are 1 to 2",
        ),
        (
            vec![query, short],
            "query 1 is refused: vector has 2 components",
        ),
    ] {
        let request = v1::SearchBatchRequest {
            collection: "docs".into(),
            queries,
            read: None,
        };
        let error = world.search().search_batch(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(text), "{error}");
    }
    let long = "x".repeat(513);
    for (ids, text) in [
        (vec![], "number of ids is 0"),
        (vec!["a", "b", "c"], "number of ids is 3"),
        (vec!["a", ""], "id 1 is refused: id is empty"),
        (vec![long.as_str()], "id 0 is refused: id has 513 bytes"),
    ] {
        let request = v1::GetRequest {
            collection: "docs".into(),
            ids: ids.into_iter().map(String::from).collect(),
            ..v1::GetRequest::default()
        };
        let error = world.search().get(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(text), "{error}");
    }
    let mut request = tonic::Request::new(near_origin(&docs, 1));
    request
        .metadata_mut()
        .insert("grpc-timeout", "soon".parse().unwrap());
    let error = world.search().search(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("time-out `soon`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shard_calls_wrong_is_the_callers_fault() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    indexers[1].behave(Behaviour::FailsShards(3));
    let (code, message) = refused(&world, near_origin(&docs, 1)).await;
    assert_eq!(
        (code, message.as_str()),
        (Code::InvalidArgument, "shard 1: planted")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn http_refuses_with_the_same_codes() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    let mut token = fill(&indexers, &docs, 2)[0].clone();
    token.offset = shoal_schemas::Offset(99);
    let late = token.to_string();
    let vector = json!([0.0, 0.0, 0.0]);
    let cases = [
        (
            "docs/search",
            json!({"vector": vector, "k": 0}),
            400,
            "INVALID_ARGUMENT",
            "k is 0",
        ),
        (
            "docs/search",
            json!({"vector": vector}),
            400,
            "INVALID_ARGUMENT",
            "missing field `k`",
        ),
        (
            "docs/search",
            json!({"vector": [0.0], "k": 1}),
            400,
            "INVALID_ARGUMENT",
            "1 components",
        ),
        (
            "docs/search",
            json!({"vector": [0.0, 0.0, 1e39], "k": 1}),
            400,
            "INVALID_ARGUMENT",
            "component 2 is inf",
        ),
        (
            "docs/search",
            json!({"vector": ["a"], "k": 1}),
            400,
            "INVALID_ARGUMENT",
            "invalid type",
        ),
        (
            "docs/search",
            json!({"vector": vector, "k": -1}),
            400,
            "INVALID_ARGUMENT",
            "-1",
        ),
        (
            "docs/search",
            json!({"vector": vector, "k": 1, "with_payloads": true}),
            400,
            "INVALID_ARGUMENT",
            "with_payloads",
        ),
        (
            "docs/search",
            json!({"vector": vector, "k": 1, "at_least": ["!"]}),
            400,
            "INVALID_ARGUMENT",
            "at_least[0] is no token",
        ),
        (
            "docs/search?timeout_ms=0",
            json!({"vector": vector, "k": 1}),
            400,
            "INVALID_ARGUMENT",
            "time-out `0`",
        ),
        (
            "docs/search?timeout=5",
            json!({"vector": vector, "k": 1}),
            400,
            "INVALID_ARGUMENT",
            "timeout",
        ),
        (
            "docs/search?timeout_ms=300",
            json!({"vector": vector, "k": 1, "at_least": [late]}),
            504,
            "DEADLINE_EXCEEDED",
            "offset 99",
        ),
        (
            "other/search",
            json!({"vector": vector, "k": 1}),
            404,
            "NOT_FOUND",
            "there are: docs",
        ),
        (
            "docs/search/batch",
            json!({"queries": []}),
            400,
            "INVALID_ARGUMENT",
            "number of queries",
        ),
        (
            "docs/get",
            json!({"ids": [""]}),
            400,
            "INVALID_ARGUMENT",
            "id is empty",
        ),
        ("other/count", json!({}), 404, "NOT_FOUND", "does not exist"),
        ("docs/sarch", json!({}), 404, "NOT_FOUND", "no such route"),
    ];
    for (path, body, status, code, text) in cases {
        let url = world.url(&format!("/v1/collections/{path}"));
        let answer = world.http.post(url).json(&body).send().await.unwrap();
        let found = answer.status().as_u16();
        let told: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(
            (found, told["error"]["code"].as_str()),
            (status, Some(code)),
            "{path} {body}: {told}"
        );
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(text), "{message:?} lacks {text:?}");
    }
    let url = world.url("/v1/collections/docs/search");
    let torn = world
        .http
        .post(&url)
        .body("{\"vector\": [0.0,")
        .send()
        .await
        .unwrap();
    assert_eq!(torn.status(), 400);
    assert!(torn.text().await.unwrap().contains("line 1"));
    assert_eq!(world.http.get(&url).send().await.unwrap().status(), 405);

    indexers[0].behave(Behaviour::Fails(Code::Internal));
    let body = json!({"vector": vector, "k": 1, "require_all": true});
    let answer = world.http.post(&url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let request = v1::SearchRequest {
        read: read(&[], true),
        ..near_origin(&docs, 1)
    };
    let (code, message) = refused(&world, request).await;
    let told: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(code, Code::Unavailable);
    assert_eq!(
        told["error"],
        json!({"code": "UNAVAILABLE", "message": message})
    );
}

//! Calls that cannot be answered are refused by name, over gRPC and over HTTP alike.

use serde_json::json;
use shoal_schemas::{Collection, Metric, v1};
use tonic::Code;

use crate::harness::{
    client,
    seed::Random,
    topic::{self, append, home, record, value},
    world::{now_ms, shared},
};

const DIM: u32 = 8;

#[test]
fn what_the_gateway_would_have_to_refuse_later_it_refuses_at_once_by_name() {
    let shared = shared();
    let mut wanted = Collection::new(
        "gate".parse().unwrap(),
        DIM.try_into().unwrap(),
        Metric::Cosine,
        4,
    );
    wanted.max_record_bytes = 400;
    let collection = shared.create(wanted);
    let good = v1::Point {
        id: "good".to_owned(),
        vector: vec![1.0; 8],
        ..v1::Point::default()
    };
    let large = v1::Value {
        kind: Some(v1::value::Kind::String("x".repeat(500))),
    };
    let bad = [
        (
            "components",
            v1::Point {
                vector: vec![1.0; 7],
                ..good.clone()
            },
        ),
        (
            "finite",
            v1::Point {
                vector: vec![f32::NAN; 8],
                ..good.clone()
            },
        ),
        (
            "zero",
            v1::Point {
                vector: vec![0.0; 8],
                ..good.clone()
            },
        ),
        (
            "empty",
            v1::Point {
                id: String::new(),
                ..good.clone()
            },
        ),
        (
            "400",
            v1::Point {
                payload: [("text".to_owned(), large)].into(),
                ..good.clone()
            },
        ),
    ];
    for (names, point) in bad {
        // One bad point fails the call before anything of it is published.
        let refused = shared
            .gateway
            .upsert("gate", vec![good.clone(), point])
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{names}: {refused}");
        assert!(refused.message().contains(names), "{names}: {refused}");
    }
    let refused = shared
        .gateway
        .upsert("nowhere", vec![good.clone()])
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let body = json!({"points": [{"id": "x", "vector": [1, 2]}]});
    let (status, answer) = client::json(
        reqwest::Method::PUT,
        shared.gateway.http,
        "/v1/collections/gate/points",
        &body,
    );
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (400, Some("INVALID_ARGUMENT")),
        "{answer}"
    );
    assert_eq!(
        topic::ends(&shared.world.cluster, &collection),
        [0, 0, 0, 0]
    );
    shared.gateway.upsert("gate", vec![good]).unwrap();
    assert_eq!(shared.settled(&collection).points, 1);
}

#[test]
fn an_impossible_search_is_refused_by_name_over_both_ways() {
    let shared = shared();
    let collection = shared.collection("asked", DIM, 2);
    let mut random = Random::of(12);
    for number in 0..7 {
        let id = format!("a-{number}");
        let bytes = value(&collection, &random.vector(DIM));
        append(
            &shared.world.cluster,
            &home(&collection, &id),
            &record(&id, Some(bytes), now_ms()),
        );
    }
    shared.settled(&collection);
    let vector = random.vector(DIM);
    let mut with_nan = vector.clone();
    with_nan[3] = f32::NAN;
    let refusals = [
        ("nowhere", vector.clone(), 3, Code::NotFound, "nowhere"),
        ("No Name", vector.clone(), 3, Code::NotFound, "No Name"),
        ("asked", vector.clone(), 0, Code::InvalidArgument, "k is 0"),
        (
            "asked",
            vector.clone(),
            10_001,
            Code::InvalidArgument,
            "10000",
        ),
        ("asked", vec![1.0; 9], 3, Code::InvalidArgument, "9"),
        (
            "asked",
            Vec::new(),
            3,
            Code::InvalidArgument,
            "0 components",
        ),
        ("asked", vec![0.0; 8], 3, Code::InvalidArgument, "zero"),
        ("asked", with_nan, 3, Code::InvalidArgument, "NaN"),
    ];
    for (name, vector, k, code, names) in refusals {
        let refused = shared
            .query
            .search(client::search(name, &vector, k))
            .unwrap_err();
        let is_name_fault = name == "No Name" && refused.code() == Code::InvalidArgument;
        assert!(
            refused.code() == code || is_name_fault,
            "{name} {k}: {refused}"
        );
        assert!(refused.message().contains(names), "{name} {k}: {refused}");
        if vector.iter().any(|component| component.is_nan()) || name.contains(' ') {
            continue;
        }
        let body = json!({"vector": vector, "k": k});
        let (status, answer) = shared
            .query
            .post(&format!("/v1/collections/{name}/search"), &body);
        let expected = if code == Code::NotFound {
            (404, "NOT_FOUND")
        } else {
            (400, "INVALID_ARGUMENT")
        };
        let told = (status, answer["error"]["code"].as_str().unwrap());
        assert_eq!(told, expected, "{name} {k}: {answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(names),
            "{answer}"
        );
    }
    // More than there are: all of them.
    let answer = shared
        .query
        .search(client::search("asked", &vector, 10_000))
        .unwrap();
    assert_eq!(answer.hits.len(), 7);
    let body = json!({"vector": vector, "k": 50});
    let (status, answer) = shared.query.post("/v1/collections/asked/search", &body);
    assert_eq!(
        (status, answer["hits"].as_array().map(Vec::len)),
        (200, Some(7)),
        "{answer}"
    );
    // An empty collection is no error either.
    shared.collection("asked-empty", DIM, 2);
    let answer = shoal_runtime::eventually(crate::harness::DEADLINE, "its shards to serve", || {
        shared
            .query
            .search(client::search("asked-empty", &vector, 3))
            .ok()
    });
    assert_eq!(answer.hits, []);
    // A field that nobody knows is named.
    let body = json!({"vector": vector, "k": 1, "kk": 2});
    let (status, answer) = shared.query.post("/v1/collections/asked/search", &body);
    assert!(
        status == 400 && answer["error"]["message"].as_str().unwrap().contains("kk"),
        "{answer}"
    );
}
